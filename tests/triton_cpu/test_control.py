"""Loops, branches and early returns, and what they carry."""

from __future__ import annotations

import pytest
import torch
import triton.language as tl
from oracle import assert_equal, needs_backend, ramp, triton

pytestmark = needs_backend


@triton.jit
def carries(p, o, n, step, N: tl.constexpr):
    i = tl.arange(0, N)
    total = tl.zeros((N,), tl.float32)
    largest = tl.full((N,), -1e30, tl.float32)
    count = 0
    at = p + i
    for k in range(n):
        x = tl.load(at)
        total += x
        largest = tl.maximum(largest, x)
        count += k
        at += step
    tl.store(o + i, total)
    tl.store(o + N + i, largest)
    tl.store(o + 2 * N + i, count.to(tl.float32))


@pytest.mark.parametrize("count", [1, 4, 64])
@pytest.mark.parametrize("trips", [0, 1, 7])
def test_scalars_tensors_and_pointers_are_carried(count: int, trips: int) -> None:
    x, out = ramp(max(trips, 1), count), torch.empty(3, count)
    carries[(1,)](x, out, trips, count, N=count)
    rows = x[:trips]
    torch.testing.assert_close(out[0], rows.sum(0))
    assert_equal(out[1], torch.cat([rows, torch.full((1, count), -1e30)]).amax(0))
    assert (out[2] == sum(range(trips))).all()


