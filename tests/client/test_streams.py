"""Both clients against a server that does what a test writes."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.client import wire
from tests.client.both import KINDS, Ask, Kind, call, consume, read
from tests.client.scripted import DEADLINE, Caller, Script, ScriptedServer
from tests.client.wire import chunk, event, final, stream, token

from rocllm.client import AsyncClient, AsyncTokenStream, Client, Explain, _sockets, _transports
from rocllm.client._http import KEEP_ALIVE_REQUESTS
from rocllm.endpoint import Endpoint
from rocllm.errors import (
    ConnectionLost,
    ProtocolError,
    RequestTimeout,
    RocllmError,
    ServerBusy,
    ServerCrashed,
    StreamClosed,
)
from rocllm.results import Message, Token

both = pytest.mark.parametrize("kind", KINDS)
WHOLE = stream(token(1, "a", 1), token(2, "b", 2), final(2))
HALF = stream(token(1, "a", 1), token(2, "b", 2), end=b"")


def completion(client: Client) -> object:
    """The request that most tests make."""
    return client.completion("x")


def plays(data: bytes, requests: int = 1, *, closes: bool = True) -> Script:
    """Answer so many requests with the same bytes; then close, or wait for the client to."""

    def script(caller: Caller) -> None:
        for _ in range(requests):
            if not caller.read_request():
                return
            caller.send(data)
        if not closes:
            caller.is_gone()

    return script


@both
def test_a_whole_answer(kind: Kind) -> None:
    """Tokens one by one, or all at once, and then the figures."""
    with ScriptedServer(plays(WHOLE)) as server:
        outcome = consume(kind, server.endpoint, completion)
        assert read(kind, server.endpoint, completion).tokens == tuple(outcome.tokens)
    assert outcome.tokens == [Token(1, "a"), Token(2, "b")]
    assert outcome.stream.text == "ab"
    assert outcome.stream.finish_reason == "stop"
    assert outcome.stream.usage is not None
    assert outcome.stream.timings is not None


@both
def test_over_a_unix_socket(kind: Kind, tmp_path: Path) -> None:
    """A UNIX socket is as good as TCP, and the key goes with the request."""
    heads: list[bytes] = []

    def script(caller: Caller) -> None:
        heads.append(caller.read_request())
        caller.send(WHOLE)

    with ScriptedServer(script, path=tmp_path / "s.sock"):
        endpoint = Endpoint.unix(tmp_path / "s.sock", api_key="secret")
        assert read(kind, endpoint, completion).text == "ab"
    assert b"Authorization: Bearer secret\r\n" in heads[0]


@both
@pytest.mark.parametrize(
    ("data", "error"),
    [
        (HALF, ConnectionLost),
        (HALF + wire.END, ConnectionLost),
        (HALF[:-20], ConnectionLost),
        (HALF + b"garbage\r\n", ProtocolError),
        (HALF + chunk(b"data: {oops}\n\n"), ProtocolError),
        (HALF + chunk(event(wire.error(503, "x", "unavailable_error"))), ServerBusy),
        (b"", ConnectionLost),
        (b"220 smtp ready\r\n", ProtocolError),
        (wire.answer(wire.error(503, "Loading", "unavailable_error"), "503 Busy"), ServerBusy),
    ],
)
def test_an_answer_that_breaks_off(kind: Kind, data: bytes, error: type[RocllmError]) -> None:
    """The tokens before it are delivered, then the error comes with the text so far."""
    with ScriptedServer(plays(data)) as server:
        outcome = consume(kind, server.endpoint, completion)
    assert type(outcome.error) is error
    assert outcome.error.text == "".join(each.text for each in outcome.tokens)  # type: ignore[attr-defined]
    assert outcome.stream.usage is None


@both
def test_a_broken_connection_is_explained(kind: Kind) -> None:
    """Who knows what became of the server turns the error into a better one, with its cause."""
    seen: list[RocllmError] = []

    class Keeper:
        def ask(self) -> Callable[[], Explain]:
            return self.wait

        def wait(self) -> Explain:
            return self.explain

        def explain(self, error: RocllmError) -> RocllmError:
            seen.append(error)
            return ServerCrashed("the server crashed")

    with ScriptedServer(plays(HALF)) as server:
        outcome = consume(kind, server.endpoint, completion, keeper=Keeper())
        with pytest.raises(ServerCrashed):
            call(kind, server.endpoint, lambda client: client.props(), keeper=Keeper())
    assert isinstance(outcome.error, ServerCrashed)
    assert outcome.error.__cause__ is seen[0]
    assert seen[0].text == "ab"  # type: ignore[attr-defined]


@both
def test_nobody_listens(kind: Kind, tmp_path: Path) -> None:
    """No socket, or a stale one: `ConnectionLost`, and health says so without raising."""
    with ScriptedServer(plays(b"")) as server:
        stale = server.endpoint
    for endpoint in (stale, Endpoint.unix(tmp_path / "none.sock")):
        assert call(kind, endpoint, lambda client: client.health()) == ["unreachable"]
        error = consume(kind, endpoint, completion).error
        assert isinstance(error, ConnectionLost)
        assert str(endpoint) in str(error)


@both
def test_health(kind: Kind) -> None:
    """Three answers, and none of them is an exception."""
    loading = wire.answer(wire.error(503, "Loading model", "unavailable_error"), "503 Busy")
    for data, health in ((wire.answer({"status": "ok"}), "ready"), (loading, "loading")):
        with ScriptedServer(plays(data)) as server:
            assert call(kind, server.endpoint, lambda client: client.health()) == [health]


@both
@pytest.mark.parametrize("sent", [b"", HALF])
def test_a_silent_server(kind: Kind, sent: bytes) -> None:
    """A silence that is too long is an error that names its timeout."""
    with ScriptedServer(plays(sent, closes=False)) as server:
        outcome = consume(kind, server.endpoint, completion, stream_timeout=0.05)
        with pytest.raises(RequestTimeout, match="read_timeout"):
            call(kind, server.endpoint, lambda client: client.props(), read_timeout=0.05)
    assert isinstance(outcome.error, RequestTimeout)
    assert "stream_timeout=0.05" in str(outcome.error)
    assert len(outcome.tokens) == (2 if sent else 0)


@both
def test_a_sign_of_life_starts_the_timeout_anew(kind: Kind) -> None:
    """Pings keep a stream alive that has no token for longer than the timeout."""

    def script(caller: Caller) -> None:
        caller.read_request()
        caller.send(wire.STREAM_HEAD)
        for _ in range(12):
            caller.send(chunk(b":\n\n"))
            pause.wait(0.1)
        caller.send(WHOLE[len(wire.STREAM_HEAD) :])

    pause = threading.Event()
    with ScriptedServer(script) as server:
        outcome = consume(kind, server.endpoint, completion, stream_timeout=1.0)
    assert outcome.error is None


@both
def test_one_connection_for_many_requests(kind: Kind) -> None:
    """Connections are used again, and retired before the server's 100 requests."""
    props = wire.answer({"total_slots": 1})
    count = KEEP_ALIVE_REQUESTS + 2
    with ScriptedServer(plays(props, 200)) as server:
        call(kind, server.endpoint, *[lambda client: client.props()] * count)
    assert server.connections == 2


