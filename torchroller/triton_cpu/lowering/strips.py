"""Which rows of a product one call of the micro-kernel takes: strips of the register block's height, or higher ones."""

from __future__ import annotations

from collections.abc import Callable

from torchroller.triton_cpu.blocking import Block, heights
from torchroller.triton_cpu.lowering.code import Operand
from torchroller.triton_cpu.lowering.function import Lowering

Span = tuple[Operand, Operand, int]  # first row, end, rows of a strip


def strips(low: Lowering, block: Block, m: int, live: Operand) -> list[Span]:
    """The `live` rows of `m`, a multiple of the block's, in spans of strips of one height each."""
    code, (rows, _) = low.code, block
    high, reach = heights(block, m, low.ev.vector_bits)
    if high == rows or not reach:
        return [(0, live, rows)]
    if isinstance(live, int):
        end: Operand = min(live // high * high, reach)
    else:
        whole = code.mul(code.let(f"udiv i64 {live}, {high}"), high)
        end = least(low, whole, reach)
    return [(0, end, high), (end, live, rows)]


def least(low: Lowering, a: Operand, b: int) -> Operand:
    """The smaller of a number that may be known only at run time, and a constant."""
    if isinstance(a, int):
        return min(a, b)
    low.code.declare("smin", "declare i64 @llvm.smin.i64(i64, i64)")
    return low.code.let(f"call i64 @llvm.smin.i64(i64 {a}, i64 {b})")


def over_rows(
    low: Lowering, start: Operand, end: Operand, height: int, body: Callable[[Operand], None]
) -> None:
    """`body` at each strip of a span."""
    code = low.code
    if not (isinstance(start, int) and isinstance(end, int)):
        code.dynamic_loop(start, end, height, "i64", body)
    elif start + height >= end:
        if start < end:
            body(start)
    else:
        code.dynamic_loop(start, end, height, "i64", body, at_least_once=True)
