"""`python -m rocllm.server.worker FD FLAGS`: the process that holds the model.

FLAGS are llama-server's. FD is a socket that was inherited; over it come connections, each of them
a socket of its own, so each stream has its own flow and its own end. When it ends, so does this.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence

from rocllm.server.embedded import load_or_exit
from rocllm.server.engine import Engine


def main(arguments: Sequence[str]) -> None:
    """Load the model and serve until nobody can ask any more."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    descriptor, *flags = arguments
    engine = Engine(
        load_or_exit(flags),
        flags[flags.index("--host") + 1],
        int(flags[flags.index("--parallel") + 1]),
    )
    with socket.socket(fileno=int(descriptor)) as control:
        while True:
            told, received, _, _ = socket.recv_fds(control, 1, 1)
            for number in received:
                connection = socket.socket(fileno=number)
                try:
                    threading.Thread(target=engine.serve, args=(connection,), daemon=True).start()
                except RuntimeError:  # no more threads: who asked sees the end of the connection
                    connection.close()
            if not told:
                # Without the destructors: threads are in the model, and the kernel frees it all.
                os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
