"""tl.dot whose rows of A lie here and there: what is read, what is not, and chains of products on one accumulator."""

from __future__ import annotations

import pytest
import torch
import triton.language as tl
from oracle import needs_backend, ramp, sweep, triton
from test_dot import compiled_assembly

from torchroller.triton_cpu.blocking import heights
from torchroller.triton_cpu.cpu import missing_on_host, select_cpu

pytestmark = needs_backend

CPUS = [n for n in ("haswell", "x86-64-v4", "znver4") if not missing_on_host(select_cpu(n))]


@triton.jit
def window(x, w, o, width, rows, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, C: tl.constexpr,
           TAPS: tl.constexpr, STEPS: tl.constexpr, ACC: tl.constexpr, BARE: tl.constexpr):  # fmt: skip
    """TAPS neighbours of each of M places on lines of `width`, C of K channels; STEPS lines of taps in a loop."""
    m = (tl.program_id(0) * M + tl.arange(0, M))[:, None]
    n, k = tl.arange(0, N)[None, :], tl.arange(0, K)
    acc = tl.zeros((M, N), ACC)
    for step in range(STEPS):
        for tap in tl.static_range(TAPS):
            at = m % width + (tap - TAPS // 2)
            line = m // width + step
            inside = (m < rows) & (at >= 0) & (at < width)
            if C == K:
                a = tl.load(x + (line * width + at) * C + k[None, :], mask=inside, other=0)
                b = tl.load(w + ((step * TAPS + tap) * C + k[:, None]) * N + n)
            else:
                a = tl.load(x + (line * width + at) * C + k[None, :], mask=inside & (k[None, :] < C), other=0)
                if BARE:
                    b = tl.load(w + ((step * TAPS + tap) * C + k[:, None]) * N + n)
                else:
                    b = tl.load(
                        w + ((step * TAPS + tap) * C + k[:, None]) * N + n, mask=k[:, None] < C, other=0
                    )
            acc = tl.dot(a, b, acc, input_precision="ieee", out_dtype=ACC)
    tl.store(o + m * N + n, acc, mask=m < rows)


def check(
    dtype: torch.dtype = torch.float32, *, rows: int = 33, width: int = 11, m: int = 16, n: int = 32, k: int = 16,
    c: int | None = None, taps: int = 3, steps: int = 1, bare: bool = False, **options: object,
) -> torch.Tensor:  # fmt: skip
    """Every place of an image of lines that are followed by NaN, as what lies outside of it may be; the result."""
    c = c or k
    lines = -(-rows // width) + steps
    image = ramp(lines * width, c, dtype=dtype, seed=1)
    held = torch.full((lines * width + 2 * taps, c), float("nan"), dtype=dtype)
    held[taps : taps + lines * width] = image
    weights = ramp(steps * taps * c, n, dtype=dtype, seed=2)
    stored = torch.full((steps * taps * c + k, n), float("nan"), dtype=dtype)
    stored[: steps * taps * c] = weights
    acc = torch.float64 if dtype is torch.float64 else torch.float32
    out = torch.zeros(rows, n, dtype=acc)
    grid = (-(-rows // m),)
    window[grid](held[taps:], stored, out, width, rows, M=m, N=n, K=k, C=c, TAPS=taps, STEPS=steps,
                 ACC=tl.float64 if acc is torch.float64 else tl.float32, BARE=bare, **options)  # fmt: skip
    if bare:
        return out
    want = torch.zeros(rows, n, dtype=torch.float64)
    for step in range(steps):
        for tap in range(taps):
            for r in range(rows):
                at = r % width + tap - taps // 2
                if 0 <= at < width:
                    row = image[(r // width + step) * width + at].double()
                    want[r] += row @ weights[(step * taps + tap) * c :][:c].double()
    allowed = 1e-13 if acc is torch.float64 else 4e-7 * (4 * taps * steps * c) ** 0.5
    assert (out.double() - want).abs().max() <= allowed * max(1.0, want.abs().max().item())
    return out


TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("taps", [1, 2, 3, 7])
def test_chains_of_taps(dtype: torch.dtype, taps: int) -> None:
    check(dtype, taps=taps)
    check(dtype, taps=taps, steps=3)


@pytest.mark.parametrize("cpu", sweep(CPUS, CPUS[:1]))
def test_shapes(cpu: str) -> None:
    """Rows of every remainder by six and four; wide and narrow columns; one row."""
    for m in (1, 2, 4, 8, 16, 32, 64, 128):
        check(m=m, rows=2 * m + 1, width=5, arch=cpu)
    for n in (1, 4, 8, 16, 64, 128):
        check(n=n, arch=cpu)
    for rows in (1, 5, 6, 7, 11, 12, 29, 31, 32, 49, 64):
        check(m=64, rows=rows, width=7, arch=cpu)


def test_long_chains_are_cut_and_join() -> None:
    """Of 7 taps of 256 channels, the filters of which fill L1 several times over."""
    check(taps=7, k=256, m=64, rows=64, width=16)


@pytest.mark.parametrize("c", [1, 3, 5, 13, 15])
def test_columns_behind_the_last_channel_are_not_read(c: int) -> None:
    """They belong to the next place of the image, or lie behind it: here, NaN."""
    check(c=c, taps=7, rows=48, width=12)
    check(c=c, taps=3, steps=2)


def test_what_is_not_masked_counts() -> None:
    """Zero times NaN is NaN: only one side of the product has an end."""
    out = check(c=5, taps=1, rows=22, bare=True)
    assert out.isnan().all()


@triton.jit
def seen_between(x, w, o, p, rows, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    acc = tl.zeros((M, N), tl.float32)
    a = tl.load(x + (m * 7 % 5) * K + k[None, :], mask=(m % 3 != 1), other=0)
    b = tl.load(w + k[:, None] * N + n)
    first = tl.dot(a, b, acc, input_precision="ieee")
    tl.store(p + m * N + n, first)
    tl.store(x + (m * 7 % 5) * K + k[None, :], m + k[None, :] * 0.0)
    again = tl.load(x + (m * 7 % 5) * K + k[None, :], mask=(m % 3 != 1), other=0)
    tl.store(o + m * N + n, tl.dot(again, b, first, input_precision="ieee"))


def test_a_sum_that_is_stored_between_is_not_skipped() -> None:
    """The rows are written between two products: the second reads what was written."""
    m, n, k = 4, 16, 8
    x, w = ramp(5, k, seed=1), ramp(k, n, seed=2)
    before = x.clone()
    out, part = torch.zeros(m, n), torch.zeros(m, n)
    seen_between[(1,)](x, w, out, part, m, M=m, N=n, K=k)
    place = torch.arange(m) * 7 % 5
    keep = (torch.arange(m) % 3 != 1)[:, None]
    first = (before[place] * keep).double() @ w.double()
    second = first + ((torch.arange(m)[:, None] * torch.ones(1, k)) * keep).double() @ w.double()
    torch.testing.assert_close(part.double(), first, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out.double(), second, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cpu", ["haswell", "znver4"])
def test_taps_are_one_product(cpu: str) -> None:
    """Three taps are one chain, without a copy of the rows; the first one starts from zero."""
    types = {"x": "*fp32", "w": "*fp32", "o": "*fp32", "width": "i32", "rows": "i32"}
    constants = {"M": 16, "N": 64, "K": 16, "C": 16, "TAPS": 3, "STEPS": 1, "ACC": tl.float32, "BARE": False}
    text = compiled_assembly(cpu, types | dict.fromkeys(constants, "constexpr"), constants, window)
    assert "chain3_16_fma_float_4x" in text
    assert "dot_fma_float" not in text
    assert ("chain3_16_fma_float_6x2x8" in text) == (cpu == "haswell")


def test_high_strips_leave_whole_low_ones() -> None:
    for m in (4, 8, 16, 32, 64, 128, 256):
        high, reach = heights((4, 2), m, 256)
        assert (high, reach % high, (m - reach) % 4) == (6, 0, 0), m
        assert m - reach <= 8
        assert heights((4, 4), m, 512) == (4, m)
