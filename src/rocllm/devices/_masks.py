"""Visibility masks that the user has set, read as ROCm reads them. Pure.

ROCr applies `ROCR_VISIBLE_DEVICES` (amd_filter_device.cpp of rocm-systems 1b1610f); HIP then counts
within what ROCr left (rocdevice.cpp of clr f9f995c).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rocllm import env
from rocllm.devices._sysfs import decimal
from rocllm.devices.types import Problem

_ONE_IS_ENOUGH = f"set {env.ROCR_VISIBLE_DEVICES} only"
# No index, so it ends the list: the usual way to hide every GPU.
_HIDE_ALL = "-1"
_NOT_FOR_HIP = (env.GPU_DEVICE_ORDINAL, env.GGML_CUDA_DEVICES)

# From a token and the UUIDs of the GPUs to the index that is meant.
_Match = Callable[[str, Sequence[str | None]], int | None]


@dataclass(frozen=True, slots=True)
class Visibility:
    """visible: ordinals that are left, in the order of the masks. masks: those in force."""

    visible: tuple[int, ...]
    masks: tuple[str, ...]
    problems: tuple[Problem, ...]


def apply_masks(environ: Mapping[str, str], uuids: Sequence[str | None]) -> Visibility:
    """What the masks in `environ` leave of the GPUs, whose UUIDs are given in ROCr's order.

    >>> apply_masks({"HIP_VISIBLE_DEVICES": "1"}, [None, None]).visible
    (1,)
    """
    visible = list(range(len(uuids)))
    masks: list[str] = []
    problems: list[Problem] = []
    for variable, match in _in_force(environ):
        value = environ[variable]
        masks.append(f"{variable}={value}")
        indices, wrong = _parse(value, [uuids[ordinal] for ordinal in visible], match)
        if wrong not in (None, _HIDE_ALL):
            problems.append(_wrong_token(masks, wrong))
        visible = [visible[index] for index in indices]
    problems += [
        Problem(f"{variable}={environ[variable]} is not passed on")
        for variable in _NOT_FOR_HIP
        if variable in environ
    ]
    return Visibility(tuple(visible), tuple(masks), tuple(problems))


def _in_force(environ: Mapping[str, str]) -> list[tuple[str, _Match]]:
    found: list[tuple[str, _Match]] = []
    if env.ROCR_VISIBLE_DEVICES in environ:  # set and empty hides everything
        found.append((env.ROCR_VISIBLE_DEVICES, _match_rocr))
    for variable in (env.HIP_VISIBLE_DEVICES, env.CUDA_VISIBLE_DEVICES):
        if environ.get(variable):  # set and empty is as good as unset
            found.append((variable, _match_hip))
            break
    return found


def _parse(
    value: str,
    uuids: Sequence[str | None],
    match: _Match,
) -> tuple[list[int], str | None]:
    """The indices up to the first token that is wrong, and that token."""
    indices: list[int] = []
    for token in value.split(",") if value.strip() else []:
        index = match(token.strip(), uuids)
        if index is None or index >= len(uuids) or index in indices:
            return indices, token.strip()
        indices.append(index)
    return indices, None


def _match_rocr(token: str, uuids: Sequence[str | None]) -> int | None:
    upper = token.upper()
    if not upper.startswith("GPU-"):
        return decimal(token)
    if not 5 <= len(upper) <= 20:
        return None
    found = [n for n, uuid in enumerate(uuids) if uuid and uuid.upper().startswith(upper)]
    return found[0] if len(found) == 1 else None


def _match_hip(token: str, uuids: Sequence[str | None]) -> int | None:
    if not token.startswith("GPU-"):
        return decimal(token)
    return uuids.index(token) if token in uuids else None


def _wrong_token(masks: Sequence[str], token: str | None) -> Problem:
    relative = ", which counts within what the other mask leaves" if len(masks) > 1 else ""
    return Problem(
        f"{masks[-1]}: {token!r} is none of the GPUs{relative}; ROCm ignores it and what follows",
        _ONE_IS_ENOUGH if relative else "unset it, or name GPUs that `rocllm devices` lists",
    )
