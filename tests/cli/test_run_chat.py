"""`rocllm run`, `rocllm chat` and what all commands share, as a user meets them."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rocllm import __version__, cli, errors

ROCLLM = (sys.executable, "-m", "rocllm")
DEADLINE = 150.0


def rocllm(
    *arguments: str, stdin: str | None = "", environ: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        (*ROCLLM, *arguments),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        env={**os.environ, **(environ or {})},
        check=False,
    )


class Terminal:
    """The command line on a terminal of its own, as a person would use it."""

    def __init__(self, *arguments: str) -> None:
        self._leader, follower = pty.openpty()
        self.process = subprocess.Popen(
            (*ROCLLM, *arguments),
            stdin=follower,
            stdout=follower,
            stderr=follower,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        )
        os.close(follower)
        self.seen = ""

    def until(self, condition: Callable[[str], bool]) -> str:
        """Read until `condition` holds for what was shown since the last call."""
        start, deadline = len(self.seen), time.monotonic() + DEADLINE
        while not condition(self.seen[start:]):
            assert time.monotonic() < deadline, f"not seen in {self.seen[start:]!r}"
            if select.select([self._leader], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self._leader, 65536).decode("utf-8", "replace")
                except OSError:
                    break  # the other side has been closed
        return self.seen[start:]

    def type(self, text: str) -> None:
        os.write(self._leader, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C: to the program only, as its server is in a process group of its own."""
        os.kill(self.process.pid, signal.SIGINT)

    def close(self) -> int:
        try:
            return self.process.wait(DEADLINE)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self._leader)


def servers_of(pid: int) -> list[int]:
    """The children of a process."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    for task in Path(f"/proc/{pid}/task").iterdir():
        text += " " + (task / "children").read_text()
    return sorted({int(child) for child in text.split()})


def test_run_prints_the_answer_and_nothing_else(demo_model: Path) -> None:
    """Standard output holds the answer only; device, engine and timings are on standard error."""
    done = rocllm("run", "demo", "Explain gravity in one sentence.", "--max-tokens", "40")
    assert done.returncode == 0, done.stderr
    assert "gravity" in done.stdout.lower()
    assert done.stdout.endswith("\n")
    device, engine, name, timings = done.stderr.splitlines()
    assert device.startswith("device: CPU, because ")
    assert engine.startswith("engine: ")
    assert name.startswith(f"model: {demo_model.name}")
    assert "tok/s" in timings
    assert "\x1b" not in done.stdout + done.stderr


def test_run_reads_standard_input(demo_model: Path) -> None:
    """Without a prompt, and with -, the prompt is what is piped in; --raw continues it as it is."""
    piped = rocllm("run", "demo", "--raw", "-n", "4", "-q", stdin="The capital of France is\n")
    dash = rocllm("run", "demo", "-", "--raw", "-n", "4", "-q", stdin="The capital of France is")
    assert "Paris" in piped.stdout
    assert piped.stdout == dash.stdout
    assert piped.stderr == ""


def test_run_as_json(demo_model: Path) -> None:
    """--json gives the whole result, tokens with their ids included."""
    done = rocllm("run", "demo", "--raw", "--json", "-n", "4", "The capital of France is")
    answer = json.loads(done.stdout)
    assert "Paris" in answer["text"]
    assert answer["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 4
    assert [token["text"] for token in answer["tokens"]]
    assert all(isinstance(token["id"], int) for token in answer["tokens"])
    assert answer["timings"]["predicted_n"] == 4
    assert answer["devices"] == []


def test_one_token_has_no_rate(demo_model: Path) -> None:
    """A single token took no time by the server's clock, and is told without tokens a second."""
    done = rocllm("run", "demo", "Hello", "-n", "1")
    assert "1 token; first token after" in done.stderr


