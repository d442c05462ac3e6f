"""Stores that put two to four planes side by side: every element once, nothing beside them."""

from __future__ import annotations

import pytest
import torch
import triton.language as tl
from oracle import needs_backend, ramp, sweep, triton
from test_dot import CPUS, compiled_assembly

pytestmark = needs_backend


@triton.jit
def side_by_side(x, o, width, border, rows, W: tl.constexpr, P: tl.constexpr, C: tl.constexpr):
    """Plane c of x, `width` wide and with a border of zeros around its lines, to o[..., c]."""
    row = tl.program_id(0)
    i, c = tl.arange(0, W)[:, None], tl.arange(0, P)[None, :]
    wide = width + 2 * border
    inside = (i >= border) & (i < border + width) & (row < rows)
    v = tl.load(x + c * (rows * width) + row * width + i - border, mask=inside & (c < C), other=0)
    tl.store(o + (row * wide + i) * C + c, v * 2, mask=(i < wide) & (c < C))


def check(dtype: torch.dtype, planes: int, width: int, border: int = 0, **options: object) -> None:
    rows, wide = 3, width + 2 * border
    x = ramp(planes, rows, width, dtype=dtype, seed=1)
    held = torch.full((rows * wide * planes + 128,), 77, dtype=dtype)
    out = held[64:-64]
    tile = 1 << max(0, wide - 1).bit_length()
    side_by_side[(rows,)](
        x, out, width, border, rows, W=max(tile, 2), P=2 if planes == 2 else 4, C=planes, **options
    )
    want = torch.zeros(rows, wide, planes, dtype=dtype)
    want[:, border : border + width] = 2 * x.permute(1, 2, 0)
    assert torch.equal(out.view(rows, wide, planes), want)
    assert (held[:64] == 77).all() and (held[-64:] == 77).all()


@pytest.mark.parametrize("cpu", sweep(CPUS, CPUS[:1]))
@pytest.mark.parametrize("planes", [2, 3, 4])
def test_widths(planes: int, cpu: str) -> None:
    """Whole vectors, ends of lines within one, borders on both sides, lines shorter than a vector."""
    for width in (1, 5, 8, 16, 31, 32, 37, 64, 100):
        check(torch.float32, planes, width, arch=cpu)
        check(torch.float32, planes, width, border=3, arch=cpu)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float64, torch.float16, torch.int8], ids=str)
def test_types(dtype: torch.dtype) -> None:
    for planes in (2, 3, 4):
        check(dtype, planes, 37, border=1)


@triton.jit
def channels_last(x, o, W: tl.constexpr):
    i, c = tl.arange(0, W)[:, None], tl.arange(0, 4)[None, :]
    tl.store(o + i * 3 + c, tl.load(x + c * W + i, mask=c < 3, other=0), mask=c < 3)


@pytest.mark.parametrize("cpu", ["haswell", "znver4"])
def test_whole_vectors_are_stored(cpu: str) -> None:
    text = compiled_assembly(cpu, {"x": "*fp32", "o": "*fp32", "W": "constexpr"}, {"W": 64}, channels_last)
    assert "vmaskmov" not in text and "vscatter" not in text
    assert "vmovups" in text
