"""The command line and environment of a child, built from values only. Pure.

Flags are emitted by capability, never by version, because versions lie (docs/design.md). Every flag
that matters is given, because defaults moved between builds, and configuration files and
`LLAMA_ARG_*` variables leak in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rocllm.endpoint import Endpoint
from rocllm.errors import StartFailed
from rocllm.server.binary import ServerBinary, scrub_environment

# Seconds between the comments that the server sends on a silent stream. A dropped client of a
# silent stream is noticed at the next of them, and so is SIGTERM while one is connected.
SSE_PING_INTERVAL = 5
# More than any model has layers: all of them, the output layer included.
ALL_LAYERS = 999


@dataclass(frozen=True, slots=True)
class LaunchCommand:
    """What to execute: the whole argument vector and the whole environment."""

    argv: tuple[str, ...]
    environ: Mapping[str, str]


def build_command(
    binary: ServerBinary,
    *,
    model_path: Path,
    alias: str,
    endpoint: Endpoint,
    ctx_size: int,
    parallel: int,
    n_gpu_layers: int,
    device_names: Sequence[str],
    split: Sequence[int] = (),
    batch_size: int,
    ubatch_size: int,
    cache_type_k: str,
    cache_type_v: str,
    flash_attn: str,
    threads: int | None,
    environ: Mapping[str, str],
    config_home: Path,
) -> LaunchCommand:
    """The command for one model on one endpoint.

    ctx_size: tokens of one slot. n_gpu_layers: -1 for all. device_names: llama.cpp's names, such as
    `ROCm0`; empty for the CPU. split: layers for each of several devices. environ: the environment
    after the device mask has been set.

    Raises `StartFailed` if the binary lacks a flag that cannot be done without.
    """
    flags = _Flags(binary)
    flags.need("--model", str(model_path))
    flags.add("--alias", alias)
    if endpoint.socket_path is not None:
        flags.need("--host", endpoint.socket_path)
    else:
        flags.need("--host", str(endpoint.host))
        flags.need("--port", str(endpoint.port))
        # Without it any web page in the user's browser may talk to the server.
        flags.add("--cors-origins", "localhost")
    # The server divides the total by the slots and rounds each up to 256 cells.
    flags.need("--ctx-size", str(parallel * padded_ctx(ctx_size)))
    flags.need("--parallel", str(parallel))
    flags.add("--no-kv-unified")
    flags.add("--batch-size", str(batch_size))
    flags.add("--ubatch-size", str(ubatch_size))
    flags.need("--n-gpu-layers", str(ALL_LAYERS if n_gpu_layers < 0 else n_gpu_layers))
    flags.add("--device", ",".join(device_names) or "none")
    if len(device_names) == 1:
        flags.add("--split-mode", "none")
    if split:
        flags.need("--split-mode", "layer")
        flags.need("--tensor-split", ",".join(map(str, split)))
    flags.add("--fit", "off")
    flags.flash_attn(flash_attn)
    flags.add("--cache-type-k", cache_type_k)
    flags.add("--cache-type-v", cache_type_v)
    if threads is not None:
        flags.need("--threads", str(threads))
    flags.add("--cache-ram", "0")
    flags.add("--sse-ping-interval", str(SSE_PING_INTERVAL))
    for switch in ("--jinja", "--metrics", "--slots", "--offline"):
        flags.add(switch)
    flags.first("--no-ui", "--no-webui")
    flags.add("--log-verbosity", "4")  # buffer sizes are printed from this level on
    flags.add("--log-colors", "off")
    return LaunchCommand(
        (*binary.argv, *flags.argv), child_environment(environ, endpoint, config_home)
    )


def padded_ctx(ctx_size: int) -> int:
    """The cells that a slot gets: llama.cpp rounds up to 256 (src/llama-context.cpp, b11434).

    >>> padded_ctx(4000)
    4096
    """
    return -(-ctx_size // 256) * 256


def child_environment(
    environ: Mapping[str, str], endpoint: Endpoint, config_home: Path
) -> dict[str, str]:
    """`environ` without what would change the server silently, with the key it must ask for."""
    child = scrub_environment(environ, str(config_home))
    if endpoint.api_key is not None:
        child["LLAMA_API_KEY"] = endpoint.api_key  # the argument vector is public in /proc
    return child


class _Flags:
    """An argument vector in the making, for one binary."""

    def __init__(self, binary: ServerBinary) -> None:
        self._binary = binary
        self.argv: list[str] = []

    def add(self, flag: str, *values: str) -> None:
        if flag in self._binary.flags:
            self.argv += (flag, *values)

    def first(self, *flags: str) -> None:
        for flag in flags:
            if flag in self._binary.flags:
                self.add(flag)
                return

    def need(self, flag: str, *values: str) -> None:
        if flag not in self._binary.flags:
            raise StartFailed(
                f"{self._binary.path} has no flag {flag}",
                why=f"it says it is version {self._binary.version}; its --help was read",
                remedy="use a newer llama-server",
                argv=self._binary.argv,
            )
        self.add(flag, *values)

    def flash_attn(self, value: str) -> None:
        # Before September 2025 it was a switch; given a value then, it swallows the next flag.
        if self._binary.flags.get("--flash-attn"):
            self.add("--flash-attn", value)
        elif value == "on":
            self.add("--flash-attn")
