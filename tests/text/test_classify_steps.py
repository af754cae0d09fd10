"""Classification over a connection that is made up: what is asked, and what becomes of errors."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from rocllm.errors import ContextOverflow, OptionsError, RocllmError, ServerCrashed, StreamClosed
from rocllm.results import ClassifyResult, Message, NextToken, Prompt, Token, Usage
from rocllm.text.classify import (
    MAX_TOP_K,
    Question,
    checked_question,
    classify,
    classify_async,
    common_prefix,
)

VOCABULARY = 100


class Connection:
    """Any probabilities; `fail` may raise before an answer."""

    def __init__(self, fail: Callable[[str], None] = lambda _: None) -> None:
        self.fail = fail
        self.lock = threading.Lock()
        self.asked: list[tuple[Any, tuple[int, ...], tuple[int, ...]]] = []
        self.shared: list[Any] = []
        self.closed = False

    def tokenize(self, text: str) -> list[int]:
        return [ord(char) % VOCABULARY for char in text]

    def apply_template(self, messages: Sequence[Message]) -> str:
        return "".join(f"<{message.role}>{message.content}" for message in messages)

    def share_prefix(self, prompt: Any) -> int:
        self.shared.append(prompt)
        return 2

    def next_token(
        self, prompt: Any, *, then: Sequence[int] = (), among: Sequence[int] = (), top_k: int = 1
    ) -> NextToken:
        with self.lock:
            self.asked.append((prompt, tuple(then), tuple(among)))
        self.fail(prompt)
        weights = {token: 1.0 + (token * 37 + len(prompt)) % 11 for token in range(VOCABULARY)}
        chosen = list(among) or sorted(weights, key=lambda token: -weights[token])[:top_k]
        total = math.fsum(weights[t] for t in (among or weights))
        tokens = [Token(token, "", math.log(weights[token] / total)) for token in chosen]
        return NextToken(tuple(sorted(tokens, key=_rank)), Usage(len(prompt), 1))

    def close(self) -> None:
        self.closed = True


def _rank(token: Token) -> float:
    assert token.logprob is not None
    return -token.logprob


class AsyncConnection:
    """The same for asyncio."""

    def __init__(self, blocking: Connection) -> None:
        self._blocking = blocking

    def __getattr__(self, name: str) -> Any:
        async def ask(*arguments: Any, **options: Any) -> Any:
            await asyncio.sleep(0)
            return getattr(self._blocking, name)(*arguments, **options)

        return ask


def loaded(connection: Connection, parallel: int = 2) -> Any:
    """A loaded model, as far as classification looks."""
    info = SimpleNamespace(parallel=parallel, model=SimpleNamespace(vocab_size=VOCABULARY))
    return SimpleNamespace(info=info, connect=lambda: connection)


Run = Callable[..., list[ClassifyResult]]


def run_sync(connection: Connection, prompts: Any, question: Question) -> list[ClassifyResult]:
    model = loaded(connection)
    options: Any = {"ordered": True, "max_in_flight": None, "on_progress": None}
    return list(classify(model, prompts, question, **options))


def run_async(connection: Connection, prompts: Any, question: Question) -> list[ClassifyResult]:
    async def main() -> list[ClassifyResult]:
        options: Any = {"ordered": True, "max_in_flight": None, "on_progress": None}
        model: Any = AsyncConnection(connection)
        batch = classify_async(loaded(connection), model, prompts, question, **options)
        return [result async for result in batch]

    return asyncio.run(main())


@pytest.fixture(params=[run_sync, run_async], ids=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Run:
    """Classify in one of the two worlds."""
    return request.param  # type: ignore[no-any-return]


def asks(labels: Any = None, top_k: int | None = None, *, logprobs: bool = False) -> Question:
    return checked_question(loaded(Connection()).info, labels, top_k, logprobs)


def test_texts_tokens_and_conversations(run: Run) -> None:
    """Each in its own form to the server; usage tells prompt and passes."""
    connection = Connection()
    prompts = ["text", [1, 2, 3], [Message("user", "hi")]]
    results = run(connection, prompts, asks(["a", "b"]))
    assert [result.error for result in results] == [None] * 3
    assert {repr(prompt) for prompt, _, _ in connection.asked} == {
        "'text'",
        "[1, 2, 3]",
        "'<user>hi'",
    }
    assert [result.usage for result in results] == [Usage(4, 1), Usage(3, 1), Usage(8, 1)]
    assert [result.prompt for result in results] == prompts


def test_labels(run: Run) -> None:
    """In the order given, adding up to 1, with the best and its margin."""
    (result,) = run(Connection(), ["text"], asks({"no": "ax", "yes": "ay", "other": "b"}))
    assert list(result.probabilities) == ["no", "yes", "other"]
    assert math.fsum(result.probabilities.values()) == pytest.approx(1)
    best, second, _ = sorted(result.probabilities.values(), reverse=True)
    assert result.probability == best
    assert result.probabilities[result.label or ""] == best
    assert result.margin == pytest.approx(best - second)
    assert result.usage == Usage(4, 2)
    assert result.token is None


def test_next_token(run: Run) -> None:
    """The likeliest with its probability; the first few, or every one, when asked for."""
    (plain,) = run(Connection(), ["text"], asks())
    assert plain.token is not None
    assert plain.probability == pytest.approx(math.exp(plain.token.logprob or 0))
    assert (plain.top, plain.logprobs, plain.label, plain.margin) == ((), None, None, None)
    (top,) = run(Connection(), ["text"], asks(top_k=3))
    assert len(top.top) == 3
    assert top.token == plain.token == top.top[0]
    (whole,) = run(Connection(), ["text"], asks(logprobs=True))
    assert whole.logprobs is not None
    assert len(whole.logprobs) == VOCABULARY
    assert math.fsum(map(math.exp, whole.logprobs)) == pytest.approx(1)
    assert whole.logprobs[plain.token.id or 0] == pytest.approx(plain.token.logprob)
    assert max(whole.logprobs) == whole.logprobs[plain.token.id or 0]


def test_the_whole_vocabulary_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is never asked for all of it at once, and the pieces fit together."""
    monkeypatch.setattr("rocllm.text.classify._VOCABULARY_BATCH", 30)
    connection = Connection()
    (pieces,) = run_sync(connection, ["text"], asks(logprobs=True))
    monkeypatch.undo()
    (whole,) = run_sync(Connection(), ["text"], asks(logprobs=True))
    assert list(pieces.logprobs or ()) == pytest.approx(list(whole.logprobs or ()))
    assert max(len(among) for _, _, among in connection.asked) == 31
    assert pieces.usage == Usage(4, 5)


