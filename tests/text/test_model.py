"""What `TextModel` checks before a backend hears of it."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import fields

import pytest

from rocllm.errors import OptionsError
from rocllm.options import LoadArguments, LoadOptions, SamplingArguments, SamplingOptions
from rocllm.results import Message
from rocllm.text._prompts import checked_messages, checked_prompt


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_is_refused(prompt: str | Sequence[int]) -> None:
    """There is nothing to continue."""
    with pytest.raises(OptionsError, match="prompt is empty"):
        checked_prompt(prompt)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "conversation is empty"),
        (Message("user", "hi"), "put it into a list"),
        ("hi", "rocllm.Message"),
        ([{"role": "user", "content": "hi"}], "rocllm.Message"),
    ],
)
def test_what_is_no_conversation_is_refused(messages: object, words: str) -> None:
    """The message says what to write instead."""
    with pytest.raises(OptionsError, match=words):
        checked_messages(typing.cast("Sequence[Message]", messages))


def test_a_conversation_passes() -> None:
    """What is right comes back as it is."""
    messages = [Message("system", "Be brief."), Message("user", "Hi")]
    assert checked_messages(messages) is messages
    assert checked_prompt("Hi") == "Hi"


@pytest.mark.parametrize(
    ("options", "arguments"),
    [(LoadOptions, LoadArguments), (SamplingOptions, SamplingArguments)],
)
def test_keyword_arguments_are_the_fields(options: type, arguments: type) -> None:
    """The names and types that a type checker knows are those of the options."""
    declared = {field.name: field.type for field in fields(options)}
    assert {name: hint.__forward_arg__ for name, hint in arguments.__annotations__.items()} == (
        declared
    )
