"""Open a file that should be a model, whatever it is, and say what is wrong with it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from rocllm.errors import InvalidGGUF, ModelFileError, ModelNotFound

_GIVE_A_FILE = "give the path of a .gguf file"
_SPECIAL = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[tuple[int, int]]:
    """A descriptor of the file, and its size in bytes. Never waits for a pipe or a device.

    Raises `ModelNotFound`, `InvalidGGUF` for what is not a regular file, `ModelFileError` for what
    the system refuses, also while the descriptor is used.
    """
    name = os.fspath(path)
    descriptor = _open(name)
    try:
        status = os.fstat(descriptor)
        _refuse_special(name, status.st_mode)
        yield descriptor, status.st_size
    except OSError as exc:
        raise _in_words(name, exc) from exc
    finally:
        os.close(descriptor)


def _open(name: str) -> int:
    try:
        mode = os.stat(name).st_mode
    except OSError as exc:
        raise _in_words(name, exc) from exc
    except ValueError as exc:  # a NUL in it, or what cannot be encoded
        raise ModelNotFound(
            f"no model file {name!r}", why=f"no file has such a name: {exc}", remedy=_GIVE_A_FILE
        ) from exc
    _refuse_special(name, mode)
    try:
        # Should a pipe have taken its place meanwhile, O_NONBLOCK does not wait for a writer.
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as exc:
        raise _in_words(name, exc) from exc


def _refuse_special(name: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        what = _SPECIAL.get(stat.S_IFMT(mode), "no regular file")
        raise InvalidGGUF(f"{name!r} is {what}, not a GGUF file", remedy=_GIVE_A_FILE)


def _in_words(name: str, exc: OSError) -> ModelFileError:
    if exc.errno == errno.ENOENT and os.path.islink(name):
        return ModelNotFound(
            f"no model file {name!r}",
            why=f"it is a symbolic link to {os.readlink(name)!r}, which does not exist",
            remedy="fetch the model again",
        )
    if exc.errno in (errno.ENOENT, errno.ENOTDIR):
        return ModelNotFound(
            f"no model file {name!r}", why=os.strerror(exc.errno), remedy=_GIVE_A_FILE
        )
    if exc.errno in (errno.EACCES, errno.EPERM):
        return ModelFileError(
            f"{name!r} may not be read",
            why="this user has no permission to read it, or to enter a folder above it",
            remedy="give it, as the owner: chmod a+r on the file, chmod a+x on the folders",
        )
    return ModelFileError(
        f"{name!r} cannot be read",
        why=exc.strerror or str(exc),
        remedy="check the path, and the disk or network it is on",
    )
