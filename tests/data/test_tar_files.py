"""Tars as people have them: any formats, dots in names, folders, labels as text, compressed, damaged."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import config, encoded, noise, opened, shows

from vqvae2.data import tar_files, tar_members
from vqvae2.data.decoding import decode_many
from vqvae2.data.errors import DataError
from vqvae2.data.listing import Span, contents
from vqvae2.data.table_files import recognise_files


def tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar of these members, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def png(number: int) -> bytes:
    return encoded(noise(number))


def labels_of(images: Any) -> list[str]:
    return [images.classes[label] for label in images.labels]


def test_jpg_and_png_in_turn(tmp_path: Path) -> None:
    names = {
        f"{n:02d}.{'png' if n % 2 else 'bmp'}": encoded(noise(n), "PNG" if n % 2 else "BMP") for n in range(8)
    }
    images = opened(tar(tmp_path / "a.tar", names), tmp_path)
    assert (len(images), images.skipped) == (8, 0)
    assert all(shows(images, n, n) for n in range(8))


def test_dots_in_names(tmp_path: Path) -> None:
    images = opened(tar(tmp_path / "a.tar", {f"img.v1.{n:03d}.png": png(n) for n in range(5)}), tmp_path)
    assert images.names == [f"img.v1.{n:03d}" for n in range(5)]


def test_several_images_per_sample(tmp_path: Path) -> None:
    members = {f"{n}.{kind}": png(n + more) for n in range(4) for kind, more in (("png", 0), ("mask.png", 9))}
    says: list[str] = []
    images = opened(tar(tmp_path / "a.tar", members), tmp_path, says)
    assert images.names == list("0123")
    assert all(shows(images, n, n) for n in range(4))
    assert any("mask.png is not (data.image_column)" in line for line in says)
    assert shows(opened(tmp_path / "a.tar", tmp_path / "2", image_column="mask.png"), 1, 10)


def test_labels_as_text_and_numbers(tmp_path: Path) -> None:
    for kind, values in (("words", ["cat", "dog"]), ("numbers", ["9", "10"])):
        members = {}
        for n in range(6):
            members |= {f"{n}.png": png(n), f"{n}.cls": f"{values[n % 2]}\n".encode()}
        images = opened(tar(tmp_path / f"{kind}.tar", members), tmp_path / kind)
        assert images.classes == tuple(values)
        assert labels_of(images) == values * 3


def test_labels_in_json(tmp_path: Path) -> None:
    members = {}
    for n in range(6):
        facts = {"label": "ab"[n % 2], "colour": "red" if n < 3 else "blue"}
        members |= {f"{n}.png": png(n), f"{n}.json": json.dumps(facts).encode()}
    path = tar(tmp_path / "a.tar", members)
    assert labels_of(opened(path, tmp_path / "1")) == list("ababab")
    assert labels_of(opened(path, tmp_path / "2", label_column="colour")) == ["red"] * 3 + ["blue"] * 3
    assert opened(path, tmp_path / "3", label_column="none").classes == ()
    with pytest.raises(DataError, match="no column 'size': the members beside the images have colour, label"):
        opened(path, tmp_path / "4", label_column="size")


def test_folders_inside_are_classes_and_splits(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {f"{c}/{n}.png": png(n) for n, c in enumerate("xyxyxy")})
    images = opened(path, tmp_path / "1")
    assert labels_of(images) == list("xyxyxy")
    split = {f"data/{s}/{c}/{n}.png": png(n) for s in ("train", "test") for n, c in enumerate("xyxy")}
    images = opened(tar(tmp_path / "b.tar", split), tmp_path / "2")
    assert (labels_of(images), len(images.train), len(images.heldout)) == (list("xyxyxyxy"), 4, 4)
    assert len(opened(tmp_path / "b.tar", tmp_path / "3", split="test")) == 4


def test_compressed(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {f"{n}.png": png(n) for n in range(6)})
    for name in ("b.tar.gz", "c.tgz"):
        (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
        images = opened(tmp_path / name, tmp_path / name[0])
        assert (len(images), images.skipped) == (6, 0)
        assert all(shows(images, n, n) for n in range(6))
        assert not (tmp_path / name[0] / "data" / "table").exists()
    (tmp_path / "d.tar.gz").write_bytes((tmp_path / "b.tar.gz").read_bytes()[:-500])
    images = opened(tmp_path / "d.tar.gz", tmp_path / "d")
    assert images.skipped >= 1
    assert "cut off" in (tmp_path / "d" / "data" / "skipped.txt").read_text()
    (tmp_path / "e.tar.gz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="cannot read"):
        opened(tmp_path / "e.tar.gz", tmp_path / "e")


def test_a_compressed_tar_is_not_unpacked_over_one_that_is_read(tmp_path: Path) -> None:
    """Such as `evaluate` beside a training whose images are not kept; before, the training found broken images."""
    path = tar(tmp_path / "a.tar", {f"{n}.png": png(n) for n in range(6)})
    path.with_suffix(".tgz").write_bytes(gzip.compress(path.read_bytes()))
    first = opened(tmp_path / "a.tgz", tmp_path, cache_gb=0)
    (plain,) = (tmp_path / "data" / "table").glob("*.tar")
    written = plain.stat().st_mtime_ns
    again = opened(tmp_path / "a.tgz", tmp_path, cache_gb=0)
    assert plain.stat().st_mtime_ns == written
    assert all(shows(images, n, n) for images in (first, again) for n in range(6))
    path.with_suffix(".tgz").write_bytes(
        gzip.compress(tar(path, {f"{n}.png": png(9 - n) for n in range(6)}).read_bytes())
    )
    assert shows(opened(tmp_path / "a.tgz", tmp_path, cache_gb=0), 0, 9)
    assert len([*(tmp_path / "data" / "table").glob("*.tar")]) == 1


def test_unpacking_is_seen_when_it_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar(tmp_path / "a.tar", {f"{n}.png": png(n) for n in range(6)})
    path.with_suffix(".tgz").write_bytes(gzip.compress(path.read_bytes()))
    usual = tar_files._unpack
    seen: list[Path] = []

    def unpack(file: Path, target: Path) -> None:
        usual(file, target)
        seen.extend(target.parent.glob("*.tar"))

    monkeypatch.setattr(tar_files, "_unpack", unpack)
    assert len(opened(tmp_path / "a.tgz", tmp_path, cache_gb=0)) == 6
    assert seen == []


def test_what_is_no_image_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as file:
        for name, data in (
            ("0.png", png(0)),
            ("1.png", png(1)),
            ("notes.md", b"hello"),
            ("._0.png", b"x"),
            ("2", png(2)),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("3.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    images = opened(path, tmp_path)
    assert images.names == ["0", "1", "2"]
    listed = dict(line.split("\t") for line in (tmp_path / "data" / "skipped.txt").read_text().splitlines())
    assert listed == {"notes.md": "not an image", "3.png": "a link, or not a regular file, inside a tar"}


@pytest.mark.parametrize("seed", range(3))
def test_damage_is_an_error_or_is_listed(seed: int, tmp_path: Path) -> None:
    """Whatever byte changes: as many images and skipped files as there are, or one line about damage."""
    data = bytearray(tar(tmp_path / "a.tar", {f"{n}.png": png(n) for n in range(6)}).read_bytes())
    rng = np.random.default_rng(seed)
    for number in range(15):
        broken = data.copy()
        broken[rng.integers(len(data) - 1024)] ^= 1 << rng.integers(8)
        path = tmp_path / f"{number}.tar"
        path.write_bytes(broken)
        try:
            images = opened(path, tmp_path / str(number))
        except DataError:
            continue
        text = (tmp_path / str(number) / "data" / "skipped.txt").read_text() if images.skipped else ""
        assert len(images) + images.skipped == 6 or "damaged" in text or "cut off" in text


def test_tars_that_are_put_together_are_noticed(tmp_path: Path) -> None:
    """`cat a.tar b.tar` gives a file of which only the first tar is read, as `tar` itself does."""
    one = tar(tmp_path / "a.tar", {f"{n}.png": png(n) for n in range(4)})
    two = tar(tmp_path / "b.tar", {f"{n}.png": png(n) for n in range(4, 6)})
    one.write_bytes(one.read_bytes() + two.read_bytes())
    images = opened(one, tmp_path)
    assert (len(images), images.skipped) == (4, 1)
    assert "several tars in one file" in (tmp_path / "data" / "skipped.txt").read_text()


def test_the_bytes_of_a_tar_are_read_where_they_are_decoded(tmp_path: Path) -> None:
    """The training process read each image of a tar and sent it through a pipe; a place of some bytes goes there now."""
    members = {f"{name}/{number}.png": png(number) for number, name in enumerate("abab")}
    file, settings = tar(tmp_path / "a.tar", members), config()
    source = recognise_files(str(file), tmp_path)
    assert source is not None
    listed = source.list_images(settings, tmp_path)
    order = [3, 0, 2, 2]
    payloads = listed.payloads(order)
    assert all(isinstance(payload, Span) for payload in payloads)
    found = decode_many(payloads, settings).pixels
    assert all(np.array_equal(pixels, noise(number)) for pixels, number in zip(found, order, strict=True))
    mixed = contents([Path("x"), payloads[0], payloads[1], None, b"y"])
    assert mixed == [Path("x"), png(3), png(0), None, b"y"]
    file.unlink()
    with pytest.raises(DataError, match=r"cannot read .*a\.tar: No such file"):
        decode_many(listed.payloads([0]), settings)


def test_the_headers_of_tars_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start of each process walked through all of them. A tar that was written again is walked through again."""
    asked: list[int] = []
    usual = tar_members.members_of

    def noted(tars: Any, shard: int, label_column: str | None) -> Any:
        asked.append(shard)
        return usual(tars, shard, label_column)

    monkeypatch.setattr(tar_members, "members_of", noted)
    members = {f"{name}/{number}.png": png(number) for number, name in enumerate("abab")}
    for number in range(3):
        tar(tmp_path / "in" / f"{number}.tar", {f"{number}{name}": data for name, data in members.items()})
    first = opened(tmp_path / "in", tmp_path, cache_gb=0)
    assert sorted(asked) == [0, 1, 2]
    second = opened(tmp_path / "in", tmp_path, cache_gb=0)
    assert len(asked) == 3
    assert (first.names, first.classes, first.fingerprint) == (
        second.names,
        second.classes,
        second.fingerprint,
    )
    assert np.array_equal(first.labels, second.labels)
    assert all(shows(second, index, int(Path(second.names[index]).stem)) for index in range(12))
    names = [*members][::-1]  # the same bytes in other places, and as many of them
    tar(tmp_path / "in" / "1.tar", {f"1{name}": members[name] for name in names})
    third = opened(tmp_path / "in", tmp_path, cache_gb=0)
    assert len(asked) == 6
    assert all(shows(third, index, int(Path(third.names[index]).stem)) for index in range(12))
    (tmp_path / "data" / "table" / "tars.json").write_text("{")
    opened(tmp_path / "in", tmp_path, cache_gb=0)
    assert len(asked) == 9, "a damaged index is made anew"


