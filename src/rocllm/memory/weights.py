"""Where the weights go. Pure.

Source: `load_tensors` in src/llama-model.cpp of llama.cpp b11434.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rocllm.gguf import ModelInfo, TensorInfo
from rocllm.memory.settings import Settings

HOST = None
_LAYER = re.compile(r"blk\.(\d+)\.")
_TOKEN_EMBEDDING = "token_embd.weight"
# What is looked up, row by row, stays in host memory (LLM_TENSOR_LAYER_INPUT in llama-arch.cpp).
_LOOKED_UP = ("token_embd.", "per_layer_token_embd.", "position_embd.", "token_types.")


@dataclass(frozen=True, slots=True)
class Weights:
    """Bytes of weights.

    layers: of each layer. looked_up: token embeddings, always in host memory. output: of the last
    step. tied: what of `looked_up` is the output matrix too, and is stored again on the GPU that
    has the output. largest: of the largest tensor of a layer.
    """

    layers: tuple[int, ...]
    looked_up: int
    output: int
    tied: int
    largest: int

    def scaled(self, ratio: float) -> Weights:
        """The weights of the same model in a file that is larger by `ratio`."""
        return Weights(
            tuple(round(size * ratio) for size in self.layers),
            round(self.looked_up * ratio),
            round(self.output * ratio),
            round(self.tied * ratio),
            round(self.largest * ratio),
        )


def weights_of(model: ModelInfo) -> Weights:
    """The weights of `model`, from its tensor infos."""
    count = model.block_count - model.nextn_predict_layers
    layers = [0] * count
    looked_up = output = tied = largest = 0
    has_output = False
    for tensor in model.tensors:
        size = _size(tensor)
        match = _LAYER.match(tensor.name)
        if match:
            index = int(match[1])
            if index < count:  # the layers for predicting several tokens are not loaded
                layers[index] += size
                largest = max(largest, size)
        elif tensor.name.startswith(_LOOKED_UP):
            looked_up += size
            tied = size if tensor.name == _TOKEN_EMBEDDING else tied
        else:
            output += size
            has_output = has_output or tensor.name == "output.weight"
    return Weights(tuple(layers), looked_up, output, 0 if has_output else tied, largest)


def placement(model: ModelInfo, settings: Settings, n_gpus: int) -> tuple[int | None, ...]:
    """On which GPU each layer is, and at the end the output; `None`: in host memory."""
    total = model.block_count + 1
    on_gpu = total if settings.n_gpu_layers < 0 else min(settings.n_gpu_layers, total)
    if n_gpus == 0:
        on_gpu = 0
    where: list[int | None] = [HOST] * (total - on_gpu)
    split = settings.split if n_gpus > 1 else (on_gpu,)
    for gpu, count in enumerate(split):
        where += [gpu] * count
    layers = model.block_count - model.nextn_predict_layers
    return (*where[:layers], where[-1])


def _size(tensor: TensorInfo) -> int:
    # Of a type that rocllm does not know a byte an element is assumed.
    return tensor.n_elements if tensor.n_bytes is None else tensor.n_bytes
