"""The tokens of one stream: missing ids filled in, stop tokens seen. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from rocllm.client._ids import Vocabulary
from rocllm.options import SamplingOptions
from rocllm.results import Token

# What the server's chat parser may have cut from the beginning of the thinking or of the answer.
_TRIMMED = ("", " ", "\n", "\n\n", "\t")


class TokenAssembler:
    """Takes what the events of a stream tell, hands out one `Token` for each that was generated.

    ready: tokens to hand out. count: tokens that the server has told of. stopped: a stop token was
    generated; nothing after it counts. vocabulary: `None` while unknown, see `add`.
    """

    __slots__ = (
        "_held",
        "_run",
        "_stop_tokens",
        "_trims",
        "_withholds",
        "count",
        "ready",
        "stopped",
        "vocabulary",
        "vocabulary_wanted",
    )

    def __init__(self, sampling: SamplingOptions, *, chat: bool) -> None:
        self.ready: deque[Token] = deque()
        self.count = 0
        self.stopped = False
        self.vocabulary: Vocabulary | None = None
        self.vocabulary_wanted = True
        self._stop_tokens = frozenset(sampling.stop_tokens)
        # Text that may begin a stop string is withheld: then ids come first, their text later.
        self._withholds = bool(sampling.stop)
        # Whether the next text may be without the white space that it began with, by `reasoning`.
        self._trims = {False: chat, True: chat}
        # Ids since the last text; the last tokens of the run are held until it has text.
        self._run: list[int | None] = []
        self._held: list[Token] = []

    @property
    def plain(self) -> bool:
        """The next token is handed out as it is told, if it has text and no other precedes it."""
        return not self._run and not self._stop_tokens

    def add(self, token: Token, missing: int = 0) -> bool:
        """Take the next token, before which `missing` others were generated and not told.

        Returns `False`, and takes nothing, when the vocabulary is needed first: then set
        `vocabulary`, or leave it `None` when there is none, and clear `vocabulary_wanted`.
        """
        run, held = self._run, self._held
        if self.vocabulary_wanted and (missing or (run and token.id in self._stop_tokens)):
            return False
        self.count += missing + 1
        run += [None] * missing
        run.append(token.id)
        held += [Token(None, "", None, token.reasoning)] * missing
        held.append(token)
        if not token.text and len(held) > 1:
            return True
        if len(held) > 1 and self.vocabulary is not None:
            self._fill_in(self.vocabulary, token)
        self._hand_out()
        if token.text:
            self._trims[token.reasoning] = False
        if token.text or not self._withholds:
            run.clear()
        return True

    def end(self, count: int) -> None:
        """No token follows; `count` were generated in all.

        Those that never came, as the last ones may be cut off inside a character, have no id.
        """
        self._hand_out()
        if not self.stopped:
            self.ready.extend([Token(None, "")] * (count - self.count))

    def _fill_in(self, vocabulary: Vocabulary, last: Token) -> None:
        cuts = _TRIMMED if self._trims[last.reasoning] else ("",)
        found = vocabulary.recover(self._run, [cut + last.text for cut in cuts])
        if found is not None:
            self._run[:] = found
            ids = found[-len(self._held) :]
            self._held[:] = [
                Token(number, token.text, token.logprob, token.reasoning)
                for number, token in zip(ids, self._held, strict=True)
            ]

    def _hand_out(self) -> None:
        held = self._held
        for index, token in enumerate(held):
            if token.id in self._stop_tokens:
                # What was withheld before it still belongs to the text.
                before = self._run[: len(self._run) - len(held) + index]
                text = self._text(before)
                self.ready.append(Token(token.id, text, token.logprob, token.reasoning))
                self.stopped = True
                break
            self.ready.append(token)
        held.clear()

    def _text(self, tokens: Sequence[int | None]) -> str:
        known = [token for token in tokens if token is not None]
        return "" if self.vocabulary is None else self.vocabulary.text(known)
