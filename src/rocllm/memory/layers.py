"""What each layer of a model holds and keeps. Pure.

The rules are those of llama.cpp b11434: src/llama-hparams.cpp and src/models/*.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass

from rocllm.gguf import ModelInfo
from rocllm.memory.weights import Weights, weights_of

# Period of the layers that see all tokens, for files that do not give the pattern themselves
# (`load_swa_pattern` in src/models/*.cpp). True: the first layer of a period is the one, else the
# last. An architecture that is not listed is taken to see all tokens in every layer, which is safe.
_WINDOW_PERIODS = {
    "afmoe": (4, False),
    "cohere2": (4, False),
    "cohere2moe": (4, True),
    "exaone-moe": (4, False),
    "exaone4": (4, False),
    "gemma-embedding": (6, False),
    "gemma2": (2, False),
    "gemma3": (6, False),
    "gemma3n": (5, False),
    "gpt-oss": (2, False),
    "laguna": (4, True),
    "llama4": (4, False),
    "mellum": (4, False),
    "modern-bert": (3, True),
    "muse-glimmer": (4, False),
    "olmo2": (4, False),
    "plamo3": (8, False),
    "smallthinker": (4, True),
}
# Windows that llama.cpp takes where the file has none.
_DEFAULT_WINDOWS = {"gemma2": 4096, "smallthinker": 4096, "llama4": 8192}
_GEMMA3N_OWN_KV_LAYERS = 20

# Layers of these keep a state and no cache.
_ALL_RECURRENT = frozenset({"arwkv7", "mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7"})
# Of these every n-th layer is attention, and the others gated delta nets (or linear attention).
DELTA_NETS = frozenset({"qwen35", "qwen35moe", "qwen3next"})
_EVERY_NTH_ATTENTION = DELTA_NETS | {"minimax-01"}
# In these every layer is both.
_BOTH = frozenset({"falcon-h1"})


@dataclass(frozen=True, slots=True)
class Layer:
    """What a layer keeps.

    key_width, value_width: elements cached for a token; 0: nothing. windowed: only the last tokens
    count. recurrent: it has a state for every sequence.
    """

    key_width: int
    value_width: int
    windowed: bool
    recurrent: bool


@dataclass(frozen=True, slots=True)
class Shape:
    """A model as its memory depends on it.

    layers: those that llama.cpp runs, which leaves out the ones for predicting several tokens.
    window: tokens that a windowed layer sees. state_size: bytes that a recurrent layer keeps for
    one sequence. weights: bytes of them.
    """

    info: ModelInfo
    layers: tuple[Layer, ...]
    window: int
    state_size: int
    weights: Weights

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary; if the file does not say, the rows of the embedding."""
        if self.info.vocab_size is not None:
            return self.info.vocab_size
        tensors = self.info.tensors
        return next((t.shape[-1] for t in tensors if t.name == "token_embd.weight"), 0)


def shape_of(model: ModelInfo) -> Shape:
    """What planning needs to know of a model, worked out once."""
    return Shape(model, _layers(model), _window(model), _state_size(model), weights_of(model))


def _layers(model: ModelInfo) -> tuple[Layer, ...]:
    count = model.block_count - model.nextn_predict_layers
    windowed = _windowed(model)
    recurrent = _recurrent(model)
    own_cache = _with_own_cache(model, count)
    # With latent attention (MLA) the values are part of the keys.
    latent = bool(model.key_length_mla and model.value_length_mla)
    layers = []
    for index in range(count):
        heads = model.head_count_kv[index] if index < own_cache else 0
        if recurrent[index] and model.architecture not in _BOTH:
            heads = 0
        window = windowed[index]
        key = model.key_length_swa if window else model.key_length
        value = model.value_length_swa if window else model.value_length
        layers.append(Layer(heads * key, 0 if latent else heads * value, window, recurrent[index]))
    return tuple(layers)


def _window(model: ModelInfo) -> int:
    return model.sliding_window or _DEFAULT_WINDOWS.get(model.architecture, 0)


def _state_size(model: ModelInfo) -> int:
    """`n_embd_r` and `n_embd_s` of src/llama-hparams.cpp, as float32."""

    def key(name: str) -> int:
        value = model.hyperparameter(name)
        return value if isinstance(value, int) else 0

    n_embd = model.embedding_length
    kernel = model.ssm_conv_kernel
    heads = max(model.head_count, default=0)
    state = model.ssm_state_size * model.ssm_inner_size
    if key("wkv.head_size"):
        shift = (key("token_shift_count") or 2) * n_embd
        state = n_embd * key("wkv.head_size")
    elif key("shortconv.l_cache"):
        shift = n_embd * (key("shortconv.l_cache") - 1)
    elif key("kda.head_dim"):
        shift = 3 * (kernel - 1 if kernel else 3) * heads * key("kda.head_dim")
        state = heads * key("kda.head_dim") ** 2
    else:
        width = model.ssm_inner_size + 2 * model.ssm_group_count * model.ssm_state_size
        shift = max(kernel - 1, 0) * width
    if model.architecture == "minimax-01":
        state = heads * model.key_length**2
    return 4 * (shift + state)


def _windowed(model: ModelInfo) -> tuple[bool, ...]:
    count = model.block_count
    pattern = model.sliding_window_pattern
    if not _window(model):
        return (False,) * count
    if isinstance(pattern, tuple):
        return pattern
    if model.architecture not in _WINDOW_PERIODS:
        return (False,) * count
    period, full_first = _WINDOW_PERIODS[model.architecture]
    period = period if pattern is None else pattern
    if period == 0:
        return (True,) * count
    full = 0 if full_first else period - 1
    return tuple(index % period != full for index in range(count))


def _recurrent(model: ModelInfo) -> tuple[bool, ...]:
    count = model.block_count
    listed = model.hyperparameter("attention.recurrent_layers")
    if model.architecture in _ALL_RECURRENT | _BOTH:
        return (True,) * count
    if isinstance(listed, tuple) and len(listed) >= count:
        return tuple(bool(flag) for flag in listed[:count])
    if model.architecture in _EVERY_NTH_ATTENTION:
        interval = model.hyperparameter("full_attention_interval")
        period = interval if isinstance(interval, int) and interval > 0 else 4
        return tuple((index + 1) % period != 0 for index in range(count))
    # The other hybrids (jamba, lfm2, granitehybrid, …) mark such layers by having no heads. In
    # nemotron-h a layer without heads may as well be a feed-forward one.
    has_state = _state_size(model) > 0
    return tuple(
        has_state
        and heads == 0
        and not (model.architecture.startswith("nemotron_h") and feed_forward > 0)
        for heads, feed_forward in zip(model.head_count_kv, model.feed_forward_length, strict=True)
    )


def _with_own_cache(model: ModelInfo, count: int) -> int:
    """The layers before this one have a cache; the others use one of theirs."""
    if model.architecture == "gemma3n":
        return _GEMMA3N_OWN_KV_LAYERS
    return model.block_count - model.shared_kv_layers if model.shared_kv_layers else count
