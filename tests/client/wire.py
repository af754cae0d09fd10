"""Bytes as a llama-server sends them, for tests."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

TIMINGS = {
    "cache_n": 2,
    "prompt_n": 3,
    "prompt_ms": 30.0,
    "predicted_n": 2,
    "predicted_ms": 20.0,
}
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nKeep-Alive: timeout=5, max=100\r\n"
    b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
END = b"0\r\n\r\n"


def event(value: object) -> bytes:
    """One event, as `data:`."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def chunk(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def token(number: int, text: str, count: int, **more: Any) -> dict[str, Any]:
    """An event of `/completion`: token `number`, the `count`th."""
    return {
        "index": 0,
        "content": text,
        "tokens": [number],
        "stop": False,
        "id_slot": -1,
        "tokens_predicted": count,
        "tokens_evaluated": 5,
        **more,
    }


def final(count: int, stop_type: str = "eos", **more: Any) -> dict[str, Any]:
    """The last event of `/completion`."""
    return {
        "stop": True,
        "stop_type": stop_type,
        "tokens_predicted": count,
        "tokens_evaluated": 5,
        "timings": TIMINGS,
        **more,
    }


def chat_delta(
    delta: dict[str, Any], reason: str | None = None, logprobs: object = None, **more: Any
) -> dict[str, Any]:
    """An event of `/v1/chat/completions`."""
    choice = {"finish_reason": reason, "index": 0, "delta": delta}
    if logprobs is not None:
        choice["logprobs"] = {"content": [logprobs]}
    return {"choices": [choice], "object": "chat.completion.chunk", **more}


def chat_usage(prompt: int, completion: int) -> dict[str, Any]:
    """The event with the counts, last but `[DONE]`."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    return {"choices": [], "usage": usage, "timings": TIMINGS}


def stream(*events: object, end: bytes = END) -> bytes:
    """A whole streamed response; an event that is bytes is sent as it is."""
    return (
        STREAM_HEAD
        + b"".join(chunk(each if isinstance(each, bytes) else event(each)) for each in events)
        + end
    )


def answer(value: object, status: str = "200 OK", headers: str = "") -> bytes:
    """A response in one piece."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body


def error(code: int, message: str, kind: str, **more: Any) -> dict[str, Any]:
    """An error object."""
    return {"error": {"code": code, "message": message, "type": kind, **more}}


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    """`data` in pieces, cut at these places."""
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]
