"""What folders mean: splits and classes as people have them, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_helpers import folder_of, noise, opened

from vqvae2.data.errors import DataError
from vqvae2.data.folder_layout import Layout, understand
from vqvae2.data.split_names import file_splits


def layout(*folders: str, split: str | None = None, loose: int = 0) -> tuple[Layout, list[str]]:
    """What is understood of three images in each folder and some beside them, and the paths of all images."""
    paths = [f"{folder}/{number}.png" for folder in folders for number in range(3)]
    paths += [f"loose{number}.png" for number in range(loose)]
    return understand([tuple(path.split("/")) for path in paths], split, "DATA"), paths


def both(*names: str) -> list[str]:
    """The folders x and y in each of some folders."""
    return [f"{name}/{kind}" for name in names for kind in "xy"]


@pytest.mark.parametrize(
    ("train", "held"),
    [
        ("train", "test"),
        ("training_set", "test_set"),
        ("train2017", "val2017"),
        ("Train", "Validation"),
        ("seg_train", "seg_test"),
        ("trainSet", "devSet"),
        ("split=train", "split=test"),
        ("train_images", "held-out images"),
        ("archive/data/train", "archive/data/valid"),
        ("training/training", "testing/testing"),
    ],
)
def test_splits_with_classes(train: str, held: str) -> None:
    found, paths = layout(*both(train, held))
    assert found.classes == list("xxxyyyxxxyyy")
    assert found.held == [int(paths[index].startswith(held)) for index in found.keep] == [0] * 6 + [1] * 6
    assert not found.skipped
    assert "2 classes (x, y; 6 images each), split of the data: 6 to train, 6 held out" in found.notes[0]


@pytest.mark.parametrize(
    "folders",
    [
        both("train"),
        [*both("train"), "unlabeled"],
        [*both("training_set"), "seg_pred"],
        both("archive/train"),
    ],
)
def test_a_training_split_alone(folders: list[str]) -> None:
    """Its classes count, and other folders without classes do not."""
    found, _ = layout(*folders)
    assert (found.classes, found.held) == (list("xxxyyy"), None)


def test_a_class_that_is_named_train_stays_a_class() -> None:
    found, _ = layout("car", "train", "boat")
    assert set(found.classes or ()) == {"car", "train", "boat"}


def test_a_test_split_without_classes_is_not_held_out() -> None:
    found, _ = layout(*both("train"), "test")
    assert (found.classes, found.held) == (list("xxxyyy"), None)
    assert any("warning: 'test' has no folders of classes" in note for note in found.notes)
    found, _ = layout(*both("train", "val"), "test")
    assert (found.held or []).count(1) == 6


def test_one_image_beside_the_splits_changes_nothing() -> None:
    found, _ = layout(*both("train", "test"), loose=1)
    assert (found.classes, (found.held or []).count(1)) == (list("xxxyyyxxxyyy"), 6)
    assert found.skipped == [(12, "beside the folders of the splits")]
    assert any("warning: 1 image beside" in note for note in found.notes)


def test_a_stray_image_beside_many_classes() -> None:
    names = [f"c{number}" for number in range(10)]
    found, _ = layout(*names, loose=1)
    assert (len(set(found.classes or ())), len(found.skipped)) == (10, 1)
    found, _ = layout("a", "b", loose=2)
    assert (found.classes, found.skipped, len(found.keep)) == (None, [], 8)
    assert any("not taken for classes" in note for note in found.notes)


def test_a_folder_that_would_be_the_only_class() -> None:
    found, _ = layout("photos")
    assert found.classes is None
    assert any("'photos', which is not taken for a class" in note for note in found.notes)


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        ([f"{1000 * number:05}" for number in range(70)], True),  # FFHQ
        ([f"{number:04}" for number in range(21)], True),
        ([f"{number:04}" for number in range(20)], False),
        ([str(number) for number in range(10)], False),  # MNIST
        ([f"{number:03}" for number in range(100)], False),  # three digits may be classes
        ([f"{number * number:05}" for number in range(70)], False),  # the numbers of people, say
        ([f"n{number:08}" for number in range(70)], False),  # ImageNet
    ],
)
def test_folders_that_only_divide_the_images_into_parts(names: list[str], parts: bool) -> None:
    """They are classes all the same: only the user knows."""
    found = layout(*names)[0]
    assert len(set(found.classes or ())) == len(names)
    said = [note for note in found.notes if "evenly spaced numbers" in note]
    assert len(said) == parts
    assert all("data.label_column=none" in note and note.startswith("warning: ") for note in said)


def test_what_looks_odd() -> None:
    assert any(
        "only the training split has z" in note for note in layout(*both("train", "test"), "train/z")[0].notes
    )
    odd = layout("cat_train", "cat_test", "dog_train", "dog_test")[0]
    assert any("names have words for splits" in note for note in odd.notes)
    many = understand([(f"c{number}", "0.png") for number in range(9)], None, "DATA")
    assert any("9 folders for 9 images" in note for note in many.notes)


def test_hive_folders_are_classes_without_their_key() -> None:
    assert set(layout("label=cat", "label=dog")[0].classes or ()) == {"cat", "dog"}


def test_one_split_is_chosen() -> None:
    found, paths = layout(*both("training_set", "test_set"), split="test")
    assert {paths[index].split("/")[0] for index in found.keep} == {"test_set"}
    assert (found.held, found.classes) == (None, list("xxxyyy"))
    with pytest.raises(DataError, match="no split 'other' in 'DATA': found test, train"):
        layout(*both("train", "test"), split="other")
    with pytest.raises(DataError, match="no split 'test' in 'DATA': its folders are cat, dog"):
        layout(*both("cat", "dog"), split="test")
    found, paths = layout(*both("train2014", "train2017", "val2017"), split="train")
    assert {paths[index].split("/")[0] for index in found.keep} == {"train2014", "train2017"}


def test_it_is_said_and_loose_images_are_listed(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for split in ("training_set", "test_set"):
        folder_of(root / split, 4, ("x", "y"))
    noise(50).save(root / "cover\x1b[31m.png")
    says: list[str] = []
    images = opened(root, tmp_path, says)
    assert (images.classes, len(images.train), len(images.heldout), images.skipped) == (("x", "y"), 4, 4, 1)
    assert says[0].startswith("understood as 8 images, 2 classes")
    assert "\x1b" not in "".join(says) + (tmp_path / "data" / "skipped.txt").read_text()
    assert opened(root, tmp_path / "2", label_column="none").classes == ()


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-0.tar", "test-0.tar"], [0, 1]),
        (["coco_train_val.tar"], [0]),
        (["train-test-split-000.tar", "train-test-split-001.tar"], [0, 0]),
        (["train_val-000.tar", "test-000.tar"], [0, 1]),
        (["trainval.tar", "test.tar"], [0, 1]),
        (["train.tar", "val.tar", "train_val.tar"], [0, 1, None]),
        (["train.tar", "val.tar", "test.tar"], [0, 1, None]),
        (["a.tar", "b.tar"], [0, 0]),
        (["train-0.tar", "train-1.tar"], [0, 0]),
    ],
)
def test_splits_in_the_names_of_files(names: list[str], splits: list[int | None]) -> None:
    assert file_splits(names)[0] == splits


def test_splits_below_the_classes() -> None:
    """As MVTec has them; before, test images were trained on without a word."""
    found, paths = layout("a/train", "a/test", "b/train/good", "b/test/cut", "b/extra")
    kept = [paths[index] for index in found.keep]
    assert found.classes == [path[0] for path in kept]
    assert found.held == ["/test" in path for path in kept]
    assert not any("extra" in path for path in kept)
    assert "3 images not used, in extra" in found.notes
    found, paths = layout("a/train", "a/test", "b/train/good", "b/test/cut", split="test")
    assert {paths[index].rsplit("/", 1)[0] for index in found.keep} == {"a/test", "b/test/cut"}
    assert (found.classes, found.held) == (list("aaabbb"), None)
    unlabelled = understand([tuple(path.split("/")) for path in paths], None, "DATA", classes=False)
    assert unlabelled.held == ["/test" in path for path in paths]
    for folders in (("a/train", "a/test", "b/train"), ("a/train", "b/test"), ("a/red", "a/blue", "b/red")):
        found, _ = layout(*folders)
        assert found.held is None
        assert set(found.classes or ()) == {"a", "b"}


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("images", "masks"), "the folder masks is taken for a class"),
        (("train", "train_masks"), "the folder train_masks is taken for a class"),
        (("train/x", "train/y", "train_masks/x", "train_masks/y"), "have a word for a split"),
    ],
)
def test_folders_that_are_hardly_classes_are_warned_of(folders: tuple[str, ...], words: str) -> None:
    found, _ = layout(*folders)
    assert any(words in note for note in found.notes if note.startswith("warning: "))
    assert not any("warning" in note for note in layout("bus", "train", "car")[0].notes)
