"""Look values up in a model's metadata, and check what they are."""

from __future__ import annotations

from typing import TypeGuard

from rocllm.errors import InvalidGGUF
from rocllm.gguf.types import GGUFFile, MetadataValue


class Keys:
    """The values of a model's keys, each of the type that it must have.

    Keys are given without the architecture before them. Methods raise `InvalidGGUF` for a value of
    another type.
    """

    def __init__(self, gguf: GGUFFile) -> None:
        self.metadata = gguf.metadata
        self._path = gguf.path
        self.architecture = self.text("general.architecture") or ""

    def text(self, key: str) -> str | None:
        """The value of a whole key, if it is a text."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def token_id(self, name: str) -> int | None:
        """The id of the special token `bos`, `eos`, …; `None`: there is none."""
        value = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        return value if _is_count(value) else None

    def value(self, key: str) -> MetadataValue | None:
        """The value as it is; `None`: there is none."""
        return self.metadata.get(f"{self.architecture}.{key}")

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number; with no `default` the key must be there."""
        value = self.value(key)
        if value is None:
            value = default
        if value is None:
            raise self.wrong(key, "every model needs this key")
        if not _is_count(value):
            raise self.wrong(key, "it must be a whole number")
        return value

    def per_layer(self, key: str, n_layers: int, default: int | tuple[int, ...]) -> tuple[int, ...]:
        """One number per layer; the file may have one for all."""
        value = self.value(key)
        if value is None:
            value = default
        if _is_count(value):
            return (value,) * n_layers
        if isinstance(value, tuple):
            counts = tuple(count for count in value if _is_count(count))
            if len(counts) == len(value) == n_layers:
                return counts
        raise self.wrong(key, f"it must be a whole number, or {n_layers} of them")

    def largest(self, key: str, n_layers: int) -> int:
        """The largest number of all layers, 0 when there is none."""
        return max(self.per_layer(key, n_layers, 0), default=0)

    def wrong(self, key: str, why: str) -> InvalidGGUF:
        """The error to raise for a key."""
        value = self.value(key)
        state = "missing" if value is None else _short(value)
        return InvalidGGUF(
            f"{str(self._path)!r}: the key {f'{self.architecture}.{key}'!r} is {state}",
            why=why,
            remedy="fetch the model from another source, or convert it again",
        )


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _short(value: MetadataValue) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
