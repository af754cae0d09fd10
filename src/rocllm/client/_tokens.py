"""The tokens of one stream: missing ids filled in, stop tokens seen. No I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from rocllm.client._ids import Vocabulary
from rocllm.options import SamplingOptions
from rocllm.results import Token

# What the server's chat parser may have cut from the beginning of the thinking or of the answer.
_TRIMMED = ("", " ", "\n", "\n\n", "\t")


class TokenAssembler:
    """Takes what the events of a stream tell, hands out one `Token` for each that was generated.

    ready: tokens to hand out. count: tokens that the server has told of. stopped: a stop token was
    generated; nothing after it counts. vocabulary: `None` while unknown, or when there is none;
    vocabulary_wanted: nobody has looked for it yet.
    """

    __slots__ = (
        "_held",
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
        # The server withholds text that may begin a stop string. Its tokens are held until then.
        self._withholds = bool(sampling.stop)
        self._held: list[Token] = []
        # Whether the next text may be without the white space that it began with, by `reasoning`.
        self._trims = {False: chat, True: chat}

    @property
    def plain(self) -> bool:
        """The next token can be handed out as it is, if it has text and no other precedes it."""
        return not self._held and not self._stop_tokens

    @property
    def lacks_text(self) -> bool:
        """Tokens are held whose text only the vocabulary can tell."""
        return self.vocabulary_wanted and bool(self._held)

    def add(self, token: Token, missing: int = 0) -> bool:
        """Take the next token, before which `missing` others were generated and not told.

        Returns `False`, and takes nothing, when the vocabulary is needed first.
        """
        held = self._held
        if self.vocabulary_wanted and (missing or (held and token.id in self._stop_tokens)):
            return False
        self.count += missing + 1
        held += [Token(None, "", None, token.reasoning)] * missing
        held.append(token)
        if token.text:
            if len(held) > 1 and self.vocabulary is not None:
                self._fill_in(self.vocabulary, token)
            self._trims[token.reasoning] = False
        elif len(held) > 1 or self._withholds:
            return True
        self._hand_out()
        return True

    def end(self, count: int, *, cut_off: bool) -> None:
        """No token follows; `count` were generated in all.

        cut_off: `max_tokens` or the context was reached; then the server never sends the text that
        it withheld. Tokens that never came have no id: the last ones, cut off inside a character.
        """
        if cut_off and self._held:
            last = self._held[-1]
            self._held[-1] = Token(last.id, self._text(self._held), last.logprob, last.reasoning)
        self._hand_out()
        if not self.stopped:
            self.ready.extend([Token(None, "")] * (count - self.count))

    def _fill_in(self, vocabulary: Vocabulary, last: Token) -> None:
        run = [token.id for token in self._held]
        if None not in run:
            return
        cuts = _TRIMMED if self._trims[last.reasoning] else ("",)
        found = vocabulary.recover(run, [cut + last.text for cut in cuts])
        if found is not None:
            self._held[:] = [
                Token(number, token.text, token.logprob, token.reasoning)
                for number, token in zip(found, self._held, strict=True)
            ]

    def _hand_out(self) -> None:
        held, self._held = self._held, []
        for index, token in enumerate(held):
            if token.id in self._stop_tokens:
                # What was withheld before it still belongs to the text.
                text = self._text(held[:index])
                self.ready.append(Token(token.id, text, token.logprob, token.reasoning))
                self.stopped = True
                self.count -= len(held) - index - 1
                return
            self.ready.append(token)

    def _text(self, tokens: Iterable[Token]) -> str:
        ids = [token.id for token in tokens if token.id is not None]
        return "" if self.vocabulary is None else self.vocabulary.text(ids)
