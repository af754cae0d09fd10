"""`rocllm show --template`, and templates through the real server."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import rocllm
from rocllm.cli import app
from rocllm.testing.gguf_writer import write_gguf
from rocllm.testing.tiny_models import tiny_llama

TALK = [
    rocllm.Message("system", "Be brief."),
    rocllm.Message("user", "Hello!"),
    rocllm.Message("assistant", "Hi!"),
    rocllm.Message("user", "Explain gravity."),
]
CHATML = (
    "<|im_start|>system\nBe brief.<|im_end|>\n"
    "<|im_start|>user\nHello!<|im_end|>\n"
    "<|im_start|>assistant\nHi!<|im_end|>\n"
    "<|im_start|>user\nExplain gravity.<|im_end|>\n"
    "<|im_start|>assistant\n"
)
# In the manner of Gemma 3: no system role, the model is called "model", turns are trimmed.
TURNS = (
    "{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
# In the manner of Llama 3: headers, a blank line, an end-of-turn mark.
HEADERS = (
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{ message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)


def write_model(path: Path, **more: str) -> Path:
    """A small model with random weights, and `more` metadata (`__` for a dot)."""
    metadata, tensors = tiny_llama()
    extra = {key.replace("__", "."): value for key, value in more.items()}
    return write_gguf(path, {**metadata, **extra}, tensors, data="random")


def show(*arguments: str) -> str:
    """What `rocllm show` prints."""
    done = CliRunner().invoke(app, ["show", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_templates_own_words_and_what_comes_of_it(demo_model: Path) -> None:
    """The template of the file, then a conversation that the server put through it."""
    shown = show("demo", "--template")
    assert "{% for message in messages %}" in shown
    assert "<|im_start|>user\nExplain gravity.<|im_end|>\n<|im_start|>assistant" in shown


def test_a_model_without_a_template(tmp_path: Path, demo_model: Path) -> None:
    """It is said, and what is used instead."""
    path = write_model(tmp_path / "plain.gguf")
    shown = show(str(path), "--template")
    assert "no chat template" in shown
    assert "ChatML" in shown
    assert "<|im_start|>user\nHello!<|im_end|>" in shown


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (
            TURNS,
            (
                "<start_of_turn>system\nBe brief.<end_of_turn>\n"
                "<start_of_turn>user\nHello!<end_of_turn>\n"
                "<start_of_turn>model\nHi!<end_of_turn>\n"
                "<start_of_turn>user\nExplain gravity.<end_of_turn>\n"
                "<start_of_turn>model\n"
            ),
        ),
        (
            HEADERS,
            (
                "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\nHello!<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\nHi!<|eot_id|>"
                "<|start_header_id|>user<|end_header_id|>\n\nExplain gravity.<|eot_id|>"
                "<|start_header_id|>assistant<|end_header_id|>\n\n"
            ),
        ),
    ],
)
def test_the_models_own_template_is_used(
    tmp_path: Path, demo_model: Path, template: str, expected: str
) -> None:
    """The server renders what the file says, in the manner of the main families."""
    path = write_model(tmp_path / "model.gguf", tokenizer__chat_template=template)
    with rocllm.load_model(path) as model:
        assert model.apply_template(TALK) == expected


def test_the_demo_models_template(demo_model: Path) -> None:
    """ChatML, as SmolLM2 was trained with."""
    with rocllm.load_model(demo_model, ctx_size=256) as model:
        assert model.apply_template(TALK) == CHATML
