"""From the words of a dying server to a typed error."""

from __future__ import annotations

import signal

import pytest

from rocllm.errors import (
    AddressInUse,
    OutOfMemory,
    RocllmError,
    ServerCrashed,
    ServerError,
    StartFailed,
    UnsupportedArchitecture,
)
from rocllm.server import diagnose
from rocllm.server.diagnose import RULES, explain_exit, status

ARGV = ("/opt/llama-server", "--model", "/m.gguf")
NOISE = (
    "0.00.016.971 I srv  llama_server: initializing ...",
    "0.00.017.038 I cmn  common_param:   - CPU     : AMD EPYC (24105 MiB, 24105 MiB free)",
)
AFTER = (
    "0.00.064.620 E llama_model_load_from_file_impl: failed to load model",
    "0.00.064.675 E cmn  common_init_: failed to load model '/m.gguf'",
    "0.00.065.623 E srv  llama_server: exiting due to model loading error",
)

# (line, error while loading, words of the explanation). Where a line comes from llama.cpp it was
# printed by b11434 or stands in its source; the others are ROCm's, the loader's and the kernel's.
KNOWN: list[tuple[str, type[RocllmError], str]] = [
    (
        "llama_model_load: error loading model: unknown model architecture: 'lxama'",
        UnsupportedArchitecture,
        "'lxama'",
    ),
    (
        (
            "error loading model: tensor 'blk.16.ffn_down.weight' data"
            " is not within the file bounds, model is corrupted or incomplete"
        ),
        StartFailed,
        "'blk.16.ffn_down.weight': it is incomplete",
    ),
    (
        "gguf_init_from_reader: invalid magic characters: 'root', expected 'GGUF'",
        StartFailed,
        "not a GGUF file",
    ),
    ("gguf_init_from_reader: failed to read magic", StartFailed, "not a GGUF file"),
    (
        "gguf_init_from_reader: failed to read key-value pairs",
        StartFailed,
        "not a GGUF file",
    ),
    (
        "llama_model_load: error loading model: missing tensor 'output_norm.weight'",
        StartFailed,
        "not those that its architecture needs",
    ),
    (
        "done_getting_tensors: wrong number of tensors; expected 272, got 271",
        StartFailed,
        "not those that its architecture needs",
    ),
    (
        ("allocating 4096.00 MiB on device 0: cudaMalloc failed: out of memory"),
        OutOfMemory,
        "not free",
    ),
    ("llama_model_load: error loading model: unable to allocate ROCm0 buffer", OutOfMemory, "free"),
    (
        ("failed to initialize the context: failed to allocate buffer for kv cache"),
        OutOfMemory,
        "not free",
    ),
    (
        ("failed to allocate CPU buffer of size 2306211840"),
        OutOfMemory,
        "not free",
    ),
    ("ROCm error: out of memory", OutOfMemory, "not free"),
    ("terminate called after throwing an instance of 'std::bad_alloc'", OutOfMemory, "not free"),
    (
        ("couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8080"),
        AddressInUse,
        "127.0.0.1 port 8080",
    ),
    ("error: invalid argument: --nope", StartFailed, "refuses one of its flags"),
    ('error while handling argument "-c": stoi', StartFailed, "refuses one of its flags"),
    (
        'error while handling argument "--device": invalid device: ROCm0',
        StartFailed,
        "has no device ROCm0",
    ),
    (
        (
            "error while loading shared libraries: libhipblas.so.3: cannot open shared "
            "object file: No such file or directory"
        ),
        StartFailed,
        "libhipblas.so.3 is missing",
    ),
    (
        "llama-server: symbol lookup error: libggml-hip.so: undefined symbol: rocblas_sgbmv_64",
        StartFailed,
        "rocblas_sgbmv_64 is missing",
    ),
    (
        (
            "rocBLAS error: Cannot read rocblas/library/TensileLibrary.dat: Illegal seek "
            "for GPU arch : gfx1036"
        ),
        StartFailed,
        "no kernels for gfx1036",
    ),
    ("ROCm error: invalid device function", StartFailed, "not built for this GPU"),
    (
        "ROCm error: no kernel image is available for execution on the device",
        StartFailed,
        "not built for this GPU",
    ),
    (
        (
            "Memory access fault by GPU node-2 on address 0x7f00. Reason: Page "
            "not present or supervisor privilege."
        ),
        StartFailed,
        "integrated GPU",
    ),
    ("HW Exception by GPU node-1 (Agent handle: 0x1) reason :GPU Hang", StartFailed, "fault"),
    ("ROCm error: unspecified launch failure", StartFailed, "fault"),
    (
        "llama_init_from_model: quantized V cache requires flash_attn to be enabled",
        StartFailed,
        "needs flash attention",
    ),
    (
        (
            "failed to initialize the context: quantized V cache was requested, "
            "but this requires Flash Attention"
        ),
        StartFailed,
        "needs flash attention",
    ),
    (
        ("gguf_init_from_file: failed to open GGUF file '/nope' (No such file or directory)"),
        StartFailed,
        "no file '/nope'",
    ),
    (
        "setpriv: failed to execute /opt/llama-server: No such file or directory",
        StartFailed,
        "no file '/opt/llama-server'",
    ),
]


