"""Finding a llama-server, and what it is asked."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rocllm import env
from rocllm.errors import BinaryNotFound, StartFailed
from rocllm.server import binary, find_server, list_devices
from rocllm.server.binary import parse_version
from rocllm.testing.fake_llama_server import write_fake_llama_server

EMPTY_PATH = "/nonexistent"
# The dynamic loader's words.
MISSING_LIBRARY = (
    "error while loading shared libraries: libamdhip64.so.7: cannot open shared object file: "
    "No such file or directory"
)


def script(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A user with an empty home and nothing on PATH."""
    (tmp_path / "home").mkdir()
    return {"HOME": str(tmp_path / "home"), "PATH": EMPTY_PATH}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("version: 10360 (90e6a9131)\nbuilt with GNU 12.2.0", "b10360-90e6a9131"),
        ("version: 0.6.0-dev (build 0, commit unknown)", "0.6.0-dev"),
        ("ggml_cuda_init: found 1 ROCm devices\nversion: 0.7.1 (build 12, commit ab12)", "0.7.1"),
        ("version: 2026.10.11549 (build 11549, commit unknown)", "2026.10.11549"),
        ("hello", "unknown"),
        ("", "unknown"),
    ],
)
def test_parse_version(text: str, version: str) -> None:
    """Both forms of the version are read, wherever they stand."""
    assert parse_version(text) == version


def test_the_option_comes_first(tmp_path: Path, environ: dict[str, str]) -> None:
    """Option before variable before PATH, and each says why it was taken."""
    for name in ("option", "variable", "path"):
        (tmp_path / name).mkdir()
        write_fake_llama_server(tmp_path / name / "llama-server")
    environ["PATH"] = str(tmp_path / "path")
    by_path = find_server(None, environ)
    assert (by_path.path, by_path.kind) == (str(tmp_path / "path/llama-server"), "native")
    assert "PATH" in by_path.found_by
    environ[env.LLAMA_SERVER_PATH] = str(tmp_path / "variable/llama-server")
    by_variable = find_server(None, environ)
    assert by_variable.path == environ[env.LLAMA_SERVER_PATH]
    assert by_variable.found_by == env.LLAMA_SERVER_PATH
    by_option = find_server(tmp_path / "option/llama-server", environ)
    assert by_option.path == str(tmp_path / "option/llama-server")
    assert by_option.found_by == "asked for"
    assert find_server("embedded", environ).kind == "embedded"


def test_embedded_is_the_last_resort(environ: dict[str, str]) -> None:
    """Without any other llama-server the one in the wheel is used."""
    found = find_server(None, environ)
    assert found.kind == "embedded"
    assert found.flags["--model"] == "FNAME"
    assert list_devices(found, environ).devices == ()


