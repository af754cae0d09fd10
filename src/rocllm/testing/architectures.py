"""How the tensors of ten architectures of llama.cpp are named and shaped.

Source: the `load_arch_tensors` functions of src/models/*.cpp, b11434.
"""

from __future__ import annotations

from rocllm.testing.model_shapes import Builder, Dimensions, ModelShape


def llama(name: str, dimensions: Dimensions) -> ModelShape:
    """Llama 2 and 3, Mistral, SmolLM: the plain transformer."""
    model = Builder("llama", dimensions)
    model.embeddings()
    for layer in range(dimensions.block_count):
        model.attention(layer)
        model.feed_forward(layer)
    model.keys(rope__dimension_count=dimensions.head_length)
    return model.model(name)


def qwen2(name: str, dimensions: Dimensions) -> ModelShape:
    """Qwen 2 and 2.5: biases on queries, keys and values."""
    model = Builder("qwen2", dimensions)
    model.embeddings()
    for layer in range(dimensions.block_count):
        model.attention(layer)
        widths = (dimensions.query_width, dimensions.key_width, dimensions.key_width)
        for part, width in zip("qkv", widths, strict=True):
            model.vector(f"attn_{part}", width, layer=layer, suffix=".bias")
        model.feed_forward(layer)
    return model.model(name)


def qwen3(name: str, dimensions: Dimensions) -> ModelShape:
    """Qwen 3, dense."""
    model = Builder("qwen3", dimensions)
    model.embeddings()
    for layer in range(dimensions.block_count):
        model.attention(layer)
        model.head_norms(layer)
        model.feed_forward(layer)
    return model.model(name)


def gemma3(name: str, dimensions: Dimensions, *, window: int) -> ModelShape:
    """Gemma 3: five layers of six see a window only."""
    model = Builder("gemma3", dimensions)
    model.embeddings()
    for layer in range(dimensions.block_count):
        model.attention(layer)
        model.head_norms(layer)
        model.vector("post_attention_norm", dimensions.embedding_length, layer=layer)
        model.feed_forward(layer)
        model.vector("post_ffw_norm", dimensions.embedding_length, layer=layer)
    model.keys(attention__sliding_window=window)
    return model.model(name)


def qwen3moe(
    name: str, dimensions: Dimensions, *, experts: int, used: int, width: int
) -> ModelShape:
    """Qwen 3 with experts."""
    model = Builder("qwen3moe", dimensions)
    model.embeddings()
    for layer in range(dimensions.block_count):
        model.attention(layer)
        model.head_norms(layer)
        model.vector("ffn_norm", dimensions.embedding_length, layer=layer)
        model.experts(layer, experts, width)
    model.keys(expert_count=experts, expert_used_count=used, expert_feed_forward_length=width)
    return model.model(name)


def gpt_oss(
    name: str, dimensions: Dimensions, *, experts: int, used: int, window: int
) -> ModelShape:
    """gpt-oss: experts in MXFP4 with biases, attention sinks, every other layer a window."""
    model = Builder("gpt-oss", dimensions)
    n_embd, width = dimensions.embedding_length, dimensions.feed_forward_length
    model.embeddings()
    for layer in range(dimensions.block_count):
        model.attention(layer)
        widths = (dimensions.query_width, dimensions.key_width, dimensions.key_width, n_embd)
        for part, size in zip(("q", "k", "v", "output"), widths, strict=True):
            model.vector(f"attn_{part}", size, layer=layer, suffix=".bias")
        model.vector("attn_sinks", dimensions.head_count, layer=layer)
        model.vector("post_attention_norm", n_embd, layer=layer)
        model.experts(layer, experts, width)
        model.vector("ffn_gate_inp", experts, layer=layer, suffix=".bias")
        for part, size in (("gate", width), ("up", width), ("down", n_embd)):
            model.vector(f"ffn_{part}_exps", size, experts, layer=layer, suffix=".bias")
    model.keys(
        attention__sliding_window=window,
        expert_count=experts,
        expert_used_count=used,
        expert_feed_forward_length=width,
        rope__dimension_count=dimensions.head_length,
    )
    return model.model(name)


def deepseek2(
    name: str,
    dimensions: Dimensions,
    *,
    lora: int,
    rope: int,
    key: int,
    value: int,
    experts: int,
    used: int,
    width: int,
    dense: int = 1,
) -> ModelShape:
    """DeepSeek 2: multi-head latent attention (MLA); the first layers dense, the others experts.

    lora: rank of the latent; rope: elements with position; key, value: of a head, unfolded.
    """
    model = Builder("deepseek2", dimensions)
    n_embd, heads = dimensions.embedding_length, dimensions.head_count
    model.embeddings()
    for layer in range(dimensions.block_count):
        model.vector("attn_norm", n_embd, layer=layer)
        model.vector("attn_kv_a_norm", lora, layer=layer)
        model.matrix("attn_q", n_embd, heads * key, layer=layer)
        model.matrix("attn_kv_a_mqa", n_embd, lora + rope, layer=layer)
        model.matrix("attn_k_b", key - rope, lora, heads, layer=layer)
        model.matrix("attn_v_b", lora, value, heads, layer=layer)
        model.matrix("attn_output", heads * value, n_embd, layer=layer)
        if layer < dense:
            model.feed_forward(layer)
        else:
            model.vector("ffn_norm", n_embd, layer=layer)
            model.experts(layer, experts, width, shared=2 * width)
    model.keys(
        attention__kv_lora_rank=lora,
        attention__key_length=lora + rope,
        attention__value_length=lora,
        attention__key_length_mla=key,
        attention__value_length_mla=value,
        rope__dimension_count=rope,
        leading_dense_block_count=dense,
        expert_count=experts,
        expert_used_count=used,
        expert_shared_count=2,
        expert_feed_forward_length=width,
    )
    return model.model(name, head_count_kv=1)


