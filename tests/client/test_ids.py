"""The ids that a stream leaves out, found again: exact, or `None`."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rocllm.client._ids import MAX_RUN, Vocabulary

BYTES = [bytes([byte]) for byte in range(256)]
# A byte-level vocabulary: 256 bytes, then what was merged. Like SmolLM2's, it can write most
# characters in one way only, and U+1F94x in two.
MERGED = [b" \xf0\x9f", b"\xf0\x9f", b"\x9f\xa5", b"\xe4\xbd", b"a\xe4", b"the", "é".encode()]
VOCABULARY = Vocabulary([*BYTES, *MERGED])
SPACE_F09F, F09F, X9FA5, E4BD, A_E4, THE, E_ACUTE = range(256, 256 + len(MERGED))


def recover(run: list[int | None], *texts: str) -> list[int] | None:
    """Short for the method."""
    return VOCABULARY.recover(run, texts)


def test_pieces() -> None:
    """A vocabulary tells the bytes of each token, and none for an id it does not have."""
    assert len(VOCABULARY) == 256 + len(MERGED)
    assert [VOCABULARY.piece(token) for token in range(len(VOCABULARY))] == [*BYTES, *MERGED]
    assert VOCABULARY.piece(len(VOCABULARY)) == VOCABULARY.piece(-1) == b""
    assert VOCABULARY.text([THE, SPACE_F09F]) == "the "


@pytest.mark.parametrize(
    ("run", "text", "ids"),
    [
        ([None, None, 0x99], "🦙", [F09F, 0xA6, 0x99]),
        ([None, None, 0x99], " 🦙", [SPACE_F09F, 0xA6, 0x99]),
        ([None, None, None, 0x99], "🦙", [0xF0, 0x9F, 0xA6, 0x99]),
        ([None, 0xA0], "你", [E4BD, 0xA0]),
        ([None, None, 0xA0], "a你", [A_E4, 0xBD, 0xA0]),
        ([THE, None, 0xA0], "the你", [THE, E4BD, 0xA0]),
    ],
)
def test_the_only_way_is_found(run: list[int | None], text: str, ids: list[int]) -> None:
    """When one sequence of tokens gives the text, that is what was generated."""
    assert recover(run, text) == ids


@pytest.mark.parametrize(
    ("run", "text"),
    [
        ([None, None, 0x94], "🥔"),  # f0 9f|a5|94 and f0|9f a5|94
        ([None, 0x99], "🦙"),  # no token has these three bytes
        ([None, None, 0x98], "🦙"),  # another last token
        ([None, None, 0x99], "🦙🦙"),  # too much text
        ([None, THE], "the"),  # a token of no bytes
        ([None, ord("b")], "ab"),  # the server would have sent the first
        ([None, None, 0xBD], "\ufffd"),  # bytes that were no character
        ([None] * MAX_RUN + [0x99], "🦙" * MAX_RUN),  # beyond the bound
    ],
)
def test_what_is_not_certain_is_unknown(run: list[int | None], text: str) -> None:
    """No id is guessed."""
    assert recover(run, text) is None


def test_several_texts() -> None:
    """Where the text may have lost its first space, both readings count."""
    assert recover([None, None, 0x99], "🦙", " 🦙") is None
    assert recover([None, 0xA0], "你", " 你") == [E4BD, 0xA0]
    assert recover([None, 0x99, None, 0xA0], "x", "y") is None


def ends_inside(data: bytes) -> bool:
    """Whether the last character of `data` is cut off."""
    try:
        data.decode()
    except UnicodeDecodeError as exc:
        return exc.reason == "unexpected end of data"
    return False


@settings(max_examples=200)
@given(st.text(alphabet="a 🦙🥔你é😀", min_size=1, max_size=2), st.data())
def test_never_wrong(text: str, data: st.DataObject) -> None:
    """However a text was tokenized, what is recovered is what was generated, or unknown."""
    # Any way to write the text with tokens of this vocabulary, canonical or not.
    pieces = {piece: token for token, piece in enumerate([*BYTES, *MERGED])}
    raw, tokens, start = text.encode(), [], 0
    while start < len(raw):
        ends = [end for end in range(start + 1, len(raw) + 1) if raw[start:end] in pieces]
        end = data.draw(st.sampled_from(ends))
        tokens.append(pieces[raw[start:end]])
        start = end
    # What the server sends: one event for each run of tokens that ends with a whole character.
    run: list[int | None] = []
    truth: list[int] = []
    sent = written = 0
    for token in tokens:
        written += len(VOCABULARY.piece(token))
        hidden = ends_inside(raw[:written])
        run.append(None if hidden else token)
        truth.append(token)
        if hidden:
            continue
        found = recover(run, raw[sent:written].decode())
        assert found in (truth, None)
        if len(list(itertools.takewhile(lambda each: each is None, run))) < 2:
            assert found == truth  # one unknown token: its bytes are what is left
        run, truth, sent = [], [], written
