"""Reductions, scans, sorts, gathers and histograms along any axis, with ties and NaN."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import triton.language as tl
from oracle import assert_equal, module_of, needs_backend, ramp, sweep, triton

pytestmark = needs_backend

SHAPES = [
    (1,),
    (2,),
    (16,),
    (64,),
    (1024,),
    (1, 8),
    (8, 1),
    (4, 4),
    (2, 64),
    (64, 2),
    (32, 32),
    (2, 4, 8),
    (4, 1, 64),
]
CASES = [(shape, axis) for shape in SHAPES for axis in range(len(shape))]
QUICK = [((64,), 0), ((8, 1), 0), ((2, 64), 1), ((64, 2), 0), ((2, 4, 8), 1)]

TILE = """
@triton.jit
def tile(p, shape: tl.constexpr):
    if len(shape) == 1:
        return tl.load(p + tl.arange(0, shape[0]))
    elif len(shape) == 2:
        i, j = tl.arange(0, shape[0])[:, None], tl.arange(0, shape[1])[None, :]
        return tl.load(p + i * shape[1] + j)
    else:
        i, j, k = tl.arange(0, shape[0]), tl.arange(0, shape[1]), tl.arange(0, shape[2])
        return tl.load(p + (i[:, None, None] * shape[1] + j[None, :, None]) * shape[2] + k[None, None, :])

@triton.jit
def put(o, x, shape: tl.constexpr):
    if len(shape) == 0:
        tl.store(o, x)
    elif len(shape) == 1:
        tl.store(o + tl.arange(0, shape[0]), x)
    elif len(shape) == 2:
        i, j = tl.arange(0, shape[0])[:, None], tl.arange(0, shape[1])[None, :]
        tl.store(o + i * shape[1] + j, x)
    else:
        i, j, k = tl.arange(0, shape[0]), tl.arange(0, shape[1]), tl.arange(0, shape[2])
        tl.store(o + (i[:, None, None] * shape[1] + j[None, :, None]) * shape[2] + k[None, None, :], x)
"""


def reduced(folder: Path, expressions: list[str], helpers: str = ""):
    """A kernel that stores each reduction of the tile x along AXIS to its own output."""
    outs = ", ".join(f"o{k}" for k in range(len(expressions)))
    lines = "".join(f"    put(o{k}, {e}, OUT)\n" for k, e in enumerate(expressions))
    kernel = (
        f"{helpers}\n@triton.jit\ndef kernel(p, {outs}, SHAPE: tl.constexpr, OUT: tl.constexpr, AXIS: tl.constexpr):\n"
        f"    x = tile(p, SHAPE)\n{lines}"
    )
    return module_of(folder, TILE + kernel).kernel


def without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


@pytest.mark.parametrize(("shape", "axis"), sweep(CASES, QUICK, unpack=True))
def test_sums_and_extremes(tmp_path: Path, shape: tuple[int, ...], axis: int) -> None:
    x, rest = ramp(*shape), without(shape, axis)
    names = ["tl.sum(x, AXIS)", "tl.max(x, AXIS)", "tl.min(x, AXIS)", "tl.sum(x * 2 + 1, AXIS)"]
    outs = [torch.empty(rest) for _ in names]
    reduced(tmp_path, names)[(1,)](x, *outs, SHAPE=shape, OUT=rest, AXIS=axis)
    torch.testing.assert_close(outs[0], x.double().sum(axis).float(), rtol=1e-5, atol=1e-5)
    assert_equal(outs[1], x.amax(axis))
    assert_equal(outs[2], x.amin(axis))
    torch.testing.assert_close(outs[3], (x.double() * 2 + 1).sum(axis).float(), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("shape", "axis"), sweep(CASES, QUICK, unpack=True))
def test_arguments_of_extremes_with_ties(tmp_path: Path, shape: tuple[int, ...], axis: int) -> None:
    """The first of equal values wins."""
    x, rest = (ramp(*shape) * 2).round(), without(shape, axis)
    outs = [torch.empty(rest, dtype=torch.int32) for _ in range(2)] + [torch.empty(rest)]
    names = ["tl.argmax(x, AXIS)", "tl.argmin(x, AXIS)", "tl.max(x, AXIS, return_indices=True)[0]"]
    reduced(tmp_path, names)[(1,)](x, *outs, SHAPE=shape, OUT=rest, AXIS=axis)
    for got, function in zip(outs, (np.argmax, np.argmin)):
        assert_equal(got, torch.from_numpy(np.asarray(function(x.numpy(), axis))).int())
    assert_equal(outs[2], x.amax(axis))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.int64, torch.uint8, torch.float16, torch.bfloat16,
                                   torch.float64], ids=str)  # fmt: skip
@pytest.mark.parametrize("axis", [0, 1])
def test_types(tmp_path: Path, dtype: torch.dtype, axis: int) -> None:
    x = ramp(16, 32, dtype=dtype)
    rest = without((16, 32), axis)
    kind = torch.int32 if dtype in (torch.int8, torch.uint8) else dtype  # tl.sum widens small integers
    outs = [torch.empty(rest, dtype=kind), torch.empty(rest, dtype=dtype), torch.empty(rest, dtype=dtype)]
    names = ["tl.sum(x, AXIS)", "tl.max(x, AXIS)", "tl.min(x, AXIS)"]
    reduced(tmp_path, names)[(1,)](x, *outs, SHAPE=(16, 32), OUT=rest, AXIS=axis)
    if dtype.is_floating_point:
        loose = {torch.float16: 2e-2, torch.bfloat16: 2e-1, torch.float64: 1e-12}[dtype]
        torch.testing.assert_close(outs[0].double(), x.double().sum(axis), rtol=loose, atol=loose)
    else:
        assert_equal(outs[0], x.sum(axis).to(kind))
    assert_equal(outs[1], x.amax(axis))
    assert_equal(outs[2], x.amin(axis))


@pytest.mark.parametrize("shape", [(16,), (64,)])
def test_nan_is_skipped_unless_it_shall_propagate(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = ramp(*shape)
    x[3], x[-1] = math.nan, math.nan
    names = ["tl.max(x, AXIS)", "tl.min(x, AXIS)", "tl.reduce(x, AXIS, larger)", "tl.sum(x, AXIS)"]
    outs = [torch.empty(()) for _ in names]
    helper = """
