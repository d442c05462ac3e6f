"""Every vector function keeps the error bound that its table states, special values included."""

from __future__ import annotations

import math

import numpy as np
import pytest
from evaluate_math import compiled, error_ulp

from torchroller.triton_cpu.cpu import host_cpu, select_cpu
from torchroller.triton_cpu.vector_math import FUNCTIONS, function

pytestmark = pytest.mark.filterwarnings(
    "ignore:invalid value encountered in cast:RuntimeWarning"
)  # NaN payloads

mpmath = pytest.importorskip("mpmath")

INLINE_F64 = [name for name, f in FUNCTIONS.items() if f.f64_ulp is not None]
INLINE_F32 = [name for name, f in FUNCTIONS.items() if f.f32_ulp is not None and f.arity == 1]

_NUMPY = {"asin": np.arcsin, "acos": np.arccos, "atan": np.arctan}


def _erf(x: np.ndarray) -> np.ndarray:
    return np.array([math.erf(v) for v in x.tolist()])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    z = np.exp(-np.abs(x))
    return np.where(x < 0, z, 1.0) / (1.0 + z)


def reference_f64(name: str, x: np.ndarray) -> np.ndarray:
    """In float64, whose own error is far below a float32's last place."""
    with np.errstate(all="ignore"):
        if name == "erf":
            return _erf(x)
        if name == "sigmoid":
            return _sigmoid(x)
        if name == "rsqrt":
            return 1.0 / np.sqrt(x)
        return (_NUMPY.get(name) or getattr(np, name))(x)


def every_exponent() -> np.ndarray:
    """float32 values over all exponents and both signs, subnormals and NaNs among them."""
    return np.arange(0, 1 << 32, 24989, dtype=np.uint64).astype(np.uint32).view(np.float32)


def dense() -> np.ndarray:
    """Where the functions bend: around zero, one, and the limits of exp and tanh."""
    ranges = [(-1, 1), (-4, 4), (-12, 12), (-110, 95), (-3000, 3000), (0.5, 1.6), (86, 90), (-105, -85)]
    return np.concatenate([np.linspace(a, b, 20001, dtype=np.float32) for a, b in ranges])


def specials(dtype: type) -> np.ndarray:
    info = np.finfo(dtype)
    positive = [
        0.0,
        info.smallest_subnormal,
        info.tiny,
        1e-20,
        0.5,
        1.0,
        2.0,
        88.8,
        1e5,
        1e20,
        info.max,
        np.inf,
    ]
    return np.array([*positive, *[-v for v in positive], np.nan], dtype)


def quadrant_edges() -> np.ndarray:
    """The float32 values next to multiples of π/4, where sin, cos and tan lose most."""
    exact = np.arange(1, 30000) * (np.pi / 4)
    near = exact.astype(np.float32)
    return np.concatenate([near, np.nextafter(near, np.float32(np.inf)), -near])


@pytest.mark.parametrize("name", INLINE_F32)
def test_float32_error_bound(name: str) -> None:
    x = np.concatenate([every_exponent(), dense(), specials(np.float32), quadrant_edges()])
    got = compiled(name, "f32", host_cpu().vector_bits // 32, host_cpu())(x)
    error = error_ulp(got, reference_f64(name, x.astype(np.float64)))
    worst = int(np.argmax(error))
    assert error[worst] <= FUNCTIONS[name].f32_ulp, (
        f"{name}({x[worst]!r}) = {got[worst]!r}: {error[worst]} ulp"
    )


@pytest.mark.parametrize("name", ["exp", "log", "sin", "tanh", "erf", "pow"])
@pytest.mark.parametrize("lanes", [1, 4, 8, 32])
def test_lane_count_does_not_change_a_result(name: str, lanes: int) -> None:
    x = dense()[::7]
    arguments = [x] * FUNCTIONS[name].arity
    wide = compiled(name, "f32", 16, host_cpu())(*arguments)
    np.testing.assert_array_equal(compiled(name, "f32", lanes, host_cpu())(*arguments), wide)


@pytest.mark.parametrize("name", ["exp", "log", "sin", "tanh", "erf"])
def test_avx2_keeps_the_bound(name: str) -> None:
    if not host_cpu().has("avx2", "fma"):
        pytest.skip("this machine has no AVX2")
    x = np.concatenate([dense(), specials(np.float32)])
    got = compiled(name, "f32", 8, select_cpu("haswell"))(x)
    assert error_ulp(got, reference_f64(name, x.astype(np.float64))).max() <= FUNCTIONS[name].f32_ulp


def _exact(name: str, value: float) -> float:
    """mpmath at 40 digits, rounded to float64 by the caller's comparison."""
    x = mpmath.mpf(value)
    if name == "sigmoid":
        return 1 / (1 + mpmath.exp(-x))
    if name == "rsqrt":
        return 1 / mpmath.sqrt(x)
    if name == "log1p":
        return mpmath.log1p(x)
    return getattr(mpmath, {"log": "ln"}.get(name, name))(x)


@pytest.mark.parametrize("name", INLINE_F64)
def test_float64_error_bound(name: str) -> None:
    rng = np.random.default_rng(7)
    x = np.concatenate(
        [
            rng.uniform(-1, 1, 800),
            rng.uniform(-40, 40, 800),
            rng.uniform(-700, 700, 400),
            2.0 ** rng.uniform(-60, 60, 400),
        ]
    )
    if name in ("log", "sqrt", "rsqrt"):
        x = np.abs(x)
    got = compiled(name, "f64", host_cpu().vector_bits // 64, host_cpu())(x)
    with mpmath.workdps(40):
        for value, result in zip(x.tolist(), got.tolist()):
            want = _exact(name, value)
            if float(want) == math.inf:
                assert result == math.inf, f"{name}({value!r}) = {result!r}, which overflows"
                continue
            unit = math.ulp(float(want))
            error = float(abs(mpmath.mpf(result) - want) / unit)
            assert error <= FUNCTIONS[name].f64_ulp, f"{name}({value!r}) = {result!r}: {error} ulp"


@pytest.mark.parametrize("name", INLINE_F64)
def test_float64_special_values(name: str) -> None:
    x = specials(np.float64)
    got = compiled(name, "f64", 8, host_cpu())(x)
    want = reference_f64(name, x)
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite])
    np.testing.assert_allclose(got[finite], want[finite], rtol=1e-15, atol=5e-324)
    np.testing.assert_array_equal(np.signbit(got[want == 0]), np.signbit(want[want == 0]))


