"""Models in several files: `name-00001-of-00003.gguf`, as llama.cpp's gguf-split writes them."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

from rocllm.errors import InvalidGGUF, ModelNotFound
from rocllm.gguf.reader import read_gguf
from rocllm.gguf.types import GGUFFile

# LLAMA_SPLIT_PATH in llama.cpp: "%s-%05d-of-%05d.gguf" (src/llama.cpp, b11434).
_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def split_paths(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The paths of all parts of a model, of which `path` is one; `(path,)` for a model in one file.

    Goes by the name alone.

    >>> [str(part) for part in split_paths("a/big-00002-of-00002.gguf")]
    ['a/big-00001-of-00002.gguf', 'a/big-00002-of-00002.gguf']
    """
    path = Path(path)
    match = _NAME.fullmatch(path.name)
    if match is None or not 1 <= int(match[2]) <= int(match[3]):
        return (path,)
    return tuple(
        path.with_name(f"{match[1]}-{number:05}-of-{match[3]}.gguf")
        for number in range(1, int(match[3]) + 1)
    )


def read_splits(
    path: str | os.PathLike[str], *, arrays: Collection[str] = ()
) -> tuple[GGUFFile, ...]:
    """Every part of a model, in order, of which `path` is one; just the file if it is all.

    arrays: as in `read_gguf`.

    Raises what `read_gguf` raises; `ModelNotFound` for parts that are missing; `InvalidGGUF` for
    parts that do not belong together.
    """
    given = read_gguf(path, arrays=arrays)
    if given.split is None:
        return (given,)
    paths = split_paths(path)
    no, count = given.split.no, given.split.count
    if len(paths) != count or given.path not in paths[no : no + 1]:
        raise InvalidGGUF(
            f"{str(path)!r} is part {no + 1} of a model in {count} files",
            why="llama.cpp finds the others by name, and this name does not say so",
            remedy=f"give it its name back: …-{no + 1:05}-of-{count:05}.gguf",
        )
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        raise ModelNotFound(
            f"{str(path)!r} is part of a model in {len(paths)} files, of which "
            f"{len(missing)} are missing",
            why=f"not in {str(given.path.parent)!r}: {', '.join(missing[:10])}"
            + (", …" if len(missing) > 10 else ""),
            remedy="download them into the same folder",
        )
    parts = tuple(given if part == given.path else read_gguf(part, arrays=arrays) for part in paths)
    _check_parts(parts)
    return parts


def _check_parts(parts: tuple[GGUFFile, ...]) -> None:
    for no, part in enumerate(parts):
        if part.split is None or (part.split.no, part.split.count) != (no, len(parts)):
            raise _do_not_belong_together(part, f"inside it says {part.split}")
    assert parts[0].split is not None
    expected = parts[0].split.tensor_count
    found = sum(len(part.tensors) for part in parts)
    if expected is not None and found != expected:
        raise _do_not_belong_together(
            parts[0], f"the parts hold {found} tensors; {expected} belong to the model"
        )


def _do_not_belong_together(part: GGUFFile, why: str) -> InvalidGGUF:
    return InvalidGGUF(
        f"the parts of {str(part.path)!r} do not belong together",
        why=why,
        remedy="download all parts again, from one source",
    )
