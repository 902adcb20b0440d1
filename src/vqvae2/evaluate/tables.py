"""The figures of a part as tables of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Rows = list[Sequence[object]]
Table = tuple[Sequence[str], Rows]
"""Header, and rows of as many cells."""


def tables(figures: dict[str, Any]) -> list[Table]:
    """One row for each set, level or list entry if the figures have these, and one row for each figure otherwise."""
    if "rows" in figures:
        return [_table(figures["rows"])]
    if "levels" in figures:
        return [_table([{"level": level, **row} for level, row in enumerate(figures["levels"])])]
    named = figures.get("sets", {name: row for name, row in figures.items() if isinstance(row, dict)})
    result = []
    if named:
        result.append(_table([{"": name, **_plain(row)} for name, row in named.items()]))
    if rest := {name: value for name, value in figures.items() if name not in named and name != "sets"}:
        result.append((("figure", "value"), flat(rest)))
    return result


def flat(values: dict[str, Any], prefix: str = "") -> Rows:
    """A row of name and value for each figure; names of nested figures are joined."""
    rows: Rows = []
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        rows += flat(value, f"{name}: ") if isinstance(value, dict) else [(name, _text(value))]
    return rows


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if not isinstance(value, dict)}


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    columns = list(dict.fromkeys(key for row in rows for key in _plain(row)))
    header = [column.replace("_", " ") for column in columns]
    return header, [[_text(row.get(key, "")) for key in columns] for row in rows]


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return str(value)
