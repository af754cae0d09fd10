"""Labels as a tree of tokens, and the probability of each. No I/O.

The probabilities are those with which the model, free to say nothing but one of the labels, says
each. Where several labels go on from the tokens so far, the model's probabilities of the tokens
that lead on are scaled to add up to 1; a label's probability is the product along its way. Tokens
that no label shares decide nothing, so labels that begin with different tokens need one pass, and
a long label is not the less likely for being long.

A label may be the beginning of another ("no", "no way"). It ends there unless the model goes on as
the other one does: its share is what the tokens of the others leave of the whole vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from rocllm.errors import OptionsError
from rocllm.results import NextToken

# Labels that together are less probable share this evenly; no pass is spent on them.
_NEGLIGIBLE = 1e-6
# Text before a label when it is cut into tokens, as some tokenizers put a space before a text.
_BEFORE = "\n"

T = TypeVar("T")
# A question to a connection: for asyncio it gives an awaitable.
Ask: TypeAlias = Callable[[Any], Any]
# Asks, and gets the answers sent.
Steps: TypeAlias = Generator[Ask, Any, T]
# Asks for the tokens that may follow: (tokens after the prompt, candidates).
AskNext: TypeAlias = Callable[[tuple[int, ...], Sequence[int]], Ask]


@dataclass(slots=True)
class Node:
    """What may follow the tokens that lead here. label: the one that ends here."""

    label: str | None = None
    children: dict[int, Node] = field(default_factory=dict)

    def labels(self) -> Iterator[str]:
        """Every label that ends here or further on."""
        if self.label is not None:
            yield self.label
        for child in self.children.values():
            yield from child.labels()


def checked_labels(labels: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """The text of each label by its name. Raises `OptionsError` for what cannot be told apart."""
    if isinstance(labels, (str, bytes)):
        raise OptionsError(
            f"labels must be a list of texts, got {labels!r}", remedy="write labels=['a', 'b']"
        )
    pairs = [*labels.items()] if isinstance(labels, Mapping) else [(text, text) for text in labels]
    for column in zip(*pairs, strict=True):
        for place, text in enumerate(column):
            if not isinstance(text, str):
                raise OptionsError(f"a label must be a text, got {text!r}")
            if text in column[:place]:
                raise OptionsError(f"the label {text!r} is given twice", remedy="give it once")
    if len(pairs) < 2:
        raise OptionsError(
            f"the only label is {pairs[0][0]!r}" if pairs else "there are no labels",
            why="the probabilities of labels tell which of several it is",
            remedy="give at least two labels, or none (labels=None) for the next token",
        )
    return dict(pairs)


def read_labels(texts: Mapping[str, str]) -> Steps[Node]:
    """Cut labels into the tokens that they are after other text."""
    before: list[int] = yield lambda connection: connection.tokenize(_BEFORE)
    tokens: dict[str, list[int]] = {}
    for name, text in texts.items():
        after: list[int] = yield _tokenize(_BEFORE + text)
        if after[: len(before)] == before:
            tokens[name] = after[len(before) :]
        else:  # it grew together with what stands before
            tokens[name] = yield _tokenize(text)
    return grow(tokens)


def _tokenize(text: str) -> Ask:
    return lambda connection: connection.tokenize(text)


def grow(tokens: Mapping[str, Sequence[int]]) -> Node:
    """The tree of labels, given as tokens. Raises `OptionsError` for labels that are the same."""
    root = Node()
    for name, path in tokens.items():
        if not path:
            raise OptionsError(
                f"the label {name!r} has no token",
                why="the model's tokenizer makes nothing of its text",
                remedy="give a label that has a text",
            )
        node = root
        for token in path:
            node = node.children.setdefault(token, Node())
        if node.label is not None:
            raise OptionsError(
                f"the labels {node.label!r} and {name!r} are the same to the model",
                why=f"its tokenizer makes the tokens {list(path)} of both",
                remedy="leave one of them away",
            )
        node.label = name
    return root


def score(root: Node, ask: AskNext) -> Steps[dict[str, float]]:
    """The probability of every label of the tree."""
    probabilities: dict[str, float] = {}
    todo: list[tuple[Node, tuple[int, ...], float]] = [(root, (), 1.0)]
    while todo:
        node, path, mass = todo.pop()
        while node.label is None and len(node.children) == 1:
            ((token, node),) = node.children.items()
            path += (token,)
        names = list(node.labels())
        if len(names) == 1 or mass < _NEGLIGIBLE:
            probabilities |= dict.fromkeys(names, mass / len(names))
            continue
        shares = yield from _shares(node, path, ask)
        if node.label is not None:
            probabilities[node.label] = mass * max(0.0, 1.0 - math.fsum(shares.values()))
        for token, child in node.children.items():
            todo.append((child, (*path, token), mass * shares.get(token, 0.0)))
    return probabilities


def _shares(node: Node, path: tuple[int, ...], ask: AskNext) -> Steps[dict[int, float]]:
    """The probabilities of the tokens that lead on, by id."""
    if node.label is None:
        told: NextToken = yield ask(path, list(node.children))
        return {token: math.exp(logprob) for token, logprob in by_id(told).items()}
    # Among the whole vocabulary: the likeliest token, of which that is known, is the measure.
    anchor: NextToken = yield ask(path, ())
    measured = yield from measure(ask, path, list(node.children), anchor)
    return {token: math.exp(measured[token]) for token in node.children if token in measured}


def measure(
    ask: AskNext, path: tuple[int, ...], tokens: Sequence[int], anchor: NextToken
) -> Steps[dict[int, float]]:
    """The log probabilities of `tokens` among the whole vocabulary, by id.

    The server tells them for the likeliest tokens, and for any tokens among themselves. With the
    likeliest token, whose is known from `anchor`, added to the others the two are put together.
    """
    known = anchor.top[0]
    assert known.id is not None
    assert known.logprob is not None
    among = list(tokens) if known.id in tokens else [*tokens, known.id]
    told: NextToken = yield ask(path, among)
    relative = by_id(told)
    base = known.logprob - relative[known.id]
    return {token: logprob + base for token, logprob in relative.items()}


def by_id(told: NextToken) -> dict[int, float]:
    """Log probabilities by token id."""
    return {
        token.id: token.logprob
        for token in told.top
        if token.id is not None and token.logprob is not None
    }
