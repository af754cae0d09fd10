"""Where the bytes of a file are collected until it is whole: room, locks, hashes, errors."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from rocllm.catalog.packaged import Progress, try_lock
from rocllm.errors import DownloadFailed
from rocllm.units import format_bytes

_POLL_SECONDS = 0.1
_CHUNK = 1 << 20


@contextlib.contextmanager
def storage_errors(name: str, folder: Path) -> Iterator[None]:
    """Say in words what goes wrong with the disk."""
    try:
        yield
    except OSError as exc:
        full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
        raise DownloadFailed(
            f"cannot store {name!r} in {folder}",
            why=f"{exc.filename or folder}: {exc.strerror or exc}",
            remedy=("free some space" if full else f"make {folder} writable")
            + ", or set XDG_DATA_HOME (for models of the Hub: HF_HOME) to another directory",
        ) from exc


def check_space(folder: Path, needed: int) -> None:
    """Raise `OSError` (ENOSPC) unless so many bytes are free in the file system of `folder`."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        why = f"{format_bytes(free)} free, {format_bytes(needed)} needed"
        raise OSError(errno.ENOSPC, why, os.fspath(folder))


def partial_size(final: Path) -> int:
    """Bytes that an earlier fetch of this file has left."""
    try:
        return partial_path(final).stat().st_size
    except OSError:
        return 0


def file_sha256(path: Path, report: Progress) -> str:
    """The hash of a file, hexadecimal, with progress."""
    with path.open("rb") as file:
        return digest_of(file, os.fstat(file.fileno()).st_size, report).hexdigest()


@contextlib.contextmanager
def locked(partial: Path, final: Path, report: Progress) -> Iterator[BinaryIO | None]:
    """The partial file, for us alone; `None`: the process that had it has finished it."""
    while True:
        with partial.open("a+b") as file:
            while not try_lock(file.fileno()):
                report("wait", os.fstat(file.fileno()).st_size, None)
                time.sleep(_POLL_SECONDS)
            if _is_same(partial, file.fileno()):
                yield file
                return
        if final.exists():
            yield None
            return


def _is_same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def partial_path(final: Path) -> Path:
    """Where bytes are collected for `final`."""
    return final.with_name(f".{final.name}.partial")


def origin_path(partial: Path) -> Path:
    """Where stands of what the partial file is a part."""
    return partial.with_name(f"{partial.name}.origin")


def digest_of(file: IO[bytes], size: int, report: Progress) -> hashlib._Hash:
    """The running hash of the rest of a file of `size` bytes."""
    digest = hashlib.sha256()
    done = 0
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        done += len(chunk)
        report("check", min(done, size), size)
    return digest