def test_a_bad_prompt_is_one_result(run: Run) -> None:
    """What is no prompt, and one that is too long; the rest is done."""

    def fail(prompt: str) -> None:
        if prompt == "long":
            raise ContextOverflow("too long", n_ctx=4)

    prompts: Iterator[Any] = iter(["a", "", None, b"bytes", 7, "long", [], "b"])
    results = run(Connection(fail), prompts, asks(["x", "y"]))
    kinds = [type(result.error).__name__ for result in results]
    assert kinds == [
        "NoneType",
        *["OptionsError"] * 4,
        "ContextOverflow",
        "OptionsError",
        "NoneType",
    ]
    assert [result.index for result in results] == list(range(8))


def test_a_crash_is_tried_once_more(run: Run) -> None:
    """Those that were under way when a prompt killed the server are not lost with it."""
    lock = threading.Lock()
    crashes = {"poison": 0}

    def fail(prompt: str) -> None:
        with lock:
            # Whoever comes while the server is down dies with it, the first time.
            if prompt == "poison" or crashes.setdefault(prompt, 0) < (prompt in ("b", "c")):
                crashes[prompt] += 1
                raise ServerCrashed(f"died of {prompt}")

    results = run(Connection(fail), ["a", "poison", "b", "c", "d"], asks(["x", "y"]))
    assert [result.error is None for result in results] == [True, False, True, True, True]
    assert isinstance(results[1].error, ServerCrashed)
    assert crashes["poison"] == 2


def test_second_tries_come_one_by_one() -> None:
    """If it is one of them that the server dies of, the others must not die of it twice."""
    lock = threading.Lock()
    state = {"at work": 0, "most": 0}
    tried: set[str] = set()
    together = threading.Barrier(4)

    def fail(prompt: str) -> None:
        if prompt not in tried:
            tried.add(prompt)
            together.wait(20)
            raise ServerCrashed("died")
        with lock:
            state["at work"] += 1
            state["most"] = max(state["most"], state["at work"])
        with lock:
            state["at work"] -= 1

    results = run_sync(Connection(fail), list("abcd"), asks(["x", "y"]))
    assert all(result.error is None for result in results)
    assert state["most"] == 1


