"""`rocllm show --template`, and templates of real models through the real server."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rocllm
from rocllm.cli import app
from rocllm.errors import RequestError
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
TEMPLATES = Path(__file__).parent / "templates"


def write_model(path: Path, template: str | None = None, bos: str = "<s>") -> Path:
    """A small model with random weights, and a template."""
    metadata, tensors = tiny_llama()
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    metadata["tokenizer.ggml.tokens"] = [tokens[0], bos, *tokens[2:]]
    if template is not None:
        metadata["tokenizer.chat_template"] = template
    return write_gguf(path, metadata, tensors, data="random")


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


def test_commands_say_what_is_used_instead(tmp_path: Path) -> None:
    """`run` continues the prompt, `chat` uses ChatML; a system message is not dropped silently."""
    path = str(write_model(tmp_path / "plain.gguf"))
    few = ("--max-tokens", "1", "--device", "cpu", "--threads", "1")
    said = CliRunner().invoke(app, ["run", path, "a", *few])
    assert "no chat template: the prompt is continued as it stands" in said.stderr
    chat = CliRunner().invoke(app, ["chat", path, *few], input="/exit\n")
    assert "no chat template: llama-server uses ChatML" in chat.stderr
    for more, why in (((), "no chat template"), (("--raw",), "both given")):
        done = CliRunner().invoke(app, ["run", path, "a", "--system", "s", *few, *more])
        assert done.exit_code == 2
        assert why in done.stderr
    with_one = write_model(tmp_path / "chatml.gguf", "{{ messages[0].content }}")
    done = CliRunner().invoke(app, ["run", str(with_one), "a", *few])
    assert (done.exit_code, "template" in done.stderr) == (0, False)


def test_a_template_that_cannot_be_read(tmp_path: Path) -> None:
    """The server gives up, and the cause is named; the template is shown all the same."""
    path = write_model(tmp_path / "broken.gguf", "{% for one in %}")
    done = CliRunner().invoke(app, ["show", str(path), "--template"])
    assert "{% for one in %}" in done.stdout
    assert "cannot read the chat template in the file" in done.stderr


# Written by hand after the families' descriptions of their formats. Gemma has no system role: the
# text goes before that of the first user (ai.google.dev/gemma/docs/core/prompt-structure). Qwen's
# is ChatML (qwen.readthedocs.io). Llama's has headers, a blank line and an end-of-turn mark, and a
# system message with dates (llama.com/docs/model-cards-and-prompt-formats/llama3_1). The first
# token (`<bos>`, `<|begin_of_text|>`) is not shown: the server adds it to the tokens.
GEMMA = (
    "<start_of_turn>user\nBe brief.\n\nHello!<end_of_turn>\n"
    "<start_of_turn>model\nHi!<end_of_turn>\n"
    "<start_of_turn>user\nExplain gravity.<end_of_turn>\n"
    "<start_of_turn>model\n"
)
LLAMA = (
    "<|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: {today}\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHello!<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHi!<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nExplain gravity.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


@pytest.mark.parametrize(
    ("family", "bos", "expected"),
    [
        ("gemma3", "<bos>", GEMMA),
        ("qwen3", "<|endoftext|>", CHATML),
        ("llama3", "<|begin_of_text|>", LLAMA),
    ],
)
def test_the_templates_of_the_main_families(
    tmp_path: Path, family: str, bos: str, expected: str
) -> None:
    """The server makes of them what their makers describe."""
    template = (TEMPLATES / f"{family}.jinja").read_text()
    path = write_model(tmp_path / "model.gguf", template, bos)
    before = time.strftime("%d %b %Y")
    with rocllm.load_model(path, device="cpu", threads=1) as model:
        rendered = model.apply_template(TALK)
    dates = (before, time.strftime("%d %b %Y"))  # midnight may have passed
    assert rendered in [expected.format(today=today) for today in dates]


def test_a_templates_own_refusal(tmp_path: Path) -> None:
    """Gemma's wants user and model to take turns: that is said, and nothing else is sent."""
    template = (TEMPLATES / "gemma3.jinja").read_text()
    path = write_model(tmp_path / "model.gguf", template, "<bos>")
    twice = [rocllm.Message("user", "Hello!"), rocllm.Message("user", "Hello?")]
    with (
        rocllm.load_model(path, device="cpu", threads=1) as model,
        pytest.raises(RequestError, match="roles must alternate"),
    ):
        model.apply_template(twice)


def test_the_demo_models_template(demo_model: Path) -> None:
    """ChatML, as SmolLM2 was trained with."""
    with rocllm.load_model(demo_model, ctx_size=256) as model:
        assert model.apply_template(TALK) == CHATML
