"""What a child is told of the user's environment: what it needs, by name. Pure.

A list of what may pass, and not of what may not: nobody knows all the names under which secrets are
kept. What llama-server itself would read, `LLAMA_*` and a configuration file, would change it
silently, and is never passed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

_NAMES = frozenset(
    {
        # The ordinary: where programs, home and temporary files are, and how to speak.
        *("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "TZ", "LANG"),
        # Where graphics drivers keep compiled shaders, and where the Vulkan loader finds drivers.
        *("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_DATA_DIRS", "XDG_CONFIG_DIRS"),
        # The C library: allocator, locale archives of Nix and Guix.
        *("GLIBC_TUNABLES", "LOCALE_ARCHIVE", "LOCPATH", "GUIX_LOCPATH"),
    }
)
_PREFIXES = (
    # The dynamic loader, locales, malloc, Nix's loader.
    *("LC_", "LD_", "MALLOC_", "NIX_LD"),
    # ROCm: driver, HIP run time, BLAS libraries and their kernels, communication between GPUs.
    *("ROCM_", "ROCR_", "HSA_", "HIP_", "HSAKMT_", "AMD_", "AMDGPU_", "GPU_"),
    *("ROCBLAS_", "HIPBLAS_", "HIPBLASLT_", "TENSILE_", "RCCL_", "NCCL_"),
    # Vulkan and OpenCL: loader, drivers.
    *("VK_", "RADV_", "MESA_", "AMDVLK_", "ACO_", "OCL_ICD_"),
    # ggml and the threads of the CPU.
    *("GGML_", "OMP_", "GOMP_", "KMP_", "OPENBLAS_", "BLIS_", "MKL_"),
    # The embedded engine is a Python program. ROCLLM_ is for wrapper scripts of the user's.
    *("PYTHON", "ROCLLM_"),
)
# A diagnosis reads what is said at the end: not in the user's language, and not a backtrace.
_MESSAGES = {"LC_MESSAGES": "C"}
_NO_DEBUGGER = Path(__file__).with_name("_no_debugger")
_SECRET = re.compile("TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY", re.IGNORECASE)


def scrub_environment(environ: Mapping[str, str], config_home: str) -> dict[str, str]:
    """What of `environ` a llama-server needs.

    config_home: a path with no configuration in it.

    >>> "HF_TOKEN" in scrub_environment({"PATH": "/bin", "HF_TOKEN": "x"}, "/dev/null")
    False
    """
    kept = {
        name: value
        for name, value in environ.items()
        if name in _NAMES or (name.startswith(_PREFIXES) and not _SECRET.search(name))
    }
    everything = kept.pop("LC_ALL", None)
    if everything:
        kept["LC_CTYPE"] = everything
    path = f"{_NO_DEBUGGER}:{kept.get('PATH', os.defpath)}"
    return {**kept, **_MESSAGES, "PATH": path, "XDG_CONFIG_HOME": config_home}
