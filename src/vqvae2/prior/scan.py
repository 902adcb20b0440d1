"""The raster loop: at each position, compute the logits from the cache, ask a callback for the code, pass it to the next step.

Sampling draws the code; completion supplies the codes that are known. The tests score with it: its logits are those of
`forward` on whole grids.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vqvae2.prior.captured import StepGraphs
from vqvae2.prior.chooser import Chooser
from vqvae2.prior.level import LevelPrior

Choose = Callable[[int, Tensor], Tensor]


@torch.no_grad()
def scan(
    prior: LevelPrior,
    batch: int,
    context: Tensor | None,
    choose: Choose,
    stop: int | None = None,
    graphs: StepGraphs | None = None,
) -> Tensor:
    """Visit every position once, in raster order.

    Args:
        prior: one level, in eval mode.
        batch: B.
        context: from `prior.context`.
        choose: called with (position, logits [B, K]); returns the codes [B] int64 of that position.
        stop: visit the first `stop` positions only; None visits all.
        graphs: replays recorded CUDA graphs if `choose` is a `Chooser` and `graphs.takes` the grid (device, kind of prior,
            length); otherwise, and with None, `prior.step` is called.

    Returns:
        [B, H, W] int64, what `choose` returned; 0 where it was not asked.
    """
    end = prior.positions if stop is None else stop
    if graphs is not None and isinstance(choose, Chooser) and graphs.takes(prior, batch, end):
        return graphs.draw(prior, batch, context, choose, end)
    cache = prior.start(batch, context)
    codes = torch.zeros(prior.positions, batch, dtype=torch.int64, device=prior.embedding.weight.device)
    previous: Tensor | None = None
    for position in range(end):
        logits, cache = prior.step(cache, position, previous)
        previous = choose(position, logits)
        codes[position] = previous
    return codes.T.reshape(batch, prior.height, prior.width)
