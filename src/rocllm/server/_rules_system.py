"""Causes in the system, the program and its flags, and signals: data of `diagnose`."""

from __future__ import annotations

import signal

from rocllm.errors import AddressInUse, RocllmError, ServerCrashed, StartFailed
from rocllm.server._rule import Rule, rule

SYSTEM = (
    rule(
        "socket_failed",
        "couldn't bind HTTP server socket, hostname: /run/user/1000/rocllm-x/s.sock, port: 8080",
        r"couldn't bind HTTP server socket, hostname: (?P<path>\S+\.sock)",
        StartFailed,
        "the socket {path} cannot be made: its directory is gone, full or not writable",
        "look at its disk (`df`), or set XDG_RUNTIME_DIR to another directory",
    ),
    rule(
        "address_in_use",
        "couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8080",
        r"couldn't bind HTTP server socket, hostname: (?P<host>\S+), port: (?P<port>\d+)",
        AddressInUse,
        "the address {host} port {port} is in use, or does not belong to this machine",
        "choose another port, or leave host and port away: then a private socket is used",
        retryable=True,
    ),
    rule(
        "disk_full",
        "No space left on device",
        r"No space left on device|Disk quota exceeded",
        StartFailed,
        "a disk is full",
        "make room; `df` shows which one it is",
    ),
    rule(
        "open_files_limit",
        "Too many open files",
        r"Too many open files|cannot open shared object file: Error 24",
        StartFailed,
        "the server may not open as many files as it needs",
        "raise the limit: `ulimit -n`",
    ),
    rule(
        "thread_limit",
        "terminate called after throwing an instance of 'std::system_error'\n"
        "  what():  Resource temporarily unavailable",
        r"what\(\): +(?:std::system_error: )?Resource temporarily unavailable"
        r"|can't start new thread|libgomp: Thread creation failed"
        r"|(?:error|fork|retry|failed to execute [^:]+): Resource temporarily unavailable",
        StartFailed,
        "the server may not start as many threads as it needs, or has no memory for their stacks",
        "raise the limit (`ulimit -u`, `ulimit -v`, pids.max of the control group), or use fewer "
        "threads",
    ),
    rule(
        "wrong_machine",
        "setpriv: failed to execute /opt/llama-server: Exec format error",
        r"(?:failed to execute (?P<file>[^:]+): |\[Errno 8\] )Exec format error"
        r"|cannot execute(?: binary file)?: (?:Exec format error|required file not found)"
        r"|wrong ELF class|invalid ELF header"
        # execvp(3) gives what is no program to the shell.
        r"|: \d+: (?:\x7fELF|Syntax error: )|syntax error near unexpected token",
        StartFailed,
        "the file is not a program for this machine, or a broken script",
        "use a llama-server that was built for it",
    ),
    rule(
        "missing_program",
        "setpriv: failed to execute /opt/llama-server: No such file or directory",
        r"(?:failed to execute (?=.*: No such file)|\[Errno 2\] No such file or directory: ')"
        r"(?P<file>[^:']+)",
        StartFailed,
        "there is no file {file!r}, or it is a script whose interpreter is not there",
        "it may have been removed meanwhile: install it again",
    ),
    rule(
        "not_executable",
        "setpriv: failed to execute /opt/llama-server: Permission denied",
        r"failed to execute (?P<file>[^:]+): (?:Permission denied|Is a directory)"
        r"|\[Errno 13\] Permission denied: '(?P<file2>[^']+)'",
        StartFailed,
        "the system does not let this user execute the program",
        "chmod +x it, and look whether its disk is mounted noexec",
    ),
    rule(
        "program_busy",
        "setpriv: failed to execute /opt/llama-server: Text file busy",
        r"Text file busy",
        StartFailed,
        "the program is just being written",
        "wait until it is installed, and try again",
        retryable=True,
    ),
    rule(
        "mixed_libraries",
        "symbol lookup error: libggml-hip.so: undefined symbol: rocblas_sgbmv_64",
        r"undefined symbol: (?P<symbol>\w+)|version [`'](?P<version>[^']+)' not found",
        StartFailed,
        "the libraries do not fit together; ROCm versions may be mixed",
        "leave one ROCm version in LD_LIBRARY_PATH",
    ),
    rule(
        "missing_library",
        "error while loading shared libraries: libhipblas.so.3: cannot open shared object file: No "
        "such file or directory",
        r"(?P<lib>[^\s:]+): cannot open shared object file",
        StartFailed,
        "the library {lib} is missing on this machine",
        "install the ROCm version that this llama-server was built for, or another build of it",
    ),
)

