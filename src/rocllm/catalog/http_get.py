"""Open an address for reading, with the standard library, and say what failed.

Proxies are taken from the process's environment (`https_proxy`, `no_proxy`), certificates from the
system or `SSL_CERT_FILE`, as everywhere in Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from email.message import Message
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

# Seconds without a byte after which a connection counts as lost.
READ_TIMEOUT = 30.0


class Interrupted(Exception):
    """The server cannot be reached, or the connection is gone; another try may help."""


class Refused(Exception):
    """The server does not give the file. status: of its answer."""

    def __init__(self, status: int, reason: str | None = None) -> None:
        super().__init__(reason or f"the server says {status_text(status)}")
        self.status = status

    @property
    def transient(self) -> bool:
        """Another try may help (RFC 9110, 15.5.9 and 15.6; RFC 6585, 4)."""
        return self.status in (408, 429) or self.status >= 500


def status_text(status: int) -> str:
    """A status in words of our own; the server's could be anything.

    >>> status_text(404)
    '404 Not Found'
    """
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def open_url(url: str, headers: Mapping[str, str], *, token: str | None = None) -> HTTPResponse:
    """Send a GET request and follow redirects; the body is still to be read.

    url: with the scheme `http` or `https`. token: for this server, and no other.

    Raises `Interrupted` and `Refused`.
    """
    request = Request(url, headers={"User-Agent": "rocllm", **headers})
    request.add_header("Accept-Encoding", "identity")  # lengths and ranges are the file's own
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        response: HTTPResponse = build_opener(Redirects).open(request, timeout=READ_TIMEOUT)
    except HTTPError as exc:
        with exc:
            raise Refused(exc.code) from exc
    except (URLError, HTTPException, OSError) as exc:
        raise Interrupted(str(getattr(exc, "reason", exc)) or type(exc).__name__) from exc
    return response


class Redirects(HTTPRedirectHandler):
    """Follows to other addresses, never to less safe ones; the token stays on one server."""

    def redirect_request(
        self,
        req: Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> Request | None:
        """The request to go on with. Raises `Refused` where that would not be safe."""
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("https", old.scheme):
            fp.close()
            raise Refused(code, f"from {old.scheme} it sends us to {new.scheme!r}: not followed")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        token = req.unredirected_hdrs.get("Authorization")
        if request is not None and token and old[:2] == new[:2]:
            request.add_unredirected_header("Authorization", token)
        return request
