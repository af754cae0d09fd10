"""Every model on this machine, with what its file says and what stands beside it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rocllm import env
from rocllm.catalog.facts import Facts, read_facts
from rocllm.catalog.index import Index, fingerprint_of
from rocllm.catalog.names import parse_name
from rocllm.catalog.sources import ModelFile, Source
from rocllm.catalog.stores import find_files
from rocllm.catalog.variants import mmproj_rank


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveredModel:
    """A model file that was found, usable or not.

    path: of the file; of a model in several files the first. parts: all its files.
    source: the kind of store. names: by which the model can be called, the best first.
    file_size: of all parts, in bytes; `None` if there is no file.
    architecture, size_label, parameter_count, quantization, context_length: as in
        `rocllm.gguf.ModelInfo`. chat_template: whether there is one.
    mmproj, adapters: projectors (the best first) and LoRA adapters that stand beside it.
    problem: why it cannot be used; `None`: nothing speaks against it.
    """

    path: Path
    source: Source
    names: tuple[str, ...]
    parts: tuple[Path, ...] = ()
    file_size: int | None = None
    architecture: str | None = None
    size_label: str | None = None
    parameter_count: int | None = None
    quantization: str | None = None
    context_length: int | None = None
    chat_template: bool | None = None
    mmproj: tuple[Path, ...] = ()
    adapters: tuple[Path, ...] = ()
    problem: str | None = None

    @property
    def name(self) -> str:
        """What to call it."""
        return self.names[0] if self.names else str(self.path)


@dataclass(frozen=True, slots=True)
class _Known:
    """A file with what it says; `size` in bytes."""

    file: ModelFile
    facts: Facts
    size: int | None = None

    @property
    def place(self) -> Path:
        return self.file.together or self.file.path.parent


def discover_models(
    environ: Mapping[str, str] | None = None, folders: Sequence[str | os.PathLike[str]] = ()
) -> tuple[DiscoveredModel, ...]:
    """Every model file in the user's folders and in the stores of programs he has.

    environ: where these are (`ROCM_MODEL_DIR`, `HF_HOME`, `OLLAMA_MODELS`, …), and the index;
        `None`: this process's environment.
    folders: further folders, or files, which come first.

    What cannot be read is listed with the reason in `problem`. A file that is found twice is listed
    once, with all its names. Raises nothing because of what is in these places.

    >>> [model.name for model in discover_models()]  # doctest: +SKIP
    ['Qwen3-8B-Q4_K_M', 'llama3.2:3b']
    """
    environ = os.environ if environ is None else environ
    index = Index(env.cache_dir(environ) / "models.json")
    found = _merge(find_files(environ, [Path(folder) for folder in folders]))
    known = [entry for file in found if (entry := _look_at(file, index)) is not None]
    index.save()
    return tuple(_with_companions(known))


def _merge(files: Iterable[ModelFile]) -> list[ModelFile]:
    """A file that is found again, in another store or through a link, adds names and projectors."""
    merged: dict[object, ModelFile] = {}
    for file in files:
        try:
            status = os.stat(file.path)
        except OSError:
            identity: object = file.path
        else:
            identity = (status.st_dev, status.st_ino)
        first = merged.setdefault(identity, file)
        if first is not file:
            merged[identity] = replace(
                first,
                names=tuple(dict.fromkeys((*first.names, *file.names))),
                # A manifest of Ollama's tells them, a link to its file does not.
                mmproj=tuple(dict.fromkeys((*first.mmproj, *file.mmproj))),
            )
    return list(merged.values())


def _look_at(file: ModelFile, index: Index) -> _Known | None:
    """What the file says; `None`: it has gone meanwhile."""
    if file.problem is not None:
        return _Known(file, Facts(problem=file.problem))
    fingerprint = fingerprint_of(file.parts)
    facts = index.get(file.path, fingerprint)
    if facts is None:
        facts, lasting = read_facts(file.path)
        if lasting:
            index.put(file.path, fingerprint, facts)
        elif not os.path.lexists(file.path):
            return None
    return _Known(file, facts, sum(size for size, _ in fingerprint) if fingerprint else None)


def _with_companions(known: list[_Known]) -> list[DiscoveredModel]:
    models = [entry for entry in known if entry.facts.kind == "model"]
    others = [entry for entry in known if entry.facts.kind != "model"]
    beside: dict[Path, list[_Known]] = {}
    for model in models:
        beside.setdefault(model.place, []).append(model)
    taken: dict[int, list[_Known]] = {id(model): [] for model in models}
    lone = []
    for other in others:
        owners = _owners(other, beside.get(other.place, []))
        for model in owners:
            taken[id(model)].append(other)
        if not owners:
            lone.append(other)
    discovered = [_discovered(model, taken[id(model)]) for model in models]
    return discovered + [replace(_discovered(other, []), problem=_lone(other)) for other in lone]


def _owners(other: _Known, models: list[_Known]) -> list[_Known]:
    """The models in the same folder that the projector or adapter can be loaded with."""
    usable = [model for model in models if model.facts.problem is None]
    if other.facts.kind == "adapter":
        return [m for m in usable if m.facts.architecture == other.facts.architecture]
    if other.file.together or len({_base(model) for model in usable}) == 1:
        return usable
    # In a folder with several models the projector's name must say which one it is for.
    meant = _base(other).replace("mmproj", "").strip("-._ ")
    if meant in ("", "model"):
        return []
    return [model for model in usable if meant in _base(model) or _base(model) in meant]


def _base(known: _Known) -> str:
    return parse_name(known.file.path.name).base.lower()


def _lone(other: _Known) -> str:
    if other.facts.kind == "adapter":
        return f"a LoRA adapter, and no {other.facts.architecture} model stands beside it"
    return "a projector (mmproj), and no model beside it has a name that fits"


def _discovered(known: _Known, companions: list[_Known]) -> DiscoveredModel:
    file, facts = known.file, known.facts
    mmproj = [other.file.path for other in companions if other.facts.kind == "mmproj"]
    adapters = [other.file.path for other in companions if other.facts.kind == "adapter"]
    return DiscoveredModel(
        path=file.path,
        source=file.source,
        names=file.names,
        parts=file.parts,
        file_size=known.size,
        architecture=facts.architecture,
        size_label=facts.size_label,
        parameter_count=facts.parameter_count,
        quantization=facts.quantization,
        context_length=facts.context_length,
        chat_template=facts.chat_template,
        mmproj=(*file.mmproj, *sorted(mmproj, key=lambda path: mmproj_rank(path.name))),
        adapters=(*file.adapters, *adapters),
        problem=facts.problem,
    )
