"""Find a llama-server and ask it what it can do.

The order: the option, `ROCM_LLAMA_SERVER_PATH`, `llama-server` on `PATH`, the embedded one. A
candidate that the user named is the only candidate: if it does not work, that is an error and not a
reason to run something else.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rocllm import __version__, env
from rocllm.errors import BinaryNotFound, StartFailed
from rocllm.server.ask import ask
from rocllm.server.diagnose import cannot_run, explain_exit
from rocllm.server.help_text import parse_help

EMBEDDED = "embedded"
# Time for one question. A HIP build initialises the driver before it answers, which takes seconds.
ASK_TIMEOUT = 30.0

# Both forms are real: "version: 10360 (90e6a9131)" up to about b10470 (August 2026), and
# "version: 0.6.0-dev (build 0, commit unknown)" since.
_VERSION = re.compile(
    r"version: (?:(?P<build>\d+) \((?P<commit>[0-9a-f]+)\)"
    r"|(?P<semver>\d+\.\d+\.\d+\S*) \(build (?P<build2>\d+), commit (?P<commit2>\w+)\))"
)
# ggml's device list, common/arg.cpp of b11434: "  ROCm0: AMD Radeon RX 7800 XT (16368 MiB, …)".
_LISTED = re.compile(r"^\s+(\S+?):\s+(.*)\s+\((\d+) MiB, (\d+) MiB free\)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A llama-server that answered.

    kind: `native` or `embedded`. argv: how to call it. path: the file that decides what it can do.
    version: what it says of itself. flags: its flags, each with the argument it takes.
    found_by: why this one, in words.
    """

    kind: Literal["native", "embedded"]
    argv: tuple[str, ...]
    path: str
    version: str
    flags: Mapping[str, str]
    found_by: str

    def __repr__(self) -> str:
        return f"<ServerBinary {self.kind} {self.path} {self.version}>"


@dataclass(frozen=True, slots=True)
class ListedDevice:
    """A device as `--list-devices` names it; sizes in bytes."""

    name: str
    description: str
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Listing:
    """The answer to `--list-devices`, and the lines that were said beside it."""

    devices: tuple[ListedDevice, ...]
    said: tuple[str, ...]


