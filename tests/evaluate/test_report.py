"""The page: one file, nothing loaded from elsewhere, nothing that text can break out of, curves where they belong."""

from __future__ import annotations

import base64
import math
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vqvae2.evaluate.glossary import FIGURES
from vqvae2.evaluate.plot import linear_axis, log_axis, svg
from vqvae2.evaluate.report import Cell, Page
from vqvae2.evaluate.style import STYLE
from vqvae2.evaluate.tables import tables, text

NASTY = """<script>alert("1")</script> & 'q' </title></table> ü €"""
VOID = {"meta", "img", "line", "polyline", "!doctype"}


class Read(HTMLParser):
    """What a browser would make of a page: elements, their text, and whether every one is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1], data))

    def text(self, tag: str) -> list[str]:
        """The texts inside the elements of a name."""
        return [text for name, text in self.texts if name == tag]


def saved(page: Page, folder: Path) -> Read:
    """The page, read back from its file."""
    page.save(folder / "new" / "page.html")
    return Read((folder / "new" / "page.html").read_text(encoding="utf-8"))


def lines(drawing: str) -> dict[str, list[tuple[float, float]]]:
    """Per curve of a drawing, by the text of its legend, the points in pixels."""
    root = ElementTree.fromstring(drawing)
    names = {text.get("fill"): text.text or "" for text in root.iter("text") if text.get("fill")}
    found = {}
    for line in root.iter("polyline"):
        points = [point.split(",") for point in (line.get("points") or "").split()]
        found[names[line.get("stroke")]] = [(float(x), float(y)) for x, y in points]
    return found


# --- the page ---


def test_text_stays_text(tmp_path: Path) -> None:
    page = Page(NASTY)
    page.heading(NASTY)
    page.text(NASTY)
    page.table([NASTY, "b"], [[NASTY, 1.5], [None, "x"]])
    page.picture(Image.new("RGB", (2, 2)), NASTY)
    page.curves({NASTY: [(0, 1), (1, 2)]}, NASTY)
    read = saved(page, tmp_path)
    for tag in ("title", "h1", "h2", "p", "a"):
        assert read.text(tag) == [NASTY], tag
    assert read.text("figcaption") == [NASTY, NASTY]
    assert read.text("th") == [NASTY, "b"]
    assert read.text("td") == [NASTY, "1.5", "None", "x"]
    assert NASTY in read.text("text")
    assert NASTY in [options.get("alt") for tag, options in read.attributes if tag == "img"]
    assert [tag for tag, _ in read.attributes].count("script") == 1  # the page's own


def test_parts_are_in_order(tmp_path: Path) -> None:
    page = Page("title")
    for number in range(3):
        page.heading(f"heading {number}")
        page.text(f"text {number}")
    texts = [text for tag, text in saved(page, tmp_path).texts if tag in ("h1", "h2", "p")]
    assert texts == ["title", *(f"{kind} {number}" for number in range(3) for kind in ("heading", "text"))]


def test_pictures_are_inside_the_page(tmp_path: Path) -> None:
    """Both an open picture and a file; the page is complete when the file is gone."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(255 - pixels).save(path)
    page = Page("pictures")
    page.picture(Image.fromarray(pixels), "one")
    page.picture(path, "two")
    path.unlink()
    found = saved(page, tmp_path).attributes
    sources = [str(options["src"]) for tag, options in found if tag == "img" and "src" in options]
    for source, expected in zip(sources, (pixels, 255 - pixels), strict=True):
        head, _, data = source.partition(",")
        assert head == "data:image/png;base64"
        with Image.open(BytesIO(base64.b64decode(data, validate=True))) as found:
            assert found.format == "PNG"
            assert np.array_equal(np.asarray(found), expected)


