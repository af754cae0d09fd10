"""The client for asyncio. It is `sync` with `await`; a test compares the two."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from rocllm.client import _classify, _prefix, _wire
from rocllm.client._base import (
    DEFAULT_SAMPLING,
    MAX_BODY,
    UNEXPLAINED,
    ClientBase,
    Explain,
    Keeper,
    StreamBase,
)
from rocllm.client._errors import connection_lost, stream_closed, too_long
from rocllm.client._ids import Vocabulary
from rocllm.client._transports import Exchange, Pool
from rocllm.client._wire import Call, Health, StreamRequest
from rocllm.client.channel import Where, response_from
from rocllm.errors import (
    BadRequest,
    ProtocolError,
    RequestError,
    RocllmError,
    ServerBusy,
)
from rocllm.options import SamplingOptions
from rocllm.results import Completion, Message, NextToken, Token

# Seconds between two questions whether the server is there again.
_POLL_INTERVAL = 0.02

_T = TypeVar("_T")


class AsyncClient(ClientBase):
    """Talks to a running llama-server; for asyncio. Parameters and methods are those of `Client`.

    >>> async with AsyncClient(Endpoint.tcp("127.0.0.1", 8080)) as client:  # doctest: +SKIP
    ...     print((await client.completion("The capital of France is").read()).text)
    """

    def __init__(
        self,
        endpoint: Where,
        *,
        connect_timeout: float | None = 5.0,
        read_timeout: float | None = 30.0,
        stream_timeout: float | None = 600.0,
        keeper: Keeper | None = None,
        slot_save_path: Path | None = None,
    ) -> None:
        super().__init__(endpoint, read_timeout, stream_timeout, keeper, slot_save_path)
        self._pool = Pool(endpoint, connect_timeout)

    async def health(self) -> Health:
        """Whether the server is `"ready"`, `"loading"` or `"unreachable"`; does not raise."""
        try:
            await self._call(_wire.health())
        except ServerBusy:
            return "loading"
        except RequestError:
            return "unreachable"
        return "ready"

    async def props(self) -> dict[str, Any]:
        """What the server tells about itself and its model, as it tells it (`/props`)."""
        return await self._ask(_wire.props())

    async def slots(self) -> list[dict[str, Any]]:
        """What each slot is doing, as the server tells it (`/slots`)."""
        return await self._ask(_wire.slots())

    async def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        """The token ids of a text; see `Client.tokenize`."""
        call = _wire.tokenize(text, add_special=add_special, parse_special=parse_special)
        return await self._ask(call)

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids; half a character becomes U+FFFD."""
        return await self._ask(_wire.detokenize(tokens))

    async def apply_template(self, messages: Sequence[Message]) -> str:
        """The prompt that the model's chat template makes of a conversation."""
        return await self._ask(_wire.apply_template(messages))

    def completion(
        self,
        prompt: str | Sequence[int],
        sampling: SamplingOptions = DEFAULT_SAMPLING,
        *,
        resume: bool = False,
    ) -> AsyncTokenStream:
        """Continue a prompt; see `Client.completion`. Nothing is sent before the first read."""
        return AsyncTokenStream(self, _wire.completion(prompt, sampling, resume=resume))

    def chat(
        self,
        messages: Sequence[Message],
        sampling: SamplingOptions = DEFAULT_SAMPLING,
        *,
        resume: bool = False,
    ) -> AsyncTokenStream:
        """Answer a conversation through the model's chat template; see `completion`."""
        return AsyncTokenStream(self, _wire.chat(messages, sampling, resume=resume))

    async def next_token(
        self,
        prompt: str | Sequence[int],
        *,
        then: Sequence[int] = (),
        among: Sequence[int] = (),
        top_k: int = 1,
    ) -> NextToken:
        """The tokens that may follow a prompt; see `Client.next_token`."""
        told = await self._ask(_classify.next_token(prompt, then, among, top_k))
        for text in _classify.STAND_INS:
            if told.top:
                break
            call = _classify.next_token(prompt, then, among, top_k, stand_in=text)
            told = await self._ask(call)
        return told

    async def share_prefix(self, prompt: str | Sequence[int]) -> int:
        """Compute what many prompts begin with, once for all slots; see `Client.share_prefix`."""
        if self._slot_save_path is None:
            return 0
        with self._slot_file() as filename:
            steps = _prefix.share_prefix(prompt, filename)
            answer = None
            while True:
                try:
                    call = steps.send(answer)
                except StopIteration as end:
                    return 1 + len(end.value)
                answer = await self._ask(call)

    def interrupt(self) -> None:
        """End every stream and every connection, from any thread; see `Client.interrupt`."""
        self._pool.interrupt()

    async def aclose(self) -> None:
        """End every stream and close every connection. Idempotent."""
        await self._pool.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _ask(self, call: Call[_T]) -> _T:
        explain = await self._await_server()
        try:
            return await self._call(call)
        except UNEXPLAINED as exc:
            if self._pool.closed:
                raise stream_closed(call.what, "its client was closed") from exc
            # In a thread: it may wait, for the server to be seen dead.
            error = exc if explain is None else await asyncio.to_thread(explain, exc)
            if error is exc:
                raise
            raise error from exc

    async def _call(self, call: Call[_T]) -> _T:
        timeout = self._timeout(call)
        exchange = Exchange(self._pool, call.what, self._encode(call), timeout)
        response, body = response_from(self.endpoint), bytearray()
        try:
            while not response.complete:
                data = await exchange.receive()
                body += response.feed(data)
                if not data and not response.feed_eof():
                    raise connection_lost(call.what, self.endpoint)
                if len(body) > MAX_BODY:
                    raise too_long(call.what, MAX_BODY)
            exchange.release(response)
        finally:
            exchange.close()
        return call.answer(response.status or 0, bytes(body))

    async def _await_server(self) -> Explain | None:
        if self._keeper is None:
            return None
        # Polled: a thread for each waiting task would take them all from the rest of the program.
        look = self._keeper.ask()
        while (explain := look()) is None:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_INTERVAL)
        return explain

    async def _fetch_vocabulary(self) -> Vocabulary | None:
        """The bytes of every token, asked for once; `None` when the server cannot tell."""
        if self._vocabulary is None and not self._no_vocabulary:
            try:
                size = await self._call(_wire.vocabulary_size())
                pieces: list[bytes] = []
                for first in range(0, size, _wire.VOCABULARY_BATCH):
                    batch = await self._call(_wire.vocabulary_pieces(first, size))
                    pieces.extend(batch)
            except (ProtocolError, BadRequest):
                self._no_vocabulary = True
            except RequestError:
                return None  # the stream itself will tell what is wrong
            else:
                self._vocabulary = Vocabulary(pieces)
        return self._vocabulary


