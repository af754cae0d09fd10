"""Remember what was read from model files, so that unchanged ones need not be read again.

One JSON file in the cache directory. A broken, foreign or unwritable one is no error: everything is
then read again. Times are compared for equality only, so that no clock can mislead.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from rocllm.catalog.facts import Facts

# To be raised whenever the same file would give other facts than before.
_VERSION = 1
_MOST_ENTRIES = 20_000

# Size in bytes and time of change in nanoseconds of every part of a model.
Fingerprint: TypeAlias = list[list[int]]


def fingerprint_of(parts: Iterable[Path]) -> Fingerprint:
    """What tells whether a model has changed; parts that cannot be looked at are left out."""
    fingerprint: Fingerprint = []
    for part in parts:
        try:
            status = os.stat(part)
        except (OSError, ValueError):  # reading it says why
            continue
        fingerprint.append([status.st_size, status.st_mtime_ns])
    return fingerprint


class Index:
    """Facts by path, as long as size and time of change stay the same.

    path: of the index file; it is read at once, and written by `save`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries = _load(path)
        self._used: set[str] = set()
        self._changed = False

    def get(self, path: Path, fingerprint: Fingerprint) -> Facts | None:
        """What is known of the file; `None`: nothing, or it has changed."""
        key = os.fspath(path)
        self._used.add(key)
        match self._entries.get(key):
            case [stored, dict() as values] if stored == fingerprint:
                return _facts(values)
        return None

    def put(self, path: Path, fingerprint: Fingerprint, facts: Facts) -> None:
        """Remember the facts of a file."""
        values = {name: value for name, value in asdict(facts).items() if value is not None}
        self._entries[os.fspath(path)] = [fingerprint, values]
        self._changed = True

    def save(self) -> None:
        """Write the index, if anything is new; where that is impossible, do without."""
        if not self._changed:
            return
        entries = self._entries
        if len(entries) > _MOST_ENTRIES:
            entries = {key: entries[key] for key in self._used & entries.keys()}
        # With ASCII only, names of any bytes survive: what is no UTF-8 is a lone surrogate in them.
        text = json.dumps({"version": _VERSION, "files": entries}, ensure_ascii=True)
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}-{threading.get_ident()}")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                new.write_text(text)
                new.replace(self._path)
            finally:
                new.unlink(missing_ok=True)


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(data, dict) or data.get("version") != _VERSION:
        return {}
    files = data.get("files")
    return files if isinstance(files, dict) else {}


def _facts(values: dict[str, Any]) -> Facts | None:
    """The facts, unless somebody has tampered with them."""
    try:
        facts = Facts(**values)
    except TypeError:
        return None
    texts = (facts.architecture, facts.size_label, facts.quantization, facts.problem)
    counts = (facts.parameter_count, facts.context_length)
    sound = (
        facts.kind in ("model", "mmproj", "adapter")
        and all(text is None or isinstance(text, str) for text in texts)
        and all(count is None or isinstance(count, int) for count in counts)
        and (facts.chat_template is None or isinstance(facts.chat_template, bool))
    )
    return facts if sound else None
