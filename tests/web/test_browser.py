"""The web page in headless Chromium: every control once, at the width of a laptop and of a phone.

Skipped where playwright or a Chromium is missing; `make test-web` installs playwright and takes the Chromium of the system.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vqvae2.run import load
from vqvae2.web.jobs import Jobs, Step

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (make test-web)")
uvicorn = pytest.importorskip("uvicorn")

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found; CHROMIUM names one")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def application(sharpened: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The application of a run with both decoders and a report."""
    from vqvae2.web import app as server

    run = Path(shutil.copytree(sharpened, tmp_path_factory.mktemp("served") / "run"))
    (run / "report").mkdir(exist_ok=True)
    (run / "report" / "report.html").write_text("<h1>Report</h1>")
    loaded = load(run, "cpu")
    return server.make_app(loaded, lambda data: loaded.load_images([data])[0], ["127.0.0.1"])


@pytest.fixture(scope="module")
def jobs(application: Any) -> Jobs:
    """What runs its jobs."""
    found: Jobs = application.state.jobs
    return found


@pytest.fixture(scope="module")
def address(application: Any) -> Iterator[str]:
    """A server in a thread."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        running = uvicorn.Server(uvicorn.Config(application, log_level="error"))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
        running.should_exit = True
        thread.join()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, opened; nothing may be asked of another address, and no script may fail."""
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(120_000)
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on(
        "request",
        lambda request: request.url.startswith((address, "data:", "blob:")) or faults.append(request.url),
    )
    opened.goto(address)
    opened.wait_for_selector("body[data-ready]")
    yield opened
    context.close()
    assert faults == []


def pictures_of(page: Any, place: str, n: int) -> list[str]:
    """The images that a job shows, when there are n and it is done."""
    page.wait_for_selector(f"#{place} .progress:has-text('done')")
    shown = page.eval_on_selector_all(f"#{place} .results img", "images => images.map(image => image.src)")
    assert len(shown) == n
    return list(shown)


def paint(page: Any, points: list[tuple[float, float]]) -> None:
    """Drag over the canvas through points in shares of its width and height."""
    page.locator("#canvas").scroll_into_view_if_needed()
    box = page.locator("#canvas").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def painted(page: Any) -> int:
    """How many strokes there are."""
    return int(page.evaluate("strokes.length"))


def test_samples_with_every_setting(page: Any) -> None:
    page.fill("#sample-n", "3")
    page.click("#sample-go")
    usual = pictures_of(page, "sample-job", 3)
    captions = page.locator("#sample-job figcaption").all_text_contents()
    assert captions == ["0: Blue sky", "1: disc", "2: stripes"]

    page.click("#settings summary")
    page.select_option("#label", "disc")
    page.click("#new-seed")
    page.fill("#seed", "7")
    page.select_option("#decoder", "plain")
    for name, value in (("temperature", "0.8"), ("top_k", "5"), ("top_p", "0.9"), ("guidance", "2")):
        for level in (0, 1):
            page.fill(f"#{name}-{level}", value)
    said = page.text_content("#settings-now")
    assert said == "class disc, seed 7, temperature 0.8, top-k 5, top-p 0.9, guidance 2"
    page.click("#sample-go")
    assert not {*usual} & {*pictures_of(page, "sample-job", 3)}
    assert page.locator("#sample-job figcaption").all_text_contents() == ["0: disc", "1: disc", "2: disc"]

    page.click("#reset")
    page.fill("#seed", "0")
    page.click("#sample-go")
    assert pictures_of(page, "sample-job", 3) == usual

    page.click("#sample-job figure button")
    assert page.locator("#large").is_visible()
    assert page.get_attribute("#save", "href") == usual[0]
    page.click("#large button")
    assert page.locator("#large").is_hidden()

    page.fill("#temperature-0", "-1")
    page.click("#sample-go")
    page.wait_for_selector("#sample-job .error:not([hidden])")
    assert "temperature" in page.text_content("#sample-job .error")


