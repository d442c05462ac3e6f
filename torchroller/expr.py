"""Tensor expressions: the grammar that every later stage reads.

    kernel  := TensorExpr(axes, values, writes)          one fused kernel, one iteration space
    axes    := (Axis ...)                                spatial first, then reduce
    values  := (Value ...)                               SSA; a scalar at one point of the iteration space
    value   := load | const | index | call | reduce | scan | dot
    access  := tensor, affine index per tensor dimension, strides

    row-wise softmax over X[M, N]:
        axes    m: spatial 64, n: reduce 1000
        v0 = load X[m, n]
        v1 = reduce max v0 over n          (a scalar of m)
        v2 = call sub v0 v1
        v3 = call exp v2
        v4 = reduce sum v3 over n
        v5 = call div v3 v4                (a value of m, n again)
        write Y[m, n] = v5

An index is affine in the axes, so footprints and traffic of any tile follow from interval arithmetic
(`Access.extent`); indirect indices (embedding) name the value that holds them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

AxisKind = Literal["spatial", "reduce"]
ValueKind = Literal["load", "const", "index", "call", "reduce", "scan", "dot"]

ITEMSIZE = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """One loop of the iteration space, `extent` points long."""

    name: str
    extent: int
    kind: AxisKind = "spatial"

    def __str__(self) -> str:
        return f"{self.name}:{self.extent}{'r' if self.kind == 'reduce' else ''}"


@dataclass(frozen=True)
class Affine:
    """`sum(coefficient * axis) + offset`; `indirect` adds the integer value of that number in `values`."""

    terms: tuple[tuple[str, int], ...] = ()
    offset: int = 0
    indirect: int | None = None

    def coefficient(self, axis: str) -> int:
        return sum(c for name, c in self.terms if name == axis)

    def extent(self, tile: Mapping[str, int]) -> int:
        """How many distinct positions a tile of these axis extents spans (bounding interval)."""
        return 1 + sum(abs(c) * (tile.get(name, 1) - 1) for name, c in self.terms)

    def __str__(self) -> str:
        parts = [f"{name}" if c == 1 else f"{c}*{name}" for name, c in self.terms]
        if self.indirect is not None:
            parts.append(f"v{self.indirect}")
        if self.offset or not parts:
            parts.append(str(self.offset))
        return "+".join(parts).replace("+-", "-")


@dataclass(frozen=True)
class Access:
    """One tensor read or written at an affine index; `strides` are in elements.

    `bounded` says that the index may leave `shape` (padding): the load is then masked and gives `fill`.
    """

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    index: tuple[Affine, ...]
    offset: int = 0
    bounded: bool = False
    fill: float | int | bool = 0

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def gathers(self) -> bool:
        """Is some position itself data?"""
        return any(a.indirect is not None for a in self.index)

    def extent(self, tile: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of the data tile that a tile of the iteration space touches, clipped to the tensor."""
        return tuple(min(d, a.extent(tile)) if a.indirect is None else min(d, math.prod(tile.values()))
                     for d, a in zip(self.shape, self.index))  # fmt: skip

    def stride_of(self, axis: str) -> int:
        """Elements between two neighbours along `axis` in memory; 0 where the tensor does not move."""
        return sum(a.coefficient(axis) * s for a, s in zip(self.index, self.strides))

    def __str__(self) -> str:
        return f"{self.tensor}[{', '.join(map(str, self.index))}]"


@dataclass(frozen=True)
class Value:
    """One SSA value. `args` number earlier values; what else a kind needs stands in its own field.

    load:   access                        const: number (float | int | bool)      index: axis
    call:   fn (a name of ops.pointwise) and args
    reduce: fn (sum, prod, max, min, argmax, argmin, any, all, welford…), args, over (names of reduce axes)
    scan:   fn (add, mul, logaddexp) of args up to each point of `axis`
    dot:    args = (a, b), over = the contracted axis; accumulates in `dtype`
    """

    kind: ValueKind
    dtype: str
    args: tuple[int, ...] = ()
    access: Access | None = None
    number: float | int | bool | None = None
    axis: str | None = None
    fn: str | None = None
    over: tuple[str, ...] = ()

    def __str__(self) -> str:
        args = " ".join(f"v{i}" for i in self.args)
        what = {"load": str(self.access), "const": str(self.number), "index": str(self.axis),
                "call": f"{self.fn} {args}", "reduce": f"{self.fn} {args} over {','.join(self.over)}",
                "scan": f"{self.fn} {args} along {self.axis}",
                "dot": f"{args} over {','.join(self.over)}"}[self.kind]  # fmt: skip
        return f"{self.kind} {what} : {self.dtype}"


