"""Folders, files and patterns: the data that `locate` recognises, and the data that it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data_helpers import config, encoded, folder_of, noise, opened, parquet_of, shows

from vqvae2.data import identity
from vqvae2.data.errors import DataError
from vqvae2.data.recorded import same_source, source_record
from vqvae2.data.table_files import expand_braces


def test_flat_folder(tmp_path: Path) -> None:
    images = opened(folder_of(tmp_path / "in", 6), tmp_path)
    assert len(images) == 6
    assert images.classes == ()
    assert images.labels is None
    assert images.names == [f"{number:03d}.png" for number in range(6)]
    assert all(shows(images, number, number) for number in range(6))


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 6, ("dog", "cat", "Ape"))
    (root / "cat" / "deep").mkdir()
    noise(50).save(root / "cat" / "deep" / "x.PNG")
    images = opened(root, tmp_path)
    assert images.classes == ("Ape", "cat", "dog")
    assert images.labels is not None
    assert [images.classes[label] for label in images.labels] == [name.split("/")[0] for name in images.names]
    assert "cat/deep/x.PNG" in images.names


def test_an_image_beside_the_sub_folders_means_no_classes(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 4, ("a", "b"))
    noise(9).save(root / "loose.png")
    assert opened(root, tmp_path).classes == ()
    (root / "loose.png").rename(root / ".loose.png")
    assert opened(root, tmp_path).classes == ("a", "b")


@pytest.mark.parametrize("held", ["test", "val", "valid", "validation", "Test"])
def test_splits_as_folders(tmp_path: Path, held: str) -> None:
    root = tmp_path / "in"
    folder_of(root / "train", 6, ("x", "y"))
    folder_of(root / held, 2, ("x", "y"))
    images = opened(root, tmp_path)
    assert images.classes == ("x", "y")
    assert (len(images.train), len(images.heldout)) == (6, 2)
    assert all(images.names[index].startswith(held) for index in images.heldout)


def test_validation_goes_before_test_and_splits_need_no_classes(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name, count in (("train", 5), ("val", 2), ("test", 3)):
        folder_of(root / name, count)
    images = opened(root, tmp_path)
    assert (images.classes, len(images), len(images.heldout)) == ((), 7, 2)
    only = opened(root, tmp_path, split="test")
    assert (len(only), len(only.heldout)) == (3, 1)
    with pytest.raises(DataError, match=r"no split 'other' in .*found test, train, val"):
        opened(root, tmp_path, split="other")


def test_files_are_known_by_name_or_content(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 2)
    (root / "noending").write_bytes(encoded(noise(2), "JPEG"))
    (root / "wrong.dat").write_bytes(encoded(noise(2), "WEBP"))
    (root / "notes.txt").write_text("hello")
    (root / ".hidden.png").write_bytes(b"x")
    says: list[str] = []
    images = opened(root, tmp_path, says)
    assert len(images) == 4
    assert images.skipped == 1
    assert (tmp_path / "data" / "skipped.txt").read_text() == "notes.txt\tnot an image\n"
    assert sum("skipped" in line for line in says) == 1


def test_links_are_followed_once(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 2)
    folder_of(tmp_path / "other", 2)
    (root / "more").symlink_to(tmp_path / "other")
    (root / "loop").symlink_to(root)
    assert len(opened(root, tmp_path)) == 4


def test_the_run_folder_inside_the_data_is_no_data(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 3)
    folder_of(root / "runs" / "demo" / "samples", 2)
    assert len(opened(root, root / "runs" / "demo")) == 3
    assert len(opened(root, root)) == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: at / "missing", "no such folder or file"),
        (lambda at: at, "it is empty"),
        (lambda at: (at / "a.zip").write_bytes(b"PK"), "none of its 1 files is an image"),
        (lambda at: at / "*.parquet", "no file matches"),
    ],
)
def test_nothing_there(tmp_path: Path, make: Any, message: str) -> None:
    at = tmp_path / "in"
    at.mkdir()
    made = make(at)
    with pytest.raises(DataError, match=message) as caught:
        opened(made if isinstance(made, Path) else at, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("~nosuchuser/pictures", "no such folder or file"),
        ("x-{5..2}.tar", "no file matches"),
        ("s3://bucket/x-{5..2}.tar", "no file matches"),
    ],
)
def test_data_that_cannot_be_is_refused_in_one_line(data: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        opened(data, tmp_path)
    assert source_record(data, tmp_path) == {"source": data}
    assert not same_source(data, {"source": "elsewhere"}, tmp_path)


def test_the_home_folder_of_files_that_the_settings_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    chosen = config(labels="~/a.csv", image_root="~nosuchuser/x")
    assert (chosen.labels, chosen.image_root) == (str(tmp_path / "a.csv"), "~nosuchuser/x")


def test_files_that_are_no_data(tmp_path: Path) -> None:
    noise(0).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="is an image, not a data set"):
        opened(tmp_path / "a.png", tmp_path / "run")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"cannot read .*found \['.zip'\]"):
        opened(tmp_path / "a.zip", tmp_path / "run")


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images(tmp_path: Path, count: int) -> None:
    root = folder_of(tmp_path / "in", count)
    if count == 1:
        with pytest.raises(DataError, match="found 1 usable image: at least 2 are needed"):
            opened(root, tmp_path)
    else:
        assert len(opened(root, tmp_path).heldout) == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_limit(tmp_path: Path, seed: int) -> None:
    root = folder_of(tmp_path / "in", 20, ("a", "b"))
    few = opened(root, tmp_path, limit=8, seed=seed)
    assert len(few) == 8
    assert set(few.labels if few.labels is not None else ()) == {0, 1}
    assert few.fingerprint != opened(root, tmp_path, limit=8, seed=seed + 1).fingerprint
    assert few.names == opened(root, tmp_path, limit=8, seed=seed).names
    assert len(opened(root, tmp_path, limit=100, seed=seed)) == 20
    split = tmp_path / "split"
    folder_of(split / "train", 30)
    folder_of(split / "test", 1)
    images = opened(split, tmp_path, limit=4, seed=seed)
    assert (len(images.train), len(images.heldout)) == (3, 1)


def test_large_files_are_known_by_samples_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet_of(tmp_path / "a.parquet", 3)
    whole = opened(path, tmp_path).fingerprint
    monkeypatch.setattr(identity, "_HASHED_WHOLE", 10)
    monkeypatch.setattr(identity, "_BLOCK", 100)
    ends = opened(path, tmp_path).fingerprint
    assert ends not in (whole, opened(parquet_of(path, 3, 1), tmp_path).fingerprint)


def test_braces() -> None:
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{a,b}/{1..2}") == ["a/1", "a/2", "b/1", "b/2"]
    assert expand_braces("plain") == ["plain"]


def test_embedded_set(tmp_path: Path) -> None:
    images = opened("emoji64", tmp_path, size=16, limit=60)
    assert len(images) == 60
    assert len(images.classes) == 9
    assert images.labels is not None
    assert len(images.heldout) > 0
