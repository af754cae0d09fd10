"""The owner of a child: every transition, with children that are plain objects."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rocllm.errors import (
    OutOfMemory,
    RocllmError,
    ServerCrashed,
    StartCancelled,
    StartFailed,
    StreamClosed,
)
from rocllm.options import RestartPolicy
from rocllm.server import Supervisor, Transition

DEADLINE = 20.0
# A crash that a restart may mend, and one that it cannot.
CRASH = ServerCrashed("it crashed")
OOM = OutOfMemory("no memory")
QUICK = RestartPolicy(max_restarts=3, backoff=0.0)


class FakeChild:
    """A child that runs until a test ends it."""

    def __init__(self, on_exit: Callable[[], None]) -> None:
        self.has_ended = False
        self.stops = 0
        self.killed = False
        self._on_exit = on_exit
        self._error: RocllmError = CRASH

    def end(self, error: RocllmError = CRASH) -> None:
        """It ends by itself."""
        self._error = error
        self.has_ended = True
        self._on_exit()

    def crash(self) -> RocllmError:
        return self._error

    def stop(self) -> None:
        self.stops += 1
        self.has_ended = True

    def kill(self) -> None:
        self.killed = True


class FakeLauncher:
    """Starts children; `outcomes` are the errors of the next starts, `None` for a good one."""

    def __init__(self) -> None:
        self.children: list[FakeChild] = []
        self.outcomes: list[Exception | None] = []
        self.adapts = 0
        self.adapts_to: Callable[[RocllmError], object] = lambda _error: True
        self.may_start = threading.Event()
        self.may_start.set()
        self.starts = 0

    def start(self, cancel: threading.Event, on_exit: Callable[[], None]) -> FakeChild:
        self.starts += 1
        while not self.may_start.wait(0.005):
            if cancel.is_set():
                raise StartCancelled("cancelled")
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if outcome is not None:
            raise outcome
        self.children.append(FakeChild(on_exit))
        return self.children[-1]

    def adapt(self, error: RocllmError) -> bool:
        if not self.adapts or not self.adapts_to(error):
            return False
        self.adapts -= 1
        return True


@pytest.fixture
def launcher() -> FakeLauncher:
    """Whose children start at once."""
    return FakeLauncher()


@pytest.fixture
def supervise(launcher: FakeLauncher) -> Iterator[Callable[..., Supervisor[FakeChild]]]:
    """Makes supervisors and closes them after the test."""
    made: list[Supervisor[FakeChild]] = []

    def make(policy: RestartPolicy = QUICK, **arguments: Any) -> Supervisor[FakeChild]:
        made.append(Supervisor(launcher, policy, **arguments))
        return made[-1]

    yield make
    launcher.may_start.set()
    for supervisor in made:
        supervisor.close()


def in_thread(function: Callable[[], object]) -> tuple[threading.Thread, list[object]]:
    """Call it in a thread; the list gets its result or its exception."""
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(function())
        except Exception as exc:  # noqa: BLE001 - it is the outcome
            outcome.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, outcome


def until(condition: Callable[[], object]) -> None:
    """Wait until it is true."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_many_callers_one_child(supervise: Any, launcher: FakeLauncher) -> None:
    """Everybody who waits gets the same child."""
    supervisor = supervise()
    launcher.may_start.clear()
    waiting = [in_thread(supervisor.ensure_ready) for _ in range(8)]
    launcher.may_start.set()
    for thread, _ in waiting:
        thread.join(DEADLINE)
    assert [outcome for _, outcome in waiting] == [[launcher.children[0]]] * 8
    assert launcher.starts == 1
    assert supervisor.state == "ready"


def test_those_who_wait_leave_the_processor_to_the_child(
    supervise: Any, launcher: FakeLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start takes seconds: they sleep until it is over, and then all of them wake up."""
    supervisor = supervise()
    looks, look = [0], supervisor._request

    def counted(stops_asked: int) -> object:
        looks[0] += 1
        return look(stops_asked)

    monkeypatch.setattr(supervisor, "_request", counted)
    launcher.may_start.clear()
    waiting = [in_thread(supervisor.ensure_ready) for _ in range(8)]
    until(lambda: looks[0] >= 16)
    time.sleep(0.2)
    # Each has looked before it waited, when it began to, and after the one transition.
    assert looks[0] <= 24
    launcher.may_start.set()
    for thread, outcome in waiting:
        thread.join(DEADLINE)
        assert outcome == [launcher.children[0]]


def test_no_more_threads(supervise: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is an error of ours, and it may pass."""
    supervisor = supervise()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _self: raise_(RuntimeError("no thread")))
        with pytest.raises(StartFailed, match="no thread"):
            supervisor.ensure_ready()
    assert supervisor.ensure_ready()


def raise_(error: Exception) -> None:
    raise error


