"""What processes share, and who removes it when they are killed."""

from __future__ import annotations

import subprocess
import sys

from rocllm.backends.vllm.shared_memory import (
    SharedMemoryWatch,
    find_shared_memory,
    remove_shared_memory,
)

# A parent whose child shares something, as vLLM's engine does; nothing of it ends by itself.
_PROGRAM = """
import multiprocessing, time
from multiprocessing import shared_memory

def share(connection):
    memory = shared_memory.SharedMemory(create=True, size=4096)
    connection.send(memory.name)
    time.sleep(600)

if __name__ == "__main__":
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("fork")
    context.Process(target=share, args=(theirs,)).start()
    print(ours.recv(), flush=True)
    time.sleep(600)
"""


def test_what_was_seen_while_it_loaded_is_removed() -> None:
    """Of a process that is killed together with those that would have removed it."""
    program = subprocess.Popen(
        (sys.executable, "-c", _PROGRAM),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert program.stdout is not None
        name = program.stdout.readline().strip()
        watch = SharedMemoryWatch(program.pid)
        watch.glance()
        assert name in {path.name for path in watch.found}
        assert find_shared_memory(program.pid) <= watch.found
    finally:
        subprocess.run(("kill", "-KILL", "--", f"-{program.pid}"), check=True)
        program.communicate(timeout=60)
    (path,) = [path for path in watch.found if path.name == name]
    assert path.exists()
    remove_shared_memory(watch.found)
    assert not path.exists()
