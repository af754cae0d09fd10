"""What a server that ended may have said, and what that means: the data of `diagnose`.

The texts are llama.cpp's (b11434, b11549), ROCm's, the dynamic loader's, the kernel's and those of
setpriv. Where each was recorded stands beside it in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping

from rocllm.server._rule import Rule
from rocllm.server._rules_gpu import GPU, HINTS
from rocllm.server._rules_model import FILE, KILLED_BY_OOM, LOAD_FAILED, MEMORY
from rocllm.server._rules_system import FLAGS, FROM_OUTSIDE, SIGNALS, SYSTEM

__all__ = ["FROM_OUTSIDE", "GROUPS", "KILLED_BY_OOM", "RULES", "SIGNALS", "Rule"]

# In this order; the first that matches a line wins. What says why stands before what says that.
RULES: tuple[Rule, ...] = (*FILE, *MEMORY, *GPU, *SYSTEM, *HINTS, *FLAGS, LOAD_FAILED)

# Every cause, as a person would look for it.
GROUPS: Mapping[str, tuple[Rule, ...]] = {
    "The model file": (*FILE, LOAD_FAILED),
    "Memory": (*MEMORY, KILLED_BY_OOM),
    "The GPU": GPU,
    "A GPU that is not used": HINTS,
    "The system and the program": (*SYSTEM, *FLAGS),
    "Signals, where nothing else tells the cause": tuple(SIGNALS.values()),
}
