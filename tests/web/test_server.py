"""The server of the web page, without a browser: what it answers, and what it refuses in one line."""

from __future__ import annotations

import base64
import json
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vqvae2.codec.container import read_header
from vqvae2.data.pixels import to_pil
from vqvae2.errors import UserError
from vqvae2.run import Run, load

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from vqvae2.web import app as server
from vqvae2.web import jobs as server_jobs
from vqvae2.web.jobs import Job, Jobs, Step
from vqvae2.web.pictures import bits_url, image_urls, palette
from vqvae2.web.requests import Fill, Request, Vary
from vqvae2.web.studio import Studio

HOSTS = ["testserver"]


@pytest.fixture(scope="module")
def model(trained: Path) -> Run:
    return load(trained, "cpu")


@pytest.fixture(scope="module")
def client(model: Run) -> Iterator[TestClient]:
    with TestClient(server.make_app(model, lambda data: model.load_images([data])[0], HOSTS)) as opened:
        yield opened


@pytest.fixture(scope="module")
def uploaded(client: TestClient, pictures: Path) -> dict[str, Any]:
    """What the server says of an image, and the image itself under "file"."""
    file = sorted(pictures.rglob("*.png"))[0]
    answer = client.post("/api/images", content=file.read_bytes())
    assert answer.status_code == 200
    return {**answer.json(), "file": file}


def finished(client: TestClient, answer: Any) -> dict[str, Any]:
    """The job that an answer names, when it is over."""
    assert answer.status_code == 200, answer.json()
    while True:
        job = dict(client.get(f"/api/jobs/{answer.json()}").json())
        if job["state"] not in ("waiting", "running"):
            return job
        time.sleep(0.02)


def pixels(url: str) -> np.ndarray:
    """The picture in a data URL."""
    return np.asarray(Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))))


