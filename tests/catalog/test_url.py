"""Fetching from addresses, with a real server that misbehaves on demand."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from email.message import Message
from pathlib import Path
from typing import Any, TypeAlias
from urllib.request import Request

import pytest

from rocllm.catalog import Stage, http_get, pull_url, transfer
from rocllm.errors import DownloadFailed, OptionsError
from rocllm.testing.fake_hub import FakeHub

WriteModel: TypeAlias = Callable[..., Path]

_SECONDS = 30
_PULL = """\
import os, sys
from rocllm.catalog import pull_url
print(pull_url(sys.argv[1], os.environ))
"""
# No file may grow beyond 100 kB.
_SMALL_DISK = """\
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
"""


@pytest.fixture(scope="session")
def content(tmp_path_factory: pytest.TempPathFactory, write_model: WriteModel) -> bytes:
    """A model of some 200 KB."""
    return write_model(tmp_path_factory.mktemp("content") / "m.gguf").read_bytes()


@pytest.fixture
def hub(content: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A server with files; lost connections are tried again at once."""
    monkeypatch.setattr(transfer, "RETRY_SECONDS", 0.0)
    with FakeHub(files={"m.gguf": content, "page": b"<!DOCTYPE html><html>" * 100}) as server:
        yield server


def _folder(environ: dict[str, str]) -> Path:
    return Path(environ["HOME"]) / ".local/share/rocllm/models"


def _names(environ: dict[str, str]) -> set[str]:
    return {path.name for path in _folder(environ).iterdir()}


def test_pull(hub: FakeHub, content: bytes, environ: dict[str, str]) -> None:
    """The file arrives whole, nothing else stays, and progress goes from nothing to all."""
    steps: list[tuple[Stage, int, int | None]] = []
    path = pull_url(f"{hub.url}/files/m.gguf", environ, progress=lambda *step: steps.append(step))
    assert path == _folder(environ) / "m.gguf"
    assert path.read_bytes() == content
    assert _names(environ) == {"m.gguf"}
    assert steps[0] == ("download", 0, len(content))
    assert steps[-1] == ("download", len(content), len(content))
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)


def test_checksum(hub: FakeHub, content: bytes, environ: dict[str, str]) -> None:
    """At the end of the address or by itself; a wrong one leaves nothing behind."""
    right = hashlib.sha256(content).hexdigest()
    wrong = right.replace(right[0], "0" if right[0] != "0" else "1")
    url = f"{hub.url}/files/m.gguf"
    with pytest.raises(DownloadFailed, match=f"its sha256 is {right}, not {wrong}"):
        pull_url(f"{url}#sha256={wrong}", environ)
    assert _names(environ) == set()
    assert pull_url(f"{url}#sha256={right.upper()}", environ).read_bytes() == content
    # It is there now: its content is compared, without the server.
    before = len(hub.requests)
    assert pull_url(url, environ, sha256=right).read_bytes() == content
    with pytest.raises(DownloadFailed, match="another file is at"):
        pull_url(url, environ, sha256=wrong)
    assert len(hub.requests) == before


def test_what_is_there_is_compared(hub: FakeHub, environ: dict[str, str]) -> None:
    """Without a checksum by its size; another file is neither taken nor replaced."""
    path = pull_url(f"{hub.url}/files/m.gguf", environ)
    assert pull_url(f"{hub.url}/files/m.gguf", environ) == path
    path.write_bytes(b"something else")
    with pytest.raises(DownloadFailed, match="it has 14 bytes, not"):
        pull_url(f"{hub.url}/files/m.gguf", environ)
    assert path.read_bytes() == b"something else"


def test_a_cut_connection_is_resumed(hub: FakeHub, content: bytes, environ: dict[str, str]) -> None:
    """What has come is not asked for again, and the same file is asked for."""
    hub.switches.cut_after, hub.switches.cuts = 70_000, 2
    assert pull_url(f"{hub.url}/files/m.gguf", environ).read_bytes() == content
    ranges = [seen.headers.get("range") for seen in hub.content_requests()]
    assert ranges == [None, "bytes=70000-", "bytes=140000-"]
    etag = f'"{hashlib.sha256(content).hexdigest()}"'
    assert hub.content_requests()[1].headers["if-range"] == etag


