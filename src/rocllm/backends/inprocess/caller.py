"""Load models into the calling process: nothing is between them and the program, and no net."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from rocllm.backends.base import LoadRequest
from rocllm.backends.decide import Decision
from rocllm.backends.inprocess.channels import CallerChannel
from rocllm.backends.launcher import LlamaServerLauncher
from rocllm.backends.recovery import Situation
from rocllm.endpoint import Endpoint
from rocllm.errors import RocllmError, ServerCrashed, StartCancelled, StartFailed, StreamClosed
from rocllm.server import LaunchCommand, LoadReport, RunDir, ServerBinary, diagnose, embedded
from rocllm.server.engine import Engine

# More bytes than a `struct sigaction` has (152 with glibc on x86-64).
_SIGACTION = 256
# Of llama.cpp's log in this program's stderr: errors.
_VERBOSITY = "1"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_log = logging.getLogger(__name__)


class LoadedHere:
    """A model in this process."""

    has_ended = False

    def __init__(self, channel: CallerChannel, interrupt: Callable[[], None]) -> None:
        self._channel = channel
        self._interrupt = interrupt
        self._stopped = False

    def crash(self) -> RocllmError:
        """Its crash would be that of the program."""
        return ServerCrashed("the model in this process has crashed")

    def explain(self, error: RocllmError) -> RocllmError:
        """A connection breaks when the model was unloaded."""
        if not self._stopped:
            return error
        why = "the model was stopped meanwhile"
        return StreamClosed(error.what, why=why, remedy="make the call again")

    def stop(self) -> None:
        """Unload it; its memory is free when nothing is under way in it any more."""
        self._stopped = True
        self._interrupt()
        if not self._channel.close():
            _log.error("a request to the model in this process does not end; its memory is kept")

    def kill(self) -> None:
        """There is nothing that could be killed."""
        self._stopped = True
        self._interrupt()


class CallerLauncher(LlamaServerLauncher):
    """Decides how a model is run, as for a llama-server, and loads it into this process."""

    backend = "inprocess"

    def __init__(self, request: LoadRequest, interrupt: Callable[[], None]) -> None:
        super().__init__(request, interrupt)
        self._channel = CallerChannel()

    @property
    def endpoint(self) -> CallerChannel:
        """Where the model is reached; it is the same for all that follow each other."""
        return self._channel

    def _situation(self) -> Situation:
        return replace(super()._situation(), vulkan_server=None)

    def _start(
        self, decision: Decision, cancel: threading.Event, _on_exit: Callable[[], None]
    ) -> LoadedHere:
        if cancel.is_set():  # it cannot be cancelled later
            raise StartCancelled(f"loading {str(self._request.path)!r} was cancelled")
        check_masks(decision.choice.environment if decision.device_names else {})
        run_dir = self._run_dir = self._run_dir or RunDir.create(self._request.environ)
        endpoint = Endpoint.unix(run_dir.socket_path)
        command = self._command(decision, endpoint, run_dir)
        self._channel.use(self._load(decision, command, run_dir))
        report = LoadReport()  # what there was to read of the log went nowhere
        self._info = self._describe(decision, None, report, self._notes(decision, report))
        return LoadedHere(self._channel, self._interrupt)

    def _load(self, decision: Decision, command: LaunchCommand, run_dir: RunDir) -> Engine:
        flags = list(command.argv[len(decision.binary.argv) :])
        flags[flags.index("--log-verbosity") + 1] = _VERBOSITY
        log = run_dir.path / "log"
        run_dir.socket_path.unlink(missing_ok=True)
        embedded.log_to(str(log))
        try:
            with _own_signals():
                server = embedded.load(flags)
        except (RuntimeError, ValueError) as exc:
            said = log.read_text(errors="replace") if log.exists() else ""
            lines = (*said.splitlines(), f"error: {exc}")
            path = str(self._request.path)
            raise diagnose(
                command.argv, 1, lines, ready=False, model=path, names=decision.names
            ) from exc
        return Engine(server, str(run_dir.socket_path), decision.plan.settings.parallel)

    def _engine(self, binary: ServerBinary) -> str:
        return f"llama.cpp in the calling process, xllamacpp {binary.version}"


def check_masks(masks: Mapping[str, str | None]) -> None:
    """Raise `StartFailed` unless this process was started with them: ROCm reads them once."""
    if all(os.environ.get(name) == value for name, value in masks.items()):
        return
    unset = [f"-u {name}" for name, value in masks.items() if value is None]
    wanted = unset + [f"{name}={value}" for name, value in masks.items() if value is not None]
    raise StartFailed(
        "this process sees other GPUs than the chosen one",
        why="which GPUs a process sees is decided when it begins to use them, and rocllm does not "
        "change the environment of the program that it is part of",
        remedy=f"start the program with `env {' '.join(wanted)}`, or leave worker=False away",
    )


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the program's handlers: the engine sets its own for SIGINT and SIGTERM.

    Not with `signal.signal`, which only the main thread may call.
    """
    libc = ctypes.CDLL(None)
    kept = {number: ctypes.create_string_buffer(_SIGACTION) for number in _SIGNALS}
    for number, action in kept.items():
        libc.sigaction(number, None, action)
    try:
        yield
    finally:
        for number, action in kept.items():
            libc.sigaction(number, action, None)