def mask(area: tuple[slice, slice], side: int = 16) -> str:
    """A mask that is white in an area, as the page sends it."""
    grey = np.zeros((side, side), np.uint8)
    grey[area] = 255
    buffer = BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def huge_mask() -> str:
    """A mask whose header says that it has 60000x60000 px."""
    head, _, text = mask((slice(0), slice(0))).partition(",")
    data = bytearray(base64.b64decode(text))
    data[16:24] = struct.pack(">II", 60_000, 60_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return f"{head},{base64.b64encode(data).decode()}"


def test_what_the_page_is_told_of_the_run(client: TestClient, model: Run) -> None:
    about = client.get("/api/run").json()
    assert about["classes"] == ["Blue sky", "disc", "stripes"]
    assert (about["size"], about["grids"], about["vocabulary"]) == ([16, 16], [[2, 2], [4, 4]], [16, 16])
    assert about["decoders"] == ["plain"]
    assert about["draws"]
    assert about["reports"].keys() <= {"Training"}


def test_samples_are_those_of_the_run(client: TestClient, model: Run) -> None:
    asked = {
        "n": 5,
        "label": "disc",
        "seed": 3,
        "temperature": [0.5, 0.9],
        "top_k": [0, 3],
        "top_p": 0.9,
        "decoder": "plain",
    }
    job = finished(client, client.post("/api/sample", json=asked))
    assert (job["state"], job["done"], job["total"]) == ("done", 5, 5)
    settings = {"temperature": (0.5, 0.9), "top_k": (0, 3), "top_p": 0.9}
    ours = to_pil(model.sample(5, "disc", 3, **settings))
    assert [result["label"] for result in job["results"]] == ["disc"] * 5
    for result, image in zip(job["results"], ours, strict=True):
        assert np.array_equal(pixels(result["image"]), np.asarray(image))


def test_an_image_is_taken_apart(uploaded: dict[str, Any], model: Run) -> None:
    image = model.load_images([uploaded["file"].read_bytes()])[0]
    codes = model.autoencoder.encode(image[None])
    assert np.array_equal(pixels(uploaded["image"]), np.asarray(to_pil(image[None])[0]))
    bits = -model.log_prob(image[None])[0].double() / np.log(2)
    for index, (level, grid) in enumerate(zip(uploaded["levels"], codes.levels, strict=True)):
        colours = palette(model.autoencoder.quantizers[index].codebook()).numpy()
        assert np.array_equal(pixels(level["codes"]), colours[grid[0].numpy()])
        assert pixels(level["bits"]).shape[:2] == grid.shape[1:]
        assert level["sum"] == pytest.approx(float(bits[index]), rel=1e-4)
        assert level["different"] == len(grid.unique())
    whole = to_pil(model.reconstruct(image[None]))[0]
    assert np.array_equal(pixels(uploaded["levels"][-1]["image"]), np.asarray(whole))


def test_a_part_is_filled_in_and_the_rest_stays(
    client: TestClient, uploaded: dict[str, Any], model: Run
) -> None:
    area = (slice(4, 12), slice(0, 8))
    asked = {"image": uploaded["id"], "mask": mask(area), "n": 3, "seed": 1, "passes": 2, "label": "stripes"}
    job = finished(client, client.post("/api/fill", json=asked))
    hole = torch.zeros(16, 16, dtype=torch.bool)
    hole[area] = True
    kept = model.keep(model.load_images([uploaded["file"].read_bytes()])[0], hole)
    ours = [image for part in model.complete(kept, 3, "stripes", 1, 2) for image in to_pil(part.images)]
    for result, image in zip(job["results"], ours, strict=True):
        assert np.array_equal(pixels(result["image"]), np.asarray(image))
        outside = ~hole.numpy()
        assert np.array_equal(pixels(result["image"])[outside], pixels(uploaded["image"])[outside])


@pytest.mark.parametrize("level", [0, 1])
def test_a_level_is_drawn_again(client: TestClient, uploaded: dict[str, Any], level: int) -> None:
    asked = {"image": uploaded["id"], "level": level, "n": 4}
    job = finished(client, client.post("/api/vary", json=asked))
    assert (job["state"], len(job["results"])) == ("done", 4)
    assert len({result["image"] for result in job["results"]}) > 1
    assert all(result["bits"] > 0 for result in job["results"])


def test_a_variation_keeps_the_coarser_levels(
    client: TestClient, uploaded: dict[str, Any], model: Run
) -> None:
    job = finished(client, client.post("/api/vary", json={"image": uploaded["id"], "level": 1, "n": 2}))
    kept = model.keep(model.load_images([uploaded["file"].read_bytes()])[0], levels=1)
    ours = [image for part in model.complete(kept, 2) for image in to_pil(part.images)]
    for result, image in zip(job["results"], ours, strict=True):
        assert np.array_equal(pixels(result["image"]), np.asarray(image))


@pytest.mark.parametrize(
    ("path", "asked", "part"),
    [
        ("sample", {"n": 65}, "n: "),
        ("sample", {"n": 0}, "n: "),
        ("sample", {"temperature": -1}, "temperature"),
        ("sample", {"temperature": [1, 1, 1]}, "temperature"),
        ("sample", {"label": "nobody"}, "no class 'nobody'"),
        ("sample", {"label": "9" * 1000}, "no class '999"),
        ("sample", {"label": "9" * 5000}, "label: "),
        ("sample", {"decoder": "sharp"}, "not sharpened"),
        ("sample", {"size": 9}, "size: "),
        ("sample", [], "dictionary"),
        ("fill", {"image": "gone", "mask": "x"}, "no longer here"),
        ("vary", {"image": "ID", "keep_finer": True}, "keep_finer: "),  # see docs/decisions.md
        ("fill", {"image": "ID", "mask": "x"}, "expected the mask as a PNG"),
        ("fill", {"image": "ID", "mask": "data:image/png;base64,AAAA"}, "the mask is no picture"),
        ("fill", {"image": "ID", "mask": mask((slice(0, 9), slice(0, 9)), 9)}, "expected a mask of 16x16 px"),
        ("fill", {"image": "ID", "mask": huge_mask()}, "the mask is no picture"),
        ("fill", {"image": "ID", "mask": mask((slice(0), slice(0)))}, "nothing is painted"),
        ("fill", {"image": "ID", "mask": mask((slice(0, 4), slice(0, 4))), "passes": 51}, "passes: "),
        ("vary", {"image": "ID", "level": 2}, "expected a level 0..1"),
    ],
)
def test_mistakes_are_one_line(
    client: TestClient, uploaded: dict[str, Any], path: str, asked: Any, part: str
) -> None:
    if isinstance(asked, dict) and asked.get("image") == "ID":
        asked = {**asked, "image": uploaded["id"]}
    answer = client.post(f"/api/{path}", json=asked)
    assert answer.status_code == 400, "refused before a job is made of it"
    said = answer.json()["error"]
    assert part in said
    assert "\n" not in said


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 200_000, b"9" * 5000])
def test_what_is_no_json_is_one_line(client: TestClient, data: bytes) -> None:
    answer = client.post("/api/sample", content=data)
    assert (answer.status_code, answer.json()) == (400, {"error": "expected JSON"})


