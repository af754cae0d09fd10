"""The options that several commands share; the names are those of `LoadOptions` and
`SamplingOptions`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from rocllm.errors import OptionsError

Model: TypeAlias = Annotated[
    str, typer.Argument(metavar="MODEL", help="A GGUF file, or a name such as demo.")
]
Quiet: TypeAlias = Annotated[
    bool, typer.Option("--quiet", "-q", help="Only the answer: no notes, no progress.")
]
RawOutput: TypeAlias = Annotated[
    bool,
    typer.Option("--raw-output", help="Let the terminal obey control characters in the answer."),
]

Backend: TypeAlias = Annotated[
    str | None,
    typer.Option("--backend", help="The engine: one of `rocllm backends`.", show_default=False),
]
CtxSize: TypeAlias = Annotated[
    int | None,
    typer.Option("--ctx-size", "--ctx", "-c", help="Context in tokens.", show_default=False),
]
NGpuLayers: TypeAlias = Annotated[
    int | None,
    typer.Option("--n-gpu-layers", "-ngl", help="Layers on the GPU; -1: all.", show_default=False),
]
Device: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        "--gpu",
        help="A GPU by PCI address, ordinal or UUID, or cpu; may be repeated.",
        show_default=False,
    ),
]
CacheTypeK: TypeAlias = Annotated[
    str | None, typer.Option("--cache-type-k", help="Type of the K cache.", show_default=False)
]
CacheTypeV: TypeAlias = Annotated[
    str | None, typer.Option("--cache-type-v", help="Type of the V cache.", show_default=False)
]
FlashAttn: TypeAlias = Annotated[
    str | None, typer.Option("--flash-attn", help="on, off or auto.", show_default=False)
]
LoadMode: TypeAlias = Annotated[
    str | None,
    typer.Option("--load-mode", help="mmap, none, mlock or dio.", show_default=False),
]
CpuFallback: TypeAlias = Annotated[
    bool, typer.Option("--cpu-fallback", help="Use the CPU when the GPU fails, and say so.")
]
Mmproj: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--mmproj",
        help="Projector for images or sound, or auto for the one beside the model.",
        show_default=False,
    ),
]
ModelDraft: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--model-draft", "--draft", "-md", help="A small model to guess ahead.", show_default=False
    ),
]
NGpuLayersDraft: TypeAlias = Annotated[
    int | None,
    typer.Option(
        "--n-gpu-layers-draft", "-ngld", help="Its layers on the GPU; -1: all.", show_default=False
    ),
]
Threads: TypeAlias = Annotated[
    int | None, typer.Option("--threads", "-t", help="CPU threads.", show_default=False)
]
LlamaServer: TypeAlias = Annotated[
    str | None,
    typer.Option("--llama-server", help="Path of a llama-server, or embedded.", show_default=False),
]
Host: TypeAlias = Annotated[
    str | None,
    typer.Option("--host", help="Listen on TCP at this address.", show_default=False),
]
Port: TypeAlias = Annotated[
    int | None, typer.Option("--port", help="Listen on TCP at this port.", show_default=False)
]

System: TypeAlias = Annotated[
    str | None, typer.Option("--system", "-s", help="A system message.", show_default=False)
]
MaxTokens: TypeAlias = Annotated[
    int, typer.Option("--max-tokens", "-n", help="At most so many tokens; -1: until it is full.")
]
Temperature: TypeAlias = Annotated[float, typer.Option("--temperature", help="0: greedy.")]
TopK: TypeAlias = Annotated[int | None, typer.Option("--top-k", show_default=False)]
TopP: TypeAlias = Annotated[float | None, typer.Option("--top-p", show_default=False)]
MinP: TypeAlias = Annotated[float | None, typer.Option("--min-p", show_default=False)]
RepeatPenalty: TypeAlias = Annotated[
    float | None, typer.Option("--repeat-penalty", show_default=False)
]
Seed: TypeAlias = Annotated[int | None, typer.Option("--seed", show_default=False)]
Stop: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--stop", help="Text that ends the answer; may be repeated.", show_default=False),
]


def require_machine(root: Path) -> None:
    """Refuse a `--root` that is not the file tree of a machine."""
    if not any(os.path.isdir(root / name) for name in ("sys", "dev", "proc")):
        raise OptionsError(
            f"--root {str(root)!r} holds no machine",
            why="it has no folder `sys`, `dev` or `proc`"
            if os.path.isdir(root)
            else "it is no folder",
            remedy="give the folder under which the machine's `sys` and `dev` are",
        )
