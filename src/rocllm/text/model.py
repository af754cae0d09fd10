"""`TextModel` and `AsyncTextModel`: the same model for blocking callers and for asyncio."""

from __future__ import annotations

import asyncio
import warnings
import weakref
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self, Unpack

from rocllm.backends import LoadedInfo, LoadedModel
from rocllm.client import AsyncTokenStream, TokenStream
from rocllm.options import SamplingArguments, SamplingOptions, build_options
from rocllm.results import BatchProgress, BatchResult, ClassifyResult, Message, Prompt
from rocllm.server import State
from rocllm.text._prompts import checked_messages, checked_prompt
from rocllm.text.async_batch import AsyncBatch
from rocllm.text.batch import Batch
from rocllm.text.batch_generate import batch_generate, batch_generate_async
from rocllm.text.classify import checked_question, classify, classify_async


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

    def batch_generate(
        self,
        prompts: Iterable[Prompt],
        *,
        sampling: SamplingOptions | None = None,
        resume: bool = False,
        ordered: bool = True,
        max_in_flight: int | None = None,
        on_progress: Callable[[BatchProgress], None] | None = None,
        **options: Unpack[SamplingArguments],
    ) -> Batch[BatchResult]:
        """Answer many prompts, several at once; an iterator of one `BatchResult` a prompt.

        prompts: any iterable, also one without end, of texts and token ids, which are continued,
        and of lists of `Message`, which go through the chat template. sampling, resume, options: as
        in `generate`. ordered: results come in the order of the prompts, otherwise as they are
        done. max_in_flight: requests at once; `None`: one more than there are slots. on_progress:
        is called with each result, in the thread that reads them.

        A prompt that fails has its error in its result, and the others go on. Leaving the iterator
        (`close`, `with`, or dropping it) ends what is under way. Raises `OptionsError` at once for
        an option that cannot be meant; see `Batch` for what reading raises.

        >>> for result in model.batch_generate(["1, 2,", "a, b,"], max_tokens=4):  # doctest: +SKIP
        ...     print(result.index, result.text)
        """
        return batch_generate(
            self._loaded,
            prompts,
            build_options(SamplingOptions, options, sampling),
            resume=resume,
            ordered=ordered,
            max_in_flight=max_in_flight,
            on_progress=on_progress,
        )

    def classify(
        self,
        prompts: Iterable[Prompt],
        *,
        labels: Sequence[str] | Mapping[str, str] | None = None,
        top_k: int | None = None,
        logprobs: bool = False,
        ordered: bool = True,
        max_in_flight: int | None = None,
        on_progress: Callable[[BatchProgress], None] | None = None,
    ) -> Batch[ClassifyResult]:
        """Say which label follows each prompt, or which token; one forward pass a prompt.

        prompts, ordered, on_progress: as in `batch_generate`. labels: texts of which one follows,
        exactly as it would stand there, so mostly with a space before it; or such texts by name.
        `None`: the next token. top_k: tell the likeliest tokens, up to 4096. logprobs: tell the log
        probability of every token of the vocabulary, by its id; some seconds a prompt.
        max_in_flight: requests at once; `None`: two for each slot.

        Labels that begin with the same tokens cost a pass for each place where they part; what the
        prompts have in common is computed once. A prompt that fails has its error in its result.
        Raises `OptionsError`, at once or when reading begins, for labels that cannot be told apart.

        >>> prompts = ["Review: Wonderful!\\nSentiment:", "Review: A waste of time.\\nSentiment:"]
        >>> for result in model.classify(  # doctest: +SKIP
        ...     prompts, labels={"positive": " positive", "negative": " negative"}
        ... ):
        ...     print(result.label, result.margin)
        """
        return classify(
            self._loaded,
            prompts,
            checked_question(self.info, labels, top_k, logprobs),
            ordered=ordered,
            max_in_flight=max_in_flight,
            on_progress=on_progress,
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

    def batch_generate(
        self,
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        *,
        sampling: SamplingOptions | None = None,
        resume: bool = False,
        ordered: bool = True,
        max_in_flight: int | None = None,
        on_progress: Callable[[BatchProgress], None] | None = None,
        **options: Unpack[SamplingArguments],
    ) -> AsyncBatch[BatchResult]:
        """Answer many prompts, several at once; see `TextModel.batch_generate`."""
        return batch_generate_async(
            self._loaded,
            self._connection,
            prompts,
            build_options(SamplingOptions, options, sampling),
            resume=resume,
            ordered=ordered,
            max_in_flight=max_in_flight,
            on_progress=on_progress,
        )

    def classify(
        self,
        prompts: Iterable[Prompt] | AsyncIterable[Prompt],
        *,
        labels: Sequence[str] | Mapping[str, str] | None = None,
        top_k: int | None = None,
        logprobs: bool = False,
        ordered: bool = True,
        max_in_flight: int | None = None,
        on_progress: Callable[[BatchProgress], None] | None = None,
    ) -> AsyncBatch[ClassifyResult]:
        """Say which label or token follows each prompt; see `TextModel.classify`."""
        return classify_async(
            self._loaded,
            self._connection,
            prompts,
            checked_question(self.info, labels, top_k, logprobs),
            ordered=ordered,
            max_in_flight=max_in_flight,
            on_progress=on_progress,
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


def _close_abandoned(loaded: LoadedModel) -> None:
    """A model that nobody closed: at its collection, or at the end of the program."""
    warnings.warn(
        f"the model {loaded.info.path.name} was never closed: use `with` or close()",
        ResourceWarning,
        stacklevel=2,
    )
    loaded.close()
