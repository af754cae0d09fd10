"""Text that somebody else wrote, on its way to a terminal.

A model's answer, a name in a file and the words of a server may hold sequences that a terminal
obeys: they rewrite what is on the screen, or put text into the clipboard (OSC 52). They are shown
instead, as `less` shows them: `^[` for a control character, `<U+202E>` for one that has no such
form. Shown, too, is what changes the order in which letters are read, because code may then look
like other code (CVE-2021-42574).

An answer that goes into a file or a pipe is left as it is, as `git` and `ls` leave theirs: another
program wants the very text, and there is no terminal.
"""

from __future__ import annotations

import re
from typing import TextIO

# C0 but tab and newline, DEL, C1 (U+009B is an escape sequence's beginning in one character);
# embeddings, overrides and isolates; surrogates, which cannot be written.
_OBEYED = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """`text` of several lines with nothing in it that a terminal would obey."""
    return _OBEYED.sub(lambda match: _shown(match[0]), text)


def one_line(text: str) -> str:
    """A name or a reason on one line, with nothing in it that is not seen.

    >>> one_line("a\\x1b[2J\\nb")
    'a^[[2J^Jb'
    """
    return "".join(char if char.isprintable() else _shown(char) for char in text)


def for_stream(text: str, stream: TextIO, *, raw: bool = False) -> str:
    """A model's text for `stream`: as it is, unless that is a terminal.

    raw: the user wants it as it is also there. What the encoding lacks becomes a question mark.
    """
    if stream.isatty() and not raw:
        text = visible(text)
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def escaped_json(document: str) -> str:
    """A JSON document with the same meaning, and nothing in it that a terminal would obey."""
    return _OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", document)


def _shown(char: str) -> str:
    number = ord(char)
    if number < 0x20 or number == 0x7F:
        return f"^{chr(number ^ 0x40)}"
    return f"<U+{number:04X}>"
