"""What is measured: the suite, the setups, and the prompts. Pure."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from rocllm.errors import OptionsError
from rocllm.options import MAX_PARALLEL, LoadOptions

Kind: TypeAlias = Literal["load", "decode", "prompt", "concurrent"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Tokens of context, where the user gives none. One slot has what rocllm plans when it does not know
# better; slots side by side have less, so that eight of them fit where one does.
CTX_SIZE = 4096
CTX_SIZE_OF_MANY = 1024
# More than the prompts of `text_prompt` have in any vocabulary.
TEXT_PROMPT_TOKENS = 96

_TEXT = (
    "The harbour was quiet when the last boat came in, and the old keeper climbed the stairs "
    "to light the lamp once more. From the window he counted seven ships on the dark water, "
    "each with a small green light. Wind had risen in the north, bringing the smell of rain, "
    "salt and pine. His daughter had left bread, cheese and a letter on the table. She wrote "
    "about the city, its markets and bridges, trains that never stop, people who speak twelve "
    "languages, and a library with more books than anybody could read in a hundred years. "
    "Outside, waves broke against the stone wall; inside, the clock struck nine. He thought of "
    "numbers, maps, machines, gardens, music and winter mornings, then took his pencil and began "
    "to answer. First he described the storm of last week, how it tore away the roof of the "
    "school, and how everyone came to help before noon."
)
_OPENINGS = (
    "A long story about a lighthouse keeper, told in full.\n\nChapter 1\n\nIt was late in",
    "A complete history of the bicycle, from its beginning to the present.\n\nThe first",
    "A careful description of a walk through an old town, street by street.\n\nWe started at",
    "Notes of a gardener, written every day of the year.\n\n1 January. The ground is",
    "How a steam engine works, explained part by part in great detail.\n\nThe boiler",
    "Memories of a ship's cook, with all voyages and harbours.\n\nI was fourteen when",
    "A guide to the birds of the northern coast, with a page for each.\n\nThe puffin",
    "The life of a river, from its source to the sea.\n\nHigh in the mountains",
)


def _at_least(value: object, least: int, name: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise OptionsError(f"{name} must be whole numbers, at least {least}; got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """What is measured, and how often.

    decode_tokens: tokens of an answer, in `decode` and for each caller. prompt_lengths: tokens of
    the prompts whose first token is waited for. callers: how many at once, each with a slot.
    repetitions: measurements of a cell, after `warmups` that do not count. cell_seconds: after so
    many seconds a cell makes do with the repetitions it has. kinds: which workloads.

    Raises `OptionsError` for a value that cannot be meant.

    >>> Suite(callers=(1, 4)).repetitions
    5
    """

    decode_tokens: int = 128
    prompt_lengths: tuple[int, ...] = (128, 512, 2048)
    callers: tuple[int, ...] = (1, 2, 4, 8)
    repetitions: int = 5
    warmups: int = 1
    cell_seconds: float = 60.0
    kinds: tuple[Kind, ...] = KINDS

    def __post_init__(self) -> None:
        _at_least(self.decode_tokens, 2, "decode_tokens")
        _at_least(self.repetitions, 1, "repetitions")
        _at_least(self.warmups, 0, "warmups")
        for name in ("prompt_lengths", "callers"):
            values = getattr(self, name)
            for value in values:
                _at_least(value, 1, name)
            object.__setattr__(self, name, tuple(sorted(set(values))))
        if max(self.callers, default=1) > MAX_PARALLEL:
            raise OptionsError(
                f"callers={max(self.callers)} is more than a server has slots",
                why=f"llama.cpp takes at most {MAX_PARALLEL}",
            )
        if not self.cell_seconds > 0:
            raise OptionsError(f"cell_seconds must be above 0; got {self.cell_seconds!r}")
        for kind in self.kinds:
            if kind not in KINDS:
                raise OptionsError(
                    f"there is no workload {kind!r}", why=f"there are: {', '.join(KINDS)}"
                )


# Seconds instead of minutes, to try things out; the figures say little.
QUICK = Suite(decode_tokens=16, prompt_lengths=(16, 64), callers=(1, 2), repetitions=3)


@dataclass(frozen=True, slots=True)
class Workload:
    """One cell of the report.

    size: tokens of the prompt (`prompt`), callers (`concurrent`), otherwise 1. tokens: of an
    answer; 0 for `load`.
    """

    kind: Kind
    size: int
    tokens: int

    @property
    def needed_context(self) -> int:
        """Tokens that a slot must hold."""
        prompt = self.size if self.kind == "prompt" else TEXT_PROMPT_TOKENS
        return prompt + self.tokens if self.tokens else 1

    def __str__(self) -> str:
        match self.kind:
            case "prompt":
                return f"prompt of {self.size} tokens"
            case "concurrent":
                return f"{self.size} caller{'s' if self.size > 1 else ''}"
            case _:
                return self.kind


@dataclass(frozen=True, slots=True)
class Session:
    """What is measured on one load of the model: `workloads` on `slots` slots."""

    slots: int
    workloads: tuple[Workload, ...]


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine under the name that reports and comparisons use.

    llama_server: as in `LoadOptions`; `None`: rocllm's choice. problem: why there is none.
    backend: as in `load_model`.
    """

    name: str
    llama_server: str | None = None
    problem: str | None = None
    backend: str | None = None