@pytest.mark.parametrize("switch", ["ranges", "validators", "lengths"])
def test_a_server_that_knows_less(
    switch: str, hub: FakeHub, content: bytes, environ: dict[str, str]
) -> None:
    """Without ranges, entity tags or lengths the file still arrives, whole or not at all."""
    setattr(hub.switches, switch, False)
    hub.switches.cut_after = 70_000
    if switch == "lengths":
        # The end of the connection is the end of the file: only the file itself tells.
        with pytest.raises(DownloadFailed, match="belong to it"):
            pull_url(f"{hub.url}/files/m.gguf", environ)
        assert _names(environ) == set()
    assert pull_url(f"{hub.url}/files/m.gguf", environ).read_bytes() == content


def test_a_server_that_goes_away(hub: FakeHub, content: bytes, environ: dict[str, str]) -> None:
    """In the end that is an error which says how much is kept; the next call goes on from there."""
    url = f"{hub.url}/files/m.gguf"
    with pytest.raises(DownloadFailed, match=r"503 .*; 48.8 KiB are kept") as caught:
        _pull_until_cut(hub, url, environ)
    assert "goes on from there" in str(caught.value.remedy)
    assert _names(environ) == {".m.gguf.partial", ".m.gguf.partial.origin"}
    hub.switches.status = None
    assert pull_url(url, environ).read_bytes() == content
    assert hub.content_requests()[-1].headers["range"] == "bytes=50000-"
    assert _names(environ) == {"m.gguf"}


def _pull_until_cut(hub: FakeHub, url: str, environ: dict[str, str]) -> None:
    """Fetch from a server that cuts the connection, and then fails."""
    hub.switches.cut_after = 50_000

    def fail_after(stage: Stage, done: int, total: int | None) -> None:
        if done:
            hub.switches.status = 503

    pull_url(url, environ, progress=fail_after)


def test_another_file_on_the_server_meanwhile(
    hub: FakeHub, content: bytes, environ: dict[str, str]
) -> None:
    """What was fetched of the old one is not mixed with the new one."""
    url = f"{hub.url}/files/m.gguf"
    with pytest.raises(DownloadFailed):
        _pull_until_cut(hub, url, environ)
    hub.switches.status = None
    hub.files["m.gguf"] = new = content[:-4] + b"new!"
    assert pull_url(url, environ).read_bytes() == new


def test_a_part_of_another_file(hub: FakeHub, content: bytes, environ: dict[str, str]) -> None:
    """What an earlier call has left is used only if it is of the file that is wanted now."""
    url = f"{hub.url}/files/m.gguf"
    with pytest.raises(DownloadFailed):
        _pull_until_cut(hub, url, environ)
    hub.switches.status = None
    hub.files["m.gguf"] = new = content.replace(b"llama", b"qwen2")
    digest = hashlib.sha256(new).hexdigest()
    assert pull_url(url, environ, sha256=digest).read_bytes() == new


@pytest.mark.parametrize(
    ("path", "status", "why"),
    [
        ("none.gguf", None, "404 Not Found"),
        ("m.gguf", 403, "403 Forbidden"),
        ("m.gguf", 500, "500 Internal Server Error"),
        ("page", None, "a web page"),
    ],
)
def test_refused(
    path: str, status: int | None, why: str, hub: FakeHub, environ: dict[str, str]
) -> None:
    """What the server says is in the message, with the address; no file is left."""
    hub.switches.status = status
    with pytest.raises(DownloadFailed, match=why) as caught:
        pull_url(f"{hub.url}/files/{path}?key=secret", environ)
    assert f"{hub.url}/files/{path}" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.remedy
    assert _names(environ) == set()
    assert len(hub.requests) == (1 + transfer.TRIES if status == 500 else 1)


