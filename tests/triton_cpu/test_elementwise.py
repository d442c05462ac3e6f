"""Every operation that acts place by place, on every type, with the values that go wrong first."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import triton.language as tl
from oracle import (
    FLOATS,
    assert_equal,
    floats,
    flushed,
    many,
    needs_backend,
    ramp,
    sweep,
    triton,
    ulp_distance,
)

pytestmark = needs_backend

SIGNED = [torch.int8, torch.int16, torch.int32, torch.int64]
UNSIGNED = [torch.uint8, torch.uint16, torch.uint32, torch.uint64]
INTEGERS = sweep(SIGNED + UNSIGNED, [torch.int8, torch.int32, torch.int64, torch.uint8, torch.uint32])
LANES = [1, 2, 8, 64, 256]
INTEGER_OPS = [
    "a + b",
    "a - b",
    "a * b",
    "a & b",
    "a | b",
    "a ^ b",
    "~a",
    "tl.minimum(a, b)",
    "tl.maximum(a, b)",
]
COMPARISONS = ["a < b", "a <= b", "a > b", "a >= b", "a == b", "a != b"]


def integers(dtype: torch.dtype, count: int, seed: int) -> torch.Tensor:
    info = torch.iinfo(dtype)
    numbers = np.random.default_rng(seed).integers(
        info.min, info.max, count, endpoint=True, dtype=numpy_type(dtype)
    )
    special = [info.min, info.min + 1, 0, 1, 2, info.max - 1, info.max, 7]
    if info.min < 0:
        special += [-1, -2, -7]
    for k in range(min(count, len(special) ** 2)):
        numbers[k] = special[k % len(special) if seed else k // len(special)]
    return torch.from_numpy(numbers)


def numpy_type(dtype: torch.dtype) -> np.dtype:
    return np.dtype(str(dtype).removeprefix("torch."))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("count", sweep([1, 256], [256]))
def test_integer_arithmetic_wraps(tmp_path: Path, dtype: torch.dtype, count: int) -> None:
    a, b = integers(dtype, count, 0), integers(dtype, count, 1)
    out = torch.empty(len(INTEGER_OPS), count, dtype=dtype)
    many(tmp_path, INTEGER_OPS)[(1,)](a, b, out, N=count)
    x, y = a.numpy(), b.numpy()
    with np.errstate(over="ignore"):
        want = [x + y, x - y, x * y, x & y, x | y, x ^ y, ~x, np.minimum(x, y), np.maximum(x, y)]
    for row, expected, expression in zip(out, want, INTEGER_OPS):
        assert_equal(row, torch.from_numpy(expected), expression)


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_comparisons_of_integers(tmp_path: Path, dtype: torch.dtype) -> None:
    a, b = integers(dtype, 256, 0), integers(dtype, 256, 1)
    out = torch.empty(len(COMPARISONS), 256, dtype=torch.bool)
    many(tmp_path, COMPARISONS)[(1,)](a, b, out, N=256)
    for row, expression in zip(out, COMPARISONS):
        assert_equal(row, torch.from_numpy(eval(expression, {"a": a.numpy(), "b": b.numpy()})), expression)


def truncated(a: int, b: int, info: torch.iinfo) -> tuple[int, int]:
    """Quotient and remainder as documented in lowering/integer.py."""
    if b == 0:
        return 0, 0
    quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    remainder = a - quotient * b
    return (info.min if quotient > info.max else quotient), remainder


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("count", sweep([1, 2, 256], [256]))
def test_division_never_traps(tmp_path: Path, dtype: torch.dtype, count: int) -> None:
    """Zero, and the smallest integer by -1, in vectors and scalars, give what the lowering documents."""
    a, b = integers(dtype, count, 0), integers(dtype, count, 1)
    if count == 1:
        a[0], b[0] = torch.iinfo(dtype).min, 0
    out = torch.empty(2, count, dtype=dtype)
    many(tmp_path, ["a // b", "a % b"])[(1,)](a, b, out, N=count)
    pairs = [truncated(x, y, torch.iinfo(dtype)) for x, y in zip(a.tolist(), b.tolist())]
    for row, expected, name in zip(out.tolist(), zip(*pairs), ("quotient", "remainder")):
        wrong = [(x, y, g, w) for x, y, g, w in zip(a.tolist(), b.tolist(), row, expected) if g != w]
        assert not wrong, f"{name} of (a, b): got, expected: {wrong[:4]}"


@triton.jit
def scalar_division(o, a, b):
    tl.store(o, a // b)
    tl.store(o + 1, a % b)


@pytest.mark.parametrize(("a", "b"), [(7, 0), (-(2**31), -1), (-7, 2), (7, -2)])
def test_scalar_division_never_traps(a: int, b: int) -> None:
    out = torch.empty(2, dtype=torch.int32)
    scalar_division[(1,)](out, a, b)
    assert out.tolist() == list(truncated(a, b, torch.iinfo(torch.int32)))


@triton.jit
def masked_division(x, d, o, n, N: tl.constexpr):
    i = tl.arange(0, N)
    mask = i < n
    a = tl.load(x + i, mask=mask)
    b = tl.load(d + i, mask=mask)
    tl.store(o + i, a // b, mask=mask)


def test_division_in_lanes_that_are_switched_off() -> None:
    x, d, out = torch.arange(64), torch.ones(64, dtype=torch.int64), torch.zeros(64, dtype=torch.int64)
    for kind in (torch.int32, torch.int64):
        result = out.to(kind)
        masked_division[(1,)](x.to(kind), d.to(kind), result, 5, N=64)
        assert result.tolist() == [0, 1, 2, 3, 4] + [0] * 59


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16, torch.int64], ids=str)
def test_division_by_constants(tmp_path: Path, dtype: torch.dtype) -> None:
    divisors = [1, 2, 3, 7, 10, 16, 100]
    a = integers(dtype, 256, 0)
    out = torch.empty(2 * len(divisors), 256, dtype=dtype)
    expressions = [f"a {op} {d}" for d in divisors for op in ("//", "%")]
    many(tmp_path, expressions, inputs="a")[(1,)](a, out, N=256)
    info = torch.iinfo(dtype)
    for k, d in enumerate(divisors):
        pairs = [truncated(x, d, info) for x in a.tolist()]
        assert [list(r) for r in zip(*pairs)] == out[2 * k : 2 * k + 2].tolist(), d


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_shifts(tmp_path: Path, dtype: torch.dtype) -> None:
    """By every amount, the width and beyond included: everything is shifted out."""
    bits = torch.iinfo(dtype).bits
    amounts = (torch.arange(256) % (bits + 4)).to(dtype)
    a = integers(dtype, 256, 0)
    out = torch.empty(4, 256, dtype=dtype)
    many(tmp_path, ["a << b", "a >> b", "a << 3", "a >> 3"])[(1,)](a, amounts, out, N=256)
    for row, by in ((0, amounts.tolist()), (2, [3] * 256)):
        modulus = 1 << bits
        left = [(x << s) % modulus for x, s in zip(a.tolist(), by)]
        right = [x >> s for x, s in zip(a.tolist(), by)]
        got = [x % modulus for x in out[row].tolist()]
        assert got == left
        assert out[row + 1].tolist() == right


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint32, torch.int64, torch.uint64], ids=str)
def test_high_half_of_a_product(tmp_path: Path, dtype: torch.dtype) -> None:
    a, b = integers(dtype, 256, 0), integers(dtype, 256, 1)
    out = torch.empty(1, 256, dtype=dtype)
    many(tmp_path, ["tl.umulhi(a, b)"])[(1,)](a, b, out, N=256)
    bits = torch.iinfo(dtype).bits
    mask = (1 << bits) - 1
    want = [((x & mask) * (y & mask)) >> bits for x, y in zip(a.tolist(), b.tolist())]
    assert [x & mask for x in out[0].tolist()] == want


FLOAT_OPS = {
    "a + b": torch.add, "a - b": torch.sub, "a * b": torch.mul, "a / b": torch.div, "-a": lambda a, b: -a,
    "tl.abs(a)": lambda a, b: a.abs(), "tl.minimum(a, b)": torch.fmin, "tl.maximum(a, b)": torch.fmax,
    "tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)": torch.minimum,
    "tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)": torch.maximum,
    "tl.where(a < b, a, b)": lambda a, b: torch.where(a < b, a, b),
}  # fmt: skip


@pytest.mark.parametrize("dtype", sweep(FLOATS, [torch.bfloat16, torch.float32]), ids=str)
@pytest.mark.parametrize("count", sweep([1, 256], [256]))
def test_float_arithmetic(tmp_path: Path, dtype: torch.dtype, count: int) -> None:
    """Half types round once an operation, as torch does."""
    a, b = floats(dtype, count, 0), floats(dtype, count, 1)
    out = torch.empty(len(FLOAT_OPS), count, dtype=dtype)
    many(tmp_path, list(FLOAT_OPS))[(1,)](a, b, out, N=count)
    for row, (expression, reference) in zip(out, FLOAT_OPS.items()):
        assert_equal(flushed(row), flushed(reference(a, b)), expression)


def test_float_remainder(tmp_path: Path) -> None:
    a, b = floats(torch.float32, 256, 0), floats(torch.float32, 256, 1)
    out = torch.empty(1, 256)
    many(tmp_path, ["a % b"])[(1,)](a, b, out, N=256)
    with np.errstate(invalid="ignore"):
        assert_equal(out[0], torch.from_numpy(np.fmod(a.numpy(), b.numpy())), "a % b")


@pytest.mark.parametrize("dtype", sweep(FLOATS, [torch.bfloat16, torch.float32]), ids=str)
def test_comparisons_with_nan(tmp_path: Path, dtype: torch.dtype) -> None:
    a, b = floats(dtype, 256, 0), floats(dtype, 256, 1)
    out = torch.empty(len(COMPARISONS), 256, dtype=torch.bool)
    many(tmp_path, COMPARISONS)[(1,)](a, b, out, N=256)
    for row, expression in zip(out, COMPARISONS):
        assert_equal(row, eval(expression), expression)


MATH = {
    "tl.exp(a)": torch.exp, "tl.exp2(a)": torch.exp2, "tl.log(a)": torch.log, "tl.log2(a)": torch.log2,
    "tl.sin(a)": torch.sin, "tl.cos(a)": torch.cos, "tl.sqrt(a)": torch.sqrt, "tl.rsqrt(a)": torch.rsqrt,
    "tl.erf(a)": torch.erf, "tl.floor(a)": torch.floor, "tl.ceil(a)": torch.ceil, "tl.sigmoid(a)": torch.sigmoid,
    "libdevice.tanh(a)": torch.tanh, "libdevice.log1p(a)": torch.log1p, "libdevice.expm1(a)": torch.expm1,
    "libdevice.trunc(a)": torch.trunc, "libdevice.rint(a)": torch.round,
    "libdevice.atan(a)": torch.atan, "libdevice.tan(a)": torch.tan,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("count", sweep([1, 4, 256], [256]))
def test_math(tmp_path: Path, dtype: torch.dtype, count: int) -> None:
    a = floats(dtype, count, 1)
    if count == 256:
        a[-20:] = torch.linspace(-90, 90, 20, dtype=dtype)
    out = torch.empty(len(MATH), count, dtype=dtype)
    many(tmp_path, list(MATH), inputs="a")[(1,)](a, out, N=count)
    for row, (expression, reference) in zip(out, MATH.items()):
        want = reference(a.double()).to(dtype)
        assert_equal(row.isnan(), want.isnan(), f"NaN of {expression}")
        allowed = 4 if expression == "tl.sigmoid(a)" else 2
        finite = ~want.isnan() & (want.abs() > torch.finfo(dtype).tiny)
        worst = ulp_distance(row[finite], want[finite])
        assert worst <= allowed, f"{expression}: {worst} ulp"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_math_of_half_types(tmp_path: Path, dtype: torch.dtype) -> None:
    a = floats(dtype, 128, 1)
    names = ["tl.exp(a.to(tl.float32)).to(a.dtype)", "tl.sqrt(a.to(tl.float32)).to(a.dtype)"]
    out = torch.empty(2, 128, dtype=dtype)
    many(tmp_path, names, inputs="a")[(1,)](a, out, N=128)
    for row, reference in zip(out, (torch.exp, torch.sqrt)):
        assert ulp_distance(row, reference(a.double()).to(dtype)) <= 1


def test_fma_and_clamp(tmp_path: Path) -> None:
    a, b, c = (floats(torch.float32, 256, k) for k in (0, 1, 0))
    out = torch.empty(3, 256)
    names = [
        "tl.fma(a, b, c)",
        "tl.clamp(a, -1.0, 1.0)",
        "tl.clamp(a, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)",
    ]
    many(tmp_path, names, inputs="abc")[(1,)](a, b, c, out, N=256)
    product = a.double() * b.double() + c.double()
    assert ulp_distance(out[0], product.float()) <= 1
    want = a.clamp(-1, 1)
    assert_equal(out[2], want, "clamp that keeps NaN")
    assert_equal(out[1][~a.isnan()], want[~a.isnan()], "clamp")


@triton.jit
def bools(p, q, o, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b = tl.load(p + i), tl.load(q + i)
    tl.store(o + i, a & b)
    tl.store(o + N + i, a | b)
    tl.store(o + 2 * N + i, a ^ b)
    tl.store(o + 3 * N + i, a == 0)
    tl.store(o + 4 * N + i, tl.where(a, b, True))
    tl.store(o + 5 * N + i, (a.to(tl.int32) + b.to(tl.int32)) == 2)


@pytest.mark.parametrize("count", sweep(LANES, [1, 64]))
def test_bool_tensors(count: int) -> None:
    a, b = ramp(count, dtype=torch.bool), ramp(count, dtype=torch.bool, seed=1)
    out = torch.empty(6, count, dtype=torch.bool)
    bools[(1,)](a, b, out, N=count)
    for row, want in zip(out, [a & b, a | b, a ^ b, ~a, torch.where(a, b, True), a & b]):
        assert_equal(row, want)


@triton.jit
def wrapping(o, k, N: tl.constexpr):
    i = tl.arange(0, N)
    hashed = (i + tl.program_id(0)) * 1640531527
    tl.store(o + i, hashed * 1103515245 + 12345)
    tl.store(o + N + i, tl.where(hashed > 0, 1, 2))
    tl.store(o + 2 * N + i, (i * 65536 + 2147483000) < 0, mask=(i * k + 2147483640) > 0)


@pytest.mark.parametrize("count", [16, 64])
def test_arithmetic_that_wraps_is_not_taken_for_a_position(count: int) -> None:
    out = torch.full((3, count), 9, dtype=torch.int32)
    wrapping[(1,)](out, 1, N=count)
    i = np.arange(count, dtype=np.int32)
    with np.errstate(over="ignore"):
        hashed = i * np.int32(1640531527)
        assert out[0].tolist() == (hashed * np.int32(1103515245) + np.int32(12345)).tolist()
        assert out[1].tolist() == np.where(hashed > 0, 1, 2).tolist()
        values, mask = (i * np.int32(65536) + np.int32(2147483000)) < 0, (i + np.int32(2147483640)) > 0
        assert out[2].tolist() == np.where(mask, values, 9).tolist()


@triton.jit
def multiply_add(p, q, o, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b = tl.load(p + i), tl.load(q + i)
    tl.store(o + i, a * b - 1.00048828125)


def test_contraction_can_be_turned_off() -> None:
    a = b = torch.full((32,), 1 + 2.0**-12)  # a * b = 1 + 2^-11 + 2^-24, half a unit too long for f32
    fused, apart = torch.empty(32), torch.empty(32)
    multiply_add[(1,)](a, b, fused, N=32, enable_fp_fusion=True)
    multiply_add[(1,)](a, b, apart, N=32, enable_fp_fusion=False)
    assert (apart == 0).all()
    assert (fused == 2.0**-24).all()


LIBRARY = {
    "libdevice.isnan(a)": torch.isnan, "libdevice.isinf(a)": torch.isinf, "libdevice.finitef(a)": torch.isfinite,
    "libdevice.signbit(a)": torch.signbit, "libdevice.llrint(a)": torch.round, "libdevice.float2int_rd(a)": torch.floor,
    "libdevice.div_rn(a, b)": torch.div, "libdevice.fast_expf(a)": torch.exp, "libdevice.pow(tl.abs(a), b)": None,
    "libdevice.fdim(a, b)": lambda a, b: (a - b).clamp(min=0), "libdevice.atan2(a, b)": torch.atan2,
    "libdevice.popc(a.to(tl.int32))": None, "libdevice.clz(a.to(tl.int32))": None,
}  # fmt: skip


def test_library_functions(tmp_path: Path) -> None:
    """Names of CUDA's device library, as kernels written for a GPU (and Inductor's) use them."""
    a, b = ramp(64) * 9, ramp(64, seed=1)
    a[:4] = torch.tensor([0.0, -0.0, 5.0, -3.0])
    special = torch.tensor([math.nan, math.inf, -math.inf, -0.0])
    expressions = [f"({e}).to(tl.float32)" for e in LIBRARY]
    kernel = many(tmp_path, expressions)
    out, flags = torch.empty(len(LIBRARY), 64), torch.empty(len(LIBRARY), 4)
    kernel[(1,)](a, b, out, N=64)
    kernel[(1,)](special, torch.ones(4), flags, N=4)
    for row, (expression, reference) in zip(out, LIBRARY.items()):
        if reference is not None:
            arguments = (a, b) if "a, b" in expression else (a,)
            want = reference(*(t.double() for t in arguments)).float()
            torch.testing.assert_close(
                row, want, rtol=3e-7, atol=1e-9, msg=lambda t, e=expression: f"{e}: {t}"
            )
    whole = [int(v) for v in a]
    assert out[-2].tolist() == [float((v & 0xFFFFFFFF).bit_count()) for v in whole]
    assert out[-1].tolist() == [float(32 - (v & 0xFFFFFFFF).bit_length()) for v in whole]
    assert flags[:4].tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1], flags[3].tolist()]
    assert flags[3, 1:].tolist() == [0, 1, 1]
