"""Pointwise operators: one table entry each.

An entry gives the Triton text of the operator on operands that are already in the compute type
(float16 and bfloat16 compute in float32; bool is tl.int1). `ATEN` maps operator names of ATen to entries.
`libdevice` is the target's own library of mathematical functions; our CPU backend has one under the same names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Pointwise:
    """Triton text with {0}, {1} .. for the operands.

    cost:   flops-like weight; above 4 the value is not recomputed in several kernels
    result: "same" as the compute type, or "bool"
    on:     operand types that it is defined for
    """

    text: str
    cost: int = 1
    result: Literal["same", "bool"] = "same"
    on: Literal["any", "float", "int"] = "any"


def _f(text: str, cost: int = 10) -> Pointwise:
    return Pointwise(text, cost, on="float")


def _b(text: str) -> Pointwise:
    return Pointwise(text, 1, result="bool")


TABLE: dict[str, Pointwise] = {
    # arithmetic
    "add": Pointwise("{0} + {1}"),
    "sub": Pointwise("{0} - {1}"),
    "mul": Pointwise("{0} * {1}"),
    "div": Pointwise("{0} / {1}", 2, on="float"),
    "neg": Pointwise("-{0}"),
    "abs": Pointwise("tl.abs({0})"),
    "fma": Pointwise("tl.fma({0}, {1}, {2})", on="float"),
    "maximum": Pointwise("tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)"),
    "minimum": Pointwise("tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)"),
    "imaximum": Pointwise("tl.maximum({0}, {1})", on="int"),
    "iminimum": Pointwise("tl.minimum({0}, {1})", on="int"),
    "fmaximum": Pointwise(
        "tl.where(({0} >= {1}) | ({1} != {1}), {0}, {1})"
    ),  # of a number and NaN: the number
    "fminimum": Pointwise("tl.where(({0} <= {1}) | ({1} != {1}), {0}, {1})"),
    "imod": Pointwise("{0} % {1}", 8, on="int"),
    "fmod": _f("libdevice.fmod({0}, {1})", 8),  # the % of a GPU loses digits, and infinite divisors
    "idiv": Pointwise("{0} // {1}", 4, on="int"),
    "idiv_by": Pointwise("int_div({0}, {1})", 8, on="int"),  # by a divisor that may be 0 or -1
    "imod_by": Pointwise("int_rem({0}, {1})", 8, on="int"),
    "ipow": Pointwise("int_pow({0}, {1})", 64, on="int"),
    "pow": _f("libdevice.pow({0}, {1})", 20),
    # exponentials, powers, trigonometry
    "exp": _f("tl.exp({0})"),
    "exp2": _f("tl.exp2({0})"),
    "log": _f("tl.log({0})"),
    "log2": _f("tl.log2({0})"),
    "sqrt": _f("tl.sqrt({0})", 4),
    "rsqrt": _f("tl.rsqrt({0})", 4),
    "reciprocal": _f("1.0 / {0}", 2),
    "sin": _f("tl.sin({0})"),
    "cos": _f("tl.cos({0})"),
    "tan": _f("libdevice.tan({0})", 12),
    "asin": _f("libdevice.asin({0})"),
    "acos": _f("libdevice.acos({0})"),
    "atan": _f("libdevice.atan({0})"),
    "atan2": _f("libdevice.atan2({0}, {1})", 12),
    "sinh": _f("libdevice.sinh({0})", 12),
    "cosh": _f("libdevice.cosh({0})", 12),
    "asinh": _f("libdevice.asinh({0})", 16),
    "acosh": _f("libdevice.acosh({0})", 16),
    "atanh": _f("libdevice.atanh({0})", 16),
    "copysign": _f("libdevice.copysign({0}, {1})", 2),
    "hypot": _f("libdevice.hypot({0}, {1})"),
    "erf": _f("tl.erf({0})"),
    "erfc": _f("libdevice.erfc({0})", 16),
    "lgamma": _f("libdevice.lgamma({0})", 16),
    "tanh": _f("tanh({0})"),
    "sigmoid": _f("sigmoid({0})"),
    "expm1": _f("expm1({0})"),
    "log1p": _f("log1p({0})"),
    "floor": _f("tl.floor({0})", 1),
    "ceil": _f("tl.ceil({0})", 1),
    "trunc": _f("trunc({0})", 2),
    "round": _f("round_half_even({0})", 3),
    # comparisons and logic
    "eq": _b("{0} == {1}"),
    "ne": _b("{0} != {1}"),
    "lt": _b("{0} < {1}"),
    "le": _b("{0} <= {1}"),
    "gt": _b("{0} > {1}"),
    "ge": _b("{0} >= {1}"),
    "isnan": _b("{0} != {0}"),
    "isinf": _b("tl.abs({0}) == float('inf')"),
    "and": Pointwise("{0} & {1}", on="int"),
    "or": Pointwise("{0} | {1}", on="int"),
    "xor": Pointwise("{0} ^ {1}", on="int"),
    "not": Pointwise("~{0}", on="int"),
    "logical_not": _b("{0} == 0"),
    "lshift": Pointwise("shift_left({0}, {1})", 3, on="int"),
    "rshift": Pointwise("shift_right({0}, {1})", 3, on="int"),
    # selection; the first operand of where is bool
    "where": Pointwise("tl.where({0}, {1}, {2})"),
    "cast": Pointwise("{0}", 0),
    "copy": Pointwise("{0}", 0),
}

# ATen name -> table entry, for operators whose operands are all converted to the type of the result
# (or, for a bool result, to the common type of the operands).
ATEN: dict[str, str] = {
    "mul": "mul", "neg": "neg", "abs": "abs", "maximum": "maximum", "minimum": "minimum",
    "exp": "exp", "exp2": "exp2", "log": "log", "log2": "log2", "sqrt": "sqrt", "rsqrt": "rsqrt",
    "reciprocal": "reciprocal", "sin": "sin", "cos": "cos", "erf": "erf", "tanh": "tanh", "sigmoid": "sigmoid",
    "expm1": "expm1", "log1p": "log1p",
    "eq": "eq", "ne": "ne", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge",
    "bitwise_and": "and", "bitwise_or": "or", "bitwise_xor": "xor",
    "__and__": "and", "__or__": "or", "__xor__": "xor",
    "bitwise_left_shift": "lshift", "bitwise_right_shift": "rshift", "__lshift__": "lshift", "__rshift__": "rshift",
    "tan": "tan", "asin": "asin", "acos": "acos", "atan": "atan", "atan2": "atan2", "sinh": "sinh", "cosh": "cosh",
    "asinh": "asinh", "acosh": "acosh", "atanh": "atanh", "hypot": "hypot", "erfc": "erfc", "lgamma": "lgamma",
    "fmax": "fmaximum", "fmin": "fminimum",
}  # fmt: skip

# Device functions used by the texts above: name -> (Triton source, names it needs itself).
LIBRARY: dict[str, tuple[str, tuple[str, ...]]] = {
    "sigmoid": ("""\
