"""`python -m rocllm.server.embedded`: the llama.cpp server of `xllamacpp` as a llama-server.

A child process like any other llama-server: the same log on stderr, the same health life cycle,
the same signals (SIGTERM while loading ends it at once, later it shuts down, a second one ends it).
It takes the flags that rocllm uses; another one is refused by name.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag: its spellings, the argument in `--help` (empty: a switch), and what it sets."""

    names: tuple[str, ...]
    argument: str
    text: str
    apply: Callable[[Any, Any, str], None]


def _field(path: str, convert: Callable[[str], Any]) -> Callable[[Any, Any, str], None]:
    *parents, name = path.split(".")

    def apply(_xllamacpp: Any, params: Any, value: str) -> None:
        setattr(functools.reduce(getattr, parents, params), name, convert(value))

    return apply


def _constant(name: str, constant: Any) -> Callable[[Any, Any, str], None]:
    return _field(name, lambda _value: constant)


def _enum(name: str, kind: str, members: dict[str, str]) -> Callable[[Any, Any, str], None]:
    def apply(xllamacpp: Any, params: Any, value: str) -> None:
        if value not in members:
            raise ValueError(f"one of {', '.join(members)} is expected")
        setattr(params, name, getattr(getattr(xllamacpp, kind), members[value]))

    return apply


def _set_spec_type(xllamacpp: Any, params: Any, value: str) -> None:
    kinds = xllamacpp.common_speculative_type
    params.speculative.types = [getattr(kinds, f"COMMON_SPECULATIVE_TYPE_{_SPEC_TYPES[value]}")]


def _set_tensor_split(_xllamacpp: Any, params: Any, value: str) -> None:
    shares = [float(share) for share in value.split(",")]
    params.tensor_split = [*shares, *[0.0] * (len(params.tensor_split) - len(shares))]


def _set_device(xllamacpp: Any, params: Any, value: str) -> None:
    """The wheel cannot select devices; it uses all that the environment shows, or none."""
    if value == "none":
        params.n_gpu_layers = 0
        return
    seen = [device["name"] for device in _gpus(xllamacpp)]
    for name in value.split(","):
        if name not in seen:
            raise ValueError(f"invalid device: {name}")


_SPEC_TYPES = {"none": "NONE", "draft-simple": "DRAFT_SIMPLE"}
_LOAD_MODES = {
    "auto": "LLAMA_LOAD_MODE_AUTO",
    "none": "LLAMA_LOAD_MODE_NONE",
    "mmap": "LLAMA_LOAD_MODE_MMAP",
    "mlock": "LLAMA_LOAD_MODE_MLOCK",
    "dio": "LLAMA_LOAD_MODE_DIRECT_IO",
}
_ON_OFF = {"on": True, "off": False, "1": True, "0": False}
_CACHE = {
    name: f"GGML_TYPE_{name.upper()}"
    for name in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
}

