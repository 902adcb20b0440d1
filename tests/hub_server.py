"""A stand-in for the Hugging Face Hub: the part of its HTTP interface that uploads and downloads of models use.

Repositories are in memory. Safetensors are uploaded through Git LFS, everything else in the commit, as on the Hub.
"""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_writes"  # may do everything; no other token may do anything


@dataclass
class Repository:
    """One model repository: its files, whether it is private, how often it was committed to."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0

    @property
    def sha(self) -> str:
        """The name of the last commit."""
        return hashlib.sha1(str(self.commits).encode()).hexdigest()


@dataclass
class Hub:
    """What the server holds, and what it was asked for; one that is `closing` ends every connection without an answer."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    closing: bool = False


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self._path()
        if self.hub.closing:
            self.close_connection = True
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/\w+", path):
            if found := self._readable(match[1]):
                self._json([_entry(name, data) for name, data in found.files.items()])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/\w+)?", path):
            if found := self._readable(match[1]):
                siblings = [{"rfilename": name} for name in found.files]
                self._json({"id": match[1], "sha": found.sha, "private": found.private, "siblings": siblings})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/\w+/(.+)", path):
            self._file(match[1], match[2])
        else:
            self._refuse(404, "no such address")

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        data = self._body()
        self.hub.blobs[hashlib.sha256(data).hexdigest()] = data
        self._json({})

    def do_POST(self) -> None:
        path, data = self._path(), self._body()
        if path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._refuse(401, "Invalid username or password.")
        elif path == "/api/repos/create":
            asked = json.loads(data)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.hub.repositories:
                there = {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
                self._answer(409, json.dumps(there).encode(), "application/json")
                return
            self.hub.repositories[name] = Repository(
                bool(asked.get("private")) or asked.get("visibility") == "private"
            )
            self._json({"url": f"{self.hub.url}/{name}"})
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/\w+", path):
            files = [
                {"path": f["path"], "uploadMode": _mode(f["path"]), "shouldIgnore": False}
                for f in json.loads(data)["files"]
            ]
            self._json({"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            upload = {"upload": {"href": f"{self.hub.url}/blobs"}}
            objects = [{**o, "actions": upload} for o in json.loads(data)["objects"]]
            self._json({"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/\w+", path):
            self._commit(match[1], data)
        else:
            self._refuse(404, "no such address")

    def _commit(self, name: str, data: bytes) -> None:
        found = self.hub.repositories[name]
        for line in map(json.loads, data.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                found.files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                found.files[value["path"]] = self.hub.blobs[value["oid"]]
            if line["key"] == "deletedFile":
                del found.files[value["path"]]
        found.commits += 1
        url = f"{self.hub.url}/{name}/commit/{found.sha}"
        self._json({"success": True, "commitOid": found.sha, "commitUrl": url, "hookOutput": ""})

    def _file(self, name: str, path: str) -> None:
        if not (found := self._readable(name)):
            return
        if path not in found.files:
            self._refuse(404, "no such file", {"X-Error-Code": "EntryNotFound"})
            return
        data = found.files[path]
        more = {"X-Repo-Commit": found.sha, "ETag": f'"{_etag(path, data)}"'}
        self._answer(200, data, "application/octet-stream", more)

    def _readable(self, name: str) -> Repository | None:
        """The repository, or None after an answer that says it is not there, as the Hub does for private ones too."""
        found = self.hub.repositories.get(name)
        if found and (not found.private or self.headers.get("authorization") == f"Bearer {TOKEN}"):
            return found
        self._refuse(401, "Invalid username or password.", {"X-Error-Code": "RepoNotFound"})
        return None

    def _path(self) -> str:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        return path

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), "application/json")

    def _refuse(self, status: int, message: str, more: dict[str, str] | None = None) -> None:
        text = json.dumps({"error": message}).encode()
        self._answer(status, text, "application/json", {"X-Error-Message": message, **(more or {})})

    def _answer(self, status: int, data: bytes, kind: str, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _mode(path: str) -> str:
    return "lfs" if fnmatch.fnmatch(path, "*.safetensors") else "regular"


def _etag(path: str, data: bytes) -> str:
    if _mode(path) == "lfs":
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _etag(path, data)}
    if _mode(path) == "lfs":
        entry["lfs"] = {"oid": _etag(path, data), "size": len(data), "pointerSize": 100}
    return entry


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub on a free port of this machine, in a thread of its own."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
