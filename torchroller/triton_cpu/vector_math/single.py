"""float32 functions. Each takes and returns Values; the bounds stated in BOUNDS_ULP are tested.

Constants named *_HI, *_MID, *_LO are one number split so that the leading parts have few bits: a product with
a small integer is then exact under fma.
"""

from __future__ import annotations

from . import coefficients as poly
from .body import Body, Value

INFINITY, NAN = float("inf"), float("nan")
LOG2_E, LN2_HI, LN2_LO = 1.4426950408889634, 0.693145751953125, 1.42860682030941723212e-6
_ROUND = 12582912.0  # 1.5 * 2**23: adding it leaves the nearest integer in the low bits
_ROUND_BITS = 0x4B400000
_SMALLEST_NORMAL = 1.1754943508222875e-38


def _round_to_int(b: Body, x: Value, scale: float) -> tuple[Value, Value]:
    """(nearest integer to x × scale as float, as i32) for results below 2**22; NaN stays NaN."""
    shifted = b.fma(x, scale, _ROUND)
    return shifted - _ROUND, shifted.bits() - _ROUND_BITS


def _power_of_two(k: Value) -> Value:
    """2**k for k from -126 to 127."""
    return ((k + 127) << 23).as_float("float")


def _scalef(b: Body, x: Value, n: Value) -> Value:
    """x × 2**n in one instruction of AVX-512, rounding once."""
    suffix = f"(<16 x float> {x.text}, <16 x float> {n.text}, <16 x float> zeroinitializer, i16 -1, i32 4)"
    return b.emit(f"call <16 x float> @llvm.x86.avx512.mask.scalef.ps.512{suffix}", "float")


def _has_scalef(b: Body) -> bool:
    return "avx512f" in b.features and b.lanes == 16


def _powers(b: Body, k: Value, sign: Value) -> tuple[Value, Value]:
    """(2**(k ± 32), 2**∓32) for |k| < 159; `sign` has k's sign wherever |k| > 95.

    2**k itself is not representable where a result is subnormal or infinite. The product with the first is
    normal, and the product of that with the second rounds once more: exactly, where the result is normal.
    """
    negative = sign.bits() < 0
    bias = negative.select(b.value((127 + 32) << 23, "i32"), (127 - 32) << 23)
    far = negative.select(b.value(2.0**-32, "float"), 2.0**32)
    return ((k << 23) + bias).as_float("float"), far


def _scale(b: Body, less: Value, n: Value, k: Value, sign: Value) -> Value:
    """(1 + less) × 2**n (k is n as integer); see _powers for `sign`."""
    if _has_scalef(b):
        return _scalef(b, less + 1.0, n)
    power, far = _powers(b, k, sign)
    return b.fma(less, power, power) * far


def _exp_reduced(b: Body, x: Value) -> tuple[Value, Value, Value]:
    """(exp(r) - 1, n as float, n as int) with x = n ln2 + r."""
    n, k = _round_to_int(b, x, LOG2_E)
    r = b.fma(n, -LN2_LO, b.fma(n, -LN2_HI, x))
    return b.fma(r * r, b.polynomial_tree(r, poly.EXP), r), n, k


def exp(b: Body, x: Value) -> Value:
    x = b.at_least(b.at_most(x, 89.0), -104.0)
    less, n, k = _exp_reduced(b, x)
    return _scale(b, less, n, k, x)


def exp2(b: Body, x: Value) -> Value:
    x = b.at_least(b.at_most(x, 129.0), -151.0)
    n, k = _round_to_int(b, x, 1.0)
    r = x - n
    p = b.fma(r, b.polynomial(r, poly.EXP2), 1.0)
    if _has_scalef(b):
        return _scalef(b, p, n)
    power, far = _powers(b, k, x)
    return p * power * far


def expm1(b: Body, x: Value) -> Value:
    y = b.at_least(b.at_most(x, 89.0), -20.0)
    n, k = _round_to_int(b, y, LOG2_E)
    r = b.fma(n, -LN2_LO, b.fma(n, -LN2_HI, y))
    p = b.fma(r * r, b.polynomial_tree(r, poly.EXPM1), r)
    half = _power_of_two(k - 1)  # half of 2**n, which overflows at n = 128
    result = b.fma(half, p, half - 0.5) * 2.0
    return (b.abs(x) < 2.0**-24).select(x, result)


