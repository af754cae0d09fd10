"""From how a child ended to a typed error: one table. Pure.

The rules are tried in order on the last lines of output, newest first; the first that matches wins.
The texts are llama.cpp's (b11434, b11549), ROCm's, the dynamic loader's and the kernel's.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from rocllm.errors import (
    AddressInUse,
    OutOfMemory,
    RocllmError,
    ServerCrashed,
    ServerError,
    StartFailed,
    UnsupportedArchitecture,
)

_TAIL = 5


@dataclass(frozen=True, slots=True)
class Rule:
    """One known cause: a pattern in the output, the error it means, why, and what to do.

    `why` may use a named group of the pattern as `{name}`, if the group takes part in every match.
    """

    pattern: re.Pattern[str]
    error: type[RocllmError]
    why: str
    remedy: str


def _rule(pattern: str, error: type[RocllmError], why: str, remedy: str) -> Rule:
    return Rule(re.compile(pattern), error, why, remedy)


RULES: tuple[Rule, ...] = (
    _rule(
        r"unknown model architecture: '(?P<arch>[^']*)'",
        UnsupportedArchitecture,
        "this llama.cpp does not know the model architecture {arch!r}",
        "use a newer llama-server, or another model",
    ),
    _rule(
        r"tensor '(?P<tensor>[^']*)' data is not within the file bounds",
        StartFailed,
        "the file ends before the data of tensor {tensor!r}: it is incomplete",
        "fetch the file again",
    ),
    _rule(
        r"invalid magic characters|failed to read magic|failed to read key-value pairs"
        r"|failed to read tensor info",
        StartFailed,
        "the file is not a GGUF file, or a broken one",
        "fetch the file again; `rocllm show FILE` says more",
    ),
    _rule(
        r"wrong number of tensors; expected (?P<want>\d+), got (?P<got>\d+)"
        r"|missing tensor '(?P<tensor>[^']*)'|check_tensor_dims: tensor .* has wrong shape",
        StartFailed,
        "the tensors in the file are not those that its architecture needs",
        "fetch the file again, or use a newer llama-server",
    ),
    _rule(
        r"(?:cudaMalloc|hipMalloc) failed: out of memory|unable to allocate (?P<buf>\S+) buffer"
        r"|failed to allocate .*buffer|ROCm error: out of memory|ErrorOutOfDeviceMemory"
        r"|failed to allocate buffer for kv cache|std::bad_alloc|Cannot allocate memory",
        OutOfMemory,
        "the memory that the model, its context and its buffers need is not free",
        "use a smaller ctx_size, fewer slots (parallel), a smaller model or quantisation, "
        "or fewer GPU layers",
    ),
    _rule(
        r"couldn't bind HTTP server socket, hostname: (?P<host>\S+), port: (?P<port>\d+)",
        AddressInUse,
        "the address {host} port {port} is in use, or does not belong to this machine",
        "choose another port, or leave host and port away: then a private socket is used",
    ),
    # Before the next one: llama-server says both in one line.
    _rule(
        r"invalid device: (?P<device>\S+)",
        StartFailed,
        "the server has no device {device}: it was built for other hardware, or the GPU is masked",
        "see `rocllm devices` and `llama-server --list-devices`",
    ),
    _rule(
        r"invalid argument: (?P<flag>\S+)|error while handling argument \"(?P<flag2>[^\"]+)\""
        r"|unknown argument (?P<flag3>\S+)",
        StartFailed,
        "this llama-server refuses one of its flags",
        "this is a fault of rocllm or a very old server: please report it with the command line",
    ),
    _rule(
        r"error while loading shared libraries: (?P<lib>[^:]+): cannot open shared object file",
        StartFailed,
        "the library {lib} is missing on this machine",
        "install the ROCm version that this llama-server was built for, or another build of it",
    ),
    _rule(
        r"symbol lookup error: .*undefined symbol: (?P<symbol>\S+)",
        StartFailed,
        "the libraries do not fit together: {symbol} is missing; ROCm versions may be mixed",
        "leave one ROCm version in LD_LIBRARY_PATH",
    ),
    _rule(
        r"rocBLAS error: Cannot read .*TensileLibrary.* for GPU arch : (?P<gfx>gfx\w+)",
        StartFailed,
        "rocBLAS has no kernels for {gfx}",
        "hide that GPU (see `rocllm devices`), or use a newer ROCm or a Vulkan build",
    ),
    _rule(
        r"ROCm error: (?:invalid device function|device kernel image is invalid)"
        r"|no kernel image is available for execution",
        StartFailed,
        "this llama-server was not built for this GPU",
        "use a build that lists the GPU's gfx target, or a Vulkan build",
    ),
    _rule(
        r"unspecified launch failure|Memory access fault by GPU node-(?P<node>\d+)"
        r"|HW Exception by GPU node-(?P<node2>\d+)",
        ServerCrashed,
        "the GPU reported a fault; an integrated GPU beside the discrete one is a common cause",
        "see `rocllm devices` for what is chosen, and dmesg for the driver's own words",
    ),
    _rule(
        r"quantized V cache (?:was requested, but this )?requires (?:flash_attn|Flash Attention)"
        r"|V cache quantization requires flash_attn",
        StartFailed,
        "a quantised V cache needs flash attention",
        "use flash_attn='on', or cache_type_v='f16'",
    ),
    # Not the bare words: a ROCm build says them of amdgpu.ids, and works all the same.
    _rule(
        r"failed to (?:open GGUF file '|execute )(?P<file>[^':]+).*No such file or directory",
        StartFailed,
        "there is no file {file!r}",
        "it may have been removed meanwhile: give the path of one that is there",
    ),
)

# What the signal itself says, where the output says nothing.
_SIGNALS: dict[int, tuple[type[ServerError], str, str]] = {
    signal.SIGILL: (
        StartFailed,
        "the program uses instructions that this processor does not have",
        "use a llama-server that was built for this processor",
    ),
    signal.SIGKILL: (
        ServerCrashed,
        "somebody killed it; the kernel does so when memory runs out (see dmesg)",
        "if it was the kernel: use a smaller model or context",
    ),
    signal.SIGSEGV: (ServerCrashed, "it accessed memory that is not its own", "report it"),
    signal.SIGABRT: (ServerCrashed, "it gave up on an internal error", "see its last output"),
    signal.SIGTERM: (ServerCrashed, "somebody sent it SIGTERM", "start it again"),
}


def diagnose(
    argv: tuple[str, ...],
    exit_status: int,
    output: tuple[str, ...],
    *,
    ready: bool,
    model: str | None = None,
) -> RocllmError:
    """The error that tells why the child ended.

    exit_status: negative for a signal. output: its last lines. ready: it had served before.
    model: the model file, for the message.
    """
    subject = f"llama-server could not load {model!r}" if model and not ready else "llama-server"
    what = f"{subject}: it ended {'while serving ' if ready else ''}with {status(exit_status)}"
    output_shown = _tail(output)
    # Who is killed from outside has not said why: what it printed before is about something else.
    killed = -exit_status in (signal.SIGKILL, signal.SIGTERM)
    found = None if killed else _match(output)
    if found is not None:
        rule, match = found
        output_shown = f"it said: {match.string.strip()}"
        groups = {name: text for name, text in match.groupdict().items() if text is not None}
        error = rule.error
        why, remedy = rule.why.format_map(groups), rule.remedy
    elif -exit_status in _SIGNALS:
        error, why, remedy = _SIGNALS[-exit_status]
    else:
        error, why, remedy = StartFailed, "", ""
    if ready and issubclass(error, StartFailed):
        error = ServerCrashed
    elif not ready and error is ServerCrashed:
        error = StartFailed
    why = "\n".join(part for part in (why, output_shown) if part)
    if issubclass(error, ServerError):
        return error(
            what,
            why=why or None,
            remedy=remedy or None,
            argv=argv,
            exit_status=exit_status,
            output=output,
        )
    return error(what, why=why or None, remedy=remedy or None)


def explain_exit(argv: tuple[str, ...], exit_status: int, output: tuple[str, ...]) -> RocllmError:
    """The same for a binary that was only asked a question."""
    return diagnose(argv, exit_status, output, ready=False)


def status(exit_status: int) -> str:
    """An exit status in words: `exit status 1`, `signal SIGKILL`."""
    if exit_status >= 0:
        return f"exit status {exit_status}"
    try:
        return f"signal {signal.Signals(-exit_status).name}"
    except ValueError:
        return f"signal {-exit_status}"


def _match(output: tuple[str, ...]) -> tuple[Rule, re.Match[str]] | None:
    for rule in RULES:
        for line in reversed(output):
            match = rule.pattern.search(line)
            if match is not None:
                return rule, match
    return None


def _tail(output: tuple[str, ...]) -> str:
    lines = [line for line in output if line.strip()][-_TAIL:]
    return "last output:\n" + "\n".join(f"  {line}" for line in lines) if lines else ""
