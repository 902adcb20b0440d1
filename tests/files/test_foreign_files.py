"""Files of a run folder that come from a stranger or from a broken disk: refused in one line, in bounded memory and time."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from comparing import contents

from vqvae2 import Run
from vqvae2.config.models import parse
from vqvae2.config.overrides import read_yaml
from vqvae2.config.presets import preset
from vqvae2.config.yaml_text import YamlError, parse_yaml
from vqvae2.data.store import StoreError, complete_renames, open_store
from vqvae2.errors import UserError, printable
from vqvae2.files import arrays, atomic, tensor_file
from vqvae2.files.atomic import FileError
from vqvae2.files.run_folder import RunError
from vqvae2.train.folder import load_autoencoder, load_prior, read_run
from vqvae2.train.state import read_metrics

Command = Callable[..., Any]


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    """Change the value in a JSON file."""
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


# --- paths that come out of files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("absolute", [False, True])
def test_renames_of_a_stranger_touch_no_file_of_the_user(run: Path, absolute: bool, command: Command) -> None:
    """Neither reading nor training carries them out: only a code store's own names are ever renamed."""
    victim, codes = run.parent / "victim.txt", run / "codes"
    victim.write_text("mine")
    name = str(victim) if absolute else "../../victim.txt"
    for pairs in (
        {name: "labels.npy"},
        {"labels.npy": name},
        {"level-0.npy": ".level-0.npy.1.tmp", name: "x"},
    ):
        manifest = json.loads((codes / "manifest.json").read_text())
        (codes / "next.json").write_text(json.dumps({**manifest, "renames": pairs}))
        before = contents(run)
        with pytest.raises(StoreError, match="names files that are not its own"):
            open_store(codes)
        with pytest.raises(StoreError, match="names files that are not its own"):
            complete_renames(codes)
        assert command("inspect", run).code == 2
        assert contents(run) == before
        assert victim.read_text() == "mine"


def test_a_linked_folder_of_parts_is_not_moved_from(run: Path) -> None:
    """A store that is joined from parts renames `parts/level-0.npy`; a link there could lead to files of the user."""
    codes, other = run / "codes", run.parent / "elsewhere"
    manifest = json.loads((codes / "manifest.json").read_text())
    names = [
        *(f"level-{level}.npy" for level in range(len(manifest["geometry"]["grids"]))),
        "labels.npy",
        "split.npy",
    ]
    other.mkdir()
    for name in names:
        (codes / name).rename(other / name)
    (codes / "next.json").write_text(
        json.dumps({**manifest, "renames": {name: f"parts/{name}" for name in names}})
    )
    (codes / "parts").symlink_to(other)
    with pytest.raises(StoreError, match="names files that are not its own"):
        complete_renames(codes)
    assert {path.name for path in other.iterdir()} == {*names}
    (codes / "parts").unlink()
    other.rename(codes / "parts")
    before = [*open_store(codes).labels]
    complete_renames(codes)
    assert [*open_store(codes).labels] == before
    assert not [*(codes / "parts").iterdir()]


@pytest.mark.parametrize("name", ["../../../victim", "/etc/passwd", "pixels-../x.npy"])
def test_an_index_names_only_files_of_its_own_folder(
    run: Path, name: str, command: Command, pictures: Path
) -> None:
    """The cache is made anew instead."""
    rewrite(run / "data" / "index.json", lambda value: value | {"pixels": name})
    shutil.rmtree(run / "prior")
    assert command("train", pictures, "--run", run).code == 0
    assert json.loads((run / "data" / "index.json").read_text())["pixels"].startswith("pixels-")


@pytest.mark.parametrize(
    "name", ["prior", "autoencoder/longer", "autoencoder/longer/pictures", "codes/parts"]
)
def test_a_link_out_of_the_run_folder_is_not_written_through(
    name: str, run: Path, pictures: Path, command: Command
) -> None:
    """A training that goes on longer moves its pictures and removes its checkpoints."""
    elsewhere = run.parent / "elsewhere"
    for file in ("checkpoints/mine.txt", "pictures/mine.png", "mine.png"):
        (elsewhere / file).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / file).write_text("mine")
    before = contents(elsewhere)
    place = run / name
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(elsewhere)
    said = command("train", pictures, "--run", run, "--set", "train_autoencoder.steps=64")
    assert said.code == 2
    assert "is a link to" in said.err
    assert contents(elsewhere) == before


