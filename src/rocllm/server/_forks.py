"""Files that a forked copy of this program must not keep open.

What a program holds for its children and directories (the leash, the lock) says that it lives. A
copy made with `os.fork`, as `multiprocessing` makes them, would go on saying so after its death.
"""

from __future__ import annotations

import io
import os
import weakref

_files: weakref.WeakSet[io.FileIO] = weakref.WeakSet()


def not_for_forks(file: io.FileIO) -> io.FileIO:
    """`file`, which from now on is closed in every forked copy of this program."""
    _files.add(file)
    return file


def _close_all() -> None:
    for file in list(_files):
        file.close()


os.register_at_fork(after_in_child=_close_all)
