"""Which files of a repository make up a model, and which quantisation is taken."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rocllm.catalog.variants import (
    Fit,
    RepoFile,
    Variant,
    choose_mmproj,
    choose_variant,
    list_variants,
)
from rocllm.errors import DoesNotFit, ModelNotFound

_GIB = 1 << 30


def _files(**sizes: float) -> list[RepoFile]:
    return [RepoFile(f"m-{label}.gguf", int(size * _GIB)) for label, size in sizes.items()]


_FILES = [
    *_files(Q2_K=3, Q4_K_M=5, Q8_0=8, F16=16),
    RepoFile("UD-Q6_K_XL/m-UD-Q6_K_XL-00001-of-00002.gguf", 4 * _GIB),
    RepoFile("UD-Q6_K_XL/m-UD-Q6_K_XL-00002-of-00002.gguf", 3 * _GIB),
    RepoFile("m-Q5_K_M-00001-of-00002.gguf", 3 * _GIB),  # the other part is missing
    RepoFile("Q4_0/model.gguf", 4 * _GIB),
    RepoFile("mmproj-F32.gguf", _GIB),
    RepoFile("mmproj-F16.gguf", _GIB // 2),
    RepoFile("m-imatrix.gguf", 1),
    RepoFile("mtp-m-Q8_0.gguf", 1),
    RepoFile("README.md", 1),
]


def test_variants_of_a_repository() -> None:
    """Models only, whole ones only, parts joined, the best quantisation first."""
    variants = list_variants(_FILES)
    labels = ["Q8_0", "UD-Q6_K_XL", "Q4_K_M", "Q4_0", "Q2_K", "F16"]
    assert [variant.quantization for variant in variants] == labels
    assert [len(variant.files) for variant in variants] == [1, 2, 1, 1, 1, 1]
    assert variants[1].size == 7 * _GIB


def _up_to(size: float) -> Callable[[Variant], Fit]:
    """A judge that lets files of so many GiB pass."""
    return lambda variant: Fit(variant.size <= size * _GIB, f"({variant.size // _GIB} GiB)")


@pytest.mark.parametrize(
    ("memory", "label"),
    [
        (100, "Q8_0"),  # never the unquantised file, however much room there is
        (8, "Q8_0"),
        (7.9, "UD-Q6_K_XL"),
        (5, "Q4_K_M"),
        (4.5, "Q4_0"),
        (3, "Q2_K"),
    ],
)
def test_the_best_that_fits(memory: float, label: str) -> None:
    """The first that passes; the reason names what was taken, for what, and how it would run."""
    variant, reason = choose_variant(
        "u/r", list_variants(_FILES), None, _up_to(memory), "12.0 GiB of GPU"
    )
    assert variant.quantization == label
    size = f"{variant.size // _GIB}"
    assert reason == (
        f"taking {label} ({size}.0 GiB), the best of 6 that fits into 12.0 GiB of GPU ({size} GiB)"
    )


def test_the_only_one() -> None:
    """It is no choice, and has to fit nevertheless."""
    variants = list_variants(_files(Q4_0=4))
    _, reason = choose_variant("u/r", variants, None, _up_to(5), "GPU")
    assert reason == "taking Q4_0 (4.0 GiB), the only one, which fits into GPU (4 GiB)"
    with pytest.raises(DoesNotFit):
        choose_variant("u/r", variants, None, _up_to(3), "GPU")


def test_nothing_fits() -> None:
    """The error carries the numbers and the command that fetches it all the same."""
    with pytest.raises(DoesNotFit, match="no quantisation of u/r fits into GPU") as caught:
        choose_variant("u/r", list_variants(_FILES), None, _up_to(2), "GPU")
    assert caught.value.why == "the smallest, Q2_K (3.0 GiB), does not: (3 GiB)"
    assert str(caught.value.remedy).endswith("rocllm pull hf:u/r:Q2_K")


@pytest.mark.parametrize(
    ("wanted", "label"),
    [
        ("Q4_K_M", "Q4_K_M"),
        ("q8_0", "Q8_0"),
        ("fp16", "F16"),
        ("Q6_K_XL", "UD-Q6_K_XL"),
        ("m-Q2_K.gguf", "Q2_K"),
        ("UD-Q6_K_XL/m-UD-Q6_K_XL-00002-of-00002.gguf", "UD-Q6_K_XL"),
    ],
)
def test_what_the_user_wants_is_taken(wanted: str, label: str) -> None:
    """A quantisation or a file, whether it fits or not, and without a word."""
    variant, reason = choose_variant("u/r", list_variants(_FILES), wanted, _up_to(0), "GPU")
    assert (variant.quantization, reason) == (label, None)


def test_what_is_not_there() -> None:
    """The message lists what there is, and the nearest."""
    with pytest.raises(ModelNotFound, match=r"there is no 'Q4_K_S' in u/r") as caught:
        choose_variant("u/r", list_variants(_FILES), "Q4_K_S", _up_to(0), "GPU")
    assert "Q8_0 (8.0 GiB), UD-Q6_K_XL (7.0 GiB)" in str(caught.value.why)
    assert caught.value.remedy == "did you mean 'Q4_K_M'?"
    with pytest.raises(ModelNotFound, match="no GGUF model in u/r"):
        choose_variant("u/r", (), None, _up_to(1), "GPU")


def test_two_files_of_one_quantization() -> None:
    """Nothing is guessed between them."""
    files = [RepoFile("a-Q8_0.gguf", 1), RepoFile("b-Q8_0.gguf", 2)]
    with pytest.raises(ModelNotFound, match="several files") as caught:
        choose_variant("u/r", list_variants(files), "Q8_0", _up_to(0), "GPU")
    assert caught.value.why == "b-Q8_0.gguf, a-Q8_0.gguf"


def test_projector() -> None:
    """At 16 bits, from the folder of the model or one above it."""
    variants = {variant.label: variant for variant in list_variants(_FILES)}
    assert choose_mmproj(_FILES, variants["UD-Q6_K_XL"]) == RepoFile("mmproj-F16.gguf", _GIB // 2)
    beside = RepoFile("Q4_0/mmproj-q8_0.gguf", 1)
    assert choose_mmproj([*_FILES, beside], variants["Q4_0"]) == beside
    assert choose_mmproj([*_FILES, beside], variants["Q2_K"]) != beside
    assert choose_mmproj(_files(Q8_0=1), variants["Q8_0"]) is None


@pytest.mark.parametrize(
    ("path", "sha256"),
    [
        ("../m.gguf", None),
        ("/etc/m.gguf", None),
        ("a/../../m.gguf", None),
        ("a//m.gguf", None),
        ("./m.gguf", None),
        ("", None),
        ("a\0.gguf", None),
        ("m.gguf", "../" * 20 + "abcd"),
        ("m.gguf", "A" * 64),
    ],
)
def test_paths_that_a_server_must_not_send(path: str, sha256: str | None) -> None:
    """Neither path nor hash can lead out of the cache."""
    assert not RepoFile(path, 1, sha256).is_safe
    assert RepoFile("a/b-c.gguf", 1, "0" * 64).is_safe
