"""Convolution kernels: implicit matrix products of image positions and filters, with an epilogue on the accumulator.

A program owns BLOCK_M positions of the output, all images and rows of it counted through, and BLOCK_N filters. It
walks the taps of the window, and for each the channels in steps of BLOCK_K: one loop, whose number gives tap and
channels. A row of the left operand is a run of channels at one place of the image; where that place lies outside,
the load is masked. Constant filters come packed as [group][filter tile][tap][channel][BLOCK_N], for a CPU in panels of
the register block as in `contraction`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..expr import Axis, TensorExpr
from ..implicit import CHANNELS, COLUMNS, ROWS, Sides, sides
from ..tile import rest_widths
from . import split
from .common import Pack, Tiling, TritonSource, convert_store, dependences, finish, wide_index
from .contraction import HALF, stored_as
from .contraction import packable as packable_matrix
from .flattened import Flattened, runs

_WRITTEN_OUT = 4  # steps over the channels of one tap that need no loop of their own
_TAPS = 9  # of a window that are written out one after the other
SHORT_ROW = 64  # positions of one row that are too few for a tile of rows


def is_convolution(expr: TensorExpr) -> bool:
    """One dot over a window and channels, or of an image that is read with a border or in strides."""
    if len(expr.dots) != 1:
        return False
    (dot,) = expr.dots
    image = expr.values[dot.args[0]].access
    if image is None:
        return False
    if image.gathers:
        return False
    if len(dot.over) > 1 or image.bounded:
        return True
    rows = sides(expr).rows
    return len(rows) > 1 and max(a.extent for a in rows) <= SHORT_ROW


def packable(expr: TensorExpr) -> str | None:
    """The tensor that is the right operand as it stands, if it can be packed."""
    if not is_convolution(expr):
        return packable_matrix(expr)
    weight = expr.values[expr.dots[0].args[1]]
    if weight.access is None or weight.access.bounded:
        return None
    uses = [x.tensor for x in (*expr.loads, *(w.access for w in expr.writes))]
    return weight.access.tensor if uses.count(weight.access.tensor) == 1 else None


def emit_convolution(
    expr: TensorExpr, tiling: Tiling, name: str, pack: bool = False, check: bool = False
) -> TritonSource:
    """Triton text of a convolution; `tiling` names the axes of `implicit.as_product`."""
    return _Convolution(expr, tiling, name, pack, check).run()


class _Convolution:
    def __init__(self, expr: TensorExpr, tiling: Tiling, name: str, pack: bool, check: bool) -> None:
        self.expr, self.tiling, self.name, self.pack = expr, tiling, name, pack
        self.depends = dependences(expr)
        self.sides: Sides = sides(expr)
        (self.dot,) = expr.dots
        self.number = expr.values.index(self.dot)
        raw = frozenset(
            i for i in self.dot.args if expr.values[i].kind == "load" and expr.values[i].dtype in HALF
        )
        self.body = Flattened(expr, raw_half=raw, check=check, apart=tiling.gpu)
        self.bm, self.bn, self.bk = (tiling.of(a) for a in (ROWS, COLUMNS, CHANNELS))
        self.rows = math.prod(a.extent for a in self.sides.rows)
        self.columns = math.prod(a.extent for a in self.sides.columns)

    def run(self) -> TritonSource:
        grid = self.programs()
        self.coordinates()
        self.main_loop()
        self.epilogue()
        return finish(self.body, self.tiling, self.name, grid, (self.pack_layout(),) if self.pack else ())

    def programs(self) -> int:
        """Programs of one group and one tile of filters follow each other: the filters stay in a near cache."""
        body = self.body
        body.line("pid = tl.program_id(0)" + (".to(tl.int64)" if wide_index(self.expr) else ""))
        self.tiles_m, self.tiles_n = -(-self.rows // self.bm), -(-self.columns // self.bn)
        counts = [
            *((a.name, a.extent) for a in self.sides.groups),
            ("columns", self.tiles_n),
            ("rows", self.tiles_m),
        ]
        self.program = {key: "0" for key, count in counts if count == 1}
        left, rest, grid = [(k, c) for k, c in counts if c > 1], "pid", 1
        for i, (key, count) in enumerate(reversed(left)):
            grid *= count
            last = i == len(left) - 1
            body.line(f"p_{key} = {rest}" + ("" if last else f" % {count}"))
            if not last:
                body.line(f"q_{key} = {rest} // {count}")
                rest = f"q_{key}"
            self.program[key] = f"p_{key}"
        return grid

    def coordinates(self) -> None:
        body = self.body
        for a in self.sides.groups:
            body.position[a.name] = self.program[a.name]
        both = (("m", "rows", self.rows, self.bm, self.sides.rows, "[:, None]"),
                ("n", "columns", self.columns, self.bn, self.sides.columns, "[None, :]"))  # fmt: skip
        for name, key, total, block, axes, shape in both:
            start = "" if self.program[key] == "0" else f"{self.program[key]} * {block} + "
            body.line(f"{name} = ({start}tl.arange(0, {block})){shape}")
            for a in axes:
                body.position[a.name] = body.digit(name, axes, (a.name,))
                if total % block:
                    body.masks[a.name] = f"({name} < {total})"
        self.lone = {name for name, _, total, block, axes, _ in both if not axes}
        body.flattened = (("m", self.sides.rows), ("n", self.sides.columns))
        # digits are computed once, not in every step of the loop
        accesses = [*self.expr.loads, *(w.access for w in self.expr.writes)]
        for count, order in body.flattened:
            needed = {names for x in accesses for names, _ in runs(x, order)}
            needed |= {(a.name,) for a in order if self.tested(a.name)}
            for names in sorted(needed):
                text = body.digit(count, order, names)
                if text != count:
                    known = "_".join((count, *names))
                    body.line(f"{known} = {text}")
                    body.spelled[count, names] = known
        for count, order in body.flattened:
            for a in order:
                body.position[a.name] = body.digit(count, order, (a.name,))

    def tested(self, axis: str) -> bool:
        """Does a bounds test or an index value need this coordinate on its own?"""
        by_index = any(v.axis == axis for v in self.expr.values)
        return by_index or any(
            x.bounded and any(a == axis for ix in x.index for a, _ in ix.terms) for x in self.expr.loads
        )

    def main_loop(self) -> None:
        """Walks taps and channels; on a CPU channels that fill no whole step are walked in shorter steps."""
        self.body.line(f"acc = tl.zeros(({self.bm}, {self.bn}), tl.float32)")
        whole, rest = divmod(self.sides.depth, self.bk)
        short = rest_widths(rest) if rest and self.tiling.narrow else ()
        if not short or sum(short) >= self.bk:
            self.walk(-(-self.sides.depth // self.bk), [(0, self.bk)])
        elif whole + len(short) <= _WRITTEN_OUT:
            self.walk(1, [(n * self.bk, self.bk) for n in range(whole)] + short_after(whole * self.bk, short))
        else:
            self.walk(whole, [(0, self.bk)])
            self.walk(1, short_after(whole * self.bk, short))
        self.body.have = {self.number: "acc"}

    def walk(self, steps: int, chunks: list[tuple[int, int]]) -> None:
        """Adds to the accumulator, for every tap, `steps` times runs of channels: (start, length) each.

        On a CPU the taps of one row of the window, or all of a small window, are written out one after the other:
        its backend makes one product of them, with the accumulator in registers.
        """
        body, taps = self.body, self.sides.taps
        inner = self.written_out(steps * len(chunks))
        outer, flat = taps[: len(taps) - len(inner)], math.prod(a.extent for a in inner)
        total = steps * math.prod(a.extent for a in outer)
        if total > 1:
            body.line(f"for step in range(0, {total}):")
            body.indent += 1
        self.tap = "0"
        if total > 1 and outer:
            body.line(f"tap = {'step' if steps == 1 else f'step // {steps}'}")
            self.tap = "tap"
        self.place(outer, self.tap)
        for start, length in chunks:
            chunk = (
                "" if steps == 1 else f"{'(step % ' + str(steps) + ')' if outer else 'step'} * {length} + "
            )
            body.line(f"k = {chunk}{f'{start} + ' if start else ''}tl.arange(0, {length})")
            before = self.tap
            if inner:
                body.line(f"for near in tl.static_range({flat}):")
                body.indent += 1
                self.place(inner, "near")
                self.tap = "near" if before == "0" else f"({before} * {flat} + near)"
            self.add_product(length, start + steps * length > self.sides.depth)
            if inner:
                body.indent -= 1
                self.tap = before
        if total > 1:
            body.indent -= 1

    def written_out(self, steps: int) -> tuple[Axis, ...]:
        """The taps that are written out for each of so many steps along the channels: the last axes of the window."""
        taps = self.sides.taps
        if self.tiling.gpu or not taps:
            return ()
        if steps * math.prod(a.extent for a in taps) <= _TAPS:
            return taps
        return taps[-1:] if taps[-1].extent <= _TAPS else ()

    def place(self, taps: Sequence[Axis], number: str) -> None:
        """Positions in the window, `number` counting through these axes of it."""
        inner = 1
        for a in reversed(taps):
            text = number if inner == 1 or number == "0" else f"{number} // {inner}"
            if a is not taps[0] and number != "0":
                text = f"{text} % {a.extent}" if inner == 1 else f"({text}) % {a.extent}"
            self.body.line(f"{a.name} = {text}")
            self.body.position[a.name] = a.name
            inner *= a.extent

    def add_product(self, length: int, masked: bool) -> None:
        """acc += rows of the image at one tap times its filters, over `length` channels from `k` on."""
        body = self.body
        a_text = self.operand(0, "k[None, :]", length, masked)
        if self.pack and (parts := self.pack_layout().parts) > 1:
            one, two, three = (self.packed_tile(length, masked, f"b{n}", n) for n in range(parts))
            split.add_product(body, a_text, (one, two, three))
            return
        b_text = (
            self.packed_tile(length, masked) if self.pack else self.operand(1, "k[:, None]", length, masked)
        )
        half = self.expr.values[self.dot.args[0]].dtype in HALF
        precision = "ieee" if half else self.tiling.precision
        body.line(f'acc = tl.dot({a_text}, {b_text}, acc, input_precision="{precision}")')

    def operand(self, which: int, k: str, length: int, masked: bool) -> str:
        body, arg = self.body, self.dot.args[which]
        saved, masks = dict(body.position), dict(body.masks)
        body.have = {}
        channels = self.sides.channels
        body.position |= {a.name: "0" for a in channels}
        body.position[channels[-1].name] = k
        if len(channels) > 1:
            body.flattened = (*body.flattened, (k, channels))
        if masked:
            body.masks |= {a.name: f"({k} < {self.sides.depth})" for a in channels}
        body.compute([arg], self.depends)
        value, text = self.expr.values[arg], body.have[arg]
        if value.kind != "load":
            if masked:
                text = f"tl.where({k} < {self.sides.depth}, {text}, 0.0)"
            if value.dtype in HALF:
                text = f"({text}).to(tl.{value.dtype})"
        name, shape = ("a", (self.bm, length)) if which == 0 else ("b", (length, self.bn))
        if ("m", "n")[which] in self.lone:
            text = f"tl.broadcast_to({text}, {shape})"
        body.line(f"{name} = {text}")
        body.position, body.masks, body.flattened = saved, masks, body.flattened[:2]
        return name

    def packed_tile(self, length: int, masked: bool, name: str = "b", part: int = 0) -> str:
        """This program's filters, next `length` channels, of the packed weight."""
        depth, tile = self.sides.depth, "0"
        for key, count in (*((a.name, a.extent) for a in self.sides.groups), ("columns", self.tiles_n)):
            here = self.program[key]
            tile = here if tile == "0" else f"({tile} * {count} + {here})" if count > 1 else tile
        layout = self.pack_layout()
        wide, panels = layout.block, self.bn // layout.block
        parts = [] if tile == "0" else [f"{tile} * {layout.k * self.bn}"]
        parts += [] if self.tap == "0" else [f"{self.tap} * {depth * wide}"]
        parts += [str(part * layout.plane)] if part else []
        if panels == 1:
            parts += [f"k[:, None] * {wide}", f"tl.arange(0, {wide})[None, :]"]
            mask = f", mask=k[:, None] < {depth}, other=0" if masked else ""
            self.body.line(f"{name} = tl.load({layout.tensor} + ({' + '.join(parts)}){mask})")
            return name
        parts += [f"k[:, None, None] * {wide}", f"tl.arange(0, {panels})[None, :, None] * {layout.k * wide}",
                  f"tl.arange(0, {wide})[None, None, :]"]  # fmt: skip
        mask = f", mask=k[:, None, None] < {depth}, other=0" if masked else ""
        text = f"tl.load({layout.tensor} + ({' + '.join(parts)}){mask})"
        self.body.line(f"{name} = tl.reshape({text}, ({length}, {self.bn}))")
        return name

    def pack_layout(self) -> Pack:
        access = self.expr.values[self.dot.args[1]].access
        assert access is not None
        over = (*self.sides.taps, *self.sides.channels)
        last = self.sides.columns[-1:]
        n_shape = (*(a.extent for a in self.sides.groups), self.columns)
        n_strides = (*(access.stride_of(a.name) for a in self.sides.groups),
                     access.stride_of(last[0].name) if last else 0)  # fmt: skip
        strides = tuple(access.stride_of(a.name) for a in over)
        wide = min(self.tiling.panel or self.bn, self.bn)
        dtype, parts = stored_as(access.dtype, self.tiling)
        return Pack(access.tensor, dtype, math.prod(a.extent for a in over), strides[-1], n_shape, n_strides,
                    access.offset, wide, self.bn // wide, tuple(a.extent for a in over), strides,
                    parts=parts)  # fmt: skip

    def epilogue(self) -> None:
        body = self.body
        for w in self.expr.writes:
            body.compute([w.value], self.depends)
            axes = {a for ix in w.access.index for a, _ in ix.terms}
            text = body.offset(w.access)
            mask = body.mask(w.access, axes)
            for name in sorted(
                self.lone
            ):  # a dimension of the tile that no axis moves: its first place counts
                text += f" + {name} * 0"
                if {"m": self.bm, "n": self.bn}[name] > 1:
                    mask = f"({name} < 1)" if mask is None else f"{mask} & ({name} < 1)"
            tail = f", mask={mask}" if mask else ""
            value = convert_store(body.have[w.value], w.access.dtype)
            body.line(f"tl.store({w.access.tensor} + ({text}), {value}{tail})")


def short_after(start: int, lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(start, length) of runs that follow each other."""
    return [(start + sum(lengths[:n]), length) for n, length in enumerate(lengths)]
