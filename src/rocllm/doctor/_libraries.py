"""Which libraries a program finds, as the dynamic loader looks for them; nothing is run.

Reference: ld.so(8); the cache's layout is that of glibc's `sysdeps/generic/dl-cache.h` (2.36).
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rocllm.doctor._elf import Elf, read_elf
from rocllm.doctor.types import Missing

_CACHE = "/etc/ld.so.cache"
_CACHE_MAGIC = b"glibc-ld.so.cache1.1"
_CACHE_HEADER = struct.Struct("<20sII20x")
_CACHE_ENTRY = struct.Struct("<iIII8x")
_MAX_CACHE = 1 << 26
# What the loader looks into without being told, on distributions of either kind.
_DEFAULT = tuple(
    f"{prefix}/{folder}"
    for folder in ("lib/x86_64-linux-gnu", "lib64", "lib")
    for prefix in ("", "/usr")
)
_MAX_FILES = 500


@dataclass(slots=True)
class Loader:
    """Loads nothing: it finds what would be loaded.

    library_path: the directories of `LD_LIBRARY_PATH`. cache: of `ldconfig`, paths by name.
    found: paths of libraries by name. files: what was read, by path. missing: what was not found.
    """

    library_path: Sequence[str] = ()
    cache: Mapping[str, Sequence[str]] = field(default_factory=dict)
    default: Sequence[str] = _DEFAULT
    found: dict[str, str] = field(default_factory=dict)
    files: dict[str, Elf] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)

    def load(self, path: str) -> bool:
        """Find everything that the file at `path` needs; `False` when it is no ELF file."""
        elf = self._read(path)
        if elf is None:
            return False
        waiting = deque([(path, elf, tuple[str, ...]())])
        while waiting and len(self.files) < _MAX_FILES:
            current, elf, inherited = waiting.popleft()
            own = tuple(_expand(elf.search, current))
            if elf.overriding:
                inherited = (*own, *inherited)  # DT_RPATH holds for what is needed further down too
            searched = (*inherited, *self.library_path, *(() if elf.overriding else own))
            for name in elf.needed:
                if name in self.found or any(name == gone.library for gone in self.missing):
                    continue
                library = self._find(name, searched)
                if library is None:
                    self.missing.append(Missing(name, current))
                    continue
                self.found[name] = library
                waiting.append((library, self.files[library], inherited))
        return True

    def _find(self, name: str, searched: Iterable[str]) -> str | None:
        places = [f"{directory}/{name}" for directory in searched]
        places += self.cache.get(name, ())
        places += [f"{directory}/{name}" for directory in self.default]
        return next((place for place in places if self._read(place) is not None), None)

    def _read(self, path: str) -> Elf | None:
        if path in self.files:
            return self.files[path]
        try:
            with open(path, "rb") as file:
                elf = read_elf(file)
        except (OSError, ValueError):
            return None
        if elf is not None:
            self.files[path] = elf
        return elf


def system_loader(environ: Mapping[str, str]) -> Loader:
    """The loader as it would work for a child with this environment."""
    named = environ.get("LD_LIBRARY_PATH", "").replace(";", ":").split(":")
    try:
        with open(_CACHE, "rb") as file:
            cache = parse_cache(file.read(_MAX_CACHE))
    except OSError:
        cache = {}
    return Loader([directory for directory in named if directory], cache)


def parse_cache(data: bytes) -> dict[str, list[str]]:
    """Paths by name of library in `/etc/ld.so.cache`; empty when it is of another format."""
    start = data.find(_CACHE_MAGIC)
    paths: dict[str, list[str]] = {}
    if start < 0 or len(data) - start < _CACHE_HEADER.size:
        return paths
    data = data[start:]
    _, count, _ = _CACHE_HEADER.unpack_from(data)
    entries = data[_CACHE_HEADER.size :][: count * _CACHE_ENTRY.size]
    whole = len(entries) // _CACHE_ENTRY.size * _CACHE_ENTRY.size
    for _, name, path, _ in _CACHE_ENTRY.iter_unpack(entries[:whole]):
        paths.setdefault(_string(data, name), []).append(_string(data, path))
    return paths


def _string(data: bytes, offset: int) -> str:
    return os.fsdecode(data[offset : max(data.find(b"\0", offset), offset)])


def _expand(search: Iterable[str], path: str) -> Iterable[str]:
    origin = os.path.dirname(path)
    for directory in search:
        yield directory.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)
