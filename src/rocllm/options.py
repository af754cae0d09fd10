"""What a user can choose. `None` means "let rocllm decide", everywhere; 0 is a value.

The names are llama-server's long flags with `_` for `-`, and OpenAI's field names for sampling.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypedDict, TypeVar

from rocllm.errors import OptionsError

# The block-wise types that llama.cpp accepts for the KV cache (`--cache-type-k`, b11434).
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
# llama.cpp refuses more sequences than this (LLAMA_MAX_SEQ, src/llama-cparams.h, b11434).
MAX_PARALLEL = 256

Options = TypeVar("Options", bound="LoadOptions | SamplingOptions")


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """When a server that crashed is started again.

    max_restarts: so many times in a row; 0: never, nor in another way. backoff: seconds before the
    first restart; it doubles each time, up to backoff_max. stable_time: seconds of service after
    which a row ends.

    Causes that a restart cannot mend, such as a broken file or too little memory, are not retried.

    Raises `OptionsError` for a value that cannot be meant.

    >>> [RestartPolicy().pause(number) for number in range(3)]
    [0.5, 1.0, 2.0]
    """

    max_restarts: int = 3
    backoff: float = 0.5
    backoff_max: float = 30.0
    stable_time: float = 60.0

    def __post_init__(self) -> None:
        _whole(self, "max_restarts", minimum=0, optional=False)
        for name in ("backoff", "backoff_max", "stable_time"):
            _number(self, name, minimum=0, optional=False)

    def pause(self, restarts: int) -> float:
        """Seconds to wait before the next restart, after so many in a row."""
        # An exponent beyond this would overflow, and the bound is reached long before.
        return float(min(self.backoff * 2 ** min(restarts, 64), self.backoff_max))


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to load a model.

    ctx_size: context of one slot, in tokens; `None`: the longest that fits of 4096, 8192, 16384 …,
        up to the model's own; 4096 where it is not known how much memory is free.
    parallel: number of slots, each with a context of its own; `None`: 4 or 2 on a GPU that has the
        memory to spare, else 1. They take nothing away from a context that is chosen for you.
    n_gpu_layers: layers on the GPU; -1 is all of them, 0 none; `None`: all when a GPU is used.
    device: which GPU: `"cpu"`, a PCI address (`"0000:03:00.0"`), a ROCr ordinal (`"0"`), a UUID
        (`"GPU-9e7f4de7ac7cf81b"`), or several of them; `None`: the best discrete GPU.
    batch_size, ubatch_size: tokens computed at once, logically and physically.
    cache_type_k, cache_type_v: element type of the KV cache, one of `CACHE_TYPES`.
    flash_attn: `"on"`, `"off"` or `"auto"`.
    swa_full: layers that see a window of tokens only (Gemma, gpt-oss) keep all tokens all the same,
        so that the beginning of short prompts is not computed anew; `None`: where it costs no
        memory, which is where the context is not much longer than the window.
    load_mode: how the file is read: `"mmap"`, `"none"` (into memory), `"mlock"` or `"dio"`.
    mmproj: projector for images or sound: a path, or `"auto"` for the best that stands beside the
        model; `None`: none is loaded.
    model_draft: a small model of the same family, path or name, that guesses ahead (speculative
        decoding); `None`: none is loaded.
    n_gpu_layers_draft: its layers on the GPU, counted as `n_gpu_layers`.
    threads: CPU threads for generation.
    llama_server: path of the llama-server to run, or `"embedded"` for the one in the wheel.
    worker: with the backend `inprocess`, `False` loads the model into the calling process, where
        nothing is between them, and a crash of the engine is one of the program.
    host, port: listen on TCP at this address instead of a private UNIX socket; with a `host` and
        no `port` a free port is taken, with a `port` and no `host` it is 127.0.0.1.
    start_timeout: seconds without any sign of progress after which loading is given up.
    timeout: longest silence, in seconds, of a server that answers; `None`: none is too long. The
        time before the first token counts, which a long prompt and the calls before it take.
    restart: when a server that crashed is started again.
    cpu_fallback: use the CPU when the GPU fails and nothing else helps, and say so.

    Raises `OptionsError` for a value that cannot be meant.

    >>> LoadOptions(ctx_size=8192, n_gpu_layers=-1).ctx_size
    8192
    """

    ctx_size: int | None = None
    parallel: int | None = None
    n_gpu_layers: int | None = None
    device: str | Sequence[str] | None = None
    batch_size: int | None = None
    ubatch_size: int | None = None
    cache_type_k: str | None = None
    cache_type_v: str | None = None
    flash_attn: Literal["on", "off", "auto"] | None = None
    swa_full: bool | None = None
    load_mode: Literal["mmap", "none", "mlock", "dio"] | None = None
    mmproj: str | os.PathLike[str] | None = None
    model_draft: str | os.PathLike[str] | None = None
    n_gpu_layers_draft: int | None = None
    threads: int | None = None
    llama_server: str | os.PathLike[str] | None = None
    worker: bool | None = None
    host: str | None = None
    port: int | None = None
    start_timeout: float = 120.0
    timeout: float | None = 600.0
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    cpu_fallback: bool = False

    def __post_init__(self) -> None:
        _whole(self, "ctx_size", minimum=1)
        _whole(self, "parallel", minimum=1, maximum=MAX_PARALLEL)
        _whole(self, "n_gpu_layers", minimum=-1)
        _whole(self, "n_gpu_layers_draft", minimum=-1)
        _whole(self, "batch_size", minimum=1)
        _whole(self, "ubatch_size", minimum=1)
        _whole(self, "threads", minimum=1)
        _whole(self, "port", minimum=1, maximum=65535)
        _one_of(self, "cache_type_k", CACHE_TYPES)
        _one_of(self, "cache_type_v", CACHE_TYPES)
        _one_of(self, "flash_attn", ("on", "off", "auto"))
        _one_of(self, "load_mode", ("mmap", "none", "mlock", "dio"))
        _number(self, "start_timeout", above=0, optional=False)
        _number(self, "timeout", above=0)
        _kind(self, "swa_full", bool, "True or False")
        _kind(self, "worker", bool, "True or False")
        _kind(self, "cpu_fallback", bool, "True or False", optional=False)
        _kind(self, "host", str, "a text")
        _kind(self, "restart", RestartPolicy, "a RestartPolicy", optional=False)
        if self.flash_attn == "off" and self.cache_type_v not in (None, "f32", "f16", "bf16"):
            raise OptionsError(
                f"cache_type_v={self.cache_type_v!r} with flash_attn='off'",
                why="llama.cpp can quantise the V cache only with flash attention",
                remedy="use flash_attn='auto', or cache_type_v='f16'",
            )
        if self.n_gpu_layers_draft is not None and self.model_draft is None:
            raise OptionsError(
                f"n_gpu_layers_draft={self.n_gpu_layers_draft} without a draft model",
                remedy="give model_draft, too",
            )

    @property
    def devices(self) -> tuple[str, ...]:
        """`device` as a tuple; empty when rocllm is to choose."""
        if self.device is None:
            return ()
        return (self.device,) if isinstance(self.device, str) else tuple(self.device)

    @property
    def tcp(self) -> bool:
        """TCP was asked for."""
        return self.host is not None or self.port is not None

    @property
    def loopback(self) -> bool:
        """The server is reachable from this machine only."""
        if self.host is None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How to generate.

    max_tokens: at most so many tokens; -1: until the context is full.
    temperature: 0 (the default) is greedy: always the likeliest token.
    top_k, top_p, min_p, repeat_penalty, seed: llama.cpp's samplers; `None`: its default.
    stop: strings that end the answer; they are not part of it.
    stop_tokens: token ids that end the answer. In `chat` they cost what `logprobs` costs.
    json_schema: a JSON schema that the answer obeys (`{}`: any JSON object).
    grammar: a GBNF grammar that the answer obeys; not together with `json_schema`.
    logprobs: fill `Token.logprob`; in `chat` also `Token.id`, which is unknown otherwise. It costs
        the server a sort of the vocabulary for every token.

    Raises `OptionsError` for a value that cannot be meant.

    >>> SamplingOptions(max_tokens=16, stop=["\\n"]).stop
    ('\\n',)
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_tokens: Sequence[int] = ()
    json_schema: Mapping[str, Any] | None = None
    grammar: str | None = None
    logprobs: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens == 0:
            raise OptionsError(
                "max_tokens=0 asks for nothing",
                why="llama-server would generate one token all the same",
                remedy="give at least 1, or -1 for as many as the context holds",
            )
        _whole(self, "max_tokens", minimum=-1, optional=False)
        _number(self, "temperature", minimum=0, optional=False)
        _whole(self, "top_k", minimum=0)
        _number(self, "top_p", minimum=0, maximum=1)
        _number(self, "min_p", minimum=0, maximum=1)
        _number(self, "repeat_penalty", above=0)
        _whole(self, "seed", minimum=0, maximum=2**32 - 2)  # 2**32 - 1 means "random" to llama.cpp
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(text, str) and text for text in stop):
            raise OptionsError(f"stop must hold non-empty strings, got {self.stop!r}")
        object.__setattr__(self, "stop", stop)
        stop_tokens = tuple(self.stop_tokens)
        if not all(_is_whole(token) and token >= 0 for token in stop_tokens):
            raise OptionsError(f"stop_tokens must hold token ids, got {self.stop_tokens!r}")
        object.__setattr__(self, "stop_tokens", stop_tokens)
        _kind(self, "json_schema", Mapping, "a mapping")
        _kind(self, "grammar", str, "a text")
        _kind(self, "logprobs", bool, "True or False", optional=False)
        if self.json_schema is not None and self.grammar is not None:
            raise OptionsError(
                "json_schema and grammar are both given",
                why="llama-server would silently use one of them",
                remedy="give one of them",
            )