@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))
""", ()),
    "tanh": ("""\
@triton.jit
def tanh(x):
    # |x| < 0.625: odd polynomial; else 1 - 2 / (exp(2|x|) + 1), which does not cancel there
    a = tl.abs(x)
    if x.dtype == tl.float64:
        z = x * x
        p = ((-9.64399179425052238628e-1 * z - 9.92877231001918586564e1) * z - 1.61468768441708447952e3) * z
        q = ((z + 1.12811678491632931402e2) * z + 2.23548839060100448583e3) * z + 4.84406305325125486048e3
        small = x + x * (p / q)
    else:
        z = x * x
        p = (((-5.70498872745e-3 * z + 2.06390887954e-2) * z - 5.37397155531e-2) * z + 1.33314422036e-1) * z
        small = x + x * (z * (p - 3.33332819422e-1))
    big = 1.0 - 2.0 / (tl.exp(2.0 * a) + 1.0)
    big = tl.where(x < 0, -big, big)
    return tl.where(a < 0.625, small, big)
""", ()),
    "expm1": ("""\
@triton.jit
def expm1(x):
    # Kahan: (u - 1) * x / log(u) repairs the rounding of u = exp(x)
    u = tl.exp(x)
    near = tl.where(u == 1.0, x, (u - 1.0) * (x / tl.log(u)))
    return tl.where(tl.abs(x) > 1.0, u - 1.0, near)
