"""Every kind of data that `open_images` accepts, and every kind that it refuses."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import config, encoded, folder_of, noise, opened

from vqvae2.data import sources
from vqvae2.data.images import DataError, ImageSet
from vqvae2.data.sources import check_classes, expand_braces, resolve_labels


def shows(images: ImageSet, index: int, number: int) -> bool:
    """Whether picture `index` is `noise(number)`."""
    return bool(np.array_equal(images.pixels([index])[0].numpy(), np.asarray(noise(number))))


def parquet_of(path: Path, count: int, start: int = 0, **columns: list[Any]) -> Path:
    """A plain parquet file: struct images and the columns given."""
    cells = [
        {"bytes": encoded(noise(start + number)), "path": f"p{start + number}.png"} for number in range(count)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": cells} | columns), path)
    return path


def tar_of(path: Path, count: int, start: int = 0, **members: Any) -> Path:
    """A WebDataset shard: NNN.png and, per keyword, NNN.<keyword> with what the function of the number gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for number in range(start, start + count):
            parts = {"png": encoded(noise(number))} | {kind: make(number) for kind, make in members.items()}
            for kind, data in parts.items():
                info = tarfile.TarInfo(f"{number:04d}.{kind}")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return path


# --- folders ---


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


def test_a_picture_beside_the_sub_folders_means_no_classes(tmp_path: Path) -> None:
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
    assert (tmp_path / "data" / "skipped.txt").read_text() == "notes.txt\tnot a picture\n"
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


def test_same_class_twice(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 4, ("Cat", "cat "))
    with pytest.raises(DataError, match="two classes have the same name: 'Cat' and 'cat '"):
        opened(root, tmp_path)
    with pytest.raises(DataError, match="same name"):
        check_classes(["caf\u00e9", "cafe\u0301"])
    check_classes(["a", "b"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda at: at / "missing", "no such folder or file"),
        (lambda at: at, "it is empty"),
        (lambda at: (at / "a.zip").write_bytes(b"PK"), "none of its 1 files is a picture"),
        (lambda at: at / "*.parquet", "no file matches"),
    ],
)
def test_nothing_there(tmp_path: Path, make: Any, message: str) -> None:
    at = tmp_path / "in"
    at.mkdir()
    found = make(at)
    with pytest.raises(DataError, match=message) as caught:
        opened(found if isinstance(found, Path) else at, tmp_path)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_data(tmp_path: Path) -> None:
    noise(0).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="is a picture, not a data set"):
        opened(tmp_path / "a.png", tmp_path / "run")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"cannot read .*found \['.zip'\]"):
        opened(tmp_path / "a.zip", tmp_path / "run")


@pytest.mark.parametrize("count", [1, 2])
def test_one_picture_only(tmp_path: Path, count: int) -> None:
    root = folder_of(tmp_path / "in", count)
    if count == 1:
        with pytest.raises(DataError, match="found 1 usable picture: at least 2 are needed"):
            opened(root, tmp_path)
    else:
        assert len(opened(root, tmp_path).heldout) == 1


def test_limit(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 20, ("a", "b"))
    few = opened(root, tmp_path, limit=8)
    assert len(few) == 8
    assert set(few.labels if few.labels is not None else ()) == {0, 1}
    assert few.fingerprint != opened(root, tmp_path, limit=8, seed=1).fingerprint
    assert few.names == opened(root, tmp_path, limit=8).names
    assert len(opened(root, tmp_path, limit=100)) == 20
    split = tmp_path / "split"
    folder_of(split / "train", 30)
    folder_of(split / "test", 1)
    images = opened(split, tmp_path, limit=4)
    assert (len(images.train), len(images.heldout)) == (3, 1)


# --- parquet ---


