"""The whole report: every part measured, report.json and report.html."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from vqvae2.data.errors import DataError
from vqvae2.errors import UserError
from vqvae2.evaluate.context import Context
from vqvae2.evaluate.parts.base import Part, PartResult
from vqvae2.evaluate.parts.registry import asked_parts, wanted_parts
from vqvae2.evaluate.report import Page
from vqvae2.evaluate.tables import flat, tables
from vqvae2.files.atomic import FileError, write_json
from vqvae2.processes import Group


def write_report(context: Context, title: str, out: Path) -> dict[str, Any] | None:
    """Measure the parts that the options ask for, and write OUT/report.json and OUT/report.html.

    Several processes first make samples, features and likelihoods together; then the main one measures. Every process calls
    this, and all return when the report is written. A part that cannot be measured is left out with its reason, and the
    rest is written.

    Returns:
        The content of report.json: protocol, parts, left_out (reasons by name), warnings, seconds; None on all processes but the
        main one.

    Raises:
        UserError: no part can be measured, or one that was asked for cannot; the others are written first.
    """
    group = context.group
    wanted, left_out = wanted_parts(context)
    for part in wanted if group.count > 1 else ():
        _prepare(part, context)
    context.group = Group()  # what the others have made is in the context now
    report = _measured(context, wanted, left_out, title, out) if group.main else None
    group.wait()
    return report


def _prepare(part: Part, context: Context) -> None:
    """Make together what the part needs. What all processes find alike, such as too few images, is left to `measure`.

    Raises:
        FileError, DataError: something that one process alone may have found, so that the others cannot go on.
    """
    try:
        if part.prepare is not None:
            part.prepare(context)
    except (FileError, DataError):
        raise
    except UserError:
        return


def _measured(
    context: Context, wanted: list[Part], left_out: dict[str, str], title: str, out: Path
) -> dict[str, Any]:
    results: list[tuple[Part, PartResult]] = []
    seconds: dict[str, float] = {}
    for part in wanted:
        context.reporter.say(f"evaluating: {part.name}")
        begun = time.perf_counter()
        try:
            result = part.measure(context)
        except UserError as error:
            left_out[part.name] = str(error)
            context.reporter.say(f"{part.name} is left out: {error}")
            continue
        seconds[part.name] = time.perf_counter() - begun
        results.append((part, result))
        context.warnings += [line for line in result.warnings if line not in context.warnings]
    if not results:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise UserError(f"nothing can be measured: {reasons}")
    report = {
        "protocol": context.protocol(),
        "parts": {part.name: result.figures for part, result in results},
        "left_out": left_out,
        "warnings": context.warnings,
        "seconds": seconds | context.seconds(),
    }
    write_json(out / "report.json", report)
    _page(title, report, results).save(out / "report.html")
    if failed := sorted(asked_parts(context.options) & left_out.keys()):
        name = failed[0]
        raise UserError(f"cannot measure {name}: {left_out[name]}; the rest is in {out}")
    return report


def _page(title: str, report: dict[str, Any], results: list[tuple[Part, PartResult]]) -> Page:
    page = Page(title)
    for line in report["warnings"]:
        page.text(f"Warning: {line}.")
    for part, result in results:
        page.heading(part.title)
        for header, rows in tables(result.figures):
            page.table(header, rows)
        for caption, picture in result.pictures:
            page.picture(picture, caption)
        for caption, curves in result.plots:
            page.curves(curves, caption)
    if report["left_out"]:
        page.heading("Left out")
        page.table(("part", "reason"), list(report["left_out"].items()))
    protocol = report["protocol"]
    page.heading("Protocol")
    page.table(("what", "value"), flat({name: value for name, value in protocol.items() if name != "sets"}))
    page.table(("set", "n", "sha-256"), [(s["name"], s["n"], s["key"][:16]) for s in protocol["sets"]])
    return page