# Last: others say why.
FLAGS = (
    rule(
        "invalid_device",
        'error while handling argument "--device": invalid device: ROCm0',
        r"invalid device: (?P<device>\S+)",
        StartFailed,
        "the server has no device {device}: it was built for other hardware, or the GPU is masked",
        "see `rocllm devices` and `llama-server --list-devices`",
    ),
    rule(
        "bad_flag",
        "error: invalid argument: --nope",
        r"invalid argument: (?P<flag>-\S+)|error while handling argument \"(?P<flag2>[^\"]+)\""
        r"|unknown argument:? (?P<flag3>\S+)|expected value for argument",
        StartFailed,
        "this llama-server refuses one of its flags",
        "this is a fault of rocllm or a very old server: please report it with the command line",
    ),
)


def _signal(
    name: str,
    number: signal.Signals,
    error: type[RocllmError],
    why: str,
    remedy: str,
    *,
    retryable: bool,
) -> tuple[int, Rule]:
    return number, Rule(name, number.name, None, error, why, remedy, retryable)


# What the signal itself says, where the output says nothing.
SIGNALS: dict[int, Rule] = dict(
    (
        _signal(
            "illegal_instruction",
            signal.SIGILL,
            StartFailed,
            "the program uses instructions that this processor does not have",
            "use a llama-server that was built for this processor",
            retryable=False,
        ),
        _signal(
            "killed",
            signal.SIGKILL,
            ServerCrashed,
            "somebody killed it; the kernel does so when memory runs out (see dmesg)",
            "if it was the kernel: use a smaller model or context",
            retryable=True,
        ),
        _signal(
            "terminated",
            signal.SIGTERM,
            ServerCrashed,
            "somebody sent it SIGTERM",
            "start it again",
            retryable=True,
        ),
        _signal(
            "interrupted",
            signal.SIGINT,
            ServerCrashed,
            "somebody sent it SIGINT",
            "start it again",
            retryable=True,
        ),
        _signal(
            "hung_up",
            signal.SIGHUP,
            ServerCrashed,
            "somebody sent it SIGHUP: its terminal or session ended",
            "start it again",
            retryable=True,
        ),
        _signal(
            "segfault",
            signal.SIGSEGV,
            ServerCrashed,
            "it accessed memory that is not its own",
            "try another build of llama-server, and report it to its project",
            retryable=True,
        ),
        _signal(
            "aborted",
            signal.SIGABRT,
            ServerCrashed,
            "it gave up on an internal error",
            "see its last output",
            retryable=True,
        ),
        _signal(
            "arithmetic_error",
            signal.SIGFPE,
            ServerCrashed,
            "it divided by zero",
            "try another build of llama-server, and report it to its project",
            retryable=True,
        ),
        _signal(
            "bus_error",
            signal.SIGBUS,
            ServerCrashed,
            "a part of the model file could not be read: it became shorter, or its disk fails",
            "check the file and its disk; fetch the file again, or use load_mode='none'",
            retryable=False,
        ),
        _signal(
            "cpu_time_limit",
            signal.SIGXCPU,
            ServerCrashed,
            "it used up the processor time that it may use",
            "raise the limit: `ulimit -t`",
            retryable=False,
        ),
        _signal(
            "file_size_limit",
            signal.SIGXFSZ,
            ServerCrashed,
            "a file became larger than it may be",
            "raise the limit: `ulimit -f`",
            retryable=False,
        ),
        _signal(
            "forbidden_call",
            signal.SIGSYS,
            ServerCrashed,
            "it made a system call that is forbidden here: a container's seccomp profile does that",
            "run the container with another profile; ROCm needs seccomp=unconfined",
            retryable=False,
        ),
    )
)
# Those that come from outside. Who is killed has not said why: what it printed before is about
# something else.
FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
