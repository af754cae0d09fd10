"""Connections to an engine that does not listen: in a worker process, or in this one."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time

from rocllm.client import Channel
from rocllm.server.engine import Engine

# Seconds in which a worker that lives takes a connection.
_CONNECT_TIMEOUT = 5.0
# Seconds for what is under way to end: one batch of a prompt, after which it is told to stop.
_END_TIMEOUT = 60.0


class WorkerChannel(Channel):
    """To the worker that runs at the time; one follows the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control: socket.socket | None = None

    def use(self, control: socket.socket | None) -> None:
        """From now on connections go to the worker at the other end of `control`."""
        if control is not None:
            control.settimeout(_CONNECT_TIMEOUT)
        with self._lock:
            if self._control is not None:
                self._control.close()
            self._control = control

    def connect(self) -> socket.socket:
        """A connection, one end of which is sent to the worker."""
        ours, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(ours.close)
            with self._lock:
                if self._control is None:
                    raise _gone("the worker process has ended")
                socket.send_fds(self._control, [b"c"], [theirs.fileno()])
            undo.pop_all()
        return ours

    def __str__(self) -> str:
        return "the worker process"


class CallerChannel(Channel):
    """To an engine in this process; each connection has a thread that serves it."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._served: dict[threading.Thread, socket.socket] = {}

    def use(self, engine: Engine) -> None:
        """From now on connections go to this one."""
        self._engine = engine

    def connect(self) -> socket.socket:
        """A connection, one end of which is served by a thread."""
        if self._pid != os.getpid():
            raise _gone("the model is in the process that this one was forked from")
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as undo, self._lock:
            undo.callback(ours.close)
            undo.callback(theirs.close)
            if self._engine is None:
                raise _gone("the model was unloaded")
            thread = threading.Thread(target=self._engine.serve, args=(theirs,), daemon=True)
            try:
                thread.start()
            except RuntimeError as exc:  # no more threads
                raise _gone(str(exc)) from exc
            self._served = {one: end for one, end in self._served.items() if one.is_alive()}
            self._served[thread] = theirs
            undo.pop_all()
        return ours

    def close(self) -> bool:
        """End what is under way; `False` when it did not end in time."""
        deadline = time.monotonic() + _END_TIMEOUT
        with self._lock:
            self._engine = None
            served, self._served = self._served, {}
        for connection in served.values():
            with contextlib.suppress(OSError):  # it has ended by itself
                connection.shutdown(socket.SHUT_RDWR)
        for thread in served:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in served)

    def __str__(self) -> str:
        return "the model in this process"


def _gone(why: str) -> OSError:
    return OSError(errno.ECONNREFUSED, why)