def _split_log(b: Body, x: Value) -> tuple[Value, Value]:
    """(e, f) with x = 2**e (1 + f) and 1 + f from √½ to √2, for finite positive x."""
    tiny = x < _SMALLEST_NORMAL
    bits = tiny.select(x * 2.0**23, x).bits()
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).as_float("float") - 1.0
    e = exponent.cast("sitofp", "float")
    return tiny.select(e - 23.0, e), f


def _log_limits(b: Body, x: Value, result: Value) -> Value:
    """log at 0, ∞, negative numbers and NaN."""
    result = (x < INFINITY).select(result, x)  # ∞ and NaN
    return (x > 0.0).select(result, x.equals(0.0).select(-INFINITY, x.is_nan().select(x, NAN)))


def _log_tail(b: Body, f: Value) -> Value:
    """log(1 + f) - f for 1 + f from √½ to √2."""
    square = f * f
    return b.fma(square * f, b.polynomial_tree(f, poly.LOG), square * -0.5)


def log(b: Body, x: Value) -> Value:
    e, f = _split_log(b, x)
    return _log_limits(b, x, b.fma(e, LN2_HI, f + b.fma(e, LN2_LO, _log_tail(b, f))))


def _log_base(b: Body, x: Value, high: float, low: float, unit_high: float, unit_low: float) -> Value:
    """log(x) × (high + low), plus e × (unit_high + unit_low); f × high keeps its rounding error."""
    e, f = _split_log(b, x)
    tail = _log_tail(b, f)
    product = f * high
    error = b.fma(f, low, b.fma(f, high, -product))
    rest = b.fma(tail, high, error)
    if unit_low:
        rest = b.fma(e, unit_low, rest)
    whole = e * unit_high
    # Whole part and product by a fast two-sum: |whole| is at least 0.3 or zero.
    total = whole + product
    lost = whole.equals(0.0).select(0.0, product - (total - whole))
    return _log_limits(b, x, total + (lost + rest))


def log2(b: Body, x: Value) -> Value:
    return _log_base(b, x, 1.4426950216293335, 1.925962968e-8, 1.0, 0.0)


def log10(b: Body, x: Value) -> Value:
    return _log_base(b, x, 0.43429449200630188, -1.010305e-8, 0.301025390625, 4.605038981195214e-6)


def log1p(b: Body, x: Value) -> Value:
    u = x + 1.0
    bits = u.bits()
    k = (bits - 0x3F3504F3) >> 23
    k = (k > 126).select(126, k)
    scale = ((127 - k) << 23).as_float("float")
    # 1 + f = (1 + x) 2**-k with one rounding.
    f = b.fma(x, scale, scale - 1.0)
    e = k.cast("sitofp", "float")
    result = b.fma(e, LN2_HI, f + b.fma(e, LN2_LO, _log_tail(b, f)))
    result = (x < 2.0**100).select(result, log(b, x))
    result = _log_limits(b, u, result)
    return (b.abs(x) < 2.0**-24).select(x, result)


def tanh(b: Body, x: Value) -> Value:
    a = b.at_most(b.abs(x), 10.0)
    s = a * a
    small = b.fma(s * a, b.polynomial_tree(s, poly.TANH), a)
    less, n, k = _exp_reduced(b, a + a)
    power = _power_of_two(k)
    large = 1.0 - 2.0 / (b.fma(less, power, power) + 1.0)
    return b.copysign((a < 0.625).select(small, large), x)


def sigmoid(b: Body, x: Value) -> Value:
    # z / (1 + z) below zero, 1 / (1 + z) above, z = exp(-|x|); both roundings of 1 + z and of the quotient
    # are made good, because z's own error may already count double in the result.
    y = b.at_least(-b.abs(x), -104.0)
    n, k = _round_to_int(b, y, LOG2_E)
    r = b.fma(n, -LN2_LO, b.fma(n, -LN2_HI, y))
    whole = r + 1.0
    p = whole + b.fma(r * r, b.polynomial_tree(r, poly.EXP), r - (whole - 1.0))
    if _has_scalef(b):
        z = _scalef(b, p, n)
    else:  # as in _scale, for n ≤ 0
        z = p * ((k << 23) + ((127 + 32) << 23)).as_float("float") * 2.0**-32
    divisor = z + 1.0
    lost = z - (divisor - 1.0)
    dividend = (x < 0.0).select(z, 1.0)
    quotient = dividend / divisor
    rest = b.fma(-quotient, lost, b.fma(-quotient, divisor, dividend))
    return b.fma(rest, (x < 0.0).select(1.0, quotient), quotient)


