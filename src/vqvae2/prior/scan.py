"""The one raster loop: step the cache, ask a callback for the symbol, feed it back.

Four callers, one contract: sampling draws a symbol, compressing supplies the known one, decompressing asks the
range decoder, a test scores. Encoder and decoder therefore do identical arithmetic, and no loop is written twice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vqvae2.prior.level import LevelPrior

Choose = Callable[[int, Tensor], Tensor]


@torch.no_grad()
def scan(
    prior: LevelPrior, batch: int, context: Tensor | None, choose: Choose, stop: int | None = None
) -> Tensor:
    """Visit every position once, in raster order.

    Args:
        prior: one level, in eval mode.
        batch: B.
        context: from `prior.context`.
        choose: called with (position, logits [B, K]); returns the symbols [B] int64 of that position.
        stop: visit the first `stop` positions only; None visits all.

    Returns:
        [B, H, W] int64, what `choose` returned; 0 where it was not asked.
    """
    cache = prior.start(batch, context)
    symbols = torch.zeros(prior.positions, batch, dtype=torch.int64, device=prior.place_rows.device)
    previous: Tensor | None = None
    for position in range(prior.positions if stop is None else stop):
        logits, cache = prior.step(cache, position, previous)
        previous = choose(position, logits)
        symbols[position] = previous
    return symbols.T.reshape(batch, prior.height, prior.width)
