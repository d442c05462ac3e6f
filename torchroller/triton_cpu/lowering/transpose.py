"""Square transposes in registers."""

from __future__ import annotations

from torchroller.triton_cpu.lowering.code import Code


def transpose_block(code: Code, rows: list[str], lanes: int, type: str) -> list[str]:
    """`lanes` vectors of `lanes` elements → their transpose, by log2(lanes) rounds of two-input shuffles.

    Round s exchanges the off-diagonal s × s blocks of every 2s × 2s block.
    """
    vec = f"<{lanes} x {type}>"
    s = 1
    while s < lanes:
        low = ", ".join(f"i32 {lanes + (i ^ s) if i & s else i}" for i in range(lanes))
        high = ", ".join(f"i32 {lanes + i if i & s else i ^ s}" for i in range(lanes))
        for i in range(lanes):
            if i & s:
                continue
            a, b = rows[i], rows[i + s]
            rows[i] = code.let(f"shufflevector {vec} {a}, {vec} {b}, <{lanes} x i32> <{low}>")
            rows[i + s] = code.let(f"shufflevector {vec} {a}, {vec} {b}, <{lanes} x i32> <{high}>")
        s *= 2
    return rows
