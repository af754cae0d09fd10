"""A model in an engine's process that is looked after: what all such backends share."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Generic, Protocol, Self, TypeVar

from rocllm.backends.base import LoadedInfo, LoadRequest
from rocllm.client import AsyncClient, Client, Explain
from rocllm.errors import RocllmError, RocllmWarning
from rocllm.server import State, Supervisor
from rocllm.server.supervisor import Child, Launcher


class ServingChild(Child, Protocol):
    """A child that clients talk to."""

    def explain(self, error: RocllmError) -> RocllmError:
        """What a broken connection, or an answer that does not come, means."""


class ModelLauncher(Launcher[ServingChild], Protocol):
    """How children that serve one model are started."""

    @property
    def info(self) -> LoadedInfo:
        """What the last child runs, where and how."""

    def remove(self) -> None:
        """Leave nothing behind, after the last child has ended."""


L = TypeVar("L", bound=ModelLauncher)
_SomeClient = TypeVar("_SomeClient", bound=Client | AsyncClient)


class SupervisedModel(Generic[L]):
    """A model in a child process that is looked after."""

    def __init__(self, request: LoadRequest, launcher: L) -> None:
        self._clients: weakref.WeakSet[Client | AsyncClient] = weakref.WeakSet()
        self._timeout = request.options.timeout
        self._launcher = launcher
        self._supervisor: Supervisor[ServingChild] = Supervisor(
            launcher, request.options.restart, on_transition=request.on_transition
        )
        self._keeper = Keeper(self._supervisor)

    def load(self, cancel: threading.Event | None) -> Self:
        """Have a child running, and say what is not as it was chosen. Raises why there is none."""
        try:
            self._supervisor.ensure_ready(cancel)
            for note in (*self.info.warnings, *self.info.recovered):
                warnings.warn(note, RocllmWarning, stacklevel=3)
        except BaseException:  # a warning is an error where the user says so
            self.close()
            raise
        return self

    @property
    def info(self) -> LoadedInfo:
        """What was loaded, where and how; of the last child, when there were several."""
        return self._launcher.info

    @property
    def state(self) -> State:
        """Where the child stands."""
        return self._supervisor.state

    def stop(self) -> None:
        """Stop the child and give its memory back; the next request starts another."""
        self._supervisor.stop()

    def close(self) -> None:
        """Stop the child and remove its directory."""
        try:
            self._supervisor.close()
        finally:  # after a second Ctrl-C, too
            self._launcher.remove()

    def _known(self, client: _SomeClient) -> _SomeClient:
        """`client`, which is interrupted when the child is stopped."""
        self._clients.add(client)
        return client

    def _interrupt(self) -> None:
        for client in list(self._clients):
            client.interrupt()


class Keeper:
    """What a client asks of the supervisor."""

    def __init__(self, supervisor: Supervisor[ServingChild]) -> None:
        self._supervisor = supervisor

    def ask(self) -> Callable[[], Explain | None]:
        """Ask for a child, and go on; what it returns gives what explains that one's errors."""
        look = self._supervisor.ask()

        def explain() -> Explain | None:
            child = look()
            return None if child is None else child.explain

        return explain

    def wait(self) -> Explain:
        """The same, for who can wait."""
        return self._supervisor.ensure_ready().explain
