"""Codes as data: every form holds the same rows, decoding is the inverse of encoding, and an interrupted command continues."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image
from pyarrow import parquet

from vqvae2.autoencoder.quantizer import VectorQuantizer
from vqvae2.codec import code_file
from vqvae2.codec.code_file import open_codes, write_codes
from vqvae2.codec.vectors import encode_vectors
from vqvae2.commands import encode as verb
from vqvae2.commands.decode import decode
from vqvae2.commands.encode import Vectors, encode
from vqvae2.data.pixels import to_uint8
from vqvae2.errors import UserError
from vqvae2.files.atomic import FileError
from vqvae2.files.progress import Reporter
from vqvae2.run import Run, load

QUIET = Reporter(quiet=True)
FORMS = ("codes.parquet", "codes.safetensors", "codes.npz", "codes")


@pytest.fixture
def run(trained: Path) -> Run:
    """The trained run of the session, on the CPU."""
    return load(trained, "cpu")


def originals(run: Run, pictures: Path) -> tuple[list[str], torch.Tensor]:
    """Names and images of the data set, in its order."""
    files = sorted(file for file in pictures.rglob("*.png"))
    return [file.relative_to(pictures).as_posix() for file in files], run.load_images(files)


@pytest.fixture(params=FORMS)
def written(request: pytest.FixtureRequest, run: Run, pictures: Path, tmp_path: Path) -> Path:
    """The codes and vectors of the pictures in one of the forms."""
    out = tmp_path / request.param
    assert encode(run, str(pictures), out, Vectors.both, QUIET) is not None
    return out


def rows(path: Path) -> dict[str, Any]:
    """Every column of a file, read as a stranger would: with the library of its form."""
    if path.suffix == ".parquet":
        table = parquet.read_table(path).to_pydict()
        return {name: np.array(values) for name, values in table.items()}
    if path.suffix == ".safetensors":
        with safetensors.safe_open(path, "np") as file:
            names = np.array(json.loads(file.metadata()["name"]))
        return {"name": names, **safetensors.numpy.load_file(path)}
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: arrays[name] for name in arrays if name != "about"}
    return {file.stem: np.load(file) for file in path.glob("*.npy")}


def test_every_form_holds_names_labels_codes_and_vectors(written: Path, run: Run, pictures: Path) -> None:
    names, images = originals(run, pictures)
    codes, before, after = encode_vectors(run.autoencoder, images)
    held = rows(written)
    assert held["name"].tolist() == names
    assert held["label"].tolist() == [int(name[:4] == "disc") + 2 * int(name[:4] == "stri") for name in names]
    assert 0 < held["heldout"].sum() < len(names)
    for index, level in enumerate(codes.levels):
        assert np.array_equal(held[f"level_{index}"].reshape(level.shape), level.numpy())
        for name, vectors in (("before", before[index]), ("after", after[index])):
            assert np.allclose(held[f"{name}_{index}"].reshape(vectors.shape), vectors.numpy(), atol=1e-5)
    assert held["level_0"].dtype.itemsize == 2 or written.suffix == ".parquet"
    opened = open_codes(written)
    assert (opened.n, opened.about["vectors"], opened.about["digest"]) == (24, "both", run.codes_digest)
    parts = list(opened.batches(7))
    assert [len(some) for some, _ in parts] == [7, 7, 7, 3]
    assert torch.equal(torch.cat([batch.levels[1] for _, batch in parts]), codes.levels[1])


def test_the_code_vectors_are_the_nearest_to_the_vectors_before(run: Run, pictures: Path) -> None:
    """With the entropy penalty of the codes, as the quantiser chooses."""
    codes, before, after = encode_vectors(run.autoencoder, originals(run, pictures)[1][:4])
    for quantizer, level, z, q in zip(run.autoencoder.quantizers, codes.levels, before, after, strict=True):
        costs = (z.flatten(0, 2)[:, None] - quantizer.codebook()).square().sum(2)
        if isinstance(quantizer, VectorQuantizer) and quantizer.entropy_penalty:
            costs = costs + quantizer._penalty()
        chosen = costs.gather(1, level.flatten()[:, None])[:, 0]
        assert torch.allclose(chosen, costs.amin(1), rtol=1e-3, atol=1e-5)  # of equal ones either is right
        assert (costs.amax(1) > 2 * chosen).double().mean() > 0.5
        assert torch.equal(q, quantizer.lookup(level))


def test_decode_makes_the_reconstructions(written: Path, run: Run, pictures: Path, tmp_path: Path) -> None:
    names, images = originals(run, pictures)
    out = tmp_path / "out"
    assert decode(run, written, out, reporter=QUIET) == {"n": 24, "new": 24, "decoder": "plain"}
    expected = to_uint8(run.reconstruct(images))
    for name, image in zip(names, expected, strict=True):
        assert np.array_equal(np.array(Image.open(out / name)), image.numpy())
    (out / names[3]).unlink()
    assert decode(run, written, out, reporter=QUIET)["new"] == 1


def test_codes_of_another_model_are_refused(
    run: Run, pictures: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    out = tmp_path / "codes.npz"
    encode(run, str(pictures), out, reporter=QUIET)
    other = command("decode", "emoji64", out, "--out", tmp_path / "images")
    assert other.code == 2
    assert "of another model: expected the digest" in other.err
    assert not (tmp_path / "images").exists()
    with pytest.raises(UserError, match=r"holds other codes \(vectors: none -> after\)"):
        encode(run, str(pictures), out, Vectors.after, QUIET)
    assert encode(run, str(pictures), out, reporter=QUIET) == open_codes(out).about  # nothing is left to do


def test_an_interrupted_command_continues(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after two parts, the next command encodes the others only, and the file is the same."""
    monkeypatch.setattr(verb, "_PART_IMAGES", 5)
    out, whole = tmp_path / "codes.parquet", tmp_path / "whole.parquet"
    encode(run, str(pictures), whole, reporter=QUIET)
    write, count = code_file.write_part, 0

    def dying(path: Path, part: code_file.Part) -> None:
        nonlocal count
        count += 1
        if count > 2:
            raise KeyboardInterrupt
        write(path, part)

    monkeypatch.setattr(code_file, "write_part", dying)
    with pytest.raises(KeyboardInterrupt):
        encode(run, str(pictures), out, reporter=QUIET)
    assert not out.exists()
    assert len(list((tmp_path / "codes.parquet.parts").glob("part-*"))) == 2
    monkeypatch.setattr(code_file, "write_part", write)
    encode(run, str(pictures), out, reporter=QUIET)
    assert not (tmp_path / "codes.parquet.parts").exists()
    assert parquet.read_table(out).equals(parquet.read_table(whole))


