"""The private directory of a child, and what killed programs left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rocllm.endpoint import MAX_SOCKET_PATH
from rocllm.errors import StartFailed
from rocllm.server import RunDir, run_dir
from rocllm.server.run_dir import reap, start_time

Eventually = Callable[[Callable[[], Any]], Any]
Lives = Callable[[int], bool]
# Larger than any process number (proc(5): at most 2**22).
NO_PID = 2**22 + 1


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A living process that leads its own group, as a server does."""
    with subprocess.Popen(["sleep", "1000"], process_group=0) as process:
        yield process
        process.kill()


def leave(base: Path, owner: object, name: str = "rocllm-left") -> Path:
    """A directory as it is left behind."""
    path = base / name
    path.mkdir(mode=0o700)
    (path / "owner.json").write_text(owner if isinstance(owner, str) else json.dumps(owner))
    return path


def identity(pid: int) -> dict[str, int | None]:
    """A process as `owner.json` names it."""
    return {"pid": pid, "start_time": start_time(pid)}


def test_it_is_private(tmp_path: Path) -> None:
    """Nobody else may look in, whatever the umask; the configuration is empty."""
    before = os.umask(0)
    try:
        made = RunDir.create({"XDG_RUNTIME_DIR": str(tmp_path)})
    finally:
        os.umask(before)
    assert made.path.parent == tmp_path
    assert made.path.stat().st_mode & 0o777 == 0o700
    assert made.config_home.stat().st_mode & 0o777 == 0o700
    assert list(made.config_home.iterdir()) == []
    assert made.socket_path.parent == made.path
    made.remove()
    made.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_place_whose_paths_are_too_long_is_passed_over(tmp_path: Path) -> None:
    """The next one is taken, and the longest that fits does fit."""
    long = tmp_path / ("y" * 100)
    long.mkdir()
    made = RunDir.create({"XDG_RUNTIME_DIR": str(long), "TMPDIR": str(tmp_path)})
    assert made.path.parent == tmp_path
    made.remove()
    room = MAX_SOCKET_PATH - len("/rocllm-12345678/s.sock") - len(str(tmp_path)) - 1
    just = tmp_path / ("z" * room)
    just.mkdir()
    made = RunDir.create({"XDG_RUNTIME_DIR": str(just)})
    assert made.path.parent == just
    assert len(os.fsencode(made.socket_path)) == MAX_SOCKET_PATH
    made.remove()


@pytest.mark.parametrize("place", ["missing", "file"])
def test_a_place_that_cannot_be_used_is_passed_over(tmp_path: Path, place: str) -> None:
    """The runtime directory of a user who is not logged in does not exist."""
    (tmp_path / "file").touch()
    made = RunDir.create({"XDG_RUNTIME_DIR": str(tmp_path / place), "TMPDIR": str(tmp_path)})
    assert made.path.parent == tmp_path
    made.remove()


def test_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every place that was tried is told, with the reason."""
    long = tmp_path / ("y" * 100)
    monkeypatch.setattr(run_dir.env, "runtime_dirs", lambda _: (long, tmp_path / "missing"))
    with pytest.raises(StartFailed, match=r"(?s)107 bytes.*yyy.*would have.*missing: No such"):
        RunDir.create({})


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next place is tried, and the half-made directory is removed."""
    full, free = tmp_path / "full", tmp_path / "free"
    full.mkdir()
    free.mkdir()
    write = RunDir.write_owner

    def no_space(self: RunDir, child: int | None) -> None:
        if self.path.parent == full:
            raise OSError(28, "No space left on device")
        write(self, child)

    monkeypatch.setattr(RunDir, "write_owner", no_space)
    made = RunDir.create({"XDG_RUNTIME_DIR": str(full), "TMPDIR": str(free)})
    assert made.path.parent == free
    assert list(full.iterdir()) == []
    made.remove()


def test_what_a_killed_program_left_is_removed(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    """Its living child is ended and the directory is removed."""
    code = (
        "import os, signal, sys\n"
        "from rocllm.server import RunDir\n"
        "RunDir.create({'XDG_RUNTIME_DIR': sys.argv[1]}).write_owner(int(sys.argv[2]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    argv = [sys.executable, "-c", code, str(tmp_path), str(sleeper.pid)]
    assert subprocess.run(argv, check=False, timeout=20).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    made = RunDir.create({"XDG_RUNTIME_DIR": str(tmp_path)})
    assert sleeper.wait(20) == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == [made.path]


def test_a_living_program_keeps_what_is_its_own(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    """Neither its directory nor its child is touched."""
    ours = RunDir.create({"XDG_RUNTIME_DIR": str(tmp_path)})
    ours.write_owner(sleeper.pid)
    reap(tmp_path)
    assert ours.path.exists()
    assert sleeper.poll() is None


def test_a_number_that_was_used_again(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    """The process has the child's number and not its start time: it is somebody else's."""
    left = leave(
        tmp_path,
        {
            "parent": {"pid": os.getpid(), "start_time": 1},
            "child": {"pid": sleeper.pid, "start_time": 1},
        },
    )
    reap(tmp_path)
    assert not left.exists()
    assert sleeper.poll() is None


@pytest.mark.parametrize("child", [None, {"pid": NO_PID, "start_time": 5}])
def test_a_child_that_is_gone(tmp_path: Path, child: object) -> None:
    """Only the directory is left to remove."""
    left = leave(tmp_path, {"parent": {"pid": NO_PID, "start_time": 5}, "child": child})
    reap(tmp_path)
    assert not left.exists()


@pytest.mark.parametrize(
    "owner", ["", "{", "[]", "{}", "null", '{"parent": 5}', '{"parent": {"pid": "x"}}']
)
def test_what_is_not_understood_is_left_alone(tmp_path: Path, owner: str) -> None:
    """A directory with our prefix may be anybody's."""
    left = leave(tmp_path, owner)
    (tmp_path / "rocllm-empty").mkdir()
    (tmp_path / "rocllm-file").touch()
    (tmp_path / "rocllm-dangling").symlink_to(tmp_path / "nowhere")
    reap(tmp_path)
    assert left.exists()
    assert len(list(tmp_path.iterdir())) == 4


DEAD_OWNER = {"parent": {"pid": NO_PID, "start_time": 5}, "child": None}


def test_a_directory_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In /tmp every user may make one with any content."""
    left = leave(tmp_path, DEAD_OWNER)
    monkeypatch.setattr(run_dir.os, "getuid", lambda: left.stat().st_uid + 1)
    reap(tmp_path)
    assert left.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a link of another user")
def test_a_link_to_a_directory_of_ours(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    """Whoever made the link decides nothing about what it leads to."""
    (tmp_path / "base").mkdir()
    owner = {"parent": {"pid": NO_PID, "start_time": 5}, "child": identity(sleeper.pid)}
    ours = leave(tmp_path, owner)
    link = tmp_path / "base" / "rocllm-link"
    link.symlink_to(ours)
    os.lchown(link, 12345, 12345)
    reap(tmp_path / "base")
    assert ours.exists()
    assert sleeper.poll() is None


def test_start_time() -> None:
    """It is ours as the kernel tells it, and unknown where there is no process."""
    own = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    assert start_time(os.getpid()) == int(own[19])
    assert start_time(NO_PID) is None


def test_a_zombie_does_not_live() -> None:
    """It has ended, though its parent has not heard of it."""
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert start_time(process.pid) is None
