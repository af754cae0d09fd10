"""A real vLLM that is refused, killed and left; beside the suite of all backends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.safetensors.made import CONFIG, write_model

import rocllm
from rocllm import env
from rocllm.backends.vllm import VllmBackend
from rocllm.backends.vllm.shared_memory import find_shared_memory
from rocllm.bench import decode_report
from rocllm.errors import (
    OptionsError,
    ServerCrashed,
    StartCancelled,
    StartFailed,
    UnsupportedArchitecture,
)
from rocllm.server import LoadProgress
from rocllm.server.running import RunningServer, list_running
from rocllm.testing.backend_suite import processes_of

PROMPT = "1, 2, 3, 4, 5,"
# Seconds for what takes a moment on a machine that does nothing else.
DEADLINE = 60.0


@pytest.fixture(scope="module")
def model(vllm_model: Path) -> Iterator[rocllm.TextModel]:
    """It listens on TCP, as a vLLM without UNIX sockets would."""
    with rocllm.load_model(
        vllm_model, backend="vllm", ctx_size=512, parallel=2, threads=1, host="127.0.0.1"
    ) as loaded:
        yield loaded
        assert loaded.info.pid is not None
    assert processes_of(loaded.info.pid) == []


def pid_of(model: rocllm.TextModel) -> int:
    pid = model.info.pid
    assert pid is not None
    return pid


def named(group: int, name: str) -> list[int]:
    """The processes of a group whose name, which vLLM sets, begins so."""
    found = []
    for pid in processes_of(group):
        with contextlib.suppress(OSError):  # gone meanwhile
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            if command.startswith(name):
                found.append(pid)
    return found


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_the_key_guards_it_and_nobody_sees_it(model: rocllm.TextModel) -> None:
    """On TCP nothing is generated without it, and it is in no argument vector."""
    endpoint = model.info.endpoint
    assert endpoint is not None
    assert endpoint.api_key
    asked = urllib.request.Request(f"{endpoint}/v1/completions", b"{}", method="POST")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(asked, timeout=DEADLINE)
    assert caught.value.code == 401
    caught.value.close()
    for pid in processes_of(pid_of(model)):
        assert endpoint.api_key.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_an_answer_ends_where_the_context_is_full(model: rocllm.TextModel) -> None:
    """Though vLLM itself refuses a request whose prompt and answer may be too long together."""
    prompt = model.tokenize(PROMPT) * 36
    room = model.info.ctx_size - len(prompt)
    assert 0 < room < 100
    for tokens, expected in ((3, 3), (-1, room), (5000, room)):
        answer = model.generate(prompt, max_tokens=tokens).read()
        assert (len(answer.tokens), answer.finish_reason) == (expected, "length")
        assert answer.usage.completion_tokens == expected
        assert answer.usage.prompt_tokens == len(prompt)


def test_what_prompts_have_in_common_is_computed_once(model: rocllm.TextModel) -> None:
    """vLLM does so by itself, and says how much it was."""
    prompt = "Once upon a time there was a small model. " * 20
    model.generate(prompt, max_tokens=1).read()
    assert model.generate(f"{prompt}It", max_tokens=1).read().usage.cached_tokens > 64


def test_a_grammar_is_obeyed(model: rocllm.TextModel) -> None:
    """In the notation that llama.cpp has."""
    grammar = 'root ::= "yes" | "no"'
    assert model.generate("Is it? ", max_tokens=8, grammar=grammar).read().text in ("yes", "no")


@pytest.mark.parametrize("name", ["VLLM::EngineCore", "VLLM::Worker"])
def test_one_of_its_processes_is_killed(name: str, model: rocllm.TextModel) -> None:
    """The same as when its server is: a typed error with the text so far, and a new start."""
    group = pid_of(model)
    shared = find_shared_memory(group)
    assert shared
    stream = model.generate(PROMPT, max_tokens=-1)
    begun = [next(stream), next(stream)]
    for pid in named(group, name):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(ServerCrashed) as caught:
        stream.read()
    assert caught.value.retryable
    assert caught.value.cause == "engine_died"
    assert caught.value.text.startswith("".join(token.text for token in begun))
    assert model.generate(PROMPT, max_tokens=2).read().text
    assert processes_of(group) == []
    assert [path for path in shared if path.exists()] == []


@pytest.mark.parametrize(
    ("name", "cause"),
    [("", "killed"), ("VLLM::EngineCore", "engine_died"), ("VLLM::Worker", "engine_died")],
)
def test_one_of_its_processes_is_killed_while_it_loads(
    name: str, cause: str, vllm_model: Path, tmp_path: Path
) -> None:
    """A kill from outside is told as that of a llama-server is, and is worth another try."""
    run = tmp_path / "run"
    run.mkdir()
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(run)}

    def kill(_progress: LoadProgress) -> None:
        for server in list_running(environ):
            for pid in named(server.pid, name):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    with pytest.raises(StartFailed) as caught:
        rocllm.load_model(
            vllm_model, backend="vllm", ctx_size=512, threads=1, environ=environ, on_progress=kill
        )
    assert (caught.value.cause, caught.value.retryable) == (cause, True)
    assert list(run.iterdir()) == []


@pytest.mark.parametrize("moment", ["VLLM::EngineCore", "VLLM::Worker"])
def test_the_program_is_killed_while_it_loads(
    moment: str, vllm_model: Path, tmp_path: Path
) -> None:
    """Whatever vLLM has started by then ends with it."""
    code = (
        "import rocllm, sys\n"
        "rocllm.load_model(sys.argv[1], backend='vllm', ctx_size=512, threads=1)\n"
    )
    run = tmp_path / "run"
    run.mkdir()
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(run)}
    program = subprocess.Popen((sys.executable, "-c", code, str(vllm_model)), env=environ)

    def started() -> list[RunningServer]:
        return [one for one in list_running(environ) if one.parent_pid == program.pid]

    try:
        until(started)
        (server,) = started()
        assert server.model_path == vllm_model
        until(lambda: named(server.pid, moment))
    finally:
        program.kill()
        program.wait()
    until(lambda: processes_of(server.pid) == [])


def test_loading_is_given_up(vllm_model: Path, tmp_path: Path) -> None:
    """Soon after it was asked for, and nothing is left."""
    cancel = threading.Event()
    timer = threading.Timer(5.0, cancel.set)
    timer.start()
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(StartCancelled):
        rocllm.load_model(
            vllm_model,
            backend="vllm",
            cancel=cancel,
            environ={**os.environ, "XDG_RUNTIME_DIR": str(run)},
        )
    assert list(run.iterdir()) == []


def test_what_vllm_refuses(vllm_model: Path, tmp_path: Path) -> None:
    """An architecture that it does not know, a context that is too long, a wrong argument."""
    unknown = write_model(tmp_path / "unknown", {**CONFIG, "model_type": "lxama"})
    with pytest.raises(UnsupportedArchitecture, match="'lxama'"):
        rocllm.load_model(unknown, backend="vllm")
    with pytest.raises(OptionsError, match="made for 8192"):
        rocllm.load_model(vllm_model, backend="vllm", ctx_size=20000)
    environ = {**os.environ, env.VLLM_ARGS: "--no-such-option"}
    with pytest.raises(OptionsError, match="unrecognized arguments: --no-such-option"):
        rocllm.load_model(vllm_model, backend="vllm", environ=environ)


def test_it_is_measured(vllm_model: Path, tmp_path: Path) -> None:
    """By `rocllm bench`, as every engine is; with the memory that it tells, and nothing planned."""
    report = tmp_path / "report.json"
    suite = ("--quick", "--only", "decode", "--repetitions", "1", "--warmups", "0", "-t", "1")
    command = (sys.executable, "-m", "rocllm", "bench", str(vllm_model), "--backend", "vllm")
    environ = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    done = subprocess.run(
        (*command, *suite, "--json", str(report)),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=environ,
    )
    assert done.returncode == 0, done.stderr
    (subject,) = decode_report(report.read_text(), "it").subjects
    assert subject.engine_version == VllmBackend().engine()
    assert subject.summary("decode", "decode") is not None
    assert {part.kind for part in subject.memory} >= {"KV cache"}
    assert {part.planned for part in subject.memory} == {None}


def test_it_is_available(vllm_model: Path) -> None:
    """And says so."""
    assert VllmBackend().why_not() is None
