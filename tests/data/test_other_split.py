"""A split that is measured in place of the held-out images: exactly its images, from every kind of data."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from data_helpers import config, folder_of, noise, opened, parquet_of, tar_of

from vqvae2.data.errors import DataError
from vqvae2.data.images import ImageSet
from vqvae2.data.other_split import known_images, open_split

TRAIN, VALIDATION, TEST = range(8), range(8, 11), range(11, 16)
PARTS = {"train": TRAIN, "val": VALIDATION, "test": TEST}


def split_of(name: str, data: object, place: Path, **options: Any) -> ImageSet:
    """`open_split` without printing."""
    return open_split(name, str(data), config(**options), place / "split", lambda _: None)


def shown(images: ImageSet, indices: Any) -> list[int]:
    """Which `noise` the images are, in ascending order."""
    known = {noise(number).tobytes(): number for number in range(16)}
    return sorted(known[one.numpy().tobytes()] for one in images.pixels(indices))


def folders(root: Path) -> Path:
    """Splits, below them classes."""
    for name, numbers in PARTS.items():
        for number in numbers:
            file = root / name / "ab"[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            noise(number).save(file)
    return root


def labelled(root: Path) -> Path:
    """A file with the split of each image."""
    folder_of(root, 16)
    with (root / "metadata.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("file_name", "split"))
        rows.writerows((f"{n:03d}.png", name) for name, numbers in PARTS.items() for n in numbers)
    return root


def tables(root: Path) -> Path:
    """A parquet file for each split."""
    for name, numbers in PARTS.items():
        parquet_of(root / f"{name}-0.parquet", len(numbers), numbers[0], label=["x"] * len(numbers))
    return root


def column(root: Path) -> Path:
    """One parquet file with a column `split`."""
    names = [name for name, numbers in PARTS.items() for _ in numbers]
    return parquet_of(root / "all.parquet", 16, split=names)


def tars(root: Path) -> Path:
    """A tar for each split."""
    for name, numbers in PARTS.items():
        tar_of(root / f"{name}-0.tar", len(numbers), numbers[0])
    return root


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A data set of the Hub that is read from a folder of this machine."""
    real, root = datasets.load_dataset, tables(tmp_path / "hub")

    def load(name: str, **options: Any) -> Any:
        return real(str(root), cache_dir=str(tmp_path / "cache"), **options)

    class Info:
        sha = "abc"

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: Info())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return "owner/name"


def assert_only_the_split(data: object, place: Path, **options: Any) -> None:
    """The test split that was not used is measured as a whole, and no image of another split; the training images stay."""
    own = opened(data, place, **options)
    assert shown(own, own.train) == list(TRAIN)
    assert shown(own, own.heldout) == list(VALIDATION)
    split = split_of("test", data, place, **options)
    assert (len(split), len(split.train)) == (len(TEST), 0)
    assert shown(split, split.heldout) == list(TEST)
    assert known_images(own, split, "test", config()) == []
    with pytest.raises(DataError, match="8 of the 8 training images that were looked at are in the split"):
        known_images(own, split_of("train", data, place, **options), "train", config())
    with pytest.raises(DataError, match="extra") as caught:
        split_of("extra", data, place, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [folders, labelled, tables, column, tars], ids=lambda make: make.__name__)
def test_only_the_images_of_the_split(make: Callable[[Path], Path], tmp_path: Path) -> None:
    assert_only_the_split(make(tmp_path / "pictures"), tmp_path)


@pytest.mark.parametrize("streaming", [False, True])
def test_of_a_data_set_of_the_hub(hub: str, tmp_path: Path, streaming: bool) -> None:
    assert_only_the_split(hub, tmp_path, streaming=streaming)


def test_a_split_below_each_class(tmp_path: Path) -> None:
    for name, numbers in (("train", TRAIN), ("test", TEST)):
        for number in numbers:
            file = tmp_path / "pictures" / "ab"[number % 2] / name / f"{number:02d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            noise(number).save(file)
    split = split_of("test", tmp_path / "pictures", tmp_path)
    assert shown(split, split.heldout) == list(TEST)
    assert split.classes == ("a", "b")


def test_the_limit_of_the_run_is_none_of_the_split(tmp_path: Path) -> None:
    assert len(split_of("test", folders(tmp_path / "pictures"), tmp_path, limit=2)) == len(TEST)


def test_a_folder_of_a_class_is_no_split_that_was_held_out(tmp_path: Path) -> None:
    """Any outermost folder can be read as a split, but the run was trained on most of this one."""
    root = folder_of(tmp_path / "pictures", 16, ("cat", "dog"))
    own = opened(root, tmp_path)
    with pytest.raises(DataError, match="no split that was held out"):
        known_images(own, split_of("cat", root, tmp_path), "cat", config())


def test_a_few_images_that_are_in_both_are_counted(tmp_path: Path) -> None:
    root = folders(tmp_path / "pictures")
    noise(0).save(root / "test" / "a" / "again.png")
    own = opened(root, tmp_path)
    (found,) = known_images(own, split_of("test", root, tmp_path), "test", config())
    assert found.startswith("1 of the 8 training images")


def test_held_out_images_that_are_in_the_split_are_counted(tmp_path: Path) -> None:
    """They have chosen the weights, so a split of them measures no more than the report without it."""
    root = folders(tmp_path / "pictures")
    own = opened(root, tmp_path)
    (found,) = known_images(own, split_of("val", root, tmp_path), "val", config())
    assert found.startswith("3 of the 3 held-out images that were looked at are in the split 'val' too; ")
