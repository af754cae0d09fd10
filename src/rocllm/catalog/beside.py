"""Find what is to be loaded beside a model: its projector, and a draft model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rocllm.catalog.discover import DiscoveredModel, discover_models
from rocllm.catalog.resolve import model_files_in, resolve_model
from rocllm.errors import ModelNotFound
from rocllm.options import LoadOptions

AUTO = "auto"


def resolve_companions(
    model: Path, options: LoadOptions, environ: Mapping[str, str]
) -> LoadOptions:
    """`options` with whole paths for `mmproj` and `model_draft`.

    model: path of the model. Raises `ModelNotFound` as `resolve_model` does, and where a projector
    is to be found and none stands beside the model.

    >>> resolve_companions(path, LoadOptions(mmproj="auto"), os.environ).mmproj  # doctest: +SKIP
    '/home/ann/models/mmproj-gemma-3-4b-it-f16.gguf'
    """
    mmproj, draft = options.mmproj, options.model_draft
    if mmproj is not None:
        found = _find_mmproj(model, environ) if mmproj == AUTO else resolve_model(mmproj, environ)
        mmproj = str(found)
    if draft is not None:
        draft = str(resolve_model(draft, environ))
    return replace(options, mmproj=mmproj, model_draft=draft)


def _find_mmproj(model: Path, environ: Mapping[str, str]) -> Path:
    """The best projector that the catalogue knows to belong to `model`."""
    known = _entry(model, discover_models(environ))
    if known is None:  # it is in none of the places that are searched: its folder says it all
        known = _entry(model, discover_models(environ, model_files_in(model.parent)))
    if known is None or not known.mmproj:
        raise ModelNotFound(
            f"no projector (mmproj) stands beside {str(model)!r}",
            why="the model is for text only, or its projector was not fetched, or in a folder with "
            "several models the projector's name does not say which it is for",
            remedy="give the path of the projector, or leave mmproj away to use text only",
        )
    return known.mmproj[0]


def _entry(model: Path, models: tuple[DiscoveredModel, ...]) -> DiscoveredModel | None:
    return next((one for one in models if _is_of(model, one)), None)


def _is_of(model: Path, one: DiscoveredModel) -> bool:
    for part in one.parts:
        try:
            if os.path.samefile(model, part):
                return True
        except OSError:
            continue  # it has gone meanwhile
    return False
