"""llama.cpp's server code without HTTP, in a worker process of ours or in the calling process."""

from rocllm.backends.inprocess.backend import InProcessBackend

__all__ = ["InProcessBackend"]
