"""The notebooks run from top to bottom, and what is stored in them is small, whole and of the kind that a run gives."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))

from test_documentation import commands, fault

import vqvae2

# What a test does less of than the notebook: the text of a cell, and what is run in its place.
LESS = {
    "train_on_a_folder": {
        "train_autoencoder.steps=200": "train_autoencoder.steps=12",
        "train_prior.*.steps=80": "train_prior.*.steps=2",
        "run.sample(10,": "run.sample(1,",
    },
    "sample_complete_score": {
        "emoji.sample(18, seed=1)": "emoji.sample(2, seed=1)",
        "clothing.sample(6,": "clothing.sample(1,",
        "emoji.sample(8,": "emoji.sample(1,",
        "emoji.complete(kept, 4,": "emoji.complete(kept, 1,",
        "images[::4]": "images[::20]",
    },
    "look_into_the_codes": {},
}

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells with code."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def kinds(cell: dict[str, Any]) -> set[str]:
    """What a cell gives: "image" for a value that is shown as an image, the name of a stream for text, "error"."""
    found = set()
    for output in cell["outputs"]:
        if output["output_type"] == "execute_result":
            found.add("image" if {"image/png", "image/jpeg"} & set(output["data"]) else "text")
        else:
            found.add(output.get("name", output["output_type"]))
    return found - {"stderr"}  # warnings of other packages


def test_there_are_three() -> None:
    assert len(NOTEBOOKS) == 3


@every_notebook
def test_what_is_stored(path: Path) -> None:
    """All cells ran, in order and without an error; no file is large, and none names a folder of a machine."""
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert len(text) < 600_000
    assert [cell["execution_count"] for cell in cells(notebook)] == list(range(1, len(cells(notebook)) + 1))
    assert all("error" not in kinds(cell) for cell in cells(notebook))
    assert not re.search(r"/(tmp|home|root|work)/", text)


@every_notebook
def test_commands_have_their_options(path: Path) -> None:
    """Also those that the text mentions."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    lines = [line for cell in notebook["cells"] for line in "".join(cell["source"]).splitlines()]
    found = commands([re.sub(r"^!\{python\} -m|2>&1.*", "", line).strip() for line in lines])
    found += commands(re.findall(r"`([^`]+)`", "\n".join(lines)))
    assert not [reason for line in found if (reason := fault(line))]


@pytest.mark.slow
@every_notebook
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell gives the kinds of output that are stored, with fewer steps and images; the kernel imports the package that is tested."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: it executes the notebooks")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: the notebooks run in it")
    import nbformat

    source = str(Path(vqvae2.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(path, 4)
    stored = [kinds(cell) for cell in cells(notebook)]
    for usual, less in LESS[path.stem].items():
        assert any(usual in cell["source"] for cell in cells(notebook)), usual
        for cell in cells(notebook):
            cell["source"] = cell["source"].replace(usual, less)
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    assert [kinds(cell) for cell in cells(notebook)] == stored
