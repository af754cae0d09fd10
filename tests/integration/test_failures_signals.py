"""The real server is killed, crashes and hangs: while loading, in a prompt and in an answer."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.integration.engine import DEFAULTS, load, servers

import rocllm
from rocllm.backends import launcher
from rocllm.errors import RocllmError, ServerCrashed, StartFailed, StartTimeout
from rocllm.server import LoadProgress

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("nothing_left")]

# More than the demo model computes on one thread before the signal comes.
PROMPT = "The quick brown fox jumps over the lazy dog. " * 170
# The name of the cause of each crash, and whether it came from outside.
CRASHES = [(signal.SIGKILL, "killed", True), (signal.SIGSEGV, "segfault", False)]
# Seconds within which a crash must be told.
AT_ONCE = 5.0


@pytest.fixture(autouse=True, params=["rocm", "inprocess"])
def _on_each_backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is killed is a llama-server, and a worker of ours."""
    monkeypatch.setitem(DEFAULTS, "backend", request.param)


def at(loaded: int, number: signal.Signals) -> Callable[[LoadProgress], None]:
    """Sends the signal to the server that loads next, once it has so many bytes in memory."""
    others = set(servers())  # of fixtures that last longer than a test

    def on_progress(progress: LoadProgress) -> None:
        if progress.loaded >= loaded:
            for pid in set(servers()) - others:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    return on_progress


def kill(model: rocllm.TextModel, number: signal.Signals) -> None:
    assert model.info.pid is not None
    os.kill(model.info.pid, number)


def cpu_time(pid: int | None) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def in_the_prompt(model: rocllm.TextModel) -> Iterator[list[RocllmError]]:
    """A request, of which the server computes the prompt; what it ends with is in the list."""
    ended: list[RocllmError] = []
    stream = model.generate(PROMPT, max_tokens=4)

    def read() -> None:
        try:
            stream.read()
        except RocllmError as exc:
            ended.append(exc)

    before = cpu_time(model.info.pid)
    reader = threading.Thread(target=read)
    reader.start()
    while cpu_time(model.info.pid) < before + 0.1:
        time.sleep(0.005)
    assert not stream.tokens
    yield ended
    reader.join(60)
    assert not reader.is_alive()


@pytest.mark.parametrize(("number", "cause", "outside"), CRASHES)
def test_killed_while_loading(
    demo_model: Path, number: signal.Signals, cause: str, outside: bool
) -> None:
    """Only a kill from outside is worth another try."""
    with pytest.raises(StartFailed, match=number.name) as caught:
        load(demo_model, on_progress=at(20_000_000, number))
    assert caught.value.cause == cause
    assert caught.value.retryable is outside


def test_stopped_while_loading(demo_model: Path) -> None:
    """Who shows no progress is given up, and ended although it does not react."""
    with pytest.raises(StartTimeout) as caught:
        load(demo_model, on_progress=at(20_000_000, signal.SIGSTOP), start_timeout=1.0)
    assert caught.value.cause == "stalled"


@pytest.mark.parametrize(("number", "cause", "_outside"), CRASHES)
def test_killed_in_a_prompt(
    demo_model: Path, number: signal.Signals, cause: str, _outside: bool
) -> None:
    """The caller knows at once, and before the first token."""
    with load(demo_model, ctx_size=2048) as model:
        with in_the_prompt(model) as ended:
            kill(model, number)
            killed = time.monotonic()
        assert time.monotonic() - killed < AT_ONCE
        (error,) = ended
        assert isinstance(error, ServerCrashed)
        assert (error.cause, error.text, error.retryable) == (cause, "", True)


@pytest.mark.parametrize(("number", "cause", "_outside"), CRASHES)
def test_killed_in_an_answer(
    demo_model: Path, number: signal.Signals, cause: str, _outside: bool
) -> None:
    """The caller knows at once, and has the text so far."""
    with load(demo_model, ctx_size=2048) as model:
        stream = model.generate("Once upon a time", max_tokens=-1)
        begun = "".join(next(stream).text for _ in range(3))
        kill(model, number)
        killed = time.monotonic()
        with pytest.raises(ServerCrashed, match=number.name) as caught:
            stream.read()
        assert time.monotonic() - killed < AT_ONCE
        assert (caught.value.cause, caught.value.retryable) == (cause, True)
        assert caught.value.text.startswith(begun)


def test_stopped_in_a_prompt(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A silence longer than `timeout`, and no answer to a health check: it hangs."""
    monkeypatch.setattr(launcher, "_HANG_TIMEOUT", 0.5)
    with load(demo_model, ctx_size=2048, timeout=2.0) as model:
        with in_the_prompt(model) as ended:
            kill(model, signal.SIGSTOP)
        (error,) = ended
        assert isinstance(error, ServerCrashed)
        assert (error.cause, error.text, error.retryable) == ("hang", "", True)


def test_stopped_in_an_answer(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, with the text so far."""
    monkeypatch.setattr(launcher, "_HANG_TIMEOUT", 0.5)
    with load(demo_model, ctx_size=2048, timeout=1.0) as model:
        stream = model.generate("Once upon a time", max_tokens=-1)
        begun = next(stream).text
        kill(model, signal.SIGSTOP)
        with pytest.raises(ServerCrashed) as caught:
            stream.read()
        assert caught.value.cause == "hang"
        assert caught.value.text.startswith(begun)


def test_closing_a_stopped_server(demo_model: Path) -> None:
    """It reacts to nothing but SIGKILL; its stream in another thread ends, too."""
    with load(demo_model, ctx_size=2048) as model:
        stream = model.generate("Once upon a time", max_tokens=-1)
        next(stream)
        kill(model, signal.SIGSTOP)
        pid = model.info.pid
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(RocllmError):
        stream.read()
