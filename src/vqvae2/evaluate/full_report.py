"""The whole report: every part measured, report.json and report.html."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from vqvae2.data.errors import DataError
from vqvae2.errors import UserError
from vqvae2.evaluate.advice import Advice, advise
from vqvae2.evaluate.context import Context
from vqvae2.evaluate.facts import Facts, from_report
from vqvae2.evaluate.glossary import PARTS, SETS
from vqvae2.evaluate.parts.base import Part, PartResult, Plot
from vqvae2.evaluate.parts.registry import asked_parts, wanted_parts
from vqvae2.evaluate.report import Cell, Page
from vqvae2.evaluate.tables import plain, tables
from vqvae2.evaluate.verdict import verdict
from vqvae2.files.atomic import FileError, write_json
from vqvae2.processes import Group

UNFINISHED = "unfinished.json"
"""The content of report.json while it is measured, of the parts that are: what a command that is killed leaves behind. The report of
an earlier command stays until the new one is whole."""


def write_report(
    context: Context, title: str, out: Path, facts: Facts | None = None
) -> dict[str, Any] | None:
    """Measure the parts that the options ask for, and write OUT/report.json and OUT/report.html.

    Several processes first make samples, features and likelihoods together; then the main one measures. Every process calls
    this, and all return when the report is written. A part that cannot be measured is left out with its reason, and the
    rest is written.

    Args:
        context: what is measured.
        title: of the page.
        out: folder; it exists.
        facts: what the run itself knows; what is measured here is added to it for the verdict, and for the advice unless it
            was measured on a split that the options name.

    Returns:
        The content of report.json: protocol, parts, plots (the points of their curves, by part), left_out (reasons by name),
        warnings, seconds; None on all processes but the main one.

    Raises:
        UserError: no part can be measured, or one that was asked for cannot; the others are written first.
    """
    group = context.group
    wanted, left_out = wanted_parts(context)
    together = group.agreed([part.name for part in wanted])
    wanted = [part for part in wanted if part.name in together]
    if len(wanted) < len(together):
        reasons = [f"{name}: {reason}" for name, reason in left_out.items() if name in together]
        raise UserError(f"process {group.rank} cannot take part, but the first one can: {'; '.join(reasons)}")
    for part in wanted if group.count > 1 else ():
        _prepare(part, context)
    context.group = Group()  # what the others have made is in the context now
    report = _measured(context, (wanted, left_out), title, out, facts) if group.main else None
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
    context: Context,
    chosen: tuple[list[Part], dict[str, str]],
    title: str,
    out: Path,
    facts: Facts | None,
) -> dict[str, Any]:
    """The report of the chosen parts, and of those that are left out with their reasons."""
    wanted, left_out = chosen
    if (out / "report.json").exists():
        context.reporter.say(f"{out}: the report that is there will be replaced; --out DIR keeps it")
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
        if part is not wanted[-1]:
            write_json(out / UNFINISHED, _content(context, results, left_out, seconds))
    if not results:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        raise UserError(f"nothing can be measured: {reasons}")
    report = _content(context, results, left_out, seconds)
    write_json(out / "report.json", report)
    (out / UNFINISHED).unlink(missing_ok=True)
    facts = facts or Facts()
    known = replace(facts, **from_report(report["parts"]))
    # a test split must not decide what is changed
    decides = known if context.options.split is None else facts
    _page(title, report, results, verdict(known), advise(decides)).save(out / "report.html")
    if failed := sorted(asked_parts(context.options) & left_out.keys()):
        name = failed[0]
        raise UserError(f"cannot measure {name}: {left_out[name]}; the rest is in {out}")
    return report


def _content(
    context: Context,
    results: list[tuple[Part, PartResult]],
    left_out: dict[str, str],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """What report.json says of the parts that are measured so far."""
    return {
        "protocol": context.protocol(),
        "parts": {part.name: result.figures for part, result in results},
        "plots": {part.name: _points(result.plots) for part, result in results if result.plots},
        "left_out": left_out,
        "warnings": context.warnings,
        "seconds": seconds | context.seconds(),
    }


def _points(plots: list[Plot]) -> list[dict[str, Any]]:
    """The plots of a part as JSON, so that others can draw them: the points (x, y) of each curve by its name."""
    return [
        {"caption": plot.caption, "x": plot.x_title, "y": plot.y_title, "curves": dict(plot.curves)}
        for plot in plots
    ]


def _page(
    title: str,
    report: dict[str, Any],
    results: list[tuple[Part, PartResult]],
    sentences: list[str],
    advice: list[Advice],
) -> Page:
    page = Page(title)
    page.verdict(sentences)
    for line in report["warnings"]:
        page.note(f"Note: {line}.")
    for part, result in results:
        page.heading(part.title, PARTS.get(part.name, ""))
        for table in tables(result.figures):
            table.add_to(page)
        for caption, picture, rows in result.pictures:
            page.picture(picture, caption, rows)
        for caption, curves, x_title, y_title in result.plots:
            page.curves(curves, caption, x_title=x_title, y_title=y_title)
    if report["left_out"]:
        page.heading("Left out", "These parts could not be measured.")
        page.table(("part", "reason"), list(report["left_out"].items()))
    if advice:
        page.heading("What to change", "By the rules that `vqvae2 explain` states.")
        for item in advice:
            page.subheading(item.finding)
            page.text(item.change)
    protocol = report["protocol"]
    page.heading("Protocol", "How the figures were measured; the same inputs give the same figures.")
    page.definitions([Cell(name, about) for name, about in SETS.items()])
    sets = [(s["name"], f"{s['n']:,}", s["key"][:16]) for s in protocol["sets"]]
    page.table(("set", "images", "digest (sha-256)"), sets)
    page.table(
        ("setting", "value"), plain({name: value for name, value in protocol.items() if name != "sets"})
    )
    return page
