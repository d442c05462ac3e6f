"""Index maps: how the index of a view's reader becomes an index of what is viewed, and back.

An index is a tuple of `Ix`, one per dimension: sum of coefficient * axis plus a constant. Axes have extents
(`Extents`). Merging dimensions is exact; splitting one needs the terms to fall apart into a multiple of the
inner size and a rest below it. Where an axis straddles that border, `NeedSplit` asks the caller to cut the axis
in two and start again; where no cut helps, `NotAffine` says that the value must be stored first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Extents = Mapping[str, int]


class NotAffine(Exception):
    """The index cannot be written as an affine function of axes."""


class NeedSplit(Exception):
    """Axis `axis` must be cut into (extent / inner, inner)."""

    def __init__(self, axis: str, inner: int) -> None:
        super().__init__(axis, inner)
        self.axis, self.inner = axis, inner


@dataclass(frozen=True)
class Ix:
    """sum(coefficient * axis) + offset; `terms` sorted by axis name, no zero coefficients."""

    terms: tuple[tuple[str, int], ...] = ()
    offset: int = 0

    def scaled(self, factor: int, offset: int = 0) -> Ix:
        if factor == 0:
            return Ix((), offset)
        return Ix(tuple((a, c * factor) for a, c in self.terms), self.offset * factor + offset)

    def plus(self, other: Ix) -> Ix:
        total = dict(self.terms)
        for a, c in other.terms:
            total[a] = total.get(a, 0) + c
        return Ix(tuple(sorted((a, c) for a, c in total.items() if c)), self.offset + other.offset)


ZERO = Ix()
Index = tuple[Ix, ...]


def axis(name: str) -> Ix:
    return Ix(((name, 1),))


def backward(view: tuple[Any, ...], source_shape: Sequence[int], shape: Sequence[int], index: Index,
             extents: Extents) -> Index:  # fmt: skip
    """Index into the viewed tensor (of `source_shape`) from the reader's index into the view (of `shape`)."""
    kind = view[0]
    if kind == "permute":
        out: list[Ix] = [ZERO] * len(index)
        for position, dim in enumerate(view[1]):
            out[dim] = index[position]
        return tuple(out)
    if kind == "expand":
        return tuple(ZERO if s == 1 and t != 1 else ix for s, t, ix in zip(source_shape, shape, index))
    if kind == "slice":
        _, dim, start, step = view
        return tuple(ix.scaled(step, start) if d == dim else ix for d, ix in enumerate(index))
    if kind == "reshape":
        return regroup(shape, source_shape, index, extents)
    if kind == "pad":  # positions outside the viewed tensor hold the view's fill: `bounds` must be checked
        return tuple(ix.plus(Ix((), -low)) for ix, low in zip(index, view[1]))
    raise NotAffine(f"view {kind}")


def forward(view: tuple[Any, ...], source_shape: Sequence[int], shape: Sequence[int], index: Index,
            extents: Extents, free: Mapping[int, Ix] | None = None) -> Index:  # fmt: skip
    """Index of the view's element that holds the viewed tensor's element at `index`.

    Only where views are one to one; an expanded dimension takes `free[dim]` or raises NotAffine.
    """
    kind = view[0]
    if kind == "permute":
        return tuple(index[d] for d in view[1])
    if kind == "expand":
        out = []
        for d, (s, t) in enumerate(zip(source_shape, shape)):
            if s == t:
                out.append(index[d])
            elif free is not None and d in free:
                out.append(free[d])
            else:
                raise NotAffine("expanded dimension")
        return tuple(out)
    if kind == "reshape":
        return regroup(source_shape, shape, index, extents)
    raise NotAffine(f"{kind} is not one to one")


def regroup(old: Sequence[int], new: Sequence[int], index: Index, extents: Extents) -> Index:
    """Index into shape `new` of the element at `index` of shape `old` (same number of elements, row-major)."""
    out: list[Ix] = []
    i = j = 0
    while i < len(old) or j < len(new):
        i0, j0 = i, j
        a = b = 1
        while True:  # the smallest groups of dimensions with equal products
            if a == b and (i > i0 or j > j0) and not (a == 1 and i == i0 and j == j0):
                break
            if (a < b or j >= len(new)) and i < len(old):
                a *= old[i]
                i += 1
            elif j < len(new):
                b *= new[j]
                j += 1
            else:
                break
        if a != b:
            raise NotAffine(f"shapes {list(old)} and {list(new)}")
        linear, step = ZERO, 1
        for d in reversed(range(i0, i)):
            linear = linear.plus(index[d].scaled(step)) if old[d] != 1 else linear
            step *= old[d]
        out += split(linear, new[j0:j], extents)
    return tuple(out)


def split(linear: Ix, sizes: Sequence[int], extents: Extents) -> list[Ix]:
    """Row-major digits of `linear` for dimensions of `sizes`."""
    if 0 in sizes:
        return [ZERO] * len(sizes)
    digits: list[Ix] = []
    rest = linear
    for d in range(len(sizes)):
        inner = math.prod(sizes[d + 1 :])
        if sizes[d] == 1:
            digits.append(ZERO)
            continue
        if inner == 1:
            digits.append(rest)
            rest = ZERO
            continue
        high, low = [], []
        least = most = rest.offset  # of what the low terms reach; axes may be walked backwards
        for name, c in rest.terms:
            extent = extents[name]
            if c % inner == 0:
                high.append((name, c // inner))
                continue
            if abs(c) * (extent - 1) >= inner:
                if inner % c == 0 and extent % (inner // abs(c)) == 0:
                    raise NeedSplit(name, inner // abs(c))
                raise NotAffine(f"axis of {extent} steps of {c} over rows of {inner}")
            low.append((name, c))
            least, most = least + min(c, 0) * (extent - 1), most + max(c, 0) * (extent - 1)
        row = least // inner
        if most // inner != row:
            raise NotAffine("the index crosses a row")
        digits.append(Ix(tuple(high), row))
        rest = Ix(tuple(low), rest.offset - row * inner)
    return digits


def substitute(index: Index, name: str, hi: str, lo: str, inner: int) -> Index:
    """`index` after axis `name` was cut into `hi` * inner + `lo`."""
    out = []
    for ix in index:
        c = dict(ix.terms).get(name)
        if c is None:
            out.append(ix)
            continue
        terms = [t for t in ix.terms if t[0] != name] + [(hi, c * inner), (lo, c)]
        out.append(Ix(tuple(sorted(terms)), ix.offset))
    return tuple(out)


def reshaped_strides(
    shape: Sequence[int], strides: Sequence[int], new: Sequence[int]
) -> tuple[int, ...] | None:
    """Strides of shape `new` over memory laid out as (shape, strides), or None where a copy is needed."""
    runs: list[list[int]] = []  # (size, stride) of maximal runs that are walked as one
    for size, stride in zip(shape, strides):
        if size == 1:
            continue
        if runs and runs[-1][1] == stride * size:
            runs[-1] = [runs[-1][0] * size, stride]
        else:
            runs.append([size, stride])
    out = [0] * len(new)
    at = len(runs) - 1
    left = runs[at][0] if runs else 1
    step = runs[at][1] if runs else 1
    for d in reversed(range(len(new))):
        if new[d] == 1:
            out[d] = step
            continue
        if left == 1:
            at -= 1
            left, step = runs[at]
        if left % new[d]:
            return None
        out[d] = step
        left //= new[d]
        step *= new[d]
    return tuple(out)
