"""What a running server shows to others: no secret, and nothing to those who have no key."""

from __future__ import annotations

import json
import os
import socket
import traceback
from pathlib import Path

import pytest

import rocllm
from rocllm.client import Client
from rocllm.endpoint import Endpoint
from rocllm.errors import RequestError

_SECRETS = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "HTTPS_PROXY", "ANYTHING")
_SECRET = "s3cret-of-the-user"


def test_the_child_is_not_told_the_users_secrets(demo_model: Path) -> None:
    """What it does not need is not in its environment, as the kernel shows it."""
    environ = {**os.environ, **dict.fromkeys(_SECRETS, _SECRET), "OMP_NUM_THREADS": "1"}
    with rocllm.load_model(demo_model, ctx_size=256, environ=environ) as model:
        told = Path(f"/proc/{model.info.pid}/environ").read_text()
        assert _SECRET not in told
        assert "OMP_NUM_THREADS=1" in told.split("\0")
        assert _SECRET not in repr(model.info)


def test_the_socket_is_private(demo_model: Path) -> None:
    """Its directory belongs to the user, who alone may enter it."""
    with rocllm.load_model(demo_model, ctx_size=256, threads=1) as model:
        endpoint = model.info.endpoint
        assert endpoint is not None
        assert endpoint.socket_path is not None
        folder = Path(endpoint.socket_path).parent.stat()
        assert (folder.st_uid, folder.st_mode & 0o777) == (os.getuid(), 0o700)
        assert Path(endpoint.socket_path).stat().st_mode & 0o077 == 0


def test_the_key_of_a_tcp_server(
    demo_model: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It is random, without it nothing is answered, and it is shown nowhere."""
    keys = []
    for _ in range(2):
        with rocllm.load_model(demo_model, ctx_size=256, threads=1, host="127.0.0.1") as model:
            endpoint = model.info.endpoint
            assert endpoint is not None
            assert endpoint.port is not None
            assert endpoint.api_key is not None
            key = endpoint.api_key
            keys.append(key)
            for wrong in (None, "", "wrong", key[:-1]):
                with (
                    Client(Endpoint.tcp("127.0.0.1", endpoint.port, api_key=wrong)) as stranger,
                    pytest.raises(RequestError) as refused,
                ):
                    stranger.props()
                assert refused.value.status == 401
            assert model.generate("1, 2,", max_tokens=1).read().tokens
            with pytest.raises(rocllm.RocllmError) as failed:
                model.generate("word " * 1000).read()
            shown = [
                Path(f"/proc/{model.info.pid}/cmdline").read_text(),
                repr(model),
                repr(model.info),
                str(endpoint),
                repr(endpoint),
                "".join(traceback.format_exception(failed.value)),
            ]
            assert not any(key in text for text in shown)
    assert len(set(keys)) == 2
    assert min(map(len, keys)) >= 32
    said = capfd.readouterr()
    assert not any(key in said.out + said.err + caplog.text for key in keys)


def test_the_key_is_in_no_file(demo_model: Path, tmp_path: Path) -> None:
    """Neither in the server's directory, nor at home."""
    environ = {**os.environ, "HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    runtime = Path(os.environ["XDG_RUNTIME_DIR"])
    with rocllm.load_model(
        demo_model, ctx_size=256, threads=1, host="127.0.0.1", environ=environ
    ) as model:
        assert model.info.endpoint is not None
        key = (model.info.endpoint.api_key or "").encode()
        files = [
            path
            for place in (runtime, tmp_path)
            for path in place.rglob("*")
            if path.is_file() and path.stat().st_size < 1 << 20
        ]
        assert any(path.name == "owner.json" for path in files)
        assert not any(key in path.read_bytes() for path in files)
        (owner,) = (
            owner
            for owner in (json.loads(one.read_text()) for one in files if one.name == "owner.json")
            if owner["child"]["pid"] == model.info.pid
        )
        assert set(owner) == {"system", "parent", "child"}


def test_only_the_loopback_address_is_listened_on(demo_model: Path) -> None:
    """With a port and no host nobody else's machine can reach it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with rocllm.load_model(demo_model, ctx_size=256, threads=1, port=port) as model:
        lines = Path(f"/proc/{model.info.pid}/net/tcp").read_text().splitlines()[1:]
        listening = {line.split()[1] for line in lines if line.split()[3] == "0A"}
        assert f"0100007F:{port:04X}" in listening
        assert f"00000000:{port:04X}" not in listening