@pytest.mark.parametrize(
    "name", ["report", "report/cache", "report/cache/parts", "critic", "critic/parts", "data"]
)
def test_reports_and_critics_are_not_written_through_a_link(name: str, run: Path, command: Command) -> None:
    """A file of the user may have the name of a report; the decoded images are put into the cache of the report instead."""
    mine = run.parent / "mine"
    mine.mkdir()
    for file in ("report.html", "report.json", "index.json", "critic.json"):
        (mine / file).write_text("mine")
    place = run / name
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(mine)
    said = command("critic", "fit", run, "--features", "resnet")
    assert (said.code, "is a link to" in said.err) == (2, True)
    said = command("evaluate", run, "--only", "codes")
    assert (said.code, "is a link to" in said.err) == (2, True)
    said = command("evaluate", run, "--only", "codes", "--out", run.parent / "elsewhere")
    assert said.code == 0, said.err
    assert {file.name: file.read_text() for file in mine.iterdir()} == dict.fromkeys(
        ("report.html", "report.json", "index.json", "critic.json"), "mine"
    )


def test_metrics_are_not_appended_through_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "mine", tmp_path / "metrics.jsonl"
    target.write_text("mine\n")
    link.symlink_to(target)
    with pytest.raises(FileError, match="link"):
        atomic.append_text(link, "theirs\n")
    atomic.write_text(link, "new")
    assert (target.read_text(), link.read_text(), link.is_symlink()) == ("mine\n", "new", False)


# --- sizes ---------------------------------------------------------------------------------------------------------------


def test_a_configuration_cannot_take_more_memory_than_its_weights(run: Path, tmp_path: Path) -> None:
    """Its network is compared with the file's header before either is made: 11 GB otherwise."""
    value = read_yaml(run / "config.yaml")
    value["autoencoder"]["hidden"] = 8192
    for level in value["prior"]["levels"]:
        level |= {"hidden": 8192, "residual": 16384}
    (run / "config.yaml").write_text(yaml.safe_dump(value))
    config = read_run(run)[1]
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for load in (load_autoencoder, load_prior):
        with pytest.raises(FileError, match="does not fit the configuration"):
            load(run, config, "cpu")
    assert unit * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < 200 * 2**20


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    "text",
    [BOMB, MERGED, "a: &a [*a]", "a: " + "[" * 3000, "a: " + "- " * 3000, "a: " + "1:" * 5000 + "1", "!!python/name:os.system",
     "? [a]\n: 1", "a: 2001-99-99", "--- 1\n--- 2", "[" * 100_000, "a: " + "9" * 5000, "a: *b", "\t- a"],
)  # fmt: skip
def test_no_yaml_takes_more_than_it_has(text: str) -> None:
    began = time.process_time()
    with pytest.raises(YamlError) as caught:
        parse_yaml(text)
    assert time.process_time() - began < 5
    assert "\n" not in str(caught.value)


def test_yaml_of_honest_people_is_read() -> None:
    assert parse_yaml("base: &b {x: 1}\nother: {<<: *b, y: [*b, 2.5]}\nnone:\n") == {
        "base": {"x": 1},
        "other": {"x": 1, "y": [{"x": 1}, 2.5]},
        "none": None,
    }
    assert parse_yaml("") is None
    classes = {"classes": [f"class {i}" for i in range(22_000)]}
    assert parse_yaml(yaml.safe_dump(classes)) == classes
    for name in ("tiny", "imagenet256"):
        assert parse(parse_yaml(yaml.safe_dump(preset(name).model_dump(mode="json")))) == preset(name)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, "9" * 10_000, "", "nul", "\ud800"])
