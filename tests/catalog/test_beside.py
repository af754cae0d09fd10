"""What is to be loaded beside a model: found, resolved, or missing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from rocllm.catalog import resolve_companions
from rocllm.errors import ModelNotFound
from rocllm.options import LoadOptions

WriteModel: TypeAlias = Callable[..., Path]

_HASH, _OTHER_HASH = "a" * 64, "b" * 64


def test_nothing_wanted_is_nothing_resolved(environ: dict[str, str]) -> None:
    """The options are what they were, without a look at any store."""
    options = LoadOptions(ctx_size=512)
    assert resolve_companions(Path("/nowhere/model.gguf"), options, environ) == options


def test_paths_and_names_become_whole_paths(
    tmp_path: Path, environ: dict[str, str], write_model: WriteModel, write_other: WriteModel
) -> None:
    """The server runs in another directory, so that they must be."""
    environ["ROCM_MODEL_DIR"] = str(tmp_path / "models")
    model = write_model(tmp_path / "models/big.gguf")
    draft = write_model(tmp_path / "models/small-Q4_0.gguf")
    projector = write_other(tmp_path / "elsewhere/mmproj.gguf", "mmproj", "clip")

    options = LoadOptions(model_draft="small", mmproj=os.path.relpath(projector))
    found = resolve_companions(model, options, environ)
    assert (found.model_draft, found.mmproj) == (str(draft), str(projector))
    for options in (LoadOptions(model_draft="smal1"), LoadOptions(mmproj="./gone.gguf")):
        with pytest.raises(ModelNotFound):
            resolve_companions(model, options, environ)


def test_the_projector_of_a_file(
    tmp_path: Path, environ: dict[str, str], write_model: WriteModel, write_other: WriteModel
) -> None:
    """In the model's folder, wherever that is, the best; folders below it do not matter."""
    model = write_model(tmp_path / "gemma.gguf")
    with pytest.raises(ModelNotFound, match="no projector"):
        resolve_companions(model, LoadOptions(mmproj="auto"), environ)
    write_other(tmp_path / "below/mmproj-F16.gguf", "mmproj", "clip")
    with pytest.raises(ModelNotFound, match="no projector"):
        resolve_companions(model, LoadOptions(mmproj="auto"), environ)

    write_other(tmp_path / "mmproj-F32.gguf", "mmproj", "clip")
    best = write_other(tmp_path / "mmproj-F16.gguf", "mmproj", "clip")
    for path in (model, tmp_path / "link" / "model.gguf"):
        path.parent.mkdir(exist_ok=True)
        if path is not model:
            path.symlink_to(model)
            environ["ROCM_MODEL_DIR"] = str(tmp_path)
        assert resolve_companions(path, LoadOptions(mmproj="auto"), environ).mmproj == str(best)


def test_the_projector_in_a_store(
    tmp_path: Path, environ: dict[str, str], write_model: WriteModel, write_other: WriteModel
) -> None:
    """Ollama's files have no names: its manifest says what belongs together."""
    store = tmp_path / "ollama"
    model = write_model(store / f"blobs/sha256-{_HASH}")
    projector = write_other(store / f"blobs/sha256-{_OTHER_HASH}", "mmproj", "clip")
    manifest = store / "manifests/registry.ollama.ai/library/llava/latest"
    manifest.parent.mkdir(parents=True)
    layer = '{{"mediaType": "application/vnd.ollama.image.{}", "digest": "sha256:{}"}}'
    layers = f"{layer.format('model', _HASH)}, {layer.format('projector', _OTHER_HASH)}"
    manifest.write_text(f'{{"layers": [{layers}]}}')

    found = resolve_companions(model, LoadOptions(mmproj="auto"), environ)
    assert found.mmproj == str(projector)
