"""A run as ONNX files: encoder, decoders, and of each level's prior the context, the row's start and one step.

RUN --torch.export--> graphs with a dynamic batch --> DIR/*.onnx, and DIR/model.json, which says how they fit together

An output NAME_next is the input NAME of the next call, so a caller keeps one dictionary of arrays and passes to each graph what
it asks for. `docs/export.md` describes the loop.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqvae2.errors import UserError
from vqvae2.export.modules import Context, Decoder, Encoder, RowStart, has_context, no_label, step_module
from vqvae2.files.atomic import reason, write_json
from vqvae2.files.output import make_folder
from vqvae2.files.progress import Reporter
from vqvae2.prior.level import LevelPrior
from vqvae2.prior.pixelcnn import PixelCNN
from vqvae2.run import Run

_NEEDED = ("onnx", "onnxscript")
_BATCH = 2  # of the inputs that are traced; a batch of 1 would be taken for a constant


@dataclass(frozen=True)
class Part:
    """One graph.

    Attributes:
        name: of the file, without ".onnx".
        module: what is exported.
        inputs: by name, of a batch of `_BATCH`.
        outputs: their names.
        batch_axes: by input, the axis that is the batch; an input without one has a fixed shape.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: list[str]
    batch_axes: dict[str, int]


def export_onnx(run: Run, out: Path, reporter: Reporter | None = None) -> dict[str, Any]:
    """Write the ONNX files of a run. Priors that are not trained yet are left out.

    Args:
        run: its autoencoder is trained.
        out: a folder that does not exist or is empty.
        reporter: shows the progress; None shows nothing.

    Returns:
        The content of model.json.

    Raises:
        RunError: the autoencoder is not trained yet.
        UserError: `onnx` or `onnxscript` is not installed, or torch is older than 2.7; `out` is not empty, or a kind of prior cannot be exported;
            `out` cannot be written.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} is not installed: pip install 'vqvae2[onnx]'")
    # without it, the search for the nearest code could not become plain operators
    if not hasattr(torch.compiler, "is_exporting"):
        raise UserError(f"ONNX needs torch 2.7 or newer, and this is {torch.__version__}")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out} is not empty; name a new folder")
    found = list(parts(run))
    make_folder(out.parent)
    reporter = reporter or Reporter(quiet=True)
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name[:99]}.") as folder:
            with reporter.track("export", len(found), unit="graphs") as tracker:
                for number, part in enumerate(found, 1):
                    _write(part, Path(folder))
                    tracker.update(number, part.name)
            about = describe(run, found)
            write_json(Path(folder) / "model.json", about)
            make_folder(out)
            for file in Path(folder).iterdir():
                shutil.move(file, out / file.name)
    except OSError as error:
        raise UserError(f"cannot write {out}: {reason(error)}") from error
    return about


def parts(run: Run) -> Iterator[Part]:
    """The graphs of a run, on the device of the run, in float32.

    Raises:
        RunError: the autoencoder is not trained yet.
        UserError: a kind of prior that cannot be exported.
    """
    plain = run.autoencoder
    levels = [f"codes_{level}" for level in range(plain.config.levels)]
    grids, config = run.config.geometry.grids, plain.config
    images = torch.zeros(_BATCH, config.channels, *run.config.data.shape, device=run.device)
    codes = {
        name: torch.zeros(_BATCH, *grid, dtype=torch.int64, device=run.device)
        for name, grid in zip(levels, grids, strict=True)
    }
    yield Part("encoder", Encoder(plain), {"images": images}, levels, {"images": 0})
    decoders = {"decoder": plain}
    if run.decoder_name() == "sharp":
        decoders["decoder-sharp"] = run.decoder("sharp")
    for name, model in decoders.items():
        yield Part(name, Decoder(model), codes, ["images"], dict.fromkeys(codes, 0))
    if all(run.paths.prior(level).done() for level in range(config.levels)):
        for level in range(config.levels):
            yield from _prior_parts(run.prior.level(level), dict(list(codes.items())[:level]))


def describe(run: Run, found: list[Part]) -> dict[str, Any]:
    """The content of model.json: sizes, classes, and for each level its files, the shapes of its caches ("B" is the batch), and the
    label that means "no label"."""
    geometry, files = run.config.geometry, {part.name for part in found}
    levels = []
    for level, (grid, codes) in enumerate(zip(geometry.grids, geometry.vocabulary, strict=True)):
        step = next((part for part in found if part.name == f"prior-{level}-step"), None)
        entry: dict[str, Any] = {"grid": list(grid), "vocabulary": codes}
        if step is not None:
            row = next((part for part in found if part.name == f"prior-{level}-row"), None)
            entry |= {
                kind: f"prior-{level}-{kind}.onnx" if f"prior-{level}-{kind}" in files else None
                for kind in ("context", "row", "step")
            }
            entry["no_label"] = no_label(run.prior.level(level))
            entry["caches"] = {
                name: [
                    "B" if axis == part.batch_axes[name] else size for axis, size in enumerate(tensor.shape)
                ]
                for part in (row, step)
                if part is not None
                for name, tensor in part.inputs.items()
                if f"{name}_next" in part.outputs and not (part is step and name == "horizontal")
            }
        levels.append(entry)
    return {
        "image": [run.config.autoencoder.channels, *run.config.data.shape],
        "classes": list(run.classes),
        "files": sorted(f"{name}.onnx" for name in files),
        "sampling": run.sampling.model_dump(mode="json"),
        "levels": levels,
    }


def _prior_parts(prior: LevelPrior, coarser: dict[str, Tensor]) -> Iterator[Part]:
    device, config, level = prior.embedding.weight.device, prior.config, prior.level
    number = torch.zeros(1, dtype=torch.int64, device=device)
    codes = torch.zeros(_BATCH, dtype=torch.int64, device=device)
    step = step_module(prior)
    context: dict[str, Tensor] = {}
    if has_context(prior):
        inputs = {**({"labels": codes} if prior.classes else {}), **coarser}
        module = Context(prior)
        yield Part(f"prior-{level}-context", module, inputs, ["context"], dict.fromkeys(inputs, 0))
        with torch.no_grad():
            context = {"context": module(*inputs.values())}
    size = config.hidden // config.heads
    attentions = len(prior.attention_layers()) if isinstance(prior, PixelCNN) else config.layers
    shape = (attentions, 2, _BATCH, config.heads, prior.positions, size)
    attention = {"attention": torch.zeros(shape, device=device)} if attentions else {}
    inputs = {"position": number, "previous": codes}
    axes = {
        "previous": 0,
        "above": 0,
        "context": 0,
        "vertical": 1,
        "features": 1,
        "horizontal": 1,
        "attention": 2,
    }
    if isinstance(prior, PixelCNN):
        above = torch.zeros(_BATCH, prior.width, dtype=torch.int64, device=device)
        vertical = torch.stack(
            [
                layer.vertical.start(above.new_zeros(_BATCH, config.hidden, prior.width).float())
                for layer in prior.gated_layers()
            ]
        )
        start = {"row": number, "above": above, "vertical": vertical, **context}
        outputs = ["vertical_next", "features", "horizontal"]
        yield Part(f"prior-{level}-row", RowStart(prior), start, outputs, axes)
        with torch.no_grad():
            _, features, horizontal = RowStart(prior)(*start.values())
        inputs |= {"features": features, "horizontal": horizontal, **attention}
        outputs = ["logits", "horizontal_next", *(f"{name}_next" for name in attention)]
    else:
        inputs |= {**attention, **context}
        outputs = ["logits", "attention_next"]
    yield Part(f"prior-{level}-step", step, inputs, outputs, axes)


def _write(part: Part, folder: Path) -> None:
    shapes: Any = tuple(
        {part.batch_axes[name]: torch.export.Dim("batch")} if name in part.batch_axes else None
        for name in part.inputs
    )
    if isinstance(part.module, Decoder | Context):  # which take any number of tensors
        shapes = (shapes,)
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            part.module.eval(),
            tuple(part.inputs.values()),
            str(folder / f"{part.name}.onnx"),
            input_names=list(part.inputs),
            output_names=part.outputs,
            dynamic_shapes=shapes,
            dynamo=True,
            external_data=sum(p.numel() for p in part.module.parameters()) > 400_000_000,  # a file holds 2 GB
            verbose=False,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's advice on how it works inside."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