@pytest.mark.parametrize(
    ("data", "part"), [(b"", "zero bytes"), (b"hello", ""), (b"\x89PNG\r\n\x1a\n" + bytes(40), "")]
)
def test_a_bad_file_is_one_line(client: TestClient, data: bytes, part: str) -> None:
    answer = client.post("/api/images", content=data)
    assert answer.status_code == 400
    assert part in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


def test_uploads_are_bounded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LARGEST", 2**20)
    answer = client.post("/api/images", content=bytes(2**20 + 1))
    assert answer.status_code == 413
    assert "larger than 1 MiB" in answer.json()["error"]


def test_only_the_newest_images_are_kept(client: TestClient, uploaded: dict[str, Any]) -> None:
    data = uploaded["file"].read_bytes()
    first = client.post("/api/images", content=data).json()["id"]
    for _ in range(16):
        client.post("/api/images", content=data)
    answer = client.post("/api/vary", json={"image": first, "level": 0})
    assert "no longer here" in answer.json()["error"]


def test_the_page_is_served_and_may_load_nothing_from_elsewhere(client: TestClient) -> None:
    for path in ("/", "/app.js", "/style.css"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        text = answer.text.replace("http://www.w3.org", "")
        assert "http://" not in text
        assert "https://" not in text
    assert client.get("/nothing").status_code == 404
    assert client.get("/../app.py").status_code == 404


def test_other_sites_and_other_names_are_refused(client: TestClient) -> None:
    answer = client.post("/api/sample", json={}, headers={"Origin": "https://elsewhere.example"})
    assert answer.status_code == 403
    assert client.get("/api/run", headers={"Host": "elsewhere.example"}).status_code == 400
    assert client.post("/api/images", content=b"", headers={"Origin": "http://testserver"}).status_code == 400


def test_the_report_is_served(run: Path) -> None:
    (run / "report").mkdir(exist_ok=True)
    (run / "report" / "report.html").write_text("<p>figures</p>")
    loaded = load(run, "cpu")
    with TestClient(server.make_app(loaded, lambda data: loaded.load_images([data])[0], HOSTS)) as client:
        assert client.get("/api/run").json()["reports"]["Evaluation"] == "report.html"
        assert client.get("/report/report.html").text == "<p>figures</p>"
        assert client.get("/report/..%2fconfig.yaml").status_code == 404


def test_a_run_without_priors_can_still_be_looked_into(half: Path, pictures: Path) -> None:
    loaded = load(half, "cpu")
    with TestClient(server.make_app(loaded, lambda data: loaded.load_images([data])[0], HOSTS)) as client:
        assert not client.get("/api/run").json()["draws"]
        found = client.post("/api/images", content=sorted(pictures.rglob("*.png"))[0].read_bytes()).json()
        assert [sorted(level) for level in found["levels"]] == [["codes", "different", "image", "psnr"]] * 2
        assert "not trained yet" in client.post("/api/sample", json={}).json()["error"]
        answer = client.get(f"/api/images/{found['id']}/compressed")
        assert (answer.status_code, "not trained yet" in answer.json()["error"]) == (400, True)


def test_compression(client: TestClient, model: Run, uploaded: dict[str, Any]) -> None:
    name = client.post("/api/images", content=uploaded["file"].read_bytes()).json()["id"]
    answer = client.get(f"/api/images/{name}/compressed")
    image = model.load_images([uploaded["file"].read_bytes()])[0]
    assert answer.content == model.compress(image)
    assert "attachment" in answer.headers["content-disposition"]
    found = client.post("/api/decompress", content=answer.content).json()
    assert found["bytes"] == len(answer.content)
    expected = to_pil(model.decompress(answer.content)[None])[0]
    assert np.array_equal(pixels(found["image"]), np.asarray(expected))
    assert client.post("/api/decompress", content=b"small").status_code == 400
    header, end = read_header(answer.content, 2, model.codec.digest)
    large = replace(header, size=(2**12, 2**12)).pack() + answer.content[end:]
    refused = client.post("/api/decompress", content=large)
    assert (refused.status_code, "more than the 4194304" in refused.json()["error"]) == (400, True)


@pytest.mark.parametrize("channels", [2, 6])
def test_images_of_any_number_of_channels_are_shown(channels: int) -> None:
    (url,) = image_urls(torch.zeros(1, channels, 4, 5))
    assert pixels(url).shape[:2] == (4, 5)


def test_jobs_stop_between_steps_and_failures_do_not_stop_the_next() -> None:
    jobs = Jobs()
    begun = []

    def endless() -> Iterator[Step]:
        for number in range(10**9):
            begun.append(number)
            yield number, [number]

    def broken() -> Iterator[Step]:
        yield 1, []
        raise UserError("no\ncodes")

    def short() -> Iterator[Step]:
        yield 2, ["a", "b"]

    first, second, third = (jobs.find(jobs.start(2, steps)) for steps in (endless, broken, short))
    while not begun:
        time.sleep(0.001)
    first.stop = True
    while third.state != "done":
        time.sleep(0.001)
    assert second.to_json() == {"state": "failed", "done": 1, "total": 2, "results": [], "error": "no codes"}
    assert third.results == ["a", "b"]
    with pytest.raises(UserError, match="no such job"):
        jobs.find("another")
    jobs.close()


def test_too_many_waiting_jobs_are_refused() -> None:
    jobs = Jobs()
    with jobs.lock:
        for _ in range(5):
            jobs.start(1, lambda: iter([(1, [])]))
        with pytest.raises(UserError, match="still waiting"):
            jobs.start(1, lambda: iter([(1, [])]))
    jobs.close()


def test_a_step_that_runs_keeps_no_request_waiting(model: Run, pictures: Path) -> None:
    """A click waited for a whole step, and requests piled up instead of being refused."""
    jobs = Jobs()
    studio = Studio(model, lambda data: model.load_images([data])[0], jobs)
    image = studio.upload(sorted(pictures.rglob("*.png"))[0].read_bytes())["id"]
    asked: list[Callable[[], str]] = [
        *[lambda: studio.sample(Request(n=1))] * 3,
        lambda: studio.vary(Vary(image=image, n=1)),
        lambda: studio.fill(Fill(image=image, n=1, mask=mask((slice(0, 8), slice(0, 8))))),
    ]
    with ThreadPoolExecutor(1) as clicks:
        with jobs.lock:  # as a step that runs has it
            names = [clicks.submit(ask).result(timeout=20) for ask in asked]
            with pytest.raises(UserError, match="still waiting"):
                clicks.submit(asked[0]).result(timeout=20)
            with pytest.raises(UserError, match="no class 'nobody'"):
                clicks.submit(studio.vary, Vary(image=image, label="nobody")).result(timeout=20)
        while any(jobs.find(name).state in ("waiting", "running") for name in names):
            time.sleep(0.02)
    assert [jobs.find(name).state for name in names] == ["done"] * 5
    jobs.close()


def test_of_many_requests_at_once_five_jobs_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are refused in one line; the pause makes each counting of the jobs last as long as the asking of the others."""
    states = Job.__getattribute__

    def slow(job: Job, name: str) -> Any:
        if name == "state":
            time.sleep(0.002)
        return states(job, name)

    queue, given, refused, faults = Jobs(), [], [], []
    together = threading.Barrier(50)

    def ask() -> None:
        together.wait()
        try:
            given.append(queue.start(1, lambda: iter([(1, [])])))
        except UserError as error:
            refused.append(str(error))
        except Exception as error:  # what the page would be told as a fault of the server
            faults.append(error)

    with queue.lock, monkeypatch.context() as patch:
        patch.setattr(Job, "__getattribute__", slow)
        threads = [threading.Thread(target=ask) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    queue.close()
    assert (faults, len(given), len(refused)) == ([], 5, 45)


def test_who_waits_for_the_model_gets_it_after_the_present_step() -> None:
    """Thirty times, because a lock that is not fair may happen to go to who waits."""
    queue, order = Jobs(), list[str]()

    def asks() -> None:
        with queue.lock:
            order.append("upload")

    uploads = [threading.Thread(target=asks) for _ in range(30)]

    def steps() -> Iterator[Step]:
        for number, upload in enumerate(uploads):
            order.append("step")
            upload.start()
            time.sleep(0.02)  # it waits by now
            yield number + 1, []

    name = queue.start(len(uploads), steps)
    while queue.find(name).state != "done":
        time.sleep(0.01)
    for upload in uploads:
        upload.join()
    queue.close()
    assert order == ["step", "upload"] * len(uploads)


def test_each_image_is_sent_once(client: TestClient) -> None:
    name = client.post("/api/sample", json={"n": 8}).json()
    sent: list[dict[str, Any]] = []
    state = "waiting"
    while state in ("waiting", "running"):
        answer = client.get(f"/api/jobs/{name}", params={"from": len(sent)}).json()
        state, sent = answer["state"], [*sent, *answer["results"]]
    assert (state, sent) == ("done", client.get(f"/api/jobs/{name}").json()["results"])
    assert len(sent) == 8
    for wrong in ("-1", "x", "9" * 5000):
        answer = client.get(f"/api/jobs/{name}", params={"from": wrong})
        assert (answer.status_code, "whole number" in answer.json()["error"]) == (400, True)


def test_the_results_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the oldest jobs go first, whole; a job that is too large by itself fails in one line."""
    monkeypatch.setattr(server_jobs, "_MOST", 1000)
    queue = Jobs()

    def kept() -> int:
        return sum(len(json.dumps(result)) for job in queue._jobs.values() for result in job.results)

    def steps(count: int) -> Iterator[Step]:
        for number in range(count):
            assert kept() <= 1000
            yield number + 1, ["x" * 150]

    names = [queue.start(count, lambda count=count: steps(count)) for count in (3, 2, 3, 9)]
    jobs = [queue.find(name) for name in names]
    while jobs[-1].state != "failed":
        time.sleep(0.001)
    queue.close()
    assert jobs[-1].error == "its images take more than 0 MiB; ask for fewer"
    assert 0 < kept() <= 1000
    assert [job.state for job in jobs[:-1]] == ["done"] * 3
    with pytest.raises(UserError, match="no longer kept; start it again"):
        queue.answer(names[0], 0)
    assert queue.answer(names[0], 3)["results"] == [], "who has them all is not told of a fault"


def test_the_newest_results_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_jobs, "_MOST", 1000)
    queue = Jobs()
    names = [queue.start(2, lambda: iter([(1, ["x" * 150]), (2, ["y" * 150])])) for _ in range(4)]
    while queue.find(names[-1]).state != "done":
        time.sleep(0.001)
    queue.close()
    assert [queue.find(name).dropped for name in names] == [2, 0, 0, 0]


