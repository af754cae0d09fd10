"""What a client costs: CPU time of the calling process for each token of a stream.

    python benchmarks/client_cost.py [--tokens 2000] [--rounds 5]

A second process plays a recorded stream over loopback TCP, once in bursts of 64 tokens (a client
that was busy meanwhile) and once token by token, each in a send of its own (a client that waits).
Compared: rocllm's clients, the openai package's clients where it is installed, and the floor: a
socket or asyncio's reader and `json.loads` with nothing around. A token that arrives alone wakes
the process up, which costs more than everything else; look at what is above the floor. Every row
of a round runs next to the others; the table has medians. Wanted: at most 15 µs in bursts.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import multiprocessing
import socket
import statistics
import time
from collections.abc import Callable

from figures import Figure, tell
from rocllm.client import AsyncClient, Client
from rocllm.endpoint import Endpoint
from rocllm.options import SamplingOptions

WANTED = 15.0  # microseconds
_BURST = 64
# Longer than any of the clients needs for a token, so that each one arrives alone.
_PAUSE = 0.0005
_TEXTS = (" the", " of", "ing", " Paris", ".", "\n", " gravity", " is", " a", " force")

Run = Callable[[int, int], int]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2000, help="tokens of a stream")
    parser.add_argument("--rounds", type=int, default=5, help="of which the median counts")
    arguments = parser.parse_args()
    runs = _runs()
    costs: dict[tuple[str, bool], list[float]] = {}
    for burst in (True, False):
        with _Replay(arguments.tokens, burst=burst) as port:
            for _ in range(arguments.rounds):
                for name, run in runs.items():
                    cost = _measure(run, port, arguments.tokens)
                    costs.setdefault((name, burst), []).append(cost)
    middle = {key: statistics.median(each) for key, each in costs.items()}
    _print(list(runs), middle)
    _tell(list(runs), middle)


def _print(names: list[str], middle: dict[tuple[str, bool], float]) -> None:
    print(f"{'CPU µs for a token':28}{'in bursts':>11}{'ratio':>8}{'one by one':>12}{'ratio':>8}")
    for name in names:
        row = f"{name:28}"
        for burst, width in ((True, 11), (False, 12)):
            cost, base = middle[name, burst], middle["rocllm Client", burst]
            row += f"{cost * 1e6:{width}.1f}{cost / base:7.2f}x"
        print(row)


def _tell(names: list[str], middle: dict[tuple[str, bool], float]) -> None:
    words = {name: f"{middle[name, True] * 1e6:.1f} µs" for name in names}
    floor, plain, chat = "socket recv + json.loads", "rocllm Client", "rocllm Client, chat"
    what = "CPU time of the client for a token"
    tell(Figure(what, words[plain], words[floor], middle[plain, True] * 1e6, " µs", 1, most=WANTED))
    rival = "openai OpenAI, chat"
    if rival in words:
        ratio = middle[chat, True] / middle[rival, True]
        tell(Figure(f"{what} of a chat, over openai", words[chat], words[rival], ratio))


def _measure(run: Run, port: int, tokens: int) -> float:
    started = time.process_time()
    got = run(port, tokens)
    cost = (time.process_time() - started) / tokens
    if got != tokens:
        raise RuntimeError(f"{got} tokens instead of {tokens}")
    return cost


def _runs() -> dict[str, Run]:
    runs: dict[str, Run] = {
        "socket recv + json.loads": _floor,
        "rocllm Client": _sync,
        "asyncio read + json.loads": lambda port, _: asyncio.run(_async_floor(port)),
        "rocllm AsyncClient": lambda port, tokens: asyncio.run(_async(port, tokens)),
        "rocllm Client, chat": _sync_chat,
    }
    if importlib.util.find_spec("openai") is not None:
        runs["openai OpenAI, chat"] = _openai
        runs["openai AsyncOpenAI, chat"] = lambda port, _: asyncio.run(_openai_async(port))
    return runs


def _floor(port: int, _tokens: int) -> int:
    count = 0
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST /completion HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
        rest = b""
        while not rest.endswith(b"0\r\n\r\n"):
            *lines, rest = (rest + connection.recv(65536)).split(b"\n\n\r\n")
            for line in lines:
                count += "content" in json.loads(line[line.index(b"{") :])
    return count


async def _async_floor(port: int) -> int:
    count = 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /completion HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
    rest = b""
    while not rest.endswith(b"0\r\n\r\n"):
        *lines, rest = (rest + await reader.read(65536)).split(b"\n\n\r\n")
        for line in lines:
            count += "content" in json.loads(line[line.index(b"{") :])
    writer.close()
    await writer.wait_closed()
    return count


def _sync(port: int, tokens: int) -> int:
    with Client(Endpoint.tcp("127.0.0.1", port)) as client:
        return sum(1 for _ in client.completion("x", SamplingOptions(max_tokens=tokens)))


def _sync_chat(port: int, tokens: int) -> int:
    with Client(Endpoint.tcp("127.0.0.1", port)) as client:
        return sum(1 for _ in client.chat([], SamplingOptions(max_tokens=tokens)))


async def _async(port: int, tokens: int) -> int:
    count = 0
    async with AsyncClient(Endpoint.tcp("127.0.0.1", port)) as client:
        async for _ in client.completion("x", SamplingOptions(max_tokens=tokens)):
            count += 1
    return count


def _openai(port: int, _tokens: int) -> int:
    import openai

    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-") as client:
        stream = client.chat.completions.create(model="-", messages=[], stream=True)
        return sum(1 for chunk in stream if chunk.choices and chunk.choices[0].delta.content)


async def _openai_async(port: int) -> int:
    import openai

    count = 0
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-") as client:
        stream = await client.chat.completions.create(model="-", messages=[], stream=True)
        async for chunk in stream:
            count += bool(chunk.choices and chunk.choices[0].delta.content)
    return count


class _Replay:
    """A process that answers every request with the same stream."""

    def __init__(self, tokens: int, *, burst: bool) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._process = multiprocessing.get_context("fork").Process(
            target=_serve, args=(self._listener, tokens, burst), daemon=True
        )

    def __enter__(self) -> int:
        self._process.start()
        port: int = self._listener.getsockname()[1]
        self._listener.close()
        return port

    def __exit__(self, *_exc: object) -> None:
        self._process.terminate()
        self._process.join()


def _serve(listener: socket.socket, tokens: int, burst: bool) -> None:
    answers = {b"/completion": _completion(tokens), b"/v1/chat/completions": _chat(tokens)}
    head = (
        b"HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nContent-Type: text/event-stream\r\n"
        b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            target = _read_request(connection)
            chunks = [b"%x\r\n%s\r\n" % (len(each), each) for each in answers[target]]
            connection.sendall(head)
            size = _BURST if burst else 1
            for first in range(0, len(chunks), size):
                connection.sendall(b"".join(chunks[first : first + size]))
                if not burst:
                    time.sleep(_PAUSE)
            connection.sendall(b"0\r\n\r\n")


def _read_request(connection: socket.socket) -> bytes:
    """Read all of it, for closing a socket with unread bytes resets it; return the target."""
    head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head.split(b" ", 2)[1]


_TIMINGS = {
    "cache_n": 0,
    "prompt_n": 5,
    "prompt_ms": 10.0,
    "predicted_n": 1,
    "predicted_ms": 10.0,
}


def _completion(tokens: int) -> list[bytes]:
    events: list[dict[str, object]] = [
        {
            "index": 0,
            "content": _TEXTS[n % len(_TEXTS)],
            "tokens": [1000 + n],
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": n + 1,
            "tokens_evaluated": 5,
        }
        for n in range(tokens)
    ]
    final = {"tokens_predicted": tokens, "tokens_evaluated": 5, "timings": _TIMINGS}
    events.append({"stop": True, "stop_type": "limit", **final})
    return [_event(event) for event in events]


def _chat(tokens: int) -> list[bytes]:
    frame = {
        "created": 1795435042,
        "id": "chatcmpl-5M1ErRNpFzQnmTTpYiqvVhWwlHrVsSsn",
        "model": "SmolLM2 135M Instruct",
        "system_fingerprint": "b11434-0123456789",
        "object": "chat.completion.chunk",
    }

    def choice(delta: dict[str, str], reason: str | None = None) -> list[dict[str, object]]:
        return [{"finish_reason": reason, "index": 0, "delta": delta}]

    events: list[dict[str, object]] = [
        {"choices": choice({"content": _TEXTS[n % len(_TEXTS)]}), **frame} for n in range(tokens)
    ]
    usage = {"completion_tokens": tokens, "prompt_tokens": 5, "total_tokens": tokens + 5}
    events.append({"choices": choice({}, "length"), **frame})
    events.append({"choices": [], **frame, "usage": usage, "timings": _TIMINGS})
    return [*(_event(event) for event in events), b"data: [DONE]\n\n"]


def _event(value: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


if __name__ == "__main__":
    main()