def erf(b: Body, x: Value) -> Value:
    t = b.at_most(b.abs(x), 4.0)
    if "avx512f" in b.features:
        # A polynomial about the nearest of 16 centres: half the instructions of the two formulas below.
        n, k = _round_to_int(b, t, 1 / poly.ERF_STEP)
        u = b.fma(n, -poly.ERF_STEP, t)
        lowest, *above = (b.lookup(row, k) for row in poly.ERF_PIECES)
        result = above.pop()
        for c in reversed(above):
            result = b.fma(result, u, c)
        return b.copysign(b.fma(result, u, k.equals(0).select(t, lowest)), x)
    s = x * x
    small = b.fma(x, b.polynomial_tree(s, poly.ERF_SMALL), x)
    less, n, k = _exp_reduced(b, -(t * b.polynomial_tree(t, poly.ERF_LARGE)))
    power = _power_of_two(k)
    large = b.copysign((1.0 - power) - less * power, x)
    return (t < 0.94).select(small, large)


_HALF_PI = (1.5707963705062866, -4.371138828673793e-08, -1.7151245100059067e-15)
_TRIG_LIMIT = 30000.0


def _quadrant(b: Body, x: Value) -> tuple[Value, Value]:
    """(r, quadrant) with x = quadrant × π/2 + r, for |x| up to _TRIG_LIMIT."""
    n, k = _round_to_int(b, x, 0.6366197723675814)
    r = x
    for part in _HALF_PI:
        r = b.fma(n, -part, r)
    return r, k


def _sin_cos(b: Body, r: Value) -> tuple[Value, Value]:
    s = r * r
    sine = b.fma(s * r, b.polynomial_tree(s, poly.SIN), r)
    cosine = b.fma(s * s, b.polynomial(s, poly.COS), b.fma(s, -0.5, 1.0))
    return sine, cosine


def _with_large(b: Body, x: Value, name: str, result: Value) -> Value:
    """`result` where |x| is at most _TRIG_LIMIT, libm's `name` elsewhere (rare: a branch)."""
    return b.library_where(b.abs(x) > _TRIG_LIMIT, name, result, x)


def _sine_of_quadrant(b: Body, x: Value, shift: int) -> Value:
    r, k = _quadrant(b, x)
    k = k + shift if shift else k
    sine, cosine = _sin_cos(b, r)
    value = (k & 1).differs(0).select(cosine, sine)
    sign = (k & 2) << 30
    return (value.bits() ^ sign).as_float("float")


def sin(b: Body, x: Value) -> Value:
    result = _sine_of_quadrant(b, x, 0)
    return _with_large(b, x, "sinf", x.equals(0.0).select(x, result))


def cos(b: Body, x: Value) -> Value:
    return _with_large(b, x, "cosf", _sine_of_quadrant(b, x, 1))


def tan(b: Body, x: Value) -> Value:
    n, k = _round_to_int(b, x, 0.6366197723675814)
    # The argument in two parts: near the poles tan magnifies its rounding.
    high = b.fma(n, -_HALF_PI[0], x)
    product = n * _HALF_PI[1]
    middle = high - product
    back = middle - high
    lost = (high - (middle - back)) - (product + back)  # two-sum
    low = b.fma(n, -_HALF_PI[2], lost - b.fma(n, _HALF_PI[1], -product))
    r = middle + low
    low = low - (r - middle)
    s = r * r
    tail = b.fma(s * r, b.polynomial(s, poly.TAN), b.fma(s, low, low))
    t = r + tail
    # cot from both parts of t, by one step of division's own correction
    t_low = tail - (t - r)
    c = -1.0 / t
    cot = b.fma(c, b.fma(c, t_low, b.fma(c, t, 1.0)), c)
    result = (k & 1).differs(0).select(cot, t)
    return _with_large(b, x, "tanf", x.equals(0.0).select(x, result))


