"""The web page's server: routes, bounds and headers. It listens where it is told, and the page loads nothing from elsewhere.

GET  /                    the page         GET  /api/run                what the run is
POST /api/sample          -> job           GET  /api/jobs/NAME?from=K   how far a job is, and its results from K on
POST /api/images          a file -> its codes and bits                 POST /api/jobs/NAME/stop
POST /api/fill, /api/vary -> job           GET  /api/images/NAME/compressed, POST /api/decompress
GET  /report/...          RUN/report
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from vqvae2.errors import UserError
from vqvae2.run import Run
from vqvae2.web.jobs import Jobs
from vqvae2.web.requests import Fill, Request, Vary, checked
from vqvae2.web.studio import Read, Studio

LARGEST = 32 * 2**20  # bytes of an upload
LOCAL = ["127.0.0.1", "localhost", "[::1]", "["]  # the last is what older Starlettes read of "[::1]:7860"

_PAGE = Path(__file__).parent / "page"
_OWN = "default-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_REPORT = "default-src 'self' data: 'unsafe-inline'; connect-src 'none'; base-uri 'none'"  # its styles are in the page


def make_app(run: Run, read: Read, hosts: list[str]) -> Starlette:
    """The application for one run.

    Args:
        run: its autoencoder is trained.
        read: decodes an uploaded file, see `Studio`.
        hosts: names under which the server may be addressed; "*" allows all. Other names are refused, so that no web
            page elsewhere can reach a server on this machine through a name of its own.

    Returns:
        The application; its `state.jobs` runs the jobs.
    """
    handlers = _Handlers(Studio(run, read, jobs := Jobs()), jobs)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(jobs.close)

    routes = [
        *handlers.routes(),
        Mount("/report", StaticFiles(directory=run.paths.report, check_dir=False)),
        Route("/", lambda _: FileResponse(_PAGE / "index.html")),
        Mount("/", StaticFiles(directory=_PAGE)),
    ]
    middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=hosts),
        Middleware(BaseHTTPMiddleware, dispatch=_guarded),
    ]
    errors: dict[Any, Any] = {UserError: _refused, HTTPException: _not_found}
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=errors, lifespan=lifespan)
    app.state.jobs = jobs
    return app


class _Handlers:
    """What answers the requests to /api."""

    def __init__(self, studio: Studio, jobs: Jobs) -> None:
        self.studio, self.jobs = studio, jobs

    def routes(self) -> list[Route]:
        """The routes of /api."""
        posts = {"sample": self.sample, "fill": self.fill, "vary": self.vary, "images": self.upload}
        posts |= {"decompress": self.decompress, "jobs/{name}/stop": self.stop}
        gets = {"run": self.about, "jobs/{name}": self.job, "images/{name}/compressed": self.compressed}
        return [
            *(Route(f"/api/{path}", handler, methods=["POST"]) for path, handler in posts.items()),
            *(Route(f"/api/{path}", handler) for path, handler in gets.items()),
        ]

    async def about(self, _: HttpRequest) -> Response:
        return await _json(self.studio.about)

    async def sample(self, request: HttpRequest) -> Response:
        return await _json(self.studio.sample, checked(Request, await _body_json(request)))

    async def fill(self, request: HttpRequest) -> Response:
        return await _json(self.studio.fill, checked(Fill, await _body_json(request)))

    async def vary(self, request: HttpRequest) -> Response:
        return await _json(self.studio.vary, checked(Vary, await _body_json(request)))

    async def upload(self, request: HttpRequest) -> Response:
        return await _json(self.studio.upload, await _body(request))

    async def decompress(self, request: HttpRequest) -> Response:
        return await _json(self.studio.decompress, await _body(request))

    async def compressed(self, request: HttpRequest) -> Response:
        data = await run_in_threadpool(self.studio.compress, request.path_params["name"])
        headers = {"Content-Disposition": 'attachment; filename="image.vq"'}
        return Response(data, media_type="application/octet-stream", headers=headers)

    async def job(self, request: HttpRequest) -> Response:
        text = request.query_params.get("from", "0")
        if not (text.isdecimal() and len(text) < 10):
            raise UserError("from: expected a whole number that is not negative")
        return JSONResponse(self.jobs.answer(request.path_params["name"], int(text)))

    async def stop(self, request: HttpRequest) -> Response:
        self.jobs.find(request.path_params["name"]).stop = True
        return JSONResponse({})


def serve(run: Run, read: Read, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve the page until Ctrl-C.

    Args:
        say: is called with one line that has the address, when the server listens.

    Raises:
        UserError: the address cannot be used.
    """
    import socket

    import uvicorn

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise UserError(
            f"cannot listen on {host}, port {port}: {error.strerror}; choose another --port or --host"
        ) from None
    local = host in ("127.0.0.1", "::1", "localhost")
    app = make_app(run, read, LOCAL if local else ["*"])
    shown = f"[{host}]" if ":" in host else host
    say(f"{run.folder}: http://{shown}:{listening.getsockname()[1]}/  (Ctrl-C stops)")
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
    with listening:
        server.run(sockets=[listening])


async def _json(function: Callable[..., Any], *arguments: Any) -> Response:
    """What a function returns, as JSON; the function runs in a thread, so that the server goes on answering."""
    return JSONResponse(await run_in_threadpool(function, *arguments))


async def _body(request: HttpRequest) -> bytes:
    """The body of a request.

    Raises:
        HTTPException: 413, it is too large; what came after the limit is not read.
    """
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > LARGEST:
            raise HTTPException(413, f"the file is larger than {LARGEST // 2**20} MiB")
        parts.append(part)
    return b"".join(parts)


async def _body_json(request: HttpRequest) -> Any:
    try:
        return json.loads(await _body(request))
    except (ValueError, RecursionError):  # no JSON, or nested too deep
        raise UserError("expected JSON") from None


async def _guarded(request: HttpRequest, call: Callable[[HttpRequest], Awaitable[Response]]) -> Response:
    """Refuse what another site's page sends, and tell the browser to load nothing from elsewhere."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        return JSONResponse({"error": "requests from other sites are refused"}, 403)
    response = await call(request)
    report = request.url.path.startswith("/report/")
    response.headers["Content-Security-Policy"] = _REPORT if report else _OWN
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-store"
    return response


async def _refused(_: HttpRequest, error: Exception) -> Response:
    return JSONResponse({"error": " ".join(str(error).split())}, 400)


async def _not_found(_: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)