@pytest.mark.parametrize(("line", "error", "words"), KNOWN)
def test_a_known_cause(line: str, error: type[RocllmError], words: str) -> None:
    """Each text gives its error, its explanation, and something to do."""
    found = diagnose(
        ARGV, 1, (*NOISE, f"0.00.039.924 E {line}", *AFTER), ready=False, model="/m.gguf"
    )
    assert type(found) is error
    assert "could not load '/m.gguf'" in found.what
    assert found.why is not None
    assert words in found.why
    assert found.remedy


def test_every_rule_is_reached() -> None:
    """No rule is shadowed by one before it."""

    def first(line: str) -> str:
        return next(rule.why for rule in RULES if rule.pattern.search(line))

    assert {first(line) for line, _, _ in KNOWN} == {rule.why for rule in RULES}


@pytest.mark.parametrize(("line", "error", "_words"), KNOWN)
def test_while_serving_it_is_a_crash(line: str, error: type[RocllmError], _words: str) -> None:
    """What ends a server that was ready is never called a failed start."""
    found = diagnose(ARGV, -6, (*NOISE, line), ready=True, model="/m.gguf")
    assert not isinstance(found, StartFailed)
    assert "while serving" in found.what
    if issubclass(error, StartFailed):
        assert type(found) is ServerCrashed


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGILL, "instructions that this processor does not have"),
        (signal.SIGKILL, "memory runs out"),
        (signal.SIGSEGV, "memory that is not its own"),
        (signal.SIGABRT, "internal error"),
        (signal.SIGTERM, "somebody sent it SIGTERM"),
    ],
)
def test_a_signal_without_words(number: signal.Signals, words: str, ready: bool) -> None:
    """Where the output tells nothing, the signal does."""
    found = diagnose(ARGV, -number, NOISE, ready=ready)
    assert type(found) is (ServerCrashed if ready else StartFailed)
    assert f"signal {number.name}" in found.what
    assert found.why is not None
    assert words in found.why


def test_words_count_more_than_the_signal() -> None:
    """An abort after an out-of-memory message is out of memory."""
    output = ("ROCm error: out of memory", "/src/ggml-cuda.cu:96: ROCm error")
    assert type(diagnose(ARGV, -signal.SIGABRT, output, ready=True)) is OutOfMemory


def test_a_cosmetic_line_of_rocm_is_no_cause() -> None:
    """Every ROCm build prints it; before a crash it says nothing about the crash."""
    output = ("/opt/amdgpu/share/libdrm/amdgpu.ids: No such file or directory",)
    found = diagnose(ARGV, -signal.SIGSEGV, output, ready=True)
    assert "memory that is not its own" in str(found)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_who_was_killed_from_outside_did_not_say_why(number: signal.Signals) -> None:
    """What it printed before was about something else."""
    found = diagnose(ARGV, -number, ("ROCm error: out of memory",), ready=True)
    assert type(found) is ServerCrashed
    assert "somebody" in str(found)


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("output", [(), ("",), ("what?",), ("{gfx}", "%s")])
def test_an_unknown_end(output: tuple[str, ...], ready: bool) -> None:
    """It is typed all the same, and carries all that is known."""
    found = diagnose(ARGV, 7, output, ready=ready)
    assert type(found) is (ServerCrashed if ready else StartFailed)
    assert isinstance(found, ServerError)
    assert "exit status 7" in found.what
    assert (found.argv, found.exit_status, found.output) == (ARGV, 7, output)


def test_the_last_lines_are_shown() -> None:
    """Five of them, without empty ones."""
    lines = [f"line {number}" for number in range(9)]
    shown = str(diagnose(ARGV, 1, (*lines, "", " "), ready=False))
    assert "line 4\n  line 5\n  line 6\n  line 7\n  line 8" in shown
    assert "line 3" not in shown


def test_a_question_that_failed() -> None:
    """The same table serves for --version and --help."""
    assert "ended with exit status 2" in str(explain_exit(ARGV, 2, ()))


@pytest.mark.parametrize(
    ("exit_status", "words"),
    [(0, "exit status 0"), (1, "exit status 1"), (-9, "signal SIGKILL"), (-99, "signal 99")],
)
def test_status(exit_status: int, words: str) -> None:
    """A number nobody knows is a number."""
    assert status(exit_status) == words
