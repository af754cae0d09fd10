"""Which engines are measured against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rocllm import backends
from rocllm.bench.workloads import Engine
from rocllm.errors import BackendUnavailable, OptionsError, RocllmError
from rocllm.server import find_server

NATIVE = "native"
EMBEDDED = "embedded"


def find_engines(names: Sequence[str], environ: Mapping[str, str]) -> tuple[Engine, ...]:
    """The engines of the given names; without any, the one that rocllm would take.

    names: `native` (`ROCM_LLAMA_SERVER_PATH`, or `llama-server` on `PATH`), `embedded`, the path of
    a llama-server, or `NAME=PATH`, which gives it a name for reports: `vulkan=/opt/llama-server`;
    or another backend: `inprocess`.

    One that cannot run has a `problem`. Raises what is wrong with the first of them when none can.

    >>> find_engines(["embedded"], os.environ)[0].name  # doctest: +SKIP
    'embedded'
    """
    if not names:
        binary = find_server(None, environ)
        return (Engine(binary.kind, EMBEDDED if binary.kind == EMBEDDED else binary.path),)
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


def _split(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if equals and name and path and "/" not in name:
        return name, path
    return text, text


def _engine(name: str, option: str, environ: Mapping[str, str]) -> Engine:
    if option not in backends.list() or option == backends.default().name:
        return Engine(name, _checked(option, environ))
    why_not = backends.get(option).why_not()
    if why_not is not None:
        raise BackendUnavailable(why_not)
    return Engine(name, backend=option)


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
