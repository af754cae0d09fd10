"""Fetching from the Hub: the real `huggingface_hub` with a real server of our own."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import huggingface_hub
import pytest
from huggingface_hub import constants

from rocllm.catalog import (
    Fit,
    Stage,
    discover_models,
    hub,
    pull_hub,
    resolve_model,
    transfer,
)
from rocllm.errors import DoesNotFit, DownloadFailed, ModelNotFound
from rocllm.gguf import ModelInfo
from rocllm.testing.fake_hub import COMMIT, FakeHub
from rocllm.testing.gguf_writer import write_gguf
from rocllm.testing.tiny_models import tiny_llama

WriteModel: TypeAlias = Callable[..., Path]

_REPO = "user/model-GGUF"


@pytest.fixture(scope="session")
def contents(
    tmp_path_factory: pytest.TempPathFactory, write_model: WriteModel, write_other: WriteModel
) -> dict[str, bytes]:
    """The files of a repository: two quantisations, one in two files, a projector, a text."""
    folder = tmp_path_factory.mktemp("repo")
    paths = {
        "model-Q8_0.gguf": write_model(folder / "a", "Q8_0"),
        "Q4_0/model-Q4_0-00001-of-00002.gguf": write_model(folder / "b", "Q4_0"),
        "Q4_0/model-Q4_0-00002-of-00002.gguf": write_model(folder / "c", "Q4_0", n_layers=2),
        "mmproj-F16.gguf": write_other(folder / "d", "mmproj", "clip"),
    }
    return {name: path.read_bytes() for name, path in paths.items()} | {"README.md": b"# model"}


@pytest.fixture
def server(contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub with that repository; lost connections are tried again at once."""
    monkeypatch.setattr(transfer, "RETRY_SECONDS", 0.0)
    # Otherwise the library asks the real Hub, once a process, which programs might be using it.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    with FakeHub(repos={_REPO: contents}) as fake:
        yield fake


@pytest.fixture
def environ(environ: dict[str, str], server: FakeHub) -> dict[str, str]:
    """An environment in which that Hub is the one."""
    return environ | {"HF_ENDPOINT": f"{server.url}/"}


def _cache(environ: dict[str, str]) -> Path:
    return Path(environ["HOME"]) / ".cache/huggingface/hub"


def _snapshot(environ: dict[str, str]) -> Path:
    return _cache(environ) / f"models--{_REPO.replace('/', '--')}/snapshots/{COMMIT}"


def _pull(name: str, environ: dict[str, str], **more: Any) -> Path:
    return pull_hub(name, environ, **{"judge": _anything, "device": "GPU"} | more)


def _anything(_model: ModelInfo | None, _size: int) -> Fit:
    return Fit(True, "well")


def _left(environ: dict[str, str]) -> set[str]:
    """Files in the cache that are neither whole models nor the library's own."""
    return {path.name for path in _cache(environ).rglob("*.partial*")}


def test_pull_a_quantization(
    server: FakeHub, contents: dict[str, bytes], environ: dict[str, str]
) -> None:
    """All parts and the projector arrive in the cache, where everybody's programs look."""
    steps: list[tuple[Stage, int, int | None]] = []
    path = _pull(f"hf:{_REPO}:q4_0", environ, progress=lambda *step: steps.append(step))
    snapshot = _snapshot(environ)
    assert path == snapshot / "Q4_0/model-Q4_0-00001-of-00002.gguf"
    names = {name for name in contents if "Q4_0" in name or "mmproj" in name}
    found = {str(p.relative_to(snapshot)) for p in snapshot.rglob("*") if p.is_file()}
    assert found == names
    assert all((snapshot / name).read_bytes() == contents[name] for name in names)
    assert _left(environ) == set()
    total = sum(len(contents[name]) for name in names)
    assert steps[0] == ("download", 0, total)
    assert steps[-1] == ("download", total, total)
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)
    # Each file came once, and without the library's help.
    assert len(server.content_requests()) == len(names)


