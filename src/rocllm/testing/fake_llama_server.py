"""A stand-in for llama-server that misbehaves on request, for tests without a model or a GPU.

    python -m rocllm.testing.fake_llama_server --host /run/s.sock --fake-load_seconds=2

It takes llama-server's flags, answers `--version`, `--help` and `--list-devices`, writes the log of
a load, goes from 503 to 200, and streams in llama-server's own shapes (b11434). What it generates
is a fixed text, a byte a token. Switches come as one JSON object in `FAKE_LLAMA_SERVER`, as
`--fake-NAME[=JSON]`, or baked into a script by `write_fake_llama_server`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from pathlib import Path

_VARIABLE = "FAKE_LLAMA_SERVER"
_TEXT = b"All work and no play makes Jack a dull boy. "
_LAYERS = 33
_FLOOD = (b"f" * 999 + b"\n") * 64
_DEVICE = "AMD Radeon RX 7800 XT"
# The flags that rocllm gives, each line as the real `--help` spells it, without the explanations.
_HELP = """\
-m,    --model FNAME; -a,    --alias STRING; --host HOST; --port PORT; --cors-origins ORIGINS
-c,    --ctx-size N; -np,   --parallel N; -kvu,  --kv-unified, -no-kvu, --no-kv-unified
-b,    --batch-size N; -ub,   --ubatch-size N; -ngl,  --gpu-layers, --n-gpu-layers N
-dev,  --device <dev1,dev2,..>; -sm,   --split-mode {none,layer,row,tensor}; -fit,  --fit [on|off]
-fa,   --flash-attn [on|off|auto]; -ctk,  --cache-type-k TYPE; -ctv,  --cache-type-v TYPE
-lm,   --load-mode MODE; -t,    --threads N; -cram, --cache-ram N; --sse-ping-interval N
--jinja, --no-jinja; --metrics
--slots, --no-slots; --offline; --ui,  --webui, --no-ui, --no-webui
-lv,   --verbosity, --log-verbosity N; --log-colors [on|off|auto]
"""


class Switches(NamedTuple):  # a data class would double the time that a start takes
    """How to misbehave; the default is to behave."""

    load_seconds: float = 0.0  # time for loading, with a line of log every 20 ms
    never_ready: bool = False  # 503 for ever, and no further line of log
    silent: bool = False  # nothing is bound, written or done
    exit_status: int | None = None  # end with it after loading, or within a stream, see below
    signal: int | None = None  # end by this signal instead
    die_after_tokens: int | None = None  # end within a stream, after so many tokens
    stderr: str = ""  # written while loading, or just before an end within a stream
    hang_after_tokens: int | None = None  # a stream stops there and stays open
    close_after_tokens: int | None = None  # a stream's connection ends there, nothing else does
    garbage: str = ""  # sent in the place of any answer but that to a health check
    vanish: bool = False  # its socket is removed once it is ready
    token_seconds: float = 0.0  # time a token takes
    ignore_sigterm: bool = False  # only SIGKILL ends it
    grandchild: bool = False  # leaves a process that keeps the output open; logs its number
    late_log: float = 0.0  # ready so many seconds before the log of the load is written
    flood: int = 0  # bytes of log, while loading
    flood_for_ever: bool = False  # log, as fast as it can be written
    long_line: int = 0  # bytes of a line that does not end
    invalid_utf8: bool = False  # a line of log that is not UTF-8
    devices: Sequence[str] = ()  # PCI addresses of the GPUs that a ROCm build would see
    uses: Sequence[str] | None = None  # those that it says it uses, if not the selected ones
    no_devices_because: str = ""  # said beside the answer to `--list-devices`
    offloaded_layers: int = _LAYERS  # of 33
    version: str = "0.6.0-dev (build 0, commit unknown)"
    lacks: Sequence[str] = ()  # flags that it does not have
    hang_on_question: bool = False  # `--version`, `--help` and `--list-devices` get no answer


def write_fake_llama_server(path: Path, **switches: Any) -> Path:
    """Write an executable with the `switches` baked in, for `llama_server=` and the like.

    Raises `TypeError` for a switch that `Switches` does not have.

    >>> server = write_fake_llama_server(tmp_path / "llama-server", silent=True)  # doctest: +SKIP
    """
    baked = shlex.quote(json.dumps(Switches(**switches)._asdict()))
    python = shlex.join([sys.executable, "-I", "-S", __file__])  # the library is all it needs
    path.write_text(f'#!/bin/sh\n{_VARIABLE}={baked} exec {python} "$@"\n')
    path.chmod(0o755)
    return path


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(2, data) :]


def _log(text: str) -> None:
    _write(f"0.00.068.253 I {text}\n".encode())


def _flood() -> NoReturn:
    while True:
        _write(_FLOOD)


def _wait_for_ever() -> NoReturn:
    while True:
        time.sleep(1000)


class _FakeServer:
    def __init__(self, switches: Switches, arguments: Sequence[str]) -> None:
        value = dict(itertools.pairwise(arguments))
        self.switches = switches
        self.host = value.get("--host", "127.0.0.1")
        self.port = int(value.get("--port", "8080"))
        self.n_slots = int(value.get("--parallel", "1"))
        self.n_ctx = int(value.get("--ctx-size", "4096")) // self.n_slots
        self.selected = value.get("--device", "all").split(",")
        self.api_key = os.environ.get("LLAMA_API_KEY")
        self.ready = False
        self.terminating = False
        self.busy: set[int] = set()
        self.changed = threading.Condition()

    def run(self) -> NoReturn:
        if self.switches.ignore_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if self.switches.silent:
            _wait_for_ever()
        listener = self.bind()
        threading.Thread(target=self.accept, args=(listener,), daemon=True).start()
        self.load()
        if not self.switches.ignore_sigterm:
            signal.signal(signal.SIGTERM, lambda *_: self.terminate())
        self.ready = True
        if self.switches.vanish:
            os.unlink(self.host)
        if self.switches.late_log:
            time.sleep(self.switches.late_log)
            self.log_load()
        _wait_for_ever()

    def bind(self) -> socket.socket:
        try:
            if not self.host.endswith(".sock"):
                return socket.create_server((self.host, self.port))
            return socket.create_server(self.host, family=socket.AF_UNIX)
        except OSError:
            at = f"hostname: {self.host}, port: {self.port}"
            _log(f"srv         start: couldn't bind HTTP server socket, {at}")
            raise SystemExit(1) from None

    def accept(self, listener: socket.socket) -> NoReturn:
        while True:
            connection = listener.accept()[0]
            threading.Thread(target=_serve, args=(self, connection), daemon=True).start()

    def load(self) -> None:
        switches = self.switches
        _write(b"x" * switches.long_line)
        _write(b"\xff\xfe\xc3(\n" * switches.invalid_utf8)
        for rest in range(switches.flood, 0, -len(_FLOOD)):
            _write(_FLOOD[:rest])
        if switches.flood_for_ever:
            threading.Thread(target=_flood, daemon=True).start()
        if switches.grandchild:
            child = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
            _log(f"grandchild {child.pid}")
        if switches.die_after_tokens is None:
            _write(switches.stderr.encode())
        deadline = time.monotonic() + switches.load_seconds
        while (left := deadline - time.monotonic()) > 0:
            _log(f"srv    load_model: {left:.3f} s left")
            time.sleep(min(left, 0.02))
        if switches.die_after_tokens is None:
            self.end()
        if switches.never_ready:
            _wait_for_ever()
        if not switches.late_log:
            self.log_load()

    def log_load(self) -> None:
        listed = {f"ROCm{i}": pci for i, pci in enumerate(self.switches.devices)}
        used = {name: pci for name, pci in listed.items() if {name, "all"} & set(self.selected)}
        if self.switches.uses is not None:
            used = {f"ROCm{i}": pci for i, pci in enumerate(self.switches.uses)}
        for name, pci in used.items():
            _log(
                f"llama_prepare_model_devices: using device {name} ({_DEVICE}) ({pci}) - 16000 MiB"
            )
        _log("load_tensors: loading model tensors, this can take a while... (load_mode = mmap)")
        if listed:
            offloaded = self.switches.offloaded_layers if used else 0
            _log(f"load_tensors: offloaded {offloaded}/{_LAYERS} layers to GPU")
        for name in used or ["CPU"]:
            _log(f"load_tensors:      {name} model buffer size =  4095.05 MiB")
            _log(f"llama_kv_cache:      {name} KV buffer size =   512.00 MiB")
            _log(f"sched_reserve:      {name} compute buffer size =   120.00 MiB")
        slots = f"n_slots = {self.n_slots}, n_ctx_slot = {self.n_ctx}, kv_unified = 'false'"
        _log(f"srv    load_model: initializing, {slots}")

    def end(self) -> None:
        """End as the switches say, if they say so."""
        if self.switches.die_after_tokens is not None:
            _write(self.switches.stderr.encode())
        if self.switches.signal is not None:
            signal.raise_signal(self.switches.signal)
        if self.switches.exit_status is not None:
            os._exit(self.switches.exit_status)

    def terminate(self) -> None:
        # As the real one: 0 when idle, not while a client is connected, 1 at the second signal.
        if self.terminating or not self.busy:
            os._exit(int(self.terminating))
        self.terminating = True

    @contextlib.contextmanager
    def slot(self) -> Iterator[int]:
        with self.changed:
            self.changed.wait_for(lambda: len(self.busy) < self.n_slots)
            number = min(set(range(self.n_slots)) - self.busy)
            self.busy.add(number)
        try:
            yield number
        finally:
            with self.changed:
                self.busy.remove(number)
                self.changed.notify_all()
            if self.terminating and not self.busy:
                os._exit(0)

    def tokens(self, wanted: int) -> Iterator[int]:
        switches = self.switches
        wanted = wanted if wanted >= 0 else self.n_ctx
        for done, token in enumerate(itertools.islice(itertools.cycle(_TEXT), wanted)):
            if done == switches.die_after_tokens:
                self.end()
            if done == switches.hang_after_tokens:
                _wait_for_ever()
            if done == switches.close_after_tokens:
                raise ConnectionAbortedError
            time.sleep(switches.token_seconds)
            yield token


def _serve(fake: _FakeServer, connection: socket.socket) -> None:
    """One connection: HTTP/1.1 with keep-alive."""
    with connection, connection.makefile("rwb", buffering=0) as raw, contextlib.suppress(OSError):
        stream = connection.makefile("rb")
        while start := stream.readline().split():
            lines = iter(stream.readline, b"\r\n")
            headers = dict(line.decode().rstrip().lower().split(": ", 1) for line in lines)
            body = json.loads(stream.read(int(headers.get("content-length", "0"))) or "{}")
            if not _answer(fake, start[1].decode().partition("?")[0], headers, body, raw):
                break


def _answer(
    fake: _FakeServer, path: str, headers: Mapping[str, str], body: Any, out: socket.SocketIO
) -> bool:
    """Answer one request; whether the connection stays open."""
    if fake.switches.garbage and path != "/health":
        out.write(fake.switches.garbage.encode())
        return False
    authorized = headers.get("authorization", "") == f"bearer {fake.api_key}".lower()
    if not fake.ready:
        status, answer = 503, _error(503, "Loading model", "unavailable_error")
    elif fake.api_key and not authorized and path != "/health":
        status, answer = 401, _error(401, "Invalid API Key", "authentication_error")
    elif path == "/completion" and not body.get("stream"):
        with fake.slot():
            status, answer = _next_token(fake, body)
    elif path in ("/completion", "/v1/chat/completions"):
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        with fake.slot() as slot:
            out.write(head + b"Transfer-Encoding: chunked\r\n\r\n")
            events = _completion if path == "/completion" else _chat
            for event in events(fake, slot, body):
                data = b"data: %s\n\n" % (
                    event if event == b"[DONE]" else json.dumps(event).encode()
                )
                out.write(b"%x\r\n%s\r\n" % (len(data), data))
            out.write(b"0\r\n\r\n")
        return True
    else:
        status, answer = _plain(fake, path, body)
    content = json.dumps(answer).encode()
    out.write(b"HTTP/1.1 %d -\r\nContent-Length: %d\r\n\r\n%s" % (status, len(content), content))
    return status == 200


def _error(code: int, message: str, kind: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "type": kind}}


def _plain(fake: _FakeServer, path: str, body: Any) -> tuple[int, Any]:
    match path:
        case "/health":
            return 200, {"status": "ok"}
        case "/props":
            settings = {"params": {}, "n_ctx": fake.n_ctx}
            return 200, {"default_generation_settings": settings, "total_slots": fake.n_slots}
        case "/slots":
            slots = range(fake.n_slots)
            return 200, [
                {"id": i, "n_ctx": fake.n_ctx, "is_processing": i in fake.busy} for i in slots
            ]
        case "/tokenize":
            return 200, {"tokens": list(body["content"].encode())}
        case "/detokenize":
            return 200, {"content": bytes(body["tokens"]).decode(errors="replace")}
    return 404, _error(404, "File Not Found", "not_found_error")


def _timings(prompt_n: int, predicted_n: int) -> dict[str, Any]:
    prompt = {"cache_n": 0, "prompt_n": prompt_n, "prompt_ms": 1.0 * prompt_n}
    return {**prompt, "predicted_n": predicted_n, "predicted_ms": 1.0 * predicted_n}


def _completion(fake: _FakeServer, slot: int, body: Any) -> Iterator[Any]:
    prompt, n = len(body["prompt"]), 0
    for n, token in enumerate(fake.tokens(body.get("n_predict", -1)), start=1):
        counts = {"tokens_predicted": n, "tokens_evaluated": prompt}
        text = {"index": 0, "content": chr(token), "tokens": [token], "stop": False}
        yield {**text, "id_slot": -1, **counts}
    end = {"content": "", "tokens": [], "stop": True, "stop_type": "limit", "stopping_word": ""}
    counts = {"tokens_predicted": n, "tokens_evaluated": prompt}
    yield {**end, **counts, "timings": _timings(prompt, n), "id_slot": slot, "truncated": False}


def _next_token(fake: _FakeServer, body: Any) -> tuple[int, Any]:
    """One token's probabilities: any numbers, always the same for the same prompt."""
    parts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
    prompt = b"".join(
        part.encode() if isinstance(part, str) else bytes([part % 256]) for part in parts
    )
    if len(prompt) >= fake.n_ctx:
        answer = _error(400, "the prompt is too long", "exceed_context_size_error")
        answer["error"] |= {"n_prompt_tokens": len(prompt), "n_ctx": fake.n_ctx}
        return 400, answer
    time.sleep(fake.switches.token_seconds)
    among = [token for token, _ in body.get("logit_bias", ())] or range(256)
    weights = {token: zlib.crc32(b"%s %d" % (prompt, token)) + 1 for token in among}
    total = sum(weights.values())
    likeliest = sorted(weights, key=weights.__getitem__, reverse=True)[: body["n_probs"]]
    kind = "prob" if body.get("post_sampling_probs") else "logprob"
    entries = []
    for token in likeliest:
        share = weights[token] / total
        value = share if kind == "prob" else math.log(share)
        entries.append({"id": token, "token": chr(token), "bytes": [token], kind: value})
    told = {**entries[0], f"top_{kind}s": entries}
    figures = {"tokens_evaluated": len(prompt), "timings/cache_n": 0}
    return 200, {"completion_probabilities": [told], **figures}


