"""Tables: parquet files, WebDataset shards and the Hub, through `datasets`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_helpers import encoded, noise, opened, parquet_of, shows, tar_of

from vqvae2.data.errors import DataError

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


def test_columns_are_known_in_any_case(tmp_path: Path) -> None:
    """`Split` was no split, as it is one in a file of labels: held-out images were trained on."""
    path = parquet_of(tmp_path / "a.parquet", 6, Label=["x", "y"] * 3, Split=["train"] * 4 + ["test"] * 2)
    table = pq.read_table(path)
    pq.write_table(
        table.rename_columns([{"image": "Image"}.get(name, name) for name in table.column_names]), path
    )
    images = opened(path, tmp_path)
    assert images.classes == ("x", "y")
    assert images.heldout.tolist() == [4, 5]
    assert all(shows(images, number, number) for number in range(6))
    parquet_of(tmp_path / "in" / "Label=x" / "train.parquet", 2)
    parquet_of(tmp_path / "in" / "Label=y" / "train.parquet", 2)
    assert opened(tmp_path / "in", tmp_path / "run").classes == ("x", "y")


def test_all_names_of_a_split_are_read(tmp_path: Path) -> None:
    """Before, the order of a set decided which one of several was read, so processes could read different images."""
    splits = [*("train2014", "train2014", "train2017", "Train2017", "val2017"), *("test2017", "extra", None)]
    path, says = parquet_of(tmp_path / "a.parquet", 8, split=splits), list[str]()
    images = opened(path, tmp_path, says)
    assert images.names == [f"p{number}.png" for number in range(5)]
    assert images.heldout.tolist() == [4]
    assert "3 images not used, in extra, no split, test2017" in says
    assert len(opened(path, tmp_path, split="train")) == 4
    assert len(opened(path, tmp_path, split="train2017")) == 2


def test_parquet_files_without_rows(tmp_path: Path) -> None:
    """Programs that write many files leave some of them empty."""
    parquet_of(tmp_path / "in" / "a.parquet", 4)
    whole = pq.read_table(tmp_path / "in" / "a.parquet")
    for name in ("0", "b"):
        pq.write_table(whole.slice(0, 0), tmp_path / "in" / f"{name}.parquet")
    assert len(opened(tmp_path / "in", tmp_path)) == 4
    with pytest.raises(DataError, match="holds no rows"):
        opened(tmp_path / "in" / "b.parquet", tmp_path / "b")


def test_a_test_file_without_classes_is_not_held_out(tmp_path: Path) -> None:
    """As a test folder without folders of classes; before, the classes of all images were lost without a word."""
    parquet_of(tmp_path / "in" / "train.parquet", 6, label=["x", "y"] * 3)
    parquet_of(tmp_path / "in" / "test.parquet", 3, start=6)
    says: list[str] = []
    images = opened(tmp_path / "in", tmp_path, says)
    assert (len(images), images.classes, len(images.heldout)) == (6, ("x", "y"), 1)
    assert "warning: 3 rows of the held-out split have no column of classes and are not used" in says
    parquet_of(tmp_path / "in" / "val.parquet", 3, start=9, label=["x", "y", "x"])
    images = opened(tmp_path / "in", tmp_path / "2")
    assert (len(images.train), len(images.heldout)) == (6, 3)
    assert len(opened(tmp_path / "in", tmp_path / "3", label_column="none").heldout) == 3


def test_files_with_other_columns_are_named_in_words(tmp_path: Path) -> None:
    parquet_of(tmp_path / "in" / "a.parquet", 4, label=[1, 2, 1, 2])
    parquet_of(tmp_path / "in" / "b.parquet", 4, label=list("abab"))
    with pytest.raises(DataError, match="its files do not all have the same columns of the same types"):
        opened(tmp_path / "in", tmp_path / "types")
    table = pq.read_table(tmp_path / "in" / "a.parquet").rename_columns(["photo", "kind"])
    pq.write_table(table, tmp_path / "in" / "b.parquet")
    with pytest.raises(DataError, match="its files do not all have the same columns of the same types"):
        opened(tmp_path / "in", tmp_path / "names")


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
    with pytest.raises(DataError, match=r"no column of images: .*scan, kind, note"):
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
    assert "row 4\tthe row holds no image" in listed
    assert "gone.png\tNo such file or directory" in listed


def test_parquet_names_that_repeat(tmp_path: Path) -> None:
    path = parquet_of(tmp_path / "a.parquet", 4, name=["cat", "dog", "cat", None])
    assert opened(path, tmp_path).names == ["cat (row 0)", "dog (row 1)", "cat (row 2)", "p3.png (row 3)"]


def test_parquet_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no, not really")
    with pytest.raises(DataError, match=r"cannot read .*a\.parquet") as caught:
        opened(tmp_path / "a.parquet", tmp_path)
    assert "\n" not in str(caught.value)
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "b.parquet")
    with pytest.raises(DataError):
        opened(tmp_path / "b.parquet", tmp_path)


def test_folders_count_for_a_pattern_too(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("test", 2)):
        parquet_of(tmp_path / "in" / split / "0.parquet", count)
        tar_of(tmp_path / "in" / split / "0.tar", count)
    for ending in ("parquet", "tar"):
        images = opened(tmp_path / "in" / "*" / f"*.{ending}", tmp_path / ending)
        assert (len(images.train), len(images.heldout)) == (4, 2)
        assert len(opened(tmp_path / "in" / "test" / f"*.{ending}", tmp_path / f"{ending}-test")) == 2
    for name in ("cat", "dog"):
        parquet_of(tmp_path / "hive" / f"label={name}" / "0.parquet", 3)
    assert opened(tmp_path / "hive" / "*" / "0.parquet", tmp_path / "hive-run").classes == ("cat", "dog")


def test_folders_of_tables_are_part_of_what_is_known(tmp_path: Path) -> None:
    """A folder that is renamed gives other classes; before, those of the kept images stayed."""
    root = tmp_path / "in"
    for name in ("cat", "dgo"):
        parquet_of(root / f"label={name}" / "0.parquet", 3)
    first = opened(root, tmp_path / "run")
    assert opened(root / "*" / "*.parquet", tmp_path / "pattern").fingerprint == first.fingerprint
    (root / "label=dgo").rename(root / "label=dog")
    again = opened(root, tmp_path / "run")
    assert again.classes == ("cat", "dog")
    assert again.fingerprint != first.fingerprint


def test_images_of_a_table_may_be_moved(tmp_path: Path) -> None:
    """Their fingerprint stays, but kept pixels of another folder are not taken for theirs."""
    pq.write_table(pa.table({"image": [f"{number}.png" for number in range(3)]}), tmp_path / "a.parquet")
    for folder, add in (("A", 0), ("B", 5)):
        (tmp_path / folder).mkdir()
        for number in range(3):
            noise(number + add).save(tmp_path / folder / f"{number}.png")
    first = opened(tmp_path / "a.parquet", tmp_path / "run", image_root=str(tmp_path / "A"))
    second = opened(tmp_path / "a.parquet", tmp_path / "run", image_root=str(tmp_path / "B"))
    assert second.fingerprint == first.fingerprint
    assert shows(second, 1, 6)


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
    says: list[str] = []
    images = opened(tmp_path / "in", tmp_path, says)
    assert says[0] == (
        "understood as 6 images, 2 classes from the members beside the images, split of the data: 4 to train, 2 held out "
        "by the names of the files"
    )
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


def test_a_limited_stream_of_several_training_splits(hub: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("train2014", "train2017", "val2017")):
        parquet_of(hub / f"{name}.parquet", 4, 4 * number)
    files = {path.stem: str(path) for path in hub.iterdir()}
    (hub / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        + "".join(f"  - split: {name}\n    path: {Path(file).name}\n" for name, file in sorted(files.items()))
        + "---\n"
    )
    for streaming in (False, True):
        images = opened("owner/name", tmp_path / str(streaming), streaming=streaming)
        assert (len(images.train), len(images.heldout)) == (8, 4)
    few = opened("owner/name", tmp_path / "few", streaming=True, limit=6)
    assert (few.names, few.heldout.tolist()) == ([*(f"p{number}.png" for number in range(5)), "p8.png"], [5])


def test_a_limited_stream_holds_other_images_than_a_limited_listing(hub: Path, tmp_path: Path) -> None:
    parquet_of(hub / "data.parquet", 12)
    known = [
        opened("owner/name", tmp_path / f"{streaming}{limit}", streaming=streaming, limit=limit, seed=1)
        for streaming in (False, True)
        for limit in (4, None)
    ]
    assert known[0].names != known[2].names
    assert known[0].fingerprint != known[2].fingerprint
    assert known[1].fingerprint == known[3].fingerprint


def test_the_hub_offline_has_the_commit_that_was_downloaded(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parquet_of(hub / "data.parquet", 5)
    online = opened("owner/name", tmp_path / "1").fingerprint
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cached"))
    assert opened("owner/name", tmp_path / "2").fingerprint != online
    refs = tmp_path / "cached" / "datasets--owner--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(_Info.sha)
    assert opened("owner/name", tmp_path / "3").fingerprint == online


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
    with pytest.raises(
        DataError, match=r"does not fit in cache_gb = 1e-06: raise it, set limit, or copy .* tar shards"
    ):
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


# --- what is said ---


def test_a_column_that_could_be_the_classes_is_mentioned(tmp_path: Path) -> None:
    path = parquet_of(
        tmp_path / "a.parquet", 6, breed=list("xyxyxy"), caption=[f"text {n}" for n in range(6)]
    )
    says: list[str] = []
    assert opened(path, tmp_path, says).classes == ()
    assert says[0] == "understood as 6 images, no classes, no split"
    assert "the column 'breed' could be the classes: data.label_column=breed" in says
    assert not any("caption" in line for line in says)
    says.clear()
    assert opened(path, tmp_path / "2", says, label_column="breed").classes == ("x", "y")
    assert says[0] == "understood as 6 images, 2 classes (column 'breed'), no split"
