"""Models in safetensors format, by path and by their names on the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.safetensors.made import write_model

from rocllm.catalog import resolve_model
from rocllm.errors import ModelNotFound


def snapshot(environ: dict[str, str], commit: str) -> Path:
    """Where the Hub's library would have put `ann/Tiny-1M`."""
    cache = Path(environ["HOME"]) / ".cache/huggingface/hub/models--ann--Tiny-1M"
    return cache / "snapshots" / commit


def test_a_directory_is_a_model(tmp_path: Path, environ: dict[str, str]) -> None:
    """It is given as it is; one without weights is no model."""
    model = write_model(tmp_path / "tiny")
    assert resolve_model(model, environ) == model
    assert resolve_model(f"{tmp_path}/tiny/", environ) == model
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match="is a directory"):
        resolve_model(model, environ)


def test_a_name_on_the_hub(environ: dict[str, str]) -> None:
    """The snapshot that `refs/main` names, or else any that is whole."""
    older = write_model(snapshot(environ, "aaa"))
    assert resolve_model("ann/Tiny-1M", environ) == older
    newer = write_model(snapshot(environ, "bbb"))
    refs = newer.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("bbb")
    assert resolve_model("ann/Tiny-1M", environ) == newer
    assert resolve_model("hf:ann/Tiny-1M", environ) == newer
    (newer / "config.json").unlink()
    assert resolve_model("ann/Tiny-1M", environ) == older


@pytest.mark.parametrize("name", ["ann/Other-1M", "hf:ann/Other-1M"])
def test_a_name_that_was_not_fetched(name: str, environ: dict[str, str]) -> None:
    """What fetches it is said, for both formats."""
    with pytest.raises(ModelNotFound) as caught:
        resolve_model(name, environ)
    assert "rocllm pull hf:ann/Other-1M" in str(caught.value)
    assert "hf download ann/Other-1M" in str(caught.value)
