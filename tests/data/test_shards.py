"""Shards through fsspec, on its memory and local file systems: the images, classes and split, and training from them."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import encoded
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from vqvae2.config.models import DataConfig
from vqvae2.data.batches import TrainingOrder, pixel_batches
from vqvae2.data.errors import DataError
from vqvae2.data.images import ImageSet, open_images
from vqvae2.data.sources import locate
from vqvae2.files import atomic

CONFIG = DataConfig(size=8, workers=0, flip=False, cache_gb=0, shuffle_buffer=8, holdout=0.2)


def picture(number: int) -> np.ndarray[Any, Any]:
    """Picture `number`, 8 px."""
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)


def shard(numbers: range) -> bytes:
    """A tar with these pictures and their classes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in numbers:
            image = io.BytesIO()
            Image.fromarray(picture(number)).save(image, "png")
            for ending, content in (("png", image.getvalue()), ("cls", str(number % 3).encode())):
                info = tarfile.TarInfo(f"{number:04d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


@pytest.fixture(params=["memory", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Three shards of 10 pictures, `train-0000.tar` ..., below an address of each file system."""
    root = f"memory://{tmp_path.name}" if request.param == "memory" else f"file://{tmp_path}/shards"
    files, path = fsspec.core.url_to_fs(root)
    files.makedirs(path, exist_ok=True)
    for number in range(3):
        files.pipe_file(f"{path}/train-{number:04d}.tar", shard(range(number * 10, number * 10 + 10)))
    yield root
    files.rm(path, recursive=True)


def opened(data: str, tmp_path: Path, config: DataConfig = CONFIG) -> ImageSet:
    """The images, with the index kept below `tmp_path`."""
    return open_images(data, config, tmp_path / "run" / "data", say=lambda _: None)


def test_images_and_classes(place: str, tmp_path: Path) -> None:
    images = opened(f"{place}/train-{{0000..0002}}.tar", tmp_path)
    assert len(images) == 30
    assert images.classes == ("0", "1", "2")
    assert images.labels is not None
    for index in range(30):
        number = int(images.names[index].rpartition("/")[2])
        assert np.array_equal(images.pixels([index]).numpy()[0], picture(number))
        assert images.labels[index] == number % 3
    by_wildcard = opened(f"{place}/train-*.tar", tmp_path / "other")
    assert by_wildcard.fingerprint == images.fingerprint


def test_the_index_is_made_once(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large it is; one that is damaged is made again."""
    data = f"{place}/train-*.tar"
    first = opened(data, tmp_path)
    index = tmp_path / "run" / "data" / "table" / "shards.json"
    whole = index.read_text()
    index.write_text(whole + " " * atomic.TEXT_LIMIT)  # as long as that of a million images
    with monkeypatch.context() as patch:
        patch.setattr("tarfile.open", lambda *_, **__: pytest.fail("read again"))
        again = opened(data, tmp_path)
    assert again.names == first.names
    assert (again.labels == first.labels).all()
    assert np.array_equal(again.pixels([3]), first.pixels([3]))
    for damaged in ("{}", "[1]", whole.replace('"images": [[', '"images": [3, ['), "no json"):
        index.write_text(damaged)
        assert opened(data, tmp_path).names == first.names
        assert index.read_text() == whole


def test_the_same_rules_as_for_tars_on_this_machine(tmp_path: Path) -> None:
    """Dots in names, several formats, classes in JSON, folders, files that are no images, a cut-off end."""
    members: dict[str, bytes] = {"notes.md": b"text"}
    for number in range(8):
        image = io.BytesIO()
        Image.fromarray(picture(number)).save(image, "png" if number % 2 else "bmp")
        stem = f"{'ab'[number % 2]}/scan.v1.{number:03d}"
        members |= {f"{stem}.{'png' if number % 2 else 'bmp'}": image.getvalue()}
        members |= {f"{stem}.json": json.dumps({"colour": "xyz"[number % 3]}).encode()}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    for folder, content in (("whole", out.getvalue()), ("cut", out.getvalue()[:-11_000])):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.tar").write_bytes(content)
        for more in ({}, {"label_column": "colour"}, {"split": "a"}, {"label_column": "none"}):
            config = CONFIG.model_copy(update=more)
            name = f"{folder}-{'-'.join(more)}"
            here = opened(f"{tmp_path}/{folder}/a.tar", tmp_path / f"here-{name}", config)
            there = opened(f"file://{tmp_path}/{folder}/a.tar", tmp_path / f"there-{name}", config)
            assert there.names == here.names
            assert there.classes == here.classes
            assert there.skipped == here.skipped > 0
            assert (there.labels is None) == (here.labels is None)
            assert here.labels is None or (there.labels == here.labels).all()
            assert np.array_equal(there.pixels(range(len(there))), here.pixels(range(len(here))))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("memory://x/*.parquet", "a row of a parquet file cannot be read without the rows around it"),
        ("s3://bucket/a.tar.gz", "a compressed tar has no random access"),
        ("file:///pictures", "expected PROTOCOL://....tar"),
    ],
)
def test_what_is_not_read_from_elsewhere(data: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason):
        locate(data, tmp_path)


def test_a_chosen_split(place: str, tmp_path: Path) -> None:
    files, path = fsspec.core.url_to_fs(place)
    files.pipe_file(f"{path}/val-0000.tar", shard(range(30, 36)))
    images = opened(f"{place}/*.tar", tmp_path, CONFIG.model_copy(update={"split": "val"}))
    assert sorted(images.names) == [f"{number:04d}" for number in range(30, 36)]


def test_a_training_resumes_at_the_right_image(place: str, tmp_path: Path) -> None:
    """By two processes from step 3 on, what one process reads; no image twice in an epoch."""
    images = opened(f"{place}/train-*.tar", tmp_path)

    def read(start: int, rank: int, world: int) -> list[list[bytes]]:
        order = TrainingOrder(images.train, 4, 0, rank, world, CONFIG.shuffle_buffer)
        batches = pixel_batches(images, order, CONFIG, start=start, stop=6)
        return [[row.numpy().tobytes() for row in pixels] for pixels, _ in batches]

    whole = read(0, 0, 1)
    shares = zip(read(3, 0, 2), read(3, 1, 2), strict=True)
    assert [a + b for a, b in shares] == whole[3:]
    epoch = [row for batch in whole[: len(images.train) // 4] for row in batch]
    assert len(set(epoch)) == len(epoch)


def test_a_shard_of_a_test_split_is_held_out(place: str, tmp_path: Path) -> None:
    files, path = fsspec.core.url_to_fs(place)
    files.pipe_file(f"{path}/val-0000.tar", shard(range(30, 34)))
    images = opened(f"{place}/*.tar", tmp_path)
    assert sorted(int(images.names[i].rpartition("/")[2]) for i in images.heldout) == [30, 31, 32, 33]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("memory://nowhere/*.tar", "no file matches"),
        ("memory://nowhere/a.tar", "cannot read"),
        ("nosuchprotocol://x/a.tar", "cannot read .*nosuchprotocol"),
    ],
)
def test_shards_that_are_not_there(data: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason):
        locate(data, tmp_path)


class _Odd(MemoryFileSystem):
    """A file system that fails in one way, as those of clouds do with exceptions of their own."""

    protocol, cachable, fails = "odd", False, ""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.removeprefix("odd://")))

    def info(self, path: str, **options: Any) -> Any:
        if self.fails == "info":
            raise Exception("no\ncredentials")  # the kind that gcsfs raises
        return {**super().info(path, **options), **({"size": None} if self.fails == "size" else {})}

    def cat_file(self, *args: Any, **options: Any) -> Any:
        if self.fails == "read":
            raise PermissionError(13, "Access Denied")
        return super().cat_file(*args, **options)

    def _open(self, *args: Any, **options: Any) -> Any:
        if self.fails == "open":
            raise Exception("expired")
        return super()._open(*args, **options)


