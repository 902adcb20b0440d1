"""Exported graphs compute what the package computes: by `torch.export`, and by ONNX in onnxruntime."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from torch.export import Dim
from torch_versions import needs_torch

from vqvae2.codes import Codes, Geometry
from vqvae2.config.models import LevelPriorConfig, PriorConfig
from vqvae2.errors import UserError
from vqvae2.export.modules import Decoder, Encoder, step_module
from vqvae2.export.onnx_files import Part, _prior_parts, export_onnx, parts
from vqvae2.prior.hierarchy import HierarchicalPrior
from vqvae2.run import Run, load

pytestmark = needs_torch(2, 7)

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "onnx_sampling.py"


@pytest.fixture(scope="module")
def model(trained: Path) -> Run:
    """A run whose priors are changed so that they are not nearly uniform: temperature 0 has no near ties."""
    loaded = load(trained, "cpu")
    with torch.no_grad():
        torch.manual_seed(0)
        for parameter in loaded.prior.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return loaded


@pytest.fixture(scope="module")
def exported(model: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its ONNX files."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("onnx") / "files"
    export_onnx(model, out)
    return out


def graph(folder: Path, name: str, **inputs: Any) -> list[np.ndarray]:
    """What a graph returns in onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
    arrays = {key: value.numpy() if isinstance(value, Tensor) else value for key, value in inputs.items()}
    return list(session.run(None, arrays))


def images(n: int) -> Tensor:
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(n)) * 2 - 1