@both
def test_an_idle_connection_is_retired(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server may be closing at this moment is not used again."""
    for module in (_sockets, _transports):
        monkeypatch.setattr(module, "KEEP_ALIVE_SECONDS", 0.0)
    with ScriptedServer(plays(wire.answer({}), 200)) as server:
        call(kind, server.endpoint, *[lambda client: client.props()] * 3)
    assert server.connections == 3


@both
def test_nothing_is_left_open(kind: Kind) -> None:
    """Streams that end well, end badly or are refused leave no file descriptor."""
    refusal = wire.answer(wire.error(503, "Loading", "unavailable_error"), "503 Busy")
    scripts = [plays(data) for data in (WHOLE, HALF, refusal)] * 5
    with ScriptedServer(*scripts) as server:
        before = set(os.listdir("/proc/self/fd"))
        for _ in scripts:
            consume(kind, server.endpoint, completion)
        gc.collect()
        left = set(os.listdir("/proc/self/fd")) - before
    # The server's own ends close when its scripts do, which may be a moment later.
    assert len(left) <= 1


@both
def test_a_stream_gives_its_connection_back(kind: Kind) -> None:
    """A stream that was read to its end does not cost a new connection."""
    asks: list[Ask] = [lambda client: client.completion("x").read()] * 5
    with ScriptedServer(plays(WHOLE, 200)) as server:
        call(kind, server.endpoint, *asks)
    assert server.connections == 1


@both
@pytest.mark.parametrize(
    "data",
    [
        WHOLE.replace(b"Keep-Alive: timeout=5, max=100", b"Connection: close"),
        WHOLE.removesuffix(wire.END),
    ],
)
def test_a_connection_that_cannot_be_used_again(kind: Kind, data: bytes) -> None:
    """The server's `Connection: close`, or a stream whose end never came, costs a new one."""
    asks: list[Ask] = [lambda client: client.completion("x").read()] * 2
    with ScriptedServer(plays(data)) as server:
        assert [each.text for each in call(kind, server.endpoint, *asks)] == ["ab", "ab"]
    assert server.connections == 2


@both
def test_an_idle_connection_that_the_server_closed(kind: Kind) -> None:
    """The request is sent once more, on a new connection, when not a byte of an answer came."""
    closed = threading.Event()

    def closes(caller: Caller) -> None:
        caller.read_request()
        caller.send(wire.answer({"first": True}))
        caller.connection.close()
        closed.set()

    def again(client: Client) -> object:
        assert closed.wait(DEADLINE)
        return client.props()

    with ScriptedServer(closes, plays(wire.answer({"second": True}))) as server:
        answers = call(kind, server.endpoint, lambda client: client.props(), again)
    assert answers == [{"first": True}, {"second": True}]


@both
def test_a_request_is_sent_again_only_once(kind: Kind) -> None:
    """A server that closes every connection unanswered is not asked for ever."""
    with ScriptedServer(plays(wire.answer({})), plays(b"")) as server:
        with pytest.raises(ConnectionLost):
            call(kind, server.endpoint, *[lambda client: client.props()] * 2)
        assert server.connections == 2


@both
def test_an_answer_that_has_begun_is_never_asked_for_again(kind: Kind) -> None:
    """One byte of an answer is enough: the server may have generated already."""
    with ScriptedServer(plays(wire.answer({}) + b"", 1), plays(b"H")) as server:
        with pytest.raises(ConnectionLost):
            call(kind, server.endpoint, *[lambda client: client.props()] * 2)
        assert server.connections == 2


@pytest.fixture
def gone() -> threading.Event:
    """Set when the server has seen its client go."""
    return threading.Event()


@pytest.fixture
def endless(gone: threading.Event) -> Script:
    """Two tokens, and no end until the client goes."""

    def script(caller: Caller) -> None:
        caller.read_request()
        caller.send(HALF)
        if caller.is_gone():
            gone.set()

    return script


def test_leaving_a_stream_closes_its_connection(endless: Script, gone: threading.Event) -> None:
    """`with`, `close()`, `break` out of an unnamed stream, and dropping one: each lets go."""
    with ScriptedServer(endless) as server, Client(server.endpoint) as client:
        with client.completion("x") as left:
            assert next(left) == Token(1, "a")
        assert gone.wait(DEADLINE)
        with pytest.raises(StreamClosed, match="closed before its end"):
            next(left)
        assert left.text == "a"
        assert left.finish_reason is None
        gone.clear()
        for _ in client.completion("x"):
            break
        assert gone.wait(DEADLINE)
        gone.clear()
        dropped = client.completion("x")
        next(dropped)
        del dropped
        gc.collect()
        assert gone.wait(DEADLINE)


async def both_tokens(stream: AsyncTokenStream) -> None:
    """Wait until the task that reads `stream` waits for a third token."""
    while len(stream.tokens) < 2:  # noqa: ASYNC110 - the stream has no event to wait for
        await asyncio.sleep(0)


def test_leaving_an_async_stream(endless: Script, gone: threading.Event) -> None:
    """The same for asyncio, and for a task that is cancelled."""

    async def main(endpoint: Endpoint) -> None:
        async with AsyncClient(endpoint) as client:
            async with client.completion("x") as left:
                assert await anext(left) == Token(1, "a")
            assert await asyncio.to_thread(gone.wait, DEADLINE)
            with pytest.raises(StreamClosed, match="closed before its end"):
                await anext(left)
            gone.clear()
            async for _ in client.completion("x"):
                break
            assert await asyncio.to_thread(gone.wait, DEADLINE)
            gone.clear()
            stream = client.completion("x")
            task = asyncio.create_task(stream.read())
            await both_tokens(stream)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await asyncio.to_thread(gone.wait, DEADLINE)

    with ScriptedServer(endless) as server:
        asyncio.run(asyncio.wait_for(main(server.endpoint), DEADLINE))


def test_closing_from_another_thread(endless: Script) -> None:
    """A reader that waits for a token is told that the stream, or its client, was closed."""
    with ScriptedServer(endless) as server:
        for what in ("stream", "client"):
            client = Client(server.endpoint)
            stream = client.completion("x")
            next(stream), next(stream)
            closing = threading.Timer(0.05, {"stream": stream, "client": client}[what].close)
            closing.start()
            with pytest.raises(StreamClosed):
                next(stream)
            closing.join()
            client.close()
            with pytest.raises(StreamClosed):
                client.props()


def test_closing_a_client_ends_async_streams(endless: Script) -> None:
    """`aclose` wakes up who waits for a token."""

    async def main(endpoint: Endpoint) -> None:
        client = AsyncClient(endpoint)
        stream = client.completion("x")
        reading = asyncio.create_task(stream.read())
        await both_tokens(stream)
        await client.aclose()
        with pytest.raises(StreamClosed, match="client was closed"):
            await reading
        with pytest.raises(StreamClosed):
            await client.props()

    with ScriptedServer(endless) as server:
        asyncio.run(asyncio.wait_for(main(server.endpoint), DEADLINE))


def test_nothing_is_sent_before_the_first_read() -> None:
    """A stream that nobody reads costs the server nothing; `with` sends the request."""
    with ScriptedServer(plays(WHOLE)) as server, Client(server.endpoint) as client:
        client.completion("x").close()
        assert server.connections == 0
        with client.completion("x") as begun:
            assert server.connections == 1
            assert begun.read().text == "ab"
            assert begun.read().text == "ab"
            assert list(begun) == []
    refusal = wire.answer(wire.error(503, "Loading", "unavailable_error"), "503 Busy")
    with (
        ScriptedServer(plays(refusal)) as server,
        Client(server.endpoint) as client,
        pytest.raises(ServerBusy),
        client.completion("x"),
    ):
        pytest.fail("the server refused")


def test_threads_share_a_client() -> None:
    """Each thread gets its own answer."""

    def script(caller: Caller) -> None:
        while request := caller.read_request():
            text = "one" if b"first" in request else "two"
            caller.send(stream(*[token(1, text, n + 1) for n in range(50)], final(50)))

    results: dict[str, set[str]] = {"first": set(), "second": set()}
    with ScriptedServer(script) as server, Client(server.endpoint) as client:

        def ask(prompt: str) -> None:
            results[prompt] = {client.completion(prompt).read().text for _ in range(20)}

        threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in results]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
        assert server.connections <= 2
    assert results == {"first": {"one" * 50}, "second": {"two" * 50}}


