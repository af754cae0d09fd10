"""The command line and environment of a vLLM server, built from values only. Pure."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from rocllm.backends.vllm.decide import Decision
from rocllm.backends.vllm.settings import flags
from rocllm.endpoint import MAX_SOCKET_PATH, Endpoint
from rocllm.env import cache_dir
from rocllm.server import LaunchCommand
from rocllm.server.environment import scrub_environment

_MODULE = "vllm.entrypoints.openai.api_server"
# What vLLM and PyTorch need of the user's environment beside what every child gets.
_PREFIXES = ("VLLM_", "TORCH", "PYTORCH_", "TRITON_", "MIOPEN_", "AITER_", "HF_HOME")
# Ours to set: how it logs is read, and its key is made here.
_NOT = re.compile(r"VLLM_(?:LOGGING_|CONFIGURE_LOGGING|API_KEY)|SECRET|PASSW|CREDENTIAL|API_?KEY")
# What vLLM adds to the directory for its sockets: a slash and a UUID.
_SOCKET_NAME = 37


def build_command(decision: Decision, endpoint: Endpoint, run_dir: Path) -> LaunchCommand:
    """The command for one model on one endpoint.

    run_dir: a private directory; what vLLM leaves lying about is put there.
    """
    installation, info = decision.installation, decision.info
    where = (
        ("--host", str(endpoint.host), "--port", str(endpoint.port))
        if endpoint.socket_path is None
        else ("--uds", endpoint.socket_path)
    )
    argv = (
        *(installation.python, "-m", _MODULE),
        *("--model", str(decision.directory)),
        *("--served-model-name", info.name or decision.directory.name),
        *where,
        *flags(decision.settings, decision.options),
        # Classifying asks for any tokens, and a usage without what was cached would be wrong.
        *("--max-logprobs", "-1", "--enable-prompt-tokens-details"),
        "--disable-uvicorn-access-log",
        *installation.extra_args,
    )
    return LaunchCommand(argv, _environment(decision, endpoint, run_dir))


def _environment(decision: Decision, endpoint: Endpoint, run_dir: Path) -> Mapping[str, str]:
    environ = decision.environ
    made = {
        **scrub_environment(environ, str(run_dir / "config")),
        "VLLM_LOGGING_COLOR": "0",
        "NO_COLOR": "1",
        # It tells its makers what it runs on, unless told not to.
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        # The model is here. Whatever else it would fetch, nobody has asked for.
        "HF_HUB_OFFLINE": "1",
        # A directory `vllm` where it is started must not be taken for the package.
        "PYTHONSAFEPATH": "1",
    }
    if len(os.fsencode(run_dir)) + _SOCKET_NAME <= MAX_SOCKET_PATH:
        made["TMPDIR"] = str(run_dir)
    # What PyTorch compiles is kept, and not compiled anew at every start, for twenty seconds.
    made["TORCHINDUCTOR_CACHE_DIR"] = str(cache_dir(environ) / "torchinductor")
    if decision.settings.n_gpus == 0:
        made["VLLM_CPU_KVCACHE_SPACE"] = str(decision.settings.cpu_cache >> 30)
    if decision.options.threads is not None:
        made["OMP_NUM_THREADS"] = str(decision.options.threads)
        made["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    made |= {
        name: value
        for name, value in environ.items()
        if name.startswith(_PREFIXES) and not _NOT.search(name)
    }
    if endpoint.api_key is not None:
        made["VLLM_API_KEY"] = endpoint.api_key
    return made