def codes(n: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(n)
    return {
        f"codes_{i}": torch.randint(16, (n, side, side), generator=random) for i, side in enumerate((2, 4))
    }


@pytest.mark.parametrize("n", [1, 5])
def test_images_to_codes_and_back(model: Run, exported: Path, n: int) -> None:
    ours = model.autoencoder.encode(images(n))
    assert [level.shape[1:] for level in ours.levels] == [code.shape[1:] for code in codes(1).values()]
    for expected, found in zip(ours.levels, graph(exported, "encoder", images=images(n)), strict=True):
        assert np.array_equal(expected.numpy(), found)
    (found,) = graph(exported, "decoder", **codes(n))
    assert np.abs(Decoder(model.autoencoder)(*codes(n).values()).numpy() - found).max() < 1e-4


def test_the_example_draws_the_same_grids_at_temperature_zero(
    model: Run, exported: Path, tmp_path: Path
) -> None:
    """Without torch: whole grids of all levels, position by position, by onnxruntime alone."""
    code = f"import runpy, sys; sys.modules['torch'] = None; sys.argv = ['x', {str(exported)!r}, '5', '0']; runpy.run_path({str(EXAMPLE)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ours = model.prior.sample(5, torch.arange(5) % 3, temperature=0.0)
    assert [level.tolist() for level in ours.levels] == json.loads(done.stdout)
    assert len(torch.unique(ours.levels[1])) > 1
    assert (tmp_path / "samples.png").is_file()


def test_the_example_is_short() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").split('"""', 2)[2].splitlines()
    assert len([line for line in lines if line.strip()]) <= 40


def test_the_description_says_how_the_graphs_fit_together(exported: Path) -> None:
    import onnxruntime

    about = json.loads((exported / "model.json").read_text())
    assert sorted(file.name for file in exported.glob("*.onnx")) == about["files"]
    assert about["image"] == [3, 16, 16]
    assert about["classes"] == ["Blue sky", "disc", "stripes"]
    for number, level in enumerate(about["levels"]):
        known = {"labels", "position", "previous", "row", "above", "context", "features", "horizontal"}
        known |= {*level["caches"], *(f"codes_{coarser}" for coarser in range(number))}
        for file in (level["context"], level["row"], level["step"]):
            session = onnxruntime.InferenceSession(exported / file)
            assert {entry.name for entry in session.get_inputs()} <= known
            for entry in session.get_inputs():
                assert "batch" in entry.shape or entry.shape == [1]


def drawn(prior: HierarchicalPrior, batch: int, call: Callable[[Part, list[Tensor]], Any]) -> list[Tensor]:
    """Grids at temperature 0, by the graphs of each level; `call` runs a graph."""
    grids: list[Tensor] = []
    for number in range(prior.geometry.levels):
        level = prior.level(number)
        names = {f"codes_{i}": torch.zeros_like(grid[:2]) for i, grid in enumerate(grids)}
        found = {part.name.split("-")[-1]: part for part in _prior_parts(level, names)}
        values: dict[str, Tensor] = {f"codes_{i}": grid for i, grid in enumerate(grids)}
        values["labels"] = torch.arange(batch) % max(1, prior.classes)
        for part in found.values():
            for name, tensor in part.inputs.items():
                if f"{name}_next" in part.outputs:
                    shape = [
                        batch if axis == part.batch_axes[name] else s for axis, s in enumerate(tensor.shape)
                    ]
                    values[name] = torch.zeros(shape)

        def use(kind: str) -> None:
            if kind in found:  # noqa: B023 - called at once
                part = found[kind]  # noqa: B023
                results = call(part, [values[name] for name in part.inputs])  # noqa: B023
                results = [results] if isinstance(results, Tensor) else results
                names = (name.removesuffix("_next") for name in part.outputs)
                values.update(zip(names, results, strict=True))  # noqa: B023

        use("context")
        row = torch.full((batch, (level.height + 1) * level.width), level.vocabulary)
        for here in range(level.positions):
            values |= {"position": torch.tensor([here]), "row": torch.tensor([here // level.width])}
            values |= {"previous": row[:, here + level.width - 1], "above": row[:, here : here + level.width]}
            if here % level.width == 0:
                use("row")
            use("step")
            row[:, here + level.width] = values["logits"].argmax(1)
        grids.append(row[:, level.width :].reshape(batch, level.height, level.width))
    return grids


def prior_of(kind: str, classes: int, **settings: Any) -> HierarchicalPrior:
    """A small prior with weights that are not zero."""
    torch.manual_seed(1)
    level = LevelPriorConfig(kind=kind, hidden=8, residual=8, layers=2, heads=2, **settings)  # type: ignore[arg-type]
    geometry = Geometry(((2, 3), (4, 6)), (7, 9))
    prior = HierarchicalPrior(PriorConfig(levels=(level, level), classes=classes), geometry).eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
    return prior


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("pixelcnn", {"attention_every": 0}),
        ("pixelcnn", {"attention_every": 1, "kernel": 3}),
        ("transformer", {}),
    ],
)
def test_every_kind_of_step_draws_what_the_prior_draws(
    kind: str, settings: dict[str, Any], classes: int
) -> None:
    prior = prior_of(kind, classes, **settings)
    labels = torch.arange(4) % classes if classes else None
    expected = prior.sample(4, labels, temperature=0.0)
    with torch.no_grad():
        found = drawn(prior, 4, lambda part, inputs: part.module(*inputs))
    assert [level.tolist() for level in expected.levels] == [level.tolist() for level in found]


def test_a_graph_takes_no_label_only_if_its_prior_learnt_it(exported: Path, run: Path) -> None:
    """As sampling without a label is refused; with labels the graphs of both are the same."""
    about = json.loads((exported / "model.json").read_text())
    assert [level["no_label"] for level in about["levels"]] == [3, 3]
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["prior"]["levels"][1]["label_dropout"] = 0.0
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    out, loaded = run / "onnx", load(run, "cpu")
    assert [level["no_label"] for level in export_onnx(loaded, out)["levels"]] == [3, None]
    labels = torch.arange(4)
    graph(out, "prior-0-context", labels=labels)
    (found,) = graph(out, "prior-1-context", labels=labels[:3], codes_0=codes(3)["codes_0"])
    context = loaded.prior.level(1).context((codes(3)["codes_0"],), labels[:3])
    assert context is not None
    assert np.allclose(context.detach().numpy(), found, atol=1e-5)
    with pytest.raises(Exception, match="out of data bounds"):
        graph(out, "prior-1-context", labels=labels, codes_0=codes(4)["codes_0"])


def test_torch_export_takes_encode_decode_and_a_step(model: Run) -> None:
    batch = Dim("batch")
    autoencoder = model.autoencoder
    encode = torch.export.export(Encoder(autoencoder), (images(2),), dynamic_shapes=({0: batch},))
    codes_of = tuple(codes(2).values())
    decode = torch.export.export(
        Decoder(autoencoder), codes_of, dynamic_shapes=(tuple({0: batch} for _ in codes_of),)
    )
    for n in (1, 3):
        ours = autoencoder.encode(images(n))
        assert all(map(torch.equal, ours.levels, encode.module()(images(n))))
        assert torch.allclose(autoencoder.decode(ours), decode.module()(*ours.levels), atol=1e-6)
    step = next(part for part in parts(model) if part.name == "prior-0-step")
    with torch.no_grad():
        program = torch.export.export(step.module, tuple(step.inputs.values()))
        inputs = [torch.randn_like(x) if x.is_floating_point() else x + 1 for x in step.inputs.values()]
        for one, other in zip(step.module(*inputs), program.module()(*inputs), strict=True):
            assert torch.allclose(one, other, atol=1e-6)


def test_what_is_not_trained_is_left_out(half: Path) -> None:
    assert [part.name for part in parts(load(half, "cpu"))] == ["encoder", "decoder"]


def test_both_decoders_are_exported(sharpened: Path) -> None:
    both = load(sharpened, "cpu")
    found = {part.name: part.module for part in parts(both)}
    for name, kind in (("decoder", "plain"), ("decoder-sharp", "sharp")):
        expected = both.decoder(kind).decode(Codes(tuple(codes(2).values())))  # type: ignore[arg-type]
        assert torch.equal(found[name](*codes(2).values()), expected)


def test_a_kind_of_ones_own_is_refused() -> None:
    prior = prior_of("pixelcnn", 0).level(0)

    class Own(torch.nn.Module):
        config = prior.config

    with pytest.raises(UserError, match="only pixelcnn and transformer"):
        step_module(Own())  # type: ignore[arg-type]


def _refused(**_: Any) -> Any:
    """As in a folder that is read-only."""
    raise PermissionError(errno.EACCES, "Permission denied")


def test_mistakes(
    trained: Path, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    said = command("export", trained, "--onnx", tmp_path / "full")
    assert (said.code, "is not empty" in said.err) == (2, True)
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.TemporaryDirectory", _refused)
        patch.setattr("importlib.util.find_spec", lambda name: name)
        said = command("export", trained, "--onnx", tmp_path / "out")
    assert said.code == 2
    assert said.err == f"vqvae2: cannot write {tmp_path / 'out'}: Permission denied\n"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = command("export", trained, "--onnx", tmp_path / "out")
    assert (said.code, "pip install 'vqvae2[onnx]'" in said.err) == (2, True)
    assert not (tmp_path / "out").exists()
