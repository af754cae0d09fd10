"""What a model says about itself, read from the beginning of its files while they are elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from rocllm.catalog.http_get import Interrupted, Refused, open_url
from rocllm.errors import ModelFileError
from rocllm.gguf import GGUFFile, ModelInfo, model_info
from rocllm.gguf.reader import parse_gguf

_CHUNK = 1 << 16


def read_remote_model(files: Iterable[tuple[str, int]], token: str | None) -> ModelInfo | None:
    """What a model says about itself; `None`: it cannot be read, which fetching will explain.

    files: address and size in bytes of each of its files, in order. token: for the server.

    Only metadata and tensor infos are fetched, some megabytes, most of it the vocabulary.
    """
    try:
        return model_info(*(_read_header(url, size, token) for url, size in files))
    except (Interrupted, Refused, HTTPException, OSError, ModelFileError):
        return None


def resized(model: ModelInfo, size: int) -> ModelInfo:
    """The same model in another quantisation, whose files have `size` bytes."""
    ratio = size / model.file_size
    tensors = tuple(
        replace(tensor, n_bytes=None if tensor.n_bytes is None else round(tensor.n_bytes * ratio))
        for tensor in model.tensors
    )
    return replace(model, tensors=tensors, file_size=size)


def _read_header(url: str, size: int, token: str | None) -> GGUFFile:
    # A server that knows no ranges sends the file from its beginning just the same.
    with closing(open_url(url, {"Range": f"bytes=0-{size - 1}"}, token=token)) as response:
        prefix = _Prefix(response)
        return parse_gguf(prefix.read_at, size, Path(url.rpartition("/")[2]))


class _Prefix:
    """As much of the beginning of a response as was asked for; the reader sets the bound."""

    def __init__(self, response: HTTPResponse) -> None:
        self._response = response
        self._bytes = bytearray()

    def read_at(self, offset: int, n_bytes: int) -> bytes:
        """As of a file: fewer bytes only at its end."""
        while len(self._bytes) < offset + n_bytes:
            chunk = self._response.read(_CHUNK)
            if not chunk:
                break
            self._bytes += chunk
        return bytes(self._bytes[offset : offset + n_bytes])
