"""From the words of a dying server to a typed error."""

from __future__ import annotations

import errno
import signal
import tomllib
from pathlib import Path

import pytest

from rocllm import errors
from rocllm.errors import OutOfMemory, RocllmError, ServerCrashed, ServerError, StartFailed
from rocllm.server import diagnose
from rocllm.server._rules import FROM_OUTSIDE, KILLED_BY_OOM, RULES, SIGNALS, Rule
from rocllm.server.diagnose import Evidence, Names, cannot_run, explain_exit, status

ARGV = ("/opt/llama-server", "--model", "/m.gguf", "--device", "ROCm0")
NOISE = (
    "0.00.016.971 I srv  llama_server: initializing ...",
    "0.00.017.038 I cmn  common_param:   - CPU     : AMD EPYC (24105 MiB, 24105 MiB free)",
    # Every ROCm build prints it, and works all the same.
    "/opt/amdgpu/share/libdrm/amdgpu.ids: No such file or directory",
)
AFTER = (
    "0.00.064.620 E llama_model_load_from_file_impl: failed to load model",
    "0.00.064.675 E cmn  common_init_: failed to load model '/m.gguf'",
    "0.00.065.623 E srv  llama_server: exiting due to model loading error",
)
RECORDED = tomllib.loads(Path(__file__).with_name("recorded.toml").read_text())["recorded"]
EVERY = (*RULES, *SIGNALS.values(), KILLED_BY_OOM)
# What a restart cannot mend or makes worse.
HOPELESS = {
    "bad_file",
    "disk_full",
    "flash_attention_failed",
    "flash_attention_needed",
    "device_lost",
    "gpu_reset",
    "illegal_instruction",
    "killed_by_oom",
    "missing_library",
    "no_rocblas_kernels",
    "out_of_context_memory",
    "out_of_device_memory",
    "out_of_host_memory",
    "truncated_file",
    "unknown_architecture",
    "wrong_gfx",
    "wrong_tensors",
}
CRASHES = {"aborted", "arithmetic_error", "gpu_error", "gpu_fault", "segfault"}


def output(said: str) -> tuple[str, ...]:
    """A log in which these lines stand."""
    first, *more = said.splitlines()
    return (*NOISE, f"0.00.039.924 E {first}", *more, *AFTER)


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda one: one["said"][:60])
def test_a_recorded_text(recorded: dict[str, str]) -> None:
    """Each text gives its cause, its error, the line that tells, and something to do."""
    found = diagnose(ARGV, 1, output(recorded["said"]), ready=False, model="/m.gguf")
    assert found.cause == recorded["cause"]
    assert type(found) is getattr(errors, recorded["error"])
    assert found.what == "llama-server could not load '/m.gguf': it ended with exit status 1"
    assert found.why is not None
    assert recorded.get("words", "") in found.why
    assert "it said: " in found.why
    assert found.remedy


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda one: one["said"][:60])
def test_while_serving_it_is_a_crash(recorded: dict[str, str]) -> None:
    """What ends a server that was ready is a crash, or out of memory, and nothing else."""
    found = diagnose(ARGV, -6, output(recorded["said"]), ready=True, model="/m.gguf")
    assert type(found) is (OutOfMemory if recorded["error"] == "OutOfMemory" else ServerCrashed)
    assert "while serving" in found.what


def test_every_rule_has_a_recorded_text() -> None:
    """No rule is shadowed by one before it, and none is made up."""
    assert {recorded["cause"] for recorded in RECORDED} == {rule.id for rule in RULES}


@pytest.mark.parametrize("rule", EVERY, ids=lambda rule: rule.id)
def test_every_rule_ends_in_one_of_our_classes(rule: Rule) -> None:
    """With a name, a reason and a remedy, whether it was serving or not."""
    assert issubclass(rule.error, RocllmError)
    assert rule.id.replace("_", "").isalnum()
    assert rule.id.islower()
    assert rule.why
    assert rule.remedy
    assert rule.pattern is None or rule.pattern.search(rule.example.splitlines()[-1])


