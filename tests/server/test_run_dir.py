"""The private directory of a child, and what killed programs left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rocllm.endpoint import MAX_SOCKET_PATH
from rocllm.errors import StartFailed
from rocllm.server import RunDir, run_dir
from rocllm.server.run_dir import _system, reap, start_time

Eventually = Callable[[Callable[[], Any]], Any]
Lives = Callable[[int], bool]
Make = Callable[..., RunDir]
DEADLINE = 20.0
# Larger than any process number (proc(5): at most 2**22).
NO_PID = 2**22 + 1
DEAD_OWNER = {"parent": {"pid": NO_PID, "start_time": 5}, "child": None}
ROOT_ONLY = pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A living process that leads its own group, as a server does."""
    with subprocess.Popen(["sleep", "1000"], process_group=0) as process:
        yield process
        process.kill()


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Below it a socket's path has room for some more directories."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="rt-") as path:
        yield Path(os.path.realpath(path))


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes directories in the places that are given, and removes them after the test."""
    made: list[RunDir] = []

    def create(**places: Path) -> RunDir:
        made.append(RunDir.create({name: str(place) for name, place in places.items()}))
        return made[-1]

    yield create
    for one in made:
        one.remove()


@pytest.fixture
def killed(tmp_path: Path) -> Iterator[Callable[[str], int]]:
    """Runs a program that makes a directory in `tmp_path` and then some, and kills it."""
    pids: list[int] = []

    def run(code: str) -> int:
        """The number that it printed."""
        code = (
            "import os, subprocess, sys, time\nfrom rocllm.server import RunDir\n"
            f"run_dir = RunDir.create({{'XDG_RUNTIME_DIR': {str(tmp_path)!r}}})\n"
            f"{code}\ntime.sleep(1000)\n"
        )
        argv = [sys.executable, "-c", code]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout is not None
            pids.append(int(program.stdout.readline()))
            program.kill()
        return pids[-1]

    yield run
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def leave(base: Path, owner: object, name: str = "rocllm-left") -> Path:
    """A directory as it is left behind."""
    path = base / name
    path.mkdir(mode=0o700)
    if isinstance(owner, dict):
        owner = {"system": _system(), **owner}
    (path / "owner.json").write_text(owner if isinstance(owner, str) else json.dumps(owner))
    return path


def age(path: Path) -> None:
    """Make it look two minutes old."""
    os.utime(path, (time.time() - 120,) * 2)


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
    tmp_path: Path, killed: Callable[[str], int], eventually: Eventually, lives: Lives
) -> None:
    """Its living child is ended, by process id and start time, and the directory is removed."""
    child = killed(
        "child = subprocess.Popen(['sleep', '1000'], process_group=0)\n"
        "run_dir.write_owner(child.pid)\nprint(child.pid, flush=True)"
    )
    assert lives(child)
    assert len(list(tmp_path.iterdir())) == 1
    eventually(lambda: reap(tmp_path) or not lives(child))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("session", [False, True])
def test_a_child_that_was_never_noted_is_ended(
    tmp_path: Path,
    killed: Callable[[str], int],
    eventually: Eventually,
    lives: Lives,
    session: bool,
) -> None:
    """It has the directory in its environment, whatever group or session it went to."""
    child = killed(
        "environ = {**os.environ, 'XDG_CONFIG_HOME': str(run_dir.config_home)}\n"
        f"child = subprocess.Popen(['sleep', '1000'], env=environ, start_new_session={session})\n"
        "print(child.pid, flush=True)"
    )
    assert lives(child)
    # A child that has just begun may hold a copy of the lock for a moment.
    eventually(lambda: reap(tmp_path) or not lives(child))
    assert list(tmp_path.iterdir()) == []


def test_removing_ends_what_belongs_to_it(
    tmp_path: Path, make: Make, lives: Lives, sleeper: subprocess.Popen[bytes]
) -> None:
    """A helper that the child has sent into a session of its own, and nobody else."""
    made = make(XDG_RUNTIME_DIR=tmp_path)
    environ = {**os.environ, "XDG_CONFIG_HOME": str(made.config_home)}
    other = {**os.environ, "XDG_CONFIG_HOME": f"{made.config_home}2", "X": str(made.config_home)}
    argv = ["sleep", "1000"]
    with contextlib.ExitStack() as stack:
        helper = stack.enter_context(subprocess.Popen(argv, env=environ, start_new_session=True))
        stack.callback(helper.kill)
        stranger = stack.enter_context(subprocess.Popen(argv, env=other))
        stack.callback(stranger.kill)
        made.remove()
        assert helper.wait(DEADLINE) == -signal.SIGKILL
        assert stranger.poll() is None
    assert sleeper.poll() is None


def test_making_one_removes_what_is_left(tmp_path: Path, make: Make) -> None:
    """Every start does it, so nothing gathers."""
    left = leave(tmp_path, DEAD_OWNER)
    made = make(XDG_RUNTIME_DIR=tmp_path)
    assert not left.exists()
    assert list(tmp_path.iterdir()) == [made.path]


def test_a_living_program_keeps_what_is_its_own(
    tmp_path: Path, make: Make, sleeper: subprocess.Popen[bytes]
) -> None:
    """Neither its directory nor its child is touched."""
    ours = make(XDG_RUNTIME_DIR=tmp_path)
    ours.write_owner(sleeper.pid)
    reap(tmp_path)
    assert ours.path.exists()
    assert sleeper.poll() is None


def test_a_living_program_in_another_container(
    tmp_path: Path, make: Make, sleeper: subprocess.Popen[bytes]
) -> None:
    """Its process ids mean nothing here; the lock does. Without one, nobody there is killed."""
    ours = make(XDG_RUNTIME_DIR=tmp_path)
    owner = {
        "system": "another",
        "parent": {"pid": NO_PID, "start_time": 5},
        "child": identity(sleeper.pid),
    }
    (ours.path / "owner.json").write_text(json.dumps(owner))
    left = leave(tmp_path, owner)
    reap(tmp_path)
    assert ours.path.exists()
    assert not left.exists()
    assert sleeper.poll() is None


def test_a_living_program_without_a_lock(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a file system has no locks, the parent that lives is enough."""

    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    with monkeypatch.context() as patch:
        patch.setattr(run_dir.fcntl, "flock", unsupported)
        ours = make(XDG_RUNTIME_DIR=tmp_path)
        reap(tmp_path)
        assert ours.path.exists()
    reap(tmp_path)
    assert ours.path.exists()


