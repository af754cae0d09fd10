"""Fetch a model from an address of the web, into rocllm's own folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from rocllm.catalog.http_get import Interrupted, Refused, open_url
from rocllm.catalog.names import SUFFIX
from rocllm.catalog.packaged import Progress, no_progress
from rocllm.catalog.partial import file_sha256, storage_errors
from rocllm.catalog.sources import own_folder
from rocllm.catalog.transfer import Remote, fetch_file
from rocllm.errors import DownloadFailed, OptionsError
from rocllm.gguf import split_paths

_FRAGMENT = "sha256="
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")
# What an address may hold besides letters, digits and `_.-~` (RFC 3986, 2.2), and escapes.
_URL_CHARACTERS = "%/:?#[]@!$&'()*+,;="
# In bytes: 255 are the limit of Linux, the partial file's name has 16 more.
_LONGEST_NAME = 200


def pull_url(
    url: str,
    environ: Mapping[str, str],
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fetch a model file from an address, unless it is there already; returns its path.

    url: `https://…`, of a model in several parts that of any; `#sha256=…` at its end is the
        checksum. environ: where rocllm's folder is.
    sha256: of the file, hexadecimal, in place of that in the address.
    progress: as in `pull_packaged`, over each file by itself.

    Raises `DownloadFailed`, and `OptionsError` for an address or checksum that cannot be one.
    """
    parts, checksum = _parse(url, sha256)
    report = progress or no_progress
    given = own_folder(environ) / _file_name(parts)
    paths = split_paths(given)
    for path in paths:
        remote = Remote(
            url=_sibling(parts, given.name, path.name),
            name=path.name,
            sha256=checksum if path == given else None,
        )
        with storage_errors(path.name, path.parent):
            there = path.exists()
        if there:
            _compare(remote, path, report)
        else:
            fetch_file(remote, path, report)
    return paths[0]


def _parse(url: str, sha256: str | None) -> tuple[SplitResult, str | None]:
    try:
        parts = urlsplit(quote(url.strip(), safe=_URL_CHARACTERS))
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        # Of the address only what holds no password.
        shown = url.rpartition("@")[2]
        raise OptionsError(f"{shown!r} is no address", remedy="give https://host/path/model.gguf")
    if sha256 is None and parts.fragment.startswith(_FRAGMENT):
        sha256 = parts.fragment.removeprefix(_FRAGMENT)
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise OptionsError(
            f"sha256 must be 64 hexadecimal digits; got {sha256!r}",
            remedy="sha256sum prints it for a file that you trust",
        )
    return parts._replace(fragment=""), sha256.lower() if sha256 else None


def _file_name(parts: SplitResult) -> str:
    """A name for the file that is one on this machine, and stays in the folder."""
    last = unquote(parts.path.rpartition("/")[2])
    printable = "".join(c if c.isprintable() and c != "/" else "_" for c in last)
    stem = printable.removesuffix(SUFFIX).lstrip(".")[:_LONGEST_NAME] or parts.hostname or "model"
    while len(stem.encode()) > _LONGEST_NAME:
        stem = stem[:-1]
    return stem + SUFFIX


def _sibling(parts: SplitResult, given: str, name: str) -> str:
    path = parts.path
    if name != given:
        path = path[: path.rindex("/") + 1] + quote(name)
    return urlunsplit(parts._replace(path=path))


def _compare(remote: Remote, path: Path, report: Progress) -> None:
    """Raise unless the file that is there is the one that would be fetched, as far as one can tell.

    By its checksum where one is given, else by the size that the server tells.
    """
    if remote.sha256:
        with storage_errors(path.name, path.parent):
            found = file_sha256(path, report)
        same, differs = found == remote.sha256, f"its sha256 is {found}, not {remote.sha256}"
    else:
        size, length = path.stat().st_size, _length(remote)
        same, differs = length in (None, str(size)), f"it has {size} bytes, not {length}"
    if not same:
        raise DownloadFailed(
            f"another file is at {path}", why=differs, remedy="move it away, or delete it"
        )


def _length(remote: Remote) -> str | None:
    try:
        with open_url(remote.url, {}) as response:
            return response.headers.get("Content-Length")
    except (Interrupted, Refused) as exc:
        raise DownloadFailed(
            f"cannot compare {remote.name!r} with {remote.address}",
            why=str(exc),
            remedy="check the address and the network",
        ) from exc