def test_what_was_pulled_is_found(
    server: FakeHub, contents: dict[str, bytes], environ: dict[str, str]
) -> None:
    """By the library itself, by `discover_models` and by its name; and not fetched again."""
    path = _pull(f"hf:{_REPO}:Q8_0", environ)
    cached = huggingface_hub.try_to_load_from_cache(
        _REPO, "model-Q8_0.gguf", cache_dir=_cache(environ)
    )
    assert cached == str(path)
    (model,) = discover_models(environ)
    assert (model.name, model.source) == ("model-Q8_0", "huggingface")
    assert [projector.name for projector in model.mmproj] == ["mmproj-F16.gguf"]
    assert resolve_model(f"hf:{_REPO}:Q8_0", environ) == path
    before = len(server.content_requests())
    assert _pull(f"hf:{_REPO}/model-Q8_0.gguf", environ) == path
    assert len(server.content_requests()) == before
    server.switches.status = 500
    assert _pull(f"hf:{_REPO}:Q8_0", environ | {"HF_HUB_OFFLINE": "1"}) == path
    assert _pull(f"hf:{_REPO}", environ | {"HF_HUB_OFFLINE": "1"}) == path


def test_the_choice_is_said(environ: dict[str, str]) -> None:
    """With no quantisation named, the best that fits is taken, and the reason told."""
    told: list[str] = []
    path = _pull(f"hf:{_REPO}", environ, chosen=told.append, device="Radeon")
    assert path.name == "model-Q8_0.gguf"
    (reason,) = told
    assert reason.startswith("taking Q8_0 (")
    assert reason.endswith("the best of 2 that fits into Radeon well")


def test_what_is_judged_is_read_from_the_hub(
    server: FakeHub, contents: dict[str, bytes], environ: dict[str, str]
) -> None:
    """The model's shape, once for all quantisations and before anything is fetched."""
    seen: list[tuple[ModelInfo | None, int]] = []

    def judge(model: ModelInfo | None, size: int) -> Fit:
        seen.append((model, size))
        return Fit(False, "9 GiB needed")

    with pytest.raises(DoesNotFit, match="fits into GPU") as caught:
        _pull(f"hf:{_REPO}", environ, judge=judge)
    assert "9 GiB needed" in str(caught.value.why)
    assert len(server.content_requests()) == 1
    assert not any(_cache(environ).rglob("*.gguf"))
    large, small = (model for model, _ in seen[:2] if model is not None)
    assert large.block_count == small.block_count == 1
    assert large.file_size == len(contents["model-Q8_0.gguf"])
    assert small.file_size == sum(len(contents[name]) for name in contents if "Q4_0" in name)
    ratio = small.file_size / large.file_size
    assert ratio > 1.5
    assert small.tensors[0].n_bytes == round((large.tensors[0].n_bytes or 0) * ratio)


def test_a_model_of_many_megabytes_is_not_fetched_to_be_judged(
    server: FakeHub, environ: dict[str, str], tmp_path: Path
) -> None:
    """Only what stands before the weights is read."""
    path = write_gguf(tmp_path / "m.gguf", *tiny_llama(n_embd=512, n_layers=4))
    server.repos["user/large"] = {"m-Q8_0.gguf": path.read_bytes()}
    with pytest.raises(DoesNotFit):
        _pull("hf:user/large", environ, judge=lambda model, _size: Fit(model is None, "no"))
    assert 0 < server.sent < path.stat().st_size / 2


@pytest.mark.parametrize("content", [b"no model at all" * 99, None])
def test_what_cannot_be_read_is_judged_by_its_size(
    server: FakeHub, environ: dict[str, str], content: bytes | None
) -> None:
    """A file that is none, and a server that gives no content; fetching tells what is wrong."""
    server.repos["user/odd"] = {"m-Q8_0.gguf": content or b"GGUF" * 99}
    server.switches.status = 500 if content is None else None
    seen: list[ModelInfo | None] = []

    def judge(model: ModelInfo | None, _size: int) -> Fit:
        seen.append(model)
        return Fit(False, "too much")

    with pytest.raises(DoesNotFit):
        _pull("hf:user/odd", environ, judge=judge)
    assert seen == [None, None]


