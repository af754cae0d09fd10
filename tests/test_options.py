"""Options refuse what cannot be meant, and say why."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from rocllm.errors import OptionsError
from rocllm.options import (
    CACHE_TYPES,
    LoadArguments,
    LoadOptions,
    RestartPolicy,
    SamplingArguments,
    SamplingOptions,
    build_options,
)

_NOT_WHOLE = (1.5, "4", True, math.nan, [1])


@pytest.mark.parametrize("cls", [LoadOptions, SamplingOptions])
def test_defaults_are_valid_frozen_and_comparable(cls: type[Any]) -> None:
    """Options without arguments are fine, equal to each other, and cannot be changed."""
    assert cls() == cls()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(cls(), dataclasses.fields(cls)[0].name, 1)


def test_sampling_is_greedy_with_256_tokens_by_default() -> None:
    """The documented defaults."""
    options = SamplingOptions()
    assert (options.max_tokens, options.temperature, options.stop) == (256, 0.0, ())
    assert (options.top_k, options.top_p, options.seed, options.logprobs) == (None,) * 3 + (False,)


@pytest.mark.parametrize(
    ("cls", "name", "good", "bad"),
    [
        (LoadOptions, "ctx_size", (None, 1, 131072), (0, -1, *_NOT_WHOLE)),
        (LoadOptions, "parallel", (None, 1, 256), (0, 257, *_NOT_WHOLE)),
        (LoadOptions, "n_gpu_layers", (None, -1, 0, 99), (-2, *_NOT_WHOLE)),
        (LoadOptions, "batch_size", (None, 1), (0, *_NOT_WHOLE)),
        (LoadOptions, "ubatch_size", (None, 1), (0, *_NOT_WHOLE)),
        (LoadOptions, "threads", (None, 1), (0, *_NOT_WHOLE)),
        (LoadOptions, "port", (None, 1, 65535), (0, 65536, *_NOT_WHOLE)),
        (LoadOptions, "cache_type_k", (None, *CACHE_TYPES), ("q9", "", 8)),
        (LoadOptions, "cache_type_v", (None, *CACHE_TYPES), ("q9", "", 8)),
        (LoadOptions, "flash_attn", (None, "on", "off", "auto"), (True, "yes")),
        (LoadOptions, "start_timeout", (0.1, 1, 3600), (0, -1, math.inf, math.nan, None, "1")),
        (SamplingOptions, "max_tokens", (-1, 1, 10**6), (0, -2, None, *_NOT_WHOLE)),
        (SamplingOptions, "temperature", (0, 0.7, 5), (-0.1, math.nan, None, "0", True)),
        (SamplingOptions, "top_k", (None, 0, 40), (-1, *_NOT_WHOLE)),
        (SamplingOptions, "top_p", (None, 0, 0.5, 1), (-0.1, 1.1, math.nan, "1")),
        (SamplingOptions, "min_p", (None, 0, 0.5, 1), (-0.1, 1.1, math.nan, "1")),
        (SamplingOptions, "repeat_penalty", (None, 0.5, 1.1), (0, -1, math.inf, "1")),
        (SamplingOptions, "seed", (None, 0, 2**32 - 2), (-1, 2**32 - 1, *_NOT_WHOLE)),
        (LoadOptions, "swa_full", (None, True, False), (1, "no")),
        (LoadOptions, "worker", (None, True, False), (0,)),
        (LoadOptions, "cpu_fallback", (True, False), (None, "yes")),
        (LoadOptions, "host", (None, "localhost"), (127, b"localhost")),
        (LoadOptions, "restart", (RestartPolicy(max_restarts=0),), (3, None)),
        (SamplingOptions, "logprobs", (True, False), (5, None)),
        (SamplingOptions, "grammar", (None, 'root ::= "a"'), (b"root",)),
        (SamplingOptions, "json_schema", (None, {}), ("{}", [])),
    ],
)
def test_bounds(cls: type[Any], name: str, good: tuple[Any, ...], bad: tuple[Any, ...]) -> None:
    """Each option takes its whole range, and names itself and the value when it refuses one."""
    for value in good:
        assert getattr(cls(**{name: value}), name) == value
    for value in bad:
        with pytest.raises(OptionsError, match=name) as caught:
            cls(**{name: value})
        assert repr(value) in str(caught.value)


def test_devices_is_always_a_tuple() -> None:
    """One device, several, or none: `devices` has one form."""
    assert LoadOptions().devices == ()
    assert LoadOptions(device="0").devices == ("0",)
    assert LoadOptions(device=["0", "1"]).devices == ("0", "1")


@pytest.mark.parametrize(
    ("host", "port", "tcp", "loopback"),
    [
        (None, None, False, True),
        (None, 8080, True, True),
        ("localhost", None, True, True),
        ("127.0.0.2", None, True, True),
        ("::1", None, True, True),
        ("0.0.0.0", None, True, False),
        ("192.168.1.2", 8080, True, False),
        ("box.example", None, True, False),
    ],
)
def test_where_to_listen(host: str | None, port: int | None, tcp: bool, loopback: bool) -> None:
    """A host or a port asks for TCP; only this machine's own addresses are loopback."""
    options = LoadOptions(host=host, port=port)
    assert (options.tcp, options.loopback) == (tcp, loopback)


