"""What a model, a file or a server says cannot speak to the terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import pytest

from rocllm import cli
from rocllm.cli._terminal import escaped_json, for_stream, one_line, visible
from rocllm.errors import StartFailed

DEADLINE = 150.0
# Sets the clipboard (OSC 52), clears the screen, colours by a C1 character, reverses the letters.
HOSTILE = "\x1b]52;c;aGk=\x07\x1b[2J\x9b31m\u202eab"
SHOWN = "^[]52;c;aGk=^G^[[2J<U+009B>31m<U+202E>ab"
GRAMMAR = r'root ::= "\x1b]52;c;aGk=\x07\x1b[2J\u009b31m\u202eab"'


class Stream(io.StringIO):
    """A text stream that may be a terminal."""

    def __init__(self, *, terminal: bool, encoding: str = "utf-8") -> None:
        super().__init__()
        self._terminal = terminal
        self._encoding = encoding

    def isatty(self) -> bool:
        return self._terminal

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


def test_every_control_character_is_shown() -> None:
    """But newline and tab; letters of any language and what joins them stay."""
    for number in (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F)):
        if chr(number) not in "\n\t":
            assert visible(chr(number)).isprintable(), hex(number)
    harmless = "a\tb\nÄ 漢字 שלום\u200f العربية \u200d👩\u200d💻 \u00ad\ue000"
    assert visible(harmless) == harmless
    assert visible(HOSTILE) == SHOWN
    assert visible("\r\x7f\x00\ud800") == "^M^?^@<U+D800>"


def test_a_name_is_one_line() -> None:
    """A line break in it would be taken for another line of ours."""
    assert one_line("a\nerror: b\u2028c\u200d") == "a^Jerror: b<U+2028>c<U+200D>"
    assert one_line("Llama 3 Ä 漢") == "Llama 3 Ä 漢"


def test_only_a_terminal_is_protected() -> None:
    """A pipe gets the very text, and so does a terminal whose user wants it."""
    assert for_stream(HOSTILE, Stream(terminal=True)) == SHOWN
    assert for_stream(HOSTILE, Stream(terminal=True), raw=True) == HOSTILE
    assert for_stream(HOSTILE, Stream(terminal=False)) == HOSTILE


def test_what_cannot_be_written() -> None:
    """Half a character, and one that the encoding lacks, end no answer."""
    assert for_stream("a\ud800b", Stream(terminal=False)) == "a?b"
    assert for_stream("Ä漢", Stream(terminal=True, encoding="latin-1")) == "Ä?"


def test_json_means_the_same() -> None:
    """It is escaped further, not changed."""
    document = json.dumps({"text": HOSTILE + "\ud800\n"}, ensure_ascii=False, indent=2)
    escaped = escaped_json(document)
    assert json.loads(escaped) == {"text": HOSTILE + "\ud800\n"}
    assert all(char.isprintable() or char == "\n" for char in escaped)


@pytest.mark.parametrize("debug", [False, True])
def test_errors(debug: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """They hold names and the last words of a server, whose lines stay lines."""
    cli._report(StartFailed("it failed", why=f"last output:\n{HOSTILE}"), debug)
    cli._report(ValueError(HOSTILE), debug)
    said = capsys.readouterr().err
    assert said.count(SHOWN) == 2
    assert "\x1b" not in said
    assert "last output:\n" in said


def on_terminal(*arguments: str) -> bytes:
    """What a command writes to a terminal."""
    leader, follower = pty.openpty()
    argv = (sys.executable, "-m", "rocllm", *arguments)
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=follower, stderr=follower, start_new_session=True
    ) as process:
        os.close(follower)
        seen = b""
        try:
            while select.select([leader], [], [], DEADLINE)[0]:
                seen += os.read(leader, 65536)
        except OSError:
            pass  # the other side has been closed
        finally:
            os.close(leader)
            process.kill()
    return seen


def test_a_real_model_that_means_harm(demo_model: Path) -> None:
    """A grammar makes it say so: shown on a terminal, obeyed if asked for, exact in a pipe."""
    arguments = ("run", str(demo_model), "x", "--raw", "-q", "-c", "256", "--grammar", GRAMMAR)
    assert on_terminal(*arguments).decode().rstrip() == SHOWN
    assert on_terminal(*arguments, "--raw-output").decode().rstrip() == HOSTILE
    piped = subprocess.run(
        (sys.executable, "-m", "rocllm", *arguments),
        check=True,
        capture_output=True,
        timeout=DEADLINE,
    )
    assert piped.stdout.decode() == HOSTILE + "\n"
