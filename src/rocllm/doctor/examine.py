"""Look at a machine and run all checks, but for the proof that a model answers."""

from __future__ import annotations

import os
from collections.abc import Mapping

from rocllm.devices import Reader
from rocllm.devices._sysfs import read_file
from rocllm.doctor.checks import run_checks
from rocllm.doctor.gather import gather
from rocllm.doctor.types import Finding, User


def examine(
    root: str | os.PathLike[str] = "/",
    environ: Mapping[str, str] | None = None,
    *,
    read: Reader = read_file,
    user: User | None = None,
) -> tuple[Finding, ...]:
    """What every check says of a machine; a check that cannot be made is `unknown`.

    root: `/`, or a folder that holds another machine's `/sys`, `/dev`, `/proc`, `/etc` and `/opt`,
        as far as they are known. environ: masks and paths; `None`: this process's environment.
    read: reads a file, given its whole path; raises `OSError` as `open` and `read` do.
    user: who would use the GPU; `None`: who runs this process. With a tree its device files are
        judged only when a user is given, by their mode and group.

    On this machine the llama-server is asked for its version and for the GPUs that it sees. Raises
    nothing for the machine's sake.

    >>> {found.state for found in examine("/nowhere", {}) if found.id == "llama-server"}
    {'unknown'}
    """
    environ = os.environ if environ is None else environ
    return run_checks(gather(root, environ, read=read, user=user))
