"""Server-sent events, in any pieces."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.client.wire import pieces

from rocllm.client import _sse
from rocllm.client._sse import EventDecoder
from rocllm.errors import ProtocolError

cuts = st.lists(st.integers(0, 2000), max_size=40)
line_ends = st.sampled_from(["\n", "\r\n", "\r"])


def decode(data: bytes, at: list[int]) -> list[str]:
    """Feed an event stream in pieces."""
    decoder = EventDecoder()
    return [found for piece in pieces(data, at) for found in decoder.feed(piece)]


@given(st.lists(st.text(), max_size=6), line_ends, cuts)
def test_any_text_in_any_pieces(texts: list[str], line_end: str, at: list[int]) -> None:
    """What a model says arrives whole, wherever its bytes are cut and however lines end."""
    values = [json.dumps(text, ensure_ascii=False) for text in texts]
    data = "".join(f"data: {value}{line_end}{line_end}" for value in values)
    assert decode(data.encode(), at) == values


@given(cuts)
def test_all_that_the_grammar_allows(at: list[int]) -> None:
    """Comments, other fields, several data lines, no space, blank lines, and a cut-off end."""
    data = (
        '\n\ndata: {"a":"x\u2028\x85\u2029"}\r\n\r\n: ping\n\n:\n\ndata: 1\rdata:2\r\r'
        "data: [DONE]\n\n\n\nid: 7\nevent: x\nretry: 5\n\ndata\n\ndata:  two\n\ndata: tail\n"
    )
    expected = ['{"a":"x\u2028\x85\u2029"}', "1\n2", "[DONE]", "", " two"]
    assert decode(data.encode(), at) == expected


def test_an_old_servers_error_field() -> None:
    """An error in a field of its own is an error object like any other."""
    assert decode(b'error: {"code":500,"message":"x"}\n\n', []) == [
        '{"error":{"code":500,"message":"x"}}'
    ]


def test_an_event_without_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that never ends an event does not fill the memory."""
    monkeypatch.setattr(_sse, "MAX_EVENT", 1000)
    decoder = EventDecoder()
    for _ in range(200):
        decoder.feed(b"data:")
    with pytest.raises(ProtocolError, match="more than 1000 bytes"):
        decoder.feed(b"data:")


def test_not_utf8() -> None:
    """Bytes that are no text are an error, not a guess."""
    with pytest.raises(ProtocolError, match="not UTF-8"):
        EventDecoder().feed(b'data: "\xff"\n\n')


@given(st.binary(max_size=200), cuts)
def test_pieces_never_matter(data: bytes, at: list[int]) -> None:
    """Any bytes give the same events in one piece and in many."""

    def outcome(places: list[int]) -> list[str] | None:
        try:
            return decode(data, places)
        except ProtocolError:
            return None

    whole, cut = outcome([]), outcome(at)
    assert whole == cut or whole is None