def test_nothing_found_says_where_it_was_looked_for(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the variable, PATH, and what to install."""
    monkeypatch.setattr(binary.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(BinaryNotFound, match=rf"(?s){env.LLAMA_SERVER_PATH}.*{EMPTY_PATH}.*pip"):
        find_server(None, environ)
    with pytest.raises(BinaryNotFound, match=r"rocllm\[embedded\]"):
        find_server("embedded", environ)


@pytest.mark.parametrize(
    "name", ["missing", "~nosuchuser/llama-server", "x" * 5000, "file/llama-server", "nul\0"]
)
def test_a_path_without_a_file(tmp_path: Path, environ: dict[str, str], name: str) -> None:
    """A path that cannot be there is told as such, and nothing else is run instead."""
    (tmp_path / "file").touch()
    named = name if name.startswith("~") else str(tmp_path / name)
    with pytest.raises(BinaryNotFound, match="there is no llama-server at") as raised:
        find_server(named, environ)
    assert env.LLAMA_SERVER_PATH not in str(raised.value)
    environ[env.LLAMA_SERVER_PATH] = named
    with pytest.raises(BinaryNotFound, match=f"unset {env.LLAMA_SERVER_PATH}"):
        find_server(None, environ)


def test_a_directory(tmp_path: Path, environ: dict[str, str]) -> None:
    """A directory is refused, and the binary in it suggested."""
    with pytest.raises(BinaryNotFound, match="is a directory"):
        find_server(tmp_path, environ)
    write_fake_llama_server(tmp_path / "llama-server")
    with pytest.raises(BinaryNotFound, match=f"did you mean '{tmp_path}/llama-server'"):
        find_server(tmp_path, environ)


def test_a_file_that_is_not_executable(tmp_path: Path, environ: dict[str, str]) -> None:
    """The remedy is the chmod to type."""
    path = write_fake_llama_server(tmp_path / "llama-server")
    path.chmod(0o644)
    with pytest.raises(BinaryNotFound, match=f"chmod \\+x {path}"):
        find_server(path, environ)


@pytest.mark.parametrize("text", ["echo hello", "exit 0", "echo '--verbose  be verbose'"])
def test_a_program_that_is_no_llama_server(
    tmp_path: Path, environ: dict[str, str], text: str
) -> None:
    """It answers, and not as a llama-server would."""
    with pytest.raises(BinaryNotFound, match="is not a llama-server"):
        find_server(script(tmp_path / "program", text), environ)


def test_a_program_for_another_machine(tmp_path: Path, environ: dict[str, str]) -> None:
    """An ELF file of another architecture, and garbage, cannot be executed."""
    elf = tmp_path / "elf"
    image = bytearray(Path(shutil.which("true") or "/bin/true").read_bytes())
    image[18:20] = b"\xfe\xca"  # e_machine
    elf.write_bytes(image)
    garbage = tmp_path / "garbage"
    garbage.write_bytes(b"\x00\x01garbage")
    for path in (elf, garbage):
        path.chmod(0o755)
        with pytest.raises(StartFailed, match=r"Exec format error\n.*not a program"):
            find_server(path, environ)


def test_a_script_without_its_interpreter(tmp_path: Path, environ: dict[str, str]) -> None:
    """The file is there and cannot be run."""
    path = tmp_path / "llama-server"
    path.write_text("#!/nonexistent/sh\n")
    path.chmod(0o755)
    with pytest.raises(StartFailed, match=f"cannot run '{path}': No such file"):
        find_server(path, environ)


def test_one_that_hangs(
    tmp_path: Path,
    environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[[Callable[[], Any]], Any],
    lives: Callable[[int], bool],
) -> None:
    """A question has a time limit, and what was asked does not go on, nor what it started."""
    monkeypatch.setattr(binary, "ASK_TIMEOUT", 0.5)
    pid_file = tmp_path / "pid"
    path = script(tmp_path / "llama-server", f"/bin/sleep 1000 & echo $! >{pid_file}; wait")
    with pytest.raises(StartFailed, match="did not answer"):
        find_server(path, environ)
    eventually(lambda: not lives(int(pid_file.read_text())))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f"echo 'x: {MISSING_LIBRARY}' >&2; exit 127",
            "exit status 127\n.*libamdhip64.so.7 is missing",
        ),
        ("kill -ILL $$", "SIGILL\n.*instructions that this processor does not have"),
        ("echo oops >&2; exit 3", "(?s)exit status 3.*oops"),
    ],
)
def test_one_that_cannot_run_here(
    tmp_path: Path, environ: dict[str, str], text: str, message: str
) -> None:
    """Why it cannot run is told; with no version and flags it is not used."""
    with pytest.raises(StartFailed, match=message):
        find_server(script(tmp_path / "llama-server", text), environ)


def test_the_users_settings_of_llama_server_do_not_disturb(
    tmp_path: Path, environ: dict[str, str]
) -> None:
    """A wrong LLAMA_ARG_… or configuration file makes a real llama-server refuse even --help."""
    path = script(
        tmp_path / "llama-server",
        'test -z "$LLAMA_ARG_CTX_SIZE$HF_TOKEN" && test "$XDG_CONFIG_HOME" = /dev/null || exit 1\n'
        "echo '-m,    --model FNAME    model'",
    )
    environ |= {"LLAMA_ARG_CTX_SIZE": "abc", "HF_TOKEN": "x", "XDG_CONFIG_HOME": str(tmp_path)}
    assert "--model" in find_server(path, environ).flags


def counting(path: Path, log: Path) -> Path:
    """A llama-server that notes every question."""
    return script(path, f"echo asked >>{log}\necho '-m,    --model FNAME    model path'")


def test_the_answer_is_kept_until_the_file_changes(tmp_path: Path, environ: dict[str, str]) -> None:
    """A second look asks nothing; after the file was touched it asks again."""
    log = tmp_path / "log"
    path = counting(tmp_path / "llama-server", log)
    first = find_server(path, environ)
    asked = log.read_text()
    assert find_server(path, environ) == first
    assert log.read_text() == asked
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert find_server(path, environ) == first
    assert len(log.read_text()) == 2 * len(asked)


@pytest.mark.parametrize("content", [b"", b"{", b"5", b"null", b"[1, 2]", b"\xff", b"[]"])
def test_a_kept_answer_that_is_broken(
    tmp_path: Path, environ: dict[str, str], content: bytes
) -> None:
    """It is asked again, and kept again."""
    path = counting(tmp_path / "llama-server", tmp_path / "log")
    first = find_server(path, environ)
    (kept,) = (env.cache_dir(environ) / "servers").iterdir()
    sound = kept.read_bytes()
    kept.write_bytes(content)
    assert find_server(path, environ) == first
    assert kept.read_bytes() == sound


def test_a_home_that_cannot_be_written(tmp_path: Path, environ: dict[str, str]) -> None:
    """Nothing can be kept, and everything works."""
    (tmp_path / "file").touch()
    environ["HOME"] = str(tmp_path / "file" / "home")
    assert "--model" in find_server(counting(tmp_path / "s", tmp_path / "log"), environ).flags


def test_a_failed_answer_is_not_kept(tmp_path: Path, environ: dict[str, str]) -> None:
    """After the user has repaired it, the same file is asked again."""
    path = script(tmp_path / "llama-server", f"test -e {tmp_path}/fixed && echo '-m, --model F'")
    with pytest.raises(StartFailed):
        find_server(path, environ)
    (tmp_path / "fixed").touch()
    assert "--model" in find_server(path, environ).flags


def test_devices_of_a_rocm_build(tmp_path: Path, environ: dict[str, str]) -> None:
    """Names, descriptions and sizes as the build lists them."""
    path = write_fake_llama_server(
        tmp_path / "llama-server", devices=["0000:03:00.0", "0000:0d:00.0"]
    )
    found = find_server(path, environ)
    assert found.version == "0.6.0-dev"
    first, second = list_devices(found, environ).devices
    assert (first.name, second.name) == ("ROCm0", "ROCm1")
    assert first.description == "AMD Radeon RX 7800 XT"
    assert (first.total, first.free) == (16368 << 20, 16000 << 20)


def test_a_relative_path_is_made_absolute(
    tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child runs in another directory."""
    write_fake_llama_server(tmp_path / "llama-server")
    monkeypatch.chdir(tmp_path)
    assert find_server("llama-server", environ).argv == (str(tmp_path / "llama-server"),)


def test_a_path_with_spaces(tmp_path: Path, environ: dict[str, str]) -> None:
    """No shell comes between."""
    path = write_fake_llama_server(tmp_path / "my llama server")
    assert find_server(path, environ).path == str(path)
    assert path.stat().st_mode & stat.S_IXUSR
