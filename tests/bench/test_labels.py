"""What tells the subjects of a report apart."""

from __future__ import annotations

from tests.bench.made import MACHINE, subject

from rocllm.bench import label_subjects

ENGINE = "native llama-server b11434-90e6a91"


def test_one_is_named_by_its_model() -> None:
    """Everything else is common to all one of them."""
    labels = label_subjects([subject(cache_type="q8_0")])
    assert labels.each == ("gemma-3-4b-it-Q4_K_M",)
    assert labels.common == (ENGINE, MACHINE.gpus[0], "cache q8_0")


def test_only_what_differs() -> None:
    """Engines of two names have their builds beside them."""
    other = subject(engine="vulkan", engine_version="native llama-server b11999")
    labels = label_subjects([subject(), other])
    assert labels.each == ("native b11434-90e6a91", "vulkan b11999")
    assert labels.common == ("gemma-3-4b-it-Q4_K_M", MACHINE.gpus[0])


def test_an_engine_with_more_than_a_build_at_its_end() -> None:
    """Its version is what stands beside its name."""
    other = subject(engine="vllm", engine_version="vLLM 0.32.0 (cpu)")
    assert label_subjects([subject(), other]).each == ("native b11434-90e6a91", "vllm 0.32.0")


def test_two_differences() -> None:
    """They stand side by side, and an option that only one has is left away for the other."""
    subjects = [subject(name="a", flash_attn="on"), subject(name="b", flash_attn="off")]
    assert label_subjects(subjects).each == ("a, flash attention on", "b, flash attention off")


def test_what_could_not_be_loaded() -> None:
    """An engine that told nothing of itself and used no device does not differ in them."""
    failed = subject(cache_type="q8_0", engine_version=None, devices=())
    labels = label_subjects([subject(cache_type="f16"), failed])
    assert labels.each == ("cache f16", "cache q8_0")
    assert labels.common == ("gemma-3-4b-it-Q4_K_M", ENGINE, MACHINE.gpus[0])


def test_nothing() -> None:
    """A report without subjects has no labels."""
    assert label_subjects([]).each == ()
