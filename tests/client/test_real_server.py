"""Both clients against a real llama.cpp server."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import time
from typing import Any

import pytest
from tests.client.both import KINDS, Kind, call, consume, read
from tests.client.scripted import DEADLINE

from rocllm.client import AsyncClient, Client
from rocllm.endpoint import Endpoint
from rocllm.errors import BadRequest, ContextOverflow
from rocllm.options import SamplingOptions
from rocllm.results import Message

both = pytest.mark.parametrize("kind", KINDS)
SYMBOLS = "Repeat exactly: 🦙 你好 龘龘 → 🦙 你好 龘龘 Repeat exactly: 🦙 你好 龘龘 →"
MESSAGES = [Message("user", "Count from 1 to 9.")]


def post(endpoint: Endpoint, path: str, body: dict[str, Any]) -> Any:
    """A plain request with another HTTP client."""
    assert endpoint.socket_path is not None
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(endpoint.socket_path)
    try:
        connection.request("POST", path, json.dumps(body))
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


@both
def test_calls(kind: Kind, server: Endpoint) -> None:
    """Every call is understood by the server, and its answer by us."""
    health, props, slots, ids, special, prompt = call(
        kind,
        server,
        lambda client: client.health(),
        lambda client: client.props(),
        lambda client: client.slots(),
        lambda client: client.tokenize("Hi 🦙<|im_end|>"),
        lambda client: client.tokenize("<|im_end|>", parse_special=False),
        lambda client: client.apply_template(MESSAGES),
    )
    assert health == "ready"
    assert props["total_slots"] == len(slots) == 2
    assert ids[-1] == 2
    assert len(special) > 1
    assert "Count from 1 to 9." in prompt
    assert call(kind, server, lambda client: client.detokenize(ids[:-1])) == ["Hi 🦙"]


@both
def test_ids_are_those_of_the_complete_list(kind: Kind, server: Endpoint) -> None:
    """What the stream leaves out is recovered: the ids are those of a request without a stream."""
    options = SamplingOptions(max_tokens=40)
    body = {"prompt": SYMBOLS, "n_predict": 40, "temperature": 0, "return_tokens": True}
    plain = post(server, "/completion", body)
    got = read(kind, server, lambda client: client.completion(SYMBOLS, options))
    assert [token.id for token in got.tokens] == plain["tokens"]
    assert got.text == plain["content"]
    assert {"🦙", "龘"} <= set(got.text)
    assert len(got.tokens) == got.usage.completion_tokens == got.timings.predicted_n == 40


@pytest.mark.parametrize("seed", range(3))
def test_sampled_ids_give_the_text(server: Endpoint, seed: int) -> None:
    """Hot sampling makes unusual tokens: known ids give exactly the text, the others are `None`."""
    options = SamplingOptions(max_tokens=40, temperature=1.5, seed=seed)
    with Client(server) as client:
        got = client.completion("😀 🥔 你好 🤖 नमस्ते 😎 한국 🚀", options).read()
        assert len(got.tokens) == got.usage.completion_tokens
        run: list[int | None] = []
        for token in got.tokens:
            run.append(token.id)
            if token.text:
                known = [each for each in run if each is not None]
                assert len(known) < len(run) or client.detokenize(known) == token.text
                run = []


def test_text_withheld_for_a_stop_string_keeps_its_ids(server: Endpoint) -> None:
    """A stop string that begins often and never comes does not change the answer."""
    free = read("sync", server, lambda c: c.completion(SYMBOLS, SamplingOptions(max_tokens=34)))
    options = SamplingOptions(max_tokens=34, stop=["🦙 你x", "龘 R?"])
    held = read("sync", server, lambda client: client.completion(SYMBOLS, options))
    assert [token.id for token in held.tokens] == [token.id for token in free.tokens]
    assert held.text == free.text


def test_text_withheld_at_the_end_is_not_lost(server: Endpoint) -> None:
    """The server never sends what it withholds when `max_tokens` is reached; the answer has it."""
    stop = [" Paris in spring"]
    body = {"prompt": "The capital of France is", "n_predict": 1, "temperature": 0, "stop": stop}
    options = SamplingOptions(max_tokens=1, stop=stop)
    got = read("sync", server, lambda c: c.completion("The capital of France is", options))
    assert got.text == post(server, "/completion", body)["content"] == " Paris"


@both
def test_stop(kind: Kind, server: Endpoint) -> None:
    """A stop string and a stop token end an answer alike; the slot is free and works on."""
    prompt = "1, 2, 3, 4, 5, 6, 7,"
    stop_token = post(server, "/tokenize", {"content": "9"})["tokens"][-1]
    words = read(kind, server, lambda c: c.completion(prompt, SamplingOptions(stop=["9"])))
    options = SamplingOptions(stop_tokens=[stop_token])
    tokens = read(kind, server, lambda c: c.completion(prompt, options))
    assert words.text == tokens.text == " 8, "
    assert words.finish_reason == tokens.finish_reason == "stop"
    assert [each.id for each in words.tokens] == [each.id for each in tokens.tokens]
    assert tokens.tokens[-1].id == stop_token
    assert tokens.usage.completion_tokens == len(tokens.tokens)
    assert tokens.usage.prompt_tokens == words.usage.prompt_tokens


@both
def test_chat(kind: Kind, server: Endpoint) -> None:
    """Ids and probabilities change nothing in the answer; without them ids are unknown."""
    plain = read(kind, server, lambda client: client.chat(MESSAGES))
    options = SamplingOptions(logprobs=True)
    rich = read(kind, server, lambda client: client.chat(MESSAGES, options))
    assert plain.text == rich.text
    assert plain.finish_reason == rich.finish_reason == "stop"
    assert {token.id for token in plain.tokens} == {None}
    assert all(token.id is not None and token.logprob is not None for token in rich.tokens[:-1])
    assert len(plain.tokens) == len(rich.tokens) == rich.usage.completion_tokens
    seven = next(token.id for token in rich.tokens if token.text.strip() == "7")
    assert seven is not None
    options = SamplingOptions(stop_tokens=[seven])
    stopped = read(kind, server, lambda client: client.chat(MESSAGES, options))
    assert stopped.text == rich.text.split("7")[0]
    assert stopped.usage.completion_tokens == len(stopped.tokens)


@both
def test_log_probabilities(kind: Kind, server: Endpoint) -> None:
    """Asking for probabilities changes nothing else."""
    plain = read(kind, server, lambda c: c.completion(SYMBOLS, SamplingOptions(max_tokens=16)))
    options = SamplingOptions(max_tokens=16, logprobs=True)
    rich = read(kind, server, lambda client: client.completion(SYMBOLS, options))
    assert [token.id for token in rich.tokens] == [token.id for token in plain.tokens]
    assert all(
        token.logprob is not None and token.logprob <= 0 for token in rich.tokens if token.text
    )


@both
def test_constrained_answers(kind: Kind, server: Endpoint) -> None:
    """A JSON schema, the empty one included, and a grammar are obeyed."""
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    options = SamplingOptions(json_schema=schema, max_tokens=40)
    assert isinstance(
        json.loads(read(kind, server, lambda c: c.completion("JSON: ", options)).text)["n"], int
    )
    options = SamplingOptions(grammar='root ::= "yes" | "no"')
    assert read(kind, server, lambda c: c.chat(MESSAGES, options)).text in ("yes", "no")


@both
def test_refusals(kind: Kind, server: Endpoint) -> None:
    """What the server refuses is an error of the right class, with its reason."""
    error = consume(kind, server, lambda client: client.completion("word " * 2000)).error
    assert isinstance(error, ContextOverflow)
    assert error.n_ctx == 512
    assert error.n_prompt_tokens is not None
    assert error.n_prompt_tokens > 2000
    options = SamplingOptions(grammar="root ::= (")
    error = consume(kind, server, lambda client: client.completion("x", options)).error
    assert isinstance(error, BadRequest)
    assert "grammar" in str(error.why)
    error = consume(kind, server, lambda client: client.completion([999_999_999])).error
    assert isinstance(error, BadRequest)


@both
def test_more_requests_than_a_connection_carries(kind: Kind, server: Endpoint) -> None:
    """The server closes a connection after 100 requests, and nobody notices."""
    answers = call(kind, server, *[lambda client: client.tokenize("a")] * 120)
    assert len(answers) == 120
    assert all(answer == answers[0] for answer in answers)


def test_leaving_a_stream_frees_its_slot(server: Endpoint) -> None:
    """The server stops generating when a stream is left, closed or dropped."""
    options = SamplingOptions(max_tokens=400)
    with Client(server) as client:
        with client.completion("Once upon a time", options) as stream:
            next(stream)
        wait_until_idle(client)
        for _ in client.chat(MESSAGES, SamplingOptions(max_tokens=400, stop=["never"])):
            break
        wait_until_idle(client)

    async def main() -> None:
        async with AsyncClient(server) as client:
            stream = client.completion("Once upon a time", options)
            await anext(stream)
            await stream.aclose()
            await asyncio.to_thread(wait)
            reading = asyncio.create_task(client.completion("Once upon a time", options).read())
            while not any(slot["is_processing"] for slot in await client.slots()):
                assert not reading.done()
            reading.cancel()
            await asyncio.to_thread(wait)

    def wait() -> None:
        with Client(server) as client:
            wait_until_idle(client)

    asyncio.run(asyncio.wait_for(main(), 2 * DEADLINE))


def wait_until_idle(client: Client) -> None:
    """Wait until no slot generates."""
    deadline = time.monotonic() + DEADLINE
    while any(slot["is_processing"] for slot in client.slots()):
        assert time.monotonic() < deadline, "a slot is still busy"
        time.sleep(0.01)