class LoadArguments(TypedDict, total=False):
    """The fields of `LoadOptions` as keyword arguments, for type checkers."""

    ctx_size: int | None
    parallel: int | None
    n_gpu_layers: int | None
    device: str | Sequence[str] | None
    batch_size: int | None
    ubatch_size: int | None
    cache_type_k: str | None
    cache_type_v: str | None
    flash_attn: Literal["on", "off", "auto"] | None
    swa_full: bool | None
    load_mode: Literal["mmap", "none", "mlock", "dio"] | None
    mmproj: str | os.PathLike[str] | None
    model_draft: str | os.PathLike[str] | None
    n_gpu_layers_draft: int | None
    threads: int | None
    llama_server: str | os.PathLike[str] | None
    worker: bool | None
    host: str | None
    port: int | None
    start_timeout: float
    timeout: float | None
    restart: RestartPolicy
    cpu_fallback: bool


class SamplingArguments(TypedDict, total=False):
    """The fields of `SamplingOptions` as keyword arguments, for type checkers."""

    max_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repeat_penalty: float | None
    seed: int | None
    stop: Sequence[str]
    stop_tokens: Sequence[int]
    json_schema: Mapping[str, Any] | None
    grammar: str | None
    logprobs: bool


def build_options(
    cls: type[Options], values: Mapping[str, Any], base: Options | None = None
) -> Options:
    """`values` over those of `base`, or over the defaults.

    Raises `OptionsError` for an unknown option: it names the nearest one that exists.
    """
    names = [one.name for one in fields(cls)]
    for name in values:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise OptionsError(
                f"unknown option {name!r}",
                why=f"{cls.__name__} has: {', '.join(names)}",
                remedy=f"did you mean {near[0]!r}?" if near else None,
            )
    return cls(**values) if base is None else replace(base, **values)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(
    options: object,
    name: str,
    *,
    minimum: int,
    maximum: int | None = None,
    optional: bool = True,
) -> None:
    value = getattr(options, name)
    if value is None and optional:
        return
    if not _is_whole(value) or value < minimum or (maximum is not None and value > maximum):
        span = f"at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise OptionsError(f"{name} must be a whole number, {span}; got {value!r}")


def _number(
    options: object,
    name: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    optional: bool = True,
) -> None:
    value = getattr(options, name)
    if value is None and optional:
        return
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    good = good and (minimum is None or value >= minimum) and (maximum is None or value <= maximum)
    good = good and (above is None or value > above)
    if not good:
        span = " and ".join(
            text
            for limit, text in (
                (minimum, f"at least {minimum}"),
                (above, f"above {above}"),
                (maximum, f"at most {maximum}"),
            )
            if limit is not None
        )
        raise OptionsError(f"{name} must be a number {span}; got {value!r}")


def _kind(options: object, name: str, kind: type, called: str, *, optional: bool = True) -> None:
    value = getattr(options, name)
    if not (isinstance(value, kind) or (value is None and optional)):
        raise OptionsError(f"{name} must be {called}; got {value!r}")


def _one_of(options: object, name: str, choices: Sequence[str]) -> None:
    value = getattr(options, name)
    if value is not None and value not in choices:
        raise OptionsError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
