"""The speed of sampling in a report is that of what `sample` does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vqvae2.config.sampling import Sampling
from vqvae2.evaluate.options import EvaluateOptions
from vqvae2.evaluate.parts import speed
from vqvae2.evaluate.sets import NamedImages
from vqvae2.generate.sample import draw_samples
from vqvae2.prior.captured import StepGraphs
from vqvae2.prior.hierarchy import HierarchicalPrior
from vqvae2.run import load

OWN = Sampling(dtype="bfloat16", guidance=2.0, top_p=0.9, batch=3)


@pytest.mark.parametrize("asked", [None, Sampling(temperature=0.5)])
def test_drawing_is_timed_with_the_settings_of_the_samples(
    asked: Sampling | None, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, images = load(trained, "cpu"), torch.zeros(5, 3, 16, 16)
    run.sampling = OWN
    how: list[tuple[Sampling, str]] = []
    usual = HierarchicalPrior.sample

    def sample(
        self: HierarchicalPrior, n: Any, labels: Any, sampling: Sampling, *, graphs: StepGraphs, **more: Any
    ) -> Any:
        how.append((sampling, graphs.precision))
        return usual(self, n, labels, sampling, graphs=graphs, **more)

    monkeypatch.setattr(HierarchicalPrior, "sample", sample)
    heldout = NamedImages("held out", "", 5, None, lambda wanted: iter([images[wanted]]))
    context: Any = SimpleNamespace(run=run, heldout=heldout, options=EvaluateOptions(sampling=asked))
    figures = speed.measure(context).figures
    assert figures["batch"] == 5
    list(draw_samples(run.autoencoder, run.prior, 3, [0, 1, 2], 0, asked or OWN))
    assert len(how) == 3
    assert len({*how}) == 1, "the warm-up, what was timed, and the sampler"
