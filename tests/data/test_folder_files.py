"""The one rule of listing: which files of a folder are images, and what is said of the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from data_helpers import encoded, folder_of, noise, opened, parquet_of

from vqvae2.commands.images import image_files
from vqvae2.data.errors import DataError
from vqvae2.data.folder_files import list_folder


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Images, what is hidden, links, and everything that is no image."""
    root = folder_of(tmp_path / "in", 3)
    (root / "Thumbs.db").write_bytes(b"thumbs")
    (root / "note.txt").write_text("hello")
    (root / "logo.svg").write_text("<svg></svg>")
    (root / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    (root / "raw.NEF").write_bytes(b"II*\0" + bytes(100))
    (root / "noending").write_bytes(encoded(noise(4), "JPEG"))
    (root / ".ipynb_checkpoints").mkdir()
    noise(9).save(root / ".ipynb_checkpoints" / "x.png")
    noise(9).save(root / ".hidden.png")
    folder_of(tmp_path / "other", 2)
    (root / "link").symlink_to(tmp_path / "other")
    (root / "self").symlink_to(root)
    (root / "gone.png").symlink_to(tmp_path / "nothing.png")
    (root / "loop.png").symlink_to("loop.png")
    os.mkfifo(root / "pipe.png")
    return root


def test_the_rule(mixed: Path) -> None:
    found = list_folder(mixed)
    names = [found.name(file) for file in found.images]
    assert names == ["000.png", "001.png", "002.png", "link/000.png", "link/001.png", "noending"]
    reasons = dict(found.unread())
    assert reasons["Thumbs.db"] == reasons["note.txt"] == "not an image"
    assert reasons["gone.png"] == "a link to nothing"
    assert reasons["pipe.png"] == "not a regular file"
    assert reasons["logo.svg"] == "SVG: a known format that is not read"
    assert reasons["raw.NEF"] == "camera raw: a known format that is not read"
    assert "heic" in reasons["photo.heic"]
    assert set(reasons) == {
        *("Thumbs.db", "note.txt", "gone.png", "loop.png", "pipe.png"),
        "logo.svg",
        "raw.NEF",
        "photo.heic",
    }


@pytest.mark.parametrize("backwards", [False, True])
def test_a_linked_folder_has_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backwards: bool
) -> None:
    """In whatever order the disk lists them; before, the order decided over the class and the fingerprint."""
    root, there = folder_of(tmp_path / "in", 2, ("sub/cat", "sub/dog")), folder_of(tmp_path / "other", 1)
    for link, target in (("a", root / "sub" / "cat"), ("sub/z", there), ("sub/y", there)):
        (root / link).symlink_to(target)
    real = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(real(path), reverse=backwards))
    found = list_folder(root)
    assert [found.name(file) for file in found.images] == [
        "sub/cat/000.png",
        "sub/dog/001.png",
        "sub/y/000.png",
    ]


def test_tables_beside_images_are_pointed_at(tmp_path: Path) -> None:
    """As in the clone of a data set with two pictures in its description."""
    folder_of(tmp_path / "in" / "assets", 2)
    parquet_of(tmp_path / "in" / "data" / "train.parquet", 3)
    says: list[str] = []
    assert len(opened(tmp_path / "in", tmp_path / "run", says)) == 2
    assert (
        "warning: 1 parquet or tar file beside the images not read, such as data/train.parquet: name it as DATA if it holds "
        "the data"
    ) in says


def test_every_verb_takes_the_same_files(mixed: Path, tmp_path: Path) -> None:
    skipped: list[tuple[str, str]] = []
    files = image_files([mixed], skipped)
    images = opened(mixed, tmp_path / "run")
    assert sorted(images.names) == sorted(file.relative_to(mixed).as_posix() for file in files)
    listed = [
        line.split("\t")[0] for line in (tmp_path / "run" / "data" / "skipped.txt").read_text().splitlines()
    ]
    assert sorted(listed) == sorted(os.path.relpath(name, mixed) for name, _ in skipped)


def test_an_unreadable_folder_is_listed(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "in", 2)
    (root / "shut").mkdir(mode=0o000)
    if os.access(root / "shut", os.R_OK):
        pytest.skip("this user may read everything")
    assert ("shut", "Permission denied") in list_folder(root).skipped


def test_a_path_of_a_table_is_relative_to_its_file_and_stays_below(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder_of(tmp_path / "set" / "images", 3)
    folder_of(tmp_path / "private", 1)
    (tmp_path / "set" / "out.png").symlink_to(tmp_path / "private" / "000.png")
    paths = [
        "images/000.png",
        "images/001.png",
        "../private/000.png",
        str(tmp_path / "private" / "000.png"),
        "out.png",
    ]
    cells = [{"bytes": None, "path": path} for path in paths]
    pq.write_table(pa.table({"image": cells}), tmp_path / "set" / "a.parquet")
    images = opened(tmp_path / "set" / "a.parquet", tmp_path / "1")
    assert (images.names, images.skipped) == (paths[:2], 3)
    assert "leads out of" in (tmp_path / "1" / "data" / "skipped.txt").read_text()
    allowed = ["set/images/000.png", "private/000.png", str(tmp_path / "private" / "000.png")]
    cells = [{"bytes": None, "path": path} for path in allowed]
    pq.write_table(pa.table({"image": cells}), tmp_path / "set" / "b.parquet")
    assert len(opened(tmp_path / "set" / "b.parquet", tmp_path / "2", image_root=str(tmp_path))) == 3
    cells = [{"bytes": None, "path": path} for path in paths]
    pq.write_table(pa.table({"image": cells[:1] * 2}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no usable image"):
        opened(tmp_path / "a.parquet", tmp_path / "3")


def test_hive_folders(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("test", 2)):
        for kind in ("cat", "dog"):
            parquet_of(tmp_path / "in" / f"split={split}" / f"label={kind}" / "part-0.parquet", count)
    images = opened(tmp_path / "in", tmp_path)
    assert (images.classes, len(images.train), len(images.heldout)) == (("cat", "dog"), 6, 4)


def test_a_broken_table_is_told_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The library that reads tables logs errors of its own beside ours."""
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no, not really")
    with pytest.raises(DataError):
        opened(tmp_path / "a.parquet", tmp_path)
    assert capfd.readouterr().err == ""
