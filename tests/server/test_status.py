"""Asking a server what it is doing."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rocllm.endpoint import Endpoint
from rocllm.server.status import ServerState, ServerStatus, Slot, read_status, tokens_per_second

Answers = dict[str, bytes | None]
Serve = Callable[[Answers], Endpoint]


def ok(body: str) -> bytes:
    """A whole answer."""
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def metrics(predicted: float = 0, processing: float = 0, deferred: float = 0) -> bytes:
    """As llama-server prints them."""
    return ok(
        "# HELP llamacpp:tokens_predicted_total Number of generation tokens processed\n"
        "# TYPE llamacpp:tokens_predicted_total counter\n"
        f"llamacpp:tokens_predicted_total {predicted}\n"
        "llamacpp:n_busy_slots_per_decode 1.97436\n"
        f"llamacpp:requests_processing {processing}\n"
        f"llamacpp:requests_deferred {deferred}\n"
    )


def slot(number: int, processing: bool, decoded: int = 0, **more: Any) -> dict[str, Any]:
    """As llama-server describes one."""
    return {
        "id": number,
        "n_ctx": 4096,
        "is_processing": processing,
        "n_prompt_tokens": 100 + decoded,
        "next_token": [{"n_decoded": decoded}],
        **more,
    }


HEALTHY = ok('{"status":"ok"}')


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """A server with one answer for each path; `None`: it never answers. Notes what it is asked."""
    server = socket.socket(socket.AF_UNIX)
    path = str(tmp_path / "s.sock")
    server.bind(path)
    server.listen()
    held: list[socket.socket] = []

    def run(answers: Answers) -> None:
        while True:
            try:
                connection = server.accept()[0]
            except OSError:
                return
            asked = connection.recv(1000).split()[1].decode()
            answer = answers[asked]
            if answer is None:
                held.append(connection)
                continue
            with connection:
                connection.sendall(answer)

    threads: list[threading.Thread] = []

    def start(answers: Answers) -> Endpoint:
        threads.append(threading.Thread(target=run, args=(answers,)))
        threads[-1].start()
        return Endpoint.unix(path)

    yield start
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    for thread in threads:
        thread.join(10)
    for connection in held:
        connection.close()


def test_a_server_at_work(serve: Serve) -> None:
    """Slots with what they hold, who waits, and the tokens of requests that have ended."""
    slots = [
        slot(0, True, 40, id_task=8),
        slot(1, True),
        slot(2, False, 0),
        {"id": 3, "is_processing": False},
    ]
    endpoint = serve(
        {
            "/health": HEALTHY,
            "/metrics": metrics(predicted=1000, processing=2, deferred=3),
            "/slots": ok(json.dumps(slots)),
        }
    )

    assert read_status(endpoint, clock=lambda: 5.0) == ServerStatus(
        state="ready",
        time=5.0,
        busy_slots=2,
        waiting=3,
        slots=(
            Slot(id=0, id_task=8, state="generating", n_ctx=4096, n_tokens=140, n_decoded=40),
            Slot(id=1, state="prompt", n_ctx=4096, n_tokens=100),
            Slot(id=2, state="idle", n_ctx=4096, n_tokens=100),
            Slot(id=3, state="idle"),
        ),
        finished=1000,
    )


def test_an_idle_server_is_not_asked_for_slots(serve: Serve) -> None:
    """That would keep it from going to sleep; the fixture would fail, it has no answer for it."""
    status = read_status(serve({"/health": HEALTHY, "/metrics": metrics(predicted=7)}))

    assert (status.state, status.busy_slots, status.slots, status.finished) == (
        "ready",
        0,
        None,
        7,
    )


def test_a_server_without_metrics_has_slots(serve: Serve) -> None:
    """They may be switched off; then nothing is known of requests that have ended."""
    refused = b"HTTP/1.1 501 Not Implemented\r\n\r\n{}"
    slots = json.dumps([slot(0, True, 9, next_token={"n_decoded": 9})])  # as before 2025
    endpoint = serve({"/health": HEALTHY, "/metrics": refused, "/slots": ok(slots)})
    status = read_status(endpoint)

    assert (status.busy_slots, status.finished, status.waiting) == (1, None, None)
    assert status.slots == (Slot(id=0, state="generating", n_ctx=4096, n_tokens=109, n_decoded=9),)


def test_a_server_that_wants_a_key_is_ready_and_says_no_more(serve: Serve) -> None:
    """As one on TCP; nobody but its program has the key."""
    refused = b"HTTP/1.1 401 Unauthorized\r\n\r\n"
    status = read_status(serve({"/health": HEALTHY, "/metrics": refused, "/slots": refused}))

    assert status == ServerStatus(state="ready", time=status.time)


def test_a_server_that_loads(serve: Serve) -> None:
    """It says so."""
    loading = b'HTTP/1.1 503 Service Unavailable\r\n\r\n{"error":{"message":"Loading model"}}'

    assert read_status(serve({"/health": loading})).state == "loading"


def test_a_server_that_computes_a_long_prompt(serve: Serve) -> None:
    """It is alive, and older ones answer only between two batches: that is said in time."""
    began = time.monotonic()
    status = read_status(serve({"/health": HEALTHY, "/metrics": None}), timeout=0.3)

    assert status == ServerStatus(state="busy", time=status.time)
    assert time.monotonic() - began < 10


def test_a_server_that_hangs_or_is_gone(serve: Serve, tmp_path: Path) -> None:
    """Connecting works as long as the kernel has room for it; then nothing comes."""
    assert read_status(serve({"/health": None}), timeout=0.2).state == "unreachable"
    assert read_status(Endpoint.unix(tmp_path / "gone.sock")).state == "unreachable"


def test_a_server_that_drips_is_given_up(tmp_path: Path) -> None:
    """The time is for the whole answer, not for each piece of it."""
    gone = threading.Event()

    def drip() -> None:
        with server.accept()[0] as connection:
            connection.recv(1000)
            connection.sendall(HEALTHY)
        with server.accept()[0] as connection:
            for _ in range(2000):
                try:
                    connection.sendall(b"x")
                except OSError:
                    gone.set()
                    return
                time.sleep(0.01)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.sock"))
        server.listen()
        thread = threading.Thread(target=drip)
        thread.start()
        assert read_status(Endpoint.unix(tmp_path / "s.sock"), timeout=0.3).state == "busy"
        thread.join(60)

    assert gone.is_set()


@pytest.mark.parametrize(
    "body",
    [
        "",
        "null",
        "{}",
        "[1]",
        '[{"id": 0}]',
        '[{"id": 1e999, "is_processing": true}]',
        '[{"id": 0, "is_processing": true, "next_token": []}]',
        '[{"id": 0, "is_processing": true, "next_token": 5}]',
        "[" * 100_000,
    ],
)
def test_slots_that_cannot_be_read(body: str, serve: Serve) -> None:
    """What the counters say stays."""
    endpoint = serve(
        {"/health": HEALTHY, "/metrics": metrics(predicted=3, processing=1), "/slots": ok(body)}
    )
    status = read_status(endpoint)

    assert status.state == "ready"
    assert status.waiting == 0


@pytest.mark.parametrize(
    "text", ["", "llamacpp:", "llamacpp:requests_processing many", "\0\xff", "x 1\n\n  \n"]
)
def test_counters_that_cannot_be_read(text: str, serve: Serve) -> None:
    """Nothing is known, and nothing fails."""
    status = read_status(serve({"/health": HEALTHY, "/metrics": ok(text)}))

    assert (status.state, status.finished, status.busy_slots) == ("ready", None, None)


def test_counters_that_are_no_numbers(serve: Serve) -> None:
    """Prometheus' format knows NaN and infinity."""
    answer = metrics(predicted=float("nan"), processing=0, deferred=float("inf"))
    status = read_status(serve({"/health": HEALTHY, "/metrics": answer}))

    assert (status.finished, status.waiting, status.busy_slots) == (None, None, 0)


