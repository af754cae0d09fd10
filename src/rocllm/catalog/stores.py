"""Find model files in the stores of other programs."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rocllm import env
from rocllm.catalog.sources import (
    ModelFile,
    Source,
    find_folder,
    named_folders,
    own_folder,
    unreadable,
)

_REPO_FOLDER = "models--"
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_MEDIA_TYPE = "application/vnd.ollama.image."
_MOST_SMALL_BYTES = 1 << 20


def find_files(environ: Mapping[str, str], folders: Sequence[Path] = ()) -> Iterator[ModelFile]:
    """Every model file that can be found by name, in the order of `rocllm.catalog.sources`.

    environ: where the stores are. folders: further folders, which come first.

    A name means one file, the first that has it: later ones keep the names that are left to them.
    """
    taken: set[str] = set()
    for file in _find_everywhere(environ, folders):
        names = tuple(name for name in file.names if name not in taken)
        if file.problem or os.path.isfile(file.path):
            taken.update(names)
        yield replace(file, names=names)


def _find_everywhere(environ: Mapping[str, str], folders: Sequence[Path]) -> Iterator[ModelFile]:
    for folder in named_folders(environ, folders):
        yield from find_folder(folder, "folder", named=True)
    yield from find_folder(own_folder(environ), "rocllm")
    yield from find_hub_cache(env.hub_cache(environ))
    # Since early 2026 llama.cpp keeps its models as the Hub's own library does (common/hf-cache.cpp
    # of b11434); before, they were files in one folder.
    yield from find_hub_cache(env.llama_cache(environ), "llama.cpp")
    yield from find_folder(env.llama_cache(environ), "llama.cpp")
    for folder in lmstudio_folders(env.home(environ)):
        yield from find_folder(folder, "lmstudio")
    for folder in env.ollama_dirs(environ):
        yield from find_ollama(folder)


def store_folders(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """The stores of other programs that are there, to tell the user where was looked."""
    folders = (
        env.hub_cache(environ),
        env.llama_cache(environ),
        *lmstudio_folders(env.home(environ)),
        *env.ollama_dirs(environ),
    )
    return tuple(folder for folder in folders if os.path.isdir(folder))


def find_hub_cache(
    cache: Path, source: Source = "huggingface", repo: str | None = None
) -> Iterator[ModelFile]:
    """The GGUF files in a cache of `huggingface_hub`: `models--<user>--<repo>/snapshots/<commit>/`.

    Of a file in several revisions the one that `refs/main` points to counts. The layout is
    documented: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.

    repo: only those of this repository.
    """
    for folder in _subfolders(cache, source):
        if isinstance(folder, ModelFile):
            yield folder
            continue
        found = folder.name.removeprefix(_REPO_FOLDER).replace("--", "/", 1)
        if folder.name.startswith(_REPO_FOLDER) and repo in (None, found):
            yield from _find_repo(folder, source, found)


def _find_repo(folder: Path, source: Source, repo: str) -> Iterator[ModelFile]:
    main = _read(folder / "refs" / "main").strip()
    snapshots = _subfolders(folder / "snapshots", source)
    seen: set[Path] = set()
    for snapshot in sorted(
        snapshots, key=lambda found: isinstance(found, Path) and found.name != main
    ):
        if isinstance(snapshot, ModelFile):
            yield snapshot
            continue
        for model in find_folder(snapshot, source, repo=repo):
            within = model.path.relative_to(snapshot)
            if within not in seen:
                yield model
            seen.add(within)


def find_ollama(store: Path) -> Iterator[ModelFile]:
    """Ollama's models, by the names in its manifests: `manifests/<host>/<user>/<model>/<tag>`."""
    root = store / "manifests"
    pending: list[Path] = [root]
    while pending:
        here = pending.pop()
        for found in _entries(here, "ollama"):
            if isinstance(found, ModelFile):
                yield found
            elif found.name.startswith("."):
                continue
            elif os.path.isdir(found) and not os.path.islink(found):
                pending.append(found)
            else:
                yield _read_manifest(store, found)


