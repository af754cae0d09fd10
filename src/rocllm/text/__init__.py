"""A loaded model that generates text: what most users import."""

from rocllm.text.load import load_model, load_model_async
from rocllm.text.model import AsyncTextModel, TextModel

__all__ = ["AsyncTextModel", "TextModel", "load_model", "load_model_async"]
