"""One way to use either client, so that a test body runs for both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from rocllm.client import AsyncClient, AsyncTokenStream, Client, TokenStream
from rocllm.endpoint import Endpoint
from rocllm.errors import RocllmError
from rocllm.results import Completion, Token

Kind: TypeAlias = Literal["sync", "async"]
KINDS: tuple[Kind, ...] = ("sync", "async")
Ask = Callable[[Any], Any]


@dataclass
class Outcome:
    """How a stream ended."""

    stream: TokenStream | AsyncTokenStream
    tokens: list[Token]
    error: RocllmError | None


def consume(kind: Kind, endpoint: Endpoint, ask: Ask, **options: Any) -> Outcome:
    """Read the stream that `ask(client)` gives to its end."""
    if kind == "async":
        return asyncio.run(_consume(endpoint, ask, **options))
    with Client(endpoint, **options) as client:
        stream, tokens = ask(client), []
        try:
            for token in stream:
                tokens.append(token)  # noqa: PERF402 - the tokens before an error count
        except RocllmError as exc:
            return Outcome(stream, tokens, exc)
        return Outcome(stream, tokens, None)


async def _consume(endpoint: Endpoint, ask: Ask, **options: Any) -> Outcome:
    async with AsyncClient(endpoint, **options) as client:
        stream, tokens = ask(client), []
        try:
            async for token in stream:
                tokens.append(token)  # noqa: PERF401 - the tokens before an error count
        except RocllmError as exc:
            return Outcome(stream, tokens, exc)
        return Outcome(stream, tokens, None)


def read(kind: Kind, endpoint: Endpoint, ask: Ask, **options: Any) -> Completion:
    """The whole answer of the stream that `ask(client)` gives."""

    async def reading() -> Completion:
        async with AsyncClient(endpoint, **options) as client:
            completion: Completion = await ask(client).read()
            return completion

    if kind == "async":
        return asyncio.run(reading())
    with Client(endpoint, **options) as client:
        completion: Completion = ask(client).read()
        return completion


def call(kind: Kind, endpoint: Endpoint, *asks: Ask, **options: Any) -> list[Any]:
    """The answers of plain calls, made one after another with one client."""

    async def calling() -> list[Any]:
        async with AsyncClient(endpoint, **options) as client:
            return [await ask(client) for ask in asks]

    if kind == "async":
        return asyncio.run(calling())
    with Client(endpoint, **options) as client:
        return [ask(client) for ask in asks]
