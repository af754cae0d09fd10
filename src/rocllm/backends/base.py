"""What every engine looks like from above: a `Backend` loads, a `LoadedModel` answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from rocllm.client import AsyncTokenStream, TokenStream
from rocllm.devices import Device
from rocllm.endpoint import Endpoint
from rocllm.gguf import ModelInfo
from rocllm.options import LoadOptions, SamplingOptions
from rocllm.results import Message, NextToken
from rocllm.server import Buffer, LoadProgress, State, Transition


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What to load, how, and on what machine.

    root: where the machine's file system begins. environ: the user's environment. cancel: set it
    to give up. on_progress: is called from time to time while loading. on_transition: is told
    whenever the server starts, serves, crashes or ends. Both are called from another thread.
    """

    path: Path
    options: LoadOptions
    environ: Mapping[str, str] = field(repr=False)
    root: Path = Path("/")
    cancel: threading.Event | None = None
    on_progress: Callable[[LoadProgress], None] | None = None
    on_transition: Callable[[Transition], None] | None = None


@dataclass(frozen=True, slots=True)
class LoadedInfo:
    """What was loaded, where and how.

    path: the model file. model: what the file says about itself. backend: the backend's name.
    engine: the engine in words, with its version. devices: the GPUs in use; empty on the CPU.
    device_because, engine_because, plan_because: why, a sentence each.
    ctx_size: tokens of one slot, prompt and answer together. parallel: slots. n_gpu_layers: layers
    on the GPU, -1 for all. buffers: memory that the engine says it allocated. warnings: what is
    not as it was chosen. recovered: what was changed, and why, after a start or a server failed.
    endpoint: where the server listens. pid: its process.
    """

    path: Path
    model: ModelInfo
    backend: str
    engine: str
    devices: tuple[Device, ...]
    device_because: tuple[str, ...]
    engine_because: tuple[str, ...]
    plan_because: tuple[str, ...]
    ctx_size: int
    parallel: int
    n_gpu_layers: int
    buffers: tuple[Buffer, ...]
    warnings: tuple[str, ...]
    recovered: tuple[str, ...]
    endpoint: Endpoint | None
    pid: int | None

    @property
    def because(self) -> tuple[str, ...]:
        """Every reason."""
        return self.device_because + self.engine_because + self.plan_because


class Connection(Protocol):
    """The way to a loaded model; safe to use from several threads."""

    def completion(
        self, prompt: str | Sequence[int], sampling: SamplingOptions, *, resume: bool
    ) -> TokenStream:
        """Continue a prompt, given as text or token ids.

        resume: after a crash the stream goes on with the next server.
        """

    def chat(
        self, messages: Sequence[Message], sampling: SamplingOptions, *, resume: bool
    ) -> TokenStream:
        """Answer a conversation, through the model's chat template."""

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """The token ids of a text."""

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""

    def apply_template(self, messages: Sequence[Message]) -> str:
        """The prompt that the model's chat template makes of a conversation."""

    def next_token(
        self,
        prompt: str | Sequence[int],
        *,
        then: Sequence[int] = (),
        among: Sequence[int] = (),
        top_k: int = 1,
    ) -> NextToken:
        """The tokens that may follow a prompt and the tokens `then`, from one forward pass.

        among: the only tokens that matter; the probabilities of these add up to 1. top_k: how many
        of the likeliest tokens, without `among`.
        """

    def share_prefix(self, prompt: str | Sequence[int]) -> int:
        """Compute what many prompts begin with once, for all slots; returns how many have it.

        0: the engine cannot, and computes it with each prompt that needs it.
        """

    def close(self) -> None:
        """End every stream and close every connection."""


class AsyncConnection(Protocol):
    """The same for asyncio."""

    def completion(
        self, prompt: str | Sequence[int], sampling: SamplingOptions, *, resume: bool
    ) -> AsyncTokenStream:
        """Continue a prompt, given as text or token ids."""

    def chat(
        self, messages: Sequence[Message], sampling: SamplingOptions, *, resume: bool
    ) -> AsyncTokenStream:
        """Answer a conversation, through the model's chat template."""

    async def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """The token ids of a text."""

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""

    async def apply_template(self, messages: Sequence[Message]) -> str:
        """The prompt that the model's chat template makes of a conversation."""

    async def next_token(
        self,
        prompt: str | Sequence[int],
        *,
        then: Sequence[int] = (),
        among: Sequence[int] = (),
        top_k: int = 1,
    ) -> NextToken:
        """The tokens that may follow a prompt, from one forward pass."""

    async def share_prefix(self, prompt: str | Sequence[int]) -> int:
        """Compute what many prompts begin with once, for all slots; returns how many have it."""

    async def aclose(self) -> None:
        """End every stream and close every connection."""


class LoadedModel(Protocol):
    """A model that is in memory and answers."""

    @property
    def info(self) -> LoadedInfo:
        """What was loaded, where and how."""

    def connect(self) -> Connection:
        """A way to it for blocking callers."""

    def connect_async(self) -> AsyncConnection:
        """A way to it for asyncio."""

    @property
    def state(self) -> State:
        """Whether it runs, and if not, why not."""

    def stop(self) -> None:
        """Give its memory back; the next request loads it again. Idempotent."""

    def close(self) -> None:
        """Unload it; nothing of it is left afterwards. Idempotent."""


@runtime_checkable
class NamesEngine(Protocol):
    """A backend that can say what it would run; not every one can."""

    def engine(self) -> str:
        """The engine in words, with its version. Raises a `RocllmError` when there is none."""


@runtime_checkable
class Backend(Protocol):
    """An engine that can load models."""

    @property
    def name(self) -> str:
        """The name under which it is registered."""

    def available(self) -> bool:
        """It can load models on this machine."""

    def why_not(self) -> str | None:
        """Why it is not available, and what to do about it; `None` when it is."""

    def load(self, request: LoadRequest) -> LoadedModel:
        """Load a model. Raises a `RocllmError` that says why it could not."""