FLAGS: tuple[Flag, ...] = (
    Flag(("-m", "--model"), "FNAME", "model path to load", _field("model.path", str)),
    Flag(
        ("-a", "--alias"), "STRING", "model name for the API", _field("model_alias", lambda v: {v})
    ),
    Flag(
        ("--host",),
        "HOST",
        "address, or a path ending in .sock",
        _field("hostnames", lambda v: [v]),
    ),
    Flag(("--port",), "PORT", "port to listen on", _field("port", int)),
    Flag(("--cors-origins",), "ORIGINS", "allowed origins", _field("cors_origins", str)),
    Flag(
        ("-c", "--ctx-size"), "N", "size of the context, all slots together", _field("n_ctx", int)
    ),
    Flag(("-np", "--parallel"), "N", "number of slots", _field("n_parallel", int)),
    Flag(
        ("-kvu", "--kv-unified"), "", "one KV buffer for all slots", _constant("kv_unified", True)
    ),
    Flag(("-no-kvu", "--no-kv-unified"), "", "a KV buffer a slot", _constant("kv_unified", False)),
    Flag(("-b", "--batch-size"), "N", "logical maximum batch size", _field("n_batch", int)),
    Flag(("-ub", "--ubatch-size"), "N", "physical maximum batch size", _field("n_ubatch", int)),
    Flag(("-ngl", "--n-gpu-layers"), "N", "layers to store in VRAM", _field("n_gpu_layers", int)),
    Flag(("-dev", "--device"), "<dev1,dev2,..>", "devices to use, none for the CPU", _set_device),
    Flag(
        ("-sm", "--split-mode"),
        "{none,layer,row,tensor}",
        "how to split the model over GPUs",
        _enum(
            "split_mode",
            "llama_split_mode",
            {
                name: f"LLAMA_SPLIT_MODE_{name.upper()}"
                for name in ("none", "layer", "row", "tensor")
            },
        ),
    ),
    Flag(
        ("-fit", "--fit"),
        "[on|off]",
        "fit unset arguments",
        _field("fit_params", _ON_OFF.__getitem__),
    ),
    Flag(
        ("-lm", "--load-mode"),
        "MODE",
        "how the file is read",
        _enum("load_mode", "llama_load_mode", _LOAD_MODES),
    ),
    Flag(
        ("-fa", "--flash-attn"),
        "[on|off|auto]",
        "flash attention",
        _enum(
            "flash_attn_type",
            "llama_flash_attn_type",
            {
                "on": "LLAMA_FLASH_ATTN_TYPE_ENABLED",
                "off": "LLAMA_FLASH_ATTN_TYPE_DISABLED",
                "auto": "LLAMA_FLASH_ATTN_TYPE_AUTO",
            },
        ),
    ),
    Flag(
        ("-ctk", "--cache-type-k"), "TYPE", "type of K", _enum("cache_type_k", "ggml_type", _CACHE)
    ),
    Flag(
        ("-ctv", "--cache-type-v"), "TYPE", "type of V", _enum("cache_type_v", "ggml_type", _CACHE)
    ),
    Flag(("-mm", "--mmproj"), "FILE", "projector for images or sound", _field("mmproj.path", str)),
    Flag(
        ("--no-mmproj-offload",),
        "",
        "projector on the CPU",
        _constant("mmproj_use_gpu", False),
    ),
    Flag(
        ("-md", "--model-draft"),
        "FNAME",
        "draft model",
        _field("speculative.draft.mparams.path", str),
    ),
    Flag(
        ("-ngld", "--n-gpu-layers-draft"),
        "N",
        "its layers to store in VRAM",
        _field("speculative.draft.n_gpu_layers", int),
    ),
    Flag(("--spec-type",), "none,draft-simple", "how to guess ahead", _set_spec_type),
    Flag(
        ("--spec-draft-n-max",),
        "N",
        "tokens to guess ahead",
        _field("speculative.draft.n_max", int),
    ),
    Flag(
        ("-t", "--threads"), "N", "CPU threads for generation", _field("cpuparams.n_threads", int)
    ),
    Flag(
        ("-tb", "--threads-batch"),
        "N",
        "CPU threads for prompts",
        _field("cpuparams_batch.n_threads", int),
    ),
    Flag(("--swa-full",), "", "full-size SWA cache", _constant("swa_full", True)),
    Flag(("--ctx-checkpoints",), "N", "saved states of a slot", _field("n_ctx_checkpoints", int)),
    Flag(("--cache-ram",), "N", "prompt cache in host RAM, MiB", _field("cache_ram_mib", int)),
    Flag(
        ("--sse-ping-interval",),
        "N",
        "seconds between comments on a silent stream",
        _field("sse_ping_interval", int),
    ),
    Flag(("--threads-http",), "N", "threads for requests", _field("n_threads_http", int)),
    Flag(("--slot-save-path",), "PATH", "where slots are saved", _field("slot_save_path", str)),
    Flag(("--jinja",), "", "use the model's chat template", _constant("use_jinja", True)),
    Flag(("--metrics",), "", "enable /metrics", _constant("endpoint_metrics", True)),
    Flag(("--slots",), "", "enable /slots", _constant("endpoint_slots", True)),
    Flag(("--no-slots",), "", "disable /slots", _constant("endpoint_slots", False)),
    Flag(("--offline",), "", "never use the network", _constant("offline", True)),
    Flag(("--no-ui",), "", "no web interface", _constant("ui", False)),
    Flag(("--no-warmup",), "", "no empty run after loading", _constant("warmup", False)),
    Flag(("-lv", "--log-verbosity"), "N", "0 to 5", _field("verbosity", int)),
    # The wheel never colours its log.
    Flag(("--log-colors",), "[on|off|auto]", "coloured log", lambda _x, _params, _value: None),
)


def parse(arguments: Sequence[str]) -> list[tuple[str, Flag, str]]:
    """Flags and values in order. Raises `ValueError` in llama-server's own words."""
    known = {name: flag for flag in FLAGS for name in flag.names}
    rest = list(arguments)
    found: list[tuple[str, Flag, str]] = []
    while rest:
        name = rest.pop(0)
        flag = known.get(name)
        if flag is None:
            raise ValueError(f"invalid argument: {name}")
        if flag.argument and not rest:
            raise ValueError(f"expected value for argument {name}")
        found.append((name, flag, rest.pop(0) if flag.argument else ""))
    return found


