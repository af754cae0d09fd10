"""A web server that speaks the part of the Hugging Face Hub's API that fetching models needs.

It also serves plain files, and has switches to misbehave. Sources of the protocol: what
huggingface_hub 2.4 sends and reads (`hf_api.py`, `file_download.py`), https://huggingface.co/docs/hub/api.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """A request that came in. headers: names in small letters."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass(slots=True)
class Misbehaviour:
    """Switches; a test may set them at any time.

    token: without it everything is refused, as for a private repository. gated: as for one whose
        terms were not accepted. status: answer to every request for a file's content.
    cut_after: bytes of content after which connections are cut; `cuts`: so many of them.
    stall_after: bytes of content after which the server keeps silent until `release` is called.
    ranges: whether parts of a file can be had. lengths: whether the length of a file is told.
    validators: whether there are entity tags. spoilt: whether content differs from its hash.
    claimed_sizes: sizes to claim in place of the true ones, by path.
    """

    token: str | None = None
    gated: bool = False
    status: int | None = None
    cut_after: int | None = None
    cuts: int = 1
    stall_after: int | None = None
    ranges: bool = True
    lengths: bool = True
    validators: bool = True
    spoilt: bool = False
    claimed_sizes: dict[str, int] = field(default_factory=dict)


class FakeHub:
    """The server, for a `with` statement.

    repos: content by path in the repository, by repository. files: content by path below `/files/`.

    `url` is what to put into `HF_ENDPOINT`; content comes from another origin, as on the real Hub.
    `requests` are all that came in; `sent` counts bytes of content; `stalled` is set while the
    server keeps silent.
    """

    def __init__(
        self,
        repos: Mapping[str, Mapping[str, bytes]] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        self.repos = dict(repos or {})
        self.files = dict(files or {})
        self.switches = Misbehaviour()
        self.requests: list[SeenRequest] = []
        self.sent = 0
        self.stalled = threading.Event()
        self._released = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_for(self))
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{port}"
        self.content_url = f"http://localhost:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def release(self) -> None:
        """Let connections that keep silent go on."""
        self._released.set()

    def content_requests(self) -> list[SeenRequest]:
        """The requests for content, which are those that can be resumed."""
        return [
            seen
            for seen in self.requests
            if seen.method == "GET" and seen.path.startswith(("/content/", "/files/"))
        ]

    def take_cut(self) -> int | None:
        """Bytes after which this connection is to be cut."""
        with self._lock:
            if self.switches.cut_after is None or self.switches.cuts == 0:
                return None
            self.switches.cuts -= 1
            return self.switches.cut_after

    def stall(self) -> None:
        """Keep silent until `release`."""
        self.stalled.set()
        self._released.wait()


def _handler_for(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        pass

    Handler.hub = hub
    return Handler


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def end_headers(self) -> None:
        """Every connection is for one request, so that no thread outlives its answer."""
        self.send_header("Connection", "close")
        self.close_connection = True
        super().end_headers()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append(SeenRequest(self.command, self.path, headers))
        path = unquote(urlsplit(self.path).path)
        with contextlib.suppress(ConnectionError):  # the client has gone
            if path.startswith("/files/"):
                self._send_content(self.hub.files.get(path.removeprefix("/files/")))
            elif path.startswith("/content/"):
                self._send_content(self._by_hash().get(path.rpartition("/")[2]))
            elif self._may_read(headers):
                self._answer_api(path)

    def _may_read(self, headers: Mapping[str, str]) -> bool:
        switches = self.hub.switches
        if switches.gated:
            self._fail(403, "GatedRepo", "Access to this model is restricted")
            return False
        if switches.token and headers.get("authorization") != f"Bearer {switches.token}":
            self._fail(401, "RepoNotFound", "Repository not found")
            return False
        return True

    def _answer_api(self, path: str) -> None:
        if path.startswith("/api/models/"):
            user, repo, *rest = path.removeprefix("/api/models/").split("/")
            known = self.hub.repos.get(f"{user}/{repo}")
            if known is None:
                self._fail(404, "RepoNotFound", "Repository not found")
            elif rest and rest != ["revision", "main"]:
                self._fail(404, "RevisionNotFound", "Revision not found")
            else:
                self._send_json(self._describe(f"{user}/{repo}", known))
            return
        user, repo, *rest = path.removeprefix("/").split("/")
        known = self.hub.repos.get(f"{user}/{repo}", {})
        name = "/".join(rest[2:])
        if rest[:1] == ["resolve"] and name in known:
            self._redirect_to_content(name, known[name])
        else:
            self._fail(404, "EntryNotFound", "Entry not found")

    def _describe(self, repo: str, files: Mapping[str, bytes]) -> dict[str, object]:
        return {
            "_id": "0",
            "id": repo,
            "modelId": repo,
            "sha": COMMIT,
            "private": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [
                {
                    "rfilename": name,
                    "size": self._size(name, content),
                    "blobId": "0" * 40,
                    "lfs": {
                        "sha256": _sha256(content),
                        "size": self._size(name, content),
                        "pointerSize": 134,
                    },
                }
                for name, content in files.items()
            ],
        }

    def _size(self, name: str, content: bytes) -> int:
        return self.hub.switches.claimed_sizes.get(name, len(content))

    def _redirect_to_content(self, name: str, content: bytes) -> None:
        self.send_response(302)
        self.send_header("Location", f"{self.hub.content_url}/content/{_sha256(content)}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Etag", f'"{_sha256(content)}"')
        self.send_header("X-Linked-Size", str(self._size(name, content)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _by_hash(self) -> dict[str, bytes]:
        return {_sha256(c): c for repo in self.hub.repos.values() for c in repo.values()}

    def _send_content(self, content: bytes | None) -> None:
        switches = self.hub.switches
        if content is None or switches.status is not None:
            self._fail(switches.status or 404, "EntryNotFound", "not here")
            return
        tag = f'"{_sha256(content)}"'
        if switches.spoilt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        start = self._start(tag) if switches.ranges else 0
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        if switches.lengths:
            self.send_header("Content-Length", str(len(content) - start))
        if switches.validators:
            self.send_header("ETag", tag)
        self.end_headers()
        if self.command == "GET":
            for chunk in self._chunks(content[start:]):
                self.wfile.write(chunk)
                self.hub.sent += len(chunk)

    def _start(self, tag: str) -> int:
        wanted = self.headers.get("Range", "")
        if self.headers.get("If-Range", tag) != tag or not wanted.startswith("bytes="):
            return 0
        return int(wanted.removeprefix("bytes=").partition("-")[0])

    def _chunks(self, content: bytes) -> Iterator[bytes]:
        """The content piece by piece, up to where the connection is to be cut."""
        cut, stall = self.hub.take_cut(), self.hub.switches.stall_after
        if cut is not None:
            yield content[:cut]
            return
        if stall is not None:
            yield content[:stall]
            self.wfile.flush()
            self.hub.stall()
            content = content[stall:]
        for position in range(0, len(content), _CHUNK):
            yield content[position : position + _CHUNK]

    def _send_json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _fail(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
