"""The probability of labels, next to the definition, for a model that is a table of numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from rocllm.errors import OptionsError
from rocllm.results import NextToken, Token, Usage
from rocllm.text._labels import Ask, Node, Steps, T, checked_labels, grow, read_labels, score

VOCABULARY = range(12)


class Toy:
    """A model with any probabilities, always the same after the same tokens."""

    def __init__(self) -> None:
        self.passes = 0

    def probabilities(self, path: Sequence[int]) -> list[float]:
        chance = random.Random(repr(tuple(path)))
        weights = [math.exp(chance.uniform(-6, 2)) for _ in VOCABULARY]
        return [weight / math.fsum(weights) for weight in weights]

    def next_token(self, path: Sequence[int], among: Sequence[int]) -> NextToken:
        self.passes += 1
        known = self.probabilities(path)
        chosen = list(among) or [max(VOCABULARY, key=known.__getitem__)]
        total = math.fsum(known[token] for token in chosen) if among else 1.0
        top = sorted((Token(t, "", math.log(known[t] / total)) for t in chosen), key=_rank)
        return NextToken(tuple(top), Usage(1, 1))


def _rank(token: Token) -> float:
    assert token.logprob is not None
    return -token.logprob


def run(steps: Steps[T]) -> T:
    """Do the steps; the questions are functions of nothing."""
    answer: Any = None
    while True:
        try:
            answer = steps.send(answer)(None)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def scored(toy: Toy, tokens: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """What `score` says of labels."""

    def ask(path: tuple[int, ...], among: Sequence[int]) -> Ask:
        return lambda _: toy.next_token(path, among)

    return run(score(grow(tokens), ask))


def defined(toy: Toy, tokens: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """The same from the whole vocabulary: at each place the ways that lead on to a label."""
    found = {}
    for name, path in tokens.items():
        product = 1.0
        for place in range(len(path) + 1):
            before = list(path[:place])
            ways = {
                other[place]
                for other in tokens.values()
                if len(other) > place and list(other[:place]) == before
            }
            if not ways:
                continue
            known = toy.probabilities(before)
            ends_here = any(list(other) == before for other in tokens.values())
            total = 1.0 if ends_here else math.fsum(known[token] for token in ways)
            if place < len(path):
                product *= known[path[place]] / total
            else:
                product *= 1.0 - math.fsum(known[token] for token in ways)
        found[name] = product
    return found


@pytest.mark.parametrize("seed", range(30))
def test_any_labels(seed: int) -> None:
    """Labels of any length that share anything, one being the beginning of another, too."""
    chance = random.Random(seed)
    paths = {
        tuple(chance.choices(VOCABULARY[:4], k=chance.randint(1, 4)))
        for _ in range(chance.randint(2, 8))
    }
    tokens = {str(path): path for path in paths | {(9,)}}
    toy = Toy()
    found, right = scored(toy, tokens), defined(toy, tokens)
    assert found.keys() == tokens.keys()
    assert math.fsum(found.values()) == pytest.approx(1)
    for name, probability in right.items():
        assert found[name] == pytest.approx(probability, abs=3e-6)


def test_labels_that_begin_differently_need_one_pass() -> None:
    """However long they are; and a token that all begin with needs none."""
    toy = Toy()
    scored(toy, {"a": [1, 5, 6], "b": [2], "c": [3, 3, 3, 3]})
    assert toy.passes == 1
    toy = Toy()
    scored(toy, {"a": [0, 1, 2], "b": [0, 1, 3]})
    assert toy.passes == 1


def test_what_is_next_to_impossible_costs_no_pass() -> None:
    """Labels that together have no millionth of the probability share it evenly."""

    def ask(path: tuple[int, ...], among: Sequence[int]) -> Ask:
        assert path == ()
        rare = 1e-9
        return lambda _: NextToken(
            (Token(1, "", math.log(1 - rare)), Token(2, "", math.log(rare))), Usage(1, 1)
        )

    found = run(score(grow({"a": [1], "b": [2, 1], "c": [2, 2]}), ask))
    assert found == pytest.approx({"a": 1 - 1e-9, "b": 5e-10, "c": 5e-10})


class Tokenizer:
    """Letters as tokens; `glued` text grows together with what stands before it."""

    def __init__(self, glued: str = "") -> None:
        self.glued = glued

    def tokenize(self, text: str) -> list[int]:
        if self.glued and text.startswith("\n" + self.glued):
            return [1000, *map(ord, text[2:])]
        return [1, *map(ord, text)]  # a space that it puts before every text


def tree(texts: Mapping[str, str], tokenizer: Tokenizer) -> Node:
    steps = read_labels(texts)
    answer: Any = None
    while True:
        try:
            answer = steps.send(answer)(tokenizer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def test_labels_are_cut_as_they_stand_after_other_text() -> None:
    """Not as at the beginning of a text, where some tokenizers put a space."""
    found = tree({"a": " x", "b": "y"}, Tokenizer())
    assert set(found.children) == {ord(" "), ord("y")}
    assert set(found.labels()) == {"a", "b"}
    assert set(tree({"a": "g", "b": "y"}, Tokenizer("g")).children) == {1, ord("y")}


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([], "there are no labels"),
        (["a"], "the only label is 'a'"),
        ({"a": "b"}, "the only label is 'a'"),
        (["a", "b", "a"], "'a' is given twice"),
        ({"a": "x", "b": "x"}, "'x' is given twice"),
        ("ab", "must be a list"),
        (["a", 1], "must be a text, got 1"),
        ([None, "a"], "must be a text, got None"),
    ],
)
def test_labels_that_cannot_be_told_apart(labels: Any, words: str) -> None:
    """Each kind in its own words."""
    with pytest.raises(OptionsError, match=words):
        checked_labels(labels)


def test_labels_that_are_nothing_or_the_same_to_the_model() -> None:
    """Only the tokenizer knows that."""
    with pytest.raises(OptionsError, match="'b' has no token"):
        grow({"a": [1], "b": []})
    with pytest.raises(OptionsError, match="'a' and 'b' are the same to the model"):
        grow({"a": [1, 2], "b": [1, 2]})


def test_labels_keep_their_names_and_order() -> None:
    """A list is its own names; a mapping gives others."""
    assert list(checked_labels(["b", "a"]).items()) == [("b", "b"), ("a", "a")]
    assert checked_labels({"yes": " y", "no": " n"}) == {"yes": " y", "no": " n"}
