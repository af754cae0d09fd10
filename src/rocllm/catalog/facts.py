"""What the catalogue tells of a model file, read from the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from rocllm.errors import InvalidGGUF, ModelFileError, UnsupportedArchitecture
from rocllm.gguf import GGUFFile, model_info, read_splits

Kind: TypeAlias = Literal["model", "mmproj", "adapter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a file says about itself; `None`: it does not say, or cannot be read.

    kind: a language model, or a part that is loaded beside one. The other names are those of
        `rocllm.gguf.ModelInfo`; `chat_template` only says whether there is one.
    problem: why it cannot be used.
    """

    kind: Kind = "model"
    architecture: str | None = None
    size_label: str | None = None
    parameter_count: int | None = None
    quantization: str | None = None
    context_length: int | None = None
    chat_template: bool | None = None
    problem: str | None = None


def read_facts(path: Path) -> tuple[Facts, bool]:
    """What the file, or the model in several files, says; and whether that holds until it changes.

    What the system refuses may be allowed later, without any change of the file.
    """
    try:
        parts = read_splits(path)
        kind = _kind(parts[0])
        if kind != "model":
            return Facts(kind=kind, architecture=_text(parts[0], "general.architecture")), True
        info = model_info(*parts)
    except ModelFileError as exc:
        return Facts(problem=_reason(exc, path)), isinstance(
            exc, (InvalidGGUF, UnsupportedArchitecture)
        )
    return Facts(
        architecture=info.architecture,
        size_label=info.size_label,
        parameter_count=info.parameter_count or None,
        quantization=info.quantization,
        context_length=info.context_length,
        chat_template=info.chat_template is not None,
        problem=None if info.tensors else "it holds a vocabulary and no weights",
    ), True


def _kind(gguf: GGUFFile) -> Kind:
    if gguf.metadata.get("general.type") == "adapter":
        return "adapter"
    # Projectors are older than `general.type`.
    projector = _text(gguf, "general.architecture") == "clip"
    return "mmproj" if projector or gguf.metadata.get("general.type") == "mmproj" else "model"


def _text(gguf: GGUFFile, key: str) -> str | None:
    value = gguf.metadata.get(key)
    return value if isinstance(value, str) else None


def _reason(exc: ModelFileError, path: Path) -> str:
    # The file is named beside it. Without that, some say what is wrong with which key.
    named = f"{str(path)!r}: "
    what = exc.what.removeprefix(named) if exc.what.startswith(named) else None
    reason = ": ".join(filter(None, (what, exc.why)))
    reason = reason or exc.what.replace(f"{str(path)!r} is ", "it is ")
    if isinstance(exc, InvalidGGUF) and exc.offset:
        reason += f" (at byte {exc.offset})"
    return reason
