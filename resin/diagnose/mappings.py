"""Which kind of mapping grows: /proc/PID/smaps, taken twice."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_HEAD = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+\s*(.*)$")
ARENA_BYTES = 64 * 1048576  # glibc reserves each secondary arena heap at a multiple of this on 64 bit


@dataclass(frozen=True)
class Mapping:
    """One mapping of a process. Sizes in bytes."""

    start: int
    end: int
    permissions: str
    name: str
    rss_bytes: int
    private_dirty_bytes: int
    swap_bytes: int

    @property
    def kind(self) -> str:
        """heap, arena, anon, stack, shm, file."""
        if self.name == "[heap]":
            return "heap"
        if self.name.startswith("[stack"):
            return "stack"
        if self.name.startswith(("/dev/shm/", "/SYSV", "/memfd:", "/dev/zero")):
            return "shm"
        if self.name and not self.name.startswith(("[anon", "[vvar", "[vdso", "[vsyscall")):
            return "file"
        if self.permissions.startswith("rw-p") and self.start % ARENA_BYTES == 0:
            return "arena"
        return "anon"

    @property
    def label(self) -> str:
        return self.name if self.kind in ("file", "shm") else self.kind


def parse_smaps(lines: Iterable[str]) -> list[Mapping]:
    """Mappings of the text of /proc/PID/smaps."""
    found: list[Mapping] = []
    head: tuple[int, int, str, str] | None = None
    sizes: dict[str, int] = {}

    def close() -> None:
        if head is not None:
            found.append(
                Mapping(*head, sizes.get("Rss", 0), sizes.get("Private_Dirty", 0), sizes.get("Swap", 0))
            )

    for line in lines:
        match = _HEAD.match(line)
        if match:
            close()
            start, end, permissions, name = match.groups()
            head, sizes = (int(start, 16), int(end, 16), permissions, name.strip()), {}
        elif head is not None:
            field, _, rest = line.partition(":")
            if field in ("Rss", "Private_Dirty", "Swap"):
                sizes[field] = 1024 * int(rest.split()[0])
    close()
    return found


def read_smaps(pid: int) -> list[Mapping]:
    """Mappings of a running process; raises OSError when they may not be read."""
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
        return parse_smaps(file)


@dataclass(frozen=True)
class Growth:
    """Resident bytes by label before and after; only what changed, largest growth first."""

    by_label: tuple[tuple[str, int], ...]
    by_kind: dict[str, int]
    total_bytes: int


def growth(before: Iterable[Mapping], after: Iterable[Mapping]) -> Growth:
    """What grew between two readings, resident and swapped together."""
    labels: dict[str, int] = {}
    kinds: dict[str, int] = {}
    for sign, mappings in ((-1, before), (1, after)):
        for m in mappings:
            size = sign * (m.rss_bytes + m.swap_bytes)
            labels[m.label] = labels.get(m.label, 0) + size
            kinds[m.kind] = kinds.get(m.kind, 0) + size
    changed = sorted(((n, v) for n, v in labels.items() if v), key=lambda item: (-item[1], item[0]))
    return Growth(tuple(changed), {k: v for k, v in kinds.items() if v}, sum(kinds.values()))
