"""What a running llama-server is doing, asked from outside within a bounded time.

Reference: tools/server/README.md of llama.cpp (`/metrics`, `/slots`), checked with b11434. Its
`/metrics` has rates, too; these are averages since somebody last asked, whoever that was, so they
are not used. Asking for `/slots` keeps a server from going to sleep and `/metrics` does not, so
slots are asked for only while there is work.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from rocllm.endpoint import Endpoint
from rocllm.server.health import check_health, connect

# ready: it answers. busy: it is alive, and has not answered in time; older servers answer only
# between two batches of a prompt. loading: the model is being read. unreachable: nothing answers.
ServerState: TypeAlias = Literal["ready", "busy", "loading", "unreachable"]

_MAX_ANSWER = 16 * 1024**2
_PREFIX = "llamacpp:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One of the requests that a server can work on at a time.

    state: `idle`, reading a `prompt`, or `generating`. id_task: number of the request, the last one
    of an idle slot. n_ctx: tokens that fit. n_tokens: tokens that are in it, those of the prompt
    and of the answer. n_decoded: tokens of the answer.
    """

    id: int
    id_task: int | None = None
    state: Literal["idle", "prompt", "generating"]
    n_ctx: int | None = None
    n_tokens: int | None = None
    n_decoded: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """What a server was doing at one moment; `None`: it does not tell.

    time: seconds of the clock that was given. busy_slots: requests that are being worked on.
    waiting: requests that wait for a slot. slots: each slot; `None` also while all are idle.
    finished: tokens of all requests that have come to their end, since the start.
    """

    state: ServerState
    time: float
    busy_slots: int | None = None
    waiting: int | None = None
    slots: tuple[Slot, ...] | None = None
    finished: int | None = None


def read_status(
    endpoint: Endpoint, timeout: float = 1.0, *, clock: Callable[[], float] = time.monotonic
) -> ServerStatus:
    """Ask a server what it is doing; `timeout` seconds bound the whole of it. Never raises.

    >>> read_status(server.endpoint).busy_slots  # doctest: +SKIP
    2
    """
    deadline = time.monotonic() + timeout
    health = check_health(endpoint, timeout / 2)
    if health != "ready":
        return ServerStatus(state=health, time=clock())
    counters: dict[str, float] | None = None
    slots: tuple[Slot, ...] | None = None
    try:
        text = _get(endpoint, "/metrics", deadline)
        counters = None if text is None else _counters(text)
        if counters is None or counters.get("requests_processing"):
            text = _get(endpoint, "/slots", deadline)
            slots = None if text is None else _slots(text)
    except OSError:
        return ServerStatus(state="busy", time=clock())
    return _status(clock(), counters or {}, slots)


def tokens_per_second(before: ServerStatus, after: ServerStatus) -> float | None:
    """Tokens generated per second between two readings; `None` if one of them does not tell.

    Two numbers are known, and both may be too small, so the larger one counts. The counter moves
    when a request ends, and not at all for one that was cancelled; the slots do not tell how far a
    request came that has ended meanwhile.
    """
    elapsed = after.time - before.time
    if before.state != "ready" or after.state != "ready" or elapsed <= 0:
        return None
    in_slots = sum(_progress(slot, before) for slot in after.slots or ())
    if before.finished is None or after.finished is None:
        return None if after.slots is None else in_slots / elapsed
    by_counter = after.finished + _under_way(after) - before.finished - _under_way(before)
    return max(by_counter, in_slots) / elapsed


def _progress(slot: Slot, before: ServerStatus) -> int:
    """Tokens that a slot has generated for its request since an earlier reading."""
    known = (
        earlier.n_decoded
        for earlier in before.slots or ()
        if (earlier.id, earlier.id_task) == (slot.id, slot.id_task)
    )
    return max(0, slot.n_decoded - next(known, 0))


def _under_way(status: ServerStatus) -> int:
    return sum(slot.n_decoded for slot in status.slots or ())


def _status(
    now: float, counters: Mapping[str, float], slots: tuple[Slot, ...] | None
) -> ServerStatus:
    busy = [slot for slot in slots or () if slot.state != "idle"]
    processing = _whole(counters.get("requests_processing"))
    return ServerStatus(
        state="ready",
        time=now,
        busy_slots=processing if slots is None else len(busy),
        waiting=_whole(counters.get("requests_deferred")),
        slots=slots,
        finished=_whole(counters.get("tokens_predicted_total")),
    )


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


def _get(endpoint: Endpoint, target: str, deadline: float) -> str | None:
    """The body of an answer; `None` for a refusal. Raises `OSError` when it does not come."""
    request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    data = bytearray()
    with connect(endpoint, _left(deadline)) as connection:
        connection.sendall(request.encode())
        while len(data) <= _MAX_ANSWER:
            connection.settimeout(_left(deadline))
            chunk = connection.recv(1 << 16)
            if not chunk:
                break
            data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    accepted = head.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200"))
    return body.decode(errors="replace") if accepted else None


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the server does not answer in time")
    return left


def _counters(text: str) -> dict[str, float]:
    """Prometheus' text format, as far as llama-server uses it: a name and a number a line."""
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name.startswith(_PREFIX):
            try:
                number = float(value)
            except ValueError:
                continue
            if math.isfinite(number):
                found[name.removeprefix(_PREFIX)] = number
    return found


def _slots(text: str) -> tuple[Slot, ...] | None:
    try:
        return tuple(_slot(entry) for entry in json.loads(text))
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError):
        return None


def _slot(entry: Mapping[str, Any]) -> Slot:
    following = entry.get("next_token") or {}
    if isinstance(following, list):  # since 2025; one entry
        following = following[0]
    decoded = int(following.get("n_decoded") or 0)
    processing = bool(entry["is_processing"])
    return Slot(
        id=int(entry["id"]),
        id_task=_whole(entry.get("id_task")),
        state="idle" if not processing else "generating" if decoded else "prompt",
        n_ctx=_whole(entry.get("n_ctx")),
        n_tokens=_whole(entry.get("n_prompt_tokens")),
        n_decoded=decoded if processing else 0,
    )
