"""From what the user typed to a model file: a path, a name, or the beginning of a name."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from rocllm import env
from rocllm.catalog.demo import DEMO
from rocllm.catalog.discover import discover_models
from rocllm.catalog.hub import HUB_PREFIX
from rocllm.catalog.match import Entry, match_name
from rocllm.catalog.names import SUFFIX, is_companion, parse_name
from rocllm.catalog.packaged import is_whole
from rocllm.catalog.sources import named_folders, own_folder
from rocllm.catalog.stores import find_files, store_folders
from rocllm.errors import ModelNotFound
from rocllm.safetensors import is_safetensors_model

_PATH_BEGINNINGS = ("/", "./", "../", "~/")
_MOST_LISTED = 10
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def resolve_model(name_or_path: str | os.PathLike[str], environ: Mapping[str, str]) -> Path:
    """The absolute path of the model file that is meant, or of the directory.

    name_or_path: the path of a GGUF file; or `demo`; or a name that `discover_models` lists, with
        or without `.gguf`; or the beginning of one that no other name shares; or `NAME:Q4_K_M` with
        a quantisation. What begins with `/`, `./`, `../` or `~/` is always a path. A model in
        safetensors format is a directory, or `user/repo` if it is in the Hub's cache.

    Raises `ModelNotFound`, which says where was looked and names the nearest.

    >>> resolve_model("./qwen3-4b-q4_k_m.gguf", os.environ)  # doctest: +SKIP
    PosixPath('/home/ann/qwen3-4b-q4_k_m.gguf')
    """
    given = os.fspath(name_or_path)
    if not given:
        raise ModelNotFound("no model was named", remedy=_suggest("", environ))
    if isinstance(name_or_path, os.PathLike) or given.startswith(_PATH_BEGINNINGS):
        return _resolve_path(given, environ)
    if given == DEMO.name:
        return _resolve_demo(environ)
    if os.path.isfile(given):
        return _resolve_path(given, environ)
    found = find_by_name(given.removeprefix(HUB_PREFIX), environ)
    if found is not None:
        return found
    snapshot = find_snapshot(given.removeprefix(HUB_PREFIX), environ)
    if snapshot is not None:
        return snapshot
    if given.startswith(HUB_PREFIX):
        raise ModelNotFound(
            f"the model {given!r} has not been fetched yet",
            why=f"it is not in {env.hub_cache(environ)}",
            remedy=f"rocllm pull {given}; or, for a model in safetensors format: "
            f"hf download {given.removeprefix(HUB_PREFIX)}",
        )
    if _REPO.fullmatch(given) and not os.path.lexists(given) and not given.endswith(SUFFIX):
        raise ModelNotFound(
            f"no model {given!r}",
            why=f"there is no such file, and it is not in {env.hub_cache(environ)}",
            remedy=f"rocllm pull {HUB_PREFIX}{given}; or, for a model in safetensors format: "
            f"hf download {given}",
        )
    if os.sep in given or os.path.lexists(given):
        return _resolve_path(given, environ)
    raise ModelNotFound(
        f"no model {given!r}",
        why=f"there is no such file, nor a model of that name in {_searched(environ)}",
        remedy=_suggest(given, environ),
    )


def list_models(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """The model files that can be called by name, without reading them."""
    return tuple(entry.path for entry in _entries(environ))


def _entries(environ: Mapping[str, str]) -> tuple[Entry, ...]:
    return tuple(
        Entry(file.path, file.names, parse_name(file.path.name).quantization, file.problem)
        for file in find_files(environ)
        if file.names and not is_companion(file.path.name)
        if file.problem or os.path.isfile(file.path)
    )


def find_by_name(name: str, environ: Mapping[str, str]) -> Path | None:
    """The model of that name, also by its beginning or as `NAME:QUANTIZATION`; `None`: none is.

    Raises `ModelNotFound` where several could be meant, and where its file is known to be missing.
    """
    found = match_name(name, _entries(environ))
    if not found and ":" in name:
        # Files need not say in their names how they are quantised: now they have to be read.
        found = match_name(
            name,
            [
                Entry(model.path, model.names, model.quantization)
                for model in discover_models(environ)
                if model.names and model.problem is None
            ],
        )
    if len(found) > 1 and len({_identity(entry.path) for entry in found}) > 1:
        raise ModelNotFound(
            f"{name!r} is the beginning of several names",
            why=_listing(entry.names[0] for entry in found),
            remedy="give more of the name",
        )
    if found and found[0].problem:
        raise ModelNotFound(
            f"the model {name!r} cannot be used",
            why=f"{str(found[0].path)!r}: {found[0].problem}",
            remedy="fetch it again with the program that it belongs to",
        )
    return found[0].path if found else None


def _identity(path: Path) -> object:
    """The same for two names, or links, of one file."""
    with contextlib.suppress(OSError):  # it has gone meanwhile
        status = os.stat(path)
        return status.st_dev, status.st_ino
    return path


def find_snapshot(repo: str, environ: Mapping[str, str]) -> Path | None:
    """A whole model in safetensors format of that repository, in the Hub's cache.

    Of several revisions the one that `refs/main` points to.
    """
    if not _REPO.fullmatch(repo):
        return None
    folder = env.hub_cache(environ) / f"models--{repo.replace('/', '--')}"
    main = ""
    with contextlib.suppress(OSError):  # fetched by its commit
        main = (folder / "refs" / "main").read_text(errors="replace").strip()
    try:
        snapshots = sorted((folder / "snapshots").iterdir(), key=lambda path: path.name != main)
    except OSError:
        return None
    return next(filter(is_safetensors_model, snapshots), None)


def _resolve_demo(environ: Mapping[str, str]) -> Path:
    for folder in (*named_folders(environ), own_folder(environ)):
        path = folder / DEMO.file_name
        if is_whole(path, DEMO):
            return path
    raise ModelNotFound(
        "the demo model has not been fetched yet",
        why=f"there is no {DEMO.file_name} in {_searched(environ)}",
        remedy="rocllm pull demo",
    )


def model_files_in(folder: Path) -> list[Path]:
    """The GGUF files in a folder, of a model in several files the first; never raises."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []  # a folder that is not there, or not ours to read, holds no models for us
    return [
        folder / name
        for name in names
        if name.lower().endswith(SUFFIX)
        and parse_name(name).part == 1
        and os.path.isfile(folder / name)
    ]


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
            remedy=_suggest(path.name, environ, nearby=model_files_in(path.parent)),
        ) from exc
    if stat.S_ISREG(mode):
        return path
    if is_safetensors_model(path):
        return path
    if not stat.S_ISDIR(mode):
        raise ModelNotFound(
            f"{given!r} is not a model file",
            why="it is not a regular file",
            remedy=_suggest("", environ),
        )
    inside = model_files_in(path)
    raise ModelNotFound(
        f"{given!r} is a directory, not a model file",
        why=f"it holds {_listing(file.name for file in inside) or 'no .gguf file'}",
        remedy=f"give the file: {inside[0]}" if inside else _suggest("", environ),
    )