# From 3.12 on Python warns of a fork with threads; the child here does nothing else with them.
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_has_connections_of_its_own() -> None:
    """A child leaves the sockets of its parent alone: both get whole answers afterwards."""
    released = threading.Event()

    def script(caller: Caller) -> None:
        while caller.read_request():
            caller.send(HALF)
            if not released.wait(DEADLINE):
                return
            caller.send(WHOLE[len(HALF) :])

    def child(client: Client, stream: object) -> int:
        del stream
        gc.collect()
        return 0 if client.completion("x").read().text == "ab" else 1

    with ScriptedServer(script) as server, Client(server.endpoint) as client:
        open_stream = client.completion("x")
        next(open_stream)
        pid = os.fork()
        if pid == 0:
            status = 2
            try:
                status = child(client, open_stream)
            finally:
                os._exit(status)
        released.set()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert open_stream.read().text == "ab"
        assert client.completion("x").read().text == "ab"


@both
def test_the_vocabulary_is_asked_for_once(kind: Kind) -> None:
    """Ids inside characters cost one look at the vocabulary for each client."""
    size = {"data": [{"meta": {"n_vocab": 257}}]}
    pieces = [{"id": n, "piece": [n] if n > 127 else chr(n)} for n in range(256)]
    answers = {
        b"/v1/models": wire.answer(size),
        b"/tokenize": wire.answer({"tokens": [*pieces, {"id": 256, "piece": [0xF0, 0x9F]}]}),
        b"/completion": stream(token(0x99, "🦙", 3), final(3)),
    }
    seen: list[bytes] = []

    def script(caller: Caller) -> None:
        while request := caller.read_request():
            seen.append(request.split(b" ")[1])
            caller.send(answers[seen[-1]])

    ask: Ask = lambda client: client.completion("x").read()  # noqa: E731
    with ScriptedServer(script) as server:
        answer, _ = call(kind, server.endpoint, ask, ask)
    assert [each.id for each in answer.tokens] == [256, 0xA6, 0x99]
    assert seen == [b"/completion", b"/v1/models", b"/tokenize", b"/completion"]