def test_quantised_v_cache_needs_flash_attention() -> None:
    """llama.cpp would refuse this pair after loading; it is refused before."""
    with pytest.raises(OptionsError, match="flash_attn='off'"):
        LoadOptions(flash_attn="off", cache_type_v="q8_0")
    LoadOptions(flash_attn="off", cache_type_v="f16")
    LoadOptions(flash_attn="off", cache_type_k="q8_0")


def test_stop_takes_one_string_or_several() -> None:
    """A single stop string is not taken apart into letters."""
    assert SamplingOptions(stop="END").stop == ("END",)
    assert SamplingOptions(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingOptions(stop_tokens=[0, 2]).stop_tokens == (0, 2)


@pytest.mark.parametrize(
    "values",
    [{"stop": [""]}, {"stop": ""}, {"stop": [1]}, {"stop_tokens": [-1]}, {"stop_tokens": ["2"]}],
)
def test_stops_that_cannot_be_meant(values: dict[str, Any]) -> None:
    """An empty stop string would end every answer at once."""
    with pytest.raises(OptionsError, match=next(iter(values))):
        SamplingOptions(**values)


def test_one_constraint_at_a_time() -> None:
    """A schema and a grammar together are refused; an empty schema counts as one."""
    with pytest.raises(OptionsError, match="json_schema and grammar"):
        SamplingOptions(json_schema={}, grammar="root ::= [0-9]")
    assert SamplingOptions(json_schema={}).json_schema == {}


def test_build_options_names_the_nearest() -> None:
    """A misspelt option is refused with the option that was meant."""
    assert build_options(LoadOptions, {"ctx_size": 8}) == LoadOptions(ctx_size=8)
    with pytest.raises(OptionsError, match="unknown option 'ctx_siz'") as caught:
        build_options(LoadOptions, {"ctx_siz": 8})
    assert caught.value.remedy == "did you mean 'ctx_size'?"
    with pytest.raises(OptionsError, match="unknown option 'zzz'") as caught:
        build_options(SamplingOptions, {"zzz": 8})
    assert caught.value.remedy is None


@pytest.mark.parametrize(
    ("options", "arguments"),
    [(LoadOptions, LoadArguments), (SamplingOptions, SamplingArguments)],
)
def test_the_types_of_arguments_are_those_of_the_fields(
    options: type[Any], arguments: type[Any]
) -> None:
    """What type checkers allow as keyword arguments is what the options have."""
    fields = {field.name: field.type for field in dataclasses.fields(options)}
    assert fields == {
        name: reference.__forward_arg__ for name, reference in arguments.__annotations__.items()
    }


def test_build_options_over_others() -> None:
    """Values given replace those of the base, the rest stays, and the result is checked."""
    base = SamplingOptions(max_tokens=3, seed=1)
    assert build_options(SamplingOptions, {"seed": 2}, base) == SamplingOptions(
        max_tokens=3, seed=2
    )
    assert build_options(SamplingOptions, {}, base) == base
    with pytest.raises(OptionsError, match="max_tokens=0"):
        build_options(SamplingOptions, {"max_tokens": 0}, base)
