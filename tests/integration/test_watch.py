"""Watching a real server at work."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import time
from typing import Any

import typer
from typer.testing import CliRunner

import rocllm
from rocllm.cli.top import top
from rocllm.server.running import RunningServer, list_running
from rocllm.server.status import ServerStatus, read_status, tokens_per_second

_DEADLINE = 60.0


def server_of(model: rocllm.TextModel) -> RunningServer:
    """As a stranger finds it."""
    (server,) = (one for one in list_running(os.environ) if one.pid == model.info.pid)
    return server


def idle(server: RunningServer) -> ServerStatus:
    """The status when nothing is under way any more."""
    assert server.endpoint is not None
    deadline = time.monotonic() + _DEADLINE
    while (status := read_status(server.endpoint, _DEADLINE)).busy_slots:
        assert time.monotonic() < deadline
    return status


def look() -> dict[str, Any]:
    """What `rocllm top` tells programs."""
    app = typer.Typer()
    app.command()(top)
    result = CliRunner().invoke(app, ["--once", "--json", "--interval", "0.2"])
    assert result.exception is None, result.exception
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def test_a_running_model_is_found(model: rocllm.TextModel) -> None:
    """By the files and the process that any rocllm leaves."""
    server = server_of(model)

    assert server.parent_pid == os.getpid()
    assert server.endpoint == model.info.endpoint
    assert server.model_path == model.info.path
    assert server.alias == model.info.model.name
    assert server.parallel == 3
    assert server.device_names == ()


def test_tokens_are_counted_while_they_are_made(model: rocllm.TextModel) -> None:
    """In the slot at first, and by the counter when the request has come to its end."""
    server = server_of(model)
    assert server.endpoint is not None
    before = idle(server)
    assert (before.state, before.busy_slots, before.waiting) == ("ready", 0, 0)

    with model.generate("Once upon a time", max_tokens=100) as stream:
        read = len(list(itertools.islice(stream, 20)))
        during = read_status(server.endpoint, _DEADLINE)
        rest = len(list(stream))
    after = idle(server)

    assert during.busy_slots == 1
    (busy,) = (slot for slot in during.slots or () if slot.state == "generating")
    assert busy.n_ctx == 1024
    assert busy.n_tokens is not None
    assert busy.n_tokens >= busy.n_decoded >= read
    assert before.finished is not None
    assert after.finished is not None
    assert after.finished - before.finished >= read + rest
    rate = tokens_per_second(before, during)
    assert rate is not None
    assert rate * (during.time - before.time) >= read


def test_top_shows_it(model: rocllm.TextModel) -> None:
    """With what it is doing now."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            with model.generate("Once upon a time", max_tokens=400) as stream:
                for _ in stream:
                    if stop.is_set():
                        break

    thread = threading.Thread(target=work)
    thread.start()
    try:
        deadline = time.monotonic() + _DEADLINE
        while True:
            shown = {one["pid"]: one for one in look()["models"]}[model.info.pid]
            if shown["tokens_per_second"]:
                break
            assert time.monotonic() < deadline, shown
    finally:
        stop.set()
        thread.join()

    assert shown["state"] == "ready"
    assert shown["busy_slots"] == 1
    assert shown["path"] == str(model.info.path)
    assert shown["parent_pid"] == os.getpid()
    assert (shown["devices"], shown["vram"]) == ([], None)
    assert shown["resident"] > 50_000_000


def test_a_server_that_hangs_does_not_stop_the_view(model: rocllm.TextModel) -> None:
    """It is shown as giving no answer, within the time that was promised."""
    assert model.info.pid is not None
    os.kill(model.info.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        shown = {one["pid"]: one for one in look()["models"]}[model.info.pid]
        took = time.monotonic() - began
    finally:
        os.kill(model.info.pid, signal.SIGCONT)

    assert shown["state"] == "unreachable"
    assert (shown["busy_slots"], shown["tokens_per_second"]) == (None, None)
    # Two looks of 1.25 s at the most, and room for a machine under load.
    assert took < 20