@pytest.mark.parametrize("killed", [False, True])
def test_codes_of_images_that_changed_are_refused(
    killed: bool, run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image that is added while the command was interrupted would shift the numbers of the images of each part."""
    monkeypatch.setattr(verb, "_PART_IMAGES", 3)
    out, data = tmp_path / "codes.npz", tmp_path / "data"
    shutil.copytree(pictures / "disc", data)
    write = code_file.write_part

    def once(path: Path, part: code_file.Part) -> None:
        write(path, part)
        raise KeyboardInterrupt

    if killed:
        monkeypatch.setattr(code_file, "write_part", once)
        with pytest.raises(KeyboardInterrupt):
            encode(run, str(data), out, reporter=QUIET)
        monkeypatch.setattr(code_file, "write_part", write)
    else:
        encode(run, str(data), out, reporter=QUIET)
    shutil.copy(pictures / "stripes" / "02.png", data / "00a.png")
    with pytest.raises(UserError, match=r"holds (parts of )?other codes \(fingerprint: "):
        encode(run, str(data), out, reporter=QUIET)
    assert (tmp_path / "codes.npz.parts").exists() == killed
    (data / "00a.png").unlink()
    encode(run, str(data), out, reporter=QUIET)
    assert rows(out)["name"].tolist() == [file.name for file in sorted(data.iterdir())]
    assert not (tmp_path / "codes.npz.parts").exists()


def test_parts_of_other_codes_are_refused(run: Run, pictures: Path, tmp_path: Path) -> None:
    work = tmp_path / "codes.npz.parts"
    work.mkdir()
    (work / "parts.json").write_text(json.dumps({"digest": "another"}))
    with pytest.raises(UserError, match="holds parts of other codes"):
        encode(run, str(pictures), tmp_path / "codes.npz", reporter=QUIET)


def test_arrays_of_the_user_are_not_overwritten(run: Run, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "label.npy").write_text("mine")
    with pytest.raises(UserError, match=r"label\.npy exists, and could be overwritten"):
        encode(run, str(pictures), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["label.npy"]


def test_two_processes_write_what_one_writes(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "_PART_IMAGES", 5)
    encode(run, str(pictures), tmp_path / "one.npz", reporter=QUIET)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from vqvae2.commands import encode\nfrom vqvae2.cli import main\n"
        "encode._PART_IMAGES = 5\nmain(sys.argv[1:])"
    )
    words = ["encode", str(run.folder), str(pictures), "--out", str(tmp_path / "two.npz")]
    workers = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code, *words],
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                 "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    assert [bool(out) for out, _ in said] == [True, False]
    one, two = rows(tmp_path / "one.npz"), rows(tmp_path / "two.npz")
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("name", FORMS)
def test_damaged_files_are_one_clear_error(
    name: str, run: Run, pictures: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    out = tmp_path / name
    encode(run, str(pictures), out, reporter=QUIET)
    target = out if out.is_file() else out / "level_1.npy"
    content = target.read_bytes()
    for damaged in (content[: len(content) // 2], b"", content[:40] + bytes(60) + content[100:]):
        target.write_bytes(damaged)
        said = command("decode", run.folder, out, "--out", tmp_path / "images")
        assert said.code == 2
        assert "is damaged" in said.err or "holds no codes" in said.err
        assert said.err.count("\n") == 1
        shutil.rmtree(tmp_path / "images", ignore_errors=True)


def test_codes_outside_the_codebook_are_damage(run: Run, pictures: Path, tmp_path: Path) -> None:
    encode(run, str(pictures), tmp_path / "codes", reporter=QUIET)
    array = np.load(tmp_path / "codes" / "level_0.npy")
    array[5] = 60_000
    np.save(tmp_path / "codes" / "level_0.npy", array)
    with pytest.raises(FileError, match=r"is damaged: level 0: expected codes in 0\.\.15"):
        list(open_codes(tmp_path / "codes").batches(64))


@pytest.mark.parametrize("name", FORMS)
def test_only_one_part_is_in_memory(name: str, tmp_path: Path) -> None:
    """10,000 images in 20 parts of 1 MB."""

    def part(number: int) -> code_file.Part:
        names = np.array([f"{number}-{row}" for row in range(500)])
        return {"name": names, "level_0": np.full((500, 32, 32), number, np.uint16)}

    about = {"digest": "d", "geometry": {"grids": [[32, 32]], "vocabulary": [32]}}
    seen: list[int] = []
    tracemalloc.start()
    try:
        write_codes(tmp_path / name, about, [partial(part, number) for number in range(20)])
        seen += [int(codes.levels[0][0, 0, 0]) for _, codes in open_codes(tmp_path / name).batches(500)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seen == list(range(20))
    assert peak < 30e6  # a part as int64 codes is 4 MB, all of them would be 80 MB


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("empty", [0, 1])
def test_a_part_of_which_no_image_can_be_used_has_no_rows(empty: int, name: str, tmp_path: Path) -> None:
    def part(number: int) -> code_file.Part:
        count = 0 if number == empty else 2
        names = np.array(["a", "b"][:count], dtype=np.str_)
        return {"name": names, "level_0": np.zeros((count, 2, 2), np.uint16)}

    about = {"digest": "d", "geometry": {"grids": [[2, 2]], "vocabulary": [8]}}
    write_codes(tmp_path / name, about, [partial(part, number) for number in range(2)])
    ((names, codes),) = open_codes(tmp_path / name).batches(64)
    assert (names, len(codes)) == (["a", "b"], 2)


@pytest.mark.parametrize("name", ["../../etc/x.png", "/x", "a\\..\\b.png", "..", ""])
def test_names_stay_in_the_folder(name: str, tmp_path: Path) -> None:
    from vqvae2.commands.decode import _file_name

    taken: set[str] = set()
    first, second = _file_name(name, taken), _file_name(name, taken)
    assert first != second
    for text in (first, second):
        assert (tmp_path / text).resolve().is_relative_to(tmp_path.resolve())
        assert text.endswith(".png")


def test_one_image_and_held_out_images_alone_have_codes(run: Run, pictures: Path, tmp_path: Path) -> None:
    """No training images are needed to encode: one image is enough, and so is a folder that is called test."""
    file = pictures / "disc" / "01.png"
    (tmp_path / "one").mkdir()
    shutil.copy(file, tmp_path / "one" / "a.png")
    about = encode(run, str(tmp_path / "one"), tmp_path / "one.npz", reporter=QUIET)
    assert about is not None
    assert about["n"] == 1
    shutil.copytree(pictures / "disc", tmp_path / "set" / "test" / "disc")
    encode(run, str(tmp_path / "set"), tmp_path / "set.npz", reporter=QUIET)
    found = rows(tmp_path / "set.npz")
    assert len(found["name"]) == 8
    own = [number for number, name in enumerate(found["name"]) if str(name).endswith("01.png")]
    one = rows(tmp_path / "one.npz")
    assert np.array_equal(found["level_0"][own], one["level_0"])


def test_the_runs_file_of_labels_is_not_that_of_other_images(
    run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it names none of the images they have no classes; where it names some, it counts."""
    labels = tmp_path / "labels.csv"
    labels.write_text("file_name,label\nnowhere.png,cat\n")
    config = run.config.model_copy(
        update={"data": run.config.data.model_copy(update={"labels": str(labels)})}
    )
    monkeypatch.setattr(run, "config", config)
    shutil.copytree(pictures / "disc", tmp_path / "others")
    encode(run, str(tmp_path / "others"), tmp_path / "a.npz", reporter=QUIET)
    assert "label" not in rows(tmp_path / "a.npz")
    labels.write_text("file_name,label\n" + "".join(f"{i:02d}.png,cat\n" for i in range(1, 24, 3)))
    encode(run, str(tmp_path / "others"), tmp_path / "b.npz", reporter=QUIET)
    assert set(rows(tmp_path / "b.npz")["label"].tolist()) == {0}
    labels.unlink()
    encode(run, str(tmp_path / "others"), tmp_path / "c.npz", reporter=QUIET)
    assert "label" not in rows(tmp_path / "c.npz")


def one_row(*names: str) -> code_file.Part:
    """Images of one code each, with these names."""
    return {"name": np.array(names), "level_0": np.zeros((len(names), 1, 1), np.uint16)}


ABOUT = {"digest": "d", "geometry": {"grids": [[1, 1]], "vocabulary": [2]}}


@pytest.mark.parametrize("name", FORMS)
def test_names_that_are_no_utf8(name: str, tmp_path: Path) -> None:
    """Of an old zip; a table has text alone, so there the byte is written out."""
    names = ["caf\udce9.png", "\u732b\t.png"]
    write_codes(tmp_path / name, ABOUT, [partial(one_row, *names)])
    [(found, _)] = open_codes(tmp_path / name).batches(2)
    assert found == (["caf\\udce9.png", names[1]] if name == "codes.parquet" else names)


def test_a_header_that_the_library_does_not_read_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Chinese character has three bytes in it."""
    names = ["\u732b" * 40] * 20
    part = partial(one_row, *names)
    out = tmp_path / "codes.safetensors"
    monkeypatch.setattr(code_file, "_HEADER_LIMIT", 3000)
    write_codes(out, ABOUT, [part])
    assert next(open_codes(out).batches(20))[0] == names
    monkeypatch.setattr(code_file, "_HEADER_LIMIT", 2000)
    with pytest.raises(UserError, match=r"a header of .* write a \.parquet file"):
        write_codes(tmp_path / "more.safetensors", ABOUT, [part])
    assert [file.name for file in tmp_path.iterdir()] == ["codes.safetensors"]


def member(shape: tuple[int, ...], kind: str, data: bytes) -> bytes:
    """A .npy file with this header and this content."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


@pytest.mark.parametrize(
    ("name", "shape", "kind", "count", "packing"),
    [
        ("about", (), "<U16777216", 2**26, zipfile.ZIP_DEFLATED),  # 65 KB in the file
        ("level_0", (1, 2**25), "<u2", 2**26, zipfile.ZIP_DEFLATED),
        ("level_0", (2**40, 1, 1), "<u2", 2, zipfile.ZIP_STORED),
        ("name", (2**40,), "<U1", 4, zipfile.ZIP_STORED),
        ("name", (1,), "<U268435456", 4, zipfile.ZIP_STORED),
        ("name", (2**40, 0), "<U1", 4, zipfile.ZIP_STORED),
        ("name", (2,), "<U1", 8, zipfile.ZIP_STORED),
    ],
)
def test_an_archive_of_a_stranger_takes_no_memory(
    name: str, shape: tuple[int, ...], kind: str, count: int, packing: int, tmp_path: Path
) -> None:
    """Neither where an array is deflated nor where its header claims more than there is, or rows of nothing."""
    path, other = tmp_path / "codes.npz", tmp_path / "other.npz"
    write_codes(path, ABOUT, [partial(one_row, "a")])
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", packing) as new:
        for entry in old.namelist():
            changed = entry == f"{name}.npy"
            new.writestr(entry, member(shape, kind, bytes(count)) if changed else old.read(entry))
    tracemalloc.start()
    try:
        with pytest.raises(FileError, match="is damaged"):
            list(open_codes(other).batches(2**20))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1e6


@pytest.mark.parametrize("n", ["x", None, float("inf"), [1]])
def test_a_number_of_images_that_is_none(n: object, tmp_path: Path) -> None:
    write_codes(tmp_path / "codes", ABOUT, [partial(one_row, "a")])
    about = tmp_path / "codes" / "about.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"n": n}))
    with pytest.raises(FileError, match="is damaged"):
        open_codes(tmp_path / "codes")