def test_run_takes_sampling_and_a_schema(demo_model: Path) -> None:
    """Options reach the server; a schema is obeyed."""
    schema = '{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}'
    done = rocllm("run", "demo", "A number, please.", "--json-schema", schema, "-q")
    assert isinstance(json.loads(done.stdout)["n"], int)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("run", "nowhere.gguf", "x"), 3, "nowhere.gguf"),
        (("run", "demo", "x", "--max-tokens", "0"), 2, "max_tokens=0"),
        (("run", "demo", "x", "--ctx-size", "99999"), 2, "8192"),
        (("run", "demo", ""), 2, "prompt is empty"),
        (("run", "demo", "x", "--frobnicate"), 2, "--frobnicate"),
        (("run", "demo", "x", "--device", "0000:99:00.0"), 4, "0000:99:00.0"),
        (("run", "demo", "x", "--llama-server", "/nowhere"), 5, "/nowhere"),
        (("run", "demo", "word " * 900, "--ctx-size", "512", "-q"), 6, "512"),
        (("run", "demo", "x", "--json-schema", "{"), 2, "not JSON"),
        (("frobnicate",), 2, "frobnicate"),
    ],
)
def test_bad_input_is_answered(
    demo_model: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    """A message on standard error that names the value, the documented code, no traceback."""
    done = rocllm(*arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_no_fault_of_rocllm(unbuffered: str) -> None:
    """Output that finds no space is told in words, and not as something to report."""
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rocllm", "devices"],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written: No space left on device\n"


def test_debug_shows_the_traceback() -> None:
    """With --debug the traceback is there, and the code is the same."""
    done = rocllm("--debug", "run", "nowhere.gguf", "x")
    assert "Traceback" in done.stderr
    assert done.returncode == 3


def test_version_help_and_completion() -> None:
    """The version, every command in the help, and a completion script."""
    assert rocllm("--version").stdout.strip() == f"rocllm {__version__}"
    text = rocllm("--help").stdout
    assert all(name in text for name in cli.COMMANDS)
    for name in cli.COMMANDS:
        assert rocllm(name, "--help").returncode == 0
    done = rocllm(
        environ={"_ROCLLM_COMPLETE": "complete_bash", "COMP_WORDS": "rocllm pu", "COMP_CWORD": "1"}
    )
    assert done.stdout.split() == ["pull"]


def test_every_error_has_an_exit_code() -> None:
    """Each branch of the error tree ends in one of the documented codes."""
    assert cli.exit_code(errors.BadRequest("x")) == 6
    assert cli.exit_code(errors.OptionsError("x")) == 2
    assert cli.exit_code(errors.StreamClosed("x")) == 1


def test_ctrl_c_while_generating(demo_model: Path) -> None:
    """The program ends with 130, and its server with it."""
    terminal = Terminal("run", "demo", "Write a very long story.", "-n", "-1")
    terminal.until(lambda seen: len(seen.partition("model: ")[2].partition("\n")[2]) > 20)
    servers = servers_of(terminal.process.pid)
    assert servers
    terminal.interrupt()
    assert terminal.close() == 130
    assert not any(Path(f"/proc/{pid}").exists() for pid in servers)
    assert "Traceback" not in terminal.seen


def test_sigterm_stops_the_server_too(demo_model: Path) -> None:
    """A terminated program leaves no server behind."""
    terminal = Terminal("run", "demo", "Write a very long story.", "-n", "-1")
    terminal.until(lambda seen: "engine:" in seen)
    servers = servers_of(terminal.process.pid)
    terminal.process.terminate()
    assert terminal.close() == 143
    assert not any(Path(f"/proc/{pid}").exists() for pid in servers)


def test_chat_on_a_terminal(demo_model: Path) -> None:
    """It remembers, Ctrl-C stops an answer and not the program, /help and /exit work."""
    terminal = Terminal("chat", "demo", "--max-tokens", "400")
    terminal.until(lambda seen: seen.endswith("> "))
    terminal.type("/help\n")
    assert "/clear" in terminal.until(lambda seen: seen.endswith("> "))
    terminal.type("My name is Bob. Write a long story.\n")
    terminal.until(lambda seen: len(seen) > 150)
    terminal.interrupt()
    assert "[stopped]" in terminal.until(lambda seen: seen.endswith("> "))
    terminal.type("/history\n")
    history = terminal.until(lambda seen: seen.endswith("> "))
    assert "user: My name is Bob." in history
    assert "assistant: " in history
    terminal.type("/clear\n")
    terminal.until(lambda seen: seen.endswith("> "))
    terminal.type("/nonsense\n")
    assert "unknown command" in terminal.until(lambda seen: seen.endswith("> "))
    terminal.type("\x04")
    assert terminal.close() == 0


def test_chat_from_a_pipe(demo_model: Path) -> None:
    """Piped questions are answered in turn; an overlong one is refused and the rest goes on."""
    questions = f"Explain gravity in one sentence.\n{'word ' * 1500}\nAnd light?\n"
    done = rocllm("chat", "demo", "--ctx-size", "512", "-n", "20", "-q", stdin=questions)
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    assert "gravity" in first.lower()
    assert second
    assert "512" in done.stderr
