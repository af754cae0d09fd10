"""Ask a program a question: it gets what it needs of the environment, and some time to answer."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping

from rocllm.server._spawn import Leash
from rocllm.server.environment import scrub_environment

# Seconds for the kernel to take away a killed program.
REAP_TIMEOUT = 10.0


def ask(
    argv: tuple[str, ...], environ: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, at most `timeout` seconds; it does not outlive this one.

    environ: the user's environment.

    Raises `OSError` when it cannot be run, `subprocess.TimeoutExpired`; no process is left then
    that the kernel can end.
    """
    with Leash() as leash:
        process = subprocess.Popen(
            argv,
            env=scrub_environment(environ, os.devnull),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(leash.fd,),
            text=True,
            errors="replace",
            process_group=0,
        )
        try:
            leash.tie(process.pid)
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            # The group, because a wrapper script would leave the real program behind. Nobody may
            # be left of it when Ctrl-C comes at the very end.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            # One in a driver call that hangs cannot be killed, and is not waited for.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(REAP_TIMEOUT)
            raise
        finally:
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
    return subprocess.CompletedProcess(argv, process.returncode, stdout, stderr)
