"""Who answers on a TCP port: is it the server that was started?

Between choosing a port and the server's bind anybody on the machine may take it, answer the health
check and be told prompts and key. The kernel knows better: it lists each listening socket with its
inode (/proc/net/tcp, proc(5)), and the sockets of each process.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

_LISTEN = "0A"


def answers_for(connection: socket.socket, group: int) -> bool:
    """Whether what `connection` reached belongs to the process group `group`.

    `False` also where the processes of the group may not be looked into.
    """
    address, port = connection.getpeername()[:2]
    listening = set(_listening(_spellings(address), f"{port:04X}"))
    return bool(listening) and listening <= set(_sockets(group))


def _spellings(address: str) -> set[str]:
    """How /proc/net/tcp may write the address that listens: itself, mapped to IPv6, or any."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ipv4 = ip if isinstance(ip, ipaddress.IPv4Address) else ip.ipv4_mapped
    found = {_hex(ip.packed), _hex(bytes(16))}
    if ipv4 is not None:
        mapped = bytes(10) + b"\xff\xff" + ipv4.packed
        found |= {_hex(ipv4.packed), _hex(bytes(4)), _hex(mapped)}
    return found


def _hex(packed: bytes) -> str:
    words = (packed[start : start + 4] for start in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


def _listening(addresses: set[str], port: str) -> Iterator[str]:
    for table in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        except OSError:  # without IPv6 there is no such table
            continue
        for fields in map(str.split, lines):
            address, _, found = fields[1].partition(":")
            if fields[3] == _LISTEN and found == port and address in addresses:
                yield fields[9]


def _sockets(group: int) -> Iterator[str]:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
            # The name in parentheses may hold anything; then state, parent, process group.
            if int(stat.rpartition(")")[2].split()[2]) != group:
                continue
            for link in Path(f"/proc/{pid}/fd").iterdir():
                target = os.readlink(link)
                if target.startswith("socket:["):
                    yield target[len("socket:[") : -1]
        except OSError:
            continue  # gone meanwhile, or not ours to look at