def _chat(fake: _FakeServer, _slot: int, body: Any) -> Iterator[Any]:
    frame = {"created": 0, "id": "chatcmpl-fake", "object": "chat.completion.chunk"}
    choice = {"finish_reason": None, "index": 0}
    yield {"choices": [{**choice, "delta": {"role": "assistant", "content": None}}], **frame}
    sent = 0
    for token in fake.tokens(body.get("max_tokens", -1)):
        sent += 1
        yield {"choices": [{**choice, "delta": {"content": chr(token)}}], **frame}
    yield {"choices": [{**choice, "finish_reason": "length", "delta": {}}], **frame}
    prompt = sum(len(message["content"]) for message in body["messages"])
    usage = {"completion_tokens": sent, "prompt_tokens": prompt, "total_tokens": sent + prompt}
    yield {"choices": [], **frame, "usage": usage, "timings": _timings(prompt, sent)}
    yield b"[DONE]"


def _ask(switches: Switches, arguments: Sequence[str]) -> str | None:
    """The answer to a question, for stdout; that to `--version` is on stderr."""
    if not {"--help", "--version", "--list-devices"} & set(arguments):
        return None
    if switches.hang_on_question:
        _wait_for_ever()
    if switches.devices:
        _write(b"ggml_cuda_init: found %d ROCm devices:\n" % len(switches.devices))
    if "--version" in arguments:
        _write(f"version: {switches.version}\n".encode())
        return ""
    if "--list-devices" in arguments:
        _write(switches.no_devices_because.encode())
        said = f"{_DEVICE} (16368 MiB, 16000 MiB free)"
        listed = [f"  ROCm{i}: {said}\n" for i in range(len(switches.devices))]
        return "Available devices:\n" + "".join(listed or ["  (none)\n"])
    lines = _HELP.replace("; ", "\n").splitlines()
    lacks = set(switches.lacks)
    return "\n".join(line for line in lines if not lacks & set(line.replace(",", " ").split()))


def _parse(arguments: Sequence[str], environ: Mapping[str, str]) -> tuple[Switches, list[str]]:
    values = json.loads(environ.get(_VARIABLE, "{}"))
    ours = [argument for argument in arguments if argument.startswith("--fake-")]
    for argument in ours:
        name, _, text = argument.removeprefix("--fake-").partition("=")
        values[name] = json.loads(text or "true")
    return Switches(**values), [argument for argument in arguments if argument not in ours]


def main(arguments: Sequence[str]) -> None:
    """Answer a question, or serve until a signal comes."""
    switches, rest = _parse(arguments, os.environ)
    answer = _ask(switches, rest)
    if answer is not None:
        sys.stdout.write(answer)
        return
    for name in set(rest) & set(switches.lacks):
        _write(f"error: invalid argument: {name}\n".encode())
        raise SystemExit(1)
    _FakeServer(switches, rest).run()


if __name__ == "__main__":
    main(sys.argv[1:])
