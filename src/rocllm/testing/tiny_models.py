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


def tiny_mmproj(
    projector_type: str = "gemma3",
    *,
    image_size: int = 112,
    patch_size: int = 14,
    n_embd: int = 64,
    n_head: int = 4,
    n_ff: int = 256,
    n_layers: int = 2,
    n_merge: int = 4,
    n_embd_text: int = 64,
) -> tuple[dict[str, Value], list[Tensor]]:
    """Metadata and tensors of a projector for images, for a model of the width `n_embd_text`.

    projector_type: `gemma3` or `idefics3` (tools/mtmd/clip.cpp of llama.cpp b11434).

    >>> metadata, tensors = tiny_mmproj()
    >>> write_gguf("mmproj-tiny.gguf", metadata, tensors, data="random")  # doctest: +SKIP
    PosixPath('mmproj-tiny.gguf')
    """
    metadata: dict[str, Value] = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": projector_type,
        "clip.use_gelu": True,
        "clip.vision.image_size": image_size,
        "clip.vision.patch_size": patch_size,
        "clip.vision.embedding_length": n_embd,
        "clip.vision.feed_forward_length": n_ff,
        "clip.vision.block_count": n_layers,
        "clip.vision.projection_dim": n_embd_text,
        "clip.vision.projector.scale_factor": n_merge,
        "clip.vision.attention.head_count": n_head,
        "clip.vision.attention.layer_norm_epsilon": 1e-6,
        "clip.vision.image_mean": [0.5, 0.5, 0.5],
        "clip.vision.image_std": [0.5, 0.5, 0.5],
    }
    tensors = [
        Tensor("v.patch_embd.weight", (patch_size, patch_size, 3, n_embd), "F16"),
        Tensor("v.patch_embd.bias", (n_embd,)),
        Tensor("v.position_embd.weight", (n_embd, (image_size // patch_size) ** 2)),
        Tensor("v.post_ln.weight", (n_embd,)),
        Tensor("v.post_ln.bias", (n_embd,)),
    ]
    matrices = {
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_out"), (n_embd, n_embd)),
        "ffn_up": (n_embd, n_ff),
        "ffn_down": (n_ff, n_embd),
    }
    for layer in range(n_layers):
        for name, shape in matrices.items():
            tensors.append(Tensor(f"v.blk.{layer}.{name}.weight", shape, "F16"))
            tensors.append(Tensor(f"v.blk.{layer}.{name}.bias", shape[1:]))
        for name in ("ln1", "ln2"):
            tensors.append(Tensor(f"v.blk.{layer}.{name}.weight", (n_embd,)))
            tensors.append(Tensor(f"v.blk.{layer}.{name}.bias", (n_embd,)))
    if projector_type == "gemma3":
        tensors.append(Tensor("mm.input_projection.weight", (n_embd_text, n_embd), "F16"))
        tensors.append(Tensor("mm.soft_emb_norm.weight", (n_embd,)))
    else:
        tensors.append(
            Tensor("mm.model.fc.weight", (n_embd * n_merge * n_merge, n_embd_text), "F16")
        )
    return metadata, tensors