def test_offline_the_file_itself_is_judged(environ: dict[str, str]) -> None:
    """What is in the cache need not be asked for."""
    _pull(f"hf:{_REPO}:Q8_0", environ)
    seen: list[ModelInfo | None] = []

    def judge(model: ModelInfo | None, _size: int) -> Fit:
        seen.append(model)
        return Fit(True, "well")

    _pull(f"hf:{_REPO}", environ | {"HF_HUB_OFFLINE": "1"}, judge=judge)
    assert [model.block_count for model in seen if model is not None] == [1]


def test_a_cut_connection_is_resumed(
    server: FakeHub, contents: dict[str, bytes], environ: dict[str, str]
) -> None:
    """What has come is not asked for again."""
    server.switches.cut_after = 70_000
    path = _pull(f"hf:{_REPO}:Q8_0", environ)
    assert path.read_bytes() == contents["model-Q8_0.gguf"]
    ranges = [seen.headers.get("range") for seen in server.content_requests()]
    assert ranges == [None, "bytes=70000-", None]


def test_a_second_call_goes_on(
    server: FakeHub, contents: dict[str, bytes], environ: dict[str, str]
) -> None:
    """After a failure the next call goes on from there, and checks what was there."""

    def fail_after(stage: Stage, done: int, total: int | None) -> None:
        if done:
            server.switches.status = 503

    server.switches.cut_after = 70_000
    with pytest.raises(DownloadFailed, match=r"68\.4 KiB are kept"):
        _pull(f"hf:{_REPO}:Q8_0", environ, progress=fail_after)
    server.switches.status = None
    stages: list[Stage] = []
    path = _pull(f"hf:{_REPO}:Q8_0", environ, progress=lambda stage, *_: stages.append(stage))
    assert path.read_bytes() == contents["model-Q8_0.gguf"]
    assert stages[0] == "check"
    assert _left(environ) == set()


def test_a_wrong_hash(server: FakeHub, environ: dict[str, str]) -> None:
    """Content that is not what the Hub says is refused, and nothing of it stays."""
    server.switches.spoilt = True
    with pytest.raises(DownloadFailed, match="its sha256 is"):
        _pull(f"hf:{_REPO}:Q8_0", environ)
    assert not _snapshot(environ).exists()
    assert not list(_cache(environ).rglob("blobs/*"))


@pytest.mark.parametrize(
    ("switches", "name", "why"),
    [
        ({}, "hf:user/none", "no such repository, or it is private and no token"),
        ({"token": "hf_x"}, f"hf:{_REPO}", "no such repository, or it is private and no token"),
        ({"gated": True}, f"hf:{_REPO}", "accept terms"),
        ({"status": 404}, f"hf:{_REPO}", "404 Not Found"),
    ],
)
def test_refused(
    switches: dict[str, Any], name: str, why: str, server: FakeHub, environ: dict[str, str]
) -> None:
    """Missing, private, gated, gone: each says why, and what to do."""
    for switch, value in switches.items():
        setattr(server.switches, switch, value)
    with pytest.raises(DownloadFailed, match=why) as caught:
        _pull(name, environ)
    assert caught.value.remedy


@pytest.mark.parametrize("place", ["variable", "file"])
def test_token(
    place: str, server: FakeHub, contents: dict[str, bytes], environ: dict[str, str]
) -> None:
    """It is taken from `HF_TOKEN` or where `hf auth login` puts it, and sent to the Hub only."""
    server.switches.token = "hf_secret"
    if place == "variable":
        environ["HF_TOKEN"] = "hf_secret"
    else:
        file = Path(environ["HOME"]) / ".cache/huggingface/token"
        file.parent.mkdir(parents=True)
        file.write_text("hf_secret\n")
    path = _pull(f"hf:{_REPO}:Q8_0", environ)
    assert path.read_bytes() == contents["model-Q8_0.gguf"]
    assert not [seen for seen in server.content_requests() if "authorization" in seen.headers]
    server.switches.token = "hf_other"
    with pytest.raises(DownloadFailed, match="private") as caught:
        _pull(f"hf:{_REPO}:Q4_0", environ)
    assert "secret" not in str(caught.value)


