"""The embedded server's log is whole when the process ends: it tells why."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import ctypes, os, xllamacpp
from rocllm.server import embedded
library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
main = library._Z15common_log_mainv
add = library._Z14common_log_addP10common_log14ggml_log_levelPKcz
main.restype, add.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
for number in range(20000):
    add(main(), 4, b"line %d\\n" % number)
embedded._write_log(xllamacpp)
os._exit(0)
"""


def test_the_log_is_written_before_the_end() -> None:
    """llama.cpp writes it from a thread of its own, which nothing waits for at the end."""
    ended = subprocess.run(
        (sys.executable, "-c", SCRIPT), capture_output=True, text=True, check=True, timeout=60
    )
    lines = (ended.stdout + ended.stderr).splitlines()
    assert [line for line in lines if line.startswith("line ")][-1] == "line 19999"
