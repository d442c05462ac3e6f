"""Register blocks of tl.dot on a CPU: which rows x vectors of C one call of the micro-kernel keeps in registers.

The lowering emits these blocks, the cost model counts with them, and constant operands are packed for them, so the
rule stands here once. It imports nothing: Triton and the search may both ask for it.
"""

from __future__ import annotations

from collections.abc import Iterable

Block = tuple[int, int]

# Up to this many rows of A, packing B costs more than it saves. Measured on Zen 4: 42 rows run at 80 GFLOP/s a core
# with a packed copy, at 88 without, 512 x 512 x 512 in tiles of 64 rows at 104 and 112.
IN_PLACE_ROWS = 64


def micro_kernels(vector_bits: int) -> tuple[Block, ...]:
    """(rows, vectors) that fit the registers, preferred one first.

    16 registers (SSE, AVX2) hold 8 accumulators, a vector of B each and a broadcast of A: with two pipes of four
    cycles latency, 8 independent chains are just enough. 32 registers (AVX-512) hold 16.
    """
    if vector_bits == 512:
        return (4, 4), (8, 2), (2, 8), (1, 8), (8, 1)
    return (4, 2), (2, 4), (1, 8), (8, 1)


def register_block(blocks: Iterable[Block], m: int, n: int, lanes: int) -> Block:
    """The (rows, vectors) for an m x n tile: most accumulators in use, the earlier of equals."""
    width = max(1, n // lanes)
    cut = [(min(rows, m), min(vectors, width)) for rows, vectors in blocks]
    return max(cut, key=lambda b: b[0] * b[1], default=(1, 1))


def heights(block: Block, m: int, vector_bits: int) -> tuple[int, int]:
    """(rows of the higher strips, how many of the first `m` rows they may take); strips of `block` do the rest.

    With 16 registers, six rows of two vectors leave one for a broadcast: twelve chains instead of eight hide what
    misses L1. Tiles are powers of two high, so a tile is sixes and then fours. Measured on Zen 3: 80 instead of 73
    GFLOP/s with A in L1, 72 instead of 64 with A in L2.
    """
    rows, vectors = block
    if vector_bits == 512 or (rows, vectors) != (4, 2):
        return rows, m
    high = m // 6 * 6
    while (m - high) % rows:
        high -= 6
    return 6, high
