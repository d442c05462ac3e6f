"""One access of a kernel as numbers: the bytes that a tile touches, and how they lie in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchroller.tile import padded


@dataclass(frozen=True)
class Operand:
    """One distinct access of a kernel in numeric form.

    dims: per tensor dimension (length, ((axis number, |coefficient|), …), stride), innermost in memory first
    passes: walks over it by a program that loops over the reduce axes; 0 for data outside the loop
    side: "a" or "b" for what feeds the first or second argument of a dot, else ""
    packed: stored tile by tile, so that a whole data tile is one run of memory
    beyond: per dimension of dims, how much farther the taps of a window reach than its first one
    """

    tensor: str
    itemsize: int
    dims: tuple[tuple[int, tuple[tuple[int, int], ...], int], ...]
    axes: frozenset[int]
    write: bool
    passes: int
    side: str
    indirect: bool
    packed: bool = False
    beyond: tuple[int, ...] = ()

    @property
    def contiguous(self) -> frozenset[int]:
        """Axes along which neighbours lie next to each other in memory."""
        return frozenset(
            axis
            for length, terms, stride in self.dims
            if stride == 1 and length > 1
            for axis, c in terms
            if c == 1
        )

    def nbytes(self, e: Sequence[int]) -> int:
        """Bytes of the data tile that a tile of extents `e` touches, clipped to the tensor."""
        total = self.itemsize
        for (length, terms, _), beyond in zip(self.dims, self.beyond):
            span = e[terms[0][0]] if len(terms) == 1 and not beyond else _span(terms, e, beyond)
            total *= span if span < length else length
        return total

    def step_bytes(self, axis: int) -> int:
        """Bytes from a point to its neighbour along an axis."""
        return self.itemsize * sum(
            stride * c for _, terms, stride in self.dims for a, c in terms if a == axis
        )

    def run(self, e: Sequence[int], gap_bytes: int = 0) -> tuple[int, int]:
        """One contiguous run of the data tile in memory: (useful bytes, bytes from first to last).

        Places less than `gap_bytes` apart count as one run: a strided walk uses part of what it spans.
        """
        if self.packed:
            return (self.nbytes(e),) * 2
        useful = span = expected_stride = 1
        for (length, terms, stride), beyond in zip(self.dims, self.beyond):
            if length == 1:
                continue
            if stride != expected_stride:
                break
            points, reach = _run(terms, e, gap_bytes // self.itemsize)
            if beyond:
                points, reach = reach + beyond, reach + beyond  # taps fill what a stride leaves out
            useful *= min(points, length)
            span *= min(reach, length)
            if points < length:
                break
            expected_stride *= length
        return useful * self.itemsize, span * self.itemsize

    def charge(self, e: Sequence[int], transaction_bytes: int, overhead_bytes: int = 0) -> float:
        """Bytes spent per useful byte when runs are moved in whole transactions, each run costing extra."""
        useful, span = self.run(e, transaction_bytes)
        return (padded(span, transaction_bytes) + overhead_bytes) / useful


def _span(terms: tuple[tuple[int, int], ...], e: Sequence[int], beyond: int = 0) -> int:
    """Distinct positions that an index visits: bounded by its interval and by the number of points of all taps."""
    interval, points = 1 + beyond, 1 + beyond
    for axis, coefficient in terms:
        interval += coefficient * (e[axis] - 1)
        points *= e[axis]
    return min(interval, points)


def _run(terms: tuple[tuple[int, int], ...], e: Sequence[int], gap: int) -> tuple[int, int]:
    """Positions of one dimension that lie at most `gap` apart: how many, and how far they reach."""
    points = reach = 1
    for axis, coefficient in terms:  # by rising coefficient
        if e[axis] == 1:
            continue
        if coefficient > reach + gap:
            break
        points *= e[axis]
        reach += coefficient * (e[axis] - 1)
    return min(points, reach), reach
