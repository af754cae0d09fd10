"""The engine that answers on connections, with a server that a test plays."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.client.wire import chat_delta, final, token

from rocllm.backends.inprocess.channels import CallerChannel
from rocllm.client import Client
from rocllm.errors import BadRequest, ContextOverflow, RequestError, StreamClosed
from rocllm.options import SamplingOptions
from rocllm.server.engine import Engine

Tell = Callable[[str], bool]
Handle = Callable[[str, Tell], None]
# Text that looks like the member by which llama-server's own words are found.
TRICKY = '"__verbose":{"a":1}}'


class FakeServer:
    """What `xllamacpp.Server` is to the engine."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self.asked: list[dict[str, object]] = []

    def handle_completions(self, prompt: str, callback: Tell) -> None:
        self.asked.append(json.loads(prompt))
        self._handle(prompt, callback)

    def handle_chat_completions(self, prompt: str, callback: Tell) -> None:
        self.handle_completions(prompt, callback)


def oai(native: object, text: str = "") -> str:
    """What the handler tells: OpenAI's words around llama-server's own."""
    return json.dumps(
        {"choices": [{"text": text}], "__verbose": native, "timings": {"n": 1}},
        separators=(",", ":"),
    )


class Here:
    """A server behind an engine and a client."""

    def __init__(self, handle: Handle, path: Path, slots: int = 1) -> None:
        self.server = FakeServer(handle)
        self.channel = CallerChannel()
        self.channel.use(Engine(self.server, str(path / "s.sock"), slots))
        self.client = Client(self.channel)

    def close(self) -> None:
        self.client.close()
        assert self.channel.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Here]]:
    """Makes a client of an engine of a server that answers with a function."""
    made: list[Here] = []

    def make(handle: Handle, slots: int = 1) -> Here:
        made.append(Here(handle, tmp_path, slots))
        return made[-1]

    yield make
    for one in made:
        one.close()


def two_tokens(_prompt: str, tell: Tell) -> None:
    for native, text in ((token(5, TRICKY, 1), TRICKY), (token(6, ",", 2), ",")):
        assert not tell(oai(native, text))
    assert not tell(oai(final(2)))


def test_llama_servers_own_words_are_found(serve: Callable[..., Here]) -> None:
    """Whatever the text is; and the handler is asked for them, and for the progress."""
    here = serve(two_tokens)
    reply = here.client.completion("1,", SamplingOptions(max_tokens=2)).read()
    assert reply.text == TRICKY + ","
    assert [one.id for one in reply.tokens] == [5, 6]
    assert here.server.asked[0]["verbose"] is True
    assert here.server.asked[0]["return_progress"] is True
    assert here.server.asked[0]["prompt"] == "1,"


def test_a_chat_is_passed_on(serve: Callable[..., Here]) -> None:
    """OpenAI's words are what the client reads in a chat."""

    def answer(_prompt: str, tell: Tell) -> None:
        for event in (chat_delta({"content": "Hi"}), chat_delta({}, "stop")):
            tell(json.dumps(event))
        figures = {"usage": {"prompt_tokens": 3, "completion_tokens": 1}}
        timings = {"prompt_n": 3, "prompt_ms": 1.0, "predicted_n": 1, "predicted_ms": 1.0}
        tell(json.dumps({"choices": [], **figures, "timings": timings}))

    assert serve(answer).client.chat([], SamplingOptions()).read().text == "Hi"