def test_no_json_ends_in_a_traceback(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(FileError, match=r"a\.json"):
        atomic.read_json(path)


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(b" " * 100)
    for name, limit in (("pipe", 99), ("endless", 99), ("large", 99), (".", 99), ("none", 99)):
        with pytest.raises(FileError):
            atomic.read_text(tmp_path / name, limit)
    with pytest.raises(FileError, match="expected a regular file"):
        arrays.map_array(tmp_path / "pipe", (None,), np.uint8)
    with pytest.raises(FileError, match="expected a regular file"), arrays.open_members(tmp_path / "pipe"):
        pass
    assert len(atomic.read_text(tmp_path / "large", 100)) == 100


def _sample_one(run: Path) -> None:
    Run(run, "cpu").sample(1)


def _open_codes(run: Path) -> None:
    open_store(run / "codes")


def test_no_reader_waits_for_a_pipe(run: Path) -> None:
    """A pipe in place of any file of a run folder, whose other end nobody opens: an error or success, at once."""

    def waited(*_: object) -> None:
        raise AssertionError(f"{file} was waited for")

    before = signal.signal(signal.SIGALRM, waited)
    try:
        for file in sorted(path for path in run.rglob("*") if path.is_file()):
            contents = file.read_bytes()
            file.unlink()
            os.mkfifo(file)
            signal.alarm(60)
            for read in (_sample_one, _open_codes, read_metrics):
                with suppress(UserError, FileNotFoundError):
                    read(file if read is read_metrics else run)
            signal.alarm(0)
            file.unlink()
            file.write_bytes(contents)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- arrays --------------------------------------------------------------------------------------------------------------


def headed(path: Path, header: str, data: bytes = b"\0" * 24) -> Path:
    """A .npy file with this header."""
    text = header.encode().ljust(117) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data)
    return path


@pytest.mark.parametrize(
    "header",
    ["", "{", "(" * 100, "'" * 99, "{'descr': '|O', 'fortran_order': False, 'shape': (3,)}", "__import__('os').abort()",
     "{'descr': '<i8', 'fortran_order': True, 'shape': (1, 3)}", "{'descr': '<i8', 'fortran_order': False, 'shape': (-3,)}",
     "{'descr': '<i8', 'fortran_order': False, 'shape': (10**30,)}", "{'descr': '<i8', 'fortran_order': False, 'shape': (4,)}",
     f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({2**61}, 8)}}",
     "{'descr': '<i4', 'fortran_order': False, 'shape': (3,)}"],
)  # fmt: skip
def test_an_array_is_what_is_expected_or_refused(tmp_path: Path, header: str) -> None:
    with pytest.raises(FileError, match=r"a\.npy"):
        arrays.map_array(headed(tmp_path / "a.npy", header), (3,), np.int64)


@pytest.mark.parametrize("shape", [(0,), (5,), (2, 3), (4, 0, 2), ()])
def test_an_array_comes_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    value = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
    np.save(tmp_path / "a.npy", value)
    assert np.array_equal(arrays.map_array(tmp_path / "a.npy", shape, np.int64), value)
    arrays.write_members(tmp_path / "a.npz", {"a": value, "b": value.astype(np.uint8)})
    with arrays.open_members(tmp_path / "a.npz") as members:
        assert set(members) == {"a", "b"}
        assert np.array_equal(members["a"], value)
        with pytest.raises(FileError, match="no array 'c'"):
            members["c"]


def test_a_compressed_archive_is_not_unpacked(tmp_path: Path) -> None:
    """A hundred kilobytes could stand for a hundred megabytes."""
    path = tmp_path / "a.npz"
    np.savez_compressed(path, a=np.zeros(2**27, np.uint8))
    with pytest.raises(FileError, match="not stored as it is"), arrays.open_members(path):
        pass


@pytest.mark.parametrize("name", ["level-0.npy", "level-1.npy", "labels.npy", "split.npy"])
def test_every_element_of_a_code_store_is_checked(run: Path, name: str) -> None:
    """By its checksum, and, where a stranger wrote that too, by its range."""
    file, manifest = run / "codes" / name, run / "codes" / "manifest.json"
    array = np.load(file)
    flat = array.reshape(-1)
    flat[-1] = 1 - flat[-1] if name == "split.npy" else 0 if flat[-1] else 1
    np.save(file, array)
    with pytest.raises(StoreError, match="does not match the checksum"):
        open_store(run / "codes")
    flat[-1] = 16
    np.save(file, array)
    own = hashlib.sha256(array.tobytes()).hexdigest()
    rewrite(manifest, lambda value: value | {"checksums": value["checksums"] | {name: own}})
    with pytest.raises(StoreError, match=r"expected values in 0\.\."):
        open_store(run / "codes")


def test_a_code_store_of_a_former_version_has_no_checksums(run: Path) -> None:
    rewrite(
        run / "codes" / "manifest.json", lambda value: {k: v for k, v in value.items() if k != "checksums"}
    )
    assert len(open_store(run / "codes")) == 24


