"""What the clients for blocking callers and for asyncio have in common. No I/O."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from rocllm.client._answer import Answer
from rocllm.client._errors import stream_closed
from rocllm.client._http import encode_request
from rocllm.client._ids import Vocabulary
from rocllm.client._wire import Call, StreamRequest
from rocllm.client.channel import Channel, Where
from rocllm.errors import (
    ConnectionLost,
    RequestError,
    RequestTimeout,
    RocllmError,
    ServerCrashed,
    ServerError,
    StreamClosed,
)
from rocllm.frames import write_request
from rocllm.options import SamplingOptions
from rocllm.results import Completion, FinishReason, Timings, Token, Usage

# Makes a better error of one that says only that the connection broke, or that nothing came.
Explain: TypeAlias = Callable[[RocllmError], RocllmError]
# A timeout's name in the client's signature, and its seconds.
Timeout: TypeAlias = tuple[str, float | None]

# The errors of which a keeper may know more.
UNEXPLAINED = (ConnectionLost, RequestTimeout)
DEFAULT_SAMPLING = SamplingOptions()
# The longest answer that is not a stream: a batch of the vocabulary has 1 MB.
MAX_BODY = 64 * 1024 * 1024
# Seconds that the end of a whole answer may take to arrive; then the connection is not used again.
SETTLE = 1.0


class Keeper(Protocol):
    """Who looks after the server that a client talks to, and starts it again after a crash."""

    def ask(self) -> Callable[[], Explain | None]:
        """Ask for a server, and go on.

        Returns what to call until it gives what explains that server's errors; until the server
        serves it gives `None`. It raises why there will be none.
        """

    def wait(self) -> Explain:
        """The same, for who can wait."""


class ClientBase:
    """Where the server is, how long to wait for it, and what is known about its model."""

    def __init__(
        self,
        endpoint: Where,
        read_timeout: float | None,
        stream_timeout: float | None,
        keeper: Keeper | None,
        slot_save_path: Path | None,
    ) -> None:
        self.endpoint = endpoint
        self._slot_save_path = slot_save_path
        self._read_timeout = read_timeout
        self._stream_timeout = stream_timeout
        self._keeper = keeper
        self._vocabulary: Vocabulary | None = None
        # The server cannot tell its vocabulary.
        self._no_vocabulary = False

    def _encode(self, request: Call[Any] | StreamRequest) -> bytes:
        method = request.method if isinstance(request, Call) else "POST"
        where = self.endpoint
        if isinstance(where, Channel):
            return write_request(method, request.target, request.body)
        host = "localhost" if where.socket_path else str(where).removeprefix("http://")
        return encode_request(
            method, request.target, request.body, host=host, api_key=where.api_key
        )

    def _timeout(self, call: Call[Any]) -> Timeout:
        if call.queued:
            return ("stream_timeout", self._stream_timeout)
        return ("read_timeout", self._read_timeout)

    @contextmanager
    def _slot_file(self) -> Iterator[str]:
        """The name of a file in which a slot may be saved."""
        assert self._slot_save_path is not None
        name = secrets.token_hex(8)
        try:
            yield name
        finally:
            (self._slot_save_path / name).unlink(missing_ok=True)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.endpoint}>"


class StreamBase:
    """What a stream has told so far."""

    def __init__(self, request: StreamRequest, endpoint: Where) -> None:
        self._first_request = request
        # What is sent next: the same, or what is left of it after a crash.
        self._request = request
        self._rest_wanted = False
        self._endpoint = endpoint
        self._begin(None, known=0)
        self._tokens: list[Token] = []
        self._ended = False
        self._resumed = 0
        # Tokens to come that are known already.
        self._repeated = 0
        # Why the stream cannot be read any more.
        self._closed_because: str | None = None
        # Its reader does not want it any more.
        self._left = False
        # What explains an error, once there is a server; whether that one got the request.
        self._explain: Explain | None = None
        self._sent = False
        self._repeated_once = False

    @property
    def resumed(self) -> int:
        """How often it went on after a crash of the server."""
        return self._resumed

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The tokens that were read so far."""
        return tuple(self._tokens)

    @property
    def text(self) -> str:
        """The answer as far as it was read."""
        return "".join([token.text for token in self._tokens if not token.reasoning])

    @property
    def reasoning(self) -> str:
        """The model's thinking as far as it was read, where the chat template separates it."""
        return "".join([token.text for token in self._tokens if token.reasoning])

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; `None` until it was read to its end."""
        return self._answer.finish_reason if self._ended else None

    @property
    def usage(self) -> Usage | None:
        """The tokens counted; `None` until the answer was read to its end."""
        return self._answer.usage if self._ended else None

    @property
    def timings(self) -> Timings | None:
        """Where the time went; `None` until the answer was read to its end."""
        return self._answer.timings if self._ended else None

    @property
    def _begun(self) -> bool:
        """The server has accepted the request."""
        return self._answer.response.status == 200

    def _feed(self, data: bytes) -> None:
        if data:
            self._answer.feed(data)
        else:
            self._answer.feed_eof()

    def _drop_repeated(self) -> None:
        while self._repeated and self._ready:
            self._ready.popleft()
            self._repeated -= 1

    def _check_open(self) -> None:
        if self._left and self._closed_because is None:
            self._closed_because = "it was closed before its end"
        if self._closed_because is not None:
            raise stream_closed(f"{self!r} cannot be read", self._closed_because)
        if self._answer.failure is not None:
            raise self._answer.failure

    def _final_error(self, error: RocllmError, client_closed: bool) -> RocllmError:
        """`error` with the text so far, or what it means when our side has closed the stream."""
        if self._closed_because is None and client_closed:
            self._closed_because = "its client was closed"
        if self._closed_because is None:
            self._closed_because = "it ended with an error"
            if isinstance(error, (RequestError, ServerError)):
                error.text = self.text
        elif not isinstance(error, StreamClosed):
            return stream_closed(f"{self!r} cannot be read", self._closed_because)
        return error

    def _completion(self) -> Completion:
        answer = self._answer
        assert answer.finish_reason is not None
        assert answer.usage is not None
        assert answer.timings is not None
        return Completion(
            text=self.text,
            reasoning=self.reasoning,
            tokens=self.tokens,
            finish_reason=answer.finish_reason,
            usage=answer.usage,
            timings=answer.timings,
            resumed=self._resumed,
        )

    def _begin(self, follows: Answer | None, known: int) -> None:
        """Await the answer to the request, of whose prompt `known` tokens are generated ones."""
        request = self._request
        self._answer = Answer(
            request.what,
            self._endpoint,
            request.new_events(),
            clock=time.monotonic,
            follows=follows,
            known=known,
        )
        self._ready = self._answer.ready

    def _goes_on(self, error: RocllmError) -> bool:
        """After an error: whether a request is worth sending that takes the place of this one.

        After a crash that is the same request, or what is left of it.
        """
        other = self._request.instead(error)
        if other is not None and not self._left:
            self._request, self._closed_because = other, None
            self._begin(self._answer, self._answer.known)
            return True
        crashed = isinstance(error, ServerCrashed) and self._explain is not None
        if not crashed or not error.retryable or self._left:
            return False
        if self._sent and not self._begun and not self._repeated_once:
            self._repeated_once = True
        elif self._sent:
            why_not = self._why_not_resumable()
            if why_not is not None:
                error.why = "\n".join(part for part in (error.why, why_not) if part)
            if why_not is not None or not self._request.resume:
                return False
            self._resumed += 1
            self._rest_wanted = bool(self._tokens)
        # What never reached a server is sent to the next one; what got no answer, too, but once:
        # it may be the very thing that this server cannot stand.
        self._closed_because = None
        self._begin(self._answer, self._answer.known)
        return True

    def _why_not_resumable(self) -> str | None:
        if not self._request.resume:
            return None
        if any(token.reasoning for token in self._tokens):
            return "it is not resumed: the server hides how its thinking is written"
        if any(token.id is None for token in self._tokens):
            return "it is not resumed: the server hid the id of a token"
        return None

    def _resume_with(self, prompt: str | list[int] | None) -> None:
        """Ask for what is left, `prompt` being that of the whole answer."""
        assert prompt is not None
        ids = [token.id for token in self._tokens if token.id is not None]
        left = self._first_request.sampling.max_tokens
        if left > 0:
            left -= len(ids)
            if left == 0:
                # Only the figures at its end are missing; the server tells them after a token.
                left, self._repeated = 1, 1
                ids.pop()
        self._request = self._first_request.resumed(prompt, ids, left)
        self._rest_wanted = False
        self._begin(self._answer, len(ids))

    def __repr__(self) -> str:
        state = "ended" if self._ended else "closed" if self._closed_because else "open"
        return f"<{type(self).__name__} {len(self._tokens)} tokens read [{state}]>"
