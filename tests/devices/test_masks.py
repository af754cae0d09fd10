"""Inherited masks mean what ROCm makes of them."""

from __future__ import annotations

import pytest

from rocllm.devices._masks import apply_masks

A = "GPU-9e7f4de7ac7cf81b"
B = "GPU-9e7f000000000000"


@pytest.mark.parametrize(
    ("value", "visible"),
    [
        ("0", (0,)),
        ("1,0", (1, 0)),
        (" 2 , 0 ", (2, 0)),
        ("", ()),
        ("  ", ()),
        ("-1", ()),
        ("7", ()),
        ("0,7,1", (0,)),
        ("1,1,0", (1,)),
        ("0,,1", (0,)),
        ("zero", ()),
        (A, (0,)),
        (A.lower(), (0,)),
        ("gpu-9E7F4", (0,)),
        ("GPU-9e7f", ()),  # two GPUs begin like that
        ("GPU-", ()),
        ("GPU-ffff", ()),
        ("GPU-XX", ()),  # what ROCr calls a GPU without a serial number
        (A + "0", ()),
    ],
)
def test_rocr_mask(value: str, visible: tuple[int, ...]) -> None:
    """The first token that is wrong ends the list; set and empty hides everything."""
    assert apply_masks({"ROCR_VISIBLE_DEVICES": value}, [A, B, None]).visible == visible


@pytest.mark.parametrize("variable", ["HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"])
@pytest.mark.parametrize(
    ("value", "visible"),
    [
        ("1", (1,)),
        ("2,0", (2, 0)),
        ("", (0, 1, 2)),
        ("-1", ()),
        ("0,-1,1", (0,)),
        (A, (0,)),
        (A.upper(), ()),
        ("GPU-9e7f4", ()),
    ],
)
def test_hip_mask(variable: str, value: str, visible: tuple[int, ...]) -> None:
    """Empty is unset; a UUID must be whole and in lower case."""
    assert apply_masks({variable: value}, [A, B, None]).visible == visible


def test_hip_counts_within_what_rocr_left() -> None:
    """The most common mistake: both variables name GPU 1, and nothing is left."""
    both = {"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "1"}
    visibility = apply_masks(both, [None, None])

    assert visibility.visible == ()
    assert visibility.masks == ("ROCR_VISIBLE_DEVICES=1", "HIP_VISIBLE_DEVICES=1")
    assert "counts within" in visibility.problems[0].what
    both["HIP_VISIBLE_DEVICES"] = "0"
    assert apply_masks(both, [None, None]).visible == (1,)


def test_cuda_mask_counts_only_without_a_hip_mask() -> None:
    """HIP reads the other vendor's variable when its own is unset or empty."""
    assert apply_masks(
        {"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, [None, None]
    ).visible == (0,)
    assert apply_masks(
        {"HIP_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "1"}, [None, None]
    ).visible == (1,)


@pytest.mark.parametrize("variable", ["GPU_DEVICE_ORDINAL", "GGML_CUDA_DEVICES"])
def test_variables_that_are_dropped_are_reported(variable: str) -> None:
    """They restrict nothing in HIP, and are not passed on."""
    visibility = apply_masks({variable: "1"}, [None, None])

    assert visibility.visible == (0, 1)
    assert [problem.what for problem in visibility.problems] == [f"{variable}=1 is not passed on"]


def test_wrong_token_is_reported_and_the_usual_way_to_hide_all_is_not() -> None:
    """A typing mistake hides GPUs without a word; `-1` is meant."""
    assert "'O'" in apply_masks({"HIP_VISIBLE_DEVICES": "O"}, [None]).problems[0].what
    assert apply_masks({"HIP_VISIBLE_DEVICES": "-1"}, [None]).problems == ()
