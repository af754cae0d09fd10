"""Descriptions of tiny models that llama.cpp loads, to be written with `write_gguf`."""

from __future__ import annotations

from rocllm.testing.gguf_writer import Tensor, Typed, Value

# Token types of llama.cpp (enum llama_token_type in include/llama.h, b11434).
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6


def tiny_vocabulary(n_words: int = 26) -> dict[str, Value]:
    """Keys of a tokenizer that can say everything: 3 special tokens, 256 bytes and some letters."""
    words = [chr(ord("a") + number % 26) * (1 + number // 26) for number in range(n_words)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    types = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256, *[_NORMAL] * n_words]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(rank) for rank in range(len(tokens))],
        "tokenizer.ggml.token_type": Typed("int32", types),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


def tiny_llama(
    *,
    n_layers: int = 2,
    n_embd: int = 64,
    n_head: int = 4,
    n_head_kv: int = 2,
    n_ff: int = 128,
    n_ctx: int = 512,
    weight_type: str = "F32",
) -> tuple[dict[str, Value], list[Tensor]]:
    """Metadata and tensors of a model of the llama architecture with tied embeddings.

    >>> metadata, tensors = tiny_llama()
    >>> write_gguf("tiny.gguf", metadata, tensors, data="random")  # doctest: +SKIP
    PosixPath('tiny.gguf')
    """
    vocabulary = tiny_vocabulary()
    metadata: dict[str, Value] = {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "tiny",
        "llama.block_count": n_layers,
        "llama.context_length": n_ctx,
        "llama.embedding_length": n_embd,
        "llama.feed_forward_length": n_ff,
        "llama.attention.head_count": n_head,
        "llama.attention.head_count_kv": n_head_kv,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.dimension_count": n_embd // n_head,
        **vocabulary,
    }
    n_vocab = len(vocabulary["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
    n_kv = n_embd // n_head * n_head_kv
    tensors = [
        Tensor("token_embd.weight", (n_embd, n_vocab), weight_type),
        Tensor("output_norm.weight", (n_embd,)),
    ]
    for layer in range(n_layers):
        shapes = {
            "attn_norm": (n_embd,),
            "attn_q": (n_embd, n_embd),
            "attn_k": (n_embd, n_kv),
            "attn_v": (n_embd, n_kv),
            "attn_output": (n_embd, n_embd),
            "ffn_norm": (n_embd,),
            "ffn_gate": (n_embd, n_ff),
            "ffn_up": (n_embd, n_ff),
            "ffn_down": (n_ff, n_embd),
        }
        tensors += [
            Tensor(f"blk.{layer}.{name}.weight", shape, "F32" if len(shape) == 1 else weight_type)
            for name, shape in shapes.items()
        ]
    return metadata, tensors
