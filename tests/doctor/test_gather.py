"""What the engine is asked."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from rocllm.devices import choose_devices, discover_devices
from rocllm.doctor.gather import _ask_engine
from rocllm.testing.fake_sysfs import RX_7700_XT, write_tree

# A build that finds no GPU, and says why only when it is told to talk.
ENGINE = """#!{python} -ISs
import json, os, sys
if "--help" in sys.argv:
    print("-m,    --model FNAME    model path")
if "HSAKMT_DEBUG_LEVEL" in os.environ:
    json.dump(dict(os.environ), open({log!r}, "w"))
    print("x", os.getpid(), "\\nFailed to open /dev/kfd\\n", file=sys.stderr, flush=True)
"""


def engine(folder: Path) -> tuple[dict[str, str], Path]:
    """The environment of a user who has it, and where it notes what it was told."""
    server, log = folder / "llama-server", folder / "log"
    server.write_text(ENGINE.format(python=sys.executable, log=str(log)))
    server.chmod(0o755)
    named = {"ROCM_LLAMA_SERVER_PATH": str(server), "HF_TOKEN": "hf_1"}
    return {**os.environ, **named}, log


def test_why_it_sees_no_gpu(tmp_path: Path) -> None:
    """It is asked once more, to say more; it is told the mask, and none of the user's secrets."""
    environ, log = engine(tmp_path)
    choice = choose_devices(discover_devices(write_tree(tmp_path / "root", [RX_7700_XT]), environ))
    assert _ask_engine(choice, environ).words == ("Failed to open /dev/kfd",)
    told = json.loads(log.read_text())
    assert told["ROCR_VISIBLE_DEVICES"]
    assert "HF_TOKEN" not in told
