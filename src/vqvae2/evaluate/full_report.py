"""The whole report: every part measured, report.json and report.html."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from vqvae2.evaluate.context import Context
from vqvae2.evaluate.parts.base import Part, PartResult
from vqvae2.evaluate.parts.registry import wanted_parts
from vqvae2.evaluate.report import Page
from vqvae2.evaluate.tables import flat, tables
from vqvae2.files.atomic import write_json
from vqvae2.processes import Group


def write_report(context: Context, title: str, out: Path) -> dict[str, Any] | None:
    """Measure the parts that the options ask for, and write OUT/report.json and OUT/report.html.

    Several processes first make samples, features and likelihoods together; then the main one measures. Every process calls
    this, and all return when the report is written.

    Returns:
        The content of report.json: protocol, parts, warnings, seconds; None on all processes but the main one.
    """
    group, parts = context.group, wanted_parts(context)
    for part in parts if group.count > 1 else ():
        if part.prepare is not None:
            part.prepare(context)
    context.group = Group()  # what the others have made is in the context now
    report = _measured(context, parts, title, out) if group.main else None
    group.wait()
    return report


def _measured(context: Context, parts: list[Part], title: str, out: Path) -> dict[str, Any]:
    results: list[tuple[Part, PartResult]] = []
    seconds: dict[str, float] = {}
    for part in parts:
        context.reporter.say(f"evaluating: {part.name}")
        begun = time.perf_counter()
        result = part.measure(context)
        seconds[part.name] = time.perf_counter() - begun
        results.append((part, result))
        context.warnings += [line for line in result.warnings if line not in context.warnings]
    report = {
        "protocol": context.protocol(),
        "parts": {part.name: result.figures for part, result in results},
        "warnings": context.warnings,
        "seconds": seconds | context.seconds(),
    }
    write_json(out / "report.json", report)
    _page(title, report, results).save(out / "report.html")
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
    protocol = report["protocol"]
    page.heading("Protocol")
    page.table(("what", "value"), flat({name: value for name, value in protocol.items() if name != "sets"}))
    page.table(("set", "n", "sha-256"), [(s["name"], s["n"], s["key"][:16]) for s in protocol["sets"]])
    return page