def test_an_image_its_codes_and_what_can_be_drawn_of_it(page: Any, pictures: Path, tmp_path: Path) -> None:
    page.click("#tab-image")
    (tmp_path / "notes.txt").write_text("no image")
    page.set_input_files("#file", tmp_path / "notes.txt")
    page.wait_for_selector("#file-error:not([hidden])")
    assert page.text_content("#file-error").startswith("notes.txt: ")
    page.set_input_files("#file", sorted(pictures.rglob("*.png"))[0])
    page.wait_for_selector("#taken-apart:not([hidden])")
    assert page.locator("#file-error").is_hidden()
    assert page.locator("#views figure").count() == 1 + 3 * 2
    assert re.search(r"take \d+ bytes with the priors, 10 without", page.text_content("#image-figures"))

    page.click("#fill-go")
    page.wait_for_selector("#fill-job .error:not([hidden])")
    assert "nothing is painted" in page.text_content("#fill-job .error")
    page.fill("#brush", "20")
    paint(page, [(0.2, 0.2), (0.6, 0.3)])
    paint(page, [(0.5, 0.8), (0.6, 0.8)])
    assert painted(page) == 2
    page.click("#undo")
    assert painted(page) == 1
    page.click("#clear")
    assert painted(page) == 0
    paint(page, [(0.2, 0.2), (0.6, 0.3), (0.5, 0.6)])
    page.fill("#fill-n", "2")
    page.fill("#passes", "2")
    page.click("#fill-go")
    assert len({*pictures_of(page, "fill-job", 2)}) == 2

    page.select_option("#vary-level", "0")
    page.fill("#vary-n", "2")
    page.click("#vary-go")
    whole = pictures_of(page, "vary-job", 2)
    page.select_option("#vary-level", "1")
    page.evaluate("document.getElementById('vary-job').replaceChildren()")
    page.click("#vary-go")
    assert pictures_of(page, "vary-job", 2) != whole

    with page.expect_download() as download:
        page.click("#compress")
    download.value.save_as(tmp_path / "image.vq")
    page.set_input_files("#decompress", tmp_path / "image.vq")
    page.wait_for_selector("#decompressed figure")
    with page.context.expect_page() as report:
        page.click("#reports a:has-text('Evaluation')")
    assert report.value.text_content("h1") == "Report"


def test_a_job_is_stopped(page: Any, address: str, jobs: Jobs) -> None:
    before = threading.Event()

    def busy() -> Iterator[Step]:
        """Another job, which keeps the thread busy and not the model."""
        before.wait()
        return iter(())

    jobs.start(1, busy)
    with page.expect_response("**/api/jobs/*"):
        page.fill("#sample-n", "4")
        page.click("#sample-go")
    with page.expect_response("**/stop"):
        page.click("#sample-job .stop")
    before.set()
    page.wait_for_selector("#sample-job .progress:has-text('stopped')")
    assert page.locator("#sample-job .results img").count() < 4
    assert page.locator("#sample-go").is_enabled()


def test_on_a_phone_nothing_is_wider_than_the_screen(page: Any, pictures: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.click("#settings summary")
    page.click("#tab-image")
    page.set_input_files("#file", sorted(pictures.rglob("*.png"))[0])
    page.wait_for_selector("#taken-apart:not([hidden])")
    for tab in ("#tab-image", "#tab-sample"):
        page.click(tab)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    small = page.evaluate(
        "[...document.querySelectorAll('button, select, input:not([type=checkbox])')].filter("
        "e => e.offsetParent && e.getBoundingClientRect().height < 36 && e.type !== 'file').map(e => e.id)"
    )
    assert small == [], "too small for a finger"


def test_without_a_server_the_page_says_so(page: Any) -> None:
    page.context.set_offline(True)
    page.click("#sample-go")
    page.wait_for_selector("#sample-job .error:not([hidden])")
    assert "does not answer" in page.text_content("#sample-job .error")


def test_the_command_serves_until_it_is_stopped(trained: Path) -> None:
    code = [sys.executable, "-W", "ignore", "-m", "vqvae2", "serve", str(trained), "--port", "0"]
    with subprocess.Popen(code, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        line = process.stderr.readline()
        assert re.search(r"http://127\.0\.0\.1:\d+/", line)
        process.terminate()
        process.communicate()
