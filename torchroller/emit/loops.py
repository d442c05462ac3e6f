"""Pointwise and reduction kernels.

A program owns one block of the spatial axes. Vector axes (block > 1) become `tl.arange` dimensions, the other
spatial axes are scalars decoded from the program number. Reduce axes whose block covers them are held whole;
longer ones are walked in a loop, once per level of dependent reductions, with loads repeated.
"""

from __future__ import annotations

from ..expr import Axis, TensorExpr
from ..graph import compute_type
from .common import TL, Body, Tiling, TritonSource, dependences, finish, wide_index

NEUTRAL = {"sum": "0", "prod": "1", "any": "0", "all": "1"}


def emit_loops(expr: TensorExpr, tiling: Tiling, name: str, check: bool = False) -> TritonSource:
    """Triton text of a kernel without dots; `check` flags indices that leave their tensor."""
    return _Loops(expr, tiling, name, check).run()


class _Loops:
    def __init__(self, expr: TensorExpr, tiling: Tiling, name: str, check: bool) -> None:
        self.expr, self.tiling, self.name = expr, tiling, name
        self.depends = dependences(expr)
        self.body = Body(expr, check=check, apart=tiling.gpu)
        self.extent = {a.name: a.extent for a in expr.axes}
        self.vector = self.vector_axes()
        self.over = frozenset(a.name for a in expr.reduce)
        self.looped = [a for a in expr.reduce if self.block(a) < a.extent]
        self.stage = self.stages()

    def block(self, axis: Axis) -> int:
        return self.tiling.of(axis.name)

    def vector_axes(self) -> list[str]:
        """Tile dimensions, outermost first: the axis with the smallest steps in memory is last."""
        wide = [a for a in self.expr.axes if self.block(a) > 1]
        accesses = [*self.expr.loads, *(w.access for w in self.expr.writes)]

        def step(a: Axis) -> tuple[int, int]:
            contiguous = sum(abs(x.stride_of(a.name)) == 1 for x in accesses)
            return (contiguous, -min((abs(s) for x in accesses if (s := x.stride_of(a.name))), default=0))

        return [a.name for a in sorted(wide, key=step)]

    def stages(self) -> list[int]:
        """How many reductions must be finished before a value can be computed."""
        out: list[int] = []
        for v in self.expr.values:
            args = [*v.args]
            if v.access:
                args += [ix.indirect for ix in v.access.index if ix.indirect is not None]
            out.append(max((out[a] for a in args), default=0) + (v.kind == "reduce"))
        return out

    def shaped(self, axis: str) -> str:
        rank = len(self.vector)
        at = self.vector.index(axis)
        dims = ", ".join(":" if d == at else "None" for d in range(rank))
        return f"[{dims}]" if rank > 1 else ""

    def run(self) -> TritonSource:
        body, expr = self.body, self.expr
        grid = self.program_axes()
        for a in expr.reduce:
            if a not in self.looped:
                self.coordinate(a, "")
        if self.looped:
            self.passes()
        else:
            self.whole()
        return finish(body, self.tiling, self.name, grid)

    def program_axes(self) -> int:
        body = self.body
        spatial = list(self.expr.spatial)
        counts = [-(-a.extent // self.block(a)) for a in spatial]
        grid = 1
        for c in counts:
            grid *= c
        if spatial:
            body.line("pid = tl.program_id(0)" + (".to(tl.int64)" if wide_index(self.expr) else ""))
        rest = "pid"
        left = [(a, c) for a, c in zip(spatial, counts) if c > 1]
        for a, c in zip(spatial, counts):
            if c == 1:
                self.coordinate(a, "0")
        for i, (a, c) in enumerate(reversed(left)):
            last = i == len(left) - 1
            part = rest if last else f"{rest} % {c}"
            body.line(f"p_{a.name} = {part}")
            if not last:
                body.line(f"q_{a.name} = {rest} // {c}")
                rest = f"q_{a.name}"
            self.coordinate(a, f"p_{a.name}")
        return grid

    def coordinate(self, a: Axis, tile: str) -> None:
        """Defines the coordinate of an axis from the number of its tile ("" and "0": the first)."""
        block, body = self.block(a), self.body
        if block == 1:
            body.position[a.name] = tile or "0"
            return
        start = f"{tile} * {block} + " if tile not in ("", "0") else ""
        body.line(f"{a.name} = ({start}tl.arange(0, {block})){self.shaped(a.name)}")
        body.position[a.name] = a.name
        if a.extent % block:
            body.masks[a.name] = f"({a.name} < {a.extent})"

    # ---- everything at once ----
    def whole(self) -> None:
        body = self.body
        top = max((self.stage[w.value] for w in self.expr.writes), default=0)
        for stage in range(1, top + 1):
            for n, v in enumerate(self.expr.values):
                if v.kind == "reduce" and self.stage[n] == stage:
                    body.compute([v.args[0]], self.depends)
                    self.reduce_block(n, body.have[v.args[0]], self.depends[v.args[0]])
        self.writes(range(len(self.expr.writes)))

    def writes(self, which: range | list[int]) -> None:
        for i in which:
            w = self.expr.writes[i]
            self.body.compute([w.value], self.depends)
            axes = frozenset(a for ix in w.access.index for a, _ in ix.terms)
            self.body.store(w.access, self.body.have[w.value], w.access.dtype, axes)

    def reduce_block(self, n: int, value: str, depends: frozenset[str]) -> None:
        """Defines v{n} as the reduction of a block over its reduce axes."""
        v, body = self.expr.values[n], self.body
        dims = [d for d, a in enumerate(self.vector) if a in v.over]
        value = self.prepared(v.fn or "", value, v.dtype, depends)
        for d in reversed(dims):
            keep = len(dims) < len(self.vector)
            value = self.reduced(v.fn or "", value, d if keep or len(dims) == 1 else d, keep)
            body.line(f"v{n} = {value}")
            value = f"v{n}"
        if not dims:
            body.line(f"v{n} = {value}")
        if v.fn in ("any", "all"):
            body.line(f"v{n} = v{n} != 0")
        body.have[n] = f"v{n}"

    def prepared(self, fn: str, value: str, dtype: str, depends: frozenset[str]) -> str:
        """The block with the neutral element where a mask is false, spread over the reduce axes."""
        if fn in ("any", "all"):
            value = f"({value}).to(tl.int32)"
        missing = [a for a in self.vector if a in self.over and a not in depends]
        masked = [self.body.masks[a] for a in self.vector if a in self.over and a in self.body.masks]
        if missing:
            kind = "tl.int32" if fn in ("any", "all") else TL[compute_type(dtype)]
            shape = ", ".join(
                str(self.tiling.of(a)) if a in self.over or a in depends else "1" for a in self.vector
            )
            value = f"(tl.zeros(({shape},), {kind}) + {value})"
        if masked:
            value = f"tl.where({' & '.join(masked)}, {value}, {neutral(fn, dtype)})"
        return value

    def reduced(self, fn: str, value: str, dim: int, keep: bool) -> str:
        flag = ", keep_dims=True" if keep else ""
        if fn == "sum":
            return f"tl.sum({value}, axis={dim}{flag})"
        if fn in ("fmax", "any"):
            return f"tl.max({value}, axis={dim}{flag})"
        if fn == "all":
            return f"tl.min({value}, axis={dim}{flag})"
        combine = {"max": "nan_max", "min": "nan_min", "prod": "multiply"}[fn]
        self.body.need(combine)
        return f"tl.reduce({value}, {dim}, {combine}{flag})"

    # ---- loops over long rows ----
    def passes(self) -> None:
        top = max(self.stage, default=0)
        full = [i for i, w in enumerate(self.expr.writes)
                if any(a in self.over for ix in w.access.index for a, _ in ix.terms)]  # fmt: skip
        rows = [i for i in range(len(self.expr.writes)) if i not in full]
        for stage in range(top + 1):
            reduces = [
                n for n, v in enumerate(self.expr.values) if v.kind == "reduce" and self.stage[n] == stage + 1
            ]
            writes = [i for i in full if self.stage[self.expr.writes[i].value] == stage]
            if not reduces and not writes:
                continue
            self.before_loop(reduces, writes)
            self.one_pass(reduces, writes)
        self.writes(rows)

    def before_loop(self, reduces: list[int], writes: list[int]) -> None:
        """Row values that the loop uses are computed once, before it."""
        wanted: list[int] = []
        seen: set[int] = set()

        def visit(n: int) -> None:
            if n in seen:
                return
            seen.add(n)
            if not self.depends[n] & self.over and self.stage_ready(n):
                wanted.append(n)
                return
            v = self.expr.values[n]
            if v.kind != "reduce":
                for a in (*v.args, *(ix.indirect for ix in (v.access.index if v.access else ())
                                     if ix.indirect is not None)):  # fmt: skip
                    visit(a)

        for n in reduces:
            visit(self.expr.values[n].args[0])
        for i in writes:
            visit(self.expr.writes[i].value)
        self.body.compute(wanted, self.depends)

    def stage_ready(self, n: int) -> bool:
        return n in self.body.have or self.expr.values[n].kind != "reduce"

    def one_pass(self, reduces: list[int], writes: list[int]) -> None:
        body = self.body
        shape = ", ".join(str(self.tiling.of(a)) for a in self.vector)
        for n in reduces:
            v = self.expr.values[n]
            kind = "tl.int32" if v.fn in ("any", "all") else TL[compute_type(v.dtype)]
            start = neutral(v.fn or "", v.dtype)
            body.line(
                f"acc{n} = "
                + (f"tl.full(({shape},), {start}, {kind})" if shape else f"tl.full((), {start}, {kind})")
            )
        before, have = body.indent, dict(body.have)
        for a in self.looped:
            block = self.block(a)
            body.line(f"for n_{a.name} in range(0, {a.extent}, {block}):")
            body.indent += 1
            if block == 1:
                body.position[a.name] = f"n_{a.name}"
            else:
                body.line(f"{a.name} = (n_{a.name} + tl.arange(0, {block})){self.shaped(a.name)}")
                body.position[a.name] = a.name
                if a.extent % block:
                    body.masks[a.name] = f"({a.name} < {a.extent})"
        body.compute([self.expr.values[n].args[0] for n in reduces], self.depends)
        for n in reduces:
            v = self.expr.values[n]
            arg = v.args[0]
            value = self.prepared(v.fn or "", body.have[arg], v.dtype, self.depends[arg])
            body.line(f"acc{n} = {self.accumulate(v.fn or '', f'acc{n}', value)}")
        self.writes(writes)
        body.indent, body.have = before, have
        for n in reduces:
            v = self.expr.values[n]
            saved, body.masks = body.masks, {}
            self.reduce_block(
                n, f"acc{n}" if v.fn not in ("any", "all") else f"acc{n}", frozenset(self.vector)
            )
            body.masks = saved

    def accumulate(self, fn: str, total: str, value: str) -> str:
        if fn == "sum":
            return f"{total} + {value}"
        if fn == "prod":
            return f"{total} * {value}"
        if fn in ("fmax", "any"):
            return f"tl.maximum({total}, {value})"
        if fn == "all":
            return f"tl.minimum({total}, {value})"
        self.body.need("nan_max" if fn == "max" else "nan_min")
        return f"{'nan_max' if fn == 'max' else 'nan_min'}({total}, {value})"


def neutral(fn: str, dtype: str) -> str:
    if fn in NEUTRAL:
        return NEUTRAL[fn] if dtype.startswith(("int", "uint", "bool")) else f"{NEUTRAL[fn]}.0"
    low = fn in ("max", "fmax")
    if "float" in dtype:
        return "-float('inf')" if low else "float('inf')"
    bits = {"int64": 63, "int32": 31, "int16": 15, "int8": 7}.get(dtype)
    if bits is None:
        return "0" if low else "255"
    return str(-(1 << bits)) if low else str((1 << bits) - 1)
