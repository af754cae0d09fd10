"""Programs that are asked a question."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path

import pytest

from rocllm.server import ask as module

DEADLINE = 20.0


@pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
def test_one_that_cannot_be_killed_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver call that hangs ends neither in time nor by SIGKILL."""
    number = tmp_path / "pid"
    monkeypatch.setattr(module, "REAP_TIMEOUT", 0.1)
    argv = ("/bin/sh", "-c", f"echo $$ >{number}; exec sleep {DEADLINE}")
    began = time.monotonic()
    with monkeypatch.context() as patched:
        patched.setattr(os, "killpg", lambda *_: None)
        with pytest.raises(subprocess.TimeoutExpired):
            module.ask(argv, os.environ, 0.5)
    assert time.monotonic() - began < DEADLINE / 2
    with contextlib.suppress(ChildProcessError):  # `subprocess` may have reaped it meanwhile
        os.waitpid(int(number.read_text()), 0)  # the leash has ended this one
