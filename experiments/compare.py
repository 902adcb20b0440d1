"""Run the comparisons of experiments/index.yaml, with their arms in parallel on one core each, and write their figures.

    python experiments/compare.py                        list them with their times
    python experiments/compare.py run NAME [--cifar10 FOLDER] [--vgg FILE] [--cores 2] [--runs runs/experiments]

Each arm is an ordinary run folder of `vqvae2 train`: the same command again skips finished arms and resumes interrupted
ones. The figures of the finished arms are written to results/NAME.json and their curves to docs/images/ as soon as an arm ends, so an
experiment that was stopped leaves what it has measured.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from threading import Lock
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from vqvae2.config.sampling import Sampling
from vqvae2.evaluate.plot import svg
from vqvae2.evaluate.style import STYLE
from vqvae2.run import load

ROOT = Path(__file__).parents[1]
LIST = ROOT / "experiments" / "index.yaml"


def arms(experiment: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(name, settings) of every arm with every seed; all seeds of an arm come before the next arm."""
    return [
        (f"{arm}-{seed}", [*settings, f"seed={seed}"])
        for arm, settings in experiment["arms"].items()
        for seed in experiment["seeds"]
    ]


def command(experiment: dict[str, Any], settings: list[str], run: Path, data: str, until: str) -> list[str]:
    """The `vqvae2 train` command of one arm."""
    named = [setting.removeprefix("recipe=") for setting in settings if setting.startswith("recipe=")]
    recipe = ROOT / "recipes" / (named[0] if named else experiment["recipe"])
    line = [sys.executable, "-m", "vqvae2", "train", data, "--run", str(run)]
    line += ["--preset", experiment["preset"], "--config", str(recipe), "--until", until]
    for setting in settings:
        if not setting.startswith(("recipe=", "same=")):
            line += ["--set", setting]
    return line


def figures(run: Path) -> dict[str, Any]:
    """The figures of a run folder, per stage: parameters, the last means of training, the held-out figures, the seconds."""
    stages = {}
    for file in sorted(run.glob("**/config.json")):
        stage = file.parent
        outcome = json.loads(file.read_text())["outcome"]
        lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
        last = next(line for line in reversed(lines) if "loss" in line)
        weights = load_file(stage / "model.safetensors").values()
        stages[str(stage.relative_to(run))] = {
            "parameters": sum(weight.numel() for weight in weights),
            "training, last mean": last,
            "held out": outcome["figures"],
            "step": outcome["best_step"],
            "seconds": round(outcome["seconds"]),
        }
    return stages


def standalone(drawing: str) -> str:
    """A drawing of `svg` as a file of its own, in the light colours of a report's style, which viewers need not understand."""
    colours = dict(re.findall(r"--(\w+):(#\w+)", STYLE.partition("@media")[0]))
    rules = "".join(line for line in STYLE.splitlines() if line.startswith("svg "))
    head, _, rest = drawing.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).partition(">")
    text = f'{head} font-family="sans-serif"><style>{rules}</style><rect width="100%" height="100%" fill="var(--page)"/>{rest}'
    return re.sub(r"var\(--(\w+)\)", lambda found: colours[found[1]], text)


def draw(name: str, metrics: list[str], folders: dict[str, Path], after: int) -> None:
    """Draw each metric (STAGE/METRIC) as one curve per arm.

    Steps up to `after` are left out. The drawing is docs/images/NAME-METRIC.svg, or NAME-level-I-METRIC.svg for a metric of a prior.
    """
    for named in metrics:
        stage, _, metric = named.rpartition("/")
        curves = {}
        for arm, folder in folders.items():
            text = (folder / stage / "metrics.jsonl").read_text()
            lines = [json.loads(line) for line in text.splitlines()]
            curves[arm] = [
                (line["step"], line[metric]) for line in lines if metric in line and line["step"] > after
            ]
        drawing = standalone(svg(curves))
        title = "-".join([name, *stage.split("/")[1:], metric.replace("_", "-")])
        (ROOT / "docs" / "images" / f"{title}.svg").write_text(drawing + "\n")


