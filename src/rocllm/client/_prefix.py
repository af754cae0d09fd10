"""Compute the beginning that many prompts share once, and copy it into every slot. No I/O.

A slot's content is saved to a file and restored from it (`/slots/N?action=save`, b11434): some
milliseconds, where computing it takes seconds.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from rocllm.client._wire import Call, checked_ids, encode_json, slots


def share_prefix(
    prompt: str | Sequence[int], filename: str
) -> Generator[Call[Any], Any, tuple[int, ...]]:
    """Asks what is to be asked, and gets the answers sent; returns the slots that got a copy.

    Slots at work are passed over; a request to one would wait until it is free.
    """
    home: int = yield _compute(prompt)
    states: list[dict[str, Any]] = yield slots()
    idle = [state["id"] for state in states if not state["is_processing"] and state["id"] != home]
    if idle:
        yield _move("save", home, filename)
        for slot in idle:
            yield _move("restore", slot, filename)
    return tuple(idle)


def _compute(prompt: str | Sequence[int]) -> Call[int]:
    body = {
        "prompt": prompt if isinstance(prompt, str) else checked_ids(prompt),
        "n_predict": 1,
        "cache_prompt": True,
        "response_fields": ("id_slot",),
    }
    return Call(
        "share prefix",
        "POST",
        "/completion",
        lambda answer: int(answer["id_slot"]),
        encode_json(body),
        queued=True,
    )


def _move(action: str, slot: int, filename: str) -> Call[int]:
    return Call(
        f"{action} slot",
        "POST",
        f"/slots/{slot}?action={action}",
        lambda answer: int(answer["id_slot"]),
        encode_json({"filename": filename}),
    )
