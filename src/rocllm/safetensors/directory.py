"""The directory of a model in safetensors format, as the Hugging Face Hub has it."""

from __future__ import annotations

import os
from pathlib import Path

from rocllm.errors import ModelFileError, ModelNotFound
from rocllm.safetensors._files import FETCH_AGAIN, broken, read_json

CONFIG = "config.json"
SUFFIX = ".safetensors"
# The same weights once more, for another library: vLLM passes over it as well.
_CONSOLIDATED = "consolidated"
_INDEX = "model.safetensors.index.json"


def is_safetensors_model(path: str | os.PathLike[str]) -> bool:
    """Whether it is a directory with a configuration and safetensors files. Never raises."""
    path = Path(path)
    return os.path.isfile(path / CONFIG) and bool(_listed(path))


def find_directory(path: str | os.PathLike[str]) -> Path | None:
    """The directory of the model that `path` is, or is a file of; `None`: it is no such model.

    Never raises.
    """
    path = Path(path)
    directory = path.parent if path.name.endswith(SUFFIX) and path.is_file() else path
    return directory if is_safetensors_model(directory) else None


def find_weights(directory: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The files with the weights, by name: those of the index where there is one.

    Raises `ModelNotFound` where a file is missing, and `ModelFileError` for a broken index.
    """
    directory = Path(directory)
    names = _listed(directory)
    if os.path.lexists(directory / _INDEX):
        names = _indexed(directory / _INDEX)
    if not names:
        raise ModelNotFound(
            f"{str(directory)!r} is not a model",
            why=f"it holds no {SUFFIX} file",
            remedy="give the directory of a model in safetensors format",
        )
    missing = [name for name in names if not os.path.isfile(directory / name)]
    if missing:
        raise ModelNotFound(
            f"{str(directory)!r} is incomplete",
            why=f"{len(missing)} of {len(names)} files are missing: {', '.join(missing[:3])}",
            remedy=FETCH_AGAIN,
        )
    return tuple(directory / name for name in names)


def _listed(directory: Path) -> list[str]:
    try:
        names = sorted(os.listdir(directory))
    except (OSError, ValueError):
        return []
    return [n for n in names if n.endswith(SUFFIX) and not n.startswith((_CONSOLIDATED, "."))]


def _indexed(index: Path) -> list[str]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(map(_is_name, files.values())):
        raise _no_index(index)
    return sorted(set(files.values()))


def _is_name(value: object) -> bool:
    # A name of another directory would be somebody else's file.
    return isinstance(value, str) and value.endswith(SUFFIX) and os.path.basename(value) == value


def _no_index(index: Path) -> ModelFileError:
    return broken(index, "its weight_map does not name files of this directory")
