"""Loads of every second to fifth element: values of all types, masks, and nothing read that may not be."""

from __future__ import annotations

import ctypes
import mmap

import pytest
import torch
import triton.language as tl
from oracle import needs_backend, triton

pytestmark = needs_backend

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int8]


@triton.jit
def plain(x, o, N: tl.constexpr, STEP: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o + i, tl.load(x + i * STEP))


@triton.jit
def between(x, o, low, high, N: tl.constexpr, STEP: tl.constexpr, OTHER: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o + i, tl.load(x + i * STEP, mask=(i >= low) & (i < high), other=OTHER))


@pytest.mark.parametrize("step", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_values(dtype: torch.dtype, step: int) -> None:
    x = (torch.randn(64 * step) * 50).to(dtype)
    for n in (4, 16, 64):
        for low, high, other in ((None, 0, 0), (2, 13, 0), (0, n, 7), (n, n, 7)):
            out = torch.full((n,), -1, dtype=dtype)
            wanted = x[: n * step : step].clone()
            if low is None:
                plain[(1,)](x, out, n, step)
            else:
                between[(1,)](x, out, low, high, n, step, other)
                i = torch.arange(n)
                wanted[(i < low) | (i >= high)] = other
            assert torch.equal(out, wanted), (n, low, high, other)


@pytest.mark.parametrize("step", [2, 3, 4])
def test_nothing_beyond_the_last_element_is_read(step: int) -> None:
    """The last element that counts is the last of its page, and the next page cannot be read at all."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    everything = torch.frombuffer(memory, dtype=torch.float32)
    everything[:] = torch.arange(2 * page // 4)
    assert libc.mprotect(start + page, page, 0) == 0
    try:
        for n, alive in ((32, 32), (64, 21), (64, 1)):
            first = page // 4 - 1 - step * (alive - 1)
            x, out = everything[first : page // 4], torch.empty(n)
            if alive == n:
                plain[(1,)](x, out, n, step)
            else:
                between[(1,)](x, out, 0, alive, n, step, 0)
            assert torch.equal(out[:alive], x[::step])
    finally:
        libc.mprotect(start + page, page, mmap.PROT_READ | mmap.PROT_WRITE)
