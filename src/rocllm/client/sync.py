"""The client for blocking callers."""

from __future__ import annotations

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
from rocllm.client._sockets import Exchange, Pool
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

_T = TypeVar("_T")


class Client(ClientBase):
    """Talks to a running llama-server; for blocking callers, several threads at once.

    endpoint: where the server listens, or the channel to an engine that does not.
    connect_timeout: seconds to get a connection.
    read_timeout: longest silence, in seconds, while a short answer is awaited (`props`, `slots`,
        `tokenize`, ...). The server answers `slots` between two batches of a prompt only.
    stream_timeout: longest silence, in seconds, of a stream. The time before the first token
        counts too, and that is as long as the prompt and the requests queued before this one take.
        The server's sign of life between two batches of a prompt starts the time anew.
    keeper: looks after the server, for one who started it: requests wait until it serves, and an
        error tells what became of it.
    slot_save_path: the server's `--slot-save-path`, where files of it may be removed here.

    `None` for a timeout is no timeout. After a fork the child gets connections of its own.

    >>> with Client(Endpoint.tcp("127.0.0.1", 8080)) as client:  # doctest: +SKIP
    ...     print(client.completion("The capital of France is").read().text)
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

    def health(self) -> Health:
        """Whether the server is `"ready"`, `"loading"` or `"unreachable"`; does not raise."""
        try:
            self._call(_wire.health())
        except ServerBusy:
            return "loading"
        except RequestError:
            return "unreachable"
        return "ready"

    def props(self) -> dict[str, Any]:
        """What the server tells about itself and its model, as it tells it (`/props`)."""
        return self._ask(_wire.props())

    def slots(self) -> list[dict[str, Any]]:
        """What each slot is doing, as the server tells it (`/slots`)."""
        return self._ask(_wire.slots())

    def tokenize(
        self, text: str, *, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        """The token ids of a text.

        add_special: with those that begin a prompt (BOS). parse_special: `<|im_start|>` and the
        like are the tokens of that name, and not text.
        """
        call = _wire.tokenize(text, add_special=add_special, parse_special=parse_special)
        return self._ask(call)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids; half a character becomes U+FFFD."""
        return self._ask(_wire.detokenize(tokens))

    def apply_template(self, messages: Sequence[Message]) -> str:
        """The prompt that the model's chat template makes of a conversation."""
        return self._ask(_wire.apply_template(messages))

    def completion(
        self,
        prompt: str | Sequence[int],
        sampling: SamplingOptions = DEFAULT_SAMPLING,
        *,
        resume: bool = False,
    ) -> TokenStream:
        """Continue a prompt, given as text or token ids. Nothing is sent before the first read.

        resume: after a crash of a server that has a keeper, go on with the next one.
        """
        return TokenStream(self, _wire.completion(prompt, sampling, resume=resume))

    def chat(
        self,
        messages: Sequence[Message],
        sampling: SamplingOptions = DEFAULT_SAMPLING,
        *,
        resume: bool = False,
    ) -> TokenStream:
        """Answer a conversation through the model's chat template; see `completion`."""
        return TokenStream(self, _wire.chat(messages, sampling, resume=resume))

    def next_token(
        self,
        prompt: str | Sequence[int],
        *,
        then: Sequence[int] = (),
        among: Sequence[int] = (),
        top_k: int = 1,
    ) -> NextToken:
        """The tokens that may follow a prompt, from one forward pass.

        then: tokens that follow the prompt. among: the only tokens that matter; their probabilities
        add up to 1 then, and a token without any is left out. top_k: without `among`, how many of
        the likeliest; the server sorts the vocabulary for them, and sends 100 bytes for each.
        """
        told = self._ask(_classify.next_token(prompt, then, among, top_k))
        for text in _classify.STAND_INS:
            if told.top:
                break
            call = _classify.next_token(prompt, then, among, top_k, stand_in=text)
            told = self._ask(call)
        return told

    def share_prefix(self, prompt: str | Sequence[int]) -> int:
        """Compute what many prompts begin with once, and copy it into every slot that is idle.

        Returns how many slots have it; 0 without a `slot_save_path`, and nothing is done then.
        """
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
                answer = self._ask(call)

    def interrupt(self) -> None:
        """End every stream and every connection; the next request opens another one."""
        self._pool.interrupt()

    def close(self) -> None:
        """End every stream and close every connection. Idempotent."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, call: Call[_T]) -> _T:
        explain = self._await_server()
        try:
            return self._call(call)
        except UNEXPLAINED as exc:
            if self._pool.closed:
                raise stream_closed(call.what, "its client was closed") from exc
            error = exc if explain is None else explain(exc)
            if error is exc:
                raise
            raise error from exc

    def _call(self, call: Call[_T]) -> _T:
        timeout = self._timeout(call)
        exchange = Exchange(self._pool, call.what, self._encode(call), timeout)
        response, body = response_from(self.endpoint), bytearray()
        try:
            while not response.complete:
                data = exchange.receive()
                body += response.feed(data)
                if not data and not response.feed_eof():
                    raise connection_lost(call.what, self.endpoint)
                if len(body) > MAX_BODY:
                    raise too_long(call.what, MAX_BODY)
            exchange.release(response)
        finally:
            exchange.close()
        return call.answer(response.status or 0, bytes(body))

    def _await_server(self) -> Explain | None:
        if self._keeper is None:
            return None
        return self._keeper.wait()

    def _fetch_vocabulary(self) -> Vocabulary | None:
        """The bytes of every token, asked for once; `None` when the server cannot tell."""
        if self._vocabulary is None and not self._no_vocabulary:
            try:
                size = self._call(_wire.vocabulary_size())
                pieces: list[bytes] = []
                for first in range(0, size, _wire.VOCABULARY_BATCH):
                    batch = self._call(_wire.vocabulary_pieces(first, size))
                    pieces.extend(batch)
            except (ProtocolError, BadRequest):
                self._no_vocabulary = True
            except RequestError:
                return None  # the stream itself will tell what is wrong
            else:
                self._vocabulary = Vocabulary(pieces)
        return self._vocabulary


class TokenStream(StreamBase):
    """The tokens of one answer, while the model generates them.

    Iterate over it, or call `read`. The request is sent when the first token is asked for or when
    a `with` statement is entered, which also waits for the server to begin and so raises what the
    server refuses. Afterwards `text`, `reasoning`, `tokens`, `finish_reason`, `usage` and `timings`
    tell what came.

    Leaving the `with` statement, `close` or dropping the last reference to the stream before its
    end closes its connection, and with that the server stops generating. `break` alone in a `for`
    loop over a stream that is still referred to does not. One thread reads a stream; any thread
    may close it.

    Raises, while it is read: `ContextOverflow`, `BadRequest`, `ServerBusy`, `RequestTimeout`,
    `ConnectionLost`, `ProtocolError` and `RequestError`, each with the text so far in `text`;
    `StreamClosed` when it was closed before its end. A stream at its end has no more tokens.

    >>> with client.completion("1, 2, 3,") as stream:  # doctest: +SKIP
    ...     for token in stream:
    ...         print(token.text, end="", flush=True)
    """

    def __init__(self, client: Client, request: StreamRequest) -> None:
        self._exchange: Exchange | None = None
        super().__init__(request, client.endpoint)
        self._client = client

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Token:
        while True:
            if not self._ready and not self._advance():
                raise StopIteration
            try:
                token = self._ready.popleft()
            except IndexError:  # closed by another thread
                continue
            self._tokens.append(token)
            return token

    def read(self) -> Completion:
        """Read what is left and return the whole answer."""
        for _ in self:
            pass
        return self._completion()

    def close(self) -> None:
        """Stop the generation, unless it is at its end. Idempotent."""
        self._left = True
        if not self._ended:
            self._close("it was closed before its end")

    def __enter__(self) -> Self:
        self._advance(until_begun=True)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._exchange is not None:
            self._exchange.close()

    def _advance(self, *, until_begun: bool = False) -> bool:
        """Read on until there is a token; `False` at the end."""
        while True:
            try:
                return self._read_on(until_begun=until_begun)
            except RocllmError as exc:
                error = self._failed(exc)
                if self._goes_on(error):
                    continue
                if error is exc:
                    raise
                raise error from exc
            except BaseException:
                # Ctrl-C: bytes may be lost, so nothing can follow.
                self._close("reading it was interrupted")
                raise

    def _read_on(self, *, until_begun: bool) -> bool:
        while not self._ready:
            if self._ended or (until_begun and self._begun):
                return False
            self._check_open()
            if self._answer.finished:
                self._end()
            elif self._answer.needs_vocabulary:
                self._answer.use_vocabulary(self._client._fetch_vocabulary())
            else:
                if self._exchange is None:
                    self._exchange = self._open()
                self._feed(self._exchange.receive())
            self._drop_repeated()
        return True

    def _open(self) -> Exchange:
        client, request = self._client, self._first_request
        self._answer.start()
        self._explain = None
        self._explain = client._await_server()
        if self._rest_wanted:
            call = request.whole_prompt()
            self._resume_with(request.prompt if call is None else client._call(call))
        self._check_open()
        return Exchange(
            client._pool,
            self._request.what,
            client._encode(self._request),
            ("stream_timeout", client._stream_timeout),
        )

    def _end(self) -> None:
        self._ended = True
        if self._exchange is not None:
            if not self._answer.cut:
                self._exchange.settle(self._answer.response)
            self._exchange.close()

    def _close(self, because: str) -> None:
        if self._closed_because is None:
            self._closed_because = because
        self._ready.clear()
        if self._exchange is not None:
            self._exchange.close()

    def _failed(self, error: RocllmError) -> RocllmError:
        final = self._final_error(error, self._client._pool.closed)
        self._sent = self._exchange is not None and self._exchange.sent
        self._close("it ended with an error")
        self._exchange = None
        explain = self._explain
        if explain is None or not isinstance(final, UNEXPLAINED):
            return final
        return explain(final)
