"""Curves as one SVG drawing: axes with titles and even ticks, a legend, colours that follow the page's light or dark style."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Curve = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 680, 300  # units of the drawing, which scales with the page
_RIGHT, _BOTTOM, _LINE = 16, 46, 18  # margins, and the height of a line of the legend
_CHARACTER = 6.6  # the width of a character of the labels, about
_TICKS = 5  # intervals between ticks, about
COLOURS = 9
"""Curves of one drawing with colours of their own: the style of the page defines --c0 to --c8."""


@dataclass(frozen=True)
class Axis:
    """One axis: the positions of its ticks and their labels.

    Attributes:
        low, high: the range that is drawn, after the logarithm if there is one.
        ticks: (position, label), in order.
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]

    def share(self, value: float) -> float:
        """Where a value is between the ends, 0 to 1."""
        span = self.high - self.low
        return (value - self.low) / span if span else 0.5


def linear_axis(values: Sequence[float], widen: bool = False) -> Axis:
    """Ticks at multiples of 1, 2 or 5 times a power of ten.

    Args:
        values: at least one.
        widen: let the axis end at ticks instead of at the smallest and the largest value.
    """
    low, high = min(values), max(values)
    if low == high:
        whole = abs(low) >= 1 and low == round(low)
        return Axis(low, high, ((low, number(low, 1 if whole else abs(low) / 100)),))
    step = _step(high - low)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if widen:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        low, high = min(low, first * step), max(high, last * step)
    ticks = tuple((index * step, number(index * step, step)) for index in range(first, last + 1))
    return Axis(low, high, ticks)


def log_axis(logs: Sequence[float]) -> Axis:
    """The axis of decimal logarithms: ticks at powers of ten, at 1, 2 and 5 times these, or at even steps where these are few."""
    low, high = min(logs), max(logs)
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    if last - first >= 2:
        every = -(-(last - first) // 8)  # not more than nine ticks
        powers = range(first, last + 1, every)
        return Axis(low, high, tuple((float(power), _power(power)) for power in powers))
    if high - low >= 0.9:
        values = [digit * 10.0**power for power in range(first - 1, last + 1) for digit in (1, 2, 5)]
        kept = [value for value in values if low - 1e-9 <= math.log10(value) <= high + 1e-9]
        return Axis(low, high, tuple((math.log10(value), f"{value:,.12g}") for value in kept))
    plain = linear_axis([10**low, 10**high])
    if low == high:
        return Axis(low, high, ((low, plain.ticks[0][1]),))
    return Axis(low, high, tuple((math.log10(value), label) for value, label in plain.ticks if value > 0))


def _step(span: float) -> float:
    raw = span / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= raw * (1 - 1e-9)), 10 * power)


def _power(exponent: int) -> str:
    return f"{10.0**exponent:,.{max(0, -exponent)}f}" if -5 <= exponent <= 6 else f"1e{exponent}"


def number(value: float, step: float) -> str:
    """A label with as many digits as tell ticks apart that are `step` apart, and with thousands separators."""
    if value == 0:
        return "0"
    if not 1e-5 <= abs(value) < 1e7 or step < 1e-6:
        return f"{value:.3g}"
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step else 3
    return f"{value:,.{digits}f}"


def svg(
    curves: Mapping[str, Curve], log: bool = False, x_title: str = "training steps", y_title: str = ""
) -> str:
    """Curves as one SVG drawing; points that are not finite (or not positive, if `log`) are left out.

    Args:
        curves: by name, which the legend shows.
        log: draw the decimal logarithm of the vertical values.
        x_title, y_title: what the axes show, and the units.
    """
    kept = {
        name: [(x, math.log10(y) if log else y) for x, y in points if math.isfinite(y) and (y > 0 or not log)]
        for name, points in curves.items()
    }
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return "<p>no points</p>"
    across = linear_axis([x for points in kept.values() for x, _ in points])
    ys = [y for points in kept.values() for _, y in points]
    up = log_axis(ys) if log else linear_axis(ys, widen=True)
    legend, rows = _legend(list(kept))
    top = 20 + _LINE * (rows + 1)
    left = 18 + _CHARACTER * max(4, *(len(label) for _, label in up.ticks))
    frame = _Frame(left, top, _WIDTH - _RIGHT, top + _HEIGHT - _BOTTOM - 40)
    height = frame.bottom + _BOTTOM
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" font-size="12">',
        *legend,
        *frame.axes(across, up, x_title, y_title + " (logarithmic scale)" * log),
        *(
            part
            for index, points in enumerate(kept.values())
            for part in frame.line([(across.share(x), up.share(y)) for x, y in points], index)
        ),
    ]
    return "".join(parts) + "</svg>"


