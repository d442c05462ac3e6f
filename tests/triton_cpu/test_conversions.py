"""Conversions: between any two types, rounding, out of range, bit for bit, eight-bit floats."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import triton.language as tl
from oracle import FLOATS, assert_equal, floats, flushed, many, module_of, needs_backend, ramp, sweep, triton

from torchroller.triton_cpu.cpu import missing_on_host, select_cpu

pytestmark = needs_backend

CAST_TYPES = [torch.bool, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, *FLOATS]
NAMES = {
    torch.bool: "tl.int1", torch.uint8: "tl.uint8", torch.int8: "tl.int8", torch.int16: "tl.int16",
    torch.int32: "tl.int32", torch.int64: "tl.int64", torch.float16: "tl.float16", torch.bfloat16: "tl.bfloat16",
    torch.float32: "tl.float32", torch.float64: "tl.float64", torch.uint32: "tl.uint32",
}  # fmt: skip


@pytest.mark.parametrize(
    "source", sweep(CAST_TYPES, [torch.bool, torch.int32, torch.bfloat16, torch.float64]), ids=str
)
def test_casts(tmp_path: Path, source: torch.dtype) -> None:
    """Between any two types, for values that both hold or round to."""
    if source.is_floating_point:
        a = (ramp(64, dtype=torch.float32) * 30).to(source)
    elif source is torch.bool:
        a = ramp(64, dtype=source)
    else:
        a = torch.arange(64).to(source) if source is torch.uint8 else ramp(64, dtype=source)
    lines = [f"    tl.store(o{k} + i, a.to({NAMES[t]}))" for k, t in enumerate(CAST_TYPES)]
    outs = ", ".join(f"o{k}" for k in range(len(CAST_TYPES)))
    text = f"@triton.jit\ndef kernel(p, {outs}, N: tl.constexpr):\n    i = tl.arange(0, N)\n    a = tl.load(p + i)\n"
    results = [torch.empty(64, dtype=t) for t in CAST_TYPES]
    module_of(tmp_path, text + "\n".join(lines)).kernel[(1,)](a, *results, N=64)
    for result in results:
        want = a.to(result.dtype)
        if source.is_floating_point and result.dtype is torch.uint8:
            want = a.to(torch.int32).to(torch.uint8)
        assert_equal(result, want, f"{source} to {result.dtype}")


def test_float_to_integer_out_of_range(tmp_path: Path) -> None:
    """Saturates, and NaN gives 0, as on a GPU."""
    a = torch.tensor([math.nan, math.inf, -math.inf, 3e9, -3e9, 1e20, -1e20, 2147483520.0])
    ints, longs = torch.empty(8, dtype=torch.int32), torch.empty(8, dtype=torch.int64)
    text = """
        @triton.jit
        def kernel(p, o, q, N: tl.constexpr):
            i = tl.arange(0, N)
            a = tl.load(p + i)
            tl.store(o + i, a.to(tl.int32))
            tl.store(q + i, a.to(tl.int64))
    """
    module_of(tmp_path, text).kernel[(1,)](a, ints, longs, N=8)
    top, big = 2**31, 2**63
    assert ints.tolist() == [0, top - 1, -top, top - 1, -top, top - 1, -top, 2147483520]
    assert longs.tolist() == [0, big - 1, -big, 3000000000, -3000000000, big - 1, -big, 2147483520]


def rounded(t: torch.Tensor, target: torch.dtype) -> torch.Tensor:
    """In one rounding; torch rounds f64 to f32 first."""
    if t.dtype is not torch.float64:
        return t.to(target)
    if target is torch.float16:
        with np.errstate(over="ignore"):
            return torch.from_numpy(t.numpy().astype(np.float16))
    single = t.float()
    bits = single.view(torch.int32) - (single.double().abs() > t.abs()).int()
    bits |= ((single.double() != t) & ~t.isnan()).int()
    return bits.view(torch.float32).to(target)  # from a number rounded to odd


@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16], ids=str)
def test_rounding_to_half_types(tmp_path: Path, target: torch.dtype) -> None:
    """To nearest, ties to even, and toward zero, from f32 and f64."""
    bits = torch.from_numpy(np.random.default_rng(0).integers(0, 2**32, 4096, dtype=np.uint32)).view(
        torch.float32
    )
    ties = (torch.randn(4096).to(target).float() * (1 + 2.0**-9)).float()
    single = torch.cat([bits, ties, torch.tensor([math.nan, math.inf, 65520.0, 65519.99, 6e-8, 3e-8] * 4)])
    single = torch.cat([single, torch.zeros(16384 - len(single))])
    name = NAMES[target]
    kernel = many(tmp_path, [f"a.to({name})", f'a.to({name}, fp_downcast_rounding="rtz")'], inputs="a")
    for a in (single, single.double() * (1 + 2.0**-40)):
        out = torch.empty(2, len(a), dtype=target)
        kernel[(1,)](a, out, N=len(a))
        near, exact = rounded(a, target), a.double()
        assert_equal(flushed(out[0]), flushed(near), f"{a.dtype} to nearest {target}")
        too_far = near.double().abs() > exact.abs()
        stepped = (near.view(torch.int16) - too_far.to(torch.int16)).view(target)
        want = torch.where(exact.isnan(), near, stepped)
        assert_equal(flushed(out[1]), flushed(want), f"{a.dtype} toward zero {target}")


@pytest.mark.parametrize("cpu", ["haswell", "x86-64-v4", "znver4"])
def test_half_types_on_other_cpus(tmp_path: Path, cpu: str) -> None:
    """Conversions that a CPU has no instruction for call nothing that the process lacks."""
    lacking = missing_on_host(select_cpu(cpu))
    if lacking:
        pytest.skip(f"this machine has no {', '.join(lacking)}")
    text = """
        @triton.jit
        def kernel(p, half, brain, n, N: tl.constexpr):
            i = tl.arange(0, N)
            x = tl.load(p + i, mask=i < n, other=0)
            y = tl.load(p)
            tl.store(half + i, x.to(tl.float16), mask=i < n)
            tl.store(brain + i, x.to(tl.bfloat16), mask=i < n)
            tl.store(half + N, (tl.load(half) * 2).to(tl.float16))
            tl.store(brain + N, y.to(tl.bfloat16))
    """
    kernel = module_of(tmp_path, text).kernel
    for dtype in (torch.float32, torch.float64):
        x = ramp(32, dtype=dtype)
        half, brain = torch.empty(33, dtype=torch.float16), torch.empty(33, dtype=torch.bfloat16)
        kernel[(1,)](x, half, brain, 32, N=32, arch=cpu)
        assert_equal(half[:32], x.to(torch.float16))
        assert_equal(brain[:32], x.to(torch.bfloat16))
        assert half[32] == 2 * half[0] and brain[32] == brain[0]


@triton.jit
def bits(p, o, q, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(p + i)
    raw = x.to(tl.int32, bitcast=True)
    tl.store(o + i, raw ^ 1)
    tl.store(q + i, (raw & 0x7FFFFFFF).to(tl.float32, bitcast=True))


def test_bitcasts() -> None:
    x = floats(torch.float32, 128, 0)
    raw, absolute = torch.empty(128, dtype=torch.int32), torch.empty(128)
    bits[(1,)](x, raw, absolute, N=128)
    assert_equal(raw, x.view(torch.int32) ^ 1)
    assert_equal(absolute, x.abs())


EIGHTS = [
    ("tl.float8e4nv", torch.float8_e4m3fn), ("tl.float8e5", torch.float8_e5m2),
    ("tl.float8e4b8", torch.float8_e4m3fnuz), ("tl.float8e5b16", torch.float8_e5m2fnuz),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), EIGHTS)
def test_eight_bit_floats(tmp_path: Path, name: str, kind: torch.dtype) -> None:
    """Every code widens as in torch; narrowing rounds to nearest even and saturates."""
    text = f"""
        @triton.jit
        def kernel(codes, wide, p, o, N: tl.constexpr, M: tl.constexpr):
            i = tl.arange(0, N)
            tl.store(wide + i, tl.load(codes + i).to({name}, bitcast=True).to(tl.float32))
            j = tl.arange(0, M)
            small = tl.load(p + j).to({name})
            tl.store(o + j, small.to(tl.uint8, bitcast=True))
    """
    codes = torch.arange(256).to(torch.uint8)
    wide, largest = torch.empty(256), torch.finfo(kind).max
    exact = codes.view(kind).float()
    finite = exact[exact.isfinite()]
    middles = (finite[:-1] + finite[1:]) / 2  # ties
    p = torch.cat(
        [finite, middles, middles * 1.0001, ramp(1024) * 3, torch.tensor([math.nan, 1e9, -1e9, 1e-12])]
    )
    p = torch.cat([p, torch.zeros(2048 - len(p))])
    out = torch.empty(2048, dtype=torch.uint8)
    module_of(tmp_path, text).kernel[(1,)](codes, wide, p, out, N=256, M=2048)
    assert_equal(wide, exact)
    assert_equal(out.view(kind).float(), p.clamp(-largest, largest).to(kind).float())
