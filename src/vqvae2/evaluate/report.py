"""One HTML page that can be opened from disk: text, tables, pictures and curves are all inside the file.

Every page of this package is made here, so all of them look alike: a verdict, the contents, then the sections.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vqvae2.data.grid import png_bytes
from vqvae2.evaluate.plot import Curve, svg
from vqvae2.evaluate.style import ENLARGE, STYLE
from vqvae2.files.atomic import write_text

_NUMBER = re.compile(r"-?[\d,.]+(e[-+]?\d+)?%?( \+- [\d.,e-]+)?")
_BETTER = {"higher": "↑ higher is better", "lower": "↓ lower is better"}


@dataclass(frozen=True)
class Cell:
    """A cell of a table that names a figure.

    Attributes:
        text: the figure's name.
        about: one sentence that explains it.
        better: "higher" or "lower", or "" where neither is better.
    """

    text: str
    about: str = ""
    better: str = ""

    def __str__(self) -> str:
        return self.text

    def html(self) -> str:
        """The name, the direction that is better, and the explanation below."""
        parts = [html.escape(self.text)]
        if self.better:
            parts.append(f' <span class="better">{_BETTER[self.better]}</span>')
        if self.about:
            parts.append(f'<span class="about">{html.escape(self.about)}</span>')
        return "".join(parts)


class Page:
    """A page that is written from top to bottom and then saved.

    Attributes:
        title: its heading.
        elements: what was added so far, as HTML.
        sections: the identifier and the text of each heading, for the contents.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.elements: list[str] = []
        self.sections: list[tuple[str, str]] = []
        self._verdict: list[str] = []

    def verdict(self, sentences: Sequence[str]) -> None:
        """What the figures say, above everything else; the first sentence is the most important."""
        self._verdict = list(sentences)

    def heading(self, text: str, about: str = "") -> None:
        """A section, which the contents list; `about` says what it shows."""
        identifier = f"section-{len(self.sections) + 1}"
        self.sections.append((identifier, text))
        self.elements.append(f'<h2 id="{identifier}">{html.escape(text)}</h2>')
        if about:
            self.note(about)

    def subheading(self, text: str) -> None:
        """A heading inside a section."""
        self.elements.append(f"<h3>{html.escape(text)}</h3>")

    def text(self, text: str) -> None:
        """A paragraph; what stands between backquotes is shown as code."""
        self.elements.append(f"<p>{_coded(text)}</p>")

    def note(self, text: str) -> None:
        """A paragraph that explains, in a softer colour."""
        self.elements.append(f'<p class="note">{_coded(text)}</p>')

    def table(self, header: Sequence[object], rows: Sequence[Sequence[object]]) -> None:
        """A table. Cells are strings, or a `Cell` that explains a figure; numbers are aligned to the right."""
        numeric = [
            bool(rows) and all(index < len(row) and _is_number(str(row[index])) for row in rows)
            for index in range(len(header))
        ]
        head = "".join(
            f'<th scope="col"{_side(right)}>{_shown(cell)}</th>'
            for cell, right in zip(header, numeric, strict=True)
        )
        body = "".join(f"<tr>{_row(row, numeric)}</tr>" for row in rows)
        self.elements.append(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def definitions(self, items: Sequence[Cell]) -> None:
        """A list of explanations, for the columns of a table."""
        body = "".join(
            f"<dt>{html.escape(item.text)}</dt><dd>{html.escape(item.about)}</dd>"
            for item in items
            if item.about
        )
        if body:
            self.elements.append(f"<dl>{body}</dl>")

    def picture(self, picture: Image.Image | Path, caption: str, rows: Sequence[str] = ()) -> None:
        """A picture, stored in the page as PNG; a click enlarges it.

        Args:
            picture: or its file.
            caption: below it.
            rows: names of its rows of images, from the top, all equally high; they stand to the left.
        """
        data = picture.read_bytes() if isinstance(picture, Path) else png_bytes(picture)
        source = base64.b64encode(data).decode()
        words = html.escape(caption)
        image = (
            f'<button class="zoom" type="button" title="enlarge">'
            f'<img alt="{words}" src="data:image/png;base64,{source}"></button>'
        )
        if rows:
            names = "".join(f"<span>{html.escape(name)}</span>" for name in rows)
            image = f'<div class="sheet"><div class="rows">{names}</div>{image}</div>'
        self.elements.append(f"<figure>{image}<figcaption>{words}</figcaption></figure>")

    def curves(
        self,
        curves: Mapping[str, Curve],
        caption: str,
        log: bool = False,
        x_title: str = "training steps",
        y_title: str = "",
    ) -> None:
        """Lines as SVG; see `plot.svg`."""
        words = html.escape(caption)
        drawing = svg(curves, log, x_title, y_title)
        self.elements.append(f"<figure>{drawing}<figcaption>{words}</figcaption></figure>")

    def save(self, path: Path) -> None:
        """Write the page atomically."""
        title = html.escape(self.title)
        parts = [f"<h1>{title}</h1>"]
        if self._verdict:
            words = "".join(f"<p>{_coded(sentence)}</p>" for sentence in self._verdict)
            parts.append(f'<div class="verdict">{words}</div>')
        if self.sections:
            links = "".join(f'<li><a href="#{to}">{html.escape(text)}</a></li>' for to, text in self.sections)
            parts.append(f'<nav aria-label="Contents"><ul>{links}</ul></nav>')
        body = "\n".join([*parts, *self.elements])
        dialog = (
            '<dialog aria-label="enlarged picture"><button type="button">close</button><img alt=""></dialog>'
        )
        write_text(
            path,
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{title}</title><style>{STYLE}</style></head><body><main>\n{body}\n</main>"
            f"{dialog}<script>{ENLARGE}</script></body></html>\n",
        )


def _coded(text: str) -> str:
    """Text as HTML; what stands between backquotes is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _shown(cell: object) -> str:
    return cell.html() if isinstance(cell, Cell) else html.escape(str(cell))


def _is_number(text: str) -> bool:
    return not text or bool(_NUMBER.fullmatch(text))


def _side(right: bool) -> str:
    return ' class="number"' if right else ""


def _row(row: Sequence[object], numeric: Sequence[bool]) -> str:
    return "".join(
        f'<th scope="row">{cell.html()}</th>'
        if isinstance(cell, Cell)
        else f"<td{_side(right)}>{html.escape(str(cell))}</td>"
        for cell, right in zip(row, numeric, strict=True)
    )
