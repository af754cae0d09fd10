"""One owner of one child and its state: starts it, notices its end, restarts it or says why not.

    state      what it is                                        what may follow
    stopped    no child, and nobody wants one                    starting, closed
    starting   a child is started, or a restart is waited for    ready, failed, stopping
    ready      a child serves                                    starting, failed, stopping
    stopping   the child is ended                                stopped, closed
    failed     it ended, and a restart would not mend that       stopped, closed
    closed     for ever                                          nothing

`ready` goes to `starting` when the child crashed and to `failed` when the breaker opens: the cause
is one that a restart cannot mend, or there were too many restarts in a row. `stop` forgets a
failure; whoever needs the child next starts it again.

A thread of the supervisor's own makes every transition, one at a time; what others want, they leave
with it (`ask`, `stop`, `close`), and each transition wakes up everybody who waits for one. The
thread is there from the first request until `close`.
"""

from __future__ import annotations

import copy
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, Literal, Protocol, TypeAlias, TypeVar

from rocllm.errors import RocllmError, StartCancelled, StartFailed, StreamClosed
from rocllm.options import RestartPolicy

State: TypeAlias = Literal["stopped", "starting", "ready", "stopping", "failed", "closed"]

_log = logging.getLogger(__name__)


class Child(Protocol):
    """What is supervised."""

    @property
    def has_ended(self) -> bool:
        """It does not run any more."""

    def crash(self) -> RocllmError:
        """Why it ended."""

    def stop(self) -> None:
        """End it and clean up after it. Idempotent, also for one that has ended by itself."""

    def kill(self) -> None:
        """End it without any grace; `stop` is still to follow."""


C = TypeVar("C", bound=Child)
C_co = TypeVar("C_co", bound=Child, covariant=True)


class Launcher(Protocol[C_co]):
    """How the child is started, and what else can be tried."""

    def start(self, cancel: threading.Event, on_exit: Callable[[], None]) -> C_co:
        """Start a child and return it when it serves.

        cancel: is set when it is not wanted any more. on_exit: to be called when it ends.
        Raises the error that says why it does not serve; nothing is left running then.
        """

    def adapt(self, error: RocllmError) -> bool:
        """Change something for the next start that may mend `error`; `False`: nothing is known."""


@dataclass(frozen=True, slots=True)
class Transition:
    """The new state, the failure that led to it, and the restarts in a row so far."""

    state: State
    error: Exception | None
    restarts: int


