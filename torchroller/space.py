"""A tensor expression as numbers: what the search asks of it thousands of times.

    footprint  bytes that one tile of every operand takes (capacity, F in the Roller paper)
    traffic    bytes that all tiles together move through the level above (Q)

Both follow from the affine index expressions by interval arithmetic. `Space` is made once per search.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from torchroller.expr import Access, Affine, TensorExpr
from torchroller.operand import Operand
from torchroller.spec import DeviceSpec, Peak
from torchroller.tile import RTile, ceil_div

# Vector instructions of one application, for fp32, of the polynomials that a compiler inlines; divisions and
# roots count their reciprocal throughput. What matters is whether memory or arithmetic bounds a kernel.
OP_WEIGHT: dict[str, float] = {
    "acos": 18.0,
    "argmax": 3.0,
    "argmin": 3.0,
    "asin": 18.0,
    "atan": 16.0,
    "cos": 14.0,
    "div": 4.0,
    "erf": 10.0,
    "erfc": 20.0,
    "exp": 10.0,
    "exp2": 9.0,
    "expm1": 14.0,
    "fmod": 8.0,
    "imod": 8.0,
    "gelu": 13.0,
    "log": 12.0,
    "log10": 13.0,
    "log1p": 14.0,
    "log2": 12.0,
    "pow": 24.0,
    "reciprocal": 4.0,
    "remainder": 8.0,
    "rsqrt": 4.0,
    "sigmoid": 14.0,
    "silu": 15.0,
    "sin": 14.0,
    "softplus": 24.0,
    "sqrt": 4.0,
    "tan": 20.0,
    "tanh": 16.0,
    "welford": 6.0,
}
_LOAD = 0.5  # vector instructions of a CPU: two loads go at a time
# Of a value that a CPU kernel with its whole axis in one block keeps for its next loop, rather than compute it twice
# (the lowering's own limit is in triton_cpu/lowering/reduce.py).
_KEEP_WEIGHT = 9.0
KEEP_WEIGHT = 9.0  # of a value that a kernel keeps while it needs it again, rather than compute it twice


class Space:
    """Axes, operands, and which axes feed which side of a dot, by number instead of by name.

    spatial, reduce, m_axes, n_axes: axis numbers; m_axes move only the first argument of the dot, n_axes
    only the second. copies_rows, looks_up_rows: the rows of the first argument lie apart; they are computed into a
    copy, or read where a table says. inner: axes along which some operand is contiguous. passes: dependent reductions,
    the number of loops over the reduce axes that a program needs. vector_ops and row_ops: vector instructions
    per point of the whole space, and per spatial point; vector_moves and row_moves: what a CPU adds to them for
    loads and stores. borders: per axis, how many points at its two ends let one of the bounded_loads leave its tensor.
    """

    def __init__(
        self, expr: TensorExpr, packed: Collection[str] = (), gathered: Collection[str] = ()
    ) -> None:
        self.expr = expr
        self._packed = frozenset(packed)
        computed = bool(expr.dots) and expr.values[expr.dots[0].args[0]].access is None
        self.copies_rows, self.looks_up_rows = bool(gathered) and computed, bool(gathered) and not computed
        self.names = tuple(a.name for a in expr.axes)
        self.extents = tuple(max(1, a.extent) for a in expr.axes)
        self.is_reduce = tuple(a.kind == "reduce" for a in expr.axes)
        self.spatial = tuple(i for i, r in enumerate(self.is_reduce) if not r)
        self.reduce = tuple(i for i, r in enumerate(self.is_reduce) if r)
        self.points = math.prod(self.extents)
        self.flops = float(expr.flops())
        self._number = {name: i for i, name in enumerate(self.names)}
        self._varies, self._depth = expr.varies(), self._finished()
        combining = [i for i, v in enumerate(expr.values) if v.kind in ("reduce", "dot")]
        self.passes = max((self._depth[i] for i in combining), default=0)
        self._loops = self._needed_in()
        self.operands = self._operands()
        self.total_bytes = tuple(o.nbytes(self.extents) for o in self.operands)
        self.staged = tuple(o for o in self.operands if o.side)
        self.has_dot = bool(expr.dots)
        self.taps = self._taps()
        self.b_is_packed = any(o.packed for o in self.staged if o.side == "b")
        a_axes = {i for o in self.staged if o.side == "a" for i in o.axes}
        b_axes = {i for o in self.staged if o.side == "b" for i in o.axes}
        self.m_axes = tuple(i for i in self.spatial if i in a_axes - b_axes)
        self.n_axes = tuple(i for i in self.spatial if i in b_axes - a_axes)
        self.itemsize = max((o.itemsize for o in self.operands), default=4)
        self.inner = frozenset(axis for o in self.operands for axis in o.contiguous)
        self.vector = self._vector_axis()
        self.crossing, self.reduces_columns = self._directions()
        self.live_values = 1 + max(1, sum(1 for o in self.operands if o.axes and not o.write))
        self.vector_ops, self.row_ops = self._instructions()
        self.repeated_ops = self._repeated()
        self.vector_moves, self.row_moves = self._moves()
        self.bounded_loads = sum(a.bounded for a in expr.loads)
        self.borders = self._borders()
        self.shared_axes = self._shared_axes()
        image = {a.tensor for a in expr.loads if a.bounded}
        self.factor_loads = _LOAD * sum(a.tensor not in image for a in expr.loads)
        self._compute_dtype = self._find_compute_dtype()
        self._peaks: dict[str, Peak] = {}

    def peak(self, device: DeviceSpec) -> Peak:
        """The device's peak for the type that this expression computes in."""
        found = self._peaks.get(device.name)
        if found is None:
            found = self._peaks[device.name] = device.peak(self._compute_dtype)
        return found

    @property
    def dot_dtype(self) -> str | None:
        """Type of the operands of the dot; None without one."""
        return self._compute_dtype if self.has_dot else None

    def tile(self, extents: Sequence[int]) -> RTile:
        return RTile(self.names, tuple(extents))

    def order(self, extents: Mapping[str, int]) -> list[int]:
        """A mapping of axis name to extent as a list in axis order; axes left out take their whole length.

        Raises ValueError for a name that is no axis of the expression.
        """
        unknown = sorted(set(extents) - set(self.names))
        if unknown:
            raise ValueError(f"{self.expr.name} has no axis {unknown}; its axes are {list(self.names)}")
        return [extents.get(n, d) for n, d in zip(self.names, self.extents)]

    def footprint(self, e: Sequence[int]) -> int:
        """Bytes of every operand's tile at extents `e`: F."""
        return sum(o.nbytes(e) for o in self.operands)

    def traffic(self, e: Sequence[int], transaction_bytes: int = 1) -> float:
        """Bytes that all tiles of extents `e` move, each reading its operands over the whole reduction: Q.

        Contiguous runs shorter than a transaction are charged a whole one.
        """
        whole = [d if r else x for x, d, r in zip(e, self.extents, self.is_reduce)]
        tiles = 1
        for i in self.spatial:
            tiles *= ceil_div(self.extents[i], e[i])
        total = 0.0
        for o in self.operands:
            total += o.nbytes(whole) * o.charge(e, transaction_bytes)
        return total * tiles

    # -- reading the expression --------------------------------------------------------------------

    def _finished(self) -> list[int]:
        """Per value: how many reductions, one after the other, must be done before it is known."""
        depth: list[int] = []
        for v in self.expr.values:
            gathered = [a.indirect for a in v.access.index if a.indirect is not None] if v.access else []
            before = max((depth[i] for i in (*v.args, *gathered)), default=0)
            depth.append(before + (v.kind in ("reduce", "dot")))
        return depth

    def _needs(self, start: int, through: bool = False) -> set[int]:
        """Values that `start` is computed from, stopping at finished reductions unless `through`."""
        seen: set[int] = set()
        todo = [start]
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

    def _needed_in(self) -> dict[int, set[int]]:
        """Value -> the loops over the reduce axes that need it, of values that vary in them."""
        values, varies = self.expr.values, self._varies
        loops: dict[int, set[int]] = {}
        ends = [
            (self._needs(i) - {i}, self._depth[i] - 1)
            for i, v in enumerate(values)
            if v.kind in ("reduce", "dot")
        ]
        ends += [(self._needs(w.value), self.passes) for w in self.expr.writes if varies[w.value]]
        for needed, loop in ends:
            for j in needed:
                if varies[j]:
                    loops.setdefault(j, set()).add(loop)
        return loops

    def _operands(self) -> tuple[Operand, ...]:
        values, varies = self.expr.values, self._varies
        side: dict[int, str] = {}
        for v in values:
            if v.kind == "dot":
                for name, arg in zip("ab", v.args):
                    for j in self._needs(arg):
                        side.setdefault(j, name)
        found: dict[tuple, Operand] = {}
        for i, v in enumerate(values):
            if v.access is not None:
                passes = len(self._loops.get(i, ()))
                self._add(found, self._operand(v.access, passes, side.get(i, "")), v.access)
        for w in self.expr.writes:
            self._add(found, self._operand(w.access, int(varies[w.value]), "", write=True), w.access)
        return self._reached(found.values())

    @staticmethod
    def _add(found: dict[tuple, Operand], new: Operand, access: Access) -> None:
        """Keep one operand per distinct access; the same data used twice is moved once."""
        key: tuple = (new.tensor, new.dims, access.offset, tuple(a.offset for a in access.index), new.write)
        if access.bounded and not access.gathers:
            key = (new.tensor, new.dims, new.write)  # the taps of a window read the same data
        old = found.get(key)
        if old is not None:
            new = replace(old, passes=max(old.passes, new.passes), side=old.side or new.side)
        found[key] = new

    def _reached(self, operands: Iterable[Operand]) -> tuple[Operand, ...]:
        """The operands with what the taps of windows reach beyond the first of them."""
        offsets: dict[tuple, list[tuple[int, ...]]] = {}
        for access in self.expr.loads:
            if access.bounded and not access.gathers:
                kept = [
                    (abs(s), max(1, n), ix)
                    for s, n, ix in zip(access.strides, access.shape, access.index)
                    if s
                ]
                kept.sort(key=lambda d: d[:2])
                terms = tuple(self._terms(ix) for _, _, ix in kept)
                offsets.setdefault((access.tensor, terms), []).append(tuple(ix.offset for _, _, ix in kept))
        found = []
        for o in operands:
            taps = offsets.get((o.tensor, tuple(terms for _, terms, _ in o.dims)), []) if not o.write else []
            beyond = tuple(max(at) - min(at) for at in zip(*taps)) if taps else (0,) * len(o.dims)
            found.append(replace(o, beyond=beyond))
        return tuple(found)

    def _taps(self) -> int:
        """How many loads of one tensor differ only in where they start: the taps of a window that is written out."""
        counts: dict[tuple, int] = {}
        for access in self.expr.loads:
            if access.bounded and not access.gathers:
                key = (access.tensor, tuple(a.terms for a in access.index))
                counts[key] = counts.get(key, 0) + 1
        return max(counts.values(), default=1)

    def _operand(self, access: Access, passes: int, side: str, write: bool = False) -> Operand:
        dims = []
        for length, stride, index in zip(access.shape, access.strides, access.index):
            if stride == 0:
                continue  # an expanded dimension: every index is the same place
            terms = self._terms(index)
            if index.indirect is not None:
                # One gathered row per point of the axes that the index value itself moves along.
                terms = tuple((axis, 1) for axis in self._axes_of(index.indirect))
            dims.append((max(1, length), terms, abs(stride)))
        dims.sort(key=lambda d: (d[2], d[0]))
        axes = frozenset(axis for _, terms, _ in dims for axis, _ in terms)
        indirect = any(a.indirect is not None for a in access.index)
        return Operand(
            tensor=access.tensor,
            itemsize=access.itemsize,
            dims=tuple(dims),
            axes=axes,
            write=write,
            passes=passes,
            side=side,
            indirect=indirect,
            packed=access.tensor in self._packed,
        )

    def _terms(self, index: Affine) -> tuple[tuple[int, int], ...]:
        """(axis number, |coefficient|) by rising coefficient."""
        known = {n: index.coefficient(n) for n, _ in index.terms if n in self._number}
        pairs = ((self._number[n], abs(c)) for n, c in known.items() if c)
        return tuple(sorted(pairs, key=lambda t: (t[1], t[0])))

    def _axes_of(self, value: int) -> list[int]:
        axes = set()
        for i in self._needs(value, through=True):
            v = self.expr.values[i]
            if v.axis in self._number:
                axes.add(self._number[v.axis])
            if v.access is not None:
                axes |= {
                    self._number[n] for a in v.access.index for n, c in a.terms if c and n in self._number
                }
        return sorted(axes)

    def _vector_axis(self) -> int | None:
        """The axis on which most bytes of the operands are contiguous: vectors run along it."""
        weight: dict[int, int] = {}
        for o, total in zip(self.operands, self.total_bytes):
            for axis in o.contiguous:
                weight[axis] = weight.get(axis, 0) + total * (2 if o.write else 1)
        return max(weight, key=lambda axis: (weight[axis], axis)) if weight else None

    def _directions(self) -> tuple[frozenset[Operand], bool]:
        """Operands that are not contiguous along the vectors of the kernel; whether it sums across vectors."""
        vector = self.vector
        if vector is None:
            return frozenset(), False
        crossing = (o for o in self.operands if o.contiguous and vector in o.axes - o.contiguous)
        summed = bool(self.reduce) and not self.is_reduce[vector]
        return frozenset(crossing), summed

    def _instructions(self) -> tuple[float, float]:
        full = row = 0.0
        for i, v in enumerate(self.expr.values):
            if v.kind not in ("call", "reduce"):
                continue
            weight = OP_WEIGHT.get(v.fn or "", 1.0)
            if self._varies[i] or (v.kind == "reduce" and any(self._varies[j] for j in v.args)):
                full += weight
            else:
                row += weight
        return full, row

    def _repeated(self) -> tuple[float, float]:
        """Vector instructions per point of the loops that need a value another one has computed: cheap ones, and costly
        ones, which a block that holds the whole axis keeps."""
        count = [0.0, 0.0]
        for i, v in enumerate(self.expr.values):
            weight = _LOAD if v.access is not None else OP_WEIGHT.get(v.fn or "", 1.0)
            if v.access is not None or v.kind == "call":
                count[weight >= _KEEP_WEIGHT] += weight * max(0, len(self._loops.get(i, ())) - 1)
        return count[0], count[1]

    def _moves(self) -> tuple[float, float]:
        """Loads and stores as vector instructions of a CPU per point of the whole space, per spatial point."""
        count = [0.0, 0.0]
        for v, varies in zip(self.expr.values, self._varies):
            if v.access is not None:
                count[not varies] += _LOAD
        for w in self.expr.writes:
            varies = self._varies[w.value]
            count[not varies] += 1.0
        return count[0], count[1]

    def _borders(self) -> dict[int, tuple[int, int]]:
        found: dict[int, tuple[int, int]] = {}
        for access in self.expr.loads:
            for index, size in zip(access.index, access.shape) if access.bounded else ():
                terms = self._terms(index)
                last = index.offset + sum(c * (self.extents[axis] - 1) for axis, c in terms)
                for axis, c in terms:
                    low, high = found.get(axis, (0, 0))
                    found[axis] = (
                        max(low, ceil_div(-index.offset, c)),
                        max(high, ceil_div(last - size + 1, c)),
                    )
        return {axis: ends for axis, ends in found.items() if any(ends)}

    def _shared_axes(self) -> frozenset[int] | None:
        """Where vectors run along the positions of a window: the axes whose points share its factors and the tests of
        its columns, which a program then computes once. None for any other kernel."""
        slid = {axis for a in self.expr.loads if a.bounded for ix in a.index if len(ix.terms) == 1
                for axis, _ in self._terms(ix)}  # fmt: skip
        moved = {axis for o in self.operands if not o.write and not any(o.beyond) for axis in o.axes}
        if self.taps < 2 or self.vector not in slid - moved:
            return None
        return frozenset(self.spatial) - moved - {self.vector}

    def _find_compute_dtype(self) -> str:
        for v in self.expr.dots:
            return self.expr.values[v.args[0]].dtype
        floats = [v.dtype for v in self.expr.values if v.dtype.startswith(("float", "bfloat"))]
        return floats[-1] if floats else "float32"
