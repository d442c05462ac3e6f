"""Operands of tl.dot in the order in which the micro-kernel reads them: copies of rows of A, panels of B.

Packing also applies whatever computes an operand: casts, masks, a fused prologue.
"""

from __future__ import annotations

from collections.abc import Callable

from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.lowering import microkernel as mk
from torchroller.triton_cpu.lowering.code import Operand
from torchroller.triton_cpu.lowering.evaluate import Evaluator
from torchroller.triton_cpu.lowering.function import Lowering
from torchroller.triton_cpu.lowering.nests import identity, new_buffer, over_tile, vector_dim
from torchroller.triton_cpu.lowering.transpose import transpose_block
from torchroller.triton_cpu.lowering.values import Buffer, Elementwise, Place, Tensor


def pack_rows(low: Lowering, p: mk.Product, a: Tensor) -> mk.Strip:
    """A as a row-major copy; int8 becomes unsigned by flipping the sign bit, which `compensate` takes back."""
    ev, k = low.ev, a.shape[1]
    source = a
    if p.kind == "vnni":

        def flip(ev: Evaluator, args: list[str], lanes: int | None) -> str:
            sign = lt.constant("-128", "i8", lanes)
            return ev.code.let(f"xor {lt.typed('i8', lanes)} {args[0]}, {sign}")

        source = Elementwise(a.shape, "i8", name="flip sign", args=(a,), emit=flip)
    buffer = new_buffer(low.code, source.elem, a.shape)
    _fill(ev, source, buffer)
    return mk.Strip(buffer.pointer, k // p.step, 1)


def _fill(ev: Evaluator, t: Tensor, buffer: Buffer) -> None:
    """Fill a row-major buffer within the current version, transposing in registers where the source asks for it."""
    vdim = vector_dim(ev, t.shape, [identity(t)])
    if vdim == 0 and len(t.shape) == 2 and _transposable(ev, t):
        _fill_transposed(ev, t, lambda row, col, value, lanes: ev.store_buffer(
            buffer, Place((row, col), 1, lanes), value))  # fmt: skip
        return
    over_tile(ev, t.shape, vdim, lambda place: ev.store_buffer(buffer, place, ev.at(t, place)))


def _transposable(ev: Evaluator, t: Tensor) -> bool:
    return all(n % ev.lanes == 0 for n in t.shape) and t.elem in ("f32", "i32")


def _fill_transposed(ev: Evaluator, t: Tensor, put: Callable[[Operand, Operand, str, int], None]) -> None:
    """Evaluate along dimension 0, hand out vectors along dimension 1."""
    code, lanes = ev.code, ev.lanes

    def block(row: Operand) -> None:
        def inner(col: Operand) -> None:
            columns = [ev.at(t, Place((row, code.add(col, j)), 0, lanes)) for j in range(lanes)]
            for i, vector in enumerate(transpose_block(code, columns, lanes, lt.scalar(t.elem))):
                put(code.add(row, i), col, vector, lanes)

        code.loop(t.shape[1], inner, step=lanes)

    code.loop(t.shape[0], block, step=lanes)


def pack_panels(low: Lowering, p: mk.Product, b: Tensor, vectors: int, lanes: int) -> str:
    """B as [N / NR][K / step][NR][step]."""
    ev, code = low.ev, low.code
    k, n = b.shape
    width = vectors * lanes
    packed = new_buffer(code, b.elem, (n // width, k // p.step, width * p.step))
    if (
        p.step == 1
        and vector_dim(ev, b.shape, [identity(b)]) == 0
        and _transposable(ev, b)
        and lanes == ev.lanes
    ):

        def put(row: Operand, col: Operand, value: str, count: int) -> None:
            panel = code.let(f"udiv i64 {col}, {width}") if isinstance(col, str) else col // width
            within = code.let(f"urem i64 {col}, {width}") if isinstance(col, str) else col % width
            ev.store_buffer(packed, Place((panel, row, within), 2, count), value)

        _fill_transposed(ev, b, put)
        return packed.pointer

    def panel(index: Operand) -> None:
        def steps(row: Operand) -> None:
            for v in range(vectors):
                col = code.add(code.mul(index, width), v * lanes)
                first = code.mul(row, p.step)
                parts = [ev.at(b, Place((code.add(first, s), col), 1, lanes)) for s in range(p.step)]
                value, count = _interleave(ev, parts, lanes, lt.scalar(b.elem))
                ev.store_buffer(packed, Place((index, row, v * count), 2, count), value)

        code.loop(k // p.step, steps)

    code.loop(n // width, panel)
    return packed.pointer


def _interleave(ev: Evaluator, parts: list[str], lanes: int, type: str) -> tuple[str, int]:
    """Element 0 of every part, then element 1 of every part, …"""
    code = ev.code
    if len(parts) == 1:
        return parts[0], lanes
    if len(parts) == 4:
        low, count = _concat(ev, parts[0], parts[1], lanes, type)
        high, _ = _concat(ev, parts[2], parts[3], lanes, type)
        order = [s * lanes + i for i in range(lanes) for s in range(4)]
        mask = ", ".join(f"i32 {x}" for x in order)
        v = f"<{count} x {type}>"
        return code.let(f"shufflevector {v} {low}, {v} {high}, <{4 * lanes} x i32> <{mask}>"), 4 * lanes
    order = [s * lanes + i for i in range(lanes) for s in range(2)]
    mask = ", ".join(f"i32 {x}" for x in order)
    v = f"<{lanes} x {type}>"
    return code.let(f"shufflevector {v} {parts[0]}, {v} {parts[1]}, <{2 * lanes} x i32> <{mask}>"), 2 * lanes


def _concat(ev: Evaluator, a: str, b: str, lanes: int, type: str) -> tuple[str, int]:
    mask = ", ".join(f"i32 {x}" for x in range(2 * lanes))
    v = f"<{lanes} x {type}>"
    return ev.code.let(f"shufflevector {v} {a}, {v} {b}, <{2 * lanes} x i32> <{mask}>"), 2 * lanes


def compensate(low: Lowering, column: Operand, b: str, b_row: Operand, k: int, c: Buffer, vectors: int, lanes: int,
                rows: int) -> None:  # fmt: skip
    """C[:, panel] -= 128 * column sums of B: A was made unsigned by adding 128."""
    code = low.code
    vec, quads = f"<{lanes} x i32>", "<64 x i8>"
    name = "llvm.x86.avx512.vpdpbusd.512"
    code.declare(
        f"declare {vec} @{name}({vec}, {quads}, {quads})", f"declare {vec} @{name}({vec}, {quads}, {quads})"
    )
    width = vectors * lanes
    base = _at(low.ev, b, "i32", code.mul(column, k // 4))
    sums = [code.alloca(vec) for _ in range(vectors)]
    for s in sums:
        code.line(f"  store {vec} zeroinitializer, ptr {s}")

    def step(row: Operand) -> None:
        for v, s in enumerate(sums):
            where = _at(low.ev, base, "i32", code.add(code.mul(row, width), v * lanes))
            loaded = code.let(f"load {quads}, ptr {where}, align 4")
            old = code.let(f"load {vec}, ptr {s}")
            ones = lt.constant("-128", "i8", 64)
            new = code.let(f"call {vec} @{name}({vec} {old}, {quads} {ones}, {quads} {loaded})")
            code.line(f"  store {vec} {new}, ptr {s}")

    code.loop(k // 4, step)
    totals = [code.let(f"load {vec}, ptr {s}") for s in sums]

    def subtract(row: Operand) -> None:
        for v, total in enumerate(totals):
            at = code.add(code.add(code.mul(row, c.strides[0]), column), v * lanes)
            where = _at(low.ev, c.pointer, "i32", at)
            old = code.let(f"load {vec}, ptr {where}, align 4")
            new = code.let(f"sub {vec} {old}, {total}")
            code.line(f"  store {vec} {new}, ptr {where}, align 4")

    code.loop(rows, subtract)


def _at(ev: Evaluator, pointer: str, type: str, offset: Operand) -> str:
    return pointer if offset == 0 else ev.code.let(f"getelementptr {type}, ptr {pointer}, i64 {offset}")
