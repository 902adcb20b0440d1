"""Files of tools/ and experiments/ as modules, and as commands."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def loaded(path: Path) -> ModuleType:
    """A Python file as a module, which processes that are started find by its name."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def run_tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a file of tools/ as a command."""
    words = [sys.executable, str(TOOLS / name), *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False)
