"""The data source that the documentation adds: its code is run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from data_helpers import config, folder_of, opened, shows

from vqvae2.data import sources
from vqvae2.data.errors import DataError
from vqvae2.data.peek import peek

DOCS = Path(__file__).resolve().parents[2] / "docs"
HEADING = "## A data source of your own\n"


@pytest.fixture(autouse=True)
def csv_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """The documented code is run; the kinds of data are as before when the test ends."""
    monkeypatch.setattr(sources, "_RECOGNISERS", list(sources._RECOGNISERS))
    texts = [path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("extending*.md"))]
    section = next(text.split(HEADING)[1] for text in texts if HEADING in text)
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None
    exec(compile(code.group(1), "docs", "exec"), {})


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Seven images, five of them for training, in two classes; one more is in the folder but not in the file."""
    folder_of(tmp_path / "images", 8)
    lines = [
        f"images/{i:03d}.png,{'cat' if i % 2 else 'dog'},{'test' if i > 4 else 'train'}" for i in range(7)
    ]
    path = tmp_path / "photos.csv"
    path.write_text("\n".join(["file,class,split", *lines]) + "\n")
    return path


def test_names_classes_split_and_pixels_are_those_of_the_file(table: Path, tmp_path: Path) -> None:
    images = opened(table, tmp_path / "run")
    assert images.names == [f"images/{number:03d}.png" for number in range(7)]
    assert images.classes == ("cat", "dog")
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 1, 0, 1, 0, 1]
    assert images.train.tolist() == [0, 1, 2, 3, 4]
    assert images.heldout.tolist() == [5, 6]
    assert all(shows(images, number, number) for number in range(7))


def test_what_is_true_of_every_source_is_true_of_it(table: Path, tmp_path: Path) -> None:
    """The limit, decoding on request, the cache and its identity, and the preview of the size."""
    first = opened(table, tmp_path / "run")
    assert len(opened(table, tmp_path / "few", limit=3)) == 3
    late = opened(table, tmp_path / "late", cache_gb=0)
    assert late.fingerprint == first.fingerprint
    assert all(shows(late, number, number) for number in range(7))
    assert peek(str(table), config(), tmp_path / "run")[:2] == (7, 8)
    table.write_text(table.read_text().replace("cat", "ape"))
    changed = opened(table, tmp_path / "run")
    assert changed.fingerprint != first.fingerprint
    assert changed.classes == ("ape", "dog")


def test_other_data_is_recognised_as_before(table: Path, tmp_path: Path) -> None:
    assert len(opened(table.parent / "images", tmp_path / "run")) == 8
    with pytest.raises(DataError, match="no such folder or file"):
        opened("missing", tmp_path / "run")


def test_without_registration_it_is_no_data(table: Path, tmp_path: Path) -> None:
    del sources._RECOGNISERS[0]
    with pytest.raises(DataError, match=r"cannot read .*found \['.csv'\]"):
        opened(table, tmp_path / "run")
