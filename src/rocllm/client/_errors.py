"""What went wrong, as one of our errors. No I/O."""

from __future__ import annotations

import json
from typing import Any

from rocllm.errors import (
    BadRequest,
    ConnectionLost,
    ContextOverflow,
    ProtocolError,
    RequestError,
    RequestTimeout,
    ServerBusy,
    StreamClosed,
)


def http_error(what: str, status: int, body: bytes) -> RequestError:
    """The error that a response with another status than 200 is."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        error = {"message": body[:500].decode(errors="replace").strip() or None}
    return server_error(what, error, status)


def server_error(what: str, error: object, status: int | None = None) -> RequestError:
    """The error that a llama-server's error object is.

    `status` is that of the response; inside a stream it is 200 long since, and the object's own
    `code` counts.
    """
    fields = error if isinstance(error, dict) else {"message": str(error)}
    code = fields.get("code") if status is None else status
    status = code if isinstance(code, int) else status
    why = fields.get("message")
    why = None if why is None else str(why)
    if fields.get("type") == "exceed_context_size_error":
        return _context_overflow(what, fields, status)
    if why is not None and "bad_alloc" in why:  # it says so with status 400
        return _out_of_memory(what, why, status)
    if status in (429, 503) or fields.get("type") == "unavailable_error":
        remedy = "wait until the server is ready, or has a free slot, and try again"
        return ServerBusy(f"{what}: the server is busy", why=why, remedy=remedy, status=status)
    if status in (401, 403):
        return BadRequest(
            f"{what}: the server refused the API key",
            why=why,
            remedy="give its key: Endpoint(..., api_key=...)",
            status=status,
        )
    if status == 404:
        return ProtocolError(
            f"{what}: the server does not know this request",
            why=why,
            remedy="check that the address is that of a llama-server, and not of an old one",
            status=status,
        )
    if status is not None and (status < 500 or status == 501):
        return BadRequest(f"{what}: the server refused the request", why=why, status=status)
    remedy = "look at the server's output"
    failed = f"{what}: the server failed (status {status})"
    return RequestError(failed, why=why, remedy=remedy, status=status)


def connection_lost(what: str, endpoint: object, why: str | None = None) -> ConnectionLost:
    """The server went away before the answer was complete."""
    return ConnectionLost(
        f"{what}: {endpoint} closed the connection before the answer was complete",
        why=why or "the server ended, or was told to close its connections",
        remedy="look at the server's output, and try again",
    )


def unreachable(what: str, endpoint: object, exc: Exception) -> ConnectionLost:
    """There is nobody to talk to, or that is no address: a name or a number that cannot be one."""
    return ConnectionLost(
        f"{what}: no connection to {endpoint}",
        why=getattr(exc, "strerror", None) or str(exc),
        remedy="check that the server runs and listens there",
    )


def timed_out(what: str, endpoint: object, timeout: tuple[str, float | None]) -> RequestTimeout:
    """One of the client's timeouts, given as name and seconds, has run out."""
    name, seconds = timeout
    return RequestTimeout(
        f"{what}: {endpoint} was silent for {name}={seconds} seconds",
        why="it hangs, or it computes something long: a prompt, or other requests before this one",
        remedy=f"give the client a longer {name}",
    )


def unexpected(what: str, why: str, status: int | None = None) -> ProtocolError:
    """The answer is of another shape."""
    return ProtocolError(
        f"{what}: the server's answer is not what a llama-server says",
        why=why,
        remedy="check that the address is that of a llama-server",
        status=status,
    )


def too_long(what: str, limit: int) -> ProtocolError:
    """An answer that no llama-server gives."""
    return ProtocolError(f"{what}: the server's answer has more than {limit} bytes")


def stream_closed(what: str, why: str) -> StreamClosed:
    """Somebody reads what was closed."""
    return StreamClosed(what, why=why, remedy="read a stream before it is closed, or start another")


def _out_of_memory(what: str, why: str, status: int | None) -> RequestError:
    error = RequestError(
        f"{what}: the server has not enough memory for this request",
        why=why,
        remedy="use a shorter prompt, or give the server more memory",
        status=status,
    )
    error.cause = "out_of_host_memory"
    return error


def _context_overflow(what: str, fields: dict[str, Any], status: int | None) -> ContextOverflow:
    n_prompt_tokens, n_ctx = fields.get("n_prompt_tokens"), fields.get("n_ctx")
    return ContextOverflow(
        f"{what}: the prompt has {n_prompt_tokens} tokens, the context of a slot {n_ctx}",
        why=None if fields.get("message") is None else str(fields["message"]),
        remedy="shorten the prompt, or load the model with a larger ctx_size",
        status=status,
        n_prompt_tokens=n_prompt_tokens if isinstance(n_prompt_tokens, int) else None,
        n_ctx=n_ctx if isinstance(n_ctx, int) else None,
    )
