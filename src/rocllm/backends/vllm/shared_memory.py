"""The shared memory of vLLM's processes, which nobody removes when they are killed.

It lies in /dev/shm, under names that vLLM makes up, and what was written there stays in memory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from rocllm.server.start import family

_FOLDER = "/dev/shm/"


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


def remove_shared_memory(paths: Iterable[Path]) -> None:
    """Remove what is left of it, after the processes have ended; only files of this user."""
    for path in paths:
        with contextlib.suppress(OSError):
            if path.lstat().st_uid == os.getuid():
                path.unlink()
