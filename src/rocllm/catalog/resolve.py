"""From what the user typed to a model file: a path, a name, or the beginning of a name."""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from rocllm import env
from rocllm.catalog.demo import DEMO
from rocllm.catalog.packaged import is_whole
from rocllm.errors import ModelNotFound

_SUFFIX = ".gguf"
# A model in several files is named by its first (llama.cpp's llama_split_path, src/llama.cpp).
_LATER_SPLIT = re.compile(r"-(?!00001-)\d{5}-of-\d{5}\.gguf$")
_MOST_LISTED = 10


def resolve_model(name_or_path: str | os.PathLike[str], environ: Mapping[str, str]) -> Path:
    """The absolute path of the model file that is meant.

    name_or_path: the path of a GGUF file; or `demo`; or the name of a file in the folders of
        `ROCM_MODEL_DIR` or in rocllm's data directory, with or without `.gguf`, or the beginning
        of one that no other name shares. What has a separator in it is always a path.

    Raises `ModelNotFound`, which says where was looked and names the nearest.

    >>> resolve_model("./qwen3-4b-q4_k_m.gguf", os.environ)  # doctest: +SKIP
    PosixPath('/home/ann/qwen3-4b-q4_k_m.gguf')
    """
    given = os.fspath(name_or_path)
    if not given:
        raise ModelNotFound("no model was named", remedy=_suggest("", environ))
    if isinstance(name_or_path, os.PathLike) or os.sep in given:
        return _resolve_path(given, environ)
    if given == DEMO.name:
        return _resolve_demo(environ)
    if os.path.isfile(given):
        return _resolve_path(given, environ)
    found = _match(given, list_models(environ))
    if found is not None:
        return found
    if os.path.lexists(given):
        return _resolve_path(given, environ)
    raise ModelNotFound(
        f"no model {given!r}",
        why=f"there is no such file, nor a model of that name in {_searched(environ)}",
        remedy=_suggest(given, environ),
    )


def list_models(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """The GGUF files in the folders of `ROCM_MODEL_DIR` and in rocllm's data directory.

    Of files with the same name the first folder's counts; of a model in several files the first.
    """
    models: dict[str, Path] = {}
    for folder in _folders(environ):
        for path in _ggufs(folder):
            models.setdefault(path.name, path)
    return tuple(models.values())


def _folders(environ: Mapping[str, str]) -> tuple[Path, ...]:
    folders = (*env.model_dirs(environ), env.data_dir(environ) / "models")
    return tuple(Path(os.path.abspath(folder)) for folder in folders)


def _ggufs(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []  # a folder that is not there, or not ours to read, holds no models for us
    return [
        folder / name
        for name in names
        if name.lower().endswith(_SUFFIX)
        and not _LATER_SPLIT.search(name)
        and os.path.isfile(folder / name)
    ]


def _match(name: str, models: Iterable[Path]) -> Path | None:
    starting: list[Path] = []
    for path in models:
        if name in (path.name, path.stem):
            return path
        if path.name.lower().startswith(name.lower()):
            starting.append(path)
    if len(starting) > 1:
        raise ModelNotFound(
            f"{name!r} is the beginning of several names",
            why=_listing(path.stem for path in starting),
            remedy="give more of the name",
        )
    return starting[0] if starting else None


def _resolve_demo(environ: Mapping[str, str]) -> Path:
    for folder in _folders(environ):
        path = folder / DEMO.file_name
        if is_whole(path, DEMO):
            return path
    raise ModelNotFound(
        "the demo model has not been fetched yet",
        why=f"there is no {DEMO.file_name} in {_searched(environ)}",
        remedy="rocllm pull demo",
    )


def _resolve_path(given: str, environ: Mapping[str, str]) -> Path:
    expanded = env.home(environ) / given[2:] if given.startswith("~/") else given
    path = Path(os.path.abspath(expanded))
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as exc:  # ValueError: a NUL byte
        why = exc.strerror if isinstance(exc, OSError) else str(exc)
        if os.path.islink(path):
            why = f"it is a symbolic link to {os.readlink(path)!r}: {why}"
        raise ModelNotFound(
            f"no model file {given!r}",
            why=f"{str(path)!r}: {why}",
            remedy=_suggest(path.name, environ, nearby=_ggufs(path.parent)),
        ) from exc
    if stat.S_ISREG(mode):
        return path
    if not stat.S_ISDIR(mode):
        raise ModelNotFound(
            f"{given!r} is not a model file",
            why="it is not a regular file",
            remedy=_suggest("", environ),
        )
    inside = _ggufs(path)
    raise ModelNotFound(
        f"{given!r} is a directory, not a model file",
        why=f"it holds {_listing(file.name for file in inside) or 'no .gguf file'}",
        remedy=f"give the file: {inside[0]}" if inside else _suggest("", environ),
    )


def _searched(environ: Mapping[str, str]) -> str:
    return ", ".join(
        str(folder) if os.path.isdir(folder) else f"{folder} (no such directory)"
        for folder in _folders(environ)
    )


def _suggest(name: str, environ: Mapping[str, str], nearby: Iterable[Path] = ()) -> str:
    near = difflib.get_close_matches(name, [path.name for path in nearby], n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    names = [DEMO.name, *(path.stem for path in list_models(environ))]
    near = difflib.get_close_matches(name.lower().removesuffix(_SUFFIX), names, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"give the path of a .gguf file, or one of these names: {_listing(names)}"


def _listing(names: Iterable[str]) -> str:
    listed = list(names)
    rest = len(listed) - _MOST_LISTED
    return ", ".join(listed[:_MOST_LISTED]) + (f" and {rest} more" if rest > 0 else "")