def at(
    now: float, finished: int | None, *slots: tuple[int, int], state: ServerState = "ready"
) -> ServerStatus:
    """A reading; slots: the request and its tokens."""
    return ServerStatus(
        state=state,
        time=now,
        finished=finished,
        slots=tuple(
            Slot(id=number, id_task=task, state="generating", n_decoded=decoded)
            for number, (task, decoded) in enumerate(slots)
        ),
    )


@pytest.mark.parametrize(
    ("before", "after", "rate"),
    [
        (at(1, 100, (1, 10)), at(3, 100, (1, 50)), 20),  # going on
        (at(1, 100, (1, 10)), at(3, 160), 25),  # ended: 60 were all of it
        (at(1, 100, (1, 10)), at(3, 160, (2, 8)), 29),  # and the next one has begun
        (at(1, 100), at(3, 100, (1, 8)), 4),  # begun
        (at(1, 100, (1, 90)), at(3, 100), 0),  # cancelled: counted nowhere
        (at(1, 100, (1, 90), (2, 10)), at(3, 100, (3, 4), (2, 40)), 17),  # one cancelled, two not
        (at(1, None, (1, 10)), at(3, None, (1, 50)), 20),  # without counters
        (at(1, 500), at(3, 7), 0),  # a new server
    ],
)
def test_tokens_per_second(before: ServerStatus, after: ServerStatus, rate: float) -> None:
    """All that was generated in between, as far as the server tells; never negative."""
    assert tokens_per_second(before, after) == rate


def test_a_rate_takes_two_answers_and_time() -> None:
    """Else it is not known."""
    ready = at(1.0, 100)

    assert tokens_per_second(ready, at(3.0, None, state="busy")) is None
    assert tokens_per_second(at(0.0, None, state="loading"), ready) is None
    assert tokens_per_second(ready, ready) is None
    silent = ServerStatus(state="ready", time=3.0)
    assert tokens_per_second(ready, silent) is None
