"""However a program with a loaded model ends, its server ends with it, and nothing stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rocllm.server.run_dir import reap
from rocllm.testing.fake_llama_server import write_fake_llama_server

# The limit is 2 s; a machine that is busy with other tests may take longer to tell.
DEADLINE = 20.0

LOAD = """
import asyncio, concurrent.futures, gc, multiprocessing, os, signal, sys, threading, time
import rocllm
path = sys.argv[1]
options = {"ctx_size": 256, "threads": 1}
def tell(*pids):
    print(*pids, flush=True)
"""
MODEL = LOAD + "model = rocllm.load_model(path, **options)\n"


class Program:
    """A program in a process of its own, with a place of its own for the directories of servers."""

    def __init__(self, place: Path, code: str, model: Path) -> None:
        self.place = place
        self.process = subprocess.Popen(
            [sys.executable, "-W", "always", "-c", code, str(model)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XDG_RUNTIME_DIR": str(place)},
        )

    def told(self) -> tuple[int, ...]:
        """The process ids that it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        return tuple(map(int, line.split()))

    def end(self) -> tuple[int, str]:
        """Its exit status and what it said on standard error."""
        _, said = self.process.communicate(timeout=DEADLINE)
        return self.process.returncode, said

    def left(self) -> list[Path]:
        """The directories that are there."""
        return list(self.place.iterdir())


@pytest.fixture
def run(demo_model: Path) -> Iterator[Callable[[str], Program]]:
    """Starts a program with the demo model's path as its argument."""
    programs: list[Program] = []
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="rt-") as place:

        def start(code: str) -> Program:
            programs.append(Program(Path(os.path.realpath(place)), code, demo_model))
            return programs[-1]

        yield start
        for program in programs:
            with program.process as process:
                process.kill()
            reap(program.place)


def lives(pid: int) -> bool:
    """It runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def eventually(condition: Callable[[], object]) -> None:
    """Wait until it is true."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


