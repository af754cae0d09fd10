"""Where a server listens: a UNIX socket, or a TCP address."""

from __future__ import annotations

import os
from dataclasses import dataclass

from rocllm.errors import OptionsError

# sizeof(sockaddr_un.sun_path) is 108 on Linux, one byte is the terminating NUL (unix(7)).
MAX_SOCKET_PATH = 107


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server listens and the key it wants.

    Either `socket_path` (a UNIX socket) or `host` and `port` (TCP) is given.

    >>> str(Endpoint.tcp("127.0.0.1", 8080))
    'http://127.0.0.1:8080'
    >>> str(Endpoint.unix("/run/user/1000/rocllm-x/s.sock"))
    'unix:///run/user/1000/rocllm-x/s.sock'
    """

    socket_path: str | None = None
    host: str | None = None
    port: int | None = None
    api_key: str | None = None

    @classmethod
    def unix(cls, socket_path: str | os.PathLike[str], api_key: str | None = None) -> Endpoint:
        """A UNIX socket. Raises `OptionsError` if the path is longer than Linux allows."""
        path = os.fspath(socket_path)
        length = len(os.fsencode(path))
        if length > MAX_SOCKET_PATH:
            raise OptionsError(
                f"the socket path has {length} bytes: {path!r}",
                why=f"Linux allows {MAX_SOCKET_PATH} bytes in the path of a UNIX socket",
                remedy="set XDG_RUNTIME_DIR or TMPDIR to a shorter path, or use host='127.0.0.1'",
            )
        return cls(socket_path=path, api_key=api_key)

    @classmethod
    def tcp(cls, host: str, port: int, api_key: str | None = None) -> Endpoint:
        """A TCP address."""
        return cls(host=host, port=port, api_key=api_key)

    def __str__(self) -> str:
        if self.socket_path is not None:
            return f"unix://{self.socket_path}"
        host = f"[{self.host}]" if self.host and ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def __repr__(self) -> str:
        # The key is a secret: it does not belong into logs and tracebacks.
        return f"<Endpoint {self}>"