def test_a_server_that_stays_down_ends_the_batch(run: Run) -> None:
    """It is no matter of one prompt, and no result of a thousand."""
    gone = ServerCrashed("it crashed for the fourth time in a row")
    gone.retryable = False
    for error in (gone, StreamClosed("the model is closed")):
        count = []

        def fail(prompt: str, error: RocllmError = error, count: list[str] = count) -> None:
            count.append(prompt)
            if len(prompt) > 1:
                raise error

        with pytest.raises(type(error)):
            run(Connection(fail), iter(["a", *["bb"] * 1000]), asks(["x", "y"]))
        assert len(count) < 20


def test_what_prompts_begin_with_is_shared(run: Run) -> None:
    """Once, when it is long and there are several slots."""
    head = "An instruction and some examples. " * 10
    connection = Connection()
    run(connection, [f"{head}{number}" for number in range(20)], asks(["x", "y"]))
    assert connection.shared == [head]
    connection = Connection()
    turns = [[Message("system", head), Message("user", str(number))] for number in range(5)]
    run(connection, turns, asks())
    assert connection.shared == [f"<system>{head}<user>"]
    connection = Connection()
    run(connection, [[*range(50), number] for number in range(9)], asks())
    assert connection.shared == [list(range(50))]
    connection = Connection()
    run(connection, ["", f"{head}1", None, f"{head}2"], asks())
    assert connection.shared == [head]


@pytest.mark.parametrize(
    "prompts",
    [
        ["short a", "short b"],
        ["one long prompt " * 20],
        ["a text " * 30, [1] * 40],
        ["long " * 50, ""],
        ["long " * 50, None],
        [],
    ],
)
def test_what_is_not_worth_sharing(run: Run, prompts: Any) -> None:
    """And what is wrong with a prompt is found out with that prompt."""
    connection = Connection()
    assert len(run(connection, prompts, asks(["x", "y"]))) == len(prompts)
    assert connection.shared == []


def test_sharing_that_fails_is_no_error(run: Run) -> None:
    """It saves time, and nothing depends on it."""

    class Refusing(Connection):
        def share_prefix(self, prompt: Any) -> int:
            raise ContextOverflow("no")

    prompts = [f"{'long ' * 50}{number}" for number in range(3)]
    assert all(result.error is None for result in run(Refusing(), prompts, asks(["x", "y"])))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": ["a", "b"], "top_k": 1}, "labels together with top_k"),
        ({"labels": ["a", "b"], "logprobs": True}, "labels together with top_k"),
        ({"top_k": 0}, "top_k must be"),
        ({"top_k": MAX_TOP_K + 1}, "logprobs=True"),
        ({"top_k": True}, "top_k must be"),
        ({"labels": []}, "no labels"),
    ],
)
def test_options_that_cannot_be_meant(options: Any, words: str) -> None:
    """Refused before anything is sent."""
    with pytest.raises(OptionsError, match=words):
        asks(**options)


def test_logprobs_need_to_know_the_vocabulary() -> None:
    """Its size is in the file, mostly."""
    info: Any = SimpleNamespace(parallel=1, model=SimpleNamespace(vocab_size=None))
    with pytest.raises(OptionsError, match="how many tokens"):
        checked_question(info, None, None, True)
    assert checked_question(info, None, 3, False).top_k == 3


def test_its_connection_is_its_own_and_is_closed() -> None:
    """So that closing the batch ends what it has under way, and nothing else."""
    connection = Connection()
    run_sync(connection, ["a"], asks(["x", "y"]))
    assert connection.closed


@pytest.mark.parametrize(
    ("texts", "prefix"),
    [
        (["abc", "abd", "abcde"], "ab"),
        (["abc", "abc"], "abc"),
        (["abc"], ""),
        ([], ""),
        (["abc", "xyz"], ""),
        (["abc", ""], ""),
        ([[1, 2, 3], [1, 2]], [1, 2]),
        (["abc", [1]], ""),
    ],
)
def test_common_prefix(texts: Any, prefix: Prompt) -> None:
    """Of texts, or of tokens."""
    assert common_prefix(texts) == prefix
