"""Matrix product kernels: C[batch, m, n] = A[batch, m, k] B[batch, k, n], with an epilogue on the accumulator.

A program owns one BLOCK_M x BLOCK_N tile of C and walks k in steps of BLOCK_K. Axes beyond one of rows and one
of columns (batch, heads) are scalars decoded from the program number. Masks appear only on axes that the block
does not divide. A constant B may come packed as [n tile][k][BLOCK_N], so that its tile is one run of memory; for a
CPU as [n tile][panel][k][columns of the register block], so that what the innermost loop reads is one run, and where
one instruction multiplies pairs along k as [n tile][panel][k / 2][columns][2].
"""

from __future__ import annotations

from ..expr import Axis, TensorExpr
from ..tile import rest_widths
from . import split
from .common import (
    Body,
    Pack,
    Tiling,
    TritonSource,
    convert_store,
    dependences,
    finish,
    wide_index,
)

HALF = ("float16", "bfloat16")


def stored_as(dtype: str, tiling: Tiling) -> tuple[str, int]:
    """(type, parts of an element) of a right operand of `dtype` that is packed."""
    return ("bfloat16", split.PARTS) if dtype == "float32" and tiling.precision == split.HOW else (dtype, 1)


def sides(expr: TensorExpr) -> tuple[list[Axis], list[Axis], list[Axis], Axis]:
    """(batch, m, n, k) axes of a contraction."""
    depends = dependences(expr)
    (dot,) = expr.dots
    a, b = (depends[i] for i in dot.args)
    (k,) = (x for x in expr.axes if x.name in dot.over)
    spatial = list(expr.spatial)
    batch = [x for x in spatial if x.name in a and x.name in b]
    m = [x for x in spatial if x.name in a and x.name not in b]
    n = [x for x in spatial if x not in batch and x not in m]
    return batch, m, n, k


def packable(expr: TensorExpr) -> str | None:
    """The tensor that is B as it stands (a plain load along k and the column axes only), if it is."""
    (dot,) = expr.dots
    b = expr.values[dot.args[1]]
    batch, _, _, _ = sides(expr)
    if batch or b.kind != "load" or b.access is None or b.access.bounded:
        return None
    uses = [x.tensor for x in (*expr.loads, *(w.access for w in expr.writes))]
    return b.access.tensor if uses.count(b.access.tensor) == 1 else None


def emit_contraction(
    expr: TensorExpr, tiling: Tiling, name: str, pack: bool = False, check: bool = False
) -> TritonSource:
    """Triton text of a kernel with one dot; `pack` reads B in packed layout (see `packable`)."""
    return _Contraction(expr, tiling, name, pack, check).run()


