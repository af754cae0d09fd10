"""Backends by name: rocllm's own and those of other packages.

A package offers one with an entry point:

    [project.entry-points."rocllm.backends"]
    mine = "my_package:MyBackend"

The object is called without arguments when the backend is first asked for.
"""

from __future__ import annotations

import difflib
import importlib.metadata

from rocllm.backends.base import Backend
from rocllm.errors import BackendUnavailable, OptionsError

GROUP = "rocllm.backends"
_DEFAULT = "rocm"

_registered: dict[str, Backend] = {}


def register(backend: Backend) -> None:
    """Make `backend` known under its name; a later one of the same name replaces it.

    >>> register(MyBackend())  # doctest: +SKIP
    """
    if not isinstance(backend, Backend):
        raise OptionsError(
            f"{backend!r} is not a backend",
            why="a backend has name, available(), why_not() and load()",
            remedy="see rocllm.backends.Backend",
        )
    _registered[backend.name] = backend


def get(name: str) -> Backend:
    """The backend of that name.

    Raises `OptionsError` for an unknown name, `BackendUnavailable` when its package is broken.

    >>> get("rocm").name
    'rocm'
    """
    if name in _registered:
        return _registered[name]
    found = importlib.metadata.entry_points(group=GROUP, name=name)
    if not found:
        near = difflib.get_close_matches(name, list_backends(), n=1)
        raise OptionsError(
            f"unknown backend {name!r}",
            why=f"there are: {', '.join(list_backends())}",
            remedy=f"did you mean {near[0]!r}?" if near else None,
        )
    entry_point = next(iter(found))
    try:
        backend: Backend = entry_point.load()()
    except ImportError as exc:
        raise BackendUnavailable(
            f"backend {name!r} cannot be imported: {exc}",
            why=f"its entry point is {entry_point.value}",
            remedy="install what its package needs, or remove the package",
        ) from exc
    register(backend)
    return backend


def list_backends() -> tuple[str, ...]:
    """The names of all backends, sorted."""
    entry_points = importlib.metadata.entry_points(group=GROUP)
    return tuple(sorted({*_registered, *(entry_point.name for entry_point in entry_points)}))


def default() -> Backend:
    """The backend that is used when none is named: `rocm`."""
    return get(_DEFAULT)
