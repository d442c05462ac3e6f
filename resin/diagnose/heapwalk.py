"""How much of glibc's heap is free but kept: reads the chunk headers from outside, without stopping the target.

Every chunk of glibc's malloc starts with its size; whether it is in use stands in the header of the next one.
/proc/PID/mem gives these headers while the target runs, so that a header can change under the reader: a walk
that meets an impossible size ends there and says so. Chunks parked in the per-thread caches count as in use, so
the free share is a lower bound.
"""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from .mappings import ARENA_BYTES, Mapping

_PREV_INUSE, _MMAPPED, _NON_MAIN = 1, 2, 4
_PIECE = 8 * 1048576
_MOST_CHUNKS = 3_000_000
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class HeapUse:
    """Sums over the walked heaps. `complete` is False when a walk ended early or a limit was met."""

    used_bytes: int
    free_bytes: int  # in free chunks between used ones, and at the top
    chunks: int
    heaps: int
    resident_bytes: int  # of the walked mappings
    complete: bool
    sizes: Counter[int] = field(default_factory=Counter, repr=False)  # chunks in use by size in bytes

    @property
    def retained_bytes(self) -> int:
        """Resident memory that no chunk in use needs."""
        return max(0, min(self.free_bytes, self.resident_bytes - self.used_bytes))


def walk(pid: int, mappings: Iterable[Mapping]) -> HeapUse | None:
    """Walk the main heap and the secondary arenas among `mappings`; None when none of them is a glibc heap.

    Raises OSError when the memory of the process may not be read. 64-bit glibc only.
    """
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    used = free = chunks = heaps = resident = 0
    sizes: Counter[int] = Counter()
    complete = True
    read_bytes = 0
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for mapping in mappings:
            if mapping.kind not in ("heap", "arena") or mapping.end - mapping.start < 4096:
                continue
            main = mapping.kind == "heap"
            # Full arena heaps lie side by side and show as one mapping: each begins at its own multiple.
            step = mapping.end - mapping.start if main else ARENA_BYTES
            walked = False
            for begin in range(mapping.start, mapping.end, step):
                size = min(step, mapping.end - begin)
                if read_bytes + size > _MOST_BYTES or chunks > _MOST_CHUNKS:
                    complete = False
                    break
                data = _read(memory.fileno(), begin, size)
                read_bytes += len(data)
                start = _first_chunk(data, main=main)
                if start is None:
                    continue
                u, f, n, whole = _walk(data, start, _MOST_CHUNKS - chunks, sizes)
                used, free, chunks, heaps = used + u, free + f, chunks + n, heaps + 1
                complete = complete and whole
                walked = True
            resident += mapping.rss_bytes if walked else 0
    return HeapUse(used, free, chunks, heaps, resident, complete, sizes) if heaps else None


def _read(descriptor: int, start: int, size: int) -> bytearray:
    data = bytearray()
    while len(data) < size:
        try:
            piece = os.pread(descriptor, min(_PIECE, size - len(data)), start + len(data))
        except OSError:
            if not data:
                raise
            break
        if not piece:
            break
        data += piece
    return data


def _first_chunk(data: bytearray, *, main: bool) -> int | None:
    """Offset of the first chunk: at the start of the main heap, behind the arena's bookkeeping in others."""
    if main:
        return (
            0 if _plausible(data, 0, non_main=False) else (8 if _plausible(data, 8, non_main=False) else None)
        )
    for offset in range(0x20, min(len(data), 0x1000), 16):
        if _plausible(data, offset, non_main=True):
            return offset
    return None


def _plausible(data: bytearray, offset: int, *, non_main: bool, steps: int = 12) -> bool:
    """A chain of headers that leads on, or to the end of the heap, starts here."""
    end = len(data)
    for step in range(steps):
        if offset + 16 > end:
            return step >= 2
        head = int.from_bytes(data[offset + 8 : offset + 16], "little")
        size = head & ~7
        if size < 32 or size % 16 or head & _MMAPPED:
            return False
        # Free chunks of secondary arenas lose the mark of their arena: only the first one must carry it.
        if step == 0 and (not head & _PREV_INUSE or bool(head & _NON_MAIN) != non_main):
            return False
        offset += size
        if offset >= end - 16:
            return offset <= end + 4096 or step >= 1
    return True


def grown_sizes(before: HeapUse, after: HeapUse, most: int = 3) -> list[tuple[int, int]]:
    """(size in bytes, how many more are in use) of the chunks that became more, by the bytes that they hold."""
    more = [(size, count - before.sizes[size]) for size, count in after.sizes.items()]
    return sorted((m for m in more if m[1] > 0), key=lambda m: (-m[0] * m[1], m[0]))[:most]


def _walk(data: bytearray, offset: int, most: int, sizes: Counter[int]) -> tuple[int, int, int, bool]:
    """(used bytes, free bytes, chunks, whether the end was met) of the chain of chunks from `offset`.

    Adds the chunks in use to `sizes`.
    """
    words = memoryview(data)[: len(data) // 8 * 8].cast("Q")
    end = len(words) * 8
    used = free = chunks = 0
    size = words[(offset >> 3) + 1] & ~7
    while chunks < most:
        if size < 32 or size & 15:
            return used, free, chunks, False
        following = offset + size
        if following + 16 > end:  # the top chunk ends with the heap and is free
            free += max(0, min(end - offset, size))
            return used, free, chunks + 1, True
        head = words[(following >> 3) + 1]
        if head & _PREV_INUSE:
            used += size
            sizes[size] += 1
        else:
            free += size
        chunks += 1
        offset, size = following, head & ~7
    return used, free, chunks, False