def test_names_are_unique() -> None:
    """A name is one cause."""
    assert len({rule.id for rule in EVERY}) == len(EVERY)


@pytest.mark.parametrize("rule", EVERY, ids=lambda rule: rule.id)
def test_what_a_restart_cannot_mend(rule: Rule) -> None:
    """Is not worth trying again."""
    if rule.id in HOPELESS:
        assert not rule.retryable
    if rule.id in CRASHES:
        assert rule.retryable


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_without_words(number: int, ready: bool) -> None:
    """Where the output tells nothing, the signal does."""
    rule = SIGNALS[number]
    found = diagnose(ARGV, -number, NOISE, ready=ready)
    assert type(found) is (ServerCrashed if ready else StartFailed)
    assert f"signal {signal.Signals(number).name}" in found.what
    assert found.why is not None
    assert rule.why in found.why
    assert found.cause == rule.id
    # What crashes by itself while it loads will do so again.
    assert found.retryable is (rule.retryable and (ready or number in FROM_OUTSIDE))


def test_words_count_more_than_the_signal() -> None:
    """An abort after an out-of-memory message is out of memory."""
    said = ("ROCm error: out of memory", "/src/ggml-cuda.cu:96: ROCm error")
    found = diagnose(ARGV, -signal.SIGABRT, said, ready=True)
    assert type(found) is OutOfMemory
    assert not found.retryable


@pytest.mark.parametrize("number", sorted(FROM_OUTSIDE))
def test_who_was_killed_from_outside_did_not_say_why(number: int) -> None:
    """What it printed before was about something else."""
    found = diagnose(ARGV, -number, ("ROCm error: out of memory",), ready=True)
    assert type(found) is ServerCrashed
    assert "somebody" in str(found)
    assert found.retryable


def test_killed_for_want_of_memory() -> None:
    """The kernel's own word makes a kill an out-of-memory, and only a kill."""
    evidence = Evidence(killed_by_oom="its control group has counted a kill")
    found = diagnose(ARGV, -signal.SIGKILL, (), ready=True, evidence=evidence)
    assert type(found) is OutOfMemory
    assert (found.cause, found.retryable) == ("killed_by_oom", False)
    assert "its control group has counted a kill" in str(found)
    assert diagnose(ARGV, -signal.SIGSEGV, (), ready=True, evidence=evidence).cause == "segfault"


def test_the_kernel_log_tells_of_a_reset() -> None:
    """Where the server said nothing itself."""
    log = ("amdgpu 0000:03:00.0: amdgpu: GPU reset begin!",)
    found = diagnose(ARGV, -signal.SIGABRT, (), ready=True, evidence=Evidence(kernel_log=log))
    assert (found.cause, found.retryable) == ("device_lost", False)
    # To the server it may look like an error that passes (lemonade-sdk/llamacpp-rocm#122).
    said = ("ROCm error: unspecified launch failure",)
    found = diagnose(ARGV, -signal.SIGABRT, said, ready=True, evidence=Evidence(kernel_log=log))
    assert (found.cause, found.retryable) == ("device_lost", False)
    assert diagnose(ARGV, -signal.SIGABRT, said, ready=True).retryable


@pytest.mark.parametrize(
    "said",
    [
        "Memory access fault by GPU node-2 (Agent handle: 0x1) on address 0x2. Reason: Unknown.",
        "HW Exception by GPU node-2 (Agent handle: 0x1) reason :GPU Hang",
    ],
)
def test_the_gpu_is_named(said: str) -> None:
    """KFD's number of a node says nothing to a person."""
    label = "0000:0f:00.0 (Raphael)"
    assert label in str(diagnose(ARGV, -6, (said,), ready=True, names=Names({2: label})))
    assert "KFD node 2" in str(diagnose(ARGV, -6, (said,), ready=True, names=Names({1: label})))