def first_stages(experiment: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(name, settings) of the autoencoders that the arms of a seed share; empty unless the experiment is `shared`."""
    return [(f"stage1-{seed}", [f"seed={seed}"]) for seed in experiment["seeds"] if experiment.get("shared")]


def first_stage(name: str, experiment: dict[str, Any], seed: str, runs: Path) -> Path:
    """The folder of the shared autoencoder: in this experiment (`shared: true`) or in the one that `shared` names."""
    return runs / (name if experiment["shared"] is True else experiment["shared"]) / f"stage1-{seed}"


def copy_trained(source: Path, target: Path) -> None:
    """Copy a trained folder as a whole or not at all; an existing target is left alone."""
    if not target.exists():
        part = target.with_name(f"{target.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(source, part, ignore=shutil.ignore_patterns("checkpoints"))
        part.rename(target)


def copy_same_stages(folder: Path, settings: list[str], seed: str) -> None:
    """Copy the stages that an arm shares with a finished one (`same=ARM/STAGE`) from that arm of the same seed."""
    for setting in settings:
        if setting.startswith("same="):
            arm, _, stage = setting.removeprefix("same=").partition("/")
            source = folder.parent / f"{arm}-{seed}" / stage
            if not (folder / stage).exists() and not (source / "model.safetensors").exists():
                raise SystemExit(f"{folder.name} copies {stage} from {source}, which is not finished")
            copy_trained(source, folder / stage)


def seconds_per_sample(folders: dict[str, Path], batches: list[int]) -> dict[str, dict[str, float]]:
    """Per arm and batch size: the median of three on one core, including decoding; the arms alternate."""
    runs = {arm: load(folder, "cpu") for arm, folder in folders.items() if batches}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    medians: dict[str, dict[str, float]] = {arm: {} for arm in runs}
    for batch in batches:
        seconds: dict[str, list[float]] = {arm: [] for arm in runs}
        for repeat in range(4):
            for arm, one in runs.items():
                began = time.perf_counter()
                one.sample(batch, sampling=Sampling(batch=batch), seed=repeat)
                seconds[arm].append((time.perf_counter() - began) / batch)
        for arm, values in seconds.items():
            medians[arm][f"batch {batch}"] = statistics.median(values[1:])  # the first loads the weights
    torch.set_num_threads(threads)
    return medians


def draw_sizes(name: str, series: dict[str, list[str]], done: dict[str, Any]) -> None:
    """Draw the held-out bits of the first seed's arms against the weights of each prior, one curve per series.

    Args:
        name: of the experiment; the drawing is docs/images/NAME-level-I-weights.svg.
        series: the names of arms, without the seed, that differ in size only.
        done: the figures of the finished arms.
    """
    seed = next(iter(done)).rpartition("-")[2]
    for stage in (each for each in done[next(iter(done))] if each.startswith("prior/")):
        curves = {
            label: [
                (done[arm][stage]["parameters"] / 1e6, done[arm][stage]["held out"]["heldout_bits"])
                for arm in (f"{each}-{seed}" for each in names)
                if arm in done
            ]
            for label, names in series.items()
        }
        drawing = standalone(svg(curves, x_title="weights, million", y_title="held-out bits per code"))
        title = f"{name}-{stage.split('/')[1]}-weights"
        (ROOT / "docs" / "images" / f"{title}.svg").write_text(drawing + "\n")


def write(name: str, experiment: dict[str, Any], folders: dict[str, Path]) -> Path:
    """Write the figures of finished arms (name -> run folder) to results/NAME.json, and draw their curves; gives the file."""
    done = {arm: figures(folder) for arm, folder in folders.items()}
    for arm, seconds in seconds_per_sample(folders, experiment.get("sample", [])).items():
        done[arm]["seconds a sample"] = seconds
    target = ROOT / "results" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"experiment": experiment, "arms": done}, indent=1) + "\n")
    draw(name, experiment.get("curves", []), folders, experiment.get("after", 0))
    if experiment.get("sizes"):
        draw_sizes(name, experiment["sizes"], done)
    return target


def run(name: str, experiment: dict[str, Any], data: str, common: list[str], runs: Path, cores: int) -> None:
    """Train every arm, at most `cores` at once and each on a core of its own; write the figures after each arm."""
    folders = {arm: runs / name / arm for arm, _ in arms(experiment)}
    finished: set[str] = set()
    writing = Lock()
    free: Queue[int] = Queue()
    for core in sorted(os.sched_getaffinity(0))[:cores]:
        free.put(core)

    def one(item: tuple[str, list[str]]) -> None:
        arm, settings = item
        folder, began = runs / name / arm, time.time()
        folder.parent.mkdir(parents=True, exist_ok=True)
        until = experiment["until"]
        if experiment.get("shared"):
            seed = arm.rpartition("-")[2]
            first = first_stage(name, experiment, seed, runs)
            if arm.startswith("stage1-"):
                until, folder = "autoencoder", first
            else:
                copy_trained(first, folder)
                copy_same_stages(folder, settings, seed)
        core = free.get()
        try:
            with (runs / name / f"{arm}.log").open("a") as log:
                subprocess.run(
                    [
                        "taskset",
                        "-c",
                        str(core),
                        *command(experiment, [*common, *settings], folder, data, until),
                    ],
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    stdout=log,
                    stderr=log,
                    check=True,
                )
        finally:  # an arm that fails must not keep the others waiting for its core
            free.put(core)
        print(f"{arm}: {(time.time() - began) / 60:.1f} min", flush=True)
        with writing:
            finished.add(arm)
            if arm in folders and not experiment.get(
                "sample"
            ):  # times per sample are measured when no arm trains
                write(
                    name, experiment, {each: folder for each, folder in folders.items() if each in finished}
                )

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(one, first_stages(experiment)))
        list(pool.map(one, arms(experiment)))
    print(write(name, experiment, folders))


def main() -> None:
    """List, or run one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["list", "run"], default="list")
    parser.add_argument("name", nargs="?", help="name of an experiment in experiments/index.yaml")
    parser.add_argument("--cifar10", help="folder with CIFAR-10 as train.parquet and test.parquet")
    parser.add_argument("--vgg", help="weights of the perceptual distance (tools/perceptual_weights.py)")
    parser.add_argument(
        "--cores", type=int, default=2, help="number of arms that train in parallel (default 2)"
    )
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "experiments", help="where the run folders go"
    )
    options = parser.parse_args()
    experiments = yaml.safe_load(LIST.read_text())
    if options.what == "list":
        for name, item in experiments.items():
            count = len(arms(item))
            print(f"{name:16s} {count} x {item['minutes']} min of one core  {item['data']:8s} {item['asks']}")
        return
    if options.name not in experiments:
        parser.error(f"expected one of {', '.join(experiments)}, found {options.name}")
    experiment, common = experiments[options.name], []
    data = experiment["data"]
    if data == "cifar10":
        if not options.cifar10:
            parser.error(f"{options.name} needs --cifar10 FOLDER")
        data = options.cifar10
    if experiment.get("vgg"):
        if not options.vgg:
            parser.error(f"{options.name} needs --vgg FILE")
        common.append(f"train_autoencoder.perceptual_weights={options.vgg}")
    run(options.name, experiment, data, common, options.runs, options.cores)


if __name__ == "__main__":
    main()
