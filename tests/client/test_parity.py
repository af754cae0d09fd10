"""The two clients are one client, with and without `await`."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from rocllm.client import AsyncClient, AsyncTokenStream, Client, TokenStream

# What the two worlds spell differently.
_SPELLINGS = {
    "aclose": "close",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
}
PAIRS = [(Client, AsyncClient), (TokenStream, AsyncTokenStream)]


def public(cls: type) -> dict[str, Any]:
    """Public and special members of a class and its bases, spelled as in the blocking one."""
    names = [name for name in dir(cls) if name in _SPELLINGS or not name.startswith("_")]
    names += [name for name in _SPELLINGS.values() if name.startswith("_") and hasattr(cls, name)]
    return {_SPELLINGS.get(name, name): inspect.getattr_static(cls, name) for name in names}


@pytest.mark.parametrize(("blocking", "asynchronous"), PAIRS)
def test_the_same_names(blocking: type, asynchronous: type) -> None:
    """Neither client has something that the other lacks."""
    assert public(blocking).keys() == public(asynchronous).keys()


@pytest.mark.parametrize(("blocking", "asynchronous"), PAIRS)
def test_the_same_signatures(blocking: type, asynchronous: type) -> None:
    """Arguments, defaults and answers are the same."""
    for name, member in {**public(blocking), "__init__": blocking.__init__}.items():  # type: ignore[misc]
        other = asynchronous.__init__ if name == "__init__" else public(asynchronous)[name]  # type: ignore[misc]
        if not inspect.isfunction(member):
            assert type(member) is type(other), name
            continue
        assert plain(other) == plain(member), name


def plain(function: Any) -> str:
    """A signature without what must differ."""
    return str(inspect.signature(function)).replace("AsyncTokenStream", "TokenStream").replace(
        "AsyncClient", "Client"
    )  # fmt: skip


@pytest.mark.parametrize(("blocking", "asynchronous"), PAIRS)
def test_what_waits_is_awaited(blocking: type, asynchronous: type) -> None:
    """Whatever talks to the server is a coroutine function in the one, and none in the other."""
    starts = {"completion", "chat", "interrupt", "__iter__"}
    for name, member in public(asynchronous).items():
        if inspect.isfunction(member):
            assert inspect.iscoroutinefunction(member) is (name not in starts), name
    assert not any(map(inspect.iscoroutinefunction, public(blocking).values()))
