"""One known cause of a server's end."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from rocllm.errors import RocllmError


@dataclass(frozen=True, slots=True)
class Rule:
    """One known cause of a server's end.

    id: its name, which an error carries as `cause`. example: what one sees, as recorded. pattern:
    finds it in the output; `None`: the signal or other evidence tells. error: the error it is,
    while loading. retryable: the same start, unchanged, is worth trying again. hint: it says that
    the GPU is not used, and not that the server ended: it counts where a GPU was asked for.
    outside: one of its processes may have been killed, which its exit status does not tell.

    `why` may use a named group of the pattern as `{name}`, if the group takes part in every match,
    and `{gpu}` where it has the group `node`.
    """

    id: str
    example: str
    pattern: re.Pattern[str] | None
    error: type[RocllmError]
    why: str
    remedy: str
    retryable: bool = False
    hint: bool = False
    outside: bool = False


def rule(
    name: str,
    example: str,
    pattern: str,
    error: type[RocllmError],
    why: str,
    remedy: str,
    *,
    retryable: bool = False,
    outside: bool = False,
) -> Rule:
    compiled = re.compile(pattern)
    return Rule(name, example, compiled, error, why, remedy, retryable, outside=outside)


def hint(
    name: str, example: str, pattern: str, error: type[RocllmError], why: str, remedy: str
) -> Rule:
    return replace(rule(name, example, pattern, error, why, remedy), hint=True)
