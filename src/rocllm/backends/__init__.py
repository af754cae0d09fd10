"""Engines behind one protocol, and the registry of them."""

from rocllm.backends.base import (
    AsyncConnection,
    Backend,
    Connection,
    LoadedInfo,
    LoadedModel,
    LoadRequest,
    NamesEngine,
)
from rocllm.backends.registry import default, get, register
from rocllm.backends.registry import list_backends as list  # noqa: A004 - the word users expect

__all__ = [
    "AsyncConnection",
    "Backend",
    "Connection",
    "LoadRequest",
    "LoadedInfo",
    "LoadedModel",
    "NamesEngine",
    "default",
    "get",
    "list",
    "register",
]
