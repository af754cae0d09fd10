"""The program `rocllm`, which is `python -m rocllm`: what signals do, and then the command line."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Seconds until a signal that came at a bad moment is tried again.
_LATER = 0.01
# Where `threading.Condition` has its lock, or has it no more, and nobody would know of it.
_LOCKING = {"__enter__", "__exit__", "_release_save", "_acquire_restore"}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C.

    When a plain KeyboardInterrupt leaves `exec` of a text, with which data classes are made, Python
    ends by SIGINT later, whatever has become of it (run_eval_code_obj of CPython's pythonrun.c).
    """


def main() -> None:
    """Run the command line; `with` blocks end, and the server is stopped, however it is ended."""
    # A closed one would be the next file that is opened, which then would be written into.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  for the program's life
    # Before anything is imported, which takes a moment, too. What is ignored, as nohup and scripts
    # with `&` have it, stays so.
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    try:
        from rocllm.cli import app

        app(prog_name="rocllm")
    except KeyboardInterrupt:
        sys.exit(130)


def _end(number: int, frame: FrameType | None) -> None:
    if _is_bad_moment(frame):
        signal.signal(signal.SIGALRM, lambda _, later: _end(number, later))
        signal.setitimer(signal.ITIMER_REAL, _LATER)
        return
    if number == signal.SIGINT:
        raise Interrupted
    raise SystemExit(128 + number)


def _is_bad_moment(frame: FrameType | None) -> bool:
    """An exception would get lost, or leave a lock behind for which the end would wait."""
    while frame is not None:
        name, file = frame.f_code.co_name, frame.f_code.co_filename
        if name == "__del__" or os.path.basename(file) == "_weakrefset.py":
            return True
        if name in _LOCKING and file == threading.__file__:
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    main()