@triton.jit
def swaps(o, n, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b, c = i.to(tl.float32), i * 2.0, i * 3.0
    for _ in range(n):
        a, b, c = b, c + a, a
    tl.store(o + i, a)
    tl.store(o + N + i, b)
    tl.store(o + 2 * N + i, c)


@pytest.mark.parametrize("count", [1, 8, 128])
def test_tensors_change_places(count: int) -> None:
    for n in (0, 1, 5):
        out = torch.empty(3, count)
        swaps[(1,)](out, n, N=count)
        i = torch.arange(count).float()
        a, b, c = i, i * 2, i * 3
        for _ in range(n):
            a, b, c = b, c + a, a
        assert_equal(out, torch.stack([a, b, c]))


@triton.jit
def rotates(p, o, n, N: tl.constexpr):
    i = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    x = tl.load(p + i)
    for _ in range(n):
        x = tl.trans(x) + 1
    tl.store(o + i, x)


def test_a_carried_tile_is_read_elsewhere() -> None:
    x, out = ramp(16, 16), torch.empty(16, 16)
    rotates[(1,)](x, out, 3, N=16)
    assert_equal(out, x.T + 1 + 1 + 1)


@triton.jit
def integers(p, o, n, N: tl.constexpr):
    i = tl.arange(0, N)
    where = i
    mask = i < n
    total = tl.zeros((N,), tl.float32)
    for k in range(3):
        total += tl.load(p + where, mask=mask, other=0.0)
        where += N
        mask = mask & (i != k)
    tl.store(o + i, total)
    tl.store(o + N + i, where.to(tl.float32))


def test_indices_and_masks_are_carried() -> None:
    x, out = ramp(3, 32), torch.empty(2, 32)
    integers[(1,)](x, out, 20, N=32)
    want, mask = torch.zeros(32), torch.arange(32) < 20
    for k in range(3):
        want += torch.where(mask, x[k], 0)
        mask &= torch.arange(32) != k
    assert_equal(out[0], want)
    assert_equal(out[1], torch.arange(32) + 96.0)


@triton.jit
def collatz(p, o, N: tl.constexpr):
    n = tl.load(p + tl.program_id(0))
    steps = 0
    while n != 1:
        if n % 2 == 0:
            n = n // 2
        else:
            n = 3 * n + 1
        steps += 1
    tl.store(o + tl.program_id(0), steps)


def test_while_with_a_branch_on_scalars() -> None:
    n = torch.tensor([1, 2, 3, 7, 27], dtype=torch.int32)
    out = torch.empty(5, dtype=torch.int32)
    collatz[(5,)](n, out, N=1)
    assert out.tolist() == [0, 1, 7, 16, 111]


@triton.jit
def newton(p, o, N: tl.constexpr):
    i = tl.arange(0, N)
    a = tl.load(p + i)
    x = a
    error = tl.max(tl.abs(x * x - a))
    rounds = 0
    while (error > 1e-4) & (rounds < 50):
        x = 0.5 * (x + a / x)
        error = tl.max(tl.abs(x * x - a))
        rounds += 1
    tl.store(o + i, x)


@pytest.mark.parametrize("count", [1, 32, 256])
def test_while_with_tensors(count: int) -> None:
    a, out = ramp(count).abs() + 0.5, torch.empty(count)
    newton[(1,)](a, out, N=count)
    torch.testing.assert_close(out, a.sqrt(), rtol=1e-3, atol=1e-3)


@triton.jit
def branches(p, o, flag, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(p + i)
    if flag > 1:
        y = x * 2
        s = 3
    elif flag == 1:
        y = tl.load(p + N - 1 - i)
        s = 2
    else:
        y = tl.zeros((N,), tl.float32)
        s = 1
    tl.store(p + i, y + 1)  # the branch's result must not see this
    tl.store(o + i, y * s)
    if flag == 1:
        tl.store(o + N + i, x)


@pytest.mark.parametrize("flag", [0, 1, 2])
@pytest.mark.parametrize("count", [1, 16, 128])
def test_branches_give_tensors(flag: int, count: int) -> None:
    x, out = ramp(count), torch.zeros(2, count)
    before = x.clone()
    branches[(1,)](x, out, flag, N=count)
    y = [torch.zeros(count), before.flip(0), before * 2][flag]
    assert_equal(out[0], y * [1, 2, 3][flag])
    assert_equal(out[1], before if flag == 1 else torch.zeros(count))
    assert_equal(x, y + 1)


@triton.jit
def returns(p, o, n, N: tl.constexpr):
    pid = tl.program_id(0)
    i = tl.arange(0, N)
    x = tl.load(p + pid * N + i)
    if pid >= n:
        return
    y = x * 2
    if pid == 1:
        tl.store(o + pid * N + i, y + 100)
        return
    tl.store(o + pid * N + i, y)


def test_early_returns() -> None:
    x, out = ramp(5, 32), torch.zeros(5, 32)
    returns[(5,)](x, out, 3, N=32)
    want = x * 2
    want[1] += 100
    want[3:] = 0
    assert_equal(out, want)


@triton.jit
def nested(p, o, m, n, N: tl.constexpr):
    i = tl.arange(0, N)
    outer = tl.zeros((N,), tl.float32)
    for a in range(m):
        inner = tl.load(p + a * N + i)
        for b in range(a, n):
            if (a + b) % 2 == 0:
                inner = inner * 0.5 + b
            else:
                for _ in tl.static_range(2):
                    inner += 1.0
        outer += inner
    tl.store(o + i, outer)


def test_nested_loops_and_branches() -> None:
    x, out = ramp(4, 32), torch.empty(32)
    nested[(1,)](x, out, 4, 6, N=32)
    want = torch.zeros(32)
    for a in range(4):
        inner = x[a]
        for b in range(a, 6):
            inner = inner * 0.5 + b if (a + b) % 2 == 0 else inner + 1 + 1
        want += inner
    torch.testing.assert_close(out, want)


@triton.jit
def ranges(o, start, stop, step):
    k = 0
    for i in range(start, stop, step):
        tl.store(o + k, i)
        k += 1
    for i in range(3, -4, -2):
        tl.store(o + k, i)
        k += 1
    for i in tl.static_range(5, 0, -2):
        tl.store(o + k, i)
        k += 1
    for i in tl.range(2, num_stages=3):
        tl.store(o + k, i)
        k += 1
    tl.store(o + k, -99)


@pytest.mark.parametrize("bounds", [(0, 5, 1), (2, 11, 3), (5, 2, 1), (-3, 3, 2)])
def test_ranges(bounds: tuple[int, int, int]) -> None:
    out = torch.zeros(32, dtype=torch.int32)
    ranges[(1,)](out, *bounds)
    want = [*range(*bounds), 3, 1, -1, -3, 5, 3, 1, 0, 1, -99]
    assert out[: len(want)].tolist() == want


@triton.jit
def kept_before_stores(p, o, n, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(p + i)
    for k in range(n):
        tl.store(p + i, x + k)  # x is what the memory held before the loop
        y = tl.load(p + i)
        tl.store(o + k * N + i, y * x)


def test_loads_before_a_loop_that_stores() -> None:
    x, out = ramp(32), torch.empty(3, 32)
    before = x.clone()
    kept_before_stores[(1,)](x, out, 3, N=32)
    assert_equal(out, torch.stack([(before + k) * before for k in range(3)]))


@triton.jit
def persistent(p, o, n, N: tl.constexpr):
    i = tl.arange(0, N)
    for tile in tl.range(tl.program_id(0), tl.cdiv(n, N), tl.num_programs(0)):
        at = tile * N + i
        tl.store(o + at, tl.load(p + at, mask=at < n) + 1, mask=at < n)


def test_persistent_programs() -> None:
    x, out = ramp(1000), torch.zeros(1000)
    persistent[(3,)](x, out, 1000, N=64)
    assert_equal(out, x + 1)


@triton.jit(noinline=True)
def called(x, y):
    return x * 3 + y


@triton.jit(noinline=True)
def writes(p, k):
    tl.store(p + k, k * 10)


@triton.jit
def calls(o, n):
    total = 0
    for k in range(n):
        total = called(total, k)
        writes(o + 1, k)
    tl.store(o, total)


def test_functions_marked_noinline() -> None:
    out = torch.zeros(8, dtype=torch.int32)
    calls[(1,)](out, 4)
    total = 0
    for k in range(4):
        total = total * 3 + k
    assert out.tolist() == [total, 0, 10, 20, 30, 0, 0, 0]


@triton.jit
def add_one(x):
    return x + 1


@triton.jit
def tuples(p, o, sizes, op: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    a, b = sizes
    pair = (tl.load(p + i), i)
    tl.store(o + i, op(pair[0]) * a + b)


def test_tuples_and_function_arguments() -> None:
    x, out = ramp(16), torch.empty(16)
    tuples[(1,)](x, out, (3, 4.0), op=add_one, N=16)
    torch.testing.assert_close(out, (x + 1) * 3 + 4)
