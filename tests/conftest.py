"""What all tests share: a home of their own, the demo model, and no process left behind."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rocllm import catalog, env

_USERS_ENVIRON = dict(os.environ)
# Every process that a test starts inherits this mark, however far down.
_MARK = f"ROCLLM_TEST_SESSION={os.getpid()}"
_SECONDS_TO_END = 10.0

# A shell has what it runs with `&` in a script ignore Ctrl-C, and nohup the end of the terminal; so
# would all programs of the tests.
for _number, _default in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
    (signal.SIGTERM, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _default)


@pytest.fixture(scope="session", autouse=True)
def _no_process_outlives_the_session() -> Iterator[None]:
    name, _, value = _MARK.partition("=")
    os.environ[name] = value
    yield
    deadline = time.monotonic() + _SECONDS_TO_END
    left = {pid: command for pid, command in _started_here().items() if not _ends(pid, deadline)}
    assert not left, f"processes left behind: {left}"


@pytest.fixture(scope="session", autouse=True)
def _own_home(
    _no_process_outlives_the_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    """Tests see an empty home, write none of the user's files, and find none of his models.

    Sockets are in a place of the worker's own, so that what is left there is the worker's.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.mktemp("run")))
        # llama.cpp's threads wait for each other at full speed. Where another worker has one of
        # two cores that makes a model fifty times slower (measured: 1.3 instead of 61 tok/s).
        patch.setenv("OMP_THREAD_LIMIT", "1")
        for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", env.MODEL_DIR):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def demo_model(_own_home: None) -> Path:
    """Path of the demo model, which is also found under the name `demo`.

    It is kept in the user's data directory, and fetched once, by the worker that comes first.
    """
    path = catalog.pull_demo(_USERS_ENVIRON)
    link = env.data_dir(os.environ) / "models" / path.name
    link.parent.mkdir(parents=True)
    link.symlink_to(path)
    return path


def _started_here() -> dict[int, str]:
    """Process id and command line of what runs: children of ours, and bearers of the mark."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            marked = _MARK.encode() in (folder / "environ").read_bytes().split(b"\0")
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # gone meanwhile, or another user's
        if pid != os.getpid() and (parent == os.getpid() or marked) and command:
            found[pid] = command
    return found


def _ends(pid: int, deadline: float) -> bool:
    """Wait for a process; a zombie has ended."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        waiting = max(0.0, deadline - time.monotonic())
        return bool(select.select([descriptor], [], [], waiting)[0])
    finally:
        os.close(descriptor)
