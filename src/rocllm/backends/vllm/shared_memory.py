"""The shared memory of vLLM's processes, which nobody removes when they are killed.

It lies in /dev/shm, under names that vLLM makes up, and what was written there stays in memory.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from rocllm.server.start import family

_FOLDER = "/dev/shm/"
# Seconds; a look takes some 20 ms.
_INTERVAL = 2.0


def find_shared_memory(pid: int | None) -> frozenset[Path]:
    """The files in /dev/shm that a process and its descendants have mapped."""
    found = set()
    for one in family(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{one}/maps").read_text(errors="replace").splitlines():
                # The path is the sixth field, and may have spaces (proc(5)).
                path = line.split(maxsplit=5)[-1]
                if path.startswith(_FOLDER) and not path.endswith(" (deleted)"):
                    found.add(Path(path))
    return frozenset(found)


class SharedMemoryWatch:
    """Keeps in mind what a server shares while it loads: when it is killed, nobody can tell."""

    def __init__(self, pid: int) -> None:
        self.found: frozenset[Path] = frozenset()
        self._pid = pid
        self._seen: list[int] = []
        self._looked = -_INTERVAL

    def look(self) -> None:
        """Note what its processes share now, too."""
        self.found |= find_shared_memory(self._pid)

    def glance(self) -> None:
        """Look if a process has come since, which is given what it shares, or some time passed."""
        seen, now = family(self._pid), time.monotonic()
        if seen != self._seen or now - self._looked >= _INTERVAL:
            self._seen, self._looked = seen, now
            self.look()


def remove_shared_memory(paths: Iterable[Path]) -> None:
    """Remove what is left of it, after the processes have ended; only files of this user."""
    for path in paths:
        with contextlib.suppress(OSError):
            if path.lstat().st_uid == os.getuid():
                path.unlink()
