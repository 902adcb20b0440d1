"""What a part of a report is, and what it returns.

A new part is one file beside this one and one line in the list of `parts/registry.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from PIL import Image

from vqvae2.evaluate.context import Context, Need
from vqvae2.evaluate.plot import Curve


class Picture(NamedTuple):
    """A picture of a part.

    Attributes:
        caption: below it.
        picture: a sheet of images.
        rows: names of its rows, from the top; () if they have none.
    """

    caption: str
    picture: Image.Image
    rows: tuple[str, ...] = ()


class Plot(NamedTuple):
    """Curves of a part.

    Attributes:
        caption: below them.
        curves: by name.
        x_title, y_title: what the axes show, and the units.
    """

    caption: str
    curves: Mapping[str, Curve]
    x_title: str
    y_title: str


@dataclass
class PartResult:
    """What a part measured. Apart from times it is a function of the sets of images and the options.

    Attributes:
        figures: JSON-ready.
        pictures: in the order of the page.
        plots: below the pictures.
        warnings: lines for the reader of the figures.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """A part of a report.

    Attributes:
        name: its key in report.json, and its name for `--only`.
        title: its heading in report.html.
        measure: measures it.
        needs: what has to be there; a part is left out if something is not.
        on_request: measured only if it is asked for by name, or by an option of its own.
        prepare: what several processes make together before the main one measures: samples, features and the like, which the
            context then has; None if there is nothing to share.
        hindered: a further reason why it cannot be measured, which is known before anything is; None if there is none.
    """

    name: str
    title: str
    measure: Callable[[Context], PartResult]
    needs: tuple[Need, ...] = ()
    on_request: bool = False
    prepare: Callable[[Context], None] | None = None
    hindered: Callable[[Context], str | None] | None = None

    def obstacle(self, context: Context) -> str | None:
        """Why this part cannot be measured; None if it can."""
        reasons = (context.missing(need) for need in self.needs)
        found = next((reason for reason in reasons if reason is not None), None)
        return self.hindered(context) if found is None and self.hindered is not None else found