def atan(b: Body, x: Value) -> Value:
    a = b.abs(x)
    inverted = a > 1.0
    y = inverted.select(1.0 / a, a)
    s = y * y
    p = b.fma(s * y, b.polynomial_pairs(s, poly.ATAN), y)
    # π/2 - p, with the part of π/2 that float32 leaves out
    return b.copysign(inverted.select((-4.371138828673793e-08 - p) + 1.5707963705062866, p), x)


def _asin_core(b: Body, y: Value, s: Value) -> Value:
    """asin(y) for 0 ≤ y ≤ ½, s = y²."""
    return b.fma(s * y, b.polynomial(s, poly.ASIN), y)


def asin(b: Body, x: Value) -> Value:
    a = b.abs(x)
    large = a > 0.5
    z = b.fma(a, -0.5, 0.5)
    s = large.select(z, a * a)
    p = _asin_core(b, large.select(b.sqrt(z), a), s)
    return b.copysign(large.select((1.5707963705062866 - (p + p)) - 4.371138828673793e-08, p), x)


def acos(b: Body, x: Value) -> Value:
    a = b.abs(x)
    large = a > 0.5
    z = b.fma(a, -0.5, 0.5)
    s = large.select(z, a * a)
    p = _asin_core(b, large.select(b.sqrt(z), a), s)
    negative = x < 0.0
    near = b.copysign(p, x)
    middle = 1.5707963705062866 - (near + 4.371138828673793e-08)
    twice = p + p
    return large.select(negative.select(3.1415927410125732 - (twice + 8.742277657347586e-08), twice), middle)


def _half_exp(b: Body, a: Value) -> Value:
    """exp(a) / 2 for a ≥ 0: finite wherever sinh and cosh are."""
    less, n, k = _exp_reduced(b, b.at_most(a, 90.0))
    return _scale(b, less, n - 1.0, k - 1, a)


def sinh(b: Body, x: Value) -> Value:
    a = b.abs(x)
    t = expm1(b, b.at_most(a, 80.0))
    half = _half_exp(b, a)
    return b.copysign((a < 2.0).select((t + t / (t + 1.0)) * 0.5, half - 0.25 / half), x)


def cosh(b: Body, x: Value) -> Value:
    half = _half_exp(b, b.abs(x))
    return half + 0.25 / half


def sqrt(b: Body, x: Value) -> Value:
    return b.sqrt(x)


def rsqrt(b: Body, x: Value) -> Value:
    return 1.0 / b.sqrt(x)


def pow(b: Body, x: Value, y: Value) -> Value:
    """x**y through float64, with the special cases of C99."""
    a = b.abs(x)
    wide, y_wide = a.cast("fpext", "double"), y.cast("fpext", "double")
    # float32's subnormals are normal here
    bits = wide.bits()
    exponent = (bits - 0x3FE6A09E667F3BCD) >> 52
    m = (bits - (exponent << 52)).as_float("double")
    z = (m - 1.0) / (m + 1.0)
    e = exponent.cast("trunc", "i32").cast("sitofp", "double")
    logarithm = b.fma(z, b.polynomial(z * z, poly.LOG2_F64), e)
    logarithm = wide.equals(0.0).select(-INFINITY, (wide < INFINITY).select(logarithm, wide))
    product = b.at_least(b.at_most(y_wide * logarithm, 200.0), -200.0)
    shifted = product + 6755399441055744.0
    n = shifted - 6755399441055744.0
    r = product - n
    p = b.fma(r, b.polynomial(r, poly.EXP2_F64), 1.0)
    k = shifted.bits() - 0x4338000000000000
    magnitude = (p * ((k + 1023) << 52).as_float("double")).cast("fptrunc", "float")
    half = y * 0.5
    integral = b.intrinsic("rint", y).equals(y)
    odd_fraction = b.intrinsic("rint", half).differs(half)
    odd = (integral & odd_fraction).select(x, 1.0)
    result = b.copysign(magnitude, odd)
    undefined = (x < 0.0) & (integral ^ 1) & (a < INFINITY)
    result = undefined.select(NAN, result)
    infinite = b.abs(y).equals(INFINITY)
    one = x.equals(1.0) | y.equals(0.0) | (x.equals(-1.0) & infinite)
    return one.select(1.0, (x.is_nan() | y.is_nan()).select(x + y, result))