@dataclass(frozen=True)
class Write:
    """`access = values[value]`; `atomic` names how a scatter combines (set, add, prod, max, min), in order of the axes
    that the access does not name."""

    access: Access
    value: int
    atomic: str | None = None


@dataclass(frozen=True)
class TensorExpr:
    """One kernel: an iteration space, what is computed at each point, what is written where."""

    name: str
    axes: tuple[Axis, ...]
    values: tuple[Value, ...]
    writes: tuple[Write, ...]
    source: tuple[str, ...] = field(
        default=(), compare=False
    )  # FX node names, with the user's line where known

    @property
    def spatial(self) -> tuple[Axis, ...]:
        return tuple(a for a in self.axes if a.kind == "spatial")

    @property
    def reduce(self) -> tuple[Axis, ...]:
        return tuple(a for a in self.axes if a.kind == "reduce")

    @property
    def loads(self) -> tuple[Access, ...]:
        return tuple(v.access for v in self.values if v.access is not None)

    @property
    def dots(self) -> tuple[Value, ...]:
        return tuple(v for v in self.values if v.kind == "dot")

    def varies(self) -> tuple[bool, ...]:
        """Per value: does it move along a reduce axis, or is it one number per spatial point."""
        reduce_names = {a.name for a in self.reduce}
        found: list[bool] = []
        for v in self.values:
            if v.kind in ("reduce", "dot"):
                found.append(any(found[i] for i in v.args) and not reduce_names <= set(v.over))
                continue
            own = v.axis in reduce_names
            if v.access is not None:
                own = any(name in reduce_names for a in v.access.index for name, _ in a.terms)
                own = own or any(found[a.indirect] for a in v.access.index if a.indirect is not None)
            found.append(own or any(found[i] for i in v.args))
        return tuple(found)

    def flops(self, tile: Mapping[str, int] | None = None) -> int:
        """Floating-point operations of a tile (default: everything); a dot or a multiply-add counts two."""
        extent = {a.name: a.extent for a in self.axes} | dict(tile or {})
        moves = self.moves()
        total = 0
        for v, own in zip(self.values, moves):
            if v.kind == "dot":
                total += 2 * math.prod(extent[a] for a in moves[v.args[0]] | moves[v.args[1]])
            elif v.kind == "reduce":
                total += math.prod(extent[a] for a in frozenset().union(*(moves[i] for i in v.args)))
            elif v.kind in ("call", "scan"):
                total += math.prod(extent[a] for a in own)
        return total

    def moves(self) -> tuple[frozenset[str], ...]:
        """Per value: the axes along which it differs; it is computed once for each of their points."""
        found: list[frozenset[str]] = []
        for v in self.values:
            own = frozenset().union(*(found[i] for i in v.args))
            if v.access is not None:
                for index in v.access.index:
                    own |= {name for name, _ in index.terms}
                    if index.indirect is not None:
                        own |= found[index.indirect]
            if v.axis is not None:
                own |= {v.axis}
            found.append(own - set(v.over))
        return tuple(found)

    def bytes(self) -> int:
        """Compulsory traffic: every tensor that is read or written, once."""
        seen: dict[str, int] = {}
        for access in (*self.loads, *(w.access for w in self.writes)):
            used = {a.name: a.extent for a in self.axes}
            seen[access.tensor] = max(
                seen.get(access.tensor, 0), math.prod(access.extent(used)) * access.itemsize
            )
        return sum(seen.values())

    def __str__(self) -> str:
        lines = [f"{self.name}  axes {' '.join(map(str, self.axes))}"]
        lines += [f"  v{i} = {v}" for i, v in enumerate(self.values)]
        lines += [
            f"  write {w.access} = v{w.value}{f' ({w.atomic})' if w.atomic else ''}" for w in self.writes
        ]
        return "\n".join(lines)