class Supervisor(Generic[C]):
    """Keeps one child running for as long as it is wanted.

    launcher: starts the child. policy: when a child that crashed is started again. on_transition:
    is told of every transition, in order, from the supervisor's own thread; it must not block.
    clock: seconds that only grow.

    Thread-safe. A forked copy owns nothing, and so neither starts nor ends anything.

    >>> supervisor = Supervisor(launcher, RestartPolicy())  # doctest: +SKIP
    >>> child = supervisor.ensure_ready()                   # doctest: +SKIP
    >>> supervisor.close()                                  # doctest: +SKIP
    """

    def __init__(
        self,
        launcher: Launcher[C],
        policy: RestartPolicy,
        *,
        on_transition: Callable[[Transition], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._launcher = launcher
        self._policy = policy
        self._on_transition = on_transition
        self._untold: deque[Transition] = deque()
        self._clock = clock
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._state: State = "stopped"
        self._child: C | None = None
        self._error: Exception | None = None
        # What others want.
        self._wanted = False
        self._stop_asked = False
        self._close_asked = False
        self._cancel = threading.Event()
        # Stops asked for, which end the waiting for a child, and carried out, which end that of
        # whoever asked.
        self._stops_asked = 0
        self._stops = 0
        # What decides about the next restart.
        self._restarts = 0
        self._served = False
        self._ready_since = 0.0
        self._not_before = 0.0

    @property
    def state(self) -> State:
        """Where it stands now."""
        return self._state

    @property
    def error(self) -> Exception | None:
        """Why the child ended the last time; `None` when it never did by itself."""
        return self._error

    def ask(self) -> Callable[[], C | None]:
        """Say that a child is needed, and go on.

        Returns what to call now and then: it gives the child, or `None` as long as it is not ready,
        and raises why there will be none: the error of the last child when a restart would not
        mend it, `StartCancelled` when somebody has called `stop` meanwhile, `StreamClosed` after
        `close`.
        """
        return partial(self._look, self._stops_asked)

    def ensure_ready(self, cancel: threading.Event | None = None) -> C:
        """Wait until a child serves, and return it.

        The wait ends by itself, as each start and the number of restarts are bounded. cancel: set
        it to give up waiting, with `StartCancelled`. Raises what the function that `ask` returns
        raises.
        """
        look = self.ask()
        child = look()
        while child is None:
            with self._changed:
                child = look()
                if child is None:
                    # A look at `cancel` now and then; without one, only transitions wake us up.
                    self._changed.wait(None if cancel is None else 0.05)
            if cancel is not None and cancel.is_set():
                raise StartCancelled("waiting for the server: it was cancelled")
        return child

    def stop(self) -> None:
        """End the child and forget a failure; returns when that is done. Idempotent."""
        if os.getpid() != self._pid:
            return
        with self._changed:
            if self._state in ("stopped", "closed") and not self._wanted:
                return
            self._stops_asked += 1
            self._wanted = False
            self._stop_asked = True
            self._cancel.set()
            self._changed.notify_all()
            if self._thread is threading.current_thread():
                return  # told to by an observer, or by the garbage collector: it follows
            stops = self._stops
            self._changed.wait_for(lambda: self._stops > stops or self._state == "closed")

    def close(self) -> None:
        """End the child for ever; returns when that is done. Idempotent."""
        if os.getpid() != self._pid:
            return
        with self._changed:
            self._close_asked = True
            self._wanted = False
            self._cancel.set()
            self._changed.notify_all()
            if self._thread is None:
                self._state = "closed"
                return
            if self._thread is threading.current_thread():
                return
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._state == "closed")
        except BaseException:
            # A second Ctrl-C does not wait any longer, and leaves no process behind either.
            child = self._child
            if child is not None:
                child.kill()
            raise
        self._thread.join()

    def _look(self, stops_asked: int) -> C | None:
        child = self._child
        if self._state == "ready" and child is not None and not child.has_ended:
            return child
        if os.getpid() != self._pid:
            if child is None:
                raise StreamClosed(
                    "the model's server did not run when this process was forked off",
                    remedy="load the model in this process",
                )
            return child
        with self._changed:
            return self._request(stops_asked)

    def _request(self, stops_asked: int) -> C | None:
        if self._close_asked:
            raise StreamClosed("the model is closed", remedy="load it again")
        if self._stops_asked != stops_asked:
            raise StartCancelled("waiting for the server: it was stopped meanwhile")
        if self._state == "failed" and not self._stop_asked:
            assert self._error is not None
            raise _own(self._error)
        child = self._child
        if self._state == "ready" and child is not None and not child.has_ended:
            return child
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="rocllm-supervisor", daemon=True)
            try:
                thread.start()
            except RuntimeError as exc:
                raise StartFailed(
                    "no thread can be started that looks after the server",
                    why=str(exc),
                    remedy="raise the limit (`ulimit -u`, pids.max of the control group)",
                ) from exc
            self._thread = thread
        if not self._wanted:
            # Only then: those who wait ask here each time that they are woken up.
            self._wanted = True
            self._changed.notify_all()
        return None

    # The rest runs in the supervisor's own thread.

    def _run(self) -> None:
        while self._state != "closed":
            with self._changed:
                step = self._next_step()
                while step is None:
                    self._changed.wait(self._pause())
                    step = self._next_step()
            self._tell()
            step()
            self._tell()

    def _next_step(self) -> Callable[[], None] | None:
        if self._close_asked or self._stop_asked:
            return self._end
        if self._child is not None:
            return self._recover if self._child.has_ended else None
        if self._state == "starting":
            return self._start if self._clock() >= self._not_before else None
        if self._state == "stopped" and self._wanted:
            self._enter("starting")
            return self._start
        return None

    def _pause(self) -> float | None:
        """Seconds until something is to be done unasked."""
        waits = self._state == "starting" and self._child is None
        return max(0.0, self._not_before - self._clock()) if waits else None

    def _start(self) -> None:
        try:
            child = self._launcher.start(self._cancel, self._wake_up)
        except Exception as exc:  # noqa: BLE001  a callback's too: who waits must be told
            self._decide(exc)
        else:
            with self._changed:
                self._child = child
                self._served = True
                self._ready_since = self._clock()
                self._enter("ready")

    def _recover(self) -> None:
        child = self._child
        assert child is not None
        try:
            error: Exception = child.crash()
        except Exception as exc:  # noqa: BLE001  a fault of ours: who waits must be told
            error = exc
        self._stop_child(child)
        with self._changed:
            self._child = None
        if self._clock() - self._ready_since >= self._policy.stable_time:
            self._restarts = 0
        self._decide(error)

    def _decide(self, error: Exception) -> None:
        """After a failure: start again at once, later, or not."""
        with self._changed:
            if self._stop_asked or self._close_asked:
                return
            self._error = error
            if not isinstance(error, RocllmError):
                self._enter("failed", error)
                return
            never = self._served and not self._policy.max_restarts
            if not never and self._launcher.adapt(error):
                self._not_before = self._clock()
            elif not (self._served and error.retryable):
                self._enter("failed", error)
                return
            elif self._restarts >= self._policy.max_restarts:
                # That it may pass by itself has been tried.
                given_up = _given_up(error, self._restarts)
                if never or not self._launcher.adapt(given_up):
                    self._error = given_up
                    self._enter("failed", given_up)
                    return
                self._restarts = 0
                self._not_before = self._clock()
            else:
                self._not_before = self._clock() + self._policy.pause(self._restarts)
                self._restarts += 1
            self._enter("starting", error)

    def _end(self) -> None:
        with self._changed:
            child = self._child
            self._enter("stopping")
        if child is not None:
            self._stop_child(child)
        with self._changed:
            self._child = None
            self._stop_asked = False
            self._served = False
            self._restarts = 0
            self._not_before = 0.0
            self._stops += 1
            if self._close_asked:
                self._enter("closed")
            else:
                self._cancel.clear()
                self._enter("stopped")

    def _stop_child(self, child: C) -> None:
        try:
            child.stop()
        except Exception:  # noqa: BLE001  it cannot be killed: there is nothing more to be done
            _log.exception("the server could not be stopped")

    def _wake_up(self) -> None:
        """The child has ended, says its own thread."""
        with self._changed:
            self._changed.notify_all()

    def _enter(self, state: State, error: Exception | None = None) -> None:
        self._state = state
        self._untold.append(Transition(state, error, self._restarts))
        self._changed.notify_all()

    def _tell(self) -> None:
        """Tell the observer, without the lock: it may ask anything."""
        while self._untold:
            transition = self._untold.popleft()
            if self._on_transition is not None:
                try:
                    self._on_transition(transition)
                except Exception:  # noqa: BLE001  its fault must not end what it observes
                    _log.exception("on_transition has raised")


def _own(error: Exception) -> Exception:
    """A copy for who raises it: an exception collects the tracebacks of all who do."""
    return copy.copy(error) if isinstance(error, RocllmError) else error


def _given_up(error: RocllmError, restarts: int) -> RocllmError:
    """The error that opened the breaker, saying so."""
    told = copy.copy(error)
    times = "once" if restarts == 1 else f"{restarts} times in a row"
    note = f"it was restarted {times}, and is not restarted again" if restarts else None
    told.why = "\n".join(part for part in (error.why, note) if part) or None
    told.retryable = False
    return told
