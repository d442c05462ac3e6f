"""Memory of a plan: one arena for intermediates, laid out by liveness, and outputs that are reused when free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

ALIGN = 64  # bytes: a cache line, and the widest vector


@dataclass(frozen=True)
class Life:
    """A buffer of `nbytes` that must exist from step `first` to step `last` (both included)."""

    nbytes: int
    first: int
    last: int


def assign(lives: Mapping[str, Life]) -> tuple[dict[str, int], int]:
    """Byte offsets in one arena such that buffers alive at the same step do not overlap, and its size.

    Large buffers are placed first, each at the lowest offset where it fits.
    """
    offsets: dict[str, int] = {}
    placed: list[tuple[int, int, Life]] = []
    total = 0
    for name, life in sorted(lives.items(), key=lambda kv: (-kv[1].nbytes, kv[1].first, kv[0])):
        size = -(-max(life.nbytes, 1) // ALIGN) * ALIGN
        at = 0
        for start, end, other in sorted(placed, key=lambda p: p[0]):
            if other.last < life.first or life.last < other.first:
                continue
            if start - at >= size:
                break
            at = max(at, end)
        offsets[name] = at
        placed.append((at, at + size, life))
        total = max(total, at + size)
    return offsets, total


def aligned_arena(nbytes: int, device: torch.device) -> torch.Tensor:
    """uint8 tensor of at least `nbytes` whose first byte is aligned to ALIGN."""
    raw = torch.empty(nbytes + ALIGN, dtype=torch.uint8, device=device)
    start = -raw.data_ptr() % ALIGN
    return raw[start : start + nbytes]


class OutputPool:
    """Hands out tensors for one output; memory comes back once nothing refers to its storage any more.

    The storage's reference count says so: every tensor, view, storage object, NumPy array and DLPack capsule
    holds a reference. Fresh pages are expensive, so up to `keep` storages are kept for the next calls.
    """

    def __init__(self, elements: int, dtype: torch.dtype, device: torch.device, keep: int = 2) -> None:
        self.nbytes = max(elements * dtype.itemsize, 1)
        self.dtype, self.device, self.keep = dtype, device, keep
        self.kept: list[torch.UntypedStorage] = []

    def storage(self) -> torch.UntypedStorage:
        for s in self.kept:
            if _holders(s) == 1:
                return s
        fresh = aligned_arena(self.nbytes, self.device).untyped_storage()
        if len(self.kept) < self.keep:
            self.kept.append(fresh)
        return fresh


def _holders(storage: torch.UntypedStorage) -> int:
    return torch._C._storage_Use_Count(storage._cdata)


def tensor_on(storage: torch.UntypedStorage, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...],
              offset: int) -> torch.Tensor:  # fmt: skip
    """A tensor over `storage`; no view of another tensor, so autograd and version counters start fresh."""
    return torch.empty(0, dtype=dtype, device=storage.device).set_(storage, offset, shape, strides)