def test_a_forked_copy_does_not_keep_it(
    tmp_path: Path, killed: Callable[[str], int], eventually: Eventually, lives: Lives
) -> None:
    """A worker that outlives the program has not loaded the model."""
    worker = killed(
        "worker = os.fork()\nif not worker: time.sleep(1000)\nprint(worker, flush=True)"
    )
    assert lives(worker)
    eventually(lambda: reap(tmp_path) or not list(tmp_path.iterdir()))
    assert lives(worker)


def test_a_forked_copy_does_not_remove_it(tmp_path: Path, make: Make) -> None:
    """The directory is the parent's, who goes on."""
    ours = make(XDG_RUNTIME_DIR=tmp_path)
    fork = os.fork()
    if not fork:
        ours.remove()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]) == 0
    assert ours.path.exists()


def test_the_owner_is_noted(tmp_path: Path, make: Make) -> None:
    """Numbers only: no argument and no environment of anybody."""
    ours = make(XDG_RUNTIME_DIR=tmp_path)
    for child in (None, 1, None):
        ours.write_owner(child)
        owner = json.loads((ours.path / "owner.json").read_text())
        assert owner == {
            "system": _system(),
            "parent": identity(os.getpid()),
            "child": None if child is None else identity(child),
        }


@pytest.mark.parametrize("stage", ["nothing", "owner"])
def test_one_whose_maker_was_killed(tmp_path: Path, stage: str) -> None:
    """Before it had an owner; another program may be making it right now, so it must be older."""
    left = tmp_path / "rocllm-abcdefgh"
    left.mkdir()
    if stage == "owner":
        (left / "owner.json").touch()
    reap(tmp_path)
    assert left.exists()
    age(left)
    reap(tmp_path)
    assert not left.exists()


