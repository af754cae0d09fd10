"""Which prompts of a batch are taken and which results are handed out. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sized
from typing import Generic, Protocol, TypeVar

from rocllm.errors import OptionsError, RocllmError
from rocllm.results import BatchProgress

# So many prompts are taken for each that may be under way: as many again wait, so that the next
# one can start while the caller is busy, and in order the results behind a slow one can pile up.
_UNFINISHED = 2
_UNREAD = 4


class Outcome(Protocol):
    """A result, as far as this module is concerned."""

    @property
    def error(self) -> RocllmError | None:
        """Why there is none."""


R = TypeVar("R", bound=Outcome)


class Window(Generic[R]):
    """The part of a batch between the prompts not yet taken and the results handed out.

    It is bounded, also where results come in order and the first one is slow: then nothing is taken
    until that is there.

    in_flight: prompts under way at once. ordered: results are handed out in the order of the
    prompts. total: prompts in all; `None`: nobody knows.

    >>> window = Window(in_flight=1, ordered=True)
    >>> window.take(), window.take(), window.has_room
    (0, 1, False)
    """

    def __init__(self, in_flight: int, ordered: bool, total: int | None = None) -> None:
        self._in_flight = in_flight
        self._ordered = ordered
        self._total = total
        self._ready: deque[R] = deque()
        # What is there already and waits for an earlier result, by index; `None` never comes.
        self._early: dict[int, R | None] = {}
        self._next = 0
        self._taken = self._given = self._done = self._failed = 0
        self.unfinished = 0

    @property
    def has_room(self) -> bool:
        """Another prompt may be taken."""
        return (
            self.unfinished < _UNFINISHED * self._in_flight
            and self._taken - self._given < _UNREAD * self._in_flight
        )

    def take(self) -> int:
        """A prompt is taken; its index."""
        self.unfinished += 1
        self._taken += 1
        return self._taken - 1

    def put(self, index: int, result: R | None) -> None:
        """The result of a prompt is there; `None`: it will never be."""
        self.unfinished -= 1
        if result is not None:
            self._done += 1
            self._failed += result.error is not None
        self._early[index] = result
        if not self._ordered:
            self._next = index
        while self._next in self._early:
            self._hand_over(self._next)
            self._next += 1

    def drop(self) -> None:
        """What is unfinished will never be there: nothing waits for it."""
        self.unfinished = 0
        for index in sorted(self._early):
            self._hand_over(index)

    def _hand_over(self, index: int) -> None:
        result = self._early.pop(index)
        if result is not None:
            self._ready.append(result)

    @property
    def progress(self) -> BatchProgress:
        """How far the batch is."""
        return BatchProgress(self._done, self._failed, self._total)

    def pop(self) -> R | None:
        """The next result to hand out, if it is there."""
        if not self._ready:
            return None
        self._given += 1
        return self._ready.popleft()


def count(prompts: object) -> int | None:
    """How many prompts there are, where that can be known."""
    return len(prompts) if isinstance(prompts, Sized) else None


def check_prompts(name: str, prompts: object) -> None:
    """Refuse what is one prompt where many are expected."""
    if isinstance(prompts, (str, bytes)) or not (
        isinstance(prompts, Iterable) or hasattr(prompts, "__aiter__")
    ):
        raise OptionsError(
            f"{name}() takes many prompts, got {prompts!r:.80}",
            remedy=f"put one prompt into a list: {name}([prompt])",
        )


def check_in_flight(max_in_flight: int | None, default: int) -> int:
    """How many requests may be under way; raises `OptionsError` for what cannot be meant."""
    if max_in_flight is None:
        return default
    if not isinstance(max_in_flight, int) or isinstance(max_in_flight, bool) or max_in_flight < 1:
        raise OptionsError(
            f"max_in_flight must be a whole number, at least 1; got {max_in_flight!r}"
        )
    return max_in_flight
