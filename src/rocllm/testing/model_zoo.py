"""Real models by name, and small ones of the same architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from rocllm.testing import architectures
from rocllm.testing.model_shapes import Dimensions, Mix, ModelShape, f16, q4_k_m
from rocllm.testing.tiny_models import tiny_vocabulary

# Each takes the way its matrices are stored. The numbers are those of the models' config.json.
REAL_MODELS: Mapping[str, Callable[[Mix], ModelShape]] = {
    "Llama-3.1-8B": lambda mix: architectures.llama(
        "Llama-3.1-8B",
        Dimensions(
            block_count=32,
            embedding_length=4096,
            feed_forward_length=14336,
            head_count=32,
            head_count_kv=8,
            vocab_size=128256,
            context_length=131072,
            mix=mix,
        ),
    ),
    "Qwen2.5-7B": lambda mix: architectures.qwen2(
        "Qwen2.5-7B",
        Dimensions(
            block_count=28,
            embedding_length=3584,
            feed_forward_length=18944,
            head_count=28,
            head_count_kv=4,
            vocab_size=152064,
            context_length=32768,
            mix=mix,
        ),
    ),
    "Qwen3-0.6B": lambda mix: architectures.qwen3(
        "Qwen3-0.6B",
        Dimensions(
            block_count=28,
            embedding_length=1024,
            feed_forward_length=3072,
            head_count=16,
            head_count_kv=8,
            head_dim=128,
            vocab_size=151936,
            context_length=40960,
            tied=True,
            mix=mix,
        ),
    ),
    "Qwen3-8B": lambda mix: architectures.qwen3(
        "Qwen3-8B",
        Dimensions(
            block_count=36,
            embedding_length=4096,
            feed_forward_length=12288,
            head_count=32,
            head_count_kv=8,
            head_dim=128,
            vocab_size=151936,
            context_length=40960,
            mix=mix,
        ),
    ),
    "Gemma-3-4B": lambda mix: _gemma3("Gemma-3-4B", 34, 2560, 10240, 8, 4, 256, mix),
    "Gemma-3-12B": lambda mix: _gemma3("Gemma-3-12B", 48, 3840, 15360, 16, 8, 256, mix),
    "Gemma-3-27B": lambda mix: _gemma3("Gemma-3-27B", 62, 5376, 21504, 32, 16, 128, mix),
    "Qwen3-30B-A3B": lambda mix: architectures.qwen3moe(
        "Qwen3-30B-A3B",
        Dimensions(
            block_count=48,
            embedding_length=2048,
            feed_forward_length=6144,
            head_count=32,
            head_count_kv=4,
            head_dim=128,
            vocab_size=151936,
            context_length=40960,
            mix=mix,
        ),
        experts=128,
        used=8,
        width=768,
    ),
    "gpt-oss-20b": lambda mix: architectures.gpt_oss(
        "gpt-oss-20b",
        Dimensions(
            block_count=24,
            embedding_length=2880,
            feed_forward_length=2880,
            head_count=64,
            head_count_kv=8,
            head_dim=64,
            vocab_size=201088,
            context_length=131072,
            mix=mix,
        ),
        experts=32,
        used=4,
        window=128,
    ),
    "DeepSeek-V2-Lite": lambda mix: architectures.deepseek2(
        "DeepSeek-V2-Lite",
        Dimensions(
            block_count=27,
            embedding_length=2048,
            feed_forward_length=10944,
            head_count=16,
            head_count_kv=16,
            vocab_size=102400,
            context_length=163840,
            mix=mix,
        ),
        lora=512,
        rope=64,
        key=192,
        value=128,
        experts=64,
        used=6,
        width=1408,
    ),
    "Mamba2-2.7B": lambda mix: architectures.mamba2(
        "Mamba2-2.7B",
        Dimensions(
            block_count=64,
            embedding_length=2560,
            feed_forward_length=0,
            head_count=0,
            head_count_kv=0,
            vocab_size=50288,
            context_length=1048576,
            tied=True,
            mix=mix,
        ),
        inner=5120,
        state=128,
    ),
    "LFM2-1.2B": lambda mix: architectures.lfm2(
        "LFM2-1.2B",
        Dimensions(
            block_count=16,
            embedding_length=2048,
            feed_forward_length=8192,
            head_count=32,
            head_count_kv=8,
            head_dim=64,
            vocab_size=65536,
            context_length=128000,
            tied=True,
            mix=mix,
        ),
        attention_layers=(2, 5, 8, 10, 12, 14),
    ),
    "Qwen3-Next-80B-A3B": lambda mix: architectures.qwen3next(
        "Qwen3-Next-80B-A3B",
        Dimensions(
            block_count=48,
            embedding_length=2048,
            feed_forward_length=5120,
            head_count=16,
            head_count_kv=2,
            head_dim=256,
            vocab_size=151936,
            context_length=262144,
            mix=mix,
        ),
        experts=512,
        used=10,
        width=512,
        state=128,
        key_heads=16,
        value_heads=32,
    ),
}

_SMALL = Dimensions(
    block_count=8,
    embedding_length=512,
    feed_forward_length=1536,
    head_count=8,
    head_count_kv=2,
    head_dim=64,
    vocab_size=512,
    context_length=32768,
    tied=True,
    mix=f16,
)


def real_model(name: str, mix: Mix = q4_k_m) -> ModelShape:
    """The shape of a real model, with its matrices stored as `mix` says.

    >>> real_model("Qwen3-8B").architecture
    'qwen3'
    """
    return REAL_MODELS[name](mix)


def small_models() -> dict[str, ModelShape]:
    """A model of each of ten architectures, with a vocabulary, of 10 to 60 MiB, by architecture.

    Written with random weights, llama-server loads them and they answer nonsense.
    """
    small = _SMALL
    models = (
        architectures.llama("small-llama", small),
        architectures.qwen2("small-qwen2", replace(small, head_dim=0)),
        architectures.qwen3("small-qwen3", replace(small, head_count=4, head_dim=128)),
        architectures.gemma3(
            "small-gemma3", replace(small, head_count=4, head_count_kv=1, head_dim=128), window=512
        ),
        architectures.qwen3moe("small-qwen3moe", small, experts=16, used=4, width=256),
        architectures.gpt_oss(
            "small-gpt-oss",
            replace(small, tied=False, feed_forward_length=256),
            experts=8,
            used=4,
            window=128,
        ),
        architectures.deepseek2(
            # llama.cpp tells a model without query compression by its 27 layers.
            "small-deepseek2",
            replace(small, block_count=27, embedding_length=256, feed_forward_length=768),
            lora=128,
            rope=32,
            key=96,
            value=64,
            experts=8,
            used=3,
            width=128,
        ),
        architectures.mamba2("small-mamba2", small, inner=1024, state=128),
        architectures.lfm2("small-lfm2", small, attention_layers=(2, 5)),
        architectures.qwen3next(
            "small-qwen3next",
            replace(small, head_count=4, head_dim=128),
            experts=8,
            used=4,
            width=128,
            state=64,
            key_heads=4,
            value_heads=8,
        ),
    )
    return {model.architecture: _with_vocabulary(model) for model in models}


def _with_vocabulary(model: ModelShape) -> ModelShape:
    # Three special tokens and 256 bytes come before the words.
    return replace(model, metadata={**model.metadata, **tiny_vocabulary(_SMALL.vocab_size - 259)})


def _gemma3(
    name: str, layers: int, n_embd: int, n_ff: int, heads: int, heads_kv: int, head: int, mix: Mix
) -> ModelShape:
    dimensions = Dimensions(
        block_count=layers,
        embedding_length=n_embd,
        feed_forward_length=n_ff,
        head_count=heads,
        head_count_kv=heads_kv,
        head_dim=head,
        vocab_size=262144,
        context_length=131072,
        tied=True,
        mix=mix,
    )
    return architectures.gemma3(name, dimensions, window=1024)
