"""Start a child and wait until it serves.

The wait is a stall timeout: it restarts whenever the child shows progress, so a large model on a
slow disk is not taken for a hang. Progress is new output, or bytes read and memory mapped in, which
the kernel counts for every engine alike.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rocllm.endpoint import Endpoint
from rocllm.errors import StartCancelled, StartTimeout
from rocllm.server.command import LaunchCommand
from rocllm.server.diagnose import NO_NAMES, Names, diagnose
from rocllm.server.evidence import look_after, look_before
from rocllm.server.health import check_health
from rocllm.server.process import KEPT_LINES, ServerProcess
from rocllm.server.report import LoadReport, LoadReportBuilder
from rocllm.units import format_seconds

# Between two questions for readiness goes by a hundredth of the time since the start: that is small
# beside any load, and no burden during a long one. In seconds, at least and at most.
POLL_SHARE = 0.01
POLL_INTERVALS = (0.001, 0.1)
# Seconds between two looks for signs of life, which cost more than a question.
LOOK_INTERVAL = 0.02
# Seconds that the log may lag behind the answer: llama.cpp writes it from a thread of its own, and
# it is read by one of ours. A report without its devices would be taken for a failed offload.
LOG_GRACE = 3.0
# Bytes that count as progress, read or in memory.
PROGRESS_STEP = 1 << 20


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far loading is: `loaded` of `total` bytes of the file are in memory, about."""

    loaded: int
    total: int


def start_server(
    command: LaunchCommand,
    endpoint: Endpoint,
    *,
    model_path: Path,
    start_timeout: float,
    names: Names = NO_NAMES,
    cancel: threading.Event | None = None,
    on_progress: Callable[[LoadProgress], None] | None = None,
    on_spawn: Callable[[int], None] | None = None,
    on_exit: Callable[[], None] | None = None,
    log: LoadReportBuilder | None = None,
    kept_lines: int = KEPT_LINES,
) -> tuple[ServerProcess, LoadReport]:
    """Start `command` and return when it answers on `endpoint`.

    start_timeout: seconds without a sign of progress. names: for messages. cancel: set it to give
    up. on_spawn: is told the process id. on_exit: is called when the process has ended. log: reads
    the output; `None`: as llama-server's. kept_lines: of it, for a diagnosis.

    Raises the error that says why it did not become ready; no process is left then.
    """
    builder = log or LoadReportBuilder()
    process = ServerProcess(command, builder.feed, on_exit, kept_lines=kept_lines)
    try:
        process.start()
        if on_spawn is not None and process.pid is not None:
            on_spawn(process.pid)
        report = None if on_progress is None else partial(_report, builder, model_path, on_progress)
        _wait_ready(process, endpoint, model_path, start_timeout, names, cancel, report)
        _wait_logged(process, builder)
    except BaseException:
        # Ctrl-C included: whoever leaves here leaves no process behind.
        process.stop(term_grace=1.0, kill_grace=0.5)
        raise
    return process, builder.report()


def _wait_ready(
    process: ServerProcess,
    endpoint: Endpoint,
    model_path: Path,
    start_timeout: float,
    names: Names,
    cancel: threading.Event | None,
    report: Callable[[int], None] | None,
) -> None:
    before = look_before(process.pid or 0)
    seen = (0, 0, 0)
    started = looked = progressed = time.monotonic()
    while True:
        exit_status = process.wait(_pause(time.monotonic() - started))
        if exit_status is not None:
            raise diagnose(
                process.command.argv,
                exit_status,
                process.output,
                ready=False,
                model=str(model_path),
                names=names,
                evidence=look_after(before),
            )
        if check_health(endpoint, group=process.pid) == "ready":
            return
        if cancel is not None and cancel.is_set():
            raise StartCancelled(f"loading {str(model_path)!r} was cancelled")
        now = time.monotonic()
        if now - looked < LOOK_INTERVAL:
            continue
        looked = now
        signs = _signs_of_life(process)
        if signs != seen:
            seen, progressed = signs, now
            if report is not None:
                report(signs[-1])
        elif now - progressed > start_timeout:
            raise StartTimeout(
                f"{str(model_path)!r} did not become ready",
                why=f"{names.engine} showed no progress for {format_seconds(start_timeout)}: no "
                "output, nothing read, no memory filled",
                remedy="see its last output in `.output`; a slow disk wants a larger start_timeout",
                argv=process.command.argv,
                output=process.output,
            )


def _pause(passed: float) -> float:
    """Seconds until the next question, so many after the start."""
    least, most = POLL_INTERVALS
    return min(max(passed * POLL_SHARE, least), most)


def _report(
    builder: LoadReportBuilder,
    model_path: Path,
    on_progress: Callable[[LoadProgress], None],
    memory: int,
) -> None:
    """Tell how far loading is: as the log says, or by the `memory` that is filled."""
    total = _file_size(model_path)
    told = builder.loaded
    on_progress(LoadProgress(min(memory, total) if told is None else round(told * total), total))


def _file_size(model_path: Path) -> int:
    """Bytes of the model; 0 where it is gone, as the server itself will say."""
    with contextlib.suppress(OSError):
        if not model_path.is_dir():
            return model_path.stat().st_size
        return sum(path.stat().st_size for path in model_path.glob("*.safetensors"))
    return 0


def _wait_logged(process: ServerProcess, builder: LoadReportBuilder) -> None:
    """Wait for the last line of interest, which is printed before the server is ready."""
    deadline = time.monotonic() + LOG_GRACE
    while builder.slots is None and time.monotonic() < deadline:
        process.wait(POLL_INTERVALS[0])


def _signs_of_life(process: ServerProcess) -> tuple[int, int, int]:
    """Numbers that change while the child works; the last is its peak of memory, in bytes.

    In steps, and the peak instead of the present, because our own questions for its health make a
    hanging child read and allocate a little, too.
    """
    line = hash(process.output[-1:])
    read = peak = 0
    for pid in family(process.pid):
        with contextlib.suppress(OSError, ValueError, IndexError):  # gone, or not ours to look at
            io = Path(f"/proc/{pid}/io").read_text()
            memory = Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2]
            peak += int(memory.split()[0]) * 1024
            counts = [x.split()[1] for x in io.splitlines() if x.startswith(("rchar", "read"))]
            read += sum(map(int, counts))
    return line, read // PROGRESS_STEP, peak - peak % PROGRESS_STEP


def family(pid: int | None) -> list[int]:
    """The child, and the processes that do its work: those that it started, and theirs."""
    found = [] if pid is None else [pid]
    for parent in found:  # it grows meanwhile
        with contextlib.suppress(OSError):
            for children in Path(f"/proc/{parent}/task").glob("*/children"):
                found += map(int, children.read_text().split())
    return found