@dataclass(frozen=True, slots=True)
class Setup:
    """A model, and how it is loaded; `None`: as rocllm decides.

    cache_type: of both the K and the V cache.

    Raises `OptionsError` for a value that there is not; see `options` for combinations.
    """

    model: Path
    engine: Engine
    flash_attn: Literal["on", "off", "auto"] | None = None
    cache_type: str | None = None

    def __post_init__(self) -> None:
        LoadOptions(flash_attn=self.flash_attn, cache_type_k=self.cache_type)

    def options(self, base: LoadOptions, *, slots: int, ctx_size: int) -> LoadOptions:
        """How to load it. Raises `OptionsError` for a combination that there is not."""
        values: dict[str, Any] = {"parallel": slots, "ctx_size": base.ctx_size or ctx_size}
        if self.engine.llama_server is not None:
            values["llama_server"] = self.engine.llama_server
        if self.flash_attn is not None:
            values["flash_attn"] = self.flash_attn
        if self.cache_type is not None:
            values |= {"cache_type_k": self.cache_type, "cache_type_v": self.cache_type}
        return replace(base, **values)


def setups(
    models: Sequence[Path],
    engines: Sequence[Engine],
    flash_attn: Sequence[Literal["on", "off", "auto"] | None] = (None,),
    cache_types: Sequence[str | None] = (None,),
) -> tuple[Setup, ...]:
    """Every combination, models outermost.

    >>> [one.cache_type for one in setups([Path("m.gguf")], [Engine("any")], [None], ["f16"])]
    ['f16']
    """
    combinations = itertools.product(models, engines, flash_attn, cache_types)
    return tuple(dict.fromkeys(Setup(*each) for each in combinations))


def sessions(suite: Suite) -> tuple[Session, ...]:
    """The workloads of a suite, by the number of slots that they want."""
    tokens = suite.decode_tokens
    alone = {
        "load": [Workload("load", 1, 0)],
        "decode": [Workload("decode", 1, tokens)],
        "prompt": [Workload("prompt", length, 1) for length in suite.prompt_lengths],
        "concurrent": [Workload("concurrent", 1, tokens)] if 1 in suite.callers else [],
    }
    first = tuple(one for kind in KINDS if kind in suite.kinds for one in alone[kind])
    many = suite.callers if "concurrent" in suite.kinds else ()
    found = [Session(1, first)] if first else []
    found += [Session(n, (Workload("concurrent", n, tokens),)) for n in many if n > 1]
    return tuple(found)


def context_for(session: Session, longest: int | None) -> int:
    """Tokens of context of one slot, where the user gives none.

    longest: the model's own context, in tokens; `None`: not known.
    """
    least = CTX_SIZE if session.slots == 1 else CTX_SIZE_OF_MANY
    wanted = max([least, *(one.needed_context for one in session.workloads)])
    return min(wanted, longest or wanted)


def vocabulary_text() -> str:
    """A text whose tokens are those of ordinary language: what `token_prompt` draws from."""
    return _TEXT


def token_prompt(pool: Sequence[int], length: int, number: int) -> list[int]:
    """A prompt of exactly `length` tokens that no slot has in its cache.

    The server reuses what a prompt has in common with the last one of a slot, from the first token
    on. So prompts with consecutive numbers begin with different tokens, and the rest is drawn.

    >>> token_prompt([7, 8, 9], 2, 4)[0]
    8
    """
    rest = random.Random(number).choices(pool, k=length - 1)
    return [pool[number % len(pool)], *rest]


def text_prompt(number: int) -> str:
    """The beginning of a long text, another one for every number.

    >>> text_prompt(3).startswith("3. ")
    True
    """
    return f"{number}. {_OPENINGS[number % len(_OPENINGS)]}"