def test_parquet_with_everything(tmp_path: Path) -> None:
    path = parquet_of(tmp_path / "a.parquet", 6, label=["x", "y"] * 3, split=["train"] * 4 + ["test"] * 2)
    images = opened(path, tmp_path)
    assert images.classes == ("x", "y")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1] * 3
    assert images.names == [f"p{number}.png" for number in range(6)]
    assert images.heldout.tolist() == [4, 5]
    assert all(shows(images, number, number) for number in range(6))
    assert not (tmp_path / "data" / "table").exists()
    assert len(opened(path, tmp_path, split="train")) == 4
    with pytest.raises(DataError, match="no split 'other'"):
        opened(path, tmp_path, split="other")


def test_parquet_made_by_datasets(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "photo": datasets.Image(),
            "fine_label": datasets.ClassLabel(names=["zebra", "ape"]),
            "split": datasets.ClassLabel(names=["train", "validation"]),
        }
    )
    cells = [{"bytes": encoded(noise(number)), "path": None} for number in range(4)]
    table = {"photo": cells, "fine_label": [0, 1, 1, -1], "split": [0, 0, 1, 0]}
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "a.parquet")
    datasets.enable_progress_bars()
    images = opened(tmp_path / "a.parquet", tmp_path)
    assert images.classes == ("zebra", "ape")
    assert images.names == ["row 0", "row 1", "row 2", "row 3"]
    assert images.heldout.tolist() == [2]
    assert images.train.tolist() == [0, 1]
    assert (tmp_path / "data" / "skipped.txt").read_text() == "row 3\tit has no label\n"
    assert not datasets.are_progress_bars_disabled()


def test_parquet_binary_column_and_options(tmp_path: Path) -> None:
    data = [encoded(noise(number)) for number in range(4)]
    pq.write_table(pa.table({"scan": data, "kind": [7, 3, 3, 7], "note": ["n"] * 4}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column of pictures found: .*scan, kind, note"):
        opened(tmp_path / "a.parquet", tmp_path)
    images = opened(tmp_path / "a.parquet", tmp_path, image_column="scan", label_column="kind")
    assert images.classes == ("3", "7")
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 0, 1]
    with pytest.raises(DataError, match="no column 'colour'"):
        opened(tmp_path / "a.parquet", tmp_path, image_column="scan", label_column="colour")


def test_parquet_label_column_of_another_kind(tmp_path: Path) -> None:
    path = parquet_of(tmp_path / "a.parquet", 3, label=[[1], [2], [3]])
    with pytest.raises(DataError, match="column 'label' holds no names or numbers"):
        opened(path, tmp_path)
    assert opened(path, tmp_path, label_column="none").classes == ()


def test_parquet_files_by_name_folder_and_pattern(tmp_path: Path) -> None:
    root = tmp_path / "odd [name]"
    parquet_of(root / "train-00000-of-00002.parquet", 3)
    parquet_of(root / "train-00001-of-00002.parquet", 3, 3)
    parquet_of(root / "test-00000-of-00001.parquet", 2, 6)
    images = opened(root, tmp_path)
    assert (len(images.train), len(images.heldout)) == (6, 2)
    assert {images.names[index] for index in images.heldout} == {"p6.png", "p7.png"}
    assert len(opened(root, tmp_path, split="test")) == 2
    plain = tmp_path / "plain"
    parquet_of(plain / "train-00000-of-00001.parquet", 3)
    parquet_of(plain / "train-00001-of-00001.parquet", 3, 3)
    assert len(opened(plain / "train-*.parquet", tmp_path)) == 6
    assert len(opened(plain / "train-0000{0,1}-of-*.parquet", tmp_path)) == 6


def test_parquet_rows_that_are_broken(tmp_path: Path) -> None:
    good = [{"bytes": encoded(noise(number)), "path": f"{number}.png"} for number in range(3)]
    cells = [
        *good,
        {"bytes": b"", "path": "zero.png"},
        None,
        {"bytes": None, "path": str(tmp_path / "gone.png")},
    ]
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet")
    images = opened(tmp_path / "a.parquet", tmp_path)
    assert (len(images), images.skipped) == (3, 3)
    listed = (tmp_path / "data" / "skipped.txt").read_text()
    assert "zero.png\tzero bytes" in listed
    assert "row 4\tthe row holds no picture" in listed
    assert "gone.png\tNo such file or directory" in listed


def test_parquet_names_that_repeat(tmp_path: Path) -> None:
    path = parquet_of(tmp_path / "a.parquet", 4, name=["cat", "dog", "cat", None])
    assert opened(path, tmp_path).names == ["cat (row 0)", "dog (row 1)", "cat (row 2)", "p3.png (row 3)"]


def test_large_files_are_known_by_their_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet_of(tmp_path / "a.parquet", 3)
    whole = opened(path, tmp_path).fingerprint
    monkeypatch.setattr(sources, "_WHOLE", 10)
    monkeypatch.setattr(sources, "_ENDS", 100)
    ends = opened(path, tmp_path).fingerprint
    assert ends not in (whole, opened(parquet_of(path, 3, 1), tmp_path).fingerprint)


def test_parquet_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no, not really")
    with pytest.raises(DataError, match=r"cannot read .*a\.parquet") as caught:
        opened(tmp_path / "a.parquet", tmp_path)
    assert "\n" not in str(caught.value)
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "b.parquet")
    with pytest.raises(DataError):
        opened(tmp_path / "b.parquet", tmp_path)