def find_server(option: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> ServerBinary:
    """The llama-server to run.

    option: a path, `"embedded"`, or `None` to look for one. environ: the user's environment.

    Raises `BinaryNotFound` with everything that was tried, `StartFailed` when one was found and
    cannot run on this machine.

    >>> find_server("embedded", os.environ).kind  # doctest: +SKIP
    'embedded'
    """
    named = os.fspath(option) if option is not None else None
    if named == EMBEDDED:
        return _embedded("asked for", environ)
    if named is not None:
        return _native(named, "asked for", environ)
    from_environment = env.llama_server_path(environ)
    if from_environment is not None:
        return _native(from_environment, env.LLAMA_SERVER_PATH, environ)
    on_path = shutil.which("llama-server", path=env.search_path(environ))
    if on_path is not None:
        return _native(on_path, "found on PATH", environ)
    if embedded_installed():
        return _embedded("no llama-server on PATH", environ)
    raise BinaryNotFound(
        "there is no llama-server to run",
        why=f"looked at: {env.LLAMA_SERVER_PATH} (not set), PATH ({env.search_path(environ)}), "
        "the embedded engine (xllamacpp is not installed)",
        remedy="pip install 'rocllm[embedded]', or install llama.cpp and set "
        f"{env.LLAMA_SERVER_PATH} to its llama-server",
    )


def embedded_installed() -> bool:
    """The wheel with the embedded engine is installed."""
    return importlib.util.find_spec("xllamacpp") is not None


def list_devices(binary: ServerBinary, environ: Mapping[str, str]) -> Listing:
    """The GPUs that the binary sees in the environment `environ`; the CPU is not among them.

    Raises `StartFailed` when it cannot be asked.
    """
    answer = _ask((*binary.argv, "--list-devices"), environ)
    return Listing(
        tuple(
            ListedDevice(name, description, int(total) << 20, int(free) << 20)
            for name, description, total, free in _LISTED.findall(answer.stdout)
        ),
        tuple(answer.stderr.splitlines()),
    )


def parse_version(text: str) -> str:
    """The version in the output of `--version`: `b10360-90e6a9131`, `0.6.0-dev`; else `unknown`.

    >>> parse_version("version: 10360 (90e6a9131)")
    'b10360-90e6a9131'
    """
    match = _VERSION.search(text)
    if match is None:
        return "unknown"
    return match["semver"] or f"b{match['build']}-{match['commit']}"


def _native(name: str, found_by: str, environ: Mapping[str, str]) -> ServerBinary:
    # Not Path.expanduser and Path.exists: they raise for an unknown user, for a name that is too
    # long, and for one in a directory that may not be searched.
    path = Path(os.path.expanduser(name))
    if not os.path.exists(path):
        raise BinaryNotFound(
            f"there is no llama-server at {str(path)!r} ({found_by})",
            remedy="correct the path"
            + (f", or unset {found_by}" if found_by == env.LLAMA_SERVER_PATH else ""),
        )
    if path.is_dir():
        inside = path / "llama-server"
        raise BinaryNotFound(
            f"{str(path)!r} is a directory ({found_by})",
            why="a llama-server binary is expected",
            remedy=f"did you mean {str(inside)!r}?" if inside.exists() else "give the file itself",
        )
    if not os.access(path, os.X_OK):
        failed = BinaryNotFound(
            f"{str(path)!r} is not executable ({found_by})",
            remedy=f"chmod +x {path}",
        )
        failed.cause = "not_executable"
        raise failed
    path = path.absolute()
    return _probe("native", (str(path),), path, found_by, environ)


def _embedded(found_by: str, environ: Mapping[str, str]) -> ServerBinary:
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise BinaryNotFound(
            "the embedded engine was asked for and is not installed",
            remedy="pip install 'rocllm[embedded]'",
        )
    argv = (sys.executable, "-m", "rocllm.server.embedded")
    return _probe("embedded", argv, Path(spec.origin), found_by, environ)


def _probe(
    kind: Literal["native", "embedded"],
    argv: tuple[str, ...],
    path: Path,
    found_by: str,
    environ: Mapping[str, str],
) -> ServerBinary:
    """Ask for version and flags; the answer is kept, as a HIP build takes seconds to give it."""
    stat = path.stat()
    # The flags of the embedded engine are ours.
    ours = Path(__file__).with_name("embedded.py").stat().st_mtime_ns if kind == EMBEDDED else 0
    key = [__version__, *argv, str(path), stat.st_size, stat.st_mtime_ns, ours]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    kept = env.cache_dir(environ) / "servers" / f"{digest}.json"
    known = _read_kept(kept)
    if known is None:
        version_text = _ask((*argv, "--version"), environ)
        help_text = _ask((*argv, "--help"), environ)
        known = (
            parse_version(version_text.stderr + version_text.stdout),
            dict(parse_help(help_text.stdout)),
        )
        if "--model" not in known[1]:
            raise BinaryNotFound(
                f"{str(path)!r} is not a llama-server ({found_by})",
                why="its --help does not know the flag --model",
                remedy="give the path of llama.cpp's llama-server",
            )
        _keep(kept, known)
    version, flags = known
    return ServerBinary(kind, argv, str(path), version, flags, found_by)


def _read_kept(kept: Path) -> tuple[str, dict[str, str]] | None:
    try:
        version, flags = json.loads(kept.read_text())
    except (OSError, ValueError, TypeError):
        return None
    return (version, flags) if isinstance(version, str) and isinstance(flags, dict) else None


def _keep(kept: Path, known: tuple[str, dict[str, str]]) -> None:
    # Losing the cache costs time only, so a read-only or full home is no reason to fail.
    temporary = kept.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(known))
        temporary.replace(kept)


def _ask(argv: tuple[str, ...], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        answer = ask(argv, environ, ASK_TIMEOUT)
    except subprocess.TimeoutExpired as exc:
        raise StartFailed(
            f"{' '.join(argv)} did not answer within {ASK_TIMEOUT:.0f} s",
            why="a llama-server answers --help within seconds",
            remedy="run it by hand to see what it waits for",
            argv=argv,
        ) from exc
    except OSError as exc:
        raise cannot_run(argv, exc) from exc
    if answer.returncode != 0:
        output = tuple((answer.stdout + answer.stderr).splitlines())
        raise explain_exit(argv, answer.returncode, output)
    return answer
