"""RTile and RProgram: tiles of a tensor expression, their footprint, traffic and alignment.

An rTile is an extent for each axis of the iteration space. What it costs follows from the index expressions:

    footprint  bytes that one tile of every operand takes (capacity, F in the Roller paper)
    traffic    bytes that all tiles together move through the level above (Q)

`Space` holds the expression in the numeric form that these two need; it is made once per search. An rProgram is
one tile per memory level, from the grid down to registers, with the launch parameters of the Triton kernel.

Source of the terms: Zhu et al., ROLLER, OSDI 2022.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torchroller.device import size_text
from torchroller.expr import Access, TensorExpr

if TYPE_CHECKING:
    from torchroller.cost import Estimate


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def next_pow2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def padded(extent: int, step: int) -> int:
    """The axis length after padding to whole steps."""
    return ceil_div(extent, step) * step


@dataclass(frozen=True)
class RTile:
    """Extents per axis, in the order of the expression; `storage_padding` is (tensor, elements) per row.

    Storage padding lengthens the innermost dimension of a staged tile so that rows start in different banks.
    """

    axes: tuple[str, ...]
    extents: tuple[int, ...]
    storage_padding: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if len(self.axes) != len(self.extents):
            raise ValueError(f"a tile of axes {self.axes} needs as many extents, got {self.extents}")
        for name, extent in zip(self.axes, self.extents):
            if extent < 1:
                raise ValueError(f"tile extent of axis {name!r} is {extent}; it must be at least 1")

    def __getitem__(self, axis: str) -> int:
        return self.extents[self.axes.index(axis)]

    def as_dict(self) -> dict[str, int]:
        return dict(zip(self.axes, self.extents))

    def __str__(self) -> str:
        tile = " ".join(f"{a}:{e}" for a, e in zip(self.axes, self.extents))
        pads = "".join(f" +{n} on {t}" for t, n in self.storage_padding)
        return tile + pads


@dataclass(frozen=True)
class Operand:
    """One distinct access of a kernel in numeric form.

    dims: per tensor dimension (length, ((axis number, |coefficient|), …), stride), innermost in memory first.
    passes: how often a program that loops over the reduce axes walks over it; 0 for data outside the loop.
    side: "a" or "b" for what feeds the first or second argument of a dot, "" otherwise.
    """

    tensor: str
    itemsize: int
    dims: tuple[tuple[int, tuple[tuple[int, int], ...], int], ...]
    axes: frozenset[int]
    write: bool
    passes: int
    side: str
    indirect: bool

    def elements(self, e: tuple[int, ...] | list[int]) -> int:
        """Elements of the data tile that a tile of extents `e` touches, clipped to the tensor."""
        total = 1
        for length, terms, _ in self.dims:
            span = 1
            for axis, coefficient in terms:
                span += coefficient * (e[axis] - 1)
            total *= span if span < length else length
        return total

    def nbytes(self, e: tuple[int, ...] | list[int]) -> int:
        return self.elements(e) * self.itemsize

    def run_bytes(self, e: tuple[int, ...] | list[int]) -> int:
        """Length of one contiguous run of the data tile in memory."""
        run, expect = 1, 1
        for length, terms, stride in self.dims:
            if length == 1:
                continue
            if stride != expect:
                break
            span = 1
            for axis, coefficient in terms:
                span += coefficient * (e[axis] - 1)
            if span < length:
                run *= span
                break
            run, expect = run * length, expect * length
        return run * self.itemsize


class Space:
    """A tensor expression as numbers: axes, operands, which axes feed which side of a dot."""

    def __init__(self, expr: TensorExpr) -> None:
        self.expr = expr
        self.names = tuple(a.name for a in expr.axes)
        self.extents = tuple(max(1, a.extent) for a in expr.axes)
        self.is_reduce = tuple(a.kind == "reduce" for a in expr.axes)
        self.spatial = tuple(i for i, r in enumerate(self.is_reduce) if not r)
        self.reduce = tuple(i for i, r in enumerate(self.is_reduce) if r)
        self._number = {name: i for i, name in enumerate(self.names)}
        varies, depth = self._dependence()
        self.passes = max(
            (depth[i] for i, v in enumerate(expr.values) if v.kind in ("reduce", "dot")), default=0
        )
        self.operands = self._operands(varies, depth)
        self.loads = tuple(o for o in self.operands if not o.write)
        self.writes = tuple(o for o in self.operands if o.write)
        self.staged = tuple(o for o in self.loads if o.side)
        self.has_dot = bool(expr.dots)
        a_axes = (
            frozenset().union(*(o.axes for o in self.staged if o.side == "a"))
            if self.has_dot
            else frozenset()
        )
        b_axes = (
            frozenset().union(*(o.axes for o in self.staged if o.side == "b"))
            if self.has_dot
            else frozenset()
        )
        space = set(self.spatial)
        self.m_axes = tuple(sorted(space & (a_axes - b_axes)))
        self.n_axes = tuple(sorted(space & (b_axes - a_axes)))
        self.dot_dtype = self._dot_dtype()
        self.itemsize = max((o.itemsize for o in self.operands), default=4)
        self.inner = self._innermost_axes()
        self.vector_ops, self.row_ops = self._op_counts(varies)
        self.flops = expr.flops()

    def _dependence(self) -> tuple[list[bool], list[int]]:
        """Per value: does it vary along a reduce axis; in which pass over the reduce axes can it be known."""
        reduce_names = {self.names[i] for i in self.reduce}
        varies: list[bool] = []
        depth: list[int] = []
        for v in self.expr.values:
            args_depth = max((depth[i] for i in v.args), default=0)
            if v.kind in ("reduce", "dot"):
                varies.append(any(varies[i] for i in v.args) and not reduce_names <= set(v.over))
                depth.append(args_depth + 1)
            else:
                own = v.axis in reduce_names
                if v.access is not None:
                    own = any(name in reduce_names for a in v.access.index for name, _ in a.terms)
                varies.append(own or any(varies[i] for i in v.args))
                depth.append(args_depth)
        return varies, depth

    def _closure(self, start: int, through: bool) -> set[int]:
        """Values that `start` needs, stopping at reductions (whose result is at hand) unless `through`."""
        seen, todo = set(), [start]
        while todo:
            i = todo.pop()
            if i in seen:
                continue
            seen.add(i)
            value = self.expr.values[i]
            if through or i == start or value.kind not in ("reduce", "dot"):
                todo.extend(value.args)
            if value.access is not None:
                todo.extend(a.indirect for a in value.access.index if a.indirect is not None)
        return seen

    def _operands(self, varies: list[bool], depth: list[int]) -> tuple[Operand, ...]:
        values = self.expr.values
        used_in: dict[int, set[int]] = {}
        side: dict[int, str] = {}
        for i, v in enumerate(values):
            if v.kind in ("reduce", "dot"):
                for j in self._closure(i, False) - {i}:
                    if varies[j]:
                        used_in.setdefault(j, set()).add(depth[i] - 1)
                if v.kind == "dot":
                    for name, arg in zip("ab", v.args):
                        for j in self._closure(arg, False):
                            side.setdefault(j, name)
        last = self.passes
        for w in self.expr.writes:
            if varies[w.value]:
                for j in self._closure(w.value, False):
                    if varies[j]:
                        used_in.setdefault(j, set()).add(last)
        found: dict[tuple, Operand] = {}
        for i, v in enumerate(values):
            if v.access is not None:
                self._add(found, v.access, False, len(used_in.get(i, ())), side.get(i, ""))
        for w in self.expr.writes:
            self._add(found, w.access, True, 1 if varies[w.value] else 0, "")
        return tuple(found.values())

    def _add(self, found: dict[tuple, Operand], access: Access, write: bool, passes: int, side: str) -> None:
        dims = []
        for length, stride, index in zip(access.shape, access.strides, access.index):
            terms = tuple(
                (self._number[name], abs(c)) for name, c in index.terms if c and name in self._number
            )
            if index.indirect is not None:
                # One gathered row per point of the axes that the index value itself moves along.
                terms = tuple((a, 1) for a in self._indirect_axes(index.indirect))
            dims.append((length, terms, stride))
        dims.sort(key=lambda d: (d[2], d[0]))
        operand = Operand(
            access.tensor, access.itemsize, tuple(dims), frozenset(a for _, terms, _ in dims for a, _ in terms),
            write, passes, side, any(a.indirect is not None for a in access.index),
        )  # fmt: skip
        key = (operand.tensor, operand.dims, access.offset, write)
        if key in found:
            old = found[key]
            operand = Operand(
                old.tensor, old.itemsize, old.dims, old.axes, write, max(old.passes, passes), old.side or side,
                old.indirect,
            )  # fmt: skip
        found[key] = operand

    def _indirect_axes(self, value: int) -> list[int]:
        axes = set()
        for i in self._closure(value, True):
            v = self.expr.values[i]
            if v.axis in self._number:
                axes.add(self._number[v.axis])
            if v.access is not None:
                axes |= {
                    self._number[n] for a in v.access.index for n, c in a.terms if c and n in self._number
                }
        return sorted(axes)

    def _dot_dtype(self) -> str:
        for v in self.expr.dots:
            return self.expr.values[v.args[0]].dtype
        floats = [v.dtype for v in self.expr.values if v.dtype.startswith(("float", "bfloat"))]
        return floats[-1] if floats else "float32"

    def _innermost_axes(self) -> frozenset[int]:
        """Axes along which some operand is contiguous in memory: they set transaction alignment."""
        inner = set()
        for o in self.operands:
            for length, terms, stride in o.dims:
                if stride == 1 and length > 1:
                    inner |= {axis for axis, c in terms if c == 1}
        return frozenset(inner)

    def _op_counts(self, varies: list[bool]) -> tuple[float, float]:
        """Vector instructions per point of the whole space (reduce axes included), and per spatial point."""
        full = row = 0.0
        for i, v in enumerate(self.expr.values):
            if v.kind not in ("call", "reduce"):
                continue
            weight = OP_WEIGHT.get(v.fn or "", 1.0)
            if varies[i] or (v.kind == "reduce" and any(varies[j] for j in v.args)):
                full += weight
            else:
                row += weight
        return full, row

    def tile(self, extents: Iterable[int]) -> RTile:
        return RTile(self.names, tuple(extents))

    def order(self, extents: Mapping[str, int]) -> list[int]:
        """A mapping of axis name to extent as a list in axis order; axes left out take their whole length.

        Raises ValueError for a name that is no axis of the expression.
        """
        unknown = set(extents) - set(self.names)
        if unknown:
            raise ValueError(
                f"{self.expr.name} has no axis {sorted(unknown)}; its axes are {list(self.names)}"
            )
        return [extents.get(n, d) for n, d in zip(self.names, self.extents)]

    def footprint(self, e: list[int] | tuple[int, ...]) -> int:
        """Bytes of every operand tile at extents `e`."""
        return sum(o.nbytes(e) for o in self.operands)

    def traffic(self, e: list[int] | tuple[int, ...], transaction_bytes: int = 1) -> float:
        """Bytes that all tiles of spatial extents `e` move, each reading its operands over the whole reduction.

        Runs shorter than a transaction are charged a whole one.
        """
        whole = [d if r else x for x, d, r in zip(e, self.extents, self.is_reduce)]
        tiles = 1
        for i in self.spatial:
            tiles *= ceil_div(self.extents[i], e[i])
        total = 0.0
        for o in self.operands:
            run = o.run_bytes(whole)
            total += o.nbytes(whole) * (padded(run, transaction_bytes) / run)
        return total * tiles


# Vector instructions of one application, for fp32, of the polynomials that a compiler inlines. Divisions and roots
# count their reciprocal throughput. Only the order of magnitude matters: is a kernel bound by memory or by arithmetic.
OP_WEIGHT: dict[str, float] = {
    "exp": 10, "exp2": 9, "expm1": 14, "log": 12, "log2": 12, "log10": 13, "log1p": 14, "tanh": 16, "erf": 18,
    "erfc": 20, "sigmoid": 14, "silu": 15, "gelu": 20, "sin": 14, "cos": 14, "tan": 20, "atan": 16, "asin": 18,
    "acos": 18, "pow": 24, "div": 4, "sqrt": 4, "rsqrt": 4, "reciprocal": 4, "fmod": 8, "remainder": 8,
    "welford": 6, "argmax": 3, "argmin": 3, "softplus": 24, "mish": 40,
}  # fmt: skip


@dataclass(frozen=True)
class RProgram:
    """One way to run a kernel: tiles per memory level and the launch parameters that follow.

    block: extent of one Triton program per spatial axis (powers of two)
    step:  extent of one loop iteration per reduce axis (powers of two; >= the axis means no loop)
    grid:  number of programs
    levels: (memory level, tile resident there), from the whole problem in DRAM down to registers
    """

    name: str
    device: str
    block: Mapping[str, int]
    step: Mapping[str, int]
    num_warps: int
    num_stages: int
    grid: int
    levels: tuple[tuple[str, RTile], ...]
    estimate: Estimate
    extents: Mapping[str, int] = field(default_factory=dict)

    def holds(self, axis: str) -> bool:
        """Whether a program takes the whole of a reduce axis at once instead of looping over it."""
        return self.step[axis] >= self.extents[axis]

    @property
    def key(self) -> str:
        """Short, unique among the rPrograms of one expression on one device."""
        parts = [f"{a}{e}" for a, e in (*self.block.items(), *self.step.items())]
        return f"{'_'.join(parts)}_w{self.num_warps}_s{self.num_stages}"

    def __str__(self) -> str:
        lines = [
            f"{self.name} on {self.device}: grid {self.grid}, {self.num_warps} warps, {self.num_stages} stages"
        ]
        if self.device and self.num_warps == 1 and self.num_stages == 1:
            lines = [f"{self.name} on {self.device}: grid {self.grid}"]
        width = max(len(name) for name, _ in self.levels)
        for depth, (name, tile) in enumerate(self.levels):
            lines.append(f"  {'  ' * depth}{name:<{width}}  {tile}")
        for axis, step in self.step.items():
            trips = ceil_div(self.extents[axis], step)
            how = "whole axis in one block" if trips == 1 else f"{trips} iterations of {step}"
            lines.append(f"  reduce {axis}: {how}")
        lines.append(f"  {self.estimate}")
        return "\n".join(lines)


def describe_bytes(space: Space, tile: RTile) -> str:
    return size_text(space.footprint(tile.extents))


def count(values: Iterable[int]) -> int:
    return math.prod(values)