def test_embedded_set(tmp_path: Path) -> None:
    images = opened("emoji64", tmp_path, size=16, limit=60)
    assert len(images) == 60
    assert len(images.classes) == 9
    assert images.labels is not None
    assert len(images.heldout) > 0


# --- WebDataset ---


def test_webdataset_cls(tmp_path: Path) -> None:
    tar_of(tmp_path / "in" / "a-000.tar", 3, cls=lambda number: str(number % 2 * 5).encode())
    tar_of(tmp_path / "in" / "a-001.tar", 3, 3, cls=lambda number: str(number % 2 * 5).encode())
    for data in (tmp_path / "in", tmp_path / "in" / "a-{000..001}.tar", tmp_path / "in" / "*.tar"):
        images = opened(data, tmp_path)
        assert images.classes == ("0", "5")
        assert images.labels is not None
        assert images.labels.tolist() == [0, 1, 0, 1, 0, 1]
        assert images.names == [f"{number:04d}" for number in range(6)]
        assert all(shows(images, number, number) for number in range(6))


def test_webdataset_json_and_splits(tmp_path: Path) -> None:
    words = ["tree", "house"]

    def facts(number: int) -> bytes:
        return json.dumps({"label": words[number % 2], "extra": number}).encode()

    tar_of(tmp_path / "in" / "train-0.tar", 4, json=facts)
    tar_of(tmp_path / "in" / "val-0.tar", 2, 4, json=facts)
    images = opened(tmp_path / "in", tmp_path)
    assert images.classes == ("house", "tree")
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0] * 3
    assert images.heldout.tolist() == [4, 5]


def test_webdataset_truncated(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "a.tar", 9).read_bytes()
    assert opened(tmp_path / "a.tar", tmp_path).skipped == 0
    (tmp_path / "a.tar").write_bytes(whole[: 1024 * 5 + 300])
    says: list[str] = []
    images = opened(tmp_path / "a.tar", tmp_path, says)
    assert 2 <= len(images) < 9
    assert "a.tar: cut off" in says[-1]
    (tmp_path / "a.tar").write_bytes(b"this is no archive" * 100)
    with pytest.raises(DataError, match=r"cannot read .*a\.tar") as caught:
        opened(tmp_path / "a.tar", tmp_path)
    assert "\n" not in str(caught.value)


