"""Fetch one model file over HTTP: resumed, checked, and there only when it is whole.

Bytes are collected in a hidden file beside the final place, which keeps what has arrived when the
connection, the process or the machine goes down; the next call goes on from there. Beside it stands
a line that says of what it is a part. Its lock allows one fetch of a file at a time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from rocllm.catalog.http_get import Interrupted, Refused, open_url
from rocllm.catalog.packaged import Progress
from rocllm.catalog.partial import (
    check_space,
    digest_of,
    locked,
    origin_path,
    partial_path,
    storage_errors,
)
from rocllm.errors import DownloadFailed, InvalidGGUF
from rocllm.gguf import read_gguf
from rocllm.units import format_bytes

# So many times in a row may a connection bring nothing; the pause grows by this each time.
TRIES = 5
RETRY_SECONDS = 1.0

_CHUNK = 1 << 20
_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A file on a server.

    name: what to call it in messages. size: in bytes, `None`: as the server says.
    sha256: hexadecimal; `None`: whatever the server sends is right.
    token: for the server, not for others that it sends us to.
    """

    url: str
    name: str
    size: int | None = None
    sha256: str | None = None
    token: str | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """The address without what may be secret in it."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def fetch_file(remote: Remote, final: Path, report: Progress) -> None:
    """Fetch a model file to `final`, unless another process has just done so.

    report: called often, with the stage (`wait`: for another process, `check`: what is there
        already, `download`), the bytes done and the bytes in all (`None`: the server does not say).

    Raises `DownloadFailed`; `final` then is what it was before.
    """
    partial = partial_path(final)
    with storage_errors(remote.name, final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        with locked(partial, final, report) as file:
            if file is not None:
                try:
                    _Transfer(remote, partial, file, report).run()
                    partial.replace(final)
                except BaseException:
                    _remove_if_empty(partial)
                    raise
                origin_path(partial).unlink(missing_ok=True)


def _remove_if_empty(partial: Path) -> None:
    """Leave nothing of a file of which nothing has come."""
    with contextlib.suppress(OSError):
        if not partial.stat().st_size:
            partial.unlink()
            origin_path(partial).unlink(missing_ok=True)


class _Transfer:
    """One fetch into a partial file that is ours."""

    def __init__(self, remote: Remote, partial: Path, file: BinaryIO, report: Progress) -> None:
        self.remote = remote
        self.partial = partial
        self.file = file
        self.report = report
        self.total = remote.size
        self.done = 0
        self.validator: str | None = None
        self.digest = hashlib.sha256()
        self.answered = False

    def run(self) -> None:
        """Fetch what is missing, and check the whole."""
        self._take_up()
        failures = 0
        finished = self.total is not None and self.done == self.total
        while not finished:
            before = self.done
            try:
                self._fetch()
                finished = True
            except Interrupted as exc:
                failures = 1 if self.done > before else failures + 1
                if failures > TRIES or not self.answered:
                    raise self._lost(exc) from exc.__cause__
                time.sleep(RETRY_SECONDS * failures)
        self.file.flush()
        self._check()
        # Without this a power cut after the rename could leave a file of the right size and no
        # content.
        os.fsync(self.file.fileno())

    def _take_up(self) -> None:
        """Go on from what is there, if it is known to be of the same file."""
        self.file.seek(0, os.SEEK_END)
        self.done = self.file.tell()
        known, _, self.validator = self._readorigin_path().partition("\n")
        if not self.done or known != self._identity() or not (self.remote.sha256 or self.validator):
            self._restart()
        elif self.remote.sha256:
            self.file.seek(0)
            self.digest = digest_of(self.file, self.done, self.report)

    def _identity(self) -> str:
        return self.remote.sha256 or self.remote.url

    def _readorigin_path(self) -> str:
        try:
            return origin_path(self.partial).read_text(errors="replace")
        except OSError:
            return ""

    def _restart(self) -> None:
        self.file.truncate(0)
        self.done = 0
        self.digest = hashlib.sha256()

    def _fetch(self) -> None:
        """Fetch until the end of the file, or raise `Interrupted`."""
        with self._open() as response:
            self.answered = True
            self._begin(response)
            while chunk := self._read(response):
                self._take(chunk)
        if self.total is not None and self.done < self.total:
            raise Interrupted("the connection ended too early")

    def _open(self) -> HTTPResponse:
        headers = {}
        if self.done:
            headers["Range"] = f"bytes={self.done}-"
            # With a hash to check, it does not matter when only the entity tag has changed.
            if self.validator and not self.remote.sha256:
                headers["If-Range"] = self.validator
        try:
            return open_url(self.remote.url, headers, token=self.remote.token)
        except Refused as exc:
            self.answered = True
            if exc.status == 416:  # what we have is not a part of what the server has
                self._restart()
                raise Interrupted("the server has another file now") from exc
            if exc.transient:
                raise Interrupted(str(exc)) from exc
            raise DownloadFailed(
                f"cannot fetch {self.remote.name!r}",
                why=f"{self.remote.address}: {exc}",
                remedy="check the address, and what you may read there",
            ) from exc

    def _begin(self, response: HTTPResponse) -> None:
        """Understand which bytes are coming."""
        if response.status != 206 and self.done:
            self._restart()  # the server does not resume, or has another file now
        length = _number(response.headers.get("Content-Length"))
        total = None if length is None else self.done + length
        if response.status == 206:
            span, _, whole = response.headers.get("Content-Range", "").partition("/")
            total = _number(whole)
            if span.partition("-")[0] != f"bytes {self.done}" or self.total not in (None, total):
                self._restart()
                raise Interrupted("the server sent other bytes than asked for")
        if self.remote.size is not None and total not in (None, self.remote.size):
            raise self._wrong(f"it has {total} bytes, not {self.remote.size}")
        self.total = self.remote.size if total is None else total
        if not self.done:
            etag = response.headers.get("ETag", "")
            # A weak one does not promise the same bytes.
            validator = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
            self.validator = validator
            origin_path(self.partial).write_text(f"{self._identity()}\n{validator}")
        if self.total is not None:
            check_space(self.partial.parent, self.total - self.done)
        self.report("download", self.done, self.total)

    def _read(self, response: HTTPResponse) -> bytes:
        try:
            return response.read1(_CHUNK)
        except (HTTPException, OSError) as exc:
            raise Interrupted(str(exc)) from exc

    def _take(self, chunk: bytes) -> None:
        first = self.done < len(_MAGIC)
        self.file.write(chunk)
        self.done += len(chunk)
        if self.remote.sha256:
            self.digest.update(chunk)
        if self.total is not None and self.done > self.total:
            raise self._wrong(f"it has more than {self.total} bytes")
        if first and self.done >= len(_MAGIC):
            self.file.flush()
            self._check_magic()
        self.report("download", self.done, self.total)

    def _check_magic(self) -> None:
        self.file.seek(0)
        if self.file.read(len(_MAGIC)) != _MAGIC:
            self._check_gguf()

    def _check(self) -> None:
        found = self.digest.hexdigest()
        if self.remote.sha256 and found != self.remote.sha256:
            raise self._wrong(f"its sha256 is {found}, not {self.remote.sha256}")
        self._check_gguf()

    def _check_gguf(self) -> None:
        try:
            read_gguf(self.partial)
        except InvalidGGUF as exc:
            raise self._wrong(exc.why or exc.what) from exc

    def _wrong(self, why: str) -> DownloadFailed:
        """The error for a file that is not what it should be; nothing of it is kept."""
        self.partial.unlink(missing_ok=True)
        origin_path(self.partial).unlink(missing_ok=True)
        return DownloadFailed(
            f"what {self.remote.address} sends is not the model file {self.remote.name!r}",
            why=why,
            remedy="check the address, and the sha256 if you gave one; then try again",
        )

    def _lost(self, exc: Interrupted) -> DownloadFailed:
        kept = f"; {format_bytes(self.done)} are kept" if self.done else ""
        return DownloadFailed(
            f"cannot fetch {self.remote.name!r}",
            why=f"{self.remote.address}: {exc}{kept}",
            remedy="check the network, then run the same command again"
            + (": it goes on from there" if self.done else ""),
        )


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() else None
