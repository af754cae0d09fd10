"""What is measured, without measuring anything."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from rocllm.bench import Engine, Setup, Suite, setups
from rocllm.bench.workloads import (
    CTX_SIZE,
    CTX_SIZE_OF_MANY,
    Session,
    Workload,
    context_for,
    sessions,
    text_prompt,
    token_prompt,
)
from rocllm.errors import OptionsError
from rocllm.options import LoadOptions

ENGINE = Engine("any")


def test_a_session_for_each_number_of_slots() -> None:
    """What needs one slot is measured on one load; callers have as many slots as they are."""
    first, *others = sessions(Suite(prompt_lengths=(512, 128), callers=(4, 1, 2)))
    assert first.slots == 1
    assert [str(one) for one in first.workloads] == [
        "load",
        "decode",
        "prompt of 128 tokens",
        "prompt of 512 tokens",
        "1 caller",
    ]
    assert [(one.slots, str(*one.workloads)) for one in others] == [
        (2, "2 callers"),
        (4, "4 callers"),
    ]


def test_only_some_workloads() -> None:
    """`kinds` leaves the others out, sessions included."""
    assert sessions(Suite(kinds=("concurrent",), callers=(2,))) == (
        Session(2, (Workload("concurrent", 2, 128),)),
    )
    assert [one.slots for one in sessions(Suite(kinds=("decode",)))] == [1]


def test_prompts_have_nothing_in_common() -> None:
    """Consecutive prompts differ in their first token, where the cache begins to compare."""
    prompts = [token_prompt(range(100, 107), 12, number) for number in range(9)]
    assert {len(prompt) for prompt in prompts} == {12}
    assert all(one[0] != two[0] for one, two in itertools.pairwise(prompts))
    assert token_prompt(range(100, 107), 12, 3) == prompts[3]
    texts = [text_prompt(number) for number in range(20)]
    assert len({text[:4] for text in texts}) == 20


@pytest.mark.parametrize(
    ("slots", "length", "longest", "expected"),
    [
        (1, 128, None, CTX_SIZE),
        (1, 128, 2048, 2048),
        (1, 8192, 131072, 8193),
        (1, 8192, 4096, 4096),
        (8, 128, None, CTX_SIZE_OF_MANY),
    ],
)
def test_context(slots: int, length: int, longest: int | None, expected: int) -> None:
    """The context holds the longest prompt, is never more than the model has, small for many."""
    session = Session(slots, (Workload("prompt", length, 1),))
    assert context_for(session, longest) == expected


def test_every_combination() -> None:
    """Lists of engines, attention and cache types multiply; doubles are measured once."""
    found = setups([Path("a"), Path("a")], [ENGINE], ["on", "off"], ["f16", "q8_0"])
    assert [(one.flash_attn, one.cache_type) for one in found] == [
        ("on", "f16"),
        ("on", "q8_0"),
        ("off", "f16"),
        ("off", "q8_0"),
    ]


def test_options_of_a_setup() -> None:
    """What varies goes over what is shared; a context that the user gave stays."""
    setup = Setup(Path("a"), Engine("mine", "/bin/x"), "on", "q8_0")
    options = setup.options(LoadOptions(threads=1), slots=4, ctx_size=1024)
    assert (options.parallel, options.ctx_size, options.threads) == (4, 1024, 1)
    assert (options.cache_type_k, options.cache_type_v) == ("q8_0", "q8_0")
    assert (options.flash_attn, options.llama_server) == ("on", "/bin/x")
    assert setup.options(LoadOptions(ctx_size=512), slots=1, ctx_size=4096).ctx_size == 512


@pytest.mark.parametrize(
    "values",
    [
        {"decode_tokens": 1},
        {"repetitions": 0},
        {"warmups": -1},
        {"prompt_lengths": (0,)},
        {"callers": (1, -2)},
        {"callers": (1000,)},
        {"callers": (True,)},
        {"cell_seconds": 0.0},
        {"cell_seconds": float("nan")},
        {"kinds": ("speed",)},
    ],
)
def test_what_cannot_be_meant(values: dict[str, Any]) -> None:
    """A suite that cannot be measured is refused when it is made."""
    with pytest.raises(OptionsError):
        Suite(**values)
