"""Masks that end at a column: every length gives the right numbers, and whole vectors in front of it carry no mask."""

from __future__ import annotations

import re

import pytest
import torch
import triton.language as tl
from oracle import needs_backend, triton
from test_vectorisation import compiled

pytestmark = needs_backend

LENGTHS = [-3, 0, 1, 7, 8, 15, 16, 33, 64, 100, 127, 128, 500]


@triton.jit
def softmax_rows(x, o, n, N: tl.constexpr):
    j = tl.arange(0, N)
    row = tl.load(x + tl.program_id(0) * N + j, mask=j < n, other=-float("inf"))
    e = tl.exp(row - tl.max(row, 0))
    tl.store(o + tl.program_id(0) * N + j, e / tl.sum(e, 0), mask=j < n)


@pytest.mark.parametrize("n", [n for n in LENGTHS if n > 0])
def test_softmax_of_a_part_of_a_row(n: int) -> None:
    x, o = torch.randn(3, 128), torch.full((3, 128), 7.0)
    softmax_rows[(3,)](x, o, n, 128)
    n = min(n, 128)
    torch.testing.assert_close(o[:, :n], torch.softmax(x[:, :n].double(), 1).float())
    assert torch.equal(o[:, n:], torch.full((3, 128 - n), 7.0))


@triton.jit
def reductions(x, o, n, N: tl.constexpr, KIND: tl.constexpr):
    """Sums of what the mask lets through, of what it replaces, and of what ignores it."""
    j = tl.arange(0, N)
    if KIND == "less":
        mask = j < n
    elif KIND == "most":
        mask = j <= n
    elif KIND == "mirrored":
        mask = n > j
    else:
        mask = (n >= j) & (j != 5)
    v = tl.load(x + j, mask=mask, other=2.0)
    e = tl.exp(v)
    tl.store(o + 0, tl.sum(v, 0))
    tl.store(o + 1, tl.sum(tl.where(mask, v, 0.0), 0))
    tl.store(o + 2, tl.sum(tl.where(mask, e, 0.0), 0))
    tl.store(o + 3, tl.sum(e, 0))  # the tail of what was kept while summing
    tl.store(o + 4, tl.max(tl.where(mask, 1.0, v + 3), 0))
    tl.store(o + 5, tl.argmin(v, 0).to(tl.float32))
    tl.store(o + 6, tl.sum(tl.where(mask, j, -j), 0).to(tl.float32))
    tl.store(o + 7, tl.max(tl.where(mask, v, -float("inf")), 0))


@pytest.mark.parametrize("kind", ["less", "most", "mirrored", "both"])
@pytest.mark.parametrize("n", LENGTHS)
def test_reductions_of_every_length(n: int, kind: str) -> None:
    x, o = torch.randn(128), torch.empty(8)
    reductions[(1,)](x, o, n, 128, kind)
    j = torch.arange(128)
    mask = j < n if kind in ("less", "mirrored") else j <= n
    if kind == "both":
        mask &= j != 5
    v = torch.where(mask, x, 2.0).double()
    e, low = v.exp(), torch.tensor(float("-inf"), dtype=torch.float64)
    want = [
        v.sum(), torch.where(mask, v, 0.0).sum(), torch.where(mask, e, 0.0).sum(), e.sum(),
        torch.where(mask, 1.0, v + 3).max(), v.argmin(), torch.where(mask, j, -j).sum(),
        torch.where(mask, v, low).max(),
    ]  # fmt: skip
    torch.testing.assert_close(o, torch.stack([w.double() for w in want]).float(), rtol=2e-6, atol=1e-5)


@triton.jit
def tile(x, o, s, n, M: tl.constexpr, N: tl.constexpr):
    """One mask along both dimensions, and a reduction across the vectors."""
    i, j = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    inside = (i < n) & (j < n)
    v = tl.load(x + i * N + j, mask=inside, other=0.5)
    tl.store(o + i * N + j, v + 1, mask=inside)
    tl.store(s + tl.arange(0, N), tl.sum(v, 0))


@pytest.mark.parametrize("n", LENGTHS)
def test_a_square_mask(n: int) -> None:
    x, o, s = torch.randn(64, 128), torch.full((64, 128), 9.0), torch.empty(128)
    tile[(1,)](x, o, s, n, 64, 128)
    inside = (torch.arange(64)[:, None] < n) & (torch.arange(128)[None, :] < n)
    v = torch.where(inside, x, 0.5)
    torch.testing.assert_close(o, torch.where(inside, v + 1, 9.0))
    torch.testing.assert_close(s, v.double().sum(0).float(), rtol=1e-5, atol=1e-5)


@triton.jit
def twice(x, o, N: tl.constexpr):
    """The same comparison as a row and as a column of a square."""
    k = tl.arange(0, N)
    near = k < 20
    v = tl.load(x + k[:, None] * N + k[None, :], mask=near[:, None] & near[None, :], other=-1.0)
    tl.store(o + k[None, :] * N + k[:, None], tl.where(near[:, None], v, 3.0))


def test_one_comparison_along_both_dimensions() -> None:
    x, o = torch.randn(32, 32), torch.empty(32, 32)
    twice[(1,)](x, o, 32)
    near = torch.arange(32) < 20
    v = torch.where(near[:, None] & near[None, :], x, -1.0)
    assert torch.equal(o, torch.where(near[:, None], v, 3.0).T)


@triton.jit
def wrapped(o, n, N: tl.constexpr):
    """n + 1 wraps: nothing is below it."""
    j = tl.arange(0, N)
    tl.store(o + j, 1.0, mask=j < n + 1)


@pytest.mark.parametrize(("n", "written"), [(2**31 - 1, 0), (-5, 0), (3, 4), (90, 64)])
def test_limits_that_wrap(n: int, written: int) -> None:
    o = torch.zeros(64)
    wrapped[(1,)](o, n, 64)
    assert o.sum() == written


@triton.jit
def known(x, o, N: tl.constexpr, WIDE: tl.constexpr):
    j = tl.arange(0, WIDE)
    v = tl.load(x + j, mask=j < N, other=0)
    total = tl.sum(tl.where(j < N, v, 0.0), 0)
    tl.store(o + j, v - total, mask=j < N)


def test_a_known_row_of_whole_vectors_has_no_mask() -> None:
    whole = compiled(known, {"x": "*fp32", "o": "*fp32"}, N=768, WIDE=1024)["llir"]
    assert "masked" not in whole and re.search(r"store <16 x float> ", whole)
    ragged = compiled(known, {"x": "*fp32", "o": "*fp32"}, N=777, WIDE=1024)["llir"]
    assert "llvm.masked.load.v16f32" in ragged and re.search(r"= load <16 x float>, ptr", ragged)
