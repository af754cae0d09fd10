"""Download one wheel through the user's own pip, which knows index, mirror, proxy, certificates."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rocllm.errors import DownloadFailed
from rocllm.units import format_seconds

# Longer than pip itself keeps silent with the timeouts that people give it (its default is 15 s).
STALL_SECONDS = 600.0
POLL_SECONDS = 0.1

# `python -m pip` that dies with its parent: prctl(PR_SET_PDEATHSIG, SIGKILL), <linux/prctl.h>.
_PIP = """\
import ctypes, os, runpy, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(os.environ.pop("ROCLLM_PARENT")):
    sys.exit(1)  # it has ended before it could be known
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


class Stall:
    """Whether a number of bytes has stayed the same for `STALL_SECONDS`."""

    def __init__(self) -> None:
        self._done = -1
        self._since = 0.0

    def reached(self, done: int) -> bool:
        """Take note of the number now."""
        if done != self._done:
            self._done, self._since = done, time.monotonic()
        return time.monotonic() - self._since > STALL_SECONDS


def tree_size(folder: Path) -> int:
    """Bytes of all files below `folder`, which another process may be changing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(root, name)).st_size
    return total


def download_wheel(
    requirement: str,
    folder: Path,
    environ: Mapping[str, str],
    report: Callable[[int], None],
) -> Path:
    """Download the wheel of `requirement`, without its dependencies, into the empty `folder`.

    environ: pip's environment. report: called several times a second with the bytes fetched.
    While pip works, and shortly before it is done, `folder` holds up to two copies of the wheel.

    Raises `DownloadFailed` with pip's own last words. No child is left, however this ends.
    """
    if importlib.util.find_spec("pip") is None:
        raise DownloadFailed(
            f"cannot fetch the package {requirement}",
            why=f"{sys.executable} has no pip",
            remedy=f"install it: {sys.executable} -m ensurepip (or: uv pip install pip)",
        )
    # No cache: the caller keeps what it needs, a second copy would only take space.
    command = [sys.executable, "-P", "-c", _PIP, "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--no-cache-dir", "--progress-bar=off", "--disable-pip-version-check"]
    command += [f"--dest={folder}", requirement]
    log = folder / "pip.log"
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches this process only, and nothing that pip starts can
        # ask for a password on the terminal. TMPDIR: where the unfinished download can be measured.
        process = subprocess.Popen(
            command,
            env={**environ, "TMPDIR": os.fspath(folder), "ROCLLM_PARENT": str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        status = _watch(process, folder, report)
    finally:
        # SIGKILL at once: all that pip would clean up is in `folder`.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    wheels = list(folder.glob("*.whl"))
    if status != 0 or len(wheels) != 1:
        raise _failure(requirement, status, log.read_text(errors="replace"))
    return wheels[0]


def _watch(
    process: subprocess.Popen[bytes], folder: Path, report: Callable[[int], None]
) -> int | None:
    """Wait for pip; returns its exit status, `None` when it stalled."""
    stall = Stall()
    while True:
        done = tree_size(folder)
        report(done)
        if stall.reached(done):
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=POLL_SECONDS)


def _failure(requirement: str, status: int | None, log: str) -> DownloadFailed:
    if status is None:
        ending = f"pip made no progress for {format_seconds(STALL_SECONDS)}"
    else:
        ending = f"pip ended with status {status}"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    # pip calls a lost connection a warning, and that nothing was found in the end the error.
    warnings = [line.partition(" after ")[2] for line in lines if line.startswith("WARNING: Retry")]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    return DownloadFailed(
        f"cannot fetch the package {requirement}",
        why="\n".join([f"{ending}:", *warnings[-1:], *errors[-3:]]),
        remedy="check the network and pip's configuration (pip config list), then try again",
    )
