"""Broken model files, read by the real server: each ends in its error and leaves nothing behind."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from tests.integration.engine import Change, engine_after, load, tiny

from rocllm.errors import (
    InvalidGGUF,
    ModelNotFound,
    RocllmError,
    ServerCrashed,
    UnsupportedArchitecture,
)
from rocllm.gguf import read_gguf
from rocllm.testing.gguf_writer import Tensor, Value

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("nothing_left")]


def test_the_file_is_sound(tmp_path: Path) -> None:
    """Unless it is broken: the tests below would prove nothing otherwise."""
    with load(tiny(tmp_path / "model.gguf")) as model:
        assert model.generate("a", max_tokens=2).read().usage.completion_tokens


@pytest.mark.parametrize("place", ["empty", "magic", "key", "names", "data", "last"])
def test_a_truncated_file(tmp_path: Path, place: str) -> None:
    """Wherever it ends too early, it is told before a server is started."""
    path = tiny(tmp_path / "model.gguf")
    size, data = path.stat().st_size, read_gguf(path).data_offset
    length = {
        "empty": 0,
        "magic": 3,
        "key": 100,
        "names": data - 200,
        "data": (data + size) // 2,
        "last": size - 1,
    }
    os.truncate(path, length[place])
    with pytest.raises(InvalidGGUF) as caught:
        load(path)
    assert caught.value.cause == "bad_file"
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("script", "error", "cause"),
    [
        ('truncate -s -1000 "$model"', InvalidGGUF, "truncated_file"),
        ('truncate -s 100 "$model"', InvalidGGUF, "bad_file"),
        ('truncate -s 0 "$model"', InvalidGGUF, "bad_file"),
        ('printf NOPE | dd of="$model" conv=notrunc status=none', InvalidGGUF, "bad_file"),
        ('rm "$model"', ModelNotFound, "missing_file"),
        ('rm "$model"; mkdir "$model"', InvalidGGUF, "bad_file"),
    ],
)
def test_a_file_that_breaks_just_before_it_is_loaded(
    tmp_path: Path, script: str, error: type[RocllmError], cause: str
) -> None:
    """The server's own words are understood, too: the file was sound when rocllm read it."""
    path = tiny(tmp_path / "model.gguf")
    with pytest.raises(error) as caught:
        load(path, llama_server=engine_after(script, tmp_path / "llama-server"))
    assert caught.value.cause == cause
    assert not caught.value.retryable
    assert "it said: " in str(caught.value)
    assert caught.value.remedy


def lacks_a_tensor(_metadata: dict[str, Value], tensors: list[Tensor]) -> None:
    tensors.pop()


def has_a_tensor_of_another_shape(_metadata: dict[str, Value], tensors: list[Tensor]) -> None:
    tensors[-1] = Tensor(tensors[-1].name, (64, 64))


def has_more_layers_than_tensors(metadata: dict[str, Value], _tensors: list[Tensor]) -> None:
    metadata["llama.block_count"] = 3


def lacks_a_hyperparameter(metadata: dict[str, Value], _tensors: list[Tensor]) -> None:
    del metadata["llama.attention.layer_norm_rms_epsilon"]


def lacks_its_vocabulary(metadata: dict[str, Value], _tensors: list[Tensor]) -> None:
    for key in [key for key in metadata if key.startswith("tokenizer.")]:
        del metadata[key]


def is_of_an_unknown_architecture(metadata: dict[str, Value], _tensors: list[Tensor]) -> None:
    for key in [key for key in metadata if key.startswith("llama.")]:
        metadata["lxama" + key.removeprefix("llama")] = metadata.pop(key)
    metadata["general.architecture"] = "lxama"


@pytest.mark.parametrize(
    ("change", "error", "cause"),
    [
        (lacks_a_tensor, InvalidGGUF, "wrong_tensors"),
        (has_a_tensor_of_another_shape, InvalidGGUF, "wrong_tensors"),
        (has_more_layers_than_tensors, InvalidGGUF, "wrong_tensors"),
        (lacks_a_hyperparameter, InvalidGGUF, "bad_file"),
        (lacks_its_vocabulary, InvalidGGUF, "bad_file"),
        (is_of_an_unknown_architecture, UnsupportedArchitecture, "unknown_architecture"),
    ],
)
def test_a_sound_file_with_the_wrong_content(
    tmp_path: Path, change: Change, error: type[RocllmError], cause: str
) -> None:
    """Only the server knows what its architectures need."""
    with pytest.raises(error) as caught:
        load(tiny(tmp_path / "model.gguf", change))
    assert caught.value.cause == cause
    assert not caught.value.retryable
    assert caught.value.remedy


def test_a_file_that_becomes_shorter_while_it_is_served(tmp_path: Path) -> None:
    """Its pages are gone: the kernel sends SIGBUS, and a restart would find a broken file."""
    path = tiny(tmp_path / "model.gguf")
    with load(path) as model:
        assert model.generate("a", max_tokens=1).read().usage.completion_tokens
        os.truncate(path, 4096)
        with pytest.raises(ServerCrashed, match="SIGBUS") as caught:
            model.generate("b", max_tokens=8).read()
        assert caught.value.cause == "bus_error"
        assert not caught.value.retryable


@pytest.mark.parametrize("seed", range(8))
def test_a_header_with_some_other_bytes(tmp_path: Path, seed: int) -> None:
    """It is refused by rocllm or by the server, or it loads; nothing else comes of it."""
    path = tiny(tmp_path / "model.gguf")
    chance = random.Random(seed)
    header = read_gguf(path).data_offset
    with path.open("r+b") as file:
        for _ in range(3):
            file.seek(chance.randrange(4, header))
            file.write(chance.randbytes(1))
    try:
        with load(path, start_timeout=20.0) as model:
            model.generate("a", max_tokens=2).read()
    except RocllmError as exc:
        assert not exc.retryable or isinstance(exc, ServerCrashed)  # noqa: PT017