ENDS = {
    "os._exit": "tell(model.info.pid); os._exit(0)",
    "abort": "tell(model.info.pid); os.abort()",
    "SIGKILL": "tell(model.info.pid); time.sleep(1000)",
    "SIGKILL while it generates": """
for token in model.generate("Once upon a time", max_tokens=-1):
    tell(model.info.pid)
""",
    "SIGKILL, loaded in a thread pool": """
model.close()
with concurrent.futures.ThreadPoolExecutor(1) as pool:
    model = pool.submit(rocllm.load_model, path, **options).result()
assert model.generate("1, 2,", max_tokens=2).read().text
tell(model.info.pid)
time.sleep(1000)
""",
    "SIGKILL with a worker of os.fork": """
worker = os.fork()
if worker:
    tell(model.info.pid, worker)
time.sleep(1000)
""",
    "SIGKILL with a worker of multiprocessing": """
context = multiprocessing.get_context("fork")
worker = context.Process(target=time.sleep, args=(1000,))
worker.start()
tell(model.info.pid, worker.pid)
time.sleep(1000)
""",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_program_that_does_not_clean_up(run: Callable[[str], Program], end: str) -> None:
    """Its server dies at once, and the next program removes its directory."""
    program = run(MODEL + ENDS[end])
    server, *others = program.told()
    try:
        if "SIGKILL" in end:
            assert lives(server)
            program.process.kill()
            program.process.wait(DEADLINE)
        else:
            program.end()
        eventually(lambda: not lives(server))
        assert all(map(lives, others))
        assert len(program.left()) == 1
        # What the next start does. A worker that has just begun holds the lock for a moment.
        eventually(lambda: reap(program.place) or not program.left())
    finally:
        for pid in others:
            os.kill(pid, signal.SIGKILL)


def test_a_program_that_is_killed_while_it_loads(run: Callable[[str], Program]) -> None:
    """The server is not ready yet, and does not become so."""
    program = run(
        LOAD
        + "def now(_):\n"
        + "    servers = [int(pid) for task in os.listdir('/proc/self/task')\n"
        + "        for pid in open(f'/proc/self/task/{task}/children').read().split()]\n"
        + "    tell(*servers)\n"
        + "    os.kill(os.getpid(), signal.SIGKILL)\n"
        + "rocllm.load_model(path, on_progress=now, **options)\n"
    )
    (server,) = program.told()
    assert program.end()[0] == -signal.SIGKILL
    eventually(lambda: not lives(server))
    eventually(lambda: reap(program.place) or not program.left())


UNCLOSED = {
    "end of the program": "tell(model.info.pid)",
    "sys.exit": "tell(model.info.pid); sys.exit()",
    "collection": "tell(model.info.pid); del model; gc.collect()",
    "a daemon thread generates": """
begun = threading.Event()
def generate():
    try:
        for token in model.generate("Once upon a time", max_tokens=-1):
            begun.set()
    except rocllm.RocllmError:
        pass
threading.Thread(target=generate, daemon=True).start()
begun.wait()
tell(model.info.pid)
""",
    "the event loop was closed": """
model.close()
async def main():
    model = await rocllm.load_model_async(path, **options)
    assert (await model.generate("1, 2,", max_tokens=2).read()).text
    return model
model = asyncio.run(main())
tell(model.info.pid)
""",
}


@pytest.mark.parametrize("end", UNCLOSED)
def test_a_model_that_nobody_closed(run: Callable[[str], Program], end: str) -> None:
    """It is closed at its collection, or at the end of the program, with one warning, no more."""
    program = run(MODEL + UNCLOSED[end])
    (server,) = program.told()
    status, said = program.end()
    assert status == 0, said
    assert not lives(server)
    assert program.left() == []
    assert said.count("ResourceWarning") == 1, said
    assert "was never closed: use `with` or close()" in said
    assert "Traceback" not in said


def test_an_exception_that_nobody_handles(run: Callable[[str], Program]) -> None:
    """`with` closes the model, and says nothing about it."""
    program = run(
        LOAD
        + "with rocllm.load_model(path, **options) as model:\n"
        + "    tell(model.info.pid)\n"
        + "    1 / 0\n"
    )
    (server,) = program.told()
    status, said = program.end()
    assert status == 1
    assert "ZeroDivisionError" in said
    assert "ResourceWarning" not in said
    assert not lives(server)
    assert program.left() == []


def test_a_forked_worker_that_ends_leaves_the_model_alone(run: Callable[[str], Program]) -> None:
    """Its copy of the model is not the model: neither server nor directory are its to remove."""
    program = run(
        LOAD
        + "with rocllm.load_model(path, **options) as model:\n"
        + "    worker = os.fork()\n"
        + "    if not worker:\n"
        + "        sys.exit()\n"
        + "    os.waitpid(worker, 0)\n"
        + "    assert model.generate('1, 2,', max_tokens=2).read().text\n"
        + "    tell(model.info.pid)\n"
    )
    program.told()
    assert program.end()[0] == 0


def test_ctrl_c_twice(run: Callable[[str], Program], tmp_path: Path) -> None:
    """The second does not wait for a server that ignores SIGTERM, and leaves it no life."""
    fake = write_fake_llama_server(tmp_path / "llama-server", ignore_sigterm=True)
    program = run(
        LOAD
        + f"with rocllm.load_model(path, llama_server={str(fake)!r}, **options) as model:\n"
        + "    tell(model.info.pid)\n"
        + "    time.sleep(1000)\n"
    )
    (server,) = program.told()
    begun = time.monotonic()
    while program.process.poll() is None:
        assert time.monotonic() - begun < DEADLINE
        program.process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    _, said = program.end()
    assert "KeyboardInterrupt" in said
    eventually(lambda: not lives(server))
    eventually(lambda: reap(program.place) or not program.left())


PYTEST = """
import os, sys, time
import pytest, rocllm

@pytest.fixture
def model():
    model = rocllm.load_model({path!r}, ctx_size=256, threads=1)
    print(model.info.pid, file=sys.stderr)
    return model

@pytest.mark.timeout(0.2, method="thread", func_only=True)
def test_it(model):
    {body}
"""


@pytest.mark.parametrize("body", ["assert False", "time.sleep(1000)"], ids=["fails", "times out"])
def test_inside_pytest(demo_model: Path, tmp_path: Path, body: str) -> None:
    """A fixture that was forgotten, and a run that pytest-timeout ends with os._exit."""
    test = tmp_path / "test_it.py"
    test.write_text(PYTEST.format(path=str(demo_model), body=body))
    options = ["-p", "no:randomly", "-p", "no:cacheprovider", "-s", "-q", f"--rootdir={tmp_path}"]
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="rt-") as place:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, str(test)],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "XDG_RUNTIME_DIR": place},
        )
        assert done.returncode == 1, done.stdout + done.stderr
        server = next(int(line) for line in done.stderr.splitlines() if line.isdigit())
        eventually(lambda: not lives(server))
        real = Path(os.path.realpath(place))
        eventually(lambda: reap(real) or not list(real.iterdir()))