@both
def test_a_server_without_vocabulary(kind: Kind) -> None:
    """Where it cannot be had, the answer is whole and the ids inside characters are unknown."""

    def script(caller: Caller) -> None:
        while request := caller.read_request():
            if request.split(b" ")[1] == b"/completion":
                caller.send(stream(token(0x99, "🦙", 3), final(3)))
            else:
                caller.send(wire.answer({"data": []}))

    with ScriptedServer(script) as server:
        outcome = consume(kind, server.endpoint, completion)
    assert [each.id for each in outcome.tokens] == [None, None, 0x99]


@both
def test_plain_calls(kind: Kind) -> None:
    """Each call asks its question and returns its answer."""
    answers = {
        b"/slots": [{"id": 0}],
        b"/tokenize": {"tokens": [1, 2]},
        b"/detokenize": {"content": "ab"},
        b"/apply-template": {"prompt": "<user>"},
    }
    requests: list[bytes] = []

    def script(caller: Caller) -> None:
        while request := caller.read_request():
            requests.append(request)
            caller.send(wire.answer(answers[request.split(b" ")[1]]))

    with ScriptedServer(script) as server:
        got = call(
            kind,
            server.endpoint,
            lambda client: client.slots(),
            lambda client: client.tokenize("ab", add_special=True),
            lambda client: client.detokenize([1, 2]),
            lambda client: client.apply_template([Message("user", "Hi")]),
        )
    assert got == [[{"id": 0}], [1, 2], "ab", "<user>"]
    assert b'{"content":"ab","add_special":true,"parse_special":true}' in requests[1]
    assert b'{"messages":[{"role":"user","content":"Hi"}]}' in requests[3]


def test_a_slow_reader_holds_the_server_back() -> None:
    """What is not read does not pile up in memory."""
    sent = 0

    def script(caller: Caller) -> None:
        nonlocal sent
        caller.read_request()
        caller.send(wire.STREAM_HEAD)
        for count in range(1, 200_000):
            caller.send(chunk(event(token(1, "x" * 1000, count))))
            sent = count

    async def main(endpoint: Endpoint) -> int:
        async with AsyncClient(endpoint) as client, client.completion("x") as stream:
            await anext(stream)
            before = -1
            while before != sent:  # until the server cannot send any more
                before = sent
                await asyncio.sleep(0.2)
            return sent

    with ScriptedServer(script) as server:
        assert asyncio.run(asyncio.wait_for(main(server.endpoint), DEADLINE)) < 100_000
