"""Where model files are: finding them, calling them by name, and fetching them."""

from rocllm.catalog.beside import resolve_companions
from rocllm.catalog.demo import DEMO, pull_demo
from rocllm.catalog.discover import DiscoveredModel, discover_models
from rocllm.catalog.hub import HUB_PREFIX, pull_hub
from rocllm.catalog.info import read_info
from rocllm.catalog.packaged import PackagedModel, Progress, Stage, pull_packaged
from rocllm.catalog.resolve import list_models, resolve_model
from rocllm.catalog.sources import Source
from rocllm.catalog.url import pull_url
from rocllm.catalog.variants import Fit

__all__ = [
    "DEMO",
    "HUB_PREFIX",
    "DiscoveredModel",
    "Fit",
    "PackagedModel",
    "Progress",
    "Source",
    "Stage",
    "discover_models",
    "list_models",
    "pull_demo",
    "pull_hub",
    "pull_packaged",
    "pull_url",
    "read_info",
    "resolve_companions",
    "resolve_model",
]
