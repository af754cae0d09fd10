"""What a child is told of the user's environment: what it needs, by name. Pure.

A list of what may pass, and not of what may not: nobody knows all the names under which secrets are
kept. What llama-server itself would read, `LLAMA_*` and a configuration file, would change it
silently, and is never passed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

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
# A diagnosis reads what is said at the end. In the user's language it would not understand it; and
# a llama.cpp that gives up starts gdb for a backtrace, which takes seconds, and whose hundreds of
# lines push the reason out of the last ones that are kept (ggml_print_backtrace, ggml/src/ggml.c).
_PLAIN_WORDS = {"LC_MESSAGES": "C", "GGML_NO_BACKTRACE": "1"}
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
    return {**kept, **_PLAIN_WORDS, "XDG_CONFIG_HOME": config_home}
