"""Where the images of a run are found again, and what counts as the same images."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from data_helpers import config, encoded, folder_of, noise, opened, parquet_of, tar_of

from vqvae2.data.errors import DataError
from vqvae2.data.recorded import find_source, open_other, open_source, same_source, source_record


def test_the_spelling_and_the_times_are_no_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_of(tmp_path / "pics", 12, ("a", "b"))
    first = opened(root, tmp_path / "run").fingerprint
    monkeypatch.chdir(tmp_path)
    copy = Path(shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile))
    os.utime(copy / "a" / "000.png", (1, 1))
    for data in ("pics", "pics/", "./pics", "copy", copy, f"../{tmp_path.name}/pics"):
        assert opened(data, tmp_path / "other").fingerprint == first
    changed = encoded(noise(99))
    (copy / "a" / "000.png").write_bytes(changed)
    assert opened(copy, tmp_path / "other").fingerprint != first


@pytest.mark.parametrize("kind", ["same size", "renamed", "one more"])
def test_other_contents_are_others(kind: str, tmp_path: Path) -> None:
    root = folder_of(tmp_path / "pics", 6)
    first = opened(root, tmp_path / "run").fingerprint
    path = root / "003.png"
    if kind == "same size":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif kind == "renamed":
        path.rename(root / "new.png")
    else:
        shutil.copy(path, root / "new.png")
    assert opened(root, tmp_path / "run").fingerprint != first


@pytest.mark.parametrize("make", [parquet_of, tar_of])
def test_tables_are_known_by_contents(make: Any, tmp_path: Path) -> None:
    path = make(tmp_path / f"a.{'tar' if make is tar_of else 'parquet'}", 6)
    first = opened(path, tmp_path / "run").fingerprint
    os.utime(path, (1, 1))
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(path, tmp_path / "elsewhere" / path.name)
    assert opened(moved, tmp_path / "run").fingerprint == first


def test_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "here"
    folder_of(here / "pics", 4)
    (here / "runs").mkdir()
    monkeypatch.chdir(here)
    record = source_record("pics", Path("runs/r"))
    assert record == {"source": str(here / "pics"), "source_from_run": "../../pics"}
    monkeypatch.chdir(tmp_path)
    assert find_source(record, Path("here/runs/r")) == str(here / "pics")
    for spelled in ("here/pics", "here/pics/", str(here / "pics"), "here/../here/pics"):
        assert same_source(spelled, record, Path("here/runs/r"))
    assert not same_source("here", record, Path("here/runs/r"))
    here.rename(tmp_path / "there")  # data and run together
    assert find_source(record, Path("there/runs/r")) == str(tmp_path / "there" / "pics")
    shutil.rmtree(tmp_path / "there" / "pics")
    assert find_source(record, Path("there/runs/r")) is None


@pytest.mark.parametrize("name", ["emoji64", "owner/name"])
def test_names_of_data_sets_stay_names(name: str, tmp_path: Path) -> None:
    assert source_record(name, tmp_path) == {"source": name}
    assert find_source({"source": name}, tmp_path) == name


def test_patterns_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet_of(tmp_path / "part-0.parquet", 3)
    monkeypatch.chdir(tmp_path)
    record = source_record("part-{0..1}.parquet", tmp_path / "run")
    assert record["source"] == str(tmp_path / "part-{0..1}.parquet")
    assert find_source(record, tmp_path / "run") == record["source"]


def test_decoded_copies_stand_for_images_that_are_gone(tmp_path: Path) -> None:
    root, run = folder_of(tmp_path / "pics", 6), tmp_path / "run"
    images = opened(root, run)
    record = {**source_record(str(root), run), "fingerprint": images.fingerprint}
    shutil.rmtree(root)
    says: list[str] = []
    kept = open_source(record, run, config(), run / "data", run / "other", 0, says.append)
    assert torch.equal(kept.pixels(range(6)), images.pixels(range(6)))
    assert "the decoded images in" in says[0]
    with pytest.raises(DataError, match="any more: name them with --data"):
        open_source(
            {**record, "fingerprint": "0" * 64}, run, config(), run / "data", run / "other", 0, says.append
        )


def test_images_that_changed_do_not_take_the_place_of_the_runs_copies(tmp_path: Path) -> None:
    root, run = folder_of(tmp_path / "pics", 6), tmp_path / "run"
    images = opened(root, run)
    record = {**source_record(str(root), run), "fingerprint": images.fingerprint}
    before = {path: path.read_bytes() for path in (run / "data").iterdir()}
    noise(7).save(root / "new.png")
    says: list[str] = []
    found = open_source(record, run, config(), run / "data", tmp_path / "other", 0, says.append)
    assert len(found.names) == 7
    assert any("have changed since the training" in text for text in says)
    assert {path: path.read_bytes() for path in (run / "data").iterdir()} == before
    assert (tmp_path / "other" / "index.json").exists()
    (root / "new.png").unlink()
    again = open_source(record, run, config(), run / "data", tmp_path / "third", 0, says.append)
    assert torch.equal(again.pixels(range(6)), images.pixels(range(6)))
    assert not (tmp_path / "third").exists()


def test_other_images_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    from vqvae2.data.images import open_images

    root = folder_of(tmp_path / "pics", 6)
    opened(root, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run" / "data").iterdir()}
    noise(7).save(root / "new.png")

    def refuse(fingerprint: str) -> None:
        raise DataError(f"others: {len(fingerprint)}")

    with pytest.raises(DataError, match="others: 64"):
        open_images(str(root), config(), tmp_path / "run" / "data", say=lambda text: None, check=refuse)
    assert {path: path.read_bytes() for path in (tmp_path / "run" / "data").iterdir()} == before


def test_a_folder_named_as_the_embedded_set_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the run folder of `vqvae2 train emoji64 --run emoji64`; `locate` takes the embedded set."""
    monkeypatch.chdir(tmp_path)
    folder_of(tmp_path / "emoji64", 2)
    record = source_record("emoji64", Path("emoji64"))
    assert record == {"source": "emoji64"}
    assert find_source(record, Path("emoji64")) == "emoji64"
    assert same_source("emoji64", record, Path("emoji64"))
    assert not same_source("emoji64", {"source": str(tmp_path / "emoji64")}, Path("emoji64"))
    beside = source_record("./emoji64", Path("run"))
    assert find_source({**beside, **record}, Path("run")) == "emoji64"  # its place is of earlier data


