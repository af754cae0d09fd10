"""Load a model only to see how much memory llama-server says it takes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from rocllm.endpoint import Endpoint
from rocllm.gguf import ModelInfo, TensorInfo
from rocllm.memory import Part, Settings, measured_parts
from rocllm.memory.weights import placement
from rocllm.server import Buffer, LaunchOptions, RunDir, ServerBinary, build_command, start_server

_START_TIMEOUT = 60.0


def load_buffers(
    binary: ServerBinary,
    model: Path,
    settings: Settings,
    environ: Mapping[str, str],
    *,
    device_names: Sequence[str] = (),
    extra_flags: Sequence[str] = (),
    mmproj: str | os.PathLike[str] | None = None,
    model_draft: str | os.PathLike[str] | None = None,
) -> tuple[Buffer, ...]:
    """The buffers that `binary` reports for a model loaded like this; nothing is left running."""
    run_dir = RunDir.create(environ)
    try:
        endpoint = Endpoint.unix(run_dir.socket_path)
        launch = LaunchOptions(
            model_path=model,
            alias=model.stem,
            settings=settings,
            device_names=tuple(device_names),
            flash_attn="on" if settings.flash_attn else "off",
            threads=1,
            mmproj=mmproj,
            model_draft=model_draft,
        )
        command = build_command(
            binary, launch, endpoint, environ=environ, config_home=run_dir.config_home
        )
        engine = len(binary.argv)
        # Before the others: a device must be made known before it is named.
        argv = (*command.argv[:engine], *extra_flags, *command.argv[engine:])
        command = dataclasses.replace(command, argv=argv)
        process, report = start_server(
            command, endpoint, model_path=model, start_timeout=_START_TIMEOUT
        )
        process.stop(term_grace=1.0, kill_grace=1.0)
        return report.buffers
    finally:
        run_dir.remove()


def actual_parts(buffers: Sequence[Buffer], device_names: Sequence[str]) -> tuple[Part, ...]:
    """The reported buffers as parts, with what is mapped of the file as the host's weights."""
    mapped = tuple(
        Part(None, "weights", one.size, "measured", one.of)
        for one in buffers
        if one.device in ("CPU_Mapped", "CPU", "Host")
        and one.kind == "model"
        and one.of != "projector"
    )
    return (*mapped, *measured_parts(buffers, device_names))


def mapped_range(model: ModelInfo, settings: Settings, n_gpus: int) -> int:
    """Bytes from the first to the last weight in host memory, which is what llama.cpp maps and
    reports; what lies between and is on a GPU costs nothing."""
    where = placement(model, settings, n_gpus)
    on_host = [tensor for tensor in model.tensors if _is_on_host(tensor, where)]
    return max(one.offset + (one.n_bytes or 0) for one in on_host) - min(
        one.offset for one in on_host
    )


def _is_on_host(tensor: TensorInfo, where: tuple[int | None, ...]) -> bool:
    if tensor.name.startswith("blk."):
        return where[int(tensor.name.split(".")[1])] is None
    return tensor.name.startswith("token_embd.") or where[-1] is None