class _Contraction:
    def __init__(self, expr: TensorExpr, tiling: Tiling, name: str, pack: bool, check: bool) -> None:
        self.expr, self.tiling, self.name, self.pack = expr, tiling, name, pack
        self.depends = dependences(expr)
        self.batch, self.m, self.n, self.k = sides(expr)
        (self.dot,) = expr.dots
        self.number = expr.values.index(self.dot)
        self.tile_m = self.tile_axis(self.m)
        self.tile_n = self.tile_axis(self.n)
        raw = frozenset(
            i for i in self.dot.args if expr.values[i].kind == "load" and expr.values[i].dtype in HALF
        )
        self.body = Body(expr, raw_half=raw, check=check)

    def tile_axis(self, axes: list[Axis]) -> Axis | None:
        return max(axes, key=lambda a: (self.tiling.of(a.name), a.extent)) if axes else None

    def block_of(self, axis: Axis | None, key: str) -> int:
        return self.tiling.of(axis.name) if axis is not None else self.tiling.of(key)

    def run(self) -> TritonSource:
        self.bm, self.bn = self.block_of(self.tile_m, "m"), self.block_of(self.tile_n, "n")
        self.bk = self.tiling.of(self.k.name)
        grid = self.programs()
        self.coordinates()
        self.main_loop()
        self.epilogue()
        return finish(self.body, self.tiling, self.name, grid, (self.pack_layout(),) if self.pack else ())

    def programs(self) -> int:
        """Decodes the program number: batch outermost, then groups of row tiles, column tiles, row tiles."""
        body = self.body
        rows = [a for a in self.m if a is not self.tile_m] + ([self.tile_m] if self.tile_m else [])
        cols = [a for a in self.n if a is not self.tile_n] + ([self.tile_n] if self.tile_n else [])
        tiles_m = -(-self.tile_m.extent // self.bm) if self.tile_m else 1
        group = (
            self.tiling.group if 0 < self.tiling.group < tiles_m and tiles_m % self.tiling.group == 0 else 0
        )
        order: list[tuple[str, int]] = [(a.name, a.extent) for a in self.batch]
        if group:
            order += [(f"{a.name}", a.extent) for a in rows if a is not self.tile_m]
            order += [("group", tiles_m // group)]
            order += [(a.name, self.tiles(a)) for a in cols]
            order += [("row", group)]
        else:
            order += [(a.name, self.tiles(a)) for a in cols]
            order += [(a.name, self.tiles(a)) for a in rows]
        wide = ".to(tl.int64)" if wide_index(self.expr) else ""
        body.line(f"pid = tl.program_id(0){wide}")
        self.program: dict[str, str] = {}
        grid, rest = 1, "pid"
        left = [(key, count) for key, count in order if count > 1]
        self.program.update({key: "0" for key, count in order if count == 1})
        for i, (key, count) in enumerate(reversed(left)):
            grid *= count
            last = i == len(left) - 1
            body.line(f"p_{key} = {rest}" + ("" if last else f" % {count}"))
            if not last:
                body.line(f"q_{key} = {rest} // {count}")
                rest = f"q_{key}"
            self.program[key] = f"p_{key}"
        if group and self.tile_m:
            body.line(f"p_{self.tile_m.name} = {self.program['group']} * {group} + {self.program['row']}")
            self.program[self.tile_m.name] = f"p_{self.tile_m.name}"
        return grid

    def tiles(self, a: Axis) -> int:
        block = self.bm if a is self.tile_m else self.bn if a is self.tile_n else 1
        return -(-a.extent // block)

    def coordinates(self) -> None:
        body = self.body
        for a in (*self.batch, *self.m, *self.n):
            if a is not self.tile_m and a is not self.tile_n:
                body.position[a.name] = self.program[a.name]
        self.tile_coordinate(self.tile_m, self.bm, "m", "[:, None]")
        self.tile_coordinate(self.tile_n, self.bn, "n", "[None, :]")

    def tile_coordinate(self, axis: Axis | None, block: int, key: str, shape: str) -> None:
        body = self.body
        name = axis.name if axis else key
        start = f"{self.program[name]} * {block} + " if axis and self.program[name] != "0" else ""
        body.line(f"{name} = ({start}tl.arange(0, {block})){shape}")
        body.position[name] = name
        extent = axis.extent if axis else 1
        if extent % block:
            body.masks[name] = f"({name} < {extent})"
            if axis is None:
                self.lone = name

    def main_loop(self) -> None:
        body, k = self.body, self.k.extent
        body.line(f"acc = tl.zeros(({self.bm}, {self.bn}), tl.{self.dot.dtype})")
        whole, rest = self.steps_along_k()
        if whole == self.bk:
            self.step("0", self.bk, whole > k)
        elif whole:
            body.line(f"for k0 in range(0, {whole}, {self.bk}):")
            body.indent += 1
            self.step("k0", self.bk, whole > k)
            body.indent -= 1
        for width in rest:
            self.step(str(whole), width, whole + width > k)
            whole += width
        body.have = {self.number: "acc"}

    def steps_along_k(self) -> tuple[int, tuple[int, ...]]:
        """How far the steps of one width reach, and the widths of those behind them."""
        whole, rest = self.k.extent // self.bk * self.bk, self.k.extent % self.bk
        if rest and not self.tiling.narrow:
            return whole + self.bk, ()
        return whole, rest_widths(rest) if rest else ()

    def step(self, start: str, width: int, masked: bool) -> None:
        """Multiplies `width` columns of A, from `start`, with rows of B; `masked` if some lie beyond the end."""
        body = self.body
        self.start, self.width = start, width
        body.line(f"k = {'' if start == '0' else start + ' + '}tl.arange(0, {width})")
        a = self.operand(0, "k[None, :]", masked)
        if self.pack and (parts := self.pack_layout().parts) > 1:
            one, two, three = (self.packed_tile(f"b{n}", n) for n in range(parts))
            split.add_product(body, a, (one, two, three))
            return
        b = self.packed_tile() if self.pack else self.operand(1, "k[:, None]", masked)
        half = self.expr.values[self.dot.args[0]].dtype in HALF
        exact = f'input_precision="{"ieee" if half else self.tiling.precision}"'
        precision = "out_dtype=tl.int32" if self.dot.dtype == "int32" else exact
        body.line(f"acc = tl.dot({a}, {b}, acc, {precision})")

    def operand(self, which: int, k: str, masked: bool) -> str:
        body, arg = self.body, self.dot.args[which]
        side = self.tile_m if which == 0 else self.tile_n
        saved, masks = dict(body.position), dict(body.masks)
        body.have = {}
        body.position[self.k.name] = k
        if masked:
            body.masks[self.k.name] = f"({k} < {self.k.extent})"
        extra = None if side else (getattr(self, "lone", None))
        depends = [d | ({extra} if extra and extra == ("m", "n")[which] else set()) for d in self.depends]
        body.compute([arg], depends)
        value = self.expr.values[arg]
        text = body.have[arg]
        if value.kind != "load":
            if masked:  # what is computed from masked loads need not be zero
                text = f"tl.where({body.masks[self.k.name]}, {text}, 0.0)"
            if value.dtype in HALF:
                text = f"({text}).to(tl.{value.dtype})"
        name = "ab"[which]
        shape = (self.bm, self.width) if which == 0 else (self.width, self.bn)
        if side is None:
            text = f"tl.broadcast_to({text}, {shape})"
        body.line(f"{name} = {text}")
        body.position, body.masks = saved, masks
        return name

    def packed_tile(self, name: str = "b", part: int = 0) -> str:
        """This program's columns, the step's rows, of the packed B: it is padded along k, so no mask is needed."""
        layout, tile, body = self.pack_layout(), self.column_tile(), self.body
        wide, panels, pairs = layout.block, self.bn // layout.block, layout.pairs
        depth = layout.depth or layout.k
        k = "k"
        if pairs > 1:
            start = "" if self.start == "0" else f"{self.start} // {pairs} + "
            body.line(f"kp = {start}tl.arange(0, {self.width // pairs})")
            k = "kp"
        dims = [(k, wide * pairs)]
        if panels > 1:
            dims.append((f"tl.arange(0, {panels})", depth * wide))
        dims.append((f"tl.arange(0, {wide})", pairs))
        if pairs > 1:
            dims.append((f"tl.arange(0, {pairs})", 1))
        terms = [f"{tile} * {depth * self.bn}"] if tile != "0" else []
        terms += [str(part * layout.plane)] if part else []
        for d, (index, stride) in enumerate(dims):
            at = ", ".join(":" if d == other else "None" for other in range(len(dims)))
            terms.append(f"{index}[{at}]" + (f" * {stride}" if stride != 1 else ""))
        text = f"tl.load({layout.tensor} + ({' + '.join(terms)}))"
        if pairs > 1:
            text = f"tl.permute({text}, {(0, len(dims) - 1, *range(1, len(dims) - 1))})"
        if len(dims) > 2:
            text = f"tl.reshape({text}, ({self.width}, {self.bn}))"
        body.line(f"{name} = {text}")
        return name

    def column_tile(self) -> str:
        """Number of this program's tile of columns, counting all column axes row-major."""
        text = "0"
        ordered = [a for a in self.n if a is not self.tile_n] + ([self.tile_n] if self.tile_n else [])
        for a in ordered:
            here = self.program[a.name]
            count = self.tiles(a)
            if text == "0":
                text = here
            else:
                text = f"({text} * {count} + {here})" if here != "0" or count > 1 else text
        return text

    def pack_layout(self) -> Pack:
        b = self.expr.values[self.dot.args[1]]
        assert b.access is not None
        ordered = [a for a in self.n if a is not self.tile_n] + ([self.tile_n] if self.tile_n else [])
        strides = tuple(b.access.stride_of(a.name) for a in ordered)
        wide = min(self.tiling.panel or self.bn, self.bn)
        whole, rest = self.steps_along_k()
        depth = whole + sum(rest) if whole + sum(rest) > self.k.extent else 0
        dtype, parts = stored_as(b.dtype, self.tiling)
        return Pack(b.access.tensor, dtype, self.k.extent, b.access.stride_of(self.k.name),
                    tuple(a.extent for a in ordered) or (1,), strides or (0,), b.access.offset, wide,
                    self.bn // wide, depth=depth, pairs=self.tiling.pairs, parts=parts)  # fmt: skip

    def epilogue(self) -> None:
        body = self.body
        lone = getattr(self, "lone", None)
        for w in self.expr.writes:
            body.compute([w.value], self.depends)
            axes = {a for ix in w.access.index for a, _ in ix.terms}
            value = body.have[w.value]
            if lone or self.tile_m is None or self.tile_n is None:
                # the tile has a dimension that no axis of the tensor moves
                extra = [key for key, t in (("m", self.tile_m), ("n", self.tile_n)) if t is None]
                zero = " + ".join(f"{key} * 0" for key in extra)
                saved = dict(body.position)
                mask_axes = axes | {key for key in extra if key in body.masks}
                mask = body.mask(w.access, mask_axes)
                tail = f", mask={mask}" if mask else ""
                body.line(f"tl.store({w.access.tensor} + ({body.offset(w.access)} + {zero}), "
                          f"{convert_store(value, w.access.dtype)}{tail})")  # fmt: skip
                body.position = saved
                continue
            body.store(w.access, value, w.access.dtype, axes)


def is_contraction(expr: TensorExpr) -> bool:
    return len(expr.dots) == 1
