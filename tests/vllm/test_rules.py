"""From the words of a dying vLLM to a typed error."""

from __future__ import annotations

import pytest

from rocllm.backends.vllm.rules import RULES
from rocllm.errors import (
    OptionsError,
    OutOfMemory,
    RocllmError,
    ServerCrashed,
    StartFailed,
    UnsupportedArchitecture,
)
from rocllm.server import RULES as COMMON
from rocllm.server import Names, Rule, diagnose

ARGV = ("/v/bin/python", "-m", "vllm.entrypoints.openai.api_server", "--model", "/m")
NAMES = Names(engine="vLLM", rules=RULES)
OWN = [rule for rule in RULES if rule not in COMMON]
# What stands around the reason in every log (vLLM 0.32).
_WARNING = (
    "(APIServer pid=25485) WARNING 11-24 04:03:58 [system_utils.py:255] Found ulimit of 20000 and "
    "failed to automatically increase with error current limit exceeds maximum limit. This can "
    "cause fd limit errors like `OSError: [Errno 24] Too many open files`. Consider increasing"
)
BEFORE = (
    _WARNING,
    "(EngineCore pid=10767) INFO 11-24 03:52:48 [utils.py:347] Using LBHNC KV cache layout.",
)
_DIED = (
    "(EngineCore pid=5059) ERROR 11-24 04:12:54 [multiproc_executor.py:315] Worker proc "
    "VllmWorker-0 died unexpectedly (exit code: 0), shutting down executor."
)
AFTER = (
    _DIED,
    "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): ",
    "nanobind: leaked 4 instances!",
)


def found(*said: str, ready: bool = False, exit_status: int = 1) -> RocllmError:
    """What a log with these lines means."""
    output = (*BEFORE, *said, *AFTER)
    return diagnose(ARGV, exit_status, output, ready=ready, model="/m", names=NAMES)


@pytest.mark.parametrize("rule", OWN, ids=lambda rule: rule.example[:50])
def test_every_example_is_recognised(rule: Rule) -> None:
    """As its own cause, among the noise of a real log; with what vLLM said, and a remedy."""
    error = found(rule.example)
    expected = StartFailed if rule.error is ServerCrashed else rule.error
    assert error.cause == rule.id
    assert type(error) is expected
    assert "{" not in (error.why or "").partition("it said:")[0]
    assert error.remedy
    assert error.what == "vLLM could not load '/m': it ended with exit status 1"


LXAMA = (
    "(APIServer pid=27933) ERROR 11-24 04:06:40 [repo_utils.py:126] Error parsing config for "
    "bad/arch: The checkpoint you are trying to load has model type `lxama` but Transformers does "
    "not recognize this architecture."
)
NO_CHOICE = (
    "api_server.py: error: argument --kv-cache-dtype: invalid choice: 'nonsense' (choose from "
    "'auto', 'bfloat16', 'float16')"
)
NO_ROOM = (
    "RuntimeError: Worker failed with error 'Available memory on node 0 (21.23/23.54 GiB) on kv "
    "cache allocation is less than requested memory for kv (-0.84/0.24 GiB). Reduce CPU memory "
    "used by other processes.', please check the stack trace above"
)


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        (LXAMA, UnsupportedArchitecture, "'lxama'"),
        (NO_CHOICE, OptionsError, "--kv-cache-dtype"),
        (NO_ROOM, OutOfMemory, "21.23 GiB"),
    ],
)
def test_other_words_for_the_same(said: str, kind: type[RocllmError], words: str) -> None:
    """Recorded from vLLM 0.32, too."""
    error = found(said)
    assert type(error) is kind
    assert words in (error.why or "")


def test_the_death_of_a_worker_is_a_crash() -> None:
    """It ends with status 0, and is worth a restart."""
    error = found(ready=True, exit_status=0)
    assert isinstance(error, ServerCrashed)
    assert (error.cause, error.retryable) == ("engine_died", True)
    assert "Worker proc VllmWorker-0" in (error.why or "")


def test_a_death_while_loading_is_worth_another_try() -> None:
    """As that of a llama-server is: somebody has killed one of its processes."""
    for failed in ("{}", "{'EngineCore': 1}", "{'EngineCore': -9}"):
        said = f"RuntimeError: Engine core initialization failed. Failed core proc(s): {failed}"
        error = diagnose(ARGV, 1, (*BEFORE, said), ready=False, model="/m", names=NAMES)
        assert isinstance(error, StartFailed)
        assert (error.cause, error.retryable) == ("engine_died", True)


def test_a_missing_compiler_is_not_restarted() -> None:
    """It is missed by the first request that needs it, and the next one would miss it, too."""
    rules = [rule for rule in OWN if rule.id == "missing_compiler"]
    for rule, package in zip(rules, ("g++", "python3-dev"), strict=True):
        error = found(rule.example, ready=True, exit_status=0)
        assert isinstance(error, ServerCrashed)
        assert (error.cause, error.retryable) == ("missing_compiler", False)
        assert package in (error.remedy or "")


def test_a_fault_of_the_gpu_is_told_by_name() -> None:
    """What every engine on ROCm may say is known here, too, and stands before what is general."""
    error = found(
        "(Worker pid=1) ERROR 11-24 04:15:44 [multiproc_executor.py:953] RuntimeError: something",
        "Memory access fault by GPU node-1 (Agent handle: 0x5) on address 0x7f. Reason: Unknown.",
        ready=True,
    )
    assert error.cause == "gpu_fault"


def test_a_request_that_was_refused_is_no_cause() -> None:
    """The server logs errors of callers with tracebacks, and goes on."""
    refused = (
        "(APIServer pid=10374) ERROR 11-24 03:59:17 [serving.py:500] vllm.exceptions."
        "VLLMValidationError: Token id 99999999 is out of vocabulary"
    )
    output = (*BEFORE, refused, "INFO:     Shutting down")
    error = diagnose(ARGV, 0, output, ready=True, names=NAMES)
    assert error.cause is None


def test_a_long_line_is_shortened() -> None:
    """vLLM lists every architecture that it knows."""
    line = "  Value error, Model architectures ['X'] are not supported for now." + " 'Y'," * 900
    assert len(str(found(line))) < 1500
