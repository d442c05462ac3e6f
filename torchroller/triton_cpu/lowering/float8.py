"""Eight-bit floats: conversion to and from f32 by integer arithmetic, for any number of lanes.

Values too large become the largest finite one (as NVIDIA's `satfinite` conversions do), NaN stays NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torchroller.triton_cpu.lowering import llvm_types as lt

if TYPE_CHECKING:
    from torchroller.triton_cpu.lowering.evaluate import Evaluator


@dataclass(frozen=True)
class Format:
    """Layout of an 8-bit float: `largest` is the code of the largest finite magnitude, `nan` that of a NaN.

    `infinity` is the code of infinity where there is one; `unsigned_zero` formats have no -0, whose code is NaN.
    """

    mantissa: int
    bias: int
    largest: int
    nan: int
    infinity: int | None = None
    unsigned_zero: bool = False


FORMATS = {
    "f8E4M3FN": Format(3, 7, 0x7E, 0x7F),
    "f8E5M2": Format(2, 15, 0x7B, 0x7F, infinity=0x7C),
    "f8E4M3FNUZ": Format(3, 8, 0x7F, 0x80, unsigned_zero=True),
    "f8E5M2FNUZ": Format(2, 16, 0x7F, 0x80, unsigned_zero=True),
    "f8E4M3B11FNUZ": Format(3, 11, 0x7F, 0x80, unsigned_zero=True),
}


def to_f32(ev: Evaluator, value: str, elem: str, lanes: int | None) -> str:
    """Exact."""
    code, form = ev.code, FORMATS[elem]
    ints, floats, bools = lt.typed("i32", lanes), lt.typed("f32", lanes), lt.typed("i1", lanes)

    def number(n: int) -> str:
        return lt.constant(str(n), "i32", lanes)

    wide = code.let(f"zext {lt.typed('i8', lanes)} {value} to {ints}")
    magnitude = code.let(f"and {ints} {wide}, {number(0x7F)}")
    moved = code.let(f"shl {ints} {magnitude}, {number(23 - form.mantissa)}")
    small = code.let(f"bitcast {ints} {moved} to {floats}")
    # the exponent's bias by one multiplication, which also brings subnormal numbers into place
    scale = lt.constant(lt.float_literal(repr(2.0 ** (127 - form.bias)), "f32"), "f32", lanes)
    scaled = code.let(f"fmul {floats} {small}, {scale}")
    bits = code.let(f"bitcast {floats} {scaled} to {ints}")
    if form.infinity is not None:
        is_infinite = code.let(f"icmp eq {ints} {magnitude}, {number(form.infinity)}")
        bits = code.let(f"select {bools} {is_infinite}, {ints} {number(0x7F800000)}, {ints} {bits}")
    top = code.let(f"and {ints} {wide}, {number(0x80)}")
    sign = code.let(f"shl {ints} {top}, {number(24)}")
    bits = code.let(f"or {ints} {bits}, {sign}")
    if form.unsigned_zero:
        is_nan = code.let(f"icmp eq {ints} {wide}, {number(form.nan)}")
    else:
        last = form.largest if form.infinity is None else form.infinity
        is_nan = code.let(f"icmp ugt {ints} {magnitude}, {number(last)}")
    bits = code.let(f"select {bools} {is_nan}, {ints} {number(0x7FC00000)}, {ints} {bits}")
    return code.let(f"bitcast {ints} {bits} to {floats}")


def from_f32(ev: Evaluator, value: str, elem: str, lanes: int | None, toward_zero: bool = False) -> str:
    """Round to nearest, ties to even, or toward zero."""
    code, form = ev.code, FORMATS[elem]
    ints, floats, bools = lt.typed("i32", lanes), lt.typed("f32", lanes), lt.typed("i1", lanes)

    def number(n: int) -> str:
        return lt.constant(str(n), "i32", lanes)

    def let(text: str) -> str:
        return code.let(text)

    bits = let(f"bitcast {floats} {value} to {ints}")
    magnitude = let(f"and {ints} {bits}, {number(0x7FFFFFFF)}")
    drop = 23 - form.mantissa
    rounded = magnitude
    if not toward_zero:
        moved = let(f"lshr {ints} {magnitude}, {number(drop)}")
        odd = let(f"and {ints} {moved}, {number(1)}")
        half = let(f"add {ints} {magnitude}, {number((1 << (drop - 1)) - 1)}")
        rounded = let(f"add {ints} {half}, {odd}")
    kept = let(f"lshr {ints} {rounded}, {number(drop)}")
    normal = let(f"sub {ints} {kept}, {number((127 - form.bias) << form.mantissa)}")
    # Below the smallest normal number: count units of the smallest subnormal.
    absolute = let(f"bitcast {ints} {magnitude} to {floats}")
    smallest_normal = (128 - form.bias) << 23
    if toward_zero:
        per_unit = lt.constant(
            lt.float_literal(repr(2.0 ** (form.bias + form.mantissa - 1)), "f32"), "f32", lanes
        )
        units = let(f"fmul {floats} {absolute}, {per_unit}")
        is_small = let(f"icmp ult {ints} {magnitude}, {number(smallest_normal)}")
        zeros = lt.constant("0.0", "f32", lanes)
        units = let(f"select {bools} {is_small}, {floats} {units}, {floats} {zeros}")
        subnormal = let(f"fptosi {floats} {units} to {ints}")
    else:
        # adding a number whose last bit is that unit lets the addition do the rounding
        magic = (127 - form.bias + drop + 1) << 23
        anchor = let(f"bitcast {ints} {number(magic)} to {floats}")
        total = let(f"fadd {floats} {absolute}, {anchor}")
        as_int = let(f"bitcast {floats} {total} to {ints}")
        subnormal = let(f"sub {ints} {as_int}, {number(magic)}")
    small = let(f"icmp ult {ints} {magnitude}, {number(smallest_normal)}")
    result = let(f"select {bools} {small}, {ints} {subnormal}, {ints} {normal}")
    too_large = let(f"icmp ugt {ints} {result}, {number(form.largest)}")
    result = let(f"select {bools} {too_large}, {ints} {number(form.largest)}, {ints} {result}")
    top = let(f"lshr {ints} {bits}, {number(24)}")
    sign = let(f"and {ints} {top}, {number(0x80)}")
    if form.unsigned_zero:
        is_zero = let(f"icmp eq {ints} {result}, {number(0)}")
        sign = let(f"select {bools} {is_zero}, {ints} {number(0)}, {ints} {sign}")
    result = let(f"or {ints} {result}, {sign}")
    is_nan = let(f"icmp ugt {ints} {magnitude}, {number(0x7F800000)}")
    result = let(f"select {bools} {is_nan}, {ints} {number(form.nan)}, {ints} {result}")
    return let(f"trunc {ints} {result} to {lt.typed('i8', lanes)}")


def decode(code: int, elem: str) -> float:
    """The number that an 8-bit code stands for."""
    form = FORMATS[elem]
    magnitude, sign = code & 0x7F, -1.0 if code & 0x80 else 1.0
    if form.unsigned_zero and code == form.nan:
        return math.nan
    if not form.unsigned_zero and magnitude > (form.largest if form.infinity is None else form.infinity):
        return math.nan
    if magnitude == form.infinity:
        return sign * math.inf
    exponent, fraction = magnitude >> form.mantissa, magnitude & ((1 << form.mantissa) - 1)
    if exponent == 0:
        return sign * fraction * 2.0 ** (1 - form.bias - form.mantissa)
    return sign * (1 + fraction / (1 << form.mantissa)) * 2.0 ** (exponent - form.bias)


def encode(number: float, elem: str) -> int:
    """The code of a number that the format holds exactly, else of a nearest one."""
    form = FORMATS[elem]
    if number != number:
        return form.nan
    if math.isinf(number) and form.infinity is not None:
        return form.infinity | (0x80 if number < 0 else 0)
    magnitude = min(range(form.largest + 1), key=lambda c: (abs(decode(c, elem) - abs(number)), c & 1))
    negative = math.copysign(1.0, number) < 0 and not (form.unsigned_zero and magnitude == 0)
    return magnitude | (0x80 if negative else 0)