def test_no_server(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is not there is not waited for."""
    monkeypatch.setattr(transfer, "RETRY_SECONDS", 3600.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(DownloadFailed, match="Connection refused") as caught:
        pull_url(f"http://127.0.0.1:{port}/m.gguf", environ)
    assert "network" in str(caught.value.remedy)
    assert _names(environ) == set()


@pytest.mark.parametrize("url", ["ftp://host/m.gguf", "https:///m.gguf", "https://h:x/m.gguf", "m"])
def test_no_address(url: str, environ: dict[str, str]) -> None:
    """What cannot be fetched is an error before anything is done."""
    with pytest.raises(OptionsError, match="is no address"):
        pull_url(url, environ)


@pytest.mark.parametrize("sha256", ["", "abc", "g" * 64])
def test_no_checksum(sha256: str, environ: dict[str, str]) -> None:
    """A checksum that is none would never be right."""
    with pytest.raises(OptionsError, match="64 hexadecimal digits"):
        pull_url(f"https://host/m.gguf#sha256={sha256}", environ)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/b/m.gguf", "m.gguf"),
        ("..%2F..%2Fetc%2Fm.gguf", "_.._etc_m.gguf"),
        ("%2e%2e", "127.0.0.1.gguf"),
        (".hidden.gguf", "hidden.gguf"),
        ("download?file=m.gguf", "download.gguf"),
        ("a%0Ab%00c.gguf", "a_b_c.gguf"),
        ("größe.gguf", "größe.gguf"),
        ("x" * 300 + ".gguf", "x" * 200 + ".gguf"),
        ("%F0%9F%99%82" * 80 + ".gguf", "🙂" * 50 + ".gguf"),
    ],
)
def test_names_stay_in_the_folder(
    path: str, name: str, hub: FakeHub, content: bytes, environ: dict[str, str]
) -> None:
    """Whatever an address is called, the file has a sane name in rocllm's folder."""
    hub.files = _Everything(content)
    assert pull_url(f"{hub.url}/files/{path}", environ) == _folder(environ) / name
    assert _names(environ) == {name}


class _Everything(dict[str, bytes]):
    """The same file at every path."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def get(self, key: str, default: Any = None) -> Any:
        return self._content


def test_all_parts_are_fetched(hub: FakeHub, content: bytes, environ: dict[str, str]) -> None:
    """The address of one part is enough; the path of the first is returned."""
    for number in (1, 2):
        hub.files[f"big-{number:05}-of-00002.gguf"] = content
    path = pull_url(f"{hub.url}/files/big-00002-of-00002.gguf", environ)
    assert path.name == "big-00001-of-00002.gguf"
    assert _names(environ) == {f"big-{number:05}-of-00002.gguf" for number in (1, 2)}


def test_redirects(environ: dict[str, str], hub: FakeHub, content: bytes) -> None:
    """They are followed to where the content is; the token of a server stays with it."""
    hub.repos["user/repo"] = {"m.gguf": content}
    hub.switches.token = "hf_secret"
    remote = transfer.Remote(
        url=f"{hub.url}/user/repo/resolve/main/m.gguf", name="m", token="hf_secret"
    )
    transfer.fetch_file(remote, _folder(environ) / "m.gguf", lambda *_: None)
    assert (_folder(environ) / "m.gguf").read_bytes() == content
    first, second = hub.requests
    assert first.headers["authorization"] == "Bearer hf_secret"
    assert "authorization" not in second.headers
    assert "secret" not in repr(remote)


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        ("https://hub:8443/renamed/m.gguf", True),
        ("https://hub/m.gguf", False),
        ("https://hub:8444/m.gguf", False),
        ("https://cdn.hub:8443/m.gguf", False),
        ("https://other/m.gguf", False),
    ],
)
def test_a_token_stays_on_one_server(target: str, kept: bool) -> None:
    """Another port of the same machine is another server; another path is not."""
    request = Request("https://hub:8443/m.gguf")
    request.add_unredirected_header("Authorization", "Bearer hf_secret")
    sent = http_get.Redirects().redirect_request(
        request, io.BytesIO(), 302, "Found", Message(), target
    )
    assert sent is not None
    assert sent.full_url == target
    assert sent.has_header("Authorization") is kept


def test_a_token_does_not_come_with_a_better_scheme() -> None:
    """Who answers at the encrypted port need not be who answered at the other."""
    request = Request("http://hub/m.gguf")
    request.add_unredirected_header("Authorization", "Bearer hf_secret")
    sent = http_get.Redirects().redirect_request(
        request, io.BytesIO(), 302, "Found", Message(), "https://hub/m.gguf"
    )
    assert sent is not None
    assert not sent.has_header("Authorization")


def test_an_address_gets_no_token(hub: FakeHub, content: bytes, environ: dict[str, str]) -> None:
    """The Hub's token is for the Hub."""
    hub.files["m.gguf"] = content
    pull_url(f"{hub.url}/files/m.gguf", {**environ, "HF_TOKEN": "hf_secret"})
    assert hub.requests
    assert not [seen for seen in hub.requests if "authorization" in seen.headers]


def test_redirects_to_less_safety_are_refused() -> None:
    """From an encrypted connection there is no way back to one that is not, nor to a file."""
    request = Request("https://host/m.gguf")
    for target in ("http://host/m.gguf", "file:///etc/passwd", "ftp://host/m.gguf"):
        with pytest.raises(http_get.Refused, match="not followed"):
            http_get.Redirects().redirect_request(
                request, io.BytesIO(), 302, "Found", Message(), target
            )


def test_no_space(hub: FakeHub, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked for before the first byte is written."""
    free = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(DownloadFailed, match=r"1000 B free, .* KiB needed") as caught:
        pull_url(f"{hub.url}/files/m.gguf", environ)
    assert "free some space" in str(caught.value.remedy)
    assert _names(environ) == set()


def test_a_full_disk(hub: FakeHub, environ: dict[str, str]) -> None:
    """A disk that is full in the middle is said; what was fetched is kept."""
    done = subprocess.run(
        [sys.executable, "-c", _SMALL_DISK + _PULL, f"{hub.url}/files/m.gguf"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    assert "cannot store 'm.gguf'" in done.stderr
    assert "File too large" in done.stderr
    assert 0 < (_folder(environ) / ".m.gguf.partial").stat().st_size <= 100_000


def test_a_folder_that_cannot_be_made(hub: FakeHub, environ: dict[str, str]) -> None:
    """The message names the path, the system's reason and the variable to set."""
    Path(environ["HOME"]).write_text("a file")
    with pytest.raises(DownloadFailed, match="Not a directory") as caught:
        pull_url(f"{hub.url}/files/m.gguf", environ)
    assert "XDG_DATA_HOME" in str(caught.value.remedy)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_and_continued(
    sent: signal.Signals, hub: FakeHub, content: bytes, environ: dict[str, str]
) -> None:
    """Whatever ends the process, what has come is kept; the next call goes on from there."""
    environ["ROCLLM_TEST_SESSION"] = os.environ["ROCLLM_TEST_SESSION"]
    url = f"{hub.url}/files/m.gguf"
    hub.switches.stall_after = 60_000
    with _start(url, environ) as process:
        assert hub.stalled.wait(_SECONDS)
        _wait_for_size(_folder(environ) / ".m.gguf.partial", 60_000, process)
        process.send_signal(sent)
        output, _ = process.communicate(timeout=_SECONDS)
    assert output == ""
    assert _names(environ) == {".m.gguf.partial", ".m.gguf.partial.origin"}
    hub.switches.stall_after = None
    assert pull_url(url, environ).read_bytes() == content
    assert hub.content_requests()[-1].headers["range"] == "bytes=60000-"


def _start(url: str, environ: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PULL, url],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for_size(path: Path, size: int, process: subprocess.Popen[str]) -> None:
    """Until so many bytes are in the file, or the process has ended."""
    clock = threading.Event()
    for _ in range(_SECONDS * 100):
        if path.exists() and path.stat().st_size >= size:
            return
        assert process.poll() is None
        clock.wait(0.01)
    raise AssertionError(f"{path} has not grown to {size} bytes")


def test_two_at_once(hub: FakeHub, content: bytes, environ: dict[str, str]) -> None:
    """The second waits for the first and takes what it has fetched."""
    url = f"{hub.url}/files/m.gguf"
    hub.switches.stall_after = 60_000
    first = threading.Thread(target=pull_url, args=(url, environ))
    first.start()
    assert hub.stalled.wait(_SECONDS)
    stages: list[Stage] = []

    def release(stage: Stage, done: int, total: int | None) -> None:
        stages.append(stage)
        hub.release()

    assert pull_url(url, environ, progress=release).read_bytes() == content
    first.join(_SECONDS)
    assert set(stages) == {"wait"}
    assert len(hub.content_requests()) == 1
