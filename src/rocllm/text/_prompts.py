"""What can be a prompt, and what is wrong with one that cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from rocllm.errors import OptionsError, RocllmError, ServerError, StreamClosed
from rocllm.results import Message, Prompt


def is_conversation(prompt: Prompt) -> TypeGuard[Sequence[Message]]:
    """It goes through the model's chat template; the others are continued as they are."""
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Message)


def checked_prompt(prompt: str | Sequence[int]) -> str | Sequence[int]:
    """`prompt`, unless there is nothing in it or it is something else."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, (bytes, bytearray)):
        raise OptionsError(
            f"a prompt is a text, token ids or messages; got {prompt!r:.80}",
            remedy="give one of them; decode bytes first",
        )
    if len(prompt) == 0:
        raise OptionsError(
            "the prompt is empty",
            why="a model continues a text, and there is none",
            remedy="give at least one character, or use chat()",
        )
    return prompt


def checked_messages(messages: Sequence[Message]) -> Sequence[Message]:
    """`messages`, unless there are none or they are something else."""
    if isinstance(messages, Message):
        raise OptionsError(
            "chat() takes a list of messages, got a single Message",
            remedy="put it into a list: chat([message])",
        )
    wrong = next((message for message in messages if not isinstance(message, Message)), None)
    if wrong is not None:
        raise OptionsError(
            f"chat() takes a list of rocllm.Message, got {wrong!r}",
            remedy="write rocllm.Message('user', 'Hello!')",
        )
    if not messages:
        raise OptionsError("the conversation is empty", remedy="give at least one message")
    return messages


def concerns_all(error: RocllmError) -> bool:
    """It is not about one prompt: the model was closed, or its server will not be started again."""
    return isinstance(error, StreamClosed) or (
        isinstance(error, ServerError) and not error.retryable
    )
