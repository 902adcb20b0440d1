"""One HTML page that can be opened from disk: text, tables, pictures and curves are all inside the file."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

from vqvae2.files.atomic import write_text

_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{border-bottom:1px solid #ddd;padding:.3rem .8rem;text-align:left}
img{max-width:100%;image-rendering:pixelated}figure{margin:1.5rem 0}figcaption{color:#555;font-size:.9rem}
svg{max-width:100%}.note{color:#555}"""
_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b")

Curve = Sequence[tuple[float, float]]


class Page:
    """A page that is written from top to bottom and then saved."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.elements: list[str] = [f"<h1>{html.escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        """A second-level heading."""
        self.elements.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self.elements.append(f"<p>{html.escape(text)}</p>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table of strings."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
        )
        self.elements.append(f"<table><tr>{head}</tr>{body}</table>")

    def picture(self, picture: Image.Image | Path, caption: str) -> None:
        """A picture, stored in the page as PNG."""
        if isinstance(picture, Path):
            data = picture.read_bytes()
        else:
            buffer = BytesIO()
            picture.save(buffer, "PNG")
            data = buffer.getvalue()
        source = base64.b64encode(data).decode()
        words = html.escape(caption)
        self.elements.append(
            f'<figure><img alt="{words}" src="data:image/png;base64,{source}"><figcaption>{words}</figcaption></figure>'
        )

    def curves(self, curves: Mapping[str, Curve], caption: str, log: bool = False) -> None:
        """Lines over steps, as SVG; `log` draws a logarithmic vertical axis."""
        words = html.escape(caption)
        self.elements.append(f"<figure>{svg(curves, log)}<figcaption>{words}</figcaption></figure>")

    def save(self, path: Path) -> None:
        """Write the page atomically."""
        body = "\n".join(self.elements)
        write_text(
            path,
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
            f"<title>{html.escape(self.title)}</title><style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n",
        )


def svg(curves: Mapping[str, Curve], log: bool = False) -> str:
    """Curves as one SVG drawing with axes and a legend; points that are not finite (or not positive, if `log`) are left out."""
    width, height, left, bottom, top = 640, 280, 60, 30, 10
    kept = {
        name: [(x, math.log10(y) if log else y) for x, y in points if math.isfinite(y) and (y > 0 or not log)]
        for name, points in curves.items()
    }
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return "<p>no points</p>"
    xs = [x for points in kept.values() for x, _ in points]
    ys = [y for points in kept.values() for _, y in points]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    span_x, span_y = (x1 - x0) or 1.0, (y1 - y0) or 1.0

    def position(x: float, y: float) -> str:
        px = left + (x - x0) / span_x * (width - left - 10)
        py = height - bottom - (y - y0) / span_y * (height - bottom - top)
        return f"{px:.1f},{py:.1f}"

    elements = [f'<svg viewBox="0 0 {width} {height}" role="img" font-size="11" font-family="sans-serif">']
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = y0 + share * span_y
        value = 10**y if log else y
        x_text, y_text = position(x0, y).split(",")
        elements.append(f'<line x1="{x_text}" y1="{y_text}" x2="{width - 10}" y2="{y_text}" stroke="#eee"/>')
        elements.append(
            f'<text x="{left - 6}" y="{float(y_text) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
        )
        x = x0 + share * span_x
        elements.append(
            f'<text x="{position(x, y0).split(",")[0]}" y="{height - 10}" text-anchor="middle">{x:.0f}</text>'
        )
    for index, (name, points) in enumerate(kept.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        line = " ".join(position(x, y) for x, y in points)
        elements.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        if len(points) == 1:
            x_text, y_text = line.split(",")
            elements.append(f'<circle cx="{x_text}" cy="{y_text}" r="2.5" fill="{colour}"/>')
        elements.append(
            f'<text x="{width - 14}" y="{top + 14 + 15 * index}" text-anchor="end" fill="{colour}">{html.escape(name)}</text>'
        )
    return "".join(elements) + "</svg>"