def _searched(environ: Mapping[str, str]) -> str:
    return ", ".join(
        str(folder) if os.path.isdir(folder) else f"{folder} (no such directory)"
        for folder in (*named_folders(environ), own_folder(environ), *store_folders(environ))
    )


def _suggest(name: str, environ: Mapping[str, str], nearby: Iterable[Path] = ()) -> str:
    near = difflib.get_close_matches(name, [path.name for path in nearby], n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    names = [DEMO.name, *(entry.names[0] for entry in _entries(environ))]
    given = name.lower().removesuffix(SUFFIX)
    # The whole of a name, or as much of its beginning as was given.
    for length, likeness in ((None, 0.6), (len(given), 0.75)):
        lower = {known.lower()[:length]: known for known in reversed(names)}
        near = difflib.get_close_matches(given, lower, n=1, cutoff=likeness) if given else []
        if near:
            return f"did you mean {lower[near[0]]!r}?"
    return f"give the path of a .gguf file, or one of these names: {_listing(names)}"


def _listing(names: Iterable[str]) -> str:
    listed = [name if name.isprintable() else repr(name) for name in names]
    rest = len(listed) - _MOST_LISTED
    return ", ".join(listed[:_MOST_LISTED]) + (f" and {rest} more" if rest > 0 else "")