def help_text() -> str:
    """`--help` in llama-server's form."""
    lines = ["----- flags of the embedded server -----", ""]
    for flag in FLAGS:
        names = f"{', '.join(flag.names)} {flag.argument}".rstrip()
        lines.append(
            f"{names:<39} {flag.text}" if len(names) < 38 else f"{names}\n{'':<40}{flag.text}"
        )
    return "\n".join(lines)


def _gpus(xllamacpp: Any) -> list[dict[str, Any]]:
    return [device for device in xllamacpp.get_device_info() if device["name"] != "CPU"]


def _list_devices(xllamacpp: Any) -> str:
    lines = ["Available devices:"]
    for device in _gpus(xllamacpp):
        total, free = device["memory_total"] >> 20, device["memory_free"] >> 20
        lines.append(f"  {device['name']}: {device['description']} ({total} MiB, {free} MiB free)")
    return "\n".join(lines if len(lines) > 1 else [*lines, "  (none)"])


def _version(xllamacpp: Any) -> str:
    build = xllamacpp.__version__.rpartition(".")[2]
    return f"version: {xllamacpp.__version__} (build {build}, commit unknown)"


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(1)


def _write_log(xllamacpp: Any) -> None:
    """Wait until the log is written: a thread does that, and at the end nobody waits for it."""
    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    with contextlib.suppress(AttributeError):  # another build, of another compiler
        log, pause = library._Z15common_log_mainv, library._Z16common_log_pauseP10common_log
        log.restype, pause.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
        pause(log())


def log_to(path: str) -> None:
    """Write what the engine logs in this process into a file, too."""
    import xllamacpp

    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    with contextlib.suppress(AttributeError):  # another build, of another compiler
        log = library._Z15common_log_mainv
        set_file = library._Z19common_log_set_fileP10common_logPKc
        log.restype, set_file.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_char_p)
        set_file(log(), os.fsencode(path))


def load(arguments: Sequence[str], api_key: str | None = None) -> Any:
    """Load a model as the flags say: xllamacpp's server, which serves from now on.

    api_key: what its listener asks for.

    Raises `ValueError` for a flag, in llama-server's own words, and `RuntimeError` when the model
    cannot be loaded; the log says why.
    """
    import xllamacpp  # an extra, and 100 MB: loaded only in this process and only when needed

    params = xllamacpp.CommonParams()
    for name, flag, value in parse(arguments):
        try:
            flag.apply(xllamacpp, params, value)
        except (KeyError, ValueError, OverflowError) as exc:
            raise ValueError(f'error while handling argument "{name}": {value!r}: {exc}') from exc
    if api_key:
        params.api_keys = [api_key]
    if not params.model.path:
        raise ValueError("expected value for argument --model")
    try:
        server = xllamacpp.Server(params)
    except RuntimeError:
        _write_log(xllamacpp)
        raise
    # Its loop begins after it says that it is ready, and one that is ended before never ends. The
    # loop answers this.
    server.handle_metrics()
    return server


def load_or_exit(arguments: Sequence[str], api_key: str | None = None) -> Any:
    """The same for a process that has nothing else to do; the signals are Python's again."""
    try:
        server = load(arguments, api_key)
    except (ValueError, RuntimeError) as exc:
        _fail(str(exc))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    return server


def _serve(arguments: Sequence[str]) -> None:
    """Run until a signal. While loading, the signals have their default effect, as natively."""
    server = load_or_exit(arguments, os.environ.get("LLAMA_API_KEY"))
    values = {flag.names[-1]: value for _, flag, value in parse(arguments)}
    socket_path = values.get("--host", "")
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    os.read(read_end, 1)
    # A second signal ends the process at once, whatever the shutdown below is waiting for.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    del server
    if socket_path.endswith(".sock"):
        with contextlib.suppress(OSError):
            os.unlink(socket_path)


def main(arguments: Sequence[str]) -> None:
    """Run the server with llama-server's flags."""
    if any(name in ("-h", "--help", "--usage") for name in arguments):
        sys.stdout.write(help_text() + "\n")
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if "--version" in arguments or "--list-devices" in arguments:
        import xllamacpp

        if "--version" in arguments:
            sys.stderr.write(_version(xllamacpp) + "\n")
        else:
            sys.stdout.write(_list_devices(xllamacpp) + "\n")
        return
    _serve(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
