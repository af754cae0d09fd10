"""`TextModel` and `AsyncTextModel`: the same model for blocking callers and for asyncio."""

from __future__ import annotations

import asyncio
import warnings
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Self, Unpack

from rocllm.backends import LoadedInfo, LoadedModel
from rocllm.client import AsyncTokenStream, TokenStream
from rocllm.errors import OptionsError
from rocllm.options import SamplingArguments, SamplingOptions, build_options
from rocllm.results import Message
from rocllm.server import State


class TextModel:
    """A loaded model. Close it, or use it in a `with` statement; safe to use from several threads.

    >>> with rocllm.load_model("demo") as model:  # doctest: +SKIP
    ...     print(model.generate("The capital of France is", max_tokens=8).read().text)
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._connection = loaded.connect()
        self._abandoned = weakref.finalize(self, _close_abandoned, loaded)

    @property
    def info(self) -> LoadedInfo:
        """What was loaded, where and how."""
        return self._loaded.info

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        sampling: SamplingOptions | None = None,
        resume: bool = False,
        **options: Unpack[SamplingArguments],
    ) -> TokenStream:
        """Continue `prompt`, given as text or as token ids.

        sampling: how to generate. options: its fields one by one, over those of `sampling`.
        resume: when the server crashes, go on with the next one where the answer broke off; not
        together with `json_schema` or `grammar`. With temperature 0 the answer is that of a server
        that did not crash.

        Returns a stream of `Token`; leaving it cancels the request. Raises `OptionsError` for an
        option that cannot be meant and for an empty prompt; reading the stream raises
        `ContextOverflow` when the prompt is longer than the context, `ServerCrashed` when the
        server died, and the other `RequestError`s.

        >>> model.generate("1, 2, 3,", max_tokens=4).read().text  # doctest: +SKIP
        ' 4, 5'
        """
        return self._connection.completion(
            checked_prompt(prompt),
            build_options(SamplingOptions, options, sampling),
            resume=resume,
        )

    def chat(
        self,
        messages: Sequence[Message],
        *,
        sampling: SamplingOptions | None = None,
        resume: bool = False,
        **options: Unpack[SamplingArguments],
    ) -> TokenStream:
        """Answer a conversation, put into words by the model's own chat template.

        Arguments, result and errors are those of `generate`. `resume` costs what `logprobs` costs.

        >>> model.chat([Message("user", "Hello!")]).read().text  # doctest: +SKIP
        'Hello! How can I help you today?'
        """
        return self._connection.chat(
            checked_messages(messages),
            build_options(SamplingOptions, options, sampling),
            resume=resume,
        )

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """The token ids of `text`; with `add_special` those that begin a prompt come first."""
        return self._connection.tokenize(text, add_special=add_special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return self._connection.detokenize(tokens)

    def apply_template(self, messages: Sequence[Message]) -> str:
        """The prompt that the model's chat template makes of a conversation."""
        return self._connection.apply_template(checked_messages(messages))

    @property
    def state(self) -> State:
        """Where the server stands: `ready`, `starting` after a crash, `failed`, `stopped`, ..."""
        return self._loaded.state

    def stop(self) -> None:
        """Stop the server and give its memory back; the next call starts it again. Idempotent.

        It also forgets that the server failed: what stood in the way may be mended by now.
        """
        self._loaded.stop()

    def close(self) -> None:
        """End every stream, unload the model and leave nothing behind. Idempotent."""
        if self._abandoned.detach() is not None:
            self._connection.close()
            self._loaded.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "loaded" if self._abandoned.alive else "closed"
        return f"<TextModel {self.info.path.name} [{state}]>"


class AsyncTextModel:
    """A loaded model for asyncio; the methods are those of `TextModel`.

    >>> async with rocllm.load_model_async("demo") as model:  # doctest: +SKIP
    ...     async for token in model.generate("The capital of France is", max_tokens=8):
    ...         print(token.text, end="")
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._connection = loaded.connect_async()
        self._abandoned = weakref.finalize(self, _close_abandoned, loaded)

    @property
    def info(self) -> LoadedInfo:
        """What was loaded, where and how."""
        return self._loaded.info

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        sampling: SamplingOptions | None = None,
        resume: bool = False,
        **options: Unpack[SamplingArguments],
    ) -> AsyncTokenStream:
        """Continue `prompt`; see `TextModel.generate`."""
        return self._connection.completion(
            checked_prompt(prompt),
            build_options(SamplingOptions, options, sampling),
            resume=resume,
        )

    def chat(
        self,
        messages: Sequence[Message],
        *,
        sampling: SamplingOptions | None = None,
        resume: bool = False,
        **options: Unpack[SamplingArguments],
    ) -> AsyncTokenStream:
        """Answer a conversation; see `TextModel.chat`."""
        return self._connection.chat(
            checked_messages(messages),
            build_options(SamplingOptions, options, sampling),
            resume=resume,
        )

    async def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """The token ids of `text`; see `TextModel.tokenize`."""
        return await self._connection.tokenize(text, add_special=add_special)

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return await self._connection.detokenize(tokens)

    async def apply_template(self, messages: Sequence[Message]) -> str:
        """The prompt that the model's chat template makes of a conversation."""
        return await self._connection.apply_template(checked_messages(messages))

    @property
    def state(self) -> State:
        """Where the server stands; see `TextModel.state`."""
        return self._loaded.state

    async def stop(self) -> None:
        """Stop the server and give its memory back; see `TextModel.stop`."""
        await asyncio.to_thread(self._loaded.stop)

    async def aclose(self) -> None:
        """End every stream, unload the model and leave nothing behind. Idempotent."""
        if self._abandoned.detach() is not None:
            await self._connection.aclose()
            # Shielded: a cancelled caller must not leave a server behind.
            await asyncio.shield(asyncio.to_thread(self._loaded.close))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        state = "loaded" if self._abandoned.alive else "closed"
        return f"<AsyncTextModel {self.info.path.name} [{state}]>"


def checked_prompt(prompt: str | Sequence[int]) -> str | Sequence[int]:
    """`prompt`, unless there is nothing in it."""
    if len(prompt) == 0:
        raise OptionsError(
            "the prompt is empty",
            why="a model continues a text, and there is none",
            remedy="give at least one character, or use chat()",
        )
    return prompt


def checked_messages(messages: Sequence[Message]) -> Sequence[Message]:
    """`messages`, unless there are none or they are something else."""
    if isinstance(messages, Message):
        raise OptionsError(
            "chat() takes a list of messages, got a single Message",
            remedy="put it into a list: chat([message])",
        )
    wrong = next((message for message in messages if not isinstance(message, Message)), None)
    if wrong is not None:
        raise OptionsError(
            f"chat() takes a list of rocllm.Message, got {wrong!r}",
            remedy="write rocllm.Message('user', 'Hello!')",
        )
    if not messages:
        raise OptionsError("the conversation is empty", remedy="give at least one message")
    return messages


def _close_abandoned(loaded: LoadedModel) -> None:
    """A model that nobody closed: at its collection, or at the end of the program."""
    warnings.warn(
        f"the model {loaded.info.path.name} was never closed: use `with` or close()",
        ResourceWarning,
        stacklevel=2,
    )
    loaded.close()
