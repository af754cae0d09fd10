"""A folder as people have them: thirty files, sound and broken ones."""

from __future__ import annotations

from pathlib import Path

from rocllm.catalog import discover_models
from rocllm.testing.gguf_writer import Value, write_gguf
from rocllm.testing.tiny_models import tiny_vocabulary

# The vocabulary files of llama.cpp b11434 (models/ggml-vocab-*.gguf): architecture, context length,
# and whether there is a chat template.
VOCABULARIES = {
    "aquila": ("llama", 2048, False),
    "baichuan": ("baichuan", 4096, False),
    "bert-bge": ("bert", 512, False),
    "command-r": ("command-r", 131072, True),
    "deepseek-coder": ("llama", 16384, False),
    "deepseek-llm": ("llama", 4096, False),
    "falcon": ("falcon", 2048, False),
    "gemma-4": ("gemma4", 262144, True),
    "gpt-2": ("gpt2", 1024, False),
    "gpt-neox": ("gptneox", 2048, False),
    "llama-bpe": ("llama", 8192, False),
    "llama-spm": ("llama", 4096, False),
    "mpt": ("mpt", 2048, False),
    "nomic-bert-moe": ("nomic-bert-moe", 512, False),
    "phi-3": ("phi3", 4096, True),
    "qwen2": ("qwen2", 32768, True),
    "qwen35": ("qwen2", 32768, True),
    "refact": ("refact", 4096, False),
    "starcoder": ("starcoder2", 16384, False),
}


def _write_vocabulary(path: Path, architecture: str, context: int, template: bool) -> None:
    keys = {"block_count": 2, "context_length": context, "embedding_length": 64}
    metadata: dict[str, Value] = {f"{architecture}.{key}": n for key, n in keys.items()}
    metadata |= {"general.architecture": architecture, **tiny_vocabulary(2000)}
    if template:
        metadata["tokenizer.chat_template"] = "{{ messages }}"
    write_gguf(path, metadata)


def test_a_folder_with_thirty_files(tmp_path: Path, environ: dict[str, str]) -> None:
    """Sound ones say what they are, broken ones what is wrong, and none is missing."""
    for name, facts in VOCABULARIES.items():
        _write_vocabulary(tmp_path / f"ggml-vocab-{name}.gguf", *facts)
    whole = (tmp_path / "ggml-vocab-qwen2.gguf").read_bytes()
    broken = {
        "cut-in-the-head": (whole[:20], "at byte"),
        "cut-in-the-vocabulary": (whole[: len(whole) // 2], "belong to it"),
        "empty": (b"", "it is empty"),
        "old": (whole[:4] + b"\1" + whole[5:], "no longer reads that version"),
        "new": (whole[:4] + b"\7" + whole[5:], "rocllm knows versions"),
        "page": (b"<html>not found</html>", "a web page"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        "archive": (b"PK\3\4" + bytes(99), "zip"),
        "noise": (bytes(range(1, 200)), "does not know"),
        "promises": (whole[:8] + b"\xff" * 16 + whole[24:], "tensors"),
        "new\nline": (b"no model", "a text"),
    }
    for name, (content, _) in broken.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
    for _ in range(2):  # the second time out of the index
        models = {one.name: one for one in discover_models(environ, [tmp_path])}
        assert len(models) == 30
        for name, facts in VOCABULARIES.items():
            model = models[f"ggml-vocab-{name}"]
            assert (model.architecture, model.context_length, model.chat_template) == facts
            assert model.problem == "it holds a vocabulary and no weights"
        for name, (_, words) in broken.items():
            assert words in str(models[name].problem), name
