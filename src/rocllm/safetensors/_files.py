"""Open the files of a model, whatever they are, and say what is wrong with them."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rocllm.errors import ModelFileError, ModelNotFound

# The largest config.json seen has some 100 KB, for a list of what is not quantised.
MAX_JSON = 8 << 20
FETCH_AGAIN = "fetch the model again"


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[int, int]]:
    """A descriptor of the file, and its size in bytes. Never waits for a pipe or a device.

    Raises `ModelNotFound`, and `ModelFileError` for what the system refuses or is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as exc:
        raise _in_words(path, exc) from exc
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise broken(path, "it is not a regular file")
        yield descriptor, status.st_size
    except OSError as exc:
        raise _in_words(path, exc) from exc
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of at most `MAX_JSON` bytes."""
    with open_regular(path) as (descriptor, size):
        if size > MAX_JSON:
            raise broken(path, f"it has {size} bytes, and at most {MAX_JSON} are read")
        data = os.read(descriptor, MAX_JSON)
    return parse_object(path, data)


def parse_object(path: Path, data: bytes) -> dict[str, Any]:
    """The JSON object in `data`; names that stand in it twice are refused."""
    try:
        value = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as exc:
        raise broken(path, f"it is no JSON object: {str(exc)[:200]}") from exc
    if not isinstance(value, dict):
        raise broken(path, "it is no JSON object")
    return value


def broken(path: Path, why: str, remedy: str = FETCH_AGAIN) -> ModelFileError:
    """The error for a file that cannot be right."""
    error = ModelFileError(f"{str(path)!r} cannot be used", why=why, remedy=remedy)
    error.cause = "bad_file"
    return error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _in_words(path: Path, exc: OSError | ValueError) -> ModelFileError:
    if isinstance(exc, (FileNotFoundError, NotADirectoryError)):
        return ModelNotFound(f"no file {str(path)!r}", why=exc.strerror, remedy=FETCH_AGAIN)
    return ModelFileError(
        f"{str(path)!r} cannot be read",
        why=getattr(exc, "strerror", None) or str(exc),
        remedy="check its permissions, and the disk or network it is on",
    )
