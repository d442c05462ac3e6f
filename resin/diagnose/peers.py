"""The same program beside the target: do its peers grow as well? All ranks point to the code, one to its data."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .target import Target, resident_bytes

_MOST_PEERS = 64
MEBIBYTE = 1048576.0


@dataclass(frozen=True)
class Peers:
    """Resident bytes of processes with the target's command line, by pid; the target is not among them."""

    resident: dict[int, int]


def peers_of(target: Target) -> Peers:
    """Up to 64 peers on this host: same command line, or worker of the same parent."""
    found: dict[int, int] = {}
    if not target.command:
        return Peers(found)
    wanted = b"\0".join(os.fsencode(word) for word in target.command)
    for name in sorted(os.listdir("/proc"), key=lambda n: (len(n), n)):
        if not name.isdigit() or int(name) == target.pid or len(found) == _MOST_PEERS:
            continue
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                same = file.read(65536).rstrip(b"\0") == wanted
        except OSError:
            continue
        size = resident_bytes(int(name)) if same else None
        if size:
            found[int(name)] = size
    return Peers(found)


def compare(before: Peers, after: Peers, grown_bytes: float) -> str | None:
    """A sentence on how the target's growth compares with its peers'; None without peers or without growth."""
    both = sorted(
        after.resident[pid] - size for pid, size in before.resident.items() if pid in after.resident
    )
    if not both or grown_bytes < 0.25 * MEBIBYTE:
        return None
    alike = sum(0.5 * grown_bytes <= growth for growth in both)
    middle = both[len(both) // 2]
    text = (
        f"{len(both)} peers run the same command; it grew {grown_bytes / MEBIBYTE:.1f} MiB, "
        f"they {middle / MEBIBYTE:.1f} MiB in the middle: "
    )
    if alike >= 0.75 * len(both):
        return text + "all grow alike, so look at the code"
    if alike == 0:
        return text + "only this one grows, so look at its data or its host"
    return text + f"{alike} of them grow as well"
