"""`vqvae2 evaluate`: what a run, or a folder of pictures, is worth; report.json and report.html.

    DATA --split--> training and held-out pictures --autoencoder--> reconstructions
    RUN --priors, decoder--> samples          --samples, --against--> other folders
    all of them --evaluate/parts.py--> figures and pictures --> the report

Every set is compared with the same training pictures, the reference, at the same n; samples have the classes of the
training pictures in a shuffled order, so any first n of them have about the classes of the data.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vqvae2.autoencoder.perceptual import PerceptualDistance
from vqvae2.config.models import DataConfig
from vqvae2.config.sampling import Sampling
from vqvae2.data.images import open_images
from vqvae2.data.peek import peek
from vqvae2.errors import UserError
from vqvae2.evaluate import parts
from vqvae2.evaluate.classifier import ClassifierConfig
from vqvae2.evaluate.critic import Critic, critic_file, load_critic
from vqvae2.evaluate.features import FeatureNetwork, Features, extract, feature_network
from vqvae2.evaluate.parts import Found
from vqvae2.evaluate.report import Page
from vqvae2.evaluate.sets import (
    PictureSet,
    digest,
    drawn_samples,
    folder_pictures,
    real_pictures,
    reconstructions,
)
from vqvae2.files.atomic import write_json
from vqvae2.files.output import make_folder
from vqvae2.files.progress import Reporter
from vqvae2.generate.sample import batches
from vqvae2.generate.sample_folder import SampleFolder
from vqvae2.run import Run

PARTS = ("nll", "reconstruction", "codes", "distances", "precision", "classification", "memorisation", "symmetry", "speed", "critic")  # fmt: skip
"""The parts of a report, in its order."""
_OF_A_RUN = ("nll", "reconstruction", "codes", "speed", "critic")
_NAMES = {
    "training", "held out", "reference", "reconstructions", "samples", "candidates",
    "reconstructions of training", "reconstructions of held out", "reconstructions of the reference",
}  # fmt: skip
_STARS = {name: f"{name} against reconstructions" for name in ("reconstructions", "samples")}
_LEAST = 6  # the fifth neighbour of a picture is another
_PACKAGES = ("vqvae2", "torch", "numpy", "scipy", "torchmetrics", "pillow")
_TITLES = {
    "nll": "Likelihood of the codes",
    "reconstruction": "Reconstruction",
    "codes": "Use of the codes",
    "distances": "Distances from the training pictures",
    "precision": "Precision and recall, density and coverage",
    "classification": "Classification accuracy score",
    "memorisation": "Nearest training pictures",
    "symmetry": "Left-right symmetry",
    "speed": "Speed",
    "critic": "The critic: fidelity against diversity",
}


@dataclass(frozen=True)
class Plan:
    """What is measured, and how.

    Attributes:
        only: the parts, () for all that can be done.
        n: pictures of each set that are compared, at most (the classification accuracy score has `classifier_n`).
        reference: training pictures that they are compared with, at most (n if that is larger).
        network, weights: the feature network; see `feature_network`.
        perceptual: weights of the perceptual distance, or None to leave it out.
        samples: a folder of pictures to measure instead of samples of the run.
        against: more folders by name.
        sweep: shares that the critic keeps, () for no sweep.
        classifier, classifier_n: of the classification accuracy score, and how many pictures it learns from, at most; None:
            from as many samples of each class as there are training pictures, as Ravuri and Vinyals do.
        sampling: how samples of the run are drawn; None takes the run's own.
        seed: of which pictures are chosen and of the samples.
        size: px, without a run; None: the samples' own.
    """

    only: tuple[str, ...] = ()
    n: int = 10_000
    reference: int = 10_000
    network: str = "lite0"
    weights: Path | None = None
    perceptual: Path | None = None
    samples: Path | None = None
    against: dict[str, Path] = field(default_factory=dict)
    sweep: tuple[float, ...] = ()
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    classifier_n: int | None = None
    sampling: Sampling | None = None
    seed: int = 0
    size: int | None = None


def assess(run: Run | None, data: str, out: Path, plan: Plan, reporter: Reporter) -> dict[str, Any]:
    """Measure, and write out/report.json and out/report.html; features and samples are kept in out/cache for the next time.

    Args:
        run: None measures `plan.samples` alone; half of the pictures then stand for training pictures, half are held out.
        data: the real pictures, see `open_images`; for a run usually those that it was trained on.

    Returns:
        What report.json holds: protocol, parts, warnings, seconds (the only figures, with the part `speed`, that differ
        from time to time).

    Raises:
        UserError: nothing to measure, an unknown part, a name that a set of ours has, a critic that rests on the measuring
            network, folders that hold no pictures; see also what it calls.
    """
    unknown = sorted(set(plan.only) - set(PARTS))
    if unknown:
        raise UserError(f"no part {', '.join(unknown)}: expected some of {', '.join(PARTS)}")
    if taken := sorted({*plan.against} & _NAMES):
        raise UserError(f"another name than {', '.join(taken)} is needed: a set of the report has it")
    if run is None and plan.samples is None:
        raise UserError("expected a RUN or --samples DIR, or both")
    make_folder(out)
    return _Assessment(run, data, out, plan, reporter).report()


class _Assessment:
    """What the parts need, each made once and when it is first asked for."""

    def __init__(self, run: Run | None, data: str, out: Path, plan: Plan, reporter: Reporter) -> None:
        self.run, self.out, self.plan, self.reporter = run, out, plan, reporter
        self.cache = out / "cache"
        self.config = run.config.data if run else self._plain_config(plan, out)
        folder = self.cache  # other pictures must not take the place of the run's
        if run and run.done()["codes"] and data == run.record.get("source"):
            folder = run.folder
        self.images = open_images(
            data, self.config, folder / "data", seed=run.config.seed if run else 0, say=reporter.say
        )
        self.warnings: list[str] = []
        if run and run.record.get("fingerprint") not in (None, self.images.fingerprint):
            self.warnings.append(
                "these are not the pictures that the run was trained on: what stands as training pictures it never saw"
            )
        self.device = run.device if run else torch.device("cpu")
        self.held: dict[str, Features] = {}

    def report(self) -> dict[str, Any]:
        page = Page(f"vqvae2 evaluate: {self.run.folder if self.run else self.plan.samples}")
        result: dict[str, Any] = {"protocol": {}, "parts": {}, "warnings": self.warnings, "seconds": {}}
        found: dict[str, Found] = {}
        for name in self._wanted():
            self.reporter.say(f"evaluating: {name}")
            begun = time.perf_counter()
            found[name] = getattr(self, f"_{name}")()
            result["seconds"][name] = time.perf_counter() - begun
            result["parts"][name] = found[name].figures
            self.warnings += [line for line in found[name].warnings if line not in self.warnings]
        result["protocol"] = self._protocol()
        result["seconds"] |= {f"features of {name}": kept.seconds for name, kept in self.held.items()}
        for line in self.warnings:
            page.text(f"Warning: {line}.")
        for name, part in found.items():
            page.heading(_TITLES[name])
            for header, rows in _tables(name, part.figures):
                page.table(header, rows)
            for caption, picture in part.pictures:
                page.picture(picture, caption)
            for caption, curves in part.plots:
                page.curves(curves, caption)
        page.heading("Protocol")
        page.table(("what", "value"), _flat({k: v for k, v in result["protocol"].items() if k != "sets"}))
        page.table(
            ("set", "n", "sha-256"), [(s["name"], s["n"], s["key"][:16]) for s in result["protocol"]["sets"]]
        )
        write_json(self.out / "report.json", result)
        page.save(self.out / "report.html")
        return result

    # --- what there is -------------------------------------------------------------------------------------------

    def _wanted(self) -> list[str]:
        asked = {*self.plan.only, *(["critic"] if self.plan.sweep else [])}
        for name in asked:
            if (reason := self._why_not(name)) is not None:
                raise UserError(f"cannot measure {name}: {reason}")
        return [
            name for name in PARTS if (name in asked or not self.plan.only) and self._why_not(name) is None
        ]

    def _why_not(self, part: str) -> str | None:
        if part in _OF_A_RUN and self.run is None:
            return "it needs a RUN"
        own = ("nll", "speed", "critic") if self.plan.samples else ("nll", "speed", "critic", "memorisation")
        if part in own and self.run and self._untrained():
            return f"not trained yet: {', '.join(self._untrained())}"
        if part == "classification" and not self._labelled():
            return "it needs classes, of the data and of the samples"
        if part == "critic":
            assert self.run is not None
            if not self.plan.sweep and part not in self.plan.only:
                return "it is measured when asked for"
            if not critic_file(self.run.folder).exists():
                return f"no critic is fitted; `vqvae2 critic fit {self.run.folder} --data DATA` fits one"
        return None

    def _untrained(self) -> list[str]:
        assert self.run is not None
        return [name for name, done in self.run.done().items() if name.startswith("prior") and not done]

    def _labelled(self) -> bool:
        return bool(self.images.classes) and (self.plan.samples is None or self._samples.labels is not None)

    @staticmethod
    def _plain_config(plan: Plan, out: Path) -> DataConfig:
        assert plan.samples is not None
        _, side = (0, plan.size) if plan.size else peek(str(plan.samples), DataConfig(), out)
        return DataConfig(size=side or 64, flip=False, shift=0, holdout=0.5)

    # --- sets ----------------------------------------------------------------------------------------------------

    def _order(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.random.default_rng(self.plan.seed).permutation(indices)

    @cached_property
    def _training(self) -> PictureSet:
        """All training pictures, shuffled."""
        return real_pictures("training", self.images, self._order(self.images.train), self.config)

    @cached_property
    def _heldout(self) -> PictureSet:
        """All held-out pictures, shuffled."""
        return real_pictures("held out", self.images, self._order(self.images.heldout), self.config)

    @cached_property
    def _n(self) -> int:
        """Pictures of each set that are compared: what all of them have."""
        sizes = {"held out": len(self._heldout), "training": len(self._training)}
        sizes |= {name: len(pictures) for name, pictures in self._others.items()}
        if self.plan.samples is not None:
            sizes["samples"] = len(self._samples)
        least = min(sizes, key=lambda name: sizes[name])
        if sizes[least] < _LEAST:
            raise UserError(
                f"expected at least {_LEAST} pictures of each set, found {sizes[least]} ({least})"
            )
        if sizes[least] < self.plan.n:
            self.warnings.append(f"every set is cut to {sizes[least]} pictures, as many as {least} has")
        return min(self.plan.n, sizes[least])

    @cached_property
    def _reference(self) -> PictureSet:
        return replace(self._training.first(max(self._n, self.plan.reference)), name="reference")

    @cached_property
    def _others(self) -> dict[str, PictureSet]:
        return {name: self._folder(name, path) for name, path in self.plan.against.items()}

    def _folder(self, name: str, path: Path) -> PictureSet:
        return folder_pictures(name, path, self.images.classes, self.config, self.cache / f"pictures-{name}")

    @cached_property
    def _samples(self) -> PictureSet:
        """Those given, or n drawn from the run."""
        if self.plan.samples is not None:
            return self._folder("samples", self.plan.samples)
        return self._drawn(self._n)

    def _drawn(self, n: int) -> PictureSet:
        """The first n samples of the run, drawn as far as they are not there."""
        assert self.run is not None
        run, labels = self.run, None
        if run.config.prior.classes and self.images.labels is not None:
            labels = self.images.labels[self._order(self.images.train)].tolist()
        sampling = self.plan.sampling or run.sampling
        about = {"seed": self.plan.seed, **sampling.about()}
        about |= {"labels": digest(labels), "model": run.digests()}
        folder = SampleFolder(self.cache / f"samples-{digest(about)[:12]}", about, "npz")
        folder.claim()
        missing = batches(folder.missing(n), sampling.batch)
        with self.reporter.track("samples", sum(map(len, missing)), unit="images") as tracker:
            folder.fill(run.draw(n, labels, self.plan.seed, sampling, missing), tracker)
        return drawn_samples("samples", folder.path).first(n)

    def _reconstructed(self, name: str, of: PictureSet) -> PictureSet:
        assert self.run is not None
        return reconstructions(name, of, self.run.autoencoder, self.run.digests()["autoencoder"])

    @cached_property
    def _compared(self) -> dict[str, PictureSet]:
        """What stands in the tables, n of each: the floor first."""
        sets = {"held out": self._heldout.first(self._n)}
        if self.run is not None:
            sets["reconstructions"] = self._reconstructed("reconstructions", sets["held out"])
        if self.plan.samples is not None or not self._untrained():
            sets["samples"] = self._samples.first(self._n)
        return sets | {name: pictures.first(self._n) for name, pictures in self._others.items()}

    # --- features ------------------------------------------------------------------------------------------------

    @cached_property
    def _network(self) -> FeatureNetwork:
        return feature_network(self.plan.network, self.plan.weights, self.device)

    @cached_property
    def _reconstructed_reference(self) -> Features | None:
        """With what samples are compared too, and reconstructed held-out pictures as their floor; None without either."""
        if self.run is None or "samples" not in self._compared:
            return None
        return self._features(self._reconstructed("reconstructions of the reference", self._reference))

    def _features(self, pictures: PictureSet) -> Features:
        if pictures.name not in self.held:
            with self.reporter.track(f"features of {pictures.name}", len(pictures), unit="images") as tracker:

                def counted() -> Iterator[Tensor]:
                    for images in pictures.batches():
                        yield images
                        tracker.update(tracker.done + len(images))

                file = self.cache / f"features-{self._network.name}-{pictures.key[:16]}.safetensors"
                self.held[pictures.name] = extract(self._network, counted(), file, pictures.key)
        return self.held[pictures.name]

    # --- parts ---------------------------------------------------------------------------------------------------

    def _nll(self) -> Found:
        assert self.run is not None
        limit = max(len(self._heldout), self.plan.n)
        sets = [self._training.first(limit), self._heldout]
        return parts.likelihoods(
            self.run.autoencoder, self.run.prior, sets, bool(self.run.config.prior.classes)
        )

    def _reconstruction(self) -> Found:
        assert self.run is not None
        distance = None if self.plan.perceptual is None else PerceptualDistance.read(self.plan.perceptual)
        limit = max(len(self._heldout), self.plan.n)
        return parts.reconstruction(
            self.run.autoencoder, [self._training.first(limit), self._heldout], distance
        )

    def _codes(self) -> Found:
        assert self.run is not None
        return parts.code_usage(self.run.autoencoder, self._training)

    def _distances(self) -> Found:
        star = " (FID*)" * (self.plan.network == "inception")
        stars = {name: title + star for name, title in _STARS.items()}
        again = self._reconstructed_reference
        sets = {name: self._features(pictures) for name, pictures in self._compared.items()}
        reference = self._features(self._reference)
        found = parts.distances(self._network, reference, sets, stars, again, self.plan.seed)
        found.pictures.append(parts.rows(list(self._compared.values())))
        return found

    def _precision(self) -> Found:
        sets = {name: self._features(pictures) for name, pictures in self._compared.items()}
        found = parts.precision_recall(self._features(self._reference), sets)
        if (again := self._reconstructed_reference) is not None:
            starred = {title: sets[name] for name, title in _STARS.items()}
            found.figures["sets"] |= parts.precision_recall(again, starred).figures["sets"]
        return found

    def _classification(self) -> Found:
        real = self._training.first(self.plan.classifier_n or len(self._training))
        trained_on, tested_on, pairs = [real], [self._heldout], [("training", "held out")]
        if self.run is not None:
            trained_on.append(self._reconstructed("reconstructions of training", real))
            tested_on.append(self._reconstructed("reconstructions of held out", self._heldout))
            pairs.append(("reconstructions of training", "held out"))
            if self.plan.samples is None and not self._untrained():
                trained_on.append(self._drawn(len(real)))
        if self.plan.samples is not None:
            trained_on.append(self._samples.first(len(real)))
        for name in [pictures.name for pictures in trained_on if pictures.name == "samples"]:
            pairs.append((name, "held out"))
            if self.run is not None:
                pairs.append((name, "reconstructions of held out"))
        for name, pictures in self._others.items():
            if pictures.labels is not None:
                trained_on.append(pictures.first(len(real)))
                pairs.append((name, "held out"))
        return parts.classification(
            trained_on, tested_on, pairs, len(self.images.classes), self.plan.classifier, self.device
        )

    def _memorisation(self) -> Found:
        samples, heldout = self._compared["samples"], self._compared["held out"]
        features = (self._features(samples), self._features(heldout), self._features(self._reference))
        return parts.memorisation(samples, heldout, self.images, self.config, features, self._reference)

    def _symmetry(self) -> Found:
        return parts.symmetry(list(self._compared.values()), self._compared["held out"], self.images.classes)

    def _speed(self) -> Found:
        assert self.run is not None
        return parts.speed(self.run.autoencoder, self.run.prior, self._heldout, min(64, len(self._heldout)))

    def _critic(self) -> Found:
        assert self.run is not None
        critic = load_critic(self.run.folder, self.device)
        if critic.network_digest == self._network.digest:
            raise UserError(
                f"the critic rests on {self._network.name}, which measures here; measure with another --network, "
                f"or fit the critic on another: `vqvae2 critic fit {self.run.folder} --features resnet`"
            )
        rates = self.plan.sweep or (1.0, 0.5, 0.25, 0.1, 0.05)
        candidates = replace(self._drawn(round(self._n / min(rates))), name="candidates")
        assert candidates.labels is not None
        scores = self._scores(critic, candidates)
        return parts.critic_sweep(
            rates, scores, candidates.labels, self._n, self._features(candidates), self._network,
            self._features(self._reference), self.plan.seed,
        )  # fmt: skip

    def _scores(self, critic: Critic, candidates: PictureSet) -> Tensor:
        assert candidates.labels is not None
        found, at = [], 0
        for images in candidates.batches():
            found.append(critic(images.to(self.device), candidates.labels[at : at + len(images)]).cpu())
            at += len(images)
        return torch.cat(found)

    def _protocol(self) -> dict[str, Any]:
        sets: list[PictureSet] = [self._training, self._heldout]
        if "_compared" in self.__dict__:
            sets += [self._reference, *self._compared.values()]
        result: dict[str, Any] = {
            "data": {
                "fingerprint": self.images.fingerprint,
                "training": len(self.images.train),
                "held_out": len(self.images.heldout),
            },
            "size": self.config.size,
            "seed": self.plan.seed,
            "sets": [{"name": s.name, "n": s.n, "key": s.key} for s in sets],
            "packages": {name: metadata.version(name) for name in _PACKAGES},
        }
        if self.run is not None:
            result["run"] = {
                "folder": str(self.run.folder),
                "weights": self.run.digests(),
                "sampling": (self.plan.sampling or self.run.sampling).model_dump(mode="json"),
            }
        if "_network" in self.__dict__:
            net = self._network
            result["network"] = {
                "name": net.name,
                "weights": net.digest,
                "size": net.size,
                "resize": net.resize,
            }
        return result


def _tables(part: str, figures: dict[str, Any]) -> list[tuple[Sequence[str], list[Sequence[object]]]]:
    """The figures as tables: one row a set where there are sets, else one row a figure."""
    if "rows" in figures:
        return [_table(figures["rows"])]
    if "levels" in figures:
        return [_table([{"level": i, **row} for i, row in enumerate(figures["levels"])])]
    named = figures.get(
        "sets", {k: v for k, v in figures.items() if isinstance(v, dict) and part != "classification"}
    )
    tables = []
    if named:
        rows = [
            {"": name, **{k: v for k, v in row.items() if not isinstance(v, dict)}}
            for name, row in named.items()
        ]
        tables.append(_table(rows))
    rest = {k: v for k, v in figures.items() if k not in named and k not in ("sets", "classifier")}
    if rest:
        tables.append((("figure", "value"), _flat(rest)))
    return tables


def _table(rows: Sequence[dict[str, Any]]) -> tuple[Sequence[str], list[Sequence[object]]]:
    columns = list(dict.fromkeys(key for row in rows for key in row if not isinstance(row[key], dict)))
    return [column.replace("_", " ") for column in columns], [
        [_text(row.get(key, "")) for key in columns] for row in rows
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> list[Sequence[object]]:
    rows: list[Sequence[object]] = []
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        rows += _flat(value, f"{name}: ") if isinstance(value, dict) else [(name, _text(value))]
    return rows


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return str(value)
