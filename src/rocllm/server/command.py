"""The command line and environment of a child, built from values only. Pure.

Flags are emitted by capability, never by version, because versions lie (docs/design.md). Every flag
that matters is given, because defaults moved between builds, and configuration files and
`LLAMA_ARG_*` variables leak in.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rocllm.endpoint import Endpoint
from rocllm.errors import StartFailed
from rocllm.server.binary import ServerBinary
from rocllm.server.environment import scrub_environment

if TYPE_CHECKING:  # the embedded server imports this package, and needs no planner
    from rocllm.memory import Settings

# Seconds between the comments that the server sends on a silent stream. A dropped client of a
# silent stream is noticed at the next of them, and so is SIGTERM while one is connected.
SSE_PING_INTERVAL = 5
# Threads that the server keeps for requests beside one for each slot; each stream, also one that
# waits for a slot, takes one. By itself it keeps four and starts more as they are needed, but now
# and then misses that one is: then a request, or a health check, waits for the end of a stream.
HTTP_THREADS = 64
# More than any model has layers: all of them, the output layer included.
ALL_LAYERS = 999


@dataclass(frozen=True, slots=True)
class LaunchCommand:
    """What to execute: the whole argument vector, the whole environment, and what is left open."""

    argv: tuple[str, ...]
    environ: Mapping[str, str] = field(repr=False)  # the key is in there
    pass_fds: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """What a llama-server is started with.

    alias: the model's name in answers. settings: what the plan decided. device_names: llama.cpp's
    names, such as `ROCm0`; empty for the CPU. flash_attn: `on`, `off` or `auto`. load_mode: how
    the file is read. threads: CPU threads. `None` is llama.cpp's choice. mmproj,
    model_draft: files to load beside it, whole paths. slot_save_path: where the content of slots
    may be saved.
    """

    model_path: Path
    alias: str
    settings: Settings
    device_names: tuple[str, ...] = ()
    flash_attn: str = "auto"
    load_mode: str | None = None
    threads: int | None = None
    mmproj: str | os.PathLike[str] | None = None
    model_draft: str | os.PathLike[str] | None = None
    slot_save_path: Path | None = None


def build_command(
    binary: ServerBinary,
    options: LaunchOptions,
    endpoint: Endpoint,
    *,
    environ: Mapping[str, str],
    config_home: Path,
) -> LaunchCommand:
    """The command for one model on one endpoint.

    environ: the environment after the device mask has been set. config_home: an empty directory.

    Raises `StartFailed` if the binary lacks a flag that cannot be done without.
    """
    flags = _Flags(binary)
    flags.need("--model", str(options.model_path))
    flags.add("--alias", options.alias)
    if endpoint.socket_path is not None:
        flags.need("--host", endpoint.socket_path)
    else:
        flags.need("--host", str(endpoint.host))
        flags.need("--port", str(endpoint.port))
        # Without it any web page in the user's browser may talk to the server.
        flags.add("--cors-origins", "localhost")
    _add_layout(flags, options)
    _add_companions(flags, options)
    if options.load_mode is not None:
        flags.load_mode(options.load_mode)
    if options.threads is not None:
        flags.need("--threads", str(options.threads))
    flags.add("--cache-ram", "0")
    if options.slot_save_path is not None:
        flags.add("--slot-save-path", f"{options.slot_save_path}{os.sep}")
    flags.add("--sse-ping-interval", str(SSE_PING_INTERVAL))
    flags.add("--threads-http", str(HTTP_THREADS + options.settings.parallel))
    for switch in ("--jinja", "--metrics", "--slots", "--offline"):
        flags.add(switch)
    flags.first("--no-ui", "--no-webui")
    flags.add("--log-verbosity", "4")  # buffer sizes are printed from this level on
    flags.add("--log-colors", "off")
    return LaunchCommand(
        (*binary.argv, *flags.argv), child_environment(environ, endpoint, config_home)
    )


def _add_layout(flags: _Flags, options: LaunchOptions) -> None:
    """What decides how much memory is taken, and where."""
    settings, names = options.settings, options.device_names
    # The server divides the total by the slots and rounds each up to 256 cells.
    flags.need("--ctx-size", str(settings.parallel * padded_ctx(settings.ctx_size)))
    flags.need("--parallel", str(settings.parallel))
    flags.add("--no-kv-unified")
    flags.add("--batch-size", str(settings.batch_size))
    flags.add("--ubatch-size", str(settings.ubatch_size))
    layers = settings.n_gpu_layers
    flags.need("--n-gpu-layers", str(ALL_LAYERS if layers < 0 else layers))
    flags.add("--device", ",".join(names) or "none")
    if len(names) == 1:
        flags.add("--split-mode", "none")
    if settings.split:
        flags.need("--split-mode", "layer")
        flags.need("--tensor-split", ",".join(map(str, settings.split)))
    flags.add("--fit", "off")
    flags.flash_attn(options.flash_attn)
    if settings.swa_full:
        flags.add("--swa-full")
    flags.add("--cache-type-k", settings.cache_type_k)
    flags.add("--cache-type-v", settings.cache_type_v)
    flags.add("--ctx-checkpoints", str(settings.checkpoints))


def _add_companions(flags: _Flags, options: LaunchOptions) -> None:
    """The projector and the draft model, which inherit the model's batches and slots."""
    if options.mmproj is not None:
        flags.need("--mmproj", os.fspath(options.mmproj))
        if not options.device_names:
            flags.add("--no-mmproj-offload")
    if options.model_draft is None:
        return
    settings = options.settings
    layers = settings.n_gpu_layers_draft
    flags.need("--model-draft", os.fspath(options.model_draft))
    flags.need("--n-gpu-layers-draft", str(ALL_LAYERS if layers < 0 else layers))
    flags.add("--device-draft", ",".join(options.device_names) or "none")
    # Since April 2026 a draft model is loaded and not used unless the kind of guessing is named.
    if "draft-simple" in flags.argument("--spec-type"):
        flags.add("--spec-type", "draft-simple")
    flags.first("--spec-draft-n-max", "--draft-max", value=str(settings.draft_n_max))
    flags.add("--cache-type-k-draft", "f16")
    flags.add("--cache-type-v-draft", "f16")


def padded_ctx(ctx_size: int) -> int:
    """The cells that a slot gets: llama.cpp rounds up to 256 (src/llama-context.cpp, b11434).

    >>> padded_ctx(4000)
    4096
    """
    return -(-ctx_size // 256) * 256


def child_environment(
    environ: Mapping[str, str], endpoint: Endpoint, config_home: Path
) -> dict[str, str]:
    """What a server needs of `environ`, with the key that it must ask for."""
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

    def argument(self, flag: str) -> str:
        return self._binary.flags.get(flag, "")

    def first(self, *flags: str, value: str | None = None) -> None:
        for flag in flags:
            if flag in self._binary.flags:
                self.add(flag, *(() if value is None else (value,)))
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

    def load_mode(self, value: str) -> None:
        # One flag since July 2026, and three switches before.
        if "--load-mode" in self._binary.flags:
            self.add("--load-mode", value)
        else:
            switches = {"none": "--no-mmap", "mlock": "--mlock", "dio": "--direct-io"}
            self.need(switches.get(value, "--mmap"))

    def flash_attn(self, value: str) -> None:
        # Before September 2025 it was a switch; given a value then, it swallows the next flag.
        if self._binary.flags.get("--flash-attn"):
            self.add("--flash-attn", value)
        elif value == "on":
            self.add("--flash-attn")
