"""Classes: the names that folders and columns use for them, and names that are too alike."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from data_helpers import folder_of, opened, parquet_of

from vqvae2.data.errors import DataError
from vqvae2.data.labels import check_classes, resolve_labels


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


@pytest.mark.parametrize("kind", [float, np.float32, np.float64])
def test_whole_numbers_that_are_stored_as_floats(kind: type) -> None:
    """What programs make of whole numbers with gaps."""
    classes, labels = resolve_labels([kind(10), kind(9), kind("nan"), None, kind(9), -kind(1)], None)
    assert (classes, labels is not None and labels.tolist()) == (("9", "10"), [1, 0, -1, -1, 0, -1])
    for odd in ("inf", "0.5"):
        with pytest.raises(DataError, match="expected labels that are names or whole numbers, found"):
            resolve_labels([kind(odd), kind(1)], None)


def test_floats_in_files(tmp_path: Path) -> None:
    numbers = [0.0, 1.0, math.nan, 1.0, None, 0.0]
    root = folder_of(tmp_path / "in", 6)
    names = [f"{number:03d}.png" for number in range(6)]
    (tmp_path / "of in.json").write_text(json.dumps(dict(zip(names, numbers, strict=True))))
    table = parquet_of(tmp_path / "table.parquet", 6, label=numbers)
    for data, options in ((root, {"labels": str(tmp_path / "of in.json")}), (table, {})):
        images = opened(data, tmp_path / f"run of {data.stem}", **options)
        told = [images.classes[label] if label >= 0 else None for label in images.labels]
        assert told == ["0", "1", None, "1", None, "0"]
    for odd in (math.inf, 0.5):
        broken = parquet_of(tmp_path / "b.parquet", 6, label=[*numbers[:5], odd])
        with pytest.raises(DataError, match="expected labels that are names or whole numbers, found"):
            opened(broken, tmp_path / "b")


def test_same_class_twice(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 4, ("Cat", "cat "))
    with pytest.raises(DataError, match="two classes have the same name: 'Cat' and 'cat '"):
        opened(root, tmp_path)
    with pytest.raises(DataError, match="same name"):
        check_classes(["caf\u00e9", "cafe\u0301"])
    check_classes(["a", "b"])
