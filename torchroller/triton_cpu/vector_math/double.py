"""float64 functions. What is not here goes through libm, lane by lane."""

from __future__ import annotations

from . import coefficients as poly
from .body import Body, Value

INFINITY, NAN = float("inf"), float("nan")
LOG2_E = 1.4426950408889634
LN2_HI, LN2_LO = 0.6931471805598903, 5.497923018708371e-14
_ROUND = 6755399441055744.0  # 1.5 * 2**52
_ROUND_BITS = 0x4338000000000000
_SMALLEST_NORMAL = 2.2250738585072014e-308


def _power_of_two(k: Value) -> Value:
    return ((k + 1023) << 52).as_float("double")


def _reduce(b: Body, x: Value) -> tuple[Value, Value]:
    """(r, k) with x = k ln2 + r."""
    shifted = b.fma(x, LOG2_E, _ROUND)
    n = shifted - _ROUND
    return b.fma(n, -LN2_LO, b.fma(n, -LN2_HI, x)), shifted.bits() - _ROUND_BITS


def _scale(b: Body, x: Value, k: Value) -> Value:
    """x × 2**k, rounding once where the result is subnormal."""
    if "avx512f" in b.features and b.lanes == 8:
        n = (k + _ROUND_BITS).as_float("double") - _ROUND
        given = f"<8 x double> {x.text}, <8 x double> {n.text}, <8 x double> zeroinitializer, i8 -1, i32 4"
        return b.emit(f"call <8 x double> @llvm.x86.avx512.mask.scalef.pd.512({given})", "double")
    # An arithmetic shift of 64-bit lanes needs AVX-512; k fits 32 bits.
    half = (k.cast("trunc", "i32") >> 1).cast("sext", "i64")
    return x * _power_of_two(half) * _power_of_two(k - half)


def exp(b: Body, x: Value) -> Value:
    x = b.at_least(b.at_most(x, 710.0), -746.0)
    r, k = _reduce(b, x)
    p = b.fma(r * r, b.polynomial_pairs(r, poly.EXP_F64), r) + 1.0
    return _scale(b, p, k)


def expm1(b: Body, x: Value) -> Value:
    y = b.at_least(b.at_most(x, 710.0), -40.0)
    r, k = _reduce(b, y)
    p = b.fma(r * r, b.polynomial_pairs(r, poly.EXPM1_F64), r)
    half = _power_of_two(k - 1)
    result = b.fma(half, p, half - 0.5) * 2.0
    return (b.abs(x) < 2.0**-53).select(x, result)


def tanh(b: Body, x: Value) -> Value:
    a = b.at_most(b.abs(x), 20.0)
    t = expm1(b, a + a)
    return b.copysign(t / (t + 2.0), x)


def sigmoid(b: Body, x: Value) -> Value:
    z = exp(b, -b.abs(x))
    return (x < 0.0).select(z, 1.0) / (z + 1.0)


def log(b: Body, x: Value) -> Value:
    tiny = x < _SMALLEST_NORMAL
    bits = tiny.select(x * 2.0**54, x).bits()
    shifted = bits - 0x3FE6A09E667F3BCD
    exponent = shifted >> 52
    f = (bits - (exponent << 52)).as_float("double") - 1.0
    e = exponent.cast("trunc", "i32").cast("sitofp", "double")
    e = tiny.select(e - 54.0, e)
    z = f / (f + 2.0)
    square = z * z
    # log(1 + f) = f - z f + z³ P(z²): f is exact, and the rest is small beside it.
    tail = b.fma(square * z, b.polynomial_pairs(square, poly.LOG_F64), -(z * f))
    result = b.fma(e, LN2_HI, f + b.fma(e, LN2_LO, tail))
    result = (x < INFINITY).select(result, x)
    return (x > 0.0).select(result, x.equals(0.0).select(-INFINITY, x.is_nan().select(x, NAN)))


_HALF_PI = (1.5707963267948966, 6.123233995736766e-17, -1.4973849048591833e-33)
_TRIG_LIMIT = 1.0e6


def _sine_of_quadrant(b: Body, x: Value, shift: int) -> Value:
    shifted = b.fma(x, 0.6366197723675814, _ROUND)
    n, k = shifted - _ROUND, shifted.bits() - _ROUND_BITS + shift
    r = x
    for part in _HALF_PI:
        r = b.fma(n, -part, r)
    s = r * r
    sine = b.fma(s * r, b.polynomial_pairs(s, poly.SIN_F64), r)
    cosine = b.fma(s * s, b.polynomial_pairs(s, poly.COS_F64), b.fma(s, -0.5, 1.0))
    value = (k & 1).differs(0).select(cosine, sine)
    return (value.bits() ^ ((k & 2) << 62)).as_float("double")


def sin(b: Body, x: Value) -> Value:
    result = x.equals(0.0).select(x, _sine_of_quadrant(b, x, 0))
    return b.library_where(b.abs(x) > _TRIG_LIMIT, "sin", result, x)


def cos(b: Body, x: Value) -> Value:
    return b.library_where(b.abs(x) > _TRIG_LIMIT, "cos", _sine_of_quadrant(b, x, 1), x)


def sqrt(b: Body, x: Value) -> Value:
    return b.sqrt(x)


def rsqrt(b: Body, x: Value) -> Value:
    return 1.0 / b.sqrt(x)
