"""What a model file says about itself: GGUF's metadata and tensor infos, without the weights."""

from rocllm.gguf.metadata import ModelInfo, model_info, read_model_info
from rocllm.gguf.reader import read_gguf
from rocllm.gguf.split import read_splits, split_paths
from rocllm.gguf.types import ArrayInfo, GGUFFile, MetadataValue, Split, TensorInfo

__all__ = [
    "ArrayInfo",
    "GGUFFile",
    "MetadataValue",
    "ModelInfo",
    "Split",
    "TensorInfo",
    "model_info",
    "read_gguf",
    "read_model_info",
    "read_splits",
    "split_paths",
]
