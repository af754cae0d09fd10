"""Which engines are measured against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rocllm import backends
from rocllm.bench.workloads import Engine, Setup
from rocllm.errors import BackendUnavailable, ModelFileError, OptionsError, RocllmError
from rocllm.safetensors import find_directory
from rocllm.server import ServerBinary, find_server

NATIVE = "native"
EMBEDDED = "embedded"
_SAFETENSORS = "a model in safetensors format", "vllm"
# Whether a backend of rocllm's own takes models in safetensors format; the others take GGUF files.
_TAKES_SAFETENSORS = {None: False, "rocm": False, "inprocess": False, "vllm": True}


def find_engines(names: Sequence[str], environ: Mapping[str, str]) -> tuple[Engine, ...]:
    """The engines of the given names; without any, the one that rocllm would take.

    names: `native` (`ROCM_LLAMA_SERVER_PATH`, or `llama-server` on `PATH`), `embedded`, the path of
    a llama-server, or `NAME=PATH`, which gives it a name for reports: `vulkan=/opt/llama-server`;
    or another backend: `inprocess`, `vllm`.

    One that cannot run has a `problem`. Raises what is wrong with the first of them when none can.

    >>> find_engines(["embedded"], os.environ)[0].name  # doctest: +SKIP
    'embedded'
    """
    if not names:
        binary = find_server(None, environ)
        return (Engine(binary.kind, _option(binary)),)
    found: list[Engine] = []
    failures: list[RocllmError] = []
    for text in names:
        name, option = _split(text)
        try:
            found.append(_engine(name, option, environ))
        except RocllmError as exc:
            found.append(Engine(name, problem=str(exc)))
            failures.append(exc)
    doubles = {one.name for one in found if [two.name for two in found].count(one.name) > 1}
    if doubles:
        raise OptionsError(
            f"two engines have the name {min(doubles)!r}",
            remedy="give each a name of its own: NAME=PATH",
        )
    if len(failures) == len(found):
        raise failures[0]
    return tuple(found)


def fitting(setups: Sequence[Setup]) -> tuple[Setup, ...]:
    """Without the pairs of a GGUF file with vLLM, and of safetensors with llama.cpp.

    An engine that takes none of the models stays: its cells say why. Raises `ModelFileError` for a
    model that none of the engines takes.
    """
    fits = [one for one in setups if _fits(one)]
    models, engines = {one.model for one in fits}, {one.engine for one in fits}
    for one in setups:
        if one.model not in models:
            raise _for_another(one.model)
    return tuple(one for one in setups if _fits(one) or one.engine not in engines)


def _for_another(model: Path) -> ModelFileError:
    kind, other = ("a GGUF file", "rocm") if find_directory(model) is None else _SAFETENSORS
    error = ModelFileError(
        f"{str(model)!r} is {kind}, which none of the engines takes",
        remedy=f"measure it with --backend {other}, or name {other} among the --engines, too",
    )
    error.cause = "other_backend"
    return error


def _fits(setup: Setup) -> bool:
    takes = _TAKES_SAFETENSORS.get(setup.engine.backend)
    return takes is None or takes == (find_directory(setup.model) is not None)


def _split(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if equals and name and path and "/" not in name:
        return name, path
    return text, text


def _engine(name: str, option: str, environ: Mapping[str, str]) -> Engine:
    if option == backends.default().name:
        return Engine(name, _option(find_server(None, environ)))
    if option not in backends.list():
        return Engine(name, _checked(option, environ))
    why_not = backends.get(option).why_not()
    if why_not is not None:
        raise BackendUnavailable(why_not)
    return Engine(name, backend=option)


def _option(binary: ServerBinary) -> str:
    """As `LoadOptions.llama_server` has it."""
    return EMBEDDED if binary.kind == EMBEDDED else binary.path


def _checked(option: str, environ: Mapping[str, str]) -> str:
    """What to give to `load_model`."""
    if option != NATIVE:
        find_server(option, environ)
        return option
    binary = find_server(None, environ)
    if binary.kind != NATIVE:
        raise OptionsError(
            "there is no native llama-server",
            why=f"rocllm would take the {binary.kind} one, because {binary.found_by}",
            remedy="set ROCM_LLAMA_SERVER_PATH, or give its path: --engines NAME=PATH",
        )
    return binary.path