def test_nothing_is_loaded_from_elsewhere(tmp_path: Path) -> None:
    page = Page("alone")
    page.picture(Image.new("L", (2, 2)), "caption")
    page.curves({"a": [(0, 1), (5, 2)]}, "caption", log=True)
    page.save(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "http" not in text
    page_alone = text.split("<script>")[0]
    links = re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^"]*)', page_alone)
    assert all(link.startswith(("data:", "#section-")) for link in links)
    assert text.startswith("<!doctype html>")
    assert '<meta charset="utf-8">' in text


# --- curves ---


def test_points_are_in_proportion() -> None:
    (points,) = lines(svg({"a": [(0, 5), (25, 6), (50, 7), (100, 9)]})).values()
    xs, ys = np.array(points).T
    assert np.allclose(np.diff(xs) / (xs[-1] - xs[0]), [0.25, 0.25, 0.5], atol=1e-3)
    assert np.allclose(np.diff(ys) / (ys[-1] - ys[0]), [0.25, 0.25, 0.5], atol=1e-3)
    assert ys[-1] < ys[0]  # up is more


def test_a_logarithmic_axis_makes_powers_even() -> None:
    drawing = svg({"a": [(1, 1e-3), (2, 1e-2), (3, 1e-1), (4, 1)]}, log=True)
    (points,) = lines(drawing).values()
    assert np.allclose(np.diff(np.array(points).T[1]), np.diff([y for _, y in points])[0], atol=0.11)
    ticks = [text.text for text in ElementTree.fromstring(drawing).iter("text")]
    assert "0.001" in ticks
    assert "1" in ticks


def test_curves_share_their_axes_and_have_names() -> None:
    found = lines(svg({"low": [(0, 0), (10, 1)], "high": [(5, 3), (10, 4)]}))
    assert found.keys() == {"low", "high"}
    (_, bottom), (right, low) = found["low"]
    (half, _), (end, top) = found["high"]
    assert right == end > half
    assert bottom > low > found["high"][0][1] > top


def test_nine_curves_have_nine_colours() -> None:
    """As many as a codec of four levels has beside four other formats, in the light and in the dark style."""
    drawing = svg({f"curve {number}": [(0.0, number), (1.0, number)] for number in range(9)})
    names = set(re.findall(r"var\((--c\d)\)", drawing))
    assert len(names) == 9
    light, dark = STYLE.split("@media (prefers-color-scheme:dark)")
    for style in (light, dark):
        colours = dict(re.findall(r"(--c\d):(#[0-9a-f]{6})", style))
        assert colours.keys() == names
        assert len({*colours.values()}) == 9


def test_what_is_not_finite_or_not_positive_is_left_out() -> None:
    points = [(0, 1.0), (1, math.nan), (2, math.inf), (3, -math.inf), (4, 0.0), (5, -1.0), (6, 2.0)]
    assert len(lines(svg({"a": points}))["a"]) == 4
    assert len(lines(svg({"a": points}, log=True))["a"]) == 2
    assert lines(svg({"a": points, "none": [(9, math.nan)]})) == lines(svg({"a": points}))


@pytest.mark.parametrize(
    ("curves", "log"),
    [({}, False), ({"a": []}, False), ({"a": [(1, math.nan)]}, False), ({"a": [(1, 0.0), (2, -1.0)]}, True)],
)
def test_nothing_to_draw(curves: dict[str, list[tuple[float, float]]], log: bool, tmp_path: Path) -> None:
    assert svg(curves, log) == "<p>no points</p>"
    page = Page("empty")
    page.curves(curves, "caption", log)
    saved(page, tmp_path)


def test_a_single_point_is_visible() -> None:
    """A run that was evaluated once has one held-out point; a line from a point to nowhere shows nothing."""
    root = ElementTree.fromstring(svg({"many": [(0, 1), (2, 3)], "one": [(1, 2)]}))
    colour = next(text.get("fill") for text in root.iter("text") if text.text == "one")
    shapes = [part for part in root if colour in (part.get("stroke"), part.get("fill"))]
    assert any(
        part.tag == "circle" or len((part.get("points") or "").split()) > 1 or part.get("stroke-linecap")
        for part in shapes
        if part.tag != "text"
    )


@pytest.mark.parametrize("log", [False, True])
def test_a_point_or_a_level_line_divides_by_nothing(log: bool) -> None:
    for points in ([(3, 0.5)], [(0, 2.0), (9, 2.0)], [(4, 1.0), (4, 2.0)]):
        found = lines(svg({"a": points}, log))["a"]
        assert len(found) == len(points)
        assert all(math.isfinite(x) and math.isfinite(y) for x, y in found)


@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=5),
        st.lists(st.tuples(st.integers(0, 10**6), st.floats(width=32))),
        max_size=6,
    ),
    st.booleans(),
)
def test_every_drawing_is_well_formed_and_inside_its_frame(
    curves: dict[str, list[tuple[float, float]]], log: bool
) -> None:
    drawing = svg(curves, log)
    root = ElementTree.fromstring(drawing)
    if root.tag == "p":
        return
    _, _, width, height = (float(part) for part in (root.get("viewBox") or "").split())
    for points in lines(drawing).values():
        assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
    assert "nan" not in "".join(text.text or "" for text in root.iter("text") if not text.get("fill"))