@triton.jit
def larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
"""
    reduced(tmp_path, names, helper)[(1,)](x, *outs, SHAPE=shape, OUT=(), AXIS=0)
    kept = x[~x.isnan()]
    assert [o.item() for o in outs[:2]] == [kept.max().item(), kept.min().item()]
    assert outs[2].isnan() and outs[3].isnan()


WELFORD = """
@triton.jit
def combine(mean_a, m2_a, n_a, mean_b, m2_b, n_b):
    n = n_a + n_b
    delta = mean_b - mean_a
    share = tl.where(n == 0.0, 0.0, n_b / n)
    return mean_a + delta * share, m2_a + m2_b + delta * delta * n_a * share, n

@triton.jit
def kernel(p, o, SHAPE: tl.constexpr, OUT: tl.constexpr, AXIS: tl.constexpr, SIZE: tl.constexpr):
    x = tile(p, SHAPE)
    mean, m2, n = tl.reduce((x, tl.zeros_like(x), tl.zeros_like(x) + 1.0), AXIS, combine)
    put(o, mean, OUT)
    put(o + SIZE, m2, OUT)
    put(o + 2 * SIZE, n, OUT)
"""


@pytest.mark.parametrize(("shape", "axis"), [((64,), 0), ((16, 32), 0), ((16, 32), 1), ((4, 4, 16), 1)])
def test_welford(tmp_path: Path, shape: tuple[int, ...], axis: int) -> None:
    x, rest = ramp(*shape), without(shape, axis)
    out = torch.empty(3, *rest)
    size = math.prod(rest)
    module_of(tmp_path, TILE + WELFORD).kernel[(1,)](x, out, SHAPE=shape, OUT=rest, AXIS=axis, SIZE=size)
    torch.testing.assert_close(out[0], x.mean(axis))
    torch.testing.assert_close(out[1], x.var(axis, unbiased=False) * shape[axis], rtol=1e-4, atol=1e-4)
    assert (out[2] == shape[axis]).all()


@triton.jit
def whole(p, o, M: tl.constexpr, N: tl.constexpr):
    i, j = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    x = tl.load(p + i * N + j)
    centred = x - tl.sum(x, 1, keep_dims=True) / N
    tl.store(o + i * N + j, centred / tl.max(tl.abs(centred), axis=0, keep_dims=True))
    tl.store(o + M * N, tl.sum(x))
    tl.store(o + M * N + 1, tl.max(x))
    tl.store(o + M * N + 2, tl.sum(tl.sum(x, 0)))


def test_kept_dimensions_and_whole_tiles() -> None:
    x, out = ramp(8, 32), torch.empty(8 * 32 + 3)
    whole[(1,)](x, out, M=8, N=32)
    centred = x - x.mean(1, keepdim=True)
    torch.testing.assert_close(out[:256].view(8, 32), centred / centred.abs().amax(0, keepdim=True))
    torch.testing.assert_close(out[256:], torch.stack([x.sum(), x.max(), x.sum()]))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64], ids=str)
def test_bitwise_and_logical_reductions(tmp_path: Path, dtype: torch.dtype) -> None:
    x = ramp(4, 16, dtype=dtype)
    names = ["tl.xor_sum(x, AXIS)", "tl.reduce(x, AXIS, either)", "tl.reduce_or(x > 45, AXIS).to(x.dtype)",
             "tl.reduce((x != 3).to(tl.int1), AXIS, both).to(x.dtype)"]  # fmt: skip
    helper = """
