"""The `vllm` backend: models in safetensors format, in a vLLM server."""

from rocllm.backends.vllm.backend import VllmBackend

__all__ = ["VllmBackend"]