def test_no_hub(environ: dict[str, str]) -> None:
    """Without a network the message says so, and how to use what is there."""
    with pytest.raises(DownloadFailed, match="Connection refused") as caught:
        _pull(f"hf:{_REPO}", environ | {"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert "HF_HUB_OFFLINE=1" in str(caught.value.remedy)


def test_offline_and_not_there(server: FakeHub, environ: dict[str, str]) -> None:
    """Offline mode is an order: nothing is asked of any server."""
    with pytest.raises(DownloadFailed, match="HF_HUB_OFFLINE forbids"):
        _pull(f"hf:{_REPO}", environ | {"HF_HUB_OFFLINE": "1"})
    assert server.requests == []


def test_not_a_hub(environ: dict[str, str], server: FakeHub) -> None:
    """A server that speaks otherwise is an error in words."""
    server.repos[_REPO] = {}
    with pytest.raises(ModelNotFound, match="no GGUF model"):
        _pull(f"hf:{_REPO}", environ)
    with pytest.raises(DownloadFailed, match="404"):
        _pull(f"hf:{_REPO}", environ | {"HF_ENDPOINT": f"{server.url}/files"})


def test_no_space_for_all_files(
    server: FakeHub, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All parts together must have room before the first byte is fetched."""
    free = shutil.disk_usage("/")._replace(free=300_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(DownloadFailed, match="293 KiB free") as caught:
        _pull(f"hf:{_REPO}:Q4_0", environ)
    assert "HF_HOME" in str(caught.value.remedy)
    assert server.content_requests() == []


def test_paths_from_a_server_stay_in_the_cache(
    server: FakeHub, contents: dict[str, bytes], environ: dict[str, str], tmp_path: Path
) -> None:
    """A file whose path leads elsewhere is not there at all."""
    server.repos[_REPO] = {"../../../../../evil-Q8_0.gguf": contents["model-Q8_0.gguf"]}
    with pytest.raises(ModelNotFound, match="no GGUF model"):
        _pull(f"hf:{_REPO}", environ)
    assert not list(tmp_path.rglob("evil*"))


def test_a_file_of_another_size(server: FakeHub, environ: dict[str, str]) -> None:
    """Content that is longer or shorter than the Hub says is refused at once."""
    server.switches.claimed_sizes["model-Q8_0.gguf"] = 1000
    with pytest.raises(DownloadFailed, match="bytes, not 1000"):
        _pull(f"hf:{_REPO}:Q8_0", environ)


@pytest.mark.parametrize(
    "name",
    [
        "hf:",
        "hf:user",
        "hf:user/",
        "hf:user/repo:",
        "hf:user/repo/",
        "hf:../etc",
        "hf:user/../x",
        "hf:a--b/c",
        "hf:user/re po",
        "hf:user/repo@main",
    ],
)
def test_names_that_name_nothing(name: str, environ: dict[str, str], server: FakeHub) -> None:
    """The message says how to write it; the Hub is not asked."""
    with pytest.raises(ModelNotFound, match="names no model") as caught:
        _pull(name, environ)
    assert "hf:user/repo:Q4_K_M" in str(caught.value.remedy)
    assert server.requests == []


def test_without_the_extra(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is the command to type."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DownloadFailed, match="huggingface_hub is not installed") as caught:
        _pull(f"hf:{_REPO}", environ)
    assert caught.value.remedy == "pip install 'rocllm[hub]'"


def test_the_hash_is_the_name_of_the_blob(
    contents: dict[str, bytes], environ: dict[str, str]
) -> None:
    """What rocllm fetches is filed exactly as the library files it."""
    path = _pull(f"hf:{_REPO}:Q8_0", environ)
    digest = hashlib.sha256(contents["model-Q8_0.gguf"]).hexdigest()
    assert path.is_symlink()
    assert path.resolve() == _snapshot(environ).parents[1] / "blobs" / digest
    assert hub.HubName.parse(f"hf:{_REPO}") == hub.HubName(_REPO)
