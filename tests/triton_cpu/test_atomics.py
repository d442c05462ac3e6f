"""Atomic operations: collisions, extremes, bits, exchanges, a lock."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import triton.language as tl
from oracle import module_of, needs_backend, ramp, triton

pytestmark = needs_backend

ATOMICS = [torch.int32, torch.int64, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", [*ATOMICS, torch.float16, torch.bfloat16], ids=str)
def test_atomic_add_with_collisions(tmp_path: Path, dtype: torch.dtype) -> None:
    text = """
        @triton.jit
        def kernel(p, x, old, N: tl.constexpr):
            i = tl.program_id(0) * N + tl.arange(0, N)
            before = tl.atomic_add(p + i % 4, tl.load(x + i), mask=i % 3 != 0)
            tl.store(old + i, before, mask=i % 3 != 0)
    """
    x = torch.ones(256, dtype=dtype)
    p, old = torch.zeros(4, dtype=dtype), torch.full((256,), -1, dtype=dtype)
    module_of(tmp_path, text).kernel[(4,)](p, x, old, N=64)
    i = torch.arange(256)
    counted = [int(((i % 4 == k) & (i % 3 != 0)).sum()) for k in range(4)]
    assert p.tolist() == counted
    for k in range(4):  # every intermediate sum was seen once
        seen = old[(i % 4 == k) & (i % 3 != 0)]
        assert sorted(seen.tolist()) == list(range(counted[k]))


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.uint32, torch.int64, torch.float32, torch.float64], ids=str
)
def test_atomic_extremes(tmp_path: Path, dtype: torch.dtype) -> None:
    text = """
        @triton.jit
        def kernel(low, high, x, N: tl.constexpr):
            i = tl.program_id(0) * N + tl.arange(0, N)
            v = tl.load(x + i)
            tl.atomic_min(low + i % 2, v)
            tl.atomic_max(high + i % 2, v)
    """
    x = (
        ramp(128).mul(1000).to(dtype)
        if dtype is not torch.uint32
        else (ramp(128).abs() * 2e9).long().to(dtype)
    )
    low, high = x[:2].clone(), x[:2].clone()
    module_of(tmp_path, text).kernel[(2,)](low, high, x, N=64)
    wide = x.to(torch.float64 if dtype.is_floating_point else torch.int64).view(64, 2)
    assert low.tolist() == wide.amin(0).tolist()
    assert high.tolist() == wide.amax(0).tolist()


@triton.jit
def bitwise(p, x, N: tl.constexpr):
    v = tl.load(x + tl.arange(0, N))
    i = tl.arange(0, N) * 0
    tl.atomic_and(p + i, v)
    tl.atomic_or(p + 1 + i, v)
    tl.atomic_xor(p + 2 + i, v)
    tl.atomic_xchg(p + 3, 42)
    tl.store(p + 5, tl.atomic_cas(p + 4, 7, 99))
    tl.store(p + 6, tl.atomic_cas(p + 4, 7, 100))


def test_atomic_bits_and_exchanges() -> None:
    x = torch.tensor([0b1110, 0b0111, 0b1111, 0b0110], dtype=torch.int32)
    p = torch.tensor([0b1111, 0, 0, 1, 7, 0, 0], dtype=torch.int32)
    bitwise[(1,)](p, x, N=4)
    assert p.tolist() == [0b0110, 0b1111, 0b1110 ^ 0b0111 ^ 0b1111 ^ 0b0110, 42, 99, 7, 99]


@triton.jit
def locked(lock, p, n):
    while tl.atomic_cas(lock, 0, 1) == 1:
        pass
    tl.store(p, tl.load(p) + n)
    tl.atomic_xchg(lock, 0)


def test_a_lock() -> None:
    lock, p = torch.zeros(1, dtype=torch.int32), torch.zeros(1)
    locked[(200,)](lock, p, 2)
    assert p.item() == 400
