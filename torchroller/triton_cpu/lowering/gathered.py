"""tl.dot whose rows of A lie here and there: a table of their addresses instead of a copy of them.

    acc = dot(load(x + rows[:, None] + k[None, :], mask=inside[:, None], other=0), b, acc)

The implicit matrix of a convolution has a row for each position and tap, and each row is a run of channels at one place
of the image, or zero outside of it. The micro-kernel takes the rows of a block from the table, those outside from a row
of zeros. Products that follow each other on one accumulator (the taps of a window) are one call for a block of C, which
stays in registers from the first to the last. Source of the idea: Dukhan, The Indirect Convolution Algorithm, 2019.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from torchroller.triton_cpu.blocking import Block
from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.lowering import microkernel as mk
from torchroller.triton_cpu.lowering.code import Operand
from torchroller.triton_cpu.lowering.evaluate import Evaluator, conjuncts
from torchroller.triton_cpu.lowering.function import Lowering, has_effects
from torchroller.triton_cpu.lowering.live import live_rows
from torchroller.triton_cpu.lowering.prefix import counted
from torchroller.triton_cpu.lowering.strips import Span, least, over_rows, strips
from torchroller.triton_cpu.lowering.values import Buffer, Load, Place, Splat, Tensor
from torchroller.triton_cpu.ttir import Op, Value

_ZEROS = {"0"} | {lt.float_literal("0", elem) for elem in ("f16", "bf16", "f32", "f64")}
# Of one panel's filters in all products of a chain: they stay in L1 from block to block.
_CHAIN_BYTES = 1 << 14


def chained(ops: Sequence[Op], first: int, uses: Counter[Value]) -> tuple[list[Op], list[Op], int]:
    """Products that add to the result of the one at `first`: (products, what stands between, index of the last).

    Each result is the next one's accumulator and nothing else's, so that nobody sees it in between.
    """
    products, last = [ops[first]], first
    between: list[Op] = []
    pending: list[Op] = []
    for k in range(first + 1, len(ops)):
        op = ops[k]
        if op.name == "tt.dot" and op.operands[2] is products[-1].results[0]:
            if uses.get(op.operands[2], 0) != 1 or not _alike(op, ops[first]):
                break
            products.append(op)
            between += pending
            pending, last = [], k
        elif op.regions or has_effects(op) or op.successors:
            break
        else:
            pending.append(op)
    return products, between, last


def _alike(op: Op, other: Op) -> bool:
    return all(str(x.type) == str(y.type) for x, y in zip(op.operands, other.operands))


def rows_apart(ev: Evaluator, a: Tensor) -> int | None:
    """How many columns of A count, where every row is a run of memory at a place of its own or zero as a whole.

    Columns behind a constant end are zero in all rows: they add nothing to a product.
    """
    if not isinstance(a, Load) or a.buffer is not None or a.volatile or len(a.shape) != 2:
        return None
    if a.pointer.buffer is not None or lt.storage(a.elem) != lt.scalar(a.elem):
        return None
    if a.mask is not None and not (a.other is None or is_zero(a.other)):
        return None
    form = a.pointer.linear(ev, False)
    if form.pointer is None or form.strides[1] != 1 or any(1 in t.varies for t in form.terms):
        return None
    if not form.terms and (a.mask is None or ev.all_true(a.mask) is not None):
        return None  # rows a constant distance apart, most often all there: they need no table
    return counted(ev, a, 1)


def is_zero(t: Tensor) -> bool:
    """Whether a tensor is the constant +0 everywhere."""
    return isinstance(t, Splat) and t.buffer is None and t.value in _ZEROS


@dataclass(frozen=True)
class Products:
    """C += A B of several products of one shape. `lefts` are the As, whose rows lie apart; `panels` the Bs in memory,
    `step` between steps and `row` between panels; `depth` columns of A count.
    """

    product: mk.Product
    lefts: tuple[Tensor, ...]
    panels: tuple[mk.Strip, ...]
    c: Buffer
    depth: int
    width: int  # columns of a panel
    block: Block  # rows and vectors

    @property
    def panel_bytes(self) -> int:
        """Of one step of a panel."""
        return self.width * (8 if self.product.acc == "double" else 4)

    def some(self, part: slice) -> Products:
        return replace(self, lefts=self.lefts[part], panels=self.panels[part])


def add_products(low: Lowering, work: Products, last: Op, fresh: bool) -> None:
    """All products, in chains whose filters stay in L1. fresh: C starts from zero; last: whose rows are live."""
    m = work.lefts[0].shape[0]
    spans = strips(low, work.block, m, live_rows(low, last, work.block[0]))
    count = len(work.lefts)
    most = max(1, _CHAIN_BYTES // (work.depth * work.panel_bytes))
    length = -(-count // -(-count // most))  # chains of nearly one length
    for start in range(0, count, length):
        _add_chain(low, work.some(slice(start, start + length)), spans, fresh and start == 0)


def _add_chain(low: Lowering, work: Products, spans: Sequence[Span], fresh: bool) -> None:
    code, p, c, first = low.code, work.product, work.c, work.panels[0]
    members, m = len(work.lefts), work.lefts[0].shape[0]
    rows, vectors = work.block
    shape = mk.Shape(rows, vectors, work.width // vectors, work.depth)
    layout = mk.Layout(None, 1, first.step if isinstance(first.step, int) else None, fresh=fresh)
    size = p.acc  # LLVM type of the elements of B and C
    table = _table(low, work.lefts, m, work.depth)
    bs = code.scratch(8 * members)
    for t, b in enumerate(work.panels):
        code.line(f"  store ptr {b.pointer}, ptr {_at(low, bs, 'ptr', t)}, align 8")
    # what the next chain reads lies behind this one's, as filters of neighbouring taps do
    asking = max(1, min(m // rows, work.panel_bytes * mk.unroll(p, shape) // mk.LINE_BYTES))
    share = work.panel_bytes // asking

    def block(column: Operand, height: int, share: int, row: Operand) -> None:
        symbol, text, declared = mk.chain(
            p, replace(shape, rows=height), replace(layout, ahead=share), members, m
        )
        for d in declared:
            code.declare(d, d)
        code.declare(symbol, text)
        number = (
            column // work.width if isinstance(column, int) else code.let(f"udiv i64 {column}, {work.width}")
        )
        c_at = _at(low, c.pointer, size, code.add(code.mul(row, c.strides[0]), column))
        extra = ""
        if share:
            own = code.mul(row, share * work.depth // height)
            extra = f", i64 {code.add(own, members * work.depth * work.panel_bytes)}"
        code.line(
            f"  call void {symbol}(ptr {_at(low, table, 'ptr', row)}, ptr {bs}, i64 {code.mul(number, first.row)}, "
            f"i64 {first.step}, ptr {c_at}, i64 {c.strides[0]}{extra})"
        )

    def column(index: Operand) -> None:
        for n, (start, end, height) in enumerate(spans):
            if n == 0 and first.step == work.width:
                asked = least(low, end, asking * height)
                over_rows(low, start, asked, height, partial(block, index, height, share))
                start = asked
            over_rows(low, start, end, height, partial(block, index, height, 0))

    code.loop(c.shape[1], column, step=work.width)


def _table(low: Lowering, lefts: Sequence[Tensor], m: int, k: int) -> str:
    """Memory with the address of each row of each product, [product][row]."""
    ev, code = low.ev, low.code
    table = code.scratch(8 * m * len(lefts))
    elem = lefts[0].elem
    blank_bytes = -(-k * lt.size_bytes(elem) // 64) * 64
    blank = f"@blank_row_{blank_bytes}"
    code.declare(blank, f"{blank} = internal constant [{blank_bytes} x i8] zeroinitializer, align 64")
    lanes = min(ev.lanes, m)

    def fill(row: Operand) -> None:
        for t, a in enumerate(lefts):
            assert isinstance(a, Load)
            place = Place((row, 0), 0, lanes) if lanes > 1 else Place((row, 0))
            where = _addresses(low, a, place)
            tests = [part for part in conjuncts(a.mask) if 1 not in part.varies] if a.mask is not None else []
            tests = [part for part in tests if not ev.holds(part)]
            if tests:
                kind = "i1" if lanes == 1 else f"<{lanes} x i1>"
                test = ev.at(tests[0], place)
                for part in tests[1:]:
                    test = code.let(f"and {kind} {test}, {ev.at(part, place)}")
                none = lt.splat(code, blank, "ptr", place.width)
                type = lt.typed("ptr", place.width)
                where = code.let(f"select {kind} {test}, {type} {where}, {type} {none}")
            at = _at(low, table, "ptr", code.add(row, t * m))
            code.line(f"  store {lt.typed('ptr', place.width)} {where}, ptr {at}, align 8")

    code.loop(m, fill, step=lanes)
    return table


def _addresses(low: Lowering, a: Load, place: Place) -> str:
    ev, code = low.ev, low.code
    kind, where = ev.address(a.pointer, a.elem, place)
    if kind == "same":
        return lt.splat(code, where, "ptr", place.width)
    if kind == "run":
        steps = lt.iota("i64", place.lanes)
        return code.let(f"getelementptr {lt.storage(a.elem)}, ptr {where}, <{place.lanes} x i64> {steps}")
    return where


def _at(low: Lowering, pointer: str, type: str, offset: Operand) -> str:
    return pointer if offset == 0 else low.code.let(f"getelementptr {type}, ptr {pointer}, i64 {offset}")
