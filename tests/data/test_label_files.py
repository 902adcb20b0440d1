"""Classes from a CSV or JSON file beside a folder, in the forms that people have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import encoded, folder_of, noise, opened, parquet_of

from vqvae2.data.errors import DataError

ROWS = [(f"{number:03d}", "cat" if number % 2 else "dog") for number in range(6)]


def labels(images: Any) -> list[str]:
    return [images.classes[label] if label >= 0 else "" for label in images.labels]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six images in two folders that are no classes."""
    root = tmp_path / "in"
    for number in range(6):
        (root / f"batch{number // 3}").mkdir(parents=True, exist_ok=True)
        noise(number).save(root / f"batch{number // 3}" / f"{number:03d}.png")
    return root


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "file_name,label\n" + "".join(f"{n}.png,{c}\n" for n, c in ROWS)),
        ("b.csv", "id,breed\n" + "".join(f"{n},{c}\n" for n, c in ROWS)),
        ("c.csv", "".join(f"batch{int(n) // 3}/{n}.png,{c}\n" for n, c in ROWS)),
        ("d.csv", "\ufefffilename;class;age\r\n" + "".join(f"{n}.png;{c};3\r\n" for n, c in ROWS)),
        ("e.tsv", "image\tlabel\n" + "".join(f"C:\\x\\{n}.png\t{c}\n" for n, c in ROWS)),
        ("f.json", json.dumps([{"file_name": f"{n}.png", "label": c} for n, c in ROWS])),
        ("g.json", json.dumps({f"batch{int(n) // 3}/{n}.png": c for n, c in ROWS})),
        ("h.json", json.dumps({"labels": [[f"batch{int(n) // 3}/{n}.png", c] for n, c in ROWS]})),
        ("j.csv", "image_name,breed\n" + "".join(f'{n}.png, "{c}" \n' for n, c in ROWS)),
        ("i.jsonl", "\n".join(json.dumps({"image": f"{n}.png", "label": c}) for n, c in ROWS)),
    ],
)
def test_forms(name: str, text: str, root: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    says: list[str] = []
    column = "breed" if name == "j.csv" else None
    images = opened(root, tmp_path / "run", says, labels=str(tmp_path / name), label_column=column)
    assert labels(images) == [c for _, c in ROWS]
    assert any("6 of 6 images are in it" in line for line in says)


def test_numbers_are_in_order_and_missing_ones_are_listed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("file,label\n000.png, 10\n001.png,9\n002.png,10\n003.png,\nother.png,9\n")
    says: list[str] = []
    images = opened(root, tmp_path / "run", says, labels=str(tmp_path / "a.csv"))
    assert images.classes == ("9", "10")
    assert len(images.train) + len(images.heldout) == 3
    assert (tmp_path / "run" / "data" / "skipped.txt").read_text().count("it has no label") == 3
    assert any("1 rows without an image" in line for line in says)


def test_a_column_is_chosen(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("file,colour,breed\n" + "".join(f"{n}.png,red,{c}\n" for n, c in ROWS))
    with pytest.raises(
        DataError, match=r"which column of a\.csv .* file, colour, breed; name one with data\.label_column"
    ):
        opened(root, tmp_path / "run", labels=str(path))
    assert labels(opened(root, tmp_path / "run", labels=str(path), label_column="breed")) == [
        c for _, c in ROWS
    ]
    with pytest.raises(DataError, match=r"no column .size. in a\.csv"):
        opened(root, tmp_path / "run", labels=str(path), label_column="size")
    with pytest.raises(DataError, match="has no file of labels"):
        opened(root, tmp_path / "run", label_column="breed")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no rows"),
        ("file,label\nnothing.png,1\n", "names none of the 6 images"),
        ("\x00\x01", "names none|cannot read|holds no rows"),
    ],
)
def test_files_that_say_nothing(text: str, message: str, root: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        opened(root, tmp_path / "run", labels=str(tmp_path / "a.csv"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2]", "3", "{", "[" * 100_000, '{"labels": 3}', "null", '"x"'])
def test_json_of_other_kinds(text: str, root: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError):
        opened(root, tmp_path / "run", labels=str(tmp_path / "a.json"))


def test_a_file_of_labels_in_the_folder_is_not_skipped(root: Path, tmp_path: Path) -> None:
    file, says = root / "batch0" / "labels.csv", list[str]()
    file.write_text("".join(f"{n}.png,{c}\n" for n, c in ROWS))
    assert opened(root, tmp_path / "run", says, labels=str(file)).skipped == 0
    assert not any("labels.csv: not an image" in line for line in says)


def test_a_file_of_labels_in_a_folder_whose_name_begins_like_the_home_of_nobody(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("~nosuchuser", "labels.csv")
    file.parent.mkdir()
    file.write_text("".join(f"{n}.png,{c}\n" for n, c in ROWS))
    (root / "notes.txt").touch()
    assert opened(root, tmp_path / "run", labels=str(file)).skipped == 1


def test_missing_binary_and_tables(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*gone\.csv: No such file"):
        opened(root, tmp_path / "run", labels=str(tmp_path / "gone.csv"))
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no text in UTF-8"):
        opened(root, tmp_path / "run", labels=str(tmp_path / "a.csv"))
    with pytest.raises(DataError, match=r"data\.labels is for a folder"):
        opened(parquet_of(tmp_path / "a.parquet", 3), tmp_path / "run", labels=str(tmp_path / "a.csv"))


def test_metadata_in_the_folder(root: Path, tmp_path: Path) -> None:
    lines = "".join(f"batch{int(n) // 3}/{n}.png,{c},{'test' if n > '003' else 'train'}\n" for n, c in ROWS)
    (root / "metadata.csv").write_text("file_name,label,split\n" + lines)
    images = opened(root, tmp_path / "run")
    assert labels(images) == [c for _, c in ROWS]
    assert (images.skipped, images.heldout.tolist()) == (0, [4, 5])
    assert len(opened(root, tmp_path / "run2", split="test")) == 2
    before = images.fingerprint
    (root / "metadata.csv").write_text("file_name,label,split\n" + lines.replace("cat", "ape"))
    changed = opened(root, tmp_path / "run")
    assert changed.fingerprint != before
    assert "ape" in changed.classes
    assert opened(root, tmp_path / "run3", label_column="none").classes == ()


@pytest.mark.parametrize("named", [True, False])
def test_a_file_that_holds_only_splits(root: Path, tmp_path: Path, named: bool) -> None:
    """Named or in the folder: the classes, if any, are those of the folders then."""
    lines = "".join(
        f"batch{int(n) // 3}/{n}.png,{'test' if n > '003' else 'train' if n > '001' else ''}\n"
        for n, _ in ROWS
    )
    file = tmp_path / "splits.csv" if named else root / "metadata.csv"
    file.write_text("file_name,split\n" + lines)
    images = opened(root, tmp_path / "run", labels=str(file) if named else None)
    assert (images.skipped, images.heldout.tolist()) == (0, [2, 3])
    assert images.names == ["batch0/002.png", "batch1/003.png", "batch1/004.png", "batch1/005.png"]
    assert labels(images) == ["batch0", "batch1", "batch1", "batch1"]


@pytest.mark.parametrize("folders", ["{split}/{kind}", "{kind}/{split}", "{split}"])
def test_splits_in_a_file_that_are_not_those_of_the_folders(folders: str, tmp_path: Path) -> None:
    """Each image keeps the class of its own folder, whatever the folders say of splits."""
    counts = {"train": (2, 2), "val": (2, 2), "test": (1, 3), "extra": (1, 1)}
    held = {"train": "train", "val": "", "test": "test", "extra": "train"}
    rows, root = "file_name,split\n", tmp_path / "in"
    for split, numbers in counts.items():
        for kind, count in zip(("cat", "dog"), numbers, strict=True):
            for number in range(count):
                path = root / folders.format(split=split, kind=kind) / f"{split}_{kind}_{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                noise(number).save(path)
                rows += f"{path.relative_to(root).as_posix()},{held[split]}\n"
    (tmp_path / "splits.csv").write_text(rows)
    images = opened(root, tmp_path / "run", labels=str(tmp_path / "splits.csv"))
    names = [Path(name).name.split("_") for name in images.names]
    assert {split for split, _, _ in names} == {"train", "test", "extra"}
    assert [names[index][0] for index in images.heldout] == ["test"] * 4
    if "{kind}" in folders:
        assert labels(images) == [kind for _, kind, _ in names]
    else:
        assert images.classes == ()


@pytest.mark.parametrize("named", [True, False])
def test_without_classes_the_splits_of_a_file_count(root: Path, tmp_path: Path, named: bool) -> None:
    """Before, data.label_column=none left the whole file unread, and the test images were trained on."""
    lines = "".join(f"batch{int(n) // 3}/{n}.png,{c},{'test' if n > '003' else 'train'}\n" for n, c in ROWS)
    file = tmp_path / "labels.csv" if named else root / "metadata.csv"
    options = {"labels": str(file) if named else None, "label_column": "none"}
    file.write_text("file_name,label,split\n" + lines)
    images = opened(root, tmp_path / "run", **options)
    assert (images.classes, images.heldout.tolist()) == ((), [4, 5])
    file.write_text("file_name,age,breed\n000.png,3,cat\n")
    assert opened(root, tmp_path / "run", **options).classes == ()


def test_metadata_in_each_split(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for split, first, count in (("train", 0, 6), ("test", 6, 4)):
        folder_of(root / split, count)
        rows = [{"file_name": f"{n:03d}.png", "label": "ab"[(n + first) % 2]} for n in range(count)]
        (root / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    images = opened(root, tmp_path / "run")
    assert labels(images) == list("ababababab"[:4]) + list("ababab")
    assert (len(images.train), len(images.heldout)) == (6, 4)


def test_metadata_without_classes_is_mentioned(root: Path, tmp_path: Path) -> None:
    (root / "metadata.csv").write_text("file_name,text\n000.png,a small cat\n001.png,a dog\n")
    says: list[str] = []
    images = opened(root, tmp_path / "run", says)
    assert images.classes == ("batch0", "batch1")
    assert any("metadata.csv has the columns file_name, text: none of them is read" in line for line in says)
    assert labels(opened(root, tmp_path / "run2", label_column="text"))[0] == "a small cat"


def test_the_place_of_the_file_is_no_identity(root: Path, tmp_path: Path) -> None:
    text = "id,breed\n" + "".join(f"{n},{c}\n" for n, c in ROWS)
    prints = set()
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "labels.csv").write_text(text)
        prints.add(opened(root, tmp_path / "run", labels=str(tmp_path / place / "labels.csv")).fingerprint)
    (tmp_path / "b" / "labels.csv").write_text(text.replace("cat", "ape"))
    prints.add(opened(root, tmp_path / "run", labels=str(tmp_path / "b" / "labels.csv")).fingerprint)
    assert len(prints) == 2


def test_names_that_fit_several_images(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("a", "b"):
        folder_of(root / name, 3)
    (root / "c.jpg").write_bytes(encoded(noise(7), "JPEG"))
    (tmp_path / "a.csv").write_text("file,label\n000.png,x\na/001.png,x\nb/001.png,y\nc,y\n")
    images = opened(root, tmp_path / "run", labels=str(tmp_path / "a.csv"))
    assert images.labels is not None
    assert np.sum(images.labels >= 0) == 3


def test_names_that_fit_several_images_are_told_from_unknown_ones(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        folder_of(tmp_path / "in" / folder, 4)
    (tmp_path / "a.csv").write_text("file_name,label\n000.png,x\n001.png,y\n")
    with pytest.raises(DataError, match=r"each name in a\.csv fits several images .*, such as one/000\.png"):
        opened(tmp_path / "in", tmp_path, labels=str(tmp_path / "a.csv"))


def test_a_path_counts_more_than_a_file_name(tmp_path: Path) -> None:
    """Before, the last row with the file name of an image decided, even if its path named another one."""
    root = tmp_path / "in"
    for split in ("train", "test"):
        folder_of(root / split, 2)
    for name in "cd":
        noise(5).save(root / "test" / f"{name}.png")
    (root / "train" / "metadata.csv").write_text("file_name,label\n000.png,cat\n001.png,cat\nc.png,cat\n")
    (root / "test" / "metadata.csv").write_text("file_name,label\n000.png,dog\n001.png,dog\nc.png,dog\n")
    says: list[str] = []
    assert labels(opened(root, tmp_path / "1", says)) == [*("dog", "dog", "dog", ""), "cat", "cat"]
    assert any("1 rows without an image" in line for line in says)
    rows = [f"{split}/00{n}.png,{c}" for split, c in (("train", "cat"), ("test", "dog")) for n in range(2)]
    (tmp_path / "a.csv").write_text("\n".join(["file,label", *rows, "test/c.png,ape", "test/d.png,ape"]))
    assert labels(opened(root / "train", tmp_path / "5", labels=str(tmp_path / "a.csv"))) == ["cat"] * 2
    with pytest.raises(
        DataError, match=r"each name in a\.csv .* stands in rows that differ, such as 000\.png"
    ):
        opened((root / "train").rename(root / "other"), tmp_path / "2", labels=str(tmp_path / "a.csv"))
    images = opened(
        (root / "test").rename(root / "more"), tmp_path / "3", says, labels=str(tmp_path / "a.csv")
    )
    assert labels(images) == ["", "", "ape", "ape"]
    assert any("0 rows without an image and 4 that fit several images or contradict" in line for line in says)
    same = "\n".join(row.replace("dog", "cat") for row in rows)
    (tmp_path / "a.csv").write_text("file,label\n" + same)
    assert labels(opened(root / "other", tmp_path / "4", labels=str(tmp_path / "a.csv"))) == ["cat"] * 2


@pytest.mark.parametrize("start", ["{root}/", "{link}/", "in/", "./in/", "{relative}/"])
def test_paths_that_begin_with_the_folder(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file names alone would fit an image in each of two folders."""
    monkeypatch.chdir(tmp_path)
    root, link = tmp_path / "x" / "in", tmp_path / "link"
    for name in ("a", "b"):
        folder_of(root / name, 3)
    link.symlink_to(root)
    start = start.format(root=root, link=link, relative="x/in")
    rows = "".join(f"{start}{name}/00{n}.png,{name}\n" for name in "ab" for n in range(3))
    (tmp_path / "a.csv").write_text("file,label\n" + rows)
    data = link if start.startswith(str(link)) else Path("x/in")
    says: list[str] = []
    images = opened(data, tmp_path / "run", says, labels=str(tmp_path / "a.csv"))
    assert labels(images) == ["a", "a", "a", "b", "b", "b"]
    assert any("6 of 6 images are in it" in line for line in says)
    assert not any("warning" in line for line in says)


def test_the_reason_why_a_path_names_no_image_is_given(tmp_path: Path) -> None:
    root, says = tmp_path / "in", list[str]()
    for name in ("a", "b"):
        folder_of(root / name, 3)
    rows = "".join(f"/elsewhere/{name}/00{n}.png,{name}\n" for name in "ab" for n in range(3))
    (tmp_path / "a.csv").write_text(f"file,label\na/000.png,a\nb/000.png,b\n{rows}")
    opened(root, tmp_path / "run", says, labels=str(tmp_path / "a.csv"))
    (line,) = [line for line in says if line.startswith("warning")]
    assert "0 rows without an image and 6 that fit several" in line
    assert f"(paths are relative to {root}, where '/elsewhere/a/000.png' is none)" in line


def test_rows_with_one_path_that_differ_say_nothing(tmp_path: Path) -> None:
    """The last of them decided, without a word."""
    root, says = folder_of(tmp_path / "in", 3), list[str]()
    (tmp_path / "a.csv").write_text("file_name,label\n000.png,x\n001.png,y\n000,y\n002.png,x\n002.png,x\n")
    assert labels(opened(root, tmp_path / "run", says, labels=str(tmp_path / "a.csv"))) == ["", "y", "x"]
    assert any("0 rows without an image and 2 that fit several images or contradict" in line for line in says)


def test_all_names_of_a_split_in_a_file_are_read(root: Path, tmp_path: Path) -> None:
    splits, says = ("train", "Train", "train2014", "val", "test", ""), list[str]()
    rows = "".join(f"{n}.png,{split}\n" for (n, _), split in zip(ROWS, splits, strict=True))
    (tmp_path / "a.csv").write_text("file_name,split\n" + rows)
    images = opened(root, tmp_path / "run", says, labels=str(tmp_path / "a.csv"))
    assert [Path(name).stem for name in images.names] == ["000", "001", "002", "003"]
    assert images.heldout.tolist() == [3]
    assert "2 images not used, in no split, test" in says


@pytest.mark.parametrize("header", ["file_name,label,Split", "File,Split", "picture,SPLIT"])
def test_the_column_of_splits_in_any_case(header: str, root: Path, tmp_path: Path) -> None:
    splits = ["train"] * 4 + ["test"] * 2
    rows = [
        ",".join((f"{n}.png", c, split) if "label" in header else (f"{n}.png", split))
        for (n, c), split in zip(ROWS, splits, strict=True)
    ]
    (tmp_path / "a.csv").write_text("\n".join([header, *rows]))
    images = opened(root, tmp_path / "run", labels=str(tmp_path / "a.csv"))
    assert images.heldout.tolist() == [4, 5]
    assert labels(images) == ([c for _, c in ROWS] if "label" in header else ["batch0"] * 3 + ["batch1"] * 3)
