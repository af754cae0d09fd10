"""One suite of tests that every backend passes; for backends of other packages, too.

    from rocllm.testing.backend_suite import BackendSuite

    class TestMine(BackendSuite):
        backend = "mine"
        options = {"threads": 1}

        @pytest.fixture(scope="class")
        @classmethod
        def model_path(cls):
            return Path("/models/small")

Run it with pytest. The model is loaded once for all tests of the class, and again after the crashes
and the stop that are part of them. It must be a chat model that goes on counting after "1, 2, 3,".
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rocllm import backends
from rocllm.backends import LoadedModel, LoadRequest
from rocllm.client import TokenStream
from rocllm.errors import (
    ContextOverflow,
    OptionsError,
    RequestError,
    RocllmError,
    ServerCrashed,
    StreamClosed,
)
from rocllm.options import LoadOptions, SamplingOptions, build_options
from rocllm.results import Completion, Message, Prompt, Token
from rocllm.server import State
from rocllm.text import TextModel

PROMPT = "1, 2, 3, 4, 5,"
QUESTION = (Message("user", "Explain gravity in one sentence."),)
# Tokens of a slot, and slots.
CTX_SIZE = 512
PARALLEL = 2
# More tokens than CTX_SIZE holds, for any tokeniser.
TOO_LONG = "word " * (2 * CTX_SIZE)


class BackendSuite:
    """What `Backend`, `LoadedModel`, `Connection` and `AsyncConnection` promise, as tests.

    backend: the name of the backend. options: fields of `LoadOptions` over those of the suite
    (`ctx_size` and `parallel` are the suite's). The fixture `model_path` gives the model.
    """

    backend: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def model_path(cls) -> Path:
        """The model to load."""
        raise NotImplementedError("a subclass has a fixture `model_path`")

    @pytest.fixture(scope="class")
    @classmethod
    def loaded(cls, model_path: Path) -> Iterator[LoadedModel]:
        """A loaded model with two slots."""
        fields = {**cls.options, "ctx_size": CTX_SIZE, "parallel": PARALLEL}
        request = LoadRequest(model_path, build_options(LoadOptions, fields), dict(os.environ))
        loaded = backends.get(cls.backend).load(request)
        yield loaded
        loaded.close()

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, loaded: LoadedModel) -> Iterator[TextModel]:
        """The same as a `TextModel`. Closing it ends its streams and leaves no process."""
        with TextModel(loaded) as model:
            yield model
            stream = model.generate(PROMPT, max_tokens=-1)
            next(stream)
            pid = loaded.info.pid
        model.close()
        with pytest.raises((StreamClosed, RequestError)):
            stream.read()
        assert loaded.state == "closed"
        assert pid is None or processes_of(pid) == []

    def test_it_is_registered_and_available(self) -> None:
        """The registry knows the backend under its name, and it can be used here."""
        backend = backends.get(self.backend)
        assert backend.name == self.backend
        assert self.backend in backends.list()
        assert backend.why_not() is None
        assert backend.available()

    def test_it_says_what_it_has_loaded(self, loaded: LoadedModel, model_path: Path) -> None:
        """The model, the engine, the context and the slots that were asked for."""
        info = loaded.info
        assert info.path == model_path
        assert info.backend == self.backend
        assert info.engine
        assert info.parallel == PARALLEL
        assert info.ctx_size >= CTX_SIZE
        assert info.model.architecture

    def test_tokens_have_ids_and_add_up(self, model: TextModel) -> None:
        """Text, usage and timings agree with the tokens, and the ids say the text."""
        with model.generate(PROMPT, max_tokens=8) as stream:
            tokens = list(stream)
        assert len(tokens) == 8
        assert stream.text == "".join(token.text for token in tokens)
        assert stream.finish_reason == "length"
        assert stream.usage is not None
        assert stream.usage.completion_tokens == 8
        assert stream.usage.prompt_tokens == len(model.tokenize(PROMPT, add_special=True))
        assert stream.timings is not None
        assert stream.timings.time_to_first_token is not None
        assert 0 < stream.timings.time_to_first_token <= stream.timings.total_seconds
        assert model.detokenize(ids_of(tokens)).strip() == stream.text.strip()
        assert model.state == "ready"

    def test_read_gives_what_iteration_gives(self, model: TextModel) -> None:
        """Greedy output is the same streamed and whole, from a text and from its tokens."""
        whole = model.generate(PROMPT, max_tokens=8).read()
        streamed = list(model.generate(PROMPT, max_tokens=8))
        from_ids = model.generate(model.tokenize(PROMPT, add_special=True), max_tokens=8).read()
        assert [token.id for token in streamed] == ids_of(whole.tokens)
        assert ids_of(from_ids.tokens) == ids_of(whole.tokens)

    def test_tokenize_and_detokenize_are_inverse(self, model: TextModel) -> None:
        """Also for characters that are made of several tokens."""
        for text in ("Hello, world!", "你好 🦙"):
            assert model.detokenize(model.tokenize(text)).strip() == text

    def test_chat_uses_the_template(self, model: TextModel) -> None:
        """It answers to its end, and the marks of the template are not in the answer."""
        prompt = model.apply_template(QUESTION)
        assert QUESTION[0].content in prompt
        reply = model.chat(QUESTION, max_tokens=24).read()
        assert reply.text
        assert reply.text == "".join(token.text for token in reply.tokens if not token.reasoning)
        assert reply.usage.completion_tokens == len(reply.tokens)
        assert reply.usage.prompt_tokens > len(model.tokenize(QUESTION[0].content))

    def test_log_probabilities(self, model: TextModel) -> None:
        """They come when asked for, in chat with the ids."""
        for stream in (
            model.generate(PROMPT, max_tokens=4, logprobs=True),
            model.chat(QUESTION, max_tokens=4, logprobs=True),
        ):
            reply = stream.read()
            assert reply.tokens
            assert all(token.id is not None for token in reply.tokens)
            assert all(token.logprob is not None and token.logprob <= 0 for token in reply.tokens)

    def test_stop_strings(self, model: TextModel) -> None:
        """The answer ends before the first of them."""
        free = model.generate(PROMPT, max_tokens=24).read()
        assert " 8" in free.text
        stopped = model.generate(PROMPT, max_tokens=24, stop=["?!", " 8"]).read()
        assert stopped.finish_reason == "stop"
        assert stopped.text == free.text.partition(" 8")[0]

    def test_stop_tokens(self, model: TextModel) -> None:
        """The answer ends with the first of them, whose text is no part of it."""
        free = model.generate(PROMPT, max_tokens=16).read()
        last = ids_of(free.tokens)[5]
        first = ids_of(free.tokens).index(last)
        stopped = model.generate(PROMPT, max_tokens=16, stop_tokens=[last]).read()
        assert stopped.finish_reason == "stop"
        assert stopped.text == "".join(token.text for token in free.tokens[:first])

    def test_sampling(self, model: TextModel) -> None:
        """A seed decides, and a schema is obeyed."""
        one, same = (
            model.generate(PROMPT, max_tokens=12, temperature=1.5, top_p=0.9, seed=7).read().text
            for _ in range(2)
        )
        assert one == same
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        answer = model.chat(QUESTION, json_schema=schema, max_tokens=48).read()
        assert isinstance(json.loads(answer.text)["n"], int)

    def test_leaving_a_stream_frees_its_slot(self, model: TextModel) -> None:
        """Who waits for a slot gets that of a stream that is left, not the next that is free."""
        left = model.generate(f"{PROMPT} 6,", max_tokens=-1)
        other = model.generate(f"{PROMPT} 7,", max_tokens=200)
        next(left)
        next(other)
        ended = []

        def read(name: str, stream: TokenStream) -> Completion:
            answer = stream.read()
            ended.append(name)
            return answer

        with ThreadPoolExecutor(2) as pool:
            others = pool.submit(read, "other", other)
            pool.submit(read, "waiting", model.generate(PROMPT, max_tokens=2))
            left.close()
        with pytest.raises(StreamClosed):
            next(left)
        long = others.result().usage.completion_tokens > 100
        assert long, "the model stopped counting: take another one"
        assert ended == ["waiting", "other"]

    def test_more_callers_than_slots(self, model: TextModel) -> None:
        """Each gets the answer to its own question."""
        prompts = [f"{n}, {n + 1}, {n + 2}, {n + 3}," for n in range(10, 10 + 10 * 6, 10)]
        alone = [model.generate(prompt, max_tokens=4).read().text for prompt in prompts]
        barrier = threading.Barrier(len(prompts), timeout=60)

        def generate(prompt: str) -> str:
            barrier.wait()
            return model.generate(prompt, max_tokens=4).read().text

        with ThreadPoolExecutor(len(prompts)) as pool:
            assert list(pool.map(generate, prompts)) == alone
        assert len(set(alone)) > 1

    def test_errors_are_typed(self, model: TextModel) -> None:
        """A prompt that is too long, an option that cannot be meant; it goes on afterwards."""
        for stream in (
            model.generate(TOO_LONG),
            model.chat([Message("user", TOO_LONG)]),
        ):
            with pytest.raises(ContextOverflow) as caught:
                stream.read()
            assert caught.value.n_prompt_tokens is None or caught.value.n_prompt_tokens > CTX_SIZE
        with pytest.raises(OptionsError, match="empty"):
            model.generate("")
        with pytest.raises(OptionsError, match="temperature"):
            model.generate(PROMPT, temprature=1.0)  # type: ignore[call-arg]
        with pytest.raises((RequestError, OptionsError)):
            model.generate(PROMPT, max_tokens=4, grammar="root ::= (").read()
        assert model.generate(PROMPT, max_tokens=2).read().text
        assert model.state == "ready"

    def test_a_crash_in_mid_stream(self, loaded: LoadedModel, model: TextModel) -> None:
        """A stream fails with the text so far, or goes on if it may; the next call is answered."""
        pid = loaded.info.pid
        if pid is None:
            pytest.skip("the engine runs in the calling process, which would be what crashes")
        expected = model.generate(PROMPT, max_tokens=64).read()
        fails = model.generate(PROMPT, max_tokens=-1)
        goes_on = model.generate(PROMPT, max_tokens=64, resume=True)
        begun = [next(fails), next(fails)]
        next(goes_on)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ServerCrashed) as caught:
            fails.read()
        assert caught.value.text.startswith("".join(token.text for token in begun))
        assert caught.value.retryable
        resumed = goes_on.read()
        assert resumed.resumed == 1
        assert resumed.text == expected.text
        assert model.generate(PROMPT, max_tokens=2).read().text
        assert model.state == "ready"
        assert processes_of(pid) == []

    def test_a_crash_before_the_first_token(self, loaded: LoadedModel, model: TextModel) -> None:
        """A call of which nothing has come is made again; one that had begun has its text."""
        pid = loaded.info.pid
        if pid is None:
            pytest.skip("the engine runs in the calling process, which would be what crashes")
        prompt = (model.tokenize(PROMPT) * CTX_SIZE)[: CTX_SIZE - 16]
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(lambda: model.generate(prompt, max_tokens=4).read().text)
            os.kill(pid, signal.SIGKILL)
            try:
                text, whole = asked.result(), True
            except ServerCrashed as exc:
                text, whole = exc.text, False
        answer = model.generate(prompt, max_tokens=4).read().text
        assert text == answer if whole else answer.startswith(text)
        assert model.state == "ready"
        assert processes_of(pid) == []

    def test_stopped_and_started_again(self, loaded: LoadedModel, model: TextModel) -> None:
        """A stop gives the memory back, and the next call loads the model again."""
        before = model.generate(PROMPT, max_tokens=4).read().text
        pid = loaded.info.pid
        model.stop()
        model.stop()
        stopped: State = loaded.state
        assert stopped == "stopped"
        assert pid is None or processes_of(pid) == []
        assert model.generate(PROMPT, max_tokens=4).read().text == before
        assert model.state == "ready"

    def test_asyncio_gives_the_same(self, loaded: LoadedModel, model: TextModel) -> None:
        """Tokens, errors, leaving a stream and several callers, for asyncio."""
        expected = model.generate(PROMPT, max_tokens=6).read()
        options = SamplingOptions(max_tokens=6)
        long = SamplingOptions(max_tokens=-1)

        async def ask() -> None:
            connection = loaded.connect_async()
            try:
                stream = connection.completion(PROMPT, options, resume=False)
                assert [token.id async for token in stream] == ids_of(expected.tokens)
                async with connection.completion(PROMPT, long, resume=False) as left:
                    await anext(left)
                with pytest.raises(StreamClosed):
                    await anext(left)
                with pytest.raises(ContextOverflow):
                    await connection.completion(TOO_LONG, options, resume=False).read()
                replies = await asyncio.gather(
                    *(connection.completion(PROMPT, options, resume=False).read() for _ in "1234"),
                    connection.chat(QUESTION, options, resume=False).read(),
                )
                assert [reply.text for reply in replies[:4]] == [expected.text] * 4
                assert replies[4].text
                assert await connection.tokenize(PROMPT) == model.tokenize(PROMPT)
                assert await connection.apply_template(QUESTION) == model.apply_template(QUESTION)
            finally:
                await connection.aclose()

        asyncio.run(ask())

    def test_batch(self, model: TextModel) -> None:
        """Results come in order, and a prompt that fails has its error in its own."""
        prompts: list[Prompt] = [PROMPT, TOO_LONG, list(QUESTION), "10, 11, 12, 13,"]
        results = list(model.batch_generate(prompts, max_tokens=4))
        assert [result.index for result in results] == [0, 1, 2, 3]
        assert isinstance(results[1].error, ContextOverflow)
        assert [result.error for result in results if result.index != 1] == [None] * 3
        assert results[0].text == model.generate(PROMPT, max_tokens=4).read().text

    def test_classify(self, model: TextModel) -> None:
        """Labels have probabilities that add up to 1; without labels the next token is told."""
        results = list(model.classify([PROMPT, TOO_LONG], labels=[" 6", " banana"]))
        assert results[0].label == " 6"
        assert sum(results[0].probabilities.values()) == pytest.approx(1)
        assert isinstance(results[1].error, RocllmError)
        (result,) = model.classify([PROMPT], top_k=3)
        (first, *_) = model.generate(PROMPT, max_tokens=1).read().tokens
        assert result.token is not None
        assert result.token.id == first.id
        assert len(result.top) == 3
        assert result.probability is not None
        assert 0 < result.probability <= 1


def ids_of(tokens: Iterable[Token]) -> list[int]:
    """The ids of tokens, each of which has one."""
    ids = [token.id for token in tokens]
    assert None not in ids
    return [number for number in ids if number is not None]


def processes_of(group: int) -> list[int]:
    """The processes of a process group, as `LoadedInfo.pid` leads one; zombies count, too."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # gone meanwhile
        if int(fields[2]) == group:
            found.append(int(stat.parent.name))
    return found