def test_what_was_planned_is_told_where_memory_ran_out() -> None:
    """And only there."""
    planned = "6.1 GiB of 7.9 GiB on 0000:03:00.0"
    said = ("ROCm error: out of memory",)
    assert planned in str(diagnose(ARGV, -6, said, ready=True, names=Names(planned=planned)))
    assert planned not in str(diagnose(ARGV, -11, (), ready=True, names=Names(planned=planned)))


@pytest.mark.parametrize("exit_status", [1, -11])
def test_who_asked_for_no_gpu_hears_nothing_of_gpus(exit_status: int) -> None:
    """A build without GPU support says so on every start, and works all the same."""
    said = ("warning: no usable GPU found, --gpu-layers option will be ignored",)
    cpu = ("/opt/llama-server", "--device", "none")
    found = diagnose(cpu, exit_status, said, ready=False)
    assert type(found) is StartFailed
    assert found.cause != "not_a_gpu_build"
    assert diagnose(ARGV, 1, said, ready=True).cause is None
    assert diagnose(ARGV, -11, said, ready=False).cause == "segfault"


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("said", [(), ("",), ("what?",), ("{gfx}", "%s"), NOISE])
def test_an_unknown_end(said: tuple[str, ...], ready: bool) -> None:
    """It is typed all the same, and carries all that is known."""
    found = diagnose(ARGV, 7, said, ready=ready)
    assert type(found) is (ServerCrashed if ready else StartFailed)
    assert isinstance(found, ServerError)
    assert "exit status 7" in found.what
    assert (found.argv, found.exit_status, found.output) == (ARGV, 7, said)
    assert (found.cause, found.retryable) == (None, ready)
    assert found.remedy


def test_the_last_lines_are_shown() -> None:
    """Five of them, without empty ones."""
    lines = [f"line {number}" for number in range(9)]
    shown = str(diagnose(ARGV, 1, (*lines, "", " "), ready=False))
    assert "line 4\n  line 5\n  line 6\n  line 7\n  line 8" in shown
    assert "line 3" not in shown


def test_a_question_that_failed() -> None:
    """The same table serves for --version and --help."""
    found = explain_exit(("/opt/llama-server", "--help"), 2, ())
    assert found.what == "`/opt/llama-server --help` ended with exit status 2"


@pytest.mark.parametrize(
    ("exit_status", "words"),
    [(0, "exit status 0"), (1, "exit status 1"), (-9, "signal SIGKILL"), (-99, "signal 99")],
)
def test_status(exit_status: int, words: str) -> None:
    """A number nobody knows is a number."""
    assert status(exit_status) == words


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError(errno.ENOENT, "x"), "missing_program"),
        (OSError(errno.EACCES, "x"), "not_executable"),
        (OSError(errno.ENOEXEC, "x"), "wrong_machine"),
        (OSError(errno.ETXTBSY, "x"), "program_busy"),
        (OSError(errno.ENOMEM, "x"), "out_of_host_memory"),
        (OSError(errno.EAGAIN, "x"), "thread_limit"),
        (OSError(errno.EMFILE, "x"), "open_files_limit"),
        (OSError(errno.ENFILE, "x"), "open_files_limit"),
        (RuntimeError("can't start new thread"), "thread_limit"),
        (MemoryError(), "out_of_host_memory"),
        (OSError(errno.EIO, "x"), None),
        (ValueError("embedded null byte"), None),
    ],
    ids=repr,
)
def test_a_program_that_the_system_does_not_start(error: Exception, cause: str | None) -> None:
    """Its number tells the cause; the message is of the program and of what the system said."""
    found = cannot_run(ARGV, error)
    assert type(found) is (OutOfMemory if cause == "out_of_host_memory" else StartFailed)
    assert found.cause == cause
    assert found.what.startswith("cannot run '/opt/llama-server': ")
    assert found.argv == ARGV
    assert found.remedy
