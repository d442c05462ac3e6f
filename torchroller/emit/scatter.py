"""Indirect writes: out = base with updates at positions that are data.

A program owns a block of the axes that updates and result share, so no two programs write to the same place. It
copies its part of the base, then walks the updates in order: where two meet, the result is that of a serial loop,
on every device and with any number of threads.
"""

from __future__ import annotations

from ..expr import Axis, TensorExpr, Write
from .common import Body, Tiling, TritonSource, convert_store, dependences, finish, next_power, wide_index

COMBINED = {"add": "{0} + {1}", "prod": "{0} * {1}", "max": "nan_max({0}, {1})", "min": "nan_min({0}, {1})"}


def is_scatter(expr: TensorExpr) -> bool:
    return any(w.atomic for w in expr.writes)


def parts(expr: TensorExpr) -> tuple[Write | None, Write, list[Axis], list[Axis]]:
    """(write of the base, write of the updates, axes of the base alone, axes of the updates alone)."""
    (update,) = (w for w in expr.writes if w.atomic)
    copies = [w for w in expr.writes if not w.atomic]
    base = copies[0] if copies else None
    named = {a for ix in base.access.index for a, _ in ix.terms} if base else set()
    return (base, update, [a for a in expr.reduce if a.name in named],
            [a for a in expr.reduce if a.name not in named])  # fmt: skip


def scatter_tiling(expr: TensorExpr, cpu: bool) -> Tiling:
    """A vector of the shared axis with the smallest steps; of the base also a run along its own axis."""
    base, update, own, _ = parts(expr)
    blocks: dict[str, int] = {}
    lane = min(expr.spatial, key=lambda a: (abs(update.access.stride_of(a.name)), -a.extent), default=None)
    if lane is not None:
        blocks[lane.name] = min(next_power(lane.extent), 256 if cpu else 128)
    if base is not None and own:
        run = min(own, key=lambda a: abs(base.access.stride_of(a.name)))
        room = 1024 // blocks[lane.name] if lane is not None else 1024
        blocks[run.name] = max(min(next_power(run.extent), room), 1)
    return Tiling(tuple(blocks.items()), num_warps=4, num_stages=1)


def emit_scatter(expr: TensorExpr, tiling: Tiling, name: str, check: bool = False) -> TritonSource:
    """Triton text of a scatter kernel; `check` flags positions outside the tensor."""
    return _Scatter(expr, tiling, name, check).run()


class _Scatter:
    def __init__(self, expr: TensorExpr, tiling: Tiling, name: str, check: bool) -> None:
        self.expr, self.tiling, self.name = expr, tiling, name
        self.depends = dependences(expr)
        self.body = Body(expr, check=check)
        self.base, self.update, self.own, self.walked = parts(expr)
        wide = [a for a in expr.spatial if tiling.of(a.name) > 1]
        self.lane = wide[0] if wide else None

    def run(self) -> TritonSource:
        body = self.body
        grid = self.programs()
        if self.base is not None:
            self.copy_base(self.base)
            body.line("tl.debug_barrier()")
        self.lane_coordinate("")
        before = body.indent
        for a in self.walked:
            body.line(f"for s_{a.name} in range(0, {a.extent}):")
            body.indent += 1
            body.position[a.name] = f"s_{a.name}"
        self.write_update()
        body.indent = before
        return finish(body, self.tiling, self.name, grid)

    def programs(self) -> int:
        body, grid, rest = self.body, 1, "pid"
        spatial = [(a, -(-a.extent // self.tiling.of(a.name))) for a in self.expr.spatial]
        left = [(a, n) for a, n in spatial if n > 1]
        if left:
            body.line("pid = tl.program_id(0)" + (".to(tl.int64)" if wide_index(self.expr) else ""))
        self.tile = {a.name: "0" for a, n in spatial if n == 1}
        for i, (a, n) in enumerate(reversed(left)):
            last = i == len(left) - 1
            body.line(f"p_{a.name} = {rest}" + ("" if last else f" % {n}"))
            if not last:
                body.line(f"q_{a.name} = {rest} // {n}")
                rest = f"q_{a.name}"
            self.tile[a.name] = f"p_{a.name}"
            grid *= n
        for a, _ in spatial:
            if a is not self.lane:
                body.position[a.name] = self.tile[a.name]
        return grid

    def lane_coordinate(self, shape: str) -> None:
        a, body = self.lane, self.body
        if a is None:
            return
        block, tile = self.tiling.of(a.name), self.tile[a.name]
        start = f"{tile} * {block} + " if tile != "0" else ""
        body.line(f"{a.name} = ({start}tl.arange(0, {block})){shape}")
        body.position[a.name] = a.name
        if a.extent % block:
            body.masks[a.name] = f"({a.name} < {a.extent})"

    def copy_base(self, write: Write) -> None:
        body, tiling = self.body, self.tiling
        runs = [a for a in self.own if tiling.of(a.name) > 1]
        run = runs[0] if runs else None
        two = run is not None and self.lane is not None
        inner = self.lane is not None and abs(write.access.stride_of(self.lane.name)) == 1
        self.lane_coordinate(("[None, :]" if inner else "[:, None]") if two else "")
        before, masks, have = body.indent, dict(body.masks), dict(body.have)
        for a in self.own:
            block = tiling.of(a.name)
            body.line(f"for t_{a.name} in range(0, {a.extent}, {block}):")
            body.indent += 1
            body.position[a.name] = f"t_{a.name}"
            if a is run:
                shape = ("[:, None]" if inner else "[None, :]") if two else ""
                body.line(f"{a.name} = (t_{a.name} + tl.arange(0, {block})){shape}")
                body.position[a.name] = a.name
                if a.extent % block:
                    body.masks[a.name] = f"({a.name} < {a.extent})"
        body.compute([write.value], self.depends)
        axes = frozenset(a for ix in write.access.index for a, _ in ix.terms)
        body.store(write.access, body.have[write.value], write.access.dtype, axes)
        body.indent, body.masks, body.have = before, masks, have

    def write_update(self) -> None:
        body, w = self.body, self.update
        indices = [ix.indirect for ix in w.access.index if ix.indirect is not None]
        body.compute([w.value, *indices], self.depends)
        axes = frozenset(a for ix in w.access.index for a, _ in ix.terms).union(
            *(self.depends[i] for i in indices)
        )
        if body.check:
            body.check_indices(w.access, axes)
        mask = body.mask(w.access, axes)
        tail = f", mask={mask}" if mask else ""
        body.line(f"at = {w.access.tensor} + ({body.offset(w.access)})")
        value, dtype = body.have[w.value], w.access.dtype
        if w.atomic != "set":
            text = f"tl.load(at{tail + ', other=0' if mask else ''})"
            if dtype == "bool":
                text = f"({text} != 0)"
            elif dtype in ("float16", "bfloat16"):
                text += ".to(tl.float32)"
            body.line(f"old = {text}")
            value = self.combined(w.atomic or "", value, dtype)
        body.line(f"tl.store(at, {convert_store(value, dtype)}{tail})")
        if self.walked:
            body.line("tl.debug_barrier()")

    def combined(self, fn: str, value: str, dtype: str) -> str:
        if dtype == "bool":
            return f"old {'|' if fn in ('add', 'max') else '&'} {value}"
        text = COMBINED[fn]
        if fn in ("max", "min"):
            if "float" not in dtype:
                return f"tl.{fn}imum(old, {value})"
            self.body.need(f"nan_{fn}")
        return text.format("old", value)
