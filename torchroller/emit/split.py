"""Products of float32 on matrix units of bfloat16: each operand is a sum of three numbers of 8 bits.

    a = a0 + a1 + a2, b = b0 + b1 + b2
    a b = a0 b0 + (a1 b0 + a0 b1) + (a1 b1 + a2 b0 + a0 b2), and less than 2**-24 of it that is left out

Six products of bfloat16 take a fraction of the time that multiply-adds of float32 take on data-centre GPUs. The right
operand comes split from memory (`Pack.parts`), the left one is split in registers. Matrix units add up with fewer bits
than float32 has, so every step along k starts from zero and is added to the accumulator by the vector units. Where an
operand is infinite its lower parts are not numbers: what the five small products give then counts as nothing.

Sources: Ootomo and Yokota, IJHPCA 36(4), 2022 (accumulation outside of the matrix units); Henry et al., ARITH 2019
(bfloat16 triplets).
"""

from __future__ import annotations

from .common import Body

PARTS = 3
HOW = "bf16x6"  # the word of DeviceSpec.float32_dot and of tl.dot's input_precision


def add_product(body: Body, a: str, parts: tuple[str, str, str]) -> None:
    """Adds a @ (the sum of `parts`) to `acc`.

    a: name of a float32 tile
    parts: names of tiles of bfloat16, the largest part first
    """
    b0, b1, b2 = parts
    for line in (
        f"a0 = {a}.to(tl.bfloat16)",
        f"rest = {a} - a0.to(tl.float32)",
        "a1 = rest.to(tl.bfloat16)",
        "a2 = (rest - a1.to(tl.float32)).to(tl.bfloat16)",
        f"small = tl.dot(a0, {b2})",
        f"small = tl.dot(a2, {b0}, small)",
        f"small = tl.dot(a1, {b1}, small)",
        f"small = tl.dot(a0, {b1}, small)",
        f"small = tl.dot(a1, {b0}, small)",
        "small = tl.where(small == small, small, 0.0)",
        f"acc += tl.dot(a0, {b0}, small)",
    ):
        body.line(line)
