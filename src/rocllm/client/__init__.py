"""Talk to a running llama-server, whoever started it: for blocking callers and for asyncio."""

from rocllm.client._base import Explain, Keeper
from rocllm.client._wire import Health
from rocllm.client.async_ import AsyncClient, AsyncTokenStream
from rocllm.client.channel import Channel
from rocllm.client.sync import Client, TokenStream

__all__ = [
    "AsyncClient",
    "AsyncTokenStream",
    "Channel",
    "Client",
    "Explain",
    "Health",
    "Keeper",
    "TokenStream",
]
