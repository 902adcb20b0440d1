"""The figures of a part as tables: readable names, explanations, and numbers with separators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vqvae2.evaluate.glossary import figure
from vqvae2.evaluate.report import Cell, Page

_PAIRS = {"most_used", "least_used"}  # lists of a code and its count
_COLUMNS = 8  # more sets than this are rows instead


@dataclass
class Table:
    """Header, rows of as many cells, and explanations of the columns.

    Attributes:
        title: above it, "" for none.
    """

    header: Sequence[object]
    rows: Sequence[Sequence[object]]
    explained: list[Cell] = field(default_factory=list)
    title: str = ""

    def add_to(self, page: Page) -> None:
        """Show it."""
        if self.title:
            page.subheading(self.title)
        page.table(self.header, self.rows)
        page.definitions(self.explained)


def tables(figures: dict[str, Any]) -> list[Table]:
    """A column for each set or level, or a row for each entry of a list; and a table of the figures that are left.

    A row names a figure, says which direction is better and explains it in a sentence.
    """
    if "rows" in figures:
        rest = {name: value for name, value in figures.items() if name not in ("rows", "classifier")}
        return [_listed(figures["rows"]), *_rest(rest)]
    if "levels" in figures:
        columns = {f"level {level}": row for level, row in enumerate(figures["levels"])}
        return [_columns(columns), *_rest({k: v for k, v in figures.items() if k != "levels"})]
    named = figures.get("sets", {name: row for name, row in figures.items() if isinstance(row, dict)})
    if len(named) > _COLUMNS:
        listed = [{"": name, **row} for name, row in named.items()]
        return [_listed(listed), *_rest({k: v for k, v in figures.items() if k not in named and k != "sets"})]
    result = [_columns(named), *_by_class(named)] if named else []
    return result + _rest({k: v for k, v in figures.items() if k not in named and k != "sets"})


def plain(values: dict[str, Any], prefix: str = "") -> list[Sequence[object]]:
    """A row of name and value for each entry of a record; names of nested records are joined."""
    rows: list[Sequence[object]] = []
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        rows += plain(value, f"{name}: ") if isinstance(value, dict) else [(name, text(value))]
    return rows


def text(value: object, share: bool = False) -> str:
    """A value for people: four significant digits, thousands separators, shares in per cent."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        if isinstance(value, list | tuple):
            return ", ".join(text(item, share) for item in value)
        return "" if value is None else str(value)
    if share:
        return f"{100 * value:.1f}%".replace("-0.0%", "0.0%")
    if isinstance(value, int):
        return f"{value:,}"
    if value != value or abs(value) == float("inf"):
        return str(value)
    digits = f"{value:.4g}"
    return (
        f"{float(digits):,.0f}"
        if abs(value) >= 1000 and "e" not in digits
        else (f"{value:,.0f}" if 1000 <= abs(value) < 1e12 else digits)
    )


def _cell(key: str, level: int | None = None) -> Cell:
    """The name of a figure, of one level; the explanation stands at the first level only."""
    words = figure(key)
    if level is None:
        return Cell(words.name, words.about, words.better)
    return Cell(f"{words.name}, level {level}", "" if level else words.about, words.better)


def _columns(sets: dict[str, dict[str, Any]]) -> Table:
    """A column for each set, a row for each figure; a list of figures per level makes a row for each level."""
    keys = dict.fromkeys(
        key for row in sets.values() for key, value in row.items() if not isinstance(value, dict)
    )
    rows: list[Sequence[object]] = []
    for key in keys:
        values = [row.get(key) for row in sets.values()]
        share = figure(key).share
        if key in _PAIRS:
            rows.append((_cell(key), *map(_pairs, values)))
        elif any(isinstance(value, list | tuple) for value in values):
            longest = max(len(value) for value in values if isinstance(value, list | tuple))
            for level in range(longest):
                own = [value[level] if isinstance(value, list | tuple) else None for value in values]
                cell = _cell(key, level)
                rows.append((cell, *(text(value, share) for value in own)))
        else:
            rows.append((_cell(key), *(text(value, share) for value in values)))
    return Table(("", *(name.replace("_", " ") for name in sets)), rows)


def _pairs(value: Any) -> str:
    """`code 5: 1,234 times`, one after the other."""
    return "; ".join(f"code {code}: {count:,} times" for code, count in value or ())


def _by_class(sets: dict[str, dict[str, Any]]) -> list[Table]:
    """The median of each class beside that of real images, where the figures have classes."""
    own = {name: row["classes"] for name, row in sets.items() if row.get("classes")}
    if not own:
        return []
    names = dict.fromkeys(label for classes in own.values() for label in classes)
    rows: list[Sequence[object]] = [
        (
            Cell(label),
            *(text(classes[label]["median"]) if label in classes else "" for classes in own.values()),
        )
        for label in names
    ]
    return [Table(("class", *own), rows, title="Median of each class")]


def _listed(entries: Sequence[dict[str, Any]]) -> Table:
    """A row for each entry of a list."""
    keys = list(
        dict.fromkeys(key for row in entries for key, value in row.items() if not isinstance(value, dict))
    )
    header = [Cell(figure(key).name, "", figure(key).better) for key in keys]
    rows = [[text(row.get(key), figure(key).share) for key in keys] for row in entries]
    return Table(header, list(rows), [_cell(key) for key in keys])


def _rest(values: dict[str, Any]) -> list[Table]:
    rows: list[Sequence[object]] = []
    for key, value in values.items():
        share = figure(key).share
        if isinstance(value, list | tuple):
            rows += [(_cell(key, level), text(item, share)) for level, item in enumerate(value)]
        else:
            rows.append((_cell(key), text(value, share)))
    return [Table(("", "value"), rows)] if rows else []
