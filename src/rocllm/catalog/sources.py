"""Find model files by their names, wherever people keep them; nothing is read from them.

Looked through, in this order: folders that are given, those of `ROCM_MODEL_DIR`, rocllm's own, the
Hugging Face cache, llama.cpp's, LM Studio's and Ollama's stores. What stands in the way of looking
is an entry as well, with the reason in `problem`; what vanishes meanwhile was never there.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from rocllm import env
from rocllm.catalog.names import SUFFIX, parse_name

Source: TypeAlias = Literal["folder", "rocllm", "huggingface", "llama.cpp", "lmstudio", "ollama"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A model file, or what should be one, known by its place and name.

    path: of the file; of a model in several files the first that is there. parts: all that are.
    names: by which the model can be called, the best first.
    together: the folder in which all files belong to one model; `None`: they need not.
    mmproj, adapters: files of which the store says that they belong to the model.
    problem: why it cannot be used, as far as can be told without reading it.
    """

    path: Path
    source: Source
    names: tuple[str, ...]
    parts: tuple[Path, ...] = ()
    together: Path | None = None
    mmproj: tuple[Path, ...] = ()
    adapters: tuple[Path, ...] = ()
    problem: str | None = None


def find_folder(
    folder: Path, source: Source, *, named: bool = False, repo: str | None = None
) -> Iterator[ModelFile]:
    """The GGUF files in a folder and all folders below it, except hidden ones.

    named: the user named the folder, so that it is a problem when it is not there. It may also be a
        file then.
    repo: the folder holds files of this repository of the Hub.
    """
    if named and os.path.isfile(folder):
        yield from _join_parts([folder], source)
        return
    seen: set[tuple[int, int]] = set()  # so that links in a circle come to an end
    pending = [folder]
    while pending:
        here = pending.pop()
        try:
            identity = _identity(here)
            folders, files = ([], []) if identity in seen else _list_folder(here)
        except OSError as exc:
            gone = exc.errno in (errno.ENOENT, errno.ENOTDIR)
            if not gone or (named and here == folder):
                yield unreadable(here, source, exc)
            continue
        seen.add(identity)
        pending += reversed(folders)
        for model in _join_parts(files, source):
            yield model if repo is None else _of_repo(model, folder, repo)


def _of_repo(model: ModelFile, folder: Path, repo: str) -> ModelFile:
    quantization = parse_name(model.path.name).quantization
    tagged = (f"{repo}:{quantization}",) if quantization else ()
    names = (*model.names, *tagged, f"{repo}/{model.path.relative_to(folder)}")
    return replace(model, names=names, together=folder)


def _join_parts(files: Iterable[Path], source: Source) -> Iterator[ModelFile]:
    """One entry a model, for files that may be parts of models."""
    models: dict[tuple[Path, str, int], list[tuple[int, Path]]] = {}
    for path in files:
        name = parse_name(path.name)
        models.setdefault((path.parent, name.stem, name.parts), []).append((name.part, path))
    for (_, stem, _), numbered in models.items():
        parts = tuple(path for _, path in sorted(numbered))
        yield ModelFile(path=parts[0], source=source, names=(stem,), parts=parts)


def unreadable(path: Path, source: Source, exc: OSError) -> ModelFile:
    """The entry for a folder or file that the system does not let us read."""
    return ModelFile(path=path, source=source, names=(), problem=exc.strerror or str(exc))


def named_folders(environ: Mapping[str, str], folders: Sequence[Path] = ()) -> tuple[Path, ...]:
    """The given folders and those of `ROCM_MODEL_DIR`, as absolute paths."""
    return tuple(Path(os.path.abspath(path)) for path in (*folders, *env.model_dirs(environ)))


def own_folder(environ: Mapping[str, str]) -> Path:
    """Where rocllm puts what it fetches, except from the Hub."""
    return Path(os.path.abspath(env.data_dir(environ) / "models"))


def _identity(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _list_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    folders: list[Path] = []
    files: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                folders.append(folder / entry.name)
            elif entry.name.lower().endswith(SUFFIX):
                files.append(folder / entry.name)
    return folders, files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or into a folder that is closed to us
        return False
