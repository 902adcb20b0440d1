"""After a kill the same command ends with the same files; `score` and `reconstruct` keep what is done, `complete` begins again."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from vqvae2.commands import images, reconstruct, score
from vqvae2.commands.complete import CompletionRequest, complete
from vqvae2.errors import UserError
from vqvae2.files.atomic import FileError, write_json
from vqvae2.files.parts import cut
from vqvae2.run import Run, load


class KilledError(BaseException):
    """Not an `Exception`, so that no ordinary handler catches it, like a signal."""


def killing(function: Callable[..., Any], at: int | None, calls: list[int]) -> Callable[..., Any]:
    """The function, its calls counted, and killed at one of them."""

    def counted(*args: Any, **kwargs: Any) -> Any:
        if len(calls) == at:
            raise KilledError
        calls.append(1)
        return function(*args, **kwargs)

    return counted


@pytest.fixture(scope="module")
def files(pictures: Path) -> list[Path]:
    """Five images, which make three blocks of two."""
    return sorted(pictures.rglob("*.png"))[:5]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "cut", lambda count, size: cut(count, min(size, 2)))


def written(folder: Path) -> dict[str, bytes]:
    """The content of every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_score(trained: Path, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, log_prob = load(trained), Run.log_prob
    maps = tmp_path / "maps"

    def call(at: int | None, name: str = "killed.json", **options: Any) -> int:
        calls: list[int] = []
        monkeypatch.setattr(Run, "log_prob", killing(log_prob, at, calls))
        with suppress(KilledError):
            score.score(run, files, out=tmp_path / name, bits_map=maps, **options)
        return len(calls)

    assert call(None, "whole.json") == 3
    expected = written(maps)
    assert call(2) == 2
    assert [path.suffix for path in (tmp_path / "killed.json.parts").iterdir()] == [".json", ".json"]
    assert call(None) == 1, "two blocks were done"
    assert json.loads((tmp_path / "killed.json").read_text()) == json.loads(
        (tmp_path / "whole.json").read_text()
    )
    assert written(maps) == expected
    assert not (tmp_path / "killed.json.parts").exists()
    call(2)
    next(maps.glob("*.png")).unlink()
    assert call(None) == 2, "a block whose map is gone is done again"
    assert written(maps) == expected
    call(2)
    for kept in (tmp_path / "killed.json.parts").iterdir():
        kept.write_text("{}")
    assert call(None) == 3, "what is damaged is done again"
    call(2)
    assert call(None, label="disc") == 3, "what another request kept is not used"


def test_reconstruct(
    trained: Path, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, usual = load(trained), reconstruct._reconstruct

    def call(at: int | None, name: str) -> tuple[int, list[dict[str, Any]]]:
        calls: list[int] = []
        items: list[dict[str, Any]] = []
        monkeypatch.setattr(reconstruct, "_reconstruct", killing(usual, at, calls))
        with suppress(KilledError):
            items = reconstruct.reconstruct(run, files, tmp_path / name)
        return len(calls), items

    _, whole = call(None, "whole")
    assert call(3, "killed") == (3, [])
    count, killed = call(None, "killed")
    assert count == 2, "three images were done"
    assert written(tmp_path / "killed") == written(tmp_path / "whole")
    for one, other in zip(whole, killed, strict=True):
        assert [Path(one.pop(key)).name for key in ("file", "levels")] == [
            Path(other.pop(key)).name for key in ("file", "levels")
        ]
        assert one == other


@pytest.mark.parametrize("fewer", [False, True])
@pytest.mark.parametrize("twice", [False, True])
def test_complete(
    twice: bool,
    fewer: bool,
    trained: Path,
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The images of the killed command are taken for its own, those beyond a smaller number too, also after two kills."""
    run, usual = load(trained), images.save_picture

    def call(name: str, n: int, at: int | None = None) -> None:
        monkeypatch.setattr(images, "save_picture", killing(usual, at, []))
        with suppress(KilledError):
            complete(run, files[0], tmp_path / name, CompletionRequest(None, 1, n))

    call("killed", 5, 4)
    if twice:
        call("killed", 5, 1)
    assert len([*(tmp_path / "killed").glob("0*.png")]) == (1 if twice else 4)
    n = 2 if fewer else 5
    call("killed", n)
    call("whole", n)
    found, expected = written(tmp_path / "killed"), written(tmp_path / "whole")
    assert found.keys() == expected.keys()
    assert [name for name in found if name.endswith(".png") and found[name] != expected[name]] == []
    assert "begun" not in json.loads(found["completions.json"])


def test_a_link_for_the_kept_results_is_refused(trained: Path, files: list[Path], tmp_path: Path) -> None:
    """It may lead to files of the user, which would be taken for results of another command and removed."""
    run, mine = load(trained), tmp_path / "mine"
    mine.mkdir()
    (mine / "a.json").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".parts").symlink_to(mine)
    (tmp_path / "scores.json.parts").symlink_to(mine)
    with pytest.raises(FileError, match="is a link"):
        reconstruct.reconstruct(run, files, tmp_path / "out")
    with pytest.raises(FileError, match="is a link"):
        score.score(run, files, out=tmp_path / "scores.json")
    assert (mine / "a.json").read_text() == "mine"


def test_a_folder_as_the_file_of_scores_is_refused_at_once(
    trained: Path, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Run, "log_prob", lambda *_: pytest.fail("scored before"))
    for out in (Path(), tmp_path):
        with pytest.raises(UserError, match="is a folder: expected a file"):
            score.score(load(trained), files, out=out)
    with pytest.raises(FileError, match=r"cannot write \.: Is a directory"):
        write_json(".", {})
