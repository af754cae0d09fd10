"""What a model says about itself, whatever its format."""

from __future__ import annotations

from pathlib import Path

from rocllm.gguf import ModelInfo, read_model_info
from rocllm.safetensors import find_directory, read_safetensors_info


def read_info(path: Path) -> ModelInfo:
    """What a GGUF file, or a model in safetensors format, says about itself.

    Raises `InvalidGGUF` and what else `read_model_info` and `read_safetensors_info` raise.

    >>> read_info(Path("/models/Qwen3-4B")).quantization  # doctest: +SKIP
    'BF16'
    """
    directory = find_directory(path)
    return read_model_info(path) if directory is None else read_safetensors_info(directory)
