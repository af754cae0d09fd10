"""A full disk: a small file system of our own, in a mount namespace, filled to its last byte."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.engine import engine_after, load, tiny

import rocllm
from rocllm.errors import StartFailed

pytestmark = pytest.mark.timeout(60)

# Mounts a full disk at $1, and runs the rest. Root of a user namespace may do that.
MOUNT = """
mount -t tmpfs -o size=16k,mode=700 rocllm-test "$1" || exit 77
head -c 100000 /dev/zero > "$1/filled" 2>/dev/null
shift; exec "$@"
"""
LOAD = """
import sys, rocllm
try:
    with rocllm.load_model(sys.argv[1], threads=1, llama_server="embedded") as model:
        print("answered", model.generate("a", max_tokens=2).read().usage.completion_tokens)
except rocllm.RocllmError as error:
    print(type(error).__name__, error.cause, error)
"""


def on_a_full_disk(disk: Path, *command: str, **environ: str) -> str:
    """What the command prints, with a full disk mounted at `disk`."""
    unshare = ("unshare", "--user", "--map-root-user", "--mount", "/bin/sh", "-c", MOUNT, "sh")
    done = subprocess.run(
        (*unshare, str(disk), *command),
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    # 1 is unshare's own: not permitted, in some containers and distributions.
    if done.returncode in (1, 77):
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """Where the disk is mounted; short, for the sake of sockets."""
    path = tmp_path / "disk"
    path.mkdir()
    return path


def test_everything_that_is_kept_at_home(tmp_path: Path, disk: Path) -> None:
    """Caches cannot be written, nor the first of the places for sockets: it does not matter."""
    model = tiny(tmp_path / "model.gguf")
    said = on_a_full_disk(
        disk,
        *(sys.executable, "-c", LOAD, str(model)),
        **dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "TMPDIR"), str(disk)),
    )
    assert said == "answered 2\n"


@pytest.mark.skipif(
    any(Path(path).is_relative_to("/tmp") for path in (sys.executable, rocllm.__file__)),
    reason="rocllm is below /tmp, which is covered by the full disk",
)
def test_no_place_for_a_socket(demo_model: Path) -> None:
    """Every place is full, which is said with their names."""
    said = on_a_full_disk(
        Path("/tmp"),
        *(sys.executable, "-c", LOAD, str(demo_model)),
        **dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR", "TMPDIR"), "/tmp"),
    )
    assert said.startswith("StartFailed disk_full no directory for the server's socket")
    assert "/tmp: No space left on device" in said


def test_the_server_cannot_make_its_socket(tmp_path: Path) -> None:
    """The directory went away between our look and its start."""
    script = 'for last; do case "$last" in *.sock) rm -r "${last%/*}";; esac; done'
    with pytest.raises(StartFailed) as caught:
        load(
            tiny(tmp_path / "model.gguf"),
            llama_server=engine_after(script, tmp_path / "llama-server"),
        )
    assert caught.value.cause == "socket_failed"
