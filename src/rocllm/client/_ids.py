"""The token ids that a stream leaves out. No I/O. What is exact and what is not: docs/token_ids.md.

llama-server sends nothing for a token that ends inside a UTF-8 character. The next event that it
does send tells the last token's id, the text of all of them, and how many there were
(`process_token`, tools/server/server-context.cpp, b11434). With the bytes of every token of the
vocabulary the ids between follow, when exactly one sequence of tokens gives that text.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

# A character has at most 4 bytes, so a run is short. One that is longer is a model gone astray.
MAX_RUN = 64


class Vocabulary:
    """The bytes of every token of a model.

    pieces: the bytes of token 0, 1, 2 and so on.

    >>> Vocabulary([b"a", b"\\xf0\\x9f", b"\\xa6", b"\\x99"]).recover([None, None, 3], ["🦙"])
    [1, 2, 3]
    """

    __slots__ = ("_bytes", "_ends", "_longest", "_partial")

    def __init__(self, pieces: Iterable[bytes]) -> None:
        # One block of bytes and one of offsets: 3 MB instead of 20 for 262,144 tokens.
        joined = bytearray()
        self._ends = array("Q")
        self._partial: dict[bytes, list[int]] = {}
        for token, piece in enumerate(pieces):
            joined += piece
            self._ends.append(len(joined))
            if not _is_utf8(piece):
                self._partial.setdefault(piece, []).append(token)
        self._bytes = bytes(joined)
        self._longest = max(map(len, self._partial), default=0)

    def __len__(self) -> int:
        return len(self._ends)

    def piece(self, token: int) -> bytes:
        """The bytes of a token; none for an id that is not in the vocabulary."""
        if not 0 <= token < len(self._ends):
            return b""
        return self._bytes[self._ends[token - 1] if token else 0 : self._ends[token]]

    def text(self, tokens: Iterable[int]) -> str:
        """The whole characters of a sequence of tokens."""
        return b"".join(map(self.piece, tokens)).decode(errors="ignore")

    def recover(self, run: Sequence[int | None], texts: Sequence[str]) -> list[int] | None:
        """Fill in the unknown ids (`None`) of a run of tokens that gave one of `texts`.

        Returns `None` when no sequence of tokens fits or more than one does. Every unknown token
        ends inside a character, for the server would have sent the others.
        """
        found = [path for text in texts for path in self._paths(run, text)]
        return found[0] if len(found) == 1 else None

    def _paths(self, run: Sequence[int | None], text: str) -> list[list[int] | None]:
        """The only way to make `text` of the run; none; or `None` for more than one."""
        data = text.encode()
        if "\N{REPLACEMENT CHARACTER}" in text:  # stands for bytes that nobody knows any more
            return [None]
        if len(run) > MAX_RUN or len(data) > MAX_RUN * 4:
            return [None]
        # Position in `data` -> the tokens that lead there, `None` when there are several ways.
        paths: dict[int, list[int] | None] = {0: []}
        for token in run:
            following: dict[int, list[int] | None] = {}
            for start, path in paths.items():
                for candidate, end in self._steps(data, start, token):
                    only = path is not None and end not in following
                    following[end] = [*path, candidate] if path is not None and only else None
            paths = following
        return [paths[len(data)]] if len(data) in paths else []

    def _steps(self, data: bytes, start: int, token: int | None) -> Iterable[tuple[int, int]]:
        if token is not None:
            piece = self.piece(token)
            return [(token, start + len(piece))] if data.startswith(piece, start) else []
        ends = range(start + 1, min(start + self._longest, len(data) - 1) + 1)
        return [
            (candidate, end)
            for end in ends
            if data[end] & 0xC0 == 0x80  # a continuation byte follows
            for candidate in self._partial.get(data[start:end], ())
        ]


def _is_utf8(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True
