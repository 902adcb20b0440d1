"""What the raster loop asks for the codes of a position when it samples: keep the known ones, draw the others.

Shapes: B images, N positions, K codes. With guidance the network sees every image twice, so its logits are [2B, K].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vqvae2.prior.draw import draw, exact_device, guided, probabilities

UNKNOWN = -1
"""In codes that are passed to `HierarchicalPrior.sample`: this code is to be drawn."""


@dataclass(frozen=True)
class Rule:
    """How the codes of one level are drawn from their logits.

    Attributes:
        temperature, top_k, top_p: as of `draw.probabilities`.
        guidance: strength of classifier-free guidance.
        guided: whether the logits are [2B, K]: those with the class, then those without.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    guided: bool = False

    def draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Codes [B] from logits [B or 2B, K] and one uniform number [B] for each image."""
        if self.guided:
            conditional, unconditional = logits.chunk(2)
            logits = guided(conditional, unconditional, self.guidance)
        p = probabilities(logits, self.temperature, self.top_k, self.top_p)
        return draw(p, uniform)


class Chooser:
    """Chooses the codes of each position; the callback with which `scan` samples.

    It holds everything that the choice needs on the device from the start, so that no step copies to or from the host.

    Args:
        uniforms: [B, N] float64, from `draw.uniforms`.
        known: [B, N] int64, `UNKNOWN` where a code is to be drawn.
        rule: how it is drawn.
    """

    def __init__(self, uniforms: Tensor, known: Tensor, rule: Rule) -> None:
        device = known.device
        exact = exact_device(device)
        self.rule = rule
        self.uniforms = uniforms.T.contiguous().to(exact)
        self.known = known.T.contiguous()
        numbers = [rule.temperature, rule.guidance, rule.top_k, rule.top_p]
        self.settings = torch.tensor(numbers, dtype=torch.float64, device=exact)
        self._asked = (self.known == UNKNOWN).any(1).tolist()

    def __call__(self, position: int, logits: Tensor) -> Tensor:
        """Codes [B or 2B] of a position; nothing is drawn where all of them are known."""
        known = self.known[position]
        if self._asked[position]:
            drawn = self.rule.draw(logits, self.uniforms[position]).to(known.device)
            known = torch.where(known == UNKNOWN, drawn, known)
        return self._for_all(known)

    def static(self, position: Tensor, logits: Tensor) -> Tensor:
        """The same with the position as a tensor [1], without a look at any value on the host."""
        known = self.known.index_select(0, position)[0]
        drawn = self.rule.draw(logits, self.uniforms.index_select(0, position)[0])
        return self._for_all(torch.where(known == UNKNOWN, drawn, known))

    def copy_(self, other: Chooser) -> None:
        """Take over the numbers and the known codes of another chooser, in place."""
        self.uniforms.copy_(other.uniforms)
        self.known.copy_(other.known)
        self._asked = other._asked

    def clone(self) -> Chooser:
        """A chooser of the same numbers in memory of its own."""
        return Chooser(self.uniforms.T.clone(), self.known.T.clone(), self.rule)

    def _for_all(self, codes: Tensor) -> Tensor:
        return torch.cat([codes, codes]) if self.rule.guided else codes