@triton.jit
def either(a, b):
    return a | b

@triton.jit
def both(a, b):
    return a & b
"""
    outs = [torch.empty(4, dtype=dtype) for _ in names]
    reduced(tmp_path, names, helper)[(1,)](x, *outs, SHAPE=(4, 16), OUT=(4,), AXIS=1)
    n = x.numpy()
    assert_equal(outs[0], torch.from_numpy(np.bitwise_xor.reduce(n, 1)))
    assert_equal(outs[1], torch.from_numpy(np.bitwise_or.reduce(n, 1)))
    assert_equal(outs[2], (x > 45).any(1).to(dtype))
    assert_equal(outs[3], (x != 3).all(1).to(dtype))


@pytest.mark.parametrize(("shape", "axis"), sweep(CASES, QUICK, unpack=True))
@pytest.mark.parametrize("reverse", [False, True])
def test_scans(tmp_path: Path, shape: tuple[int, ...], axis: int, reverse: bool) -> None:
    x = ramp(*shape)
    names = [f"tl.cumsum(x, AXIS, reverse={reverse})", f"tl.associative_scan(x, AXIS, larger, reverse={reverse})",
             f"tl.cumprod(x, AXIS, reverse={reverse})"]  # fmt: skip
    helper = "@triton.jit\ndef larger(a, b):\n    return tl.maximum(a, b)\n"
    outs = [torch.empty(shape) for _ in names]
    reduced(tmp_path, names, helper)[(1,)](x, *outs, SHAPE=shape, OUT=shape, AXIS=axis)
    source = x.flip(axis) if reverse else x
    for got, want in zip(outs, (source.cumsum(axis), source.cummax(axis).values, source.cumprod(axis))):
        torch.testing.assert_close(got, want.flip(axis) if reverse else want, rtol=1e-4, atol=1e-4)


def test_scan_of_a_linear_recurrence(tmp_path: Path) -> None:
    """A combination that does not commute, of two values: h[t] = a[t] h[t - 1] + b[t]."""
    text = """
        @triton.jit
        def step(a, h, b, g):
            return a * b, b * h + g

        @triton.jit
        def kernel(a, b, o, M: tl.constexpr, N: tl.constexpr, AXIS: tl.constexpr):
            i = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
            _, h = tl.associative_scan((tl.load(a + i), tl.load(b + i)), AXIS, step)
            tl.store(o + i, h)
    """
    a, b = torch.rand(8, 32), ramp(8, 32)
    kernel = module_of(tmp_path, text).kernel
    for axis in (0, 1):
        out, h = torch.empty(8, 32), torch.zeros_like(a.select(axis, 0))
        kernel[(1,)](a, b, out, M=8, N=32, AXIS=axis)
        for t in range(a.shape[axis]):
            h = a.select(axis, t) * h + b.select(axis, t)
            torch.testing.assert_close(out.select(axis, t), h, rtol=1e-5, atol=1e-5)


@triton.jit
def sorts(p, o, M: tl.constexpr, N: tl.constexpr, DOWN: tl.constexpr):
    i = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(o + i, tl.sort(tl.load(p + i), descending=DOWN))


@pytest.mark.parametrize(
    "dtype", sweep([torch.float32, torch.int32, torch.int8, torch.float16], [torch.float32]), ids=str
)
@pytest.mark.parametrize("shape", sweep([(1, 2), (1, 64), (8, 16)], [(8, 16)]))
@pytest.mark.parametrize("down", [False, True])
def test_sort(dtype: torch.dtype, shape: tuple[int, int], down: bool) -> None:
    x = ramp(*shape, dtype=dtype)
    out = torch.empty_like(x)
    sorts[(1,)](x, out, *shape, DOWN=down)
    assert_equal(out, x.sort(1, descending=down).values)


@triton.jit
def top(p, o, N: tl.constexpr, K: tl.constexpr):
    tl.store(o + tl.arange(0, K), tl.topk(tl.load(p + tl.arange(0, N)), K))


def test_topk() -> None:
    x, out = ramp(64), torch.empty(8)
    top[(1,)](x, out, N=64, K=8)
    assert_equal(out, x.topk(8).values)


@triton.jit
def rearranged(p, o, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(p + i)
    y = tl.reshape(x, (N // 4, 4))
    tl.store(o + i, tl.reshape(tl.trans(y), (N,)))
    a, b = tl.split(tl.reshape(x, (N // 2, 2)))
    tl.store(o + N + i, tl.reshape(tl.join(b, a), (N,)))
    tl.store(o + 2 * N + i, tl.cat(b, a, can_reorder=True))
    tl.store(o + 3 * N + i, tl.interleave(a, b))
    tl.store(o + 4 * N + i, tl.flip(x, 0))
    z = tl.permute(tl.reshape(x, (2, N // 4, 2)), (2, 0, 1))
    tl.store(o + 5 * N + i, tl.ravel(z))


@pytest.mark.parametrize("count", [8, 64, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.bool], ids=str)
def test_rearrangements(count: int, dtype: torch.dtype) -> None:
    x = ramp(count, dtype=dtype)
    out = torch.empty(6, count, dtype=dtype)
    rearranged[(1,)](x, out, N=count)
    assert_equal(out[0], x.view(-1, 4).T.reshape(-1))
    assert_equal(out[1], x.view(-1, 2).flip(1).reshape(-1))
    assert_equal(out[2].sort().values, x.sort().values)
    assert_equal(out[3], x)
    assert_equal(out[4], x.flip(0))
    assert_equal(out[5], x.view(2, -1, 2).permute(2, 0, 1).reshape(-1))


@triton.jit
def gathered(p, index, o, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, AXIS: tl.constexpr):
    x = tl.load(p + tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :])
    if AXIS == 0:
        i = tl.arange(0, K)[:, None] * N + tl.arange(0, N)[None, :]
    else:
        i = tl.arange(0, M)[:, None] * K + tl.arange(0, K)[None, :]
    tl.store(o + i, tl.gather(x * 2, tl.load(index + i), AXIS))


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(4, 8), (32, 64), (1, 16)])
@pytest.mark.parametrize(
    "dtype", sweep([torch.float32, torch.float16, torch.int64], [torch.float32]), ids=str
)
def test_gather_within_a_tile(axis: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, count = ramp(*shape, dtype=dtype), 16
    sizes = (count, shape[1]) if axis == 0 else (shape[0], count)
    index = torch.randint(0, shape[axis], sizes, generator=torch.Generator().manual_seed(1))
    out = torch.empty(sizes, dtype=dtype)
    gathered[(1,)](x, index.int(), out, *shape, K=count, AXIS=axis)
    assert_equal(out, (x * 2).gather(axis, index))


@triton.jit
def counted(p, o, n, N: tl.constexpr, BINS: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(p + i)
    tl.store(o + tl.arange(0, BINS), tl.histogram(x, BINS))
    tl.store(o + BINS + tl.arange(0, BINS), tl.histogram(x, BINS, mask=i < n))


@pytest.mark.parametrize(("count", "bins"), [(8, 2), (256, 16), (1024, 256)])
def test_histogram(count: int, bins: int) -> None:
    x = torch.randint(0, bins, (count,), dtype=torch.int32)
    out = torch.empty(2, bins, dtype=torch.int32)
    counted[(1,)](x, out, count // 2 + 1, N=count, BINS=bins)
    assert_equal(out[0], torch.bincount(x, minlength=bins).int())
    assert_equal(out[1], torch.bincount(x[: count // 2 + 1], minlength=bins).int())