def test_a_directory_of_the_users_with_our_prefix(tmp_path: Path) -> None:
    """However old it is: what we did not make is not removed."""
    theirs = tmp_path / "rocllm-work"
    (theirs / "config").mkdir(parents=True)
    age(theirs)
    reap(tmp_path)
    assert (theirs / "config").exists()


def hostile(place: Path, how: str) -> Path:
    """A place in which somebody else can exchange a directory of ours."""
    base = place / "base"
    base.mkdir()
    if how == "world-writable":
        base.chmod(0o777)
    elif how == "below a world-writable one":
        place.chmod(0o777)
    elif how == "a link below":
        (place / "open").mkdir()
        (place / "open").chmod(0o777)
        (place / "open" / "real").mkdir()
        base.rmdir()
        base.symlink_to(place / "open" / "real")
    elif how == "of another user":
        os.chown(base, 12345, -1)
    elif how == "of another group":
        os.chown(base, -1, 12345)
        base.chmod(0o775)
    return base


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("world-writable", "others may rename what is in"),
        ("below a world-writable one", "others may rename what is in"),
        ("a link below", "others may rename what is in"),
        pytest.param("of another user", "belongs to user 12345", marks=ROOT_ONLY),
        pytest.param("of another group", "others may rename what is in", marks=ROOT_ONLY),
    ],
)
def test_a_place_that_others_can_change_is_passed_over(
    short_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch, how: str, why: str
) -> None:
    """Else they could put a socket of theirs in the place of the server's."""
    (short_path / "place").mkdir()
    (short_path / "good").mkdir()
    base = hostile(short_path / "place", how)
    made = make(XDG_RUNTIME_DIR=base, TMPDIR=short_path / "good")
    assert made.path.parent == short_path / "good"
    monkeypatch.setattr(run_dir.env, "runtime_dirs", lambda _: (base,))
    with pytest.raises(StartFailed, match=why):
        RunDir.create({})


@pytest.mark.parametrize("mode", [0o1777, 0o755, 0o770])
def test_a_place_that_others_cannot_change(tmp_path: Path, make: Make, mode: int) -> None:
    """As `/tmp` with its sticky bit, or one of the user's own group."""
    base = tmp_path / "base"
    base.mkdir()
    base.chmod(mode)
    assert make(XDG_RUNTIME_DIR=base).path.parent == base


def test_a_link_to_a_good_place(tmp_path: Path, make: Make) -> None:
    """The path is that of the place itself, as the link may be led elsewhere."""
    (tmp_path / "base").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "base")
    assert make(XDG_RUNTIME_DIR=tmp_path / "link").path.parent == tmp_path / "base"


def test_a_file_system_without_permissions(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What everybody may enter is not used, and not left there."""
    (tmp_path / "open").mkdir()
    (tmp_path / "good").mkdir()
    mkdtemp = tempfile.mkdtemp

    def as_on_vfat(prefix: str, dir: Path) -> str:  # noqa: A002
        path = mkdtemp(prefix=prefix, dir=dir)
        os.chmod(path, 0o777 if dir.name == "open" else 0o700)
        return path

    monkeypatch.setattr(run_dir.tempfile, "mkdtemp", as_on_vfat)
    made = make(XDG_RUNTIME_DIR=tmp_path / "open", TMPDIR=tmp_path / "good")
    assert made.path.parent == tmp_path / "good"
    assert list((tmp_path / "open").iterdir()) == []


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


def test_a_directory_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In /tmp every user may make one with any content."""
    left = leave(tmp_path, DEAD_OWNER)
    monkeypatch.setattr(run_dir.os, "getuid", lambda: left.stat().st_uid + 1)
    reap(tmp_path)
    assert left.exists()


@ROOT_ONLY
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