def _read_manifest(store: Path, manifest: Path) -> ModelFile:
    names = _ollama_names(manifest.relative_to(store / "manifests").parts)
    layers: dict[str, list[Path]] = {"model": [], "projector": [], "adapter": []}
    problem = None
    try:
        for layer in json.loads(_read_small(manifest))["layers"]:
            kind = layer["mediaType"].removeprefix(_MEDIA_TYPE)
            digest = _DIGEST.fullmatch(layer["digest"])
            if kind in layers and digest:
                layers[kind].append(_blob(store, digest[1]))
        if not layers["model"]:
            # Models that run on Ollama's servers have none, nor have those in safetensors format.
            problem = "its manifest names no GGUF file"
        elif not all(map(os.path.exists, layers["model"])):
            problem = "the file that its manifest names is missing"
    except OSError as exc:
        problem = exc.strerror
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        problem = "it is not an Ollama manifest"
    if problem:
        return ModelFile(path=manifest, source="ollama", names=names, problem=problem)
    return ModelFile(
        path=layers["model"][0],
        source="ollama",
        names=names,
        parts=tuple(layers["model"]),
        together=manifest,
        mmproj=tuple(layers["projector"]),
        adapters=tuple(layers["adapter"]),
    )


def _ollama_names(parts: tuple[str, ...]) -> tuple[str, ...]:
    """As Ollama writes them: without its own registry and `library`; `latest` may be left away."""
    *where, tag = parts
    if where[:1] == ["registry.ollama.ai"]:
        where = where[1:]
        if where[:1] == ["library"]:
            where = where[1:]
    model = "/".join(where)
    return (f"{model}:{tag}", model) if tag == "latest" else (f"{model}:{tag}",)


def _blob(store: Path, digest: str) -> Path:
    # The colon is what versions before 0.1.30 wrote.
    older = store / "blobs" / f"sha256:{digest}"
    return older if older.exists() else store / "blobs" / f"sha256-{digest}"


def lmstudio_folders(home: Path) -> tuple[Path, ...]:
    """The folders with LM Studio's models: `~/.lmstudio/models`, or as its settings say."""
    pointer = _read(home / ".lmstudio-home-pointer").strip()
    bases = [Path(pointer)] if os.path.isabs(pointer) else []
    bases += [home / ".lmstudio", home / ".cache" / "lm-studio"]
    found = []
    for base in dict.fromkeys(bases):
        found += [_downloads_folder(base / "settings.json"), base / "models"]
    return tuple(folder for folder in dict.fromkeys(found) if folder is not None)


def _downloads_folder(settings: Path) -> Path | None:
    try:
        value: Any = json.loads(_read(settings))
    except (ValueError, RecursionError):
        return None
    folder = value.get("downloadsFolder") if isinstance(value, dict) else None
    return Path(folder) if isinstance(folder, str) and os.path.isabs(folder) else None


def _subfolders(folder: Path, source: Source) -> list[Path | ModelFile]:
    return [
        found
        for found in _entries(folder, source)
        if isinstance(found, ModelFile) or os.path.isdir(found)
    ]


def _entries(folder: Path, source: Source) -> list[Path | ModelFile]:
    """What is in a folder; nothing if it is not there, an entry with the reason if it is closed."""
    try:
        return [folder / name for name in sorted(os.listdir(folder))]
    except OSError as exc:
        gone = exc.errno in (errno.ENOENT, errno.ENOTDIR)
        return [] if gone else [unreadable(folder, source, exc)]


def _read(path: Path) -> str:
    """The text of a small file; empty if there is none that we may read."""
    try:
        return _read_small(path)
    except OSError:
        return ""


def _read_small(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        return file.read(_MOST_SMALL_BYTES).decode(errors="replace")
