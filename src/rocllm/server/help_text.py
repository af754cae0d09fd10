"""What `llama-server --help` says: which flags there are and what they take. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

_FLAG = re.compile(r"(--?[A-Za-z][A-Za-z0-9.-]*)(,\s*)?")


def parse_help(text: str) -> Mapping[str, str]:
    """The flags of a `--help` text, each with the argument it takes (`""`: none).

    >>> parse_help("-fa,   --flash-attn [on|off|auto]       set Flash Attention use")["-fa"]
    '[on|off|auto]'
    >>> parse_help("--metrics                               enable the endpoint")
    {'--metrics': ''}
    """
    flags: dict[str, str] = {}
    for line in text.splitlines():
        if not line.startswith("-") or line.startswith("-----"):
            continue
        names, rest = _leading_flags(line)
        argument = "" if rest.startswith("  ") else re.split(r"\s{2,}", rest.strip())[0]
        flags.update(dict.fromkeys(names, argument))
    return flags


def _leading_flags(line: str) -> tuple[list[str], str]:
    names: list[str] = []
    position = 0
    while match := _FLAG.match(line, position):
        names.append(match[1])
        position = match.end()
        if match[2] is None:
            break
    return names, line[position:]