def test_a_first_start_that_fails_is_not_repeated(supervise: Any, launcher: FakeLauncher) -> None:
    """Whoever asked is told, each with an exception of his own; `stop` forgets it."""
    supervisor = supervise()
    launcher.outcomes = [ServerCrashed("the first")]
    errors = []
    for _ in range(2):
        with pytest.raises(ServerCrashed, match="the first") as caught:
            supervisor.ensure_ready()
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    assert launcher.starts == 1
    assert supervisor.state == "failed"
    supervisor.stop()
    assert supervisor.state == "stopped"
    assert supervisor.ensure_ready() is launcher.children[0]


def test_a_crash_is_restarted(supervise: Any, launcher: FakeLauncher) -> None:
    """The next caller gets the next child; the one before was cleaned up after."""
    transitions: list[Transition] = []
    supervisor = supervise(on_transition=transitions.append)
    first = supervisor.ensure_ready()
    first.end()
    second = supervisor.ensure_ready()
    assert second is not first
    assert first.stops == 1
    assert supervisor.error is CRASH
    supervisor.close()
    assert [(one.state, one.error, one.restarts) for one in transitions] == [
        ("starting", None, 0),
        ("ready", None, 0),
        ("starting", CRASH, 1),
        ("ready", None, 1),
        ("stopping", None, 1),
        ("closed", None, 0),
    ]


def test_a_cause_that_a_restart_cannot_mend(supervise: Any, launcher: FakeLauncher) -> None:
    """It fails at once, and says why to everybody."""
    supervisor = supervise()
    supervisor.ensure_ready().end(OOM)
    with pytest.raises(OutOfMemory, match="no memory"):
        supervisor.ensure_ready()
    assert launcher.starts == 1


def test_the_breaker_opens(supervise: Any, launcher: FakeLauncher) -> None:
    """After so many restarts in a row it is over, and the error says so."""
    supervisor = supervise(RestartPolicy(max_restarts=2, backoff=0.0))
    for _ in range(3):
        supervisor.ensure_ready().end()
    with pytest.raises(ServerCrashed, match="2 times in a row"):
        supervisor.ensure_ready()
    assert launcher.starts == 3
    assert CRASH.why is None, "the child's own error is not changed"


def test_after_too_many_restarts_something_else_is_tried(
    supervise: Any, launcher: FakeLauncher
) -> None:
    """What was thought to pass by itself does not: a rung, if there is one, and a new row."""
    supervisor = supervise(RestartPolicy(max_restarts=2, backoff=0.0))
    launcher.adapts = 1
    launcher.adapts_to = lambda error: not error.retryable
    for _ in range(6):
        supervisor.ensure_ready().end()
    with pytest.raises(ServerCrashed, match="2 times in a row") as caught:
        supervisor.ensure_ready()
    assert not caught.value.retryable
    assert launcher.starts == 6
    assert launcher.adapts == 0


def test_no_restart_at_all(supervise: Any, launcher: FakeLauncher) -> None:
    """`max_restarts=0` is never, nor in another way, whatever the cause."""
    for cause in (CRASH, OOM):
        supervisor = supervise(RestartPolicy(max_restarts=0))
        launcher.starts, launcher.adapts = 0, 1
        supervisor.ensure_ready().end(cause)
        with pytest.raises(type(cause)):
            supervisor.ensure_ready()
        assert launcher.starts == 1


def test_a_row_ends_with_stable_time(supervise: Any, launcher: FakeLauncher) -> None:
    """A child that served long enough starts a new row."""
    now = [0.0]
    supervisor = supervise(
        RestartPolicy(max_restarts=1, backoff=0.0, stable_time=60.0), clock=lambda: now[0]
    )
    for _ in range(4):
        child = supervisor.ensure_ready()
        now[0] += 60.0
        child.end()
    supervisor.ensure_ready().end()
    with pytest.raises(ServerCrashed, match="once"):
        supervisor.ensure_ready()
    assert launcher.starts == 5


def test_a_restart_that_fails_is_repeated(supervise: Any, launcher: FakeLauncher) -> None:
    """A restart counts when it fails, too."""
    supervisor = supervise()
    child = supervisor.ensure_ready()
    launcher.outcomes = [ServerCrashed("again"), ServerCrashed("again")]
    child.end()
    assert supervisor.ensure_ready() is launcher.children[1]
    assert launcher.starts == 4


def test_what_can_be_adapted_is_tried(supervise: Any, launcher: FakeLauncher) -> None:
    """At the first start, too, and without counting as a restart."""
    supervisor = supervise(RestartPolicy(max_restarts=0))
    launcher.outcomes = [OOM, OOM]
    launcher.adapts = 2
    supervisor.ensure_ready()
    assert launcher.starts == 3