""", ()),
    "log1p": ("""\
@triton.jit
def log1p(x):
    u = 1.0 + x
    fixed = tl.log(u) * (x / (u - 1.0))
    return tl.where(u == 1.0, x, tl.where(u == float('inf'), u, fixed))
""", ()),
    "trunc": ("""\
@triton.jit
def trunc(x):
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))
""", ()),
    "round_half_even": ("""\
@triton.jit
def round_half_even(x):
    f = tl.floor(x)
    d = x - f
    odd = f * 0.5 != tl.floor(f * 0.5)
    return tl.where((d > 0.5) | ((d == 0.5) & odd), f + 1.0, f)
""", ()),
    "int_div": ("""\
@triton.jit
def int_div(x, y):
    # the quotient towards zero; of a division by zero, which a machine instruction traps on, x
    if x.dtype.is_int_signed():
        d = tl.where((y == 0) | (y == -1), 1, y).to(x.dtype)
        return tl.where(y == -1, -x, x // d)
    else:
        return x // tl.where(y == 0, 1, y).to(x.dtype)
""", ()),
    "int_rem": ("""\
@triton.jit
def int_rem(x, y):
    if x.dtype.is_int_signed():
        return x % tl.where((y == 0) | (y == -1), 1, y).to(x.dtype)
    else:
        return x % tl.where(y == 0, 1, y).to(x.dtype)
""", ()),
    "int_pow": ("""\
@triton.jit
def int_pow(x, y):
    # square and multiply, wrapping as machine integers do; a negative exponent leaves 1 and -1 only
    power = x * 0 + y * 0 + 1
    square = x
    left = y
    bits: tl.constexpr = x.dtype.primitive_bitwidth
    for _ in tl.static_range(bits):
        power = tl.where((left & 1) != 0, power * square, power)
        square = square * square
        left = left >> 1
    if x.dtype.is_int_signed():
        odd = tl.where((y & 1) != 0, -1, 1).to(x.dtype)
        unit = tl.where(x == 1, 1, tl.where(x == -1, odd, 0)).to(x.dtype)
        power = tl.where(y < 0, unit, power)
    return power
""", ()),
    "shift_left": ("""\
@triton.jit
def shift_left(x, n):
    outside = (n < 0) | (n >= x.dtype.primitive_bitwidth)
    return tl.where(outside, 0, x << tl.where(outside, 0, n).to(x.dtype)).to(x.dtype)
""", ()),
    "shift_right": ("""\
@triton.jit
def shift_right(x, n):
    most: tl.constexpr = x.dtype.primitive_bitwidth - 1
    outside = (n < 0) | (n > most)
    shifted = x >> tl.where(outside, most, n).to(x.dtype)
    if x.dtype.is_int_signed():
        return shifted
    else:
        return tl.where(outside, 0, shifted).to(x.dtype)
""", ()),
    "nan_max": ("""\
@triton.jit
def nan_max(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
""", ()),
    "nan_min": ("""\
@triton.jit
def nan_min(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
""", ()),
    "plus": ("""\
@triton.jit
def plus(a, b):
    return a + b
""", ()),
    "log_add_exp": ("""\
@triton.jit
def log_add_exp(a, b):
    top = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    low = tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)
    far = (top == low) & (tl.abs(top) == float('inf'))  # inf - inf
    return tl.where(far, top, top + tl.log(1.0 + tl.exp(low - top)))
""", ()),
    "multiply": ("""\
@triton.jit
def multiply(a, b):
    return a * b
""", ()),
}  # fmt: skip


def library_functions(text: str) -> list[str]:
    """Names of the LIBRARY functions that a text calls."""
    return [name for name in re.findall(r"(?<![.\w])(\w+)\(", text) if name in LIBRARY]