def test_decoded_copies_of_a_named_data_set_are_not_called_gone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    images = opened(folder_of(tmp_path / "pics", 6), run)
    record = {"source": "owner/name", "fingerprint": images.fingerprint}
    says: list[str] = []
    open_source(record, run, config(), run / "data", run / "other", 0, says.append)
    assert says == [f"the decoded images in {run / 'data'} are used"]


@pytest.mark.parametrize(
    ("options", "dropped"),
    [
        ({"limit": 3}, ""),
        ({"label_column": "breed"}, "data.label_column=breed"),
        ({"split": "other"}, "data.split=other"),
        ({"image_column": "scan", "label_column": "breed"}, "data.label_column=breed"),
        (
            {"limit": 3, "split": "other", "label_column": "breed"},
            "data.label_column=breed, data.split=other",
        ),
    ],
)
def test_settings_of_the_own_images_do_not_hinder_others(
    options: dict[str, Any], dropped: str, tmp_path: Path
) -> None:
    root = folder_of(tmp_path / "pics", 8, ("a", "b"))
    says: list[str] = []
    work = tmp_path / "work"
    images = open_other(str(root), config(**options), work, seed=0, say=says.append, both=False)
    assert (len(images), images.classes) == (8, ("a", "b"))
    assert [line.split(",")[0] for line in says if "does not count" in line] == (
        [f"of the run, {dropped}".split(",")[0]] if dropped else []
    )
    assert dropped in "\n".join(says)


def test_settings_that_fit_other_images_count(tmp_path: Path) -> None:
    path = parquet_of(tmp_path / "a.parquet", 6, breed=list("xyxyxy"), split=["train"] * 4 + ["test"] * 2)
    chosen = config(split="test", label_column="breed", image_column="scan")
    says: list[str] = []
    images = open_other(str(path), chosen, tmp_path / "work", seed=0, say=says.append, both=False)
    assert (len(images), images.classes) == (2, ("x", "y"))
    assert (
        "of the run, data.image_column=scan does not count, because these images have no such thing" in says
    )


def test_a_limit_counts_for_the_own_images_in_another_place(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "pics", 8)
    own = opened(root, tmp_path / "run", limit=3)
    root = root.rename(tmp_path / "moved")
    for fingerprint, count in ((own.fingerprint, 3), ("0" * 64, 8)):
        images = open_other(
            str(root),
            config(limit=3),
            tmp_path / str(count),
            seed=0,
            say=lambda text: None,
            own=fingerprint,
        )
        assert len(images) == count
