"""Server-sent events, decoded while their bytes arrive. No I/O.

The grammar is that of the WHATWG HTML standard, section 9.2.6; of an event only the data is kept,
for a llama-server sends nothing else. Lines end with CR, LF or CRLF and with nothing else: U+2028
and U+0085, at which `str.splitlines` splits too, are text.
"""

from __future__ import annotations

from rocllm.errors import ProtocolError

# A token's event has 100 to 700 bytes. The bound is for a server that never ends one.
MAX_EVENT = 8 * 1024 * 1024


class EventDecoder:
    """Bytes of an event stream in, the data of its events out.

    >>> EventDecoder().feed(b'data: {"a": 1}\\n\\n: ping\\n\\ndata: [DO')
    ['{"a": 1}']
    """

    __slots__ = ("_after_cr", "_buffer")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._after_cr = False

    def feed(self, data: bytes) -> list[str]:
        """The data of the events that `data` completes; an event without data is left out.

        Raises `ProtocolError` for an event longer than `MAX_EVENT` and for text that is not UTF-8.
        """
        if self._after_cr or b"\r" in data:
            data = self._with_line_feeds(data)
        buffer = self._buffer
        if buffer:
            # The blank line that ends an event may lie across the seam.
            seam = len(buffer) - 1
            buffer += data
            end = buffer.rfind(b"\n\n", seam) + 2
            data = bytes(buffer[:end]) if end >= 2 else b""
            del buffer[: len(data)]
        elif not data.endswith(b"\n\n"):
            end = data.rfind(b"\n\n") + 2
            end = end if end >= 2 else 0
            buffer += data[end:]
            data = data[:end]
        if len(buffer) > MAX_EVENT:
            raise ProtocolError(f"the server sends an event of more than {MAX_EVENT} bytes")
        return _events(data) if data else []

    def _with_line_feeds(self, data: bytes) -> bytes:
        if not data:
            return data
        after_cr, self._after_cr = self._after_cr, data.endswith(b"\r")
        if after_cr:
            data = data.removeprefix(b"\n")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _events(data: bytes) -> list[str]:
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        raise ProtocolError(
            "the server sends an event that is not UTF-8", why=f"{data[exc.start :][:40]!r}"
        ) from exc
    found = []
    for event in text[:-2].split("\n\n"):
        # The one shape that a llama-server sends, once a token: "data: {...}".
        if event.startswith("data: ") and "\n" not in event:
            found.append(event[6:])
        elif event:
            value = _data(event)
            if value is not None:
                found.append(value)
    return found


def _data(event: str) -> str | None:
    values = []
    for line in event.split("\n"):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            values.append(value)
        elif field == "error":
            # llama-server before July 2025 reported an error as a field of this name.
            values.append('{"error":' + value + "}")
    return "\n".join(values) if values else None
