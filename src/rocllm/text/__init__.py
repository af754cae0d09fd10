"""A loaded model that generates text: what most users import."""

from rocllm.text._labels import checked_labels
from rocllm.text.async_batch import AsyncBatch
from rocllm.text.batch import Batch
from rocllm.text.load import load_model, load_model_async
from rocllm.text.model import AsyncTextModel, TextModel

__all__ = [
    "AsyncBatch",
    "AsyncTextModel",
    "Batch",
    "TextModel",
    "checked_labels",
    "load_model",
    "load_model_async",
]