# --- weights -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(run: Path, bad: float) -> None:
    file = run / "autoencoder" / "model.safetensors"
    tensors, meta = tensor_file.load_tensors(file)
    tensors["decoder.0.bias"][0] = bad
    tensor_file.save_tensors(file, tensors, meta)
    with pytest.raises(FileError, match=r"decoder\.0\.bias holds numbers that are not finite"):
        _ = Run(run, "cpu").autoencoder


@pytest.mark.parametrize(
    "header", [{"vqvae2": "[" * 10_000}, {"vqvae2": "{}"}, {"vqvae2": '{"format": 1, "digest": "", "metadata": "["}'},
               {"format": "9" * 5000}, {"format": "1", "metadata": "[1]"}],
)  # fmt: skip
def test_a_header_of_a_stranger(tmp_path: Path, header: dict[str, str]) -> None:
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "a", header)
    for read in (tensor_file.load_tensors, tensor_file.read_header, tensor_file.stored_digest):
        with pytest.raises(FileError):
            read(tmp_path / "a")


def test_files_of_a_former_version_are_read(tmp_path: Path) -> None:
    tensors, text = {"a": torch.ones(2)}, '{"step": 3}'
    header = {"format": "1", "digest": tensor_file.digest(tensors, text), "metadata": text}
    safetensors.torch.save_file(tensors, tmp_path / "a", header)
    loaded, metadata = tensor_file.load_tensors(tmp_path / "a")
    assert torch.equal(loaded["a"], tensors["a"])
    assert metadata == {"step": 3}


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    """Several keys of a safetensors header come in random order; there is one key."""
    tensors = {f"t{i}": torch.full((i,), float(i)) for i in range(5)}
    for number in range(8):
        shuffled = dict(sorted(tensors.items(), key=lambda item: hash((item[0], number))))
        tensor_file.save_tensors(tmp_path / str(number), shuffled, {"b": 1, "a": {"c": [1.5]}})
    assert len({(tmp_path / str(number)).read_bytes() for number in range(8)}) == 1


@pytest.mark.parametrize("prefixes", ["module.", "_orig_mod.", "model.", "model._orig_mod.", "module.model."])
def test_prefixes_of_wrappers_are_removed(prefixes: str) -> None:
    own = {"a.weight": 1, "model.b": 2}
    assert tensor_file.plain_names({prefixes + name: value for name, value in own.items()}) == own
    assert tensor_file.plain_names(own) == own
    assert tensor_file.plain_names({}) == {}


# --- metrics, names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line", ["[1]", "7", '{"step": "x"}', '{"loss": 1}', "\xff", "[" * 10_000, '{"step": 2']
)
def test_metrics_end_at_the_first_line_that_is_none(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line.encode("latin-1") + b'\n{"step": 3}\n')
    assert read_metrics(path) == [{"step": 1}]


def test_messages_steer_no_terminal() -> None:
    name = "a\x1b[2J\x07\x9b\u202e\ud800\r b\u2028é 日本 👩\u200d👩"
    shown = printable(name)
    assert shown == "a\\x1b[2J\\x07\\x9b\\u202e\\ud800\\r b\\u2028é 日本 👩\u200d👩"
    assert str(UserError(f"no such class {name}")) == f"no such class {shown}"
    assert str(RunError(name)) == shown
    long = str(UserError("first line\nno such class " + "n" * 10**6 + "; delete it"))
    assert (len(long) <= 2000, "\n" in long, long[:10], long[-9:]) == (True, False, "first line", "delete it")


def test_a_class_name_of_a_stranger_steers_no_terminal(run: Path, command: Command, tmp_path: Path) -> None:
    value = read_yaml(run / "config.yaml")
    value["run"]["classes"] = ["\x1b]0;title\x07", "[red]b[/red]", "c"]
    value["run"]["source"] = "\x1b[2J"
    (run / "config.yaml").write_text(yaml.safe_dump(value))
    shutil.rmtree(run / "prior" / "level-1")
    for verb in (["sample", run, "--n", 1, "--label", "z", "--out", tmp_path / "o"], ["inspect", run],
                 ["sample", run, "--n", 1, "--label", 1, "--out", tmp_path / "o"]):  # fmt: skip
        said = command(*verb)
        assert "\x1b" not in said.out + said.err