def mamba2(name: str, dimensions: Dimensions, *, inner: int, state: int) -> ModelShape:
    """Mamba 2: no attention at all, a state of constant size."""
    model = Builder("mamba2", dimensions)
    n_embd, kernel, rank = dimensions.embedding_length, 4, inner // 64
    width = inner + 2 * state
    model.embeddings()
    for layer in range(dimensions.block_count):
        model.vector("attn_norm", n_embd, layer=layer)
        model.matrix("ssm_in", n_embd, inner + width + rank, layer=layer)
        model.vector("ssm_conv1d", kernel, width, layer=layer)
        model.vector("ssm_conv1d", width, layer=layer, suffix=".bias")
        model.vector("ssm_dt", rank, layer=layer, suffix=".bias")
        model.vector("ssm_a", 1, rank, layer=layer, suffix="")
        model.vector("ssm_d", 1, rank, layer=layer, suffix="")
        model.vector("ssm_norm", inner, 1, layer=layer)
        model.matrix("ssm_out", inner, n_embd, layer=layer)
    model.keys(
        ssm__conv_kernel=kernel,
        ssm__inner_size=inner,
        ssm__state_size=state,
        ssm__time_step_rank=rank,
        ssm__group_count=1,
    )
    return model.model(name)


def lfm2(name: str, dimensions: Dimensions, *, attention_layers: tuple[int, ...]) -> ModelShape:
    """LFM 2: short convolutions, and attention in some layers."""
    model = Builder("lfm2", dimensions)
    n_embd, cache = dimensions.embedding_length, 3
    model.embeddings(norm="token_embd_norm")
    for layer in range(dimensions.block_count):
        if layer in attention_layers:
            model.attention(layer)
            model.head_norms(layer)
        else:
            model.vector("attn_norm", n_embd, layer=layer)
            model.vector("shortconv.conv", cache, n_embd, layer=layer)
            model.matrix("shortconv.in_proj", n_embd, 3 * n_embd, layer=layer)
            model.matrix("shortconv.out_proj", n_embd, n_embd, layer=layer)
        model.feed_forward(layer)
    model.keys(shortconv__l_cache=cache)
    heads = [
        dimensions.head_count_kv if layer in attention_layers else 0
        for layer in range(dimensions.block_count)
    ]
    return model.model(name, head_count_kv=heads)


def qwen3next(
    name: str,
    dimensions: Dimensions,
    *,
    experts: int,
    used: int,
    width: int,
    state: int,
    key_heads: int,
    value_heads: int,
) -> ModelShape:
    """Qwen 3 Next: three of four layers are gated delta nets with a state, all have experts."""
    model = Builder("qwen3next", dimensions)
    n_embd, kernel = dimensions.embedding_length, 4
    keys, values = state * key_heads, state * value_heads
    model.embeddings()
    for layer in range(dimensions.block_count):
        if (layer + 1) % 4 == 0:
            model.attention(layer, query_width=2 * dimensions.query_width)
            model.head_norms(layer)
        else:
            model.vector("attn_norm", n_embd, layer=layer)
            model.matrix("attn_qkv", n_embd, 2 * keys + values, layer=layer)
            model.matrix("attn_gate", n_embd, values, layer=layer)
            model.vector("ssm_conv1d", kernel, 2 * keys + values, layer=layer)
            model.vector("ssm_dt", value_heads, layer=layer, suffix=".bias")
            model.vector("ssm_a", value_heads, layer=layer, suffix="")
            model.matrix("ssm_ba", n_embd, 2 * value_heads, layer=layer)
            model.vector("ssm_norm", state, layer=layer)
            model.matrix("ssm_out", values, n_embd, layer=layer)
        model.vector("post_attention_norm", n_embd, layer=layer)
        model.experts(layer, experts, width, shared=width)
        model.vector("ffn_gate_inp_shexp", n_embd, layer=layer)
    model.keys(
        expert_count=experts,
        expert_used_count=used,
        expert_feed_forward_length=width,
        expert_shared_feed_forward_length=width,
        ssm__conv_kernel=kernel,
        ssm__inner_size=values,
        ssm__state_size=state,
        ssm__time_step_rank=value_heads,
        ssm__group_count=key_heads,
        rope__dimension_count=dimensions.head_length // 4,
    )
    return model.model(name)
