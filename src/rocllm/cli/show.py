"""`rocllm show`: what a model file says about itself."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rocllm.catalog import resolve_model
from rocllm.cli._arguments import Model
from rocllm.cli._session import opened
from rocllm.cli._terminal import one_line
from rocllm.errors import ModelFileError
from rocllm.gguf import (
    ArrayInfo,
    GGUFFile,
    MetadataValue,
    ModelInfo,
    model_info,
    read_model_info,
    read_splits,
)
from rocllm.options import LoadOptions
from rocllm.results import Message
from rocllm.safetensors import find_directory, read_safetensors_info
from rocllm.units import format_bytes, format_count

HELP = "Show what a model file says about itself."

# Nothing is generated, so the smallest context there is will do.
_TEMPLATE_CTX = 256
_EXAMPLE = (
    Message("system", "You are helpful."),
    Message("user", "Hello!"),
    Message("assistant", "Hi, what can I do for you?"),
    Message("user", "Explain gravity."),
)


def show(
    model: Model,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print JSON: all metadata and tensors, too.")
    ] = False,
    template: Annotated[
        bool,
        typer.Option("--template", help="Print the chat template, and what it makes of a talk."),
    ] = False,
) -> None:
    """Show what a model file says about itself."""
    path = resolve_model(model, os.environ)
    directory = find_directory(path)
    if directory is not None:
        _show_directory(directory, template=template, as_json=json_output)
        return
    if template:
        _show_template(path, as_json=json_output)
        return
    parts = read_splits(path)
    info: ModelInfo | None = None
    problem: ModelFileError | None = None
    try:
        info = model_info(*parts)
    except ModelFileError as exc:  # the file can be read and shown all the same
        problem = exc
    if json_output:
        typer.echo(json.dumps(_as_json(parts, info, problem), indent=2, allow_nan=False))
        return
    rows = list(_about_model(info)) if info else []
    rows += _about_files(parts)
    if problem:
        rows.append(("problem", ": ".join(filter(None, (problem.what, problem.why)))))
    _print_rows(rows)


def _print_rows(rows: Sequence[tuple[str, str]]) -> None:
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        typer.echo(f"{label:<{width}}  {one_line(text)}")


def _show_directory(directory: Path, *, template: bool, as_json: bool) -> None:
    """A model in safetensors format: what its configuration and its files' headers say."""
    info = read_safetensors_info(directory)
    if template and not as_json:
        typer.echo(_lines(info.chat_template or "(the model has no chat template)"))
        return
    if as_json:
        metadata = {key: _value_as_json(value) for key, value in info.metadata.items()}
        document = {"path": str(directory), "model": _model_as_json(info), "metadata": metadata}
        typer.echo(json.dumps(document, indent=2, allow_nan=False))
        return
    size = format_bytes(info.file_size)
    _print_rows(
        [
            *_about_model(info),
            ("directory", str(directory)),
            ("size", size if info.split_count == 1 else f"{size} in {info.split_count} files"),
            ("format", "safetensors, for --backend vllm"),
        ]
    )


def _show_template(path: Path, *, as_json: bool) -> None:
    """The template from the file; what comes of it is llama-server's work, so it is asked."""
    text = read_model_info(path).chat_template
    if not as_json:
        typer.echo(
            _lines(text) if text else "(the file has no chat template: llama-server uses ChatML)"
        )
    options = LoadOptions(device="cpu", ctx_size=_TEMPLATE_CTX)
    with opened(str(path), options, quiet=True) as model:
        made = model.apply_template(_EXAMPLE)
    if as_json:
        document = {"path": str(path), "chat_template": text, "example": made}
        typer.echo(json.dumps(document, indent=2))
    else:
        typer.echo(f"\n(what llama-server makes of it)\n{_lines(made)}")


def _lines(text: str) -> str:
    return "\n".join(one_line(line) for line in text.split("\n"))


def _about_model(info: ModelInfo) -> Iterator[tuple[str, str]]:
    yield "name", info.name or "-"
    yield "architecture", info.architecture
    label = f" (label: {info.size_label})" if info.size_label else ""
    count = info.parameter_count
    yield "parameters", (format_count(count) if count else "none") + label
    bits = "" if info.bits_per_weight is None else f", {info.bits_per_weight:.2f} bits per weight"
    yield "quantization", (info.quantization or "-") + bits
    yield "context length", f"{info.context_length:,} tokens"
    yield "layers", str(info.block_count)
    yield (
        "width",
        f"{info.embedding_length:,}, feed-forward {_per_layer(info.feed_forward_length)}",
    )
    yield from _about_attention(info)
    if info.expert_count:
        yield "experts", f"{info.expert_count}, of which {info.expert_used_count} are used"
    if info.ssm_state_size:
        yield "recurrent state", f"{info.ssm_state_size} by {info.ssm_inner_size:,}"
    size = "-" if info.vocab_size is None else f"{info.vocab_size:,} tokens"
    tokenizer = f" ({info.tokenizer_model})" if info.tokenizer_model else ""
    yield "vocabulary", size + tokenizer
    yield "chat template", "yes" if info.chat_template else "no"
    yield "license", info.license or "-"


def _about_attention(info: ModelInfo) -> Iterator[tuple[str, str]]:
    if not any(info.head_count):
        return
    heads = f"{_per_layer(info.head_count)}, keys and values {_per_layer(info.head_count_kv)}"
    yield "heads", f"{heads}, head size {info.key_length}"
    if info.sliding_window:
        yield "sliding window", f"{info.sliding_window:,} tokens"


def _about_files(parts: tuple[GGUFFile, ...]) -> Iterator[tuple[str, str]]:
    first = parts[0]
    yield "file", str(first.path)
    size = format_bytes(sum(part.file_size for part in parts))
    yield "size", size if len(parts) == 1 else f"{size} in {len(parts)} files"
    n_tensors = sum(len(part.tensors) for part in parts)
    contents = f"{len(first.metadata)} metadata keys, {n_tensors} tensors"
    yield "format", f"GGUF version {first.version}, {first.byte_order}-endian, {contents}"


def _per_layer(numbers: tuple[int, ...]) -> str:
    """`8`, or `0 to 8` where layers differ."""
    low, high = min(numbers, default=0), max(numbers, default=0)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _as_json(
    parts: tuple[GGUFFile, ...], info: ModelInfo | None, problem: ModelFileError | None
) -> dict[str, Any]:
    first = parts[0]
    return {
        "path": str(first.path),
        "version": first.version,
        "byte_order": first.byte_order,
        "alignment": first.alignment,
        "files": [
            {
                "path": str(part.path),
                "file_size": part.file_size,
                "data_offset": part.data_offset,
                "tensor_count": len(part.tensors),
            }
            for part in parts
        ],
        "model": None if info is None else _model_as_json(info),
        "problem": None if problem is None else str(problem),
        "metadata": {key: _value_as_json(value) for key, value in first.metadata.items()},
        "tensors": [
            {"file": number, **dataclasses.asdict(tensor)}
            for number, part in enumerate(parts)
            for tensor in part.tensors
        ],
    }


def _model_as_json(info: ModelInfo) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(info)]
    return {name: getattr(info, name) for name in names if name not in ("metadata", "tensors")}


def _value_as_json(value: MetadataValue) -> Any:
    if isinstance(value, ArrayInfo):
        return {"type": value.type, "count": value.count}
    if isinstance(value, tuple):
        return [_value_as_json(element) for element in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such numbers
    return value