class AsyncTokenStream(StreamBase):
    """The tokens of one answer, while the model generates them; for asyncio.

    It behaves as `TokenStream`, with `async for`, `async with`, `await read()` and `aclose()`. One
    task reads a stream; any task of its loop may close it.

    >>> async with client.completion("1, 2, 3,") as stream:  # doctest: +SKIP
    ...     async for token in stream:
    ...         print(token.text, end="", flush=True)
    """

    def __init__(self, client: AsyncClient, request: StreamRequest) -> None:
        self._exchange: Exchange | None = None
        super().__init__(request, client.endpoint)
        self._client = client

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Token:
        if not self._ready and not await self._advance():
            raise StopAsyncIteration
        token = self._ready.popleft()
        self._tokens.append(token)
        return token

    async def read(self) -> Completion:
        """Read what is left and return the whole answer."""
        async for _ in self:
            pass
        return self._completion()

    async def aclose(self) -> None:
        """Stop the generation, unless it is at its end. Idempotent."""
        self._left = True
        if not self._ended:
            self._close("it was closed before its end")

    async def __aenter__(self) -> Self:
        await self._advance(until_begun=True)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._exchange is not None:
            self._exchange.drop()

    async def _advance(self, *, until_begun: bool = False) -> bool:
        """Read on until there is a token; `False` at the end."""
        while True:
            try:
                return await self._read_on(until_begun=until_begun)
            except RocllmError as exc:
                error = await self._failed(exc)
                if self._goes_on(error):
                    continue
                if error is exc:
                    raise
                raise error from exc
            except BaseException:
                # Cancelled: whoever awaits no token wants none.
                self._close("reading it was interrupted")
                raise

    async def _read_on(self, *, until_begun: bool) -> bool:
        while not self._ready:
            if self._ended or (until_begun and self._begun):
                return False
            self._check_open()
            if self._answer.finished:
                await self._end()
            elif self._answer.needs_vocabulary:
                self._answer.use_vocabulary(await self._client._fetch_vocabulary())
            else:
                if self._exchange is None:
                    self._exchange = await self._open()
                self._feed(await self._exchange.receive())
            self._drop_repeated()
        return True

    async def _open(self) -> Exchange:
        client, request = self._client, self._first_request
        self._answer.start()
        self._explain = None
        self._explain = await client._await_server()
        if self._rest_wanted:
            call = request.whole_prompt()
            self._resume_with(request.prompt if call is None else await client._call(call))
        self._check_open()
        return Exchange(
            client._pool,
            self._request.what,
            client._encode(self._request),
            ("stream_timeout", client._stream_timeout),
        )

    async def _end(self) -> None:
        self._ended = True
        if self._exchange is not None:
            if not self._answer.cut:
                await self._exchange.settle(self._answer.response)
            self._exchange.close()

    def _close(self, because: str) -> None:
        if self._closed_because is None:
            self._closed_because = because
        self._ready.clear()
        if self._exchange is not None:
            self._exchange.close()

    async def _failed(self, error: RocllmError) -> RocllmError:
        final = self._final_error(error, self._client._pool.closed)
        self._sent = self._exchange is not None and self._exchange.sent
        self._close("it ended with an error")
        self._exchange = None
        explain = self._explain
        if explain is None or not isinstance(final, UNEXPLAINED):
            return final
        # In a thread: it may wait, for the server to be seen dead.
        return await asyncio.to_thread(explain, final)