def test_a_pause_before_a_restart_can_be_ended(supervise: Any, launcher: FakeLauncher) -> None:
    """`stop` does not wait for the pause; nor does whoever waits for the child."""
    supervisor = supervise(RestartPolicy(backoff=3600.0, backoff_max=3600.0))
    supervisor.ensure_ready().end()
    thread, outcome = in_thread(supervisor.ensure_ready)
    until(lambda: supervisor.state == "starting")
    supervisor.stop()
    thread.join(DEADLINE)
    assert isinstance(outcome[0], StartCancelled)
    assert supervisor.state == "stopped"
    assert launcher.starts == 1


@pytest.mark.parametrize("verb", ["stop", "close"])
def test_a_start_can_be_ended(supervise: Any, launcher: FakeLauncher, verb: str) -> None:
    """The launcher is told, and who waits for the child is woken up."""
    supervisor = supervise()
    launcher.may_start.clear()
    thread, outcome = in_thread(supervisor.ensure_ready)
    until(lambda: launcher.starts)
    getattr(supervisor, verb)()
    thread.join(DEADLINE)
    assert isinstance(outcome[0], StartCancelled if verb == "stop" else StreamClosed)
    assert launcher.children == []


def test_waiting_can_be_given_up(supervise: Any, launcher: FakeLauncher) -> None:
    """With an event of the caller's."""
    supervisor = supervise()
    launcher.may_start.clear()
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(StartCancelled):
        supervisor.ensure_ready(cancel)


def test_stop_and_start_again(supervise: Any, launcher: FakeLauncher) -> None:
    """Idempotent, and the next request starts a child."""
    supervisor = supervise()
    supervisor.stop()
    first = supervisor.ensure_ready()
    supervisor.stop()
    supervisor.stop()
    assert first.stops == 1
    assert supervisor.state == "stopped"
    assert supervisor.ensure_ready() is not first


def test_a_stop_ends_the_waiting_of_those_who_poll(supervise: Any, launcher: FakeLauncher) -> None:
    """They do not start again what was just stopped; who asks anew does."""
    supervisor = supervise()
    launcher.may_start.clear()
    look = supervisor.ask()
    assert look() is None
    supervisor.stop()
    for _ in range(2):
        with pytest.raises(StartCancelled):
            look()
    assert supervisor.state == "stopped"
    launcher.may_start.set()
    again = supervisor.ask()
    until(again)
    assert again() is launcher.children[0]


def test_a_child_that_cannot_be_stopped(supervise: Any, launcher: FakeLauncher) -> None:
    """Nobody waits for ever: the next one is started, and closing ends."""
    supervisor = supervise()
    child = supervisor.ensure_ready()
    child.stop = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    child.crash = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    child.end()
    with pytest.raises(ZeroDivisionError):
        supervisor.ensure_ready()
    supervisor.stop()
    second = supervisor.ensure_ready()
    second.stop = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    supervisor.close()
    assert supervisor.state == "closed"


def test_stops_and_requests_of_many(supervise: Any, launcher: FakeLauncher) -> None:
    """Whatever the order, every call returns and no child is left."""
    supervisor = supervise()

    def churn() -> None:
        for _ in range(50):
            try:
                supervisor.ensure_ready().end()
            except (StartCancelled, ServerCrashed):
                supervisor.stop()
            supervisor.stop()

    threads = [in_thread(churn) for _ in range(6)]
    for thread, outcome in threads:
        thread.join(60)
        assert not thread.is_alive()
        assert outcome == [None]
    supervisor.close()
    assert all(child.stops for child in launcher.children)


def test_closed_for_ever(supervise: Any, launcher: FakeLauncher) -> None:
    """Idempotent; a request says that it is closed."""
    supervisor = supervise()
    child = supervisor.ensure_ready()
    supervisor.close()
    supervisor.close()
    assert child.stops == 1
    for ask in (supervisor.ask(), supervisor.ensure_ready):
        with pytest.raises(StreamClosed):
            ask()
    supervisor.stop()
    assert supervisor.state == "closed"


def test_closed_before_it_was_needed(supervise: Any) -> None:
    """There is no thread to wait for."""
    supervisor = supervise()
    supervisor.close()
    assert supervisor.state == "closed"


def test_a_fault_in_the_launcher_is_told(supervise: Any, launcher: FakeLauncher) -> None:
    """An exception of another kind reaches who waits, instead of ending the thread in silence."""
    supervisor = supervise()
    launcher.outcomes = [ZeroDivisionError("a callback's")]
    with pytest.raises(ZeroDivisionError):
        supervisor.ensure_ready()


def test_an_observer_may_raise_and_ask(supervise: Any, launcher: FakeLauncher) -> None:
    """Neither keeps the supervisor from its work, nor does an observer that stops it."""

    def observe(transition: Transition) -> None:
        if transition.state == "ready":
            supervisor.stop()
        raise ZeroDivisionError

    supervisor = supervise(on_transition=observe)
    supervisor.ask()()
    until(lambda: launcher.children and launcher.children[0].stops)
    supervisor.close()
    assert supervisor.state == "closed"