def test_pow_error_bound() -> None:
    rng = np.random.default_rng(3)
    x = (2.0 ** rng.uniform(-30, 30, 200_000)).astype(np.float32)
    y = (rng.uniform(-126, 126, 200_000) / np.log2(x.astype(np.float64)).clip(0.05)).astype(np.float32)
    y[::2] = rng.uniform(-5, 5, 100_000)
    with np.errstate(all="ignore"):
        want = np.power(x.astype(np.float64), y.astype(np.float64))
    error = error_ulp(compiled("pow", "f32", 16, host_cpu())(x, y), want)
    assert error.max() <= FUNCTIONS["pow"].f32_ulp


def test_pow_special_values() -> None:
    values = [
        0.0,
        -0.0,
        0.5,
        -0.5,
        1.0,
        -1.0,
        2.0,
        -2.0,
        3.0,
        -3.0,
        2.5,
        1e10,
        16777216.0,
        np.inf,
        -np.inf,
        np.nan,
    ]
    x, y = (a.ravel().astype(np.float32) for a in np.meshgrid(values, values))
    with np.errstate(all="ignore"):
        want = np.power(x.astype(np.float64), y.astype(np.float64)).astype(np.float32)
    got = compiled("pow", "f32", 16, host_cpu())(x, y)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    zero = want == 0
    np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(want[zero]))


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - set(INLINE_F32) - {"pow"}))
def test_library_functions_answer_lane_by_lane(name: str) -> None:
    import ctypes
    import ctypes.util

    arity = FUNCTIONS[name].arity
    scalar = getattr(ctypes.CDLL(ctypes.util.find_library("m")), name)
    scalar.restype, scalar.argtypes = ctypes.c_double, [ctypes.c_double] * arity
    rng = np.random.default_rng(1)
    arrays = [rng.uniform(-3, 3, 501) for _ in range(arity)]
    want = np.array([scalar(*row) for row in zip(*arrays)])
    np.testing.assert_array_equal(compiled(name, "f64", 8, host_cpu())(*arrays), want)


@pytest.mark.parametrize("element", ["f16", "bf16"])
def test_half_types_round_the_float32_result(element: str) -> None:
    torch = pytest.importorskip("torch")
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[element]
    x = torch.linspace(-9, 9, 4001).to(dtype)
    raw = x.view(torch.int16).numpy().view(np.float16 if element == "f16" else np.uint16)
    got = torch.from_numpy(compiled("tanh", element, 16, host_cpu())(raw).view(np.int16)).view(dtype)
    want = torch.from_numpy(compiled("tanh", "f32", 16, host_cpu())(x.float().numpy())).to(dtype)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_unknown_names_say_what_there_is() -> None:
    with pytest.raises(KeyError, match="no vector function 'expp'.*exp2"):
        function("expp", "f32", 16)
    with pytest.raises(KeyError, match="element types are f16, bf16, f32, f64"):
        function("exp", "i32", 16)
