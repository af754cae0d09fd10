"""What is taken and what is handed out, whatever order results come in."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from rocllm.errors import OptionsError, RocllmError
from rocllm.results import BatchProgress
from rocllm.text._window import Window, check_in_flight, check_prompts


@dataclass(frozen=True)
class Result:
    """A result of the place that it has."""

    index: int
    error: RocllmError | None = None


def handed_out(window: Window[Result]) -> list[int]:
    """Everything that can be had now."""
    found = []
    while (result := window.pop()) is not None:
        found.append(result.index)
    return found


@pytest.mark.parametrize("ordered", [True, False])
def test_any_order_of_results(ordered: bool) -> None:
    """All are handed out once; in order when that is wanted; what is kept is bounded."""
    chance = random.Random(7)
    for in_flight in (1, 2, 5):
        window = Window[Result](in_flight, ordered)
        under_way: list[int] = []
        out: list[int] = []
        done: list[int] = []
        while len(out) < 200:
            while window.has_room:
                under_way.append(window.take())
            assert len(under_way) <= 2 * in_flight
            assert under_way[-1] - len(out) < 4 * in_flight
            index = under_way.pop(chance.randrange(len(under_way)))
            window.put(index, Result(index))
            done.append(index)
            out += handed_out(window)
        assert out == (sorted(out) if ordered else done)


def test_a_slow_first_prompt_holds_the_others_back() -> None:
    """In order nothing more is taken while the first result is missing and the window is full."""
    window = Window[Result](2, ordered=True)
    taken = []
    while window.has_room:
        taken.append(window.take())
        if taken[-1]:
            window.put(taken[-1], Result(taken[-1]))
    assert taken == list(range(8))
    assert handed_out(window) == []
    window.put(0, Result(0))
    assert handed_out(window) == taken
    assert window.has_room


def test_what_is_lost_or_dropped_holds_nothing_back() -> None:
    """A result that will never come is passed over, and so are all when the batch is closed."""
    window = Window[Result](4, ordered=True)
    for _ in range(6):
        window.take()
    for index in (1, 3, 4):
        window.put(index, Result(index))
    window.put(0, None)
    assert handed_out(window) == [1]
    window.drop()
    assert handed_out(window) == [3, 4]
    assert window.unfinished == 0


def test_progress_counts_failures() -> None:
    """Done, failed among them, and the total as it was given."""
    window = Window[Result](1, ordered=True, total=3)
    window.put(window.take(), Result(0))
    window.put(window.take(), Result(1, RocllmError("no")))
    assert window.progress == BatchProgress(done=2, failed=1, total=3)


@pytest.mark.parametrize("prompts", ["one prompt", b"bytes", 7, None])
def test_one_prompt_is_not_many(prompts: object) -> None:
    """A text would be taken letter by letter."""
    with pytest.raises(OptionsError, match="takes many prompts"):
        check_prompts("classify", prompts)


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "4"])
def test_requests_at_once(value: object) -> None:
    """At least one, as a whole number; `None` is decided by rocllm."""
    with pytest.raises(OptionsError, match="max_in_flight"):
        check_in_flight(value, 1)  # type: ignore[arg-type]
    assert check_in_flight(None, 9) == 9
    assert check_in_flight(3, 9) == 3
