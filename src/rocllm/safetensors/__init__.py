"""What a model in safetensors format says about itself, without its weights."""

from rocllm.safetensors.directory import find_directory, find_weights, is_safetensors_model
from rocllm.safetensors.header import SafetensorsFile, StoredTensor, read_safetensors
from rocllm.safetensors.model_info import read_safetensors_info

__all__ = [
    "SafetensorsFile",
    "StoredTensor",
    "find_directory",
    "find_weights",
    "is_safetensors_model",
    "read_safetensors",
    "read_safetensors_info",
]