def test_braces() -> None:
    assert expand_braces("a-{08..11}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]
    assert expand_braces("{a,b}/{1..2}") == ["a/1", "a/2", "b/1", "b/2"]
    assert expand_braces("plain") == ["plain"]


# --- the Hub, without it ---


class _Info:
    sha = "abc"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """`datasets.load_dataset('owner/name')` reads a local folder instead."""
    real, root = datasets.load_dataset, tmp_path / "hub"

    def load(name: str, **options: Any) -> Any:
        assert name == "owner/name"
        return real(str(root), cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: _Info())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    return root


@pytest.mark.parametrize("streaming", [False, True])
def test_hub(hub: Path, tmp_path: Path, streaming: bool) -> None:
    parquet_of(hub / "data" / "train-00000-of-00001.parquet", 8, label=["x", "y"] * 4)
    parquet_of(hub / "data" / "test-00000-of-00001.parquet", 3, 8, label=["y", "y", "x"])
    images = opened("owner/name", tmp_path, streaming=streaming)
    assert (len(images.train), len(images.heldout)) == (8, 3)
    assert images.classes == ("x", "y")
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1] * 4 + [1, 1, 0]
    assert all(shows(images, number, number) for number in range(11))
    only = opened("owner/name", tmp_path, streaming=streaming, split="test")
    assert (len(only), len(only.heldout)) == (3, 1)
    few = opened("owner/name", tmp_path, streaming=streaming, limit=4)
    assert (len(few.train), len(few.heldout)) == (3, 1)


def test_hub_is_asked_once(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet_of(hub / "data.parquet", 5)
    first = opened("owner/name", tmp_path)
    assert len(first.heldout) == 1
    monkeypatch.setattr(datasets, "load_dataset", None)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", None)
    again = opened("owner/name", tmp_path)
    assert again.fingerprint == first.fingerprint
    assert again.names == first.names


def test_hub_stream_larger_than_the_cache(hub: Path, tmp_path: Path) -> None:
    parquet_of(hub / "data.parquet", 9)
    with pytest.raises(DataError, match="does not fit in cache_gb = 1e-06: raise it, or set limit"):
        opened("owner/name", tmp_path, streaming=True, cache_gb=1e-6)
    assert not list((tmp_path / "data").glob("*pixels*"))


def test_hub_stream_that_breaks(hub: Path, tmp_path: Path) -> None:
    parquet_of(hub / "data.parquet", 5)
    path = hub / "data.parquet"
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"the stream broke after|cannot read"):
        opened("owner/name", tmp_path, streaming=True)


def test_hub_splits_to_choose_from(hub: Path, tmp_path: Path) -> None:
    parquet_of(hub / "test.parquet", 3)
    parquet_of(hub / "validation.parquet", 3)
    with pytest.raises(DataError, match=r"has the splits .*choose one with data.split"):
        opened("owner/name", tmp_path)


def test_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(
        DataError, match=r"no folder or file 'owner/name', and the Hub data set .*cannot be reached"
    ) as caught:
        opened("owner/name", tmp_path)
    assert "\n" not in str(caught.value)


def test_hub_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("not in the cache")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="cannot read 'owner/name': FileNotFoundError: not in the cache"):
        opened("owner/name", tmp_path)


# --- labels ---


def test_labels() -> None:
    classes, labels = resolve_labels([3, 1, None, 3], None)
    assert classes == ("1", "3")
    assert labels is not None
    assert labels.tolist() == [1, 0, -1, 1]
    classes, labels = resolve_labels([-1, 0, 10, 2], None)
    assert classes == ("0", "2", "10")
    assert labels is not None
    assert labels.tolist() == [-1, 0, 2, 1]
    assert resolve_labels([None, ""], None) == ((), None)
    assert resolve_labels([-1, -1], ["a", "b"]) == ((), None)
    with pytest.raises(DataError, match=r"found 1\.5"):
        resolve_labels([1.5], None)


def test_config_is_used_by_helpers() -> None:
    assert config().size == 8
