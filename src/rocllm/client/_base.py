"""What the clients for blocking callers and for asyncio have in common. No I/O."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias

from rocllm.client._answer import Answer
from rocllm.client._errors import stream_closed
from rocllm.client._http import encode_request
from rocllm.client._ids import Vocabulary
from rocllm.client._wire import Call, StreamRequest
from rocllm.endpoint import Endpoint
from rocllm.errors import RequestError, RocllmError, StreamClosed
from rocllm.options import SamplingOptions
from rocllm.results import Completion, FinishReason, Timings, Token, Usage

# Makes a better error of one that says only that the connection broke.
Explain: TypeAlias = Callable[[RocllmError], RocllmError]
# A timeout's name in the client's signature, and its seconds.
Timeout: TypeAlias = tuple[str, float | None]

DEFAULT_SAMPLING = SamplingOptions()
# The longest answer that is not a stream: a batch of the vocabulary has 1 MB.
MAX_BODY = 64 * 1024 * 1024
# Seconds that the end of a whole answer may take to arrive; then the connection is not used again.
SETTLE = 1.0


class ClientBase:
    """Where the server is, how long to wait for it, and what is known about its model."""

    def __init__(
        self,
        endpoint: Endpoint,
        read_timeout: float | None,
        stream_timeout: float | None,
        explain: Explain | None,
    ) -> None:
        self.endpoint = endpoint
        self._read_timeout = read_timeout
        self._stream_timeout = stream_timeout
        self._explain = explain
        self._vocabulary: Vocabulary | None = None
        # The server cannot tell its vocabulary.
        self._no_vocabulary = False

    def _encode(self, request: Call[Any] | StreamRequest) -> bytes:
        method = request.method if isinstance(request, Call) else "POST"
        where = self.endpoint
        host = "localhost" if where.socket_path else str(where).removeprefix("http://")
        return encode_request(
            method, request.target, request.body, host=host, api_key=where.api_key
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.endpoint}>"


class StreamBase:
    """What a stream has told so far."""

    def __init__(self, request: StreamRequest, endpoint: Endpoint) -> None:
        self._answer = Answer(
            request.what,
            endpoint,
            request.sampling,
            chat=request.chat,
            reads_ids=request.reads_ids,
            clock=time.monotonic,
        )
        self._ready = self._answer.ready
        self._tokens: list[Token] = []
        self._ended = False
        # Why the stream cannot be read any more.
        self._closed_because: str | None = None

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

    def _check_open(self) -> None:
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
            if isinstance(error, RequestError):
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
        )

    def __repr__(self) -> str:
        state = "ended" if self._ended else "closed" if self._closed_because else "open"
        return f"<{type(self).__name__} {len(self._tokens)} tokens read [{state}]>"