# --- axes ---


@given(st.floats(-1e6, 1e6), st.floats(1e-2, 1e9))
def test_ticks_are_even_round_and_told_apart(low: float, span: float) -> None:
    axis = linear_axis([low, low + span])
    places = [place for place, _ in axis.ticks]
    assert 2 <= len(places) <= 12
    assert np.allclose(np.diff(places), places[1] - places[0], rtol=1e-3)
    labels = [label for _, label in axis.ticks]
    if span > 1e-4 * abs(low):
        assert len({*labels}) == len(labels), labels


def test_whole_steps_have_whole_labels_with_separators() -> None:
    assert [label for _, label in linear_axis([0, 2000]).ticks] == ["0", "500", "1,000", "1,500", "2,000"]
    assert [label for _, label in linear_axis([0, 1]).ticks] == ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]


def test_a_logarithmic_axis_has_ticks_at_any_range() -> None:
    assert [label for _, label in log_axis([-2.0, 1.0]).ticks] == ["0.01", "0.1", "1", "10"]
    assert len(log_axis([0.1, 0.4]).ticks) >= 3


def test_no_label_is_outside_the_drawing() -> None:
    """Of long numbers and long names alike: a character takes at most 8 units."""
    drawing = svg(
        {"a rather long name of a curve " * 3: [(0, 1.23456e6), (123_456, 9.87e6)], "b": [(5, 2e6)]}
    )
    root = ElementTree.fromstring(drawing)
    _, _, width, height = (float(part) for part in (root.get("viewBox") or "").split())
    for label in root.iter("text"):
        if label.get("fill") or label.get("class"):
            continue
        x, length = float(label.get("x") or 0), 7 * len(label.text or "")
        left = {"end": x - length, "middle": x - length / 2}.get(label.get("text-anchor") or "", x)
        assert left >= 0
        assert left + length <= width + 1
        assert 0 < float(label.get("y") or 0) < height


# --- figures as tables ---


def test_figures_have_names_directions_and_explanations() -> None:
    assert all(item.name and "_" not in item.name for item in FIGURES.values())
    assert all(item.about.endswith(".") for item in FIGURES.values())
    figures = {
        "training": {"n": 12_345, "bits_per_code": [3.25, 1234.5]},
        "held out": {"n": 7, "bits_per_code": [4.0, 5.0]},
        "gap": [0.25, 0.5],
    }
    sets, rest = tables(figures)
    assert sets.header == ("", "training", "held out")
    assert [(str(row[0]), *row[1:]) for row in sets.rows] == [
        ("images", "12,345", "7"),
        ("bits per code, level 0", "3.25", "4"),
        ("bits per code, level 1", "1,234", "5"),
    ]
    cell = sets.rows[1][0]
    assert isinstance(cell, Cell)
    assert (cell.better, bool(cell.about)) == ("lower", True)
    assert [row[1] for row in rest.rows] == ["25.0%", "50.0%"]


def test_codes_and_their_counts_stay_together() -> None:
    (table,) = tables({"levels": [{"used": 0.5, "most_used": [[7, 1000], [2, 30]]}]})
    assert [row[1] for row in table.rows] == ["50.0%", "code 7: 1,000 times; code 2: 30 times"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1234567, "1,234,567"), (0.00012345, "0.0001234"), (12345.6, "12,346"), (True, "True")],
)
def test_numbers_for_people(value: float, shown: str) -> None:
    assert text(value) == shown