def many(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar of these members in order, of which several may have the same name."""
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("first", ["one/0", "scan.v2.0", "two.0"])
def test_members_of_one_name_are_told(first: str, tmp_path: Path) -> None:
    """One image was dropped without a word; the class came from the last member and the pixels from the first."""
    others = [(f"{n}{end}", data) for n in range(1, 6) for end, data in ((".png", png(n)), (".cls", b"1"))]
    own = [(f"{first}.png", png(0)), (f"{first}.cls", b"1"), (f"{first}.png", png(7))]
    for again, told in ((b"1", "1"), (b"2", None)):
        file = many(tmp_path / "a.tar", [*own, (f"{first}.cls", again), *others])
        images = opened(file, tmp_path)
        assert len(images) == 6
        index = next(index for index in range(6) if shows(images, index, 0))
        label = images.labels[index]
        assert (None if label < 0 else images.classes[label]) == told
        skipped = (tmp_path / "data" / "skipped.txt").read_text()
        assert f"{first}.png\tanother image of the same name" in skipped
        assert ("tell different classes" in skipped) == (told is None)


def test_endings_that_differ_in_case_are_told(tmp_path: Path) -> None:
    members = [(f"{n}.png", png(n)) for n in range(4)]
    images = opened(many(tmp_path / "a.tar", [*members, ("2.PNG", png(9))]), tmp_path)
    assert (len(images), images.skipped) == (4, 1)
    assert "2.PNG\tanother image of the same name" in (tmp_path / "data" / "skipped.txt").read_text()


def test_broken_json_beside_an_image_is_told(tmp_path: Path) -> None:
    broken = {0: b'{"label":', 1: b"[3]", 2: b" " * (1 << 20) + b'{"label": 1}', 3: b"\xff"}
    texts = {n: broken.get(n, b'{"label": 1}') for n in range(6)}
    says: list[str] = []
    file = tar(
        tmp_path / "a.tar",
        {f"{n}{end}": data for n in texts for end, data in ((".png", png(n)), (".json", texts[n]))},
    )
    images = opened(file, tmp_path, says)
    assert len(images) == 6
    assert sorted(images.labels.tolist()) == [-1, -1, -1, -1, 0, 0]
    listed = (tmp_path / "data" / "skipped.txt").read_text()
    told = [f"{n}.json" in listed for n in range(6)]
    assert told == [True, False, False, True, False, False], (
        "a list, or more than is read, may be no class at all"
    )
    assert any("(0.json: damaged" in line for line in says)