def test_a_server_on_ipv6_is_reached_with_an_older_starlette(model: Run) -> None:
    """Those take what is before the first colon for the host; browsers send `[::1]:7860`."""
    for read in (lambda host: host, lambda host: host.split(":")[0]):
        hosts = [read(f"{host}:7860").removesuffix(":7860") for host in ("[::1]", "127.0.0.1", "localhost")]
        assert set(hosts) <= set(server.LOCAL)
    with TestClient(
        server.make_app(model, lambda data: model.load_images([data])[0], server.LOCAL)
    ) as client:
        assert client.get("/api/run", headers={"Host": "[::1]:7860"}).status_code == 200
        assert client.get("/api/run", headers={"Host": "elsewhere.example"}).status_code == 400


def test_similar_codes_have_similar_colours() -> None:
    codebook = torch.arange(64.0)[:, None] * torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    colours = palette(codebook)
    assert (colours[1:, 0].int() - colours[:-1, 0].int()).abs().max() <= 4
    assert (colours[0, 0].int() - colours[-1, 0].int()).abs() == 210
    assert palette(torch.zeros(1, 2)).shape == (1, 3)


def test_more_bits_are_lighter() -> None:
    picture = pixels(bits_url(torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0, 9.0]]), 4.0)).astype(int).sum(2)[0]
    assert (np.diff(picture[:5]) > 0).all()
    assert picture[5] == picture[4]


def test_the_command_says_what_is_missing_or_taken(
    trained: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        said = command("serve", trained, "--port", taken.getsockname()[1])
        assert said.code == 2
        assert "choose another --port" in said.err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = command("serve", trained)
    assert said.code == 2
    assert "pip install 'vqvae2[web]'" in said.err