def test_errors(serve: Callable[..., Here]) -> None:
    """In the place of an answer, amid one, and as an exception of the handler's."""
    overflow = {"code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 9, "n_ctx": 8}

    def refuses(_prompt: str, tell: Tell) -> None:
        tell(json.dumps({"error": overflow}, separators=(",", ":")))

    with pytest.raises(ContextOverflow) as caught:
        serve(refuses).client.completion("1,").read()
    assert (caught.value.status, caught.value.n_ctx) == (400, 8)

    def fails(_prompt: str, tell: Tell) -> None:
        tell(oai(token(5, " 2", 1)))
        tell('{"error":{"code":500,"message":"broken"}}')

    with pytest.raises(RequestError, match="broken") as failed:
        serve(fails).client.completion("1,").read()
    assert failed.value.text == " 2"

    def raises(_prompt: str, _tell: Tell) -> None:
        raise RuntimeError("parse error")

    with pytest.raises(RequestError, match="parse error"):
        serve(raises).client.completion("1,").read()


def test_leaving_a_stream_stops_the_handler(serve: Callable[..., Here]) -> None:
    """It is told so when it tells the next token."""
    stopped = threading.Event()

    def endless(_prompt: str, tell: Tell) -> None:
        count = 1
        while not tell(oai(token(5, " 2", count))):
            count += 1
        stopped.set()

    with serve(endless).client.completion("1,") as stream:
        next(stream)
    assert stopped.wait(30)


def test_a_slow_reader_makes_the_handler_wait(serve: Callable[..., Here]) -> None:
    """What nobody reads is not kept, and leaving such a stream ends the waiting."""
    told, stopped = [0], threading.Event()

    def endless(_prompt: str, tell: Tell) -> None:
        while not tell(oai(token(5, " 2", told[0] + 1))):
            told[0] += 1
        stopped.set()

    with serve(endless).client.completion("1,") as stream:
        next(stream)
        before = -1
        while told[0] != before:
            before = told[0]
            time.sleep(0.2)
        assert 0 < before < 50_000
        assert not stopped.is_set()
    assert stopped.wait(30)


def test_never_more_requests_than_slots(serve: Callable[..., Here]) -> None:
    """The others wait outside, and who leaves there was never asked."""
    begun, go_on, most, now = threading.Semaphore(0), threading.Event(), [0], [0]
    lock = threading.Lock()

    def answer(prompt: str, tell: Tell) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        begun.release()
        assert go_on.wait(30)
        two_tokens(prompt, tell)
        with lock:
            now[0] -= 1

    here = serve(answer, slots=2)
    with ThreadPoolExecutor(5) as pool:
        asked = [
            pool.submit(lambda n=n: here.client.completion(f"{n}").read().text) for n in range(4)
        ]
        for _ in range(2):
            assert begun.acquire(timeout=30)
        left = here.client.completion("left")
        reader = pool.submit(left.read)
        while left._exchange is None or not left._exchange.sent:
            time.sleep(0.001)
        left.close()
        go_on.set()
        assert [one.result(30) for one in asked] == [TRICKY + ","] * 4
        with pytest.raises(StreamClosed):
            reader.result(30)
    assert most[0] == 2
    assert "left" not in [one["prompt"] for one in here.server.asked]


def test_what_the_handlers_lack_is_asked_of_the_listener(
    serve: Callable[..., Here], tmp_path: Path
) -> None:
    """With method, path and body; its status and its answer come back."""
    here = serve(two_tokens)
    with pytest.raises(RequestError, match="No such file"):
        here.client.tokenize("ab")

    def listen(listener: socket.socket) -> None:
        for status, body in (("200 OK", b'{"tokens": [1, 2]}'), ("400 Bad", b'{"error": {}}')):
            connection, _ = listener.accept()
            with connection:
                asked = b""
                while not asked.endswith(b"}"):  # head and body may come apart
                    asked += connection.recv(4096)
                assert asked.startswith(b"POST /tokenize HTTP/1.1\r\n")
                connection.sendall(
                    b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b"
                    % (status.encode(), len(body), body)
                )

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.sock"))
        listener.listen()
        thread = threading.Thread(target=listen, args=(listener,))
        thread.start()
        assert here.client.tokenize("ab") == [1, 2]
        with pytest.raises(BadRequest):
            here.client.tokenize("ab")
        thread.join(30)


def test_a_closed_channel_refuses(tmp_path: Path) -> None:
    """After the model was unloaded there is nobody to talk to, and no thread is left."""
    threads = threading.active_count()
    here = Here(two_tokens, tmp_path)
    assert here.client.completion("1,").read().text
    here.client.interrupt()
    assert here.channel.close()
    with pytest.raises(RequestError, match="unloaded"):
        here.client.completion("1,").read()
    assert threading.active_count() == threads
    here.close()