@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        ("info", "no credentials"),
        ("size", "nothing says how many bytes it has"),
        ("read", "Access Denied|Permission denied"),
        ("open", "expired"),
    ],
)
def test_whatever_a_file_system_raises_is_one_line(
    fails: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("odd", _Odd, clobber=True)
    place = f"odd://{tmp_path.name}/a.tar"
    fsspec.core.url_to_fs(place)[0].pipe_file(f"/{tmp_path.name}/a.tar", shard(range(3)))
    monkeypatch.setattr(_Odd, "fails", fails)
    with pytest.raises(DataError, match=rf"cannot read .*a\.tar: .*({reason})"):
        opened(place, tmp_path)


def test_a_folder_with_the_ending_of_a_tar_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.tar").mkdir()
    with pytest.raises(DataError, match=r"cannot read file://.*a\.tar: Is a directory"):
        locate(f"file://{tmp_path}/a.tar", tmp_path)


def test_folders_of_shards_are_part_of_what_is_known(place: str, tmp_path: Path) -> None:
    files, path = fsspec.core.url_to_fs(place)
    for folder in ("test", "more"):
        files.makedirs(f"{path}/{folder}", exist_ok=True)
    files.pipe_file(f"{path}/test/0.tar", shard(range(30, 34)))
    first = opened(f"{place}/**/*.tar", tmp_path)
    assert len(first.heldout) == 4
    files.mv(f"{path}/test/0.tar", f"{path}/more/0.tar")
    assert opened(f"{place}/**/*.tar", tmp_path).fingerprint != first.fingerprint


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar" * 500)
    with pytest.raises(DataError, match=r"cannot read .*a\.tar"):
        opened(f"file://{tmp_path}/a.tar", tmp_path)


def test_the_script_that_copies_a_data_set_into_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of docs/cluster.md: every image and class of a stream, in several shards."""
    images = [{"bytes": encoded(Image.fromarray(picture(number))), "path": None} for number in range(25)]
    pq.write_table(pa.table({"image": images, "label": [n % 3 for n in range(25)]}), tmp_path / "a.parquet")
    usual = datasets.load_dataset
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda _, **options: usual("parquet", data_files=str(tmp_path / "a.parquet"), **options),
    )
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    place = f"file://{tmp_path}/shards"
    (tmp_path / "shards").mkdir()
    exec(script.replace("s3://bucket", place).replace("10_000", "10"), {})
    copied = opened(f"{place}/*.tar", tmp_path)
    assert len(copied) == 25
    assert len([*(tmp_path / "shards").glob("*.tar")]) == 3
    order = np.argsort(copied.names)
    assert copied.classes == ("0", "1", "2")
    assert copied.labels is not None
    assert copied.labels[order].tolist() == [number % 3 for number in range(25)]
    assert np.array_equal(copied.pixels(order), np.stack([picture(number) for number in range(25)]))