def _colour(index: int) -> str:
    return f"var(--c{index % COLOURS})"


def _stroke(index: int, width: int) -> str:
    """Dashed where the colours begin anew."""
    dashes = ' stroke-dasharray="6 3"' if index // COLOURS % 2 else ""
    return f'stroke="{_colour(index)}" stroke-width="{width}"{dashes}'


def _legend(names: Sequence[str]) -> tuple[list[str], int]:
    """The legend above the plot, and how many lines it takes."""
    parts, x, row = [], 8.0, 0
    for index, name in enumerate(names):
        width = 40 + _CHARACTER * len(name)
        if x > 8 and x + width > _WIDTH:
            x, row = 8.0, row + 1
        y = 14 + _LINE * row
        parts.append(f'<line x1="{x:.0f}" y1="{y - 4}" x2="{x + 18:.0f}" y2="{y - 4}" {_stroke(index, 3)}/>')
        parts.append(f'<text x="{x + 24:.0f}" y="{y}" fill="{_colour(index)}">{html.escape(name)}</text>')
        x += width
    return parts, row + 1


@dataclass(frozen=True)
class _Frame:
    """The rectangle in which the curves are drawn, in units of the drawing; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The place of shares of the axes, each 0 to 1."""
        return self.left + x * (self.right - self.left), self.bottom - y * (self.bottom - self.top)

    def axes(self, across: Axis, up: Axis, x_title: str, y_title: str) -> list[str]:
        """Lines at the ticks of the vertical axis, ticks and titles."""
        parts = []
        for value, label in up.ticks:
            y = self.at(0, up.share(value))[1]
            parts.append(
                f'<line class="grid" x1="{self.left:.1f}" y1="{y:.1f}" x2="{self.right:.1f}" y2="{y:.1f}"/>'
                f'<text x="{self.left - 7:.1f}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
            )
        last = -math.inf
        for value, label in across.ticks:
            x = self.at(across.share(value), 0)[0]
            half = _CHARACTER * len(label) / 2
            if x - half < last + 6:
                continue
            last = x + half
            anchor, where = ("end", self.right) if x + half > self.right + _RIGHT else ("middle", x)
            parts.append(
                f'<line class="axis" x1="{x:.1f}" y1="{self.bottom:.1f}" x2="{x:.1f}" y2="{self.bottom + 5:.1f}"/>'
                f'<text x="{where:.1f}" y="{self.bottom + 19:.1f}" text-anchor="{anchor}">{label}</text>'
            )
        middle = (self.left + self.right) / 2
        parts.append(
            f'<line class="axis" x1="{self.left:.1f}" y1="{self.bottom:.1f}" x2="{self.right:.1f}" y2="{self.bottom:.1f}"/>'
            f'<text class="title" x="{middle:.1f}" y="{self.bottom + 38:.1f}" text-anchor="middle">'
            f"{html.escape(x_title)}</text>"
            f'<text class="title" x="8" y="{self.top - 14:.1f}">{html.escape(y_title)}</text>'
        )
        return parts

    def line(self, points: Sequence[tuple[float, float]], index: int) -> list[str]:
        """One curve; a single point is a dot."""
        places = [self.at(x, y) for x, y in points]
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts = [f'<polyline points="{text}" fill="none" {_stroke(index, 2)}/>']
        if len(places) == 1:
            (x, y), *_ = places
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{_colour(index)}"/>')
        return parts
