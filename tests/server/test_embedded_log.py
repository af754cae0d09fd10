"""The embedded server's log is whole when the process ends: it tells why."""

from __future__ import annotations

import contextlib
import subprocess
import sys

SCRIPT = """
import ctypes, os, xllamacpp
from rocllm.server import embedded
library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
main = library._Z15common_log_mainv
add = library._Z14common_log_addP10common_log14ggml_log_levelPKcz
main.restype, add.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
for number in range(150):
    add(main(), 4, b"line %d %s\\n" % (number, b"x" * 1000))
print("queued", flush=True)
embedded._write_log(xllamacpp)
os._exit(0)
"""


def test_the_log_is_written_before_the_end() -> None:
    """llama.cpp writes it from a thread of its own, which nothing waits for at the end."""
    with subprocess.Popen(
        (sys.executable, "-c", SCRIPT), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        # Nobody reads the log so far: a pipe holds 64 kB, so most of it still waits.
        assert process.stdout.readline() == "queued\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.3)
        _, log = process.communicate(timeout=20)
    assert log.splitlines()[-1].startswith("line 149 ")
