"""Kernels as users write them, each a different mixture of the language, against torch."""

from __future__ import annotations

import pytest
import torch
import triton.language as tl
from oracle import assert_equal, needs_backend, ramp, triton

pytestmark = needs_backend
F = torch.nn.functional


@triton.jit
def rope(x, cos, sin, o, heads, D: tl.constexpr):
    token, head = tl.program_id(0), tl.program_id(1)
    half = tl.arange(0, D // 2)
    base = (token * heads + head) * D
    a, b = tl.load(x + base + half), tl.load(x + base + D // 2 + half)
    c, s = tl.load(cos + token * (D // 2) + half), tl.load(sin + token * (D // 2) + half)
    tl.store(o + base + half, a * c - b * s)
    tl.store(o + base + D // 2 + half, b * c + a * s)


@pytest.mark.parametrize("in_place", [False, True])
def test_rotary_embedding(in_place: bool) -> None:
    x, angle = ramp(5, 3, 32), ramp(5, 16, seed=1)
    a, b = x[..., :16], x[..., 16:]
    c, s = angle.cos()[:, None], angle.sin()[:, None]
    want = torch.cat([a * c - b * s, b * c + a * s], -1)
    out = x if in_place else torch.empty_like(x)
    rope[(5, 3)](x, angle.cos(), angle.sin(), out, 3, D=32)
    torch.testing.assert_close(out, want)


@triton.jit
def cross_entropy(logits, labels, losses, grads, n, scale, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    label = tl.load(labels + row)
    if label == -100:
        tl.store(losses + row, 0.0)
        tl.store(grads + row * n + i, 0.0, mask=i < n)
        return
    x = tl.load(logits + row * n + i, mask=i < n, other=-float("inf")).to(tl.float32)
    top = tl.max(x, 0)
    total = tl.log(tl.sum(tl.exp(x - top), 0)) + top
    tl.store(losses + row, total - tl.load(logits + row * n + label).to(tl.float32))
    p = tl.exp(x - total)
    tl.store(grads + row * n + i, (p - tl.where(i == label, 1.0, 0.0)) * scale, mask=i < n)


def test_cross_entropy() -> None:
    x, labels = ramp(9, 50), torch.tensor([0, 1, -100, 49, 7, 3, -100, 2, 10])
    losses, grads = torch.empty(9), torch.empty(9, 50)
    cross_entropy[(9,)](x, labels, losses, grads, 50, 1 / 7, BLOCK=64)
    exact = x.double().requires_grad_()
    want = F.cross_entropy(exact, labels, reduction="none")
    (want.sum() / 7).backward()
    torch.testing.assert_close(losses.double(), want.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grads.double(), exact.grad, rtol=1e-5, atol=1e-6)


@triton.jit
def seeded_dropout(x, o, n, p, seed, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    keep = tl.rand(seed, i) > p
    tl.store(o + i, tl.where(keep, tl.load(x + i, mask=i < n) / (1 - p), 0.0), mask=i < n)


def test_dropout_with_a_seed() -> None:
    x = torch.ones(10000)
    first, again, other = (torch.empty(10000) for _ in range(3))
    for out, seed in ((first, 123), (again, 123), (other, 124)):
        seeded_dropout[(triton.cdiv(10000, 256),)](x, out, 10000, 0.25, seed, N=256)
    assert_equal(first, again)
    assert not torch.equal(first, other)
    assert set(first.unique().tolist()) == {0.0, (1 / torch.tensor(0.75)).item()}
    assert abs((first == 0).float().mean().item() - 0.25) < 0.02


@triton.jit
def random_numbers(o, u, g, seed, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o + i, tl.rand(seed, i))
    tl.store(u + i, tl.randint(seed, i))
    tl.store(g + i, tl.randn(seed, i))


def philox(seed: int, counter: int) -> int:
    """First word of Philox 4x32-10 (Salmon et al., 2011)."""
    mask = 0xFFFFFFFF
    c, k = [counter, 0, 0, 0], [seed & mask, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & mask, (a >> 32) ^ c[3] ^ k[1], a & mask]
        k = [(k[0] + 0x9E3779B9) & mask, (k[1] + 0xBB67AE85) & mask]
    return c[0]


def test_random_numbers_are_philox() -> None:
    uniform, integers, normal = torch.empty(1024), torch.empty(1024, dtype=torch.int32), torch.empty(1024)
    random_numbers[(1,)](uniform, integers, normal, 42, N=1024)
    assert [x & 0xFFFFFFFF for x in integers[:8].tolist()] == [philox(42, k) for k in range(8)]
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.05
    assert abs(normal.mean()) < 0.1 and abs(normal.std() - 1) < 0.1


@triton.jit
def embedding(tokens, table, o, D: tl.constexpr, B: tl.constexpr, n):
    t = tl.program_id(0) * B + tl.arange(0, B)
    d = tl.arange(0, D)
    row = tl.load(tokens + t, mask=t < n, other=0)
    x = tl.load(table + row[:, None] * D + d[None, :], mask=(t < n)[:, None] & (row != 0)[:, None], other=0.0)
    tl.store(o + t[:, None] * D + d[None, :], x, mask=(t < n)[:, None])


def test_embedding() -> None:
    table, tokens, out = ramp(20, 32), torch.randint(0, 20, (13,)), torch.empty(13, 32)
    embedding[(4,)](tokens, table, out, D=32, B=4, n=13)
    assert_equal(out, F.embedding(tokens, torch.cat([torch.zeros(1, 32), table[1:]])))


@triton.jit
def split_k(a, b, c, M, N, K, B: tl.constexpr, SPLIT: tl.constexpr):
    i, j = tl.program_id(0) * B + tl.arange(0, B), tl.program_id(1) * B + tl.arange(0, B)
    k = tl.program_id(2) * B + tl.arange(0, B)
    acc = tl.zeros((B, B), tl.float32)
    for _ in range(tl.cdiv(K, B * SPLIT)):
        x = tl.load(a + i[:, None] * K + k[None, :], mask=(i < M)[:, None] & (k < K)[None, :], other=0.0)
        y = tl.load(b + k[:, None] * N + j[None, :], mask=(k < K)[:, None] & (j < N)[None, :], other=0.0)
        acc += tl.dot(x, y)
        k += B * SPLIT
    tl.atomic_add(c + i[:, None] * N + j[None, :], acc, mask=(i < M)[:, None] & (j < N)[None, :])


def test_split_k_with_atomics() -> None:
    a, b, c = ramp(30, 100), ramp(100, 40, seed=1), torch.zeros(30, 40)
    split_k[(2, 3, 3)](a, b, c, 30, 40, 100, B=16, SPLIT=3)
    torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=1e-4, atol=1e-4)


@triton.jit
def grouped(pointers, sizes, groups, B: tl.constexpr, PROGRAMS: tl.constexpr):
    tile = tl.program_id(0)
    last = 0
    for g in range(groups):
        m, n, k = tl.load(sizes + g * 3), tl.load(sizes + g * 3 + 1), tl.load(sizes + g * 3 + 2)
        across = tl.cdiv(n, B)
        tiles = tl.cdiv(m, B) * across
        while tile >= last and tile < last + tiles:
            a = tl.load(pointers + g * 3).to(tl.pointer_type(tl.float32))
            b = tl.load(pointers + g * 3 + 1).to(tl.pointer_type(tl.float32))
            c = tl.load(pointers + g * 3 + 2).to(tl.pointer_type(tl.float32))
            i = (tile - last) // across * B + tl.arange(0, B)
            j = (tile - last) % across * B + tl.arange(0, B)
            d = tl.arange(0, B)
            acc = tl.zeros((B, B), tl.float32)
            for at in range(0, k, B):
                inside = at + d < k
                x = tl.load(
                    a + i[:, None] * k + at + d[None, :], mask=(i < m)[:, None] & inside[None, :], other=0.0
                )
                y = tl.load(
                    b + (at + d)[:, None] * n + j[None, :], mask=inside[:, None] & (j < n)[None, :], other=0.0
                )
                acc = tl.dot(x, y, acc)
            tl.store(c + i[:, None] * n + j[None, :], acc, mask=(i < m)[:, None] & (j < n)[None, :])
            tile += PROGRAMS
        last += tiles


def test_grouped_products_from_a_table_of_pointers() -> None:
    shapes = [(20, 33, 17), (16, 16, 16), (1, 50, 8)]
    parts = [(ramp(m, k), ramp(k, n, seed=1), torch.zeros(m, n)) for m, n, k in shapes]
    pointers = torch.tensor([[t.data_ptr() for t in p] for p in parts])
    grouped[(4,)](pointers, torch.tensor(shapes, dtype=torch.int32), 3, B=16, PROGRAMS=4)
    for a, b, c in parts:
        torch.testing.assert_close(c.double(), a.double() @ b.double(), rtol=1e-4, atol=1e-4)


@triton.jit
def quantised(x, w, scales, o, K: tl.constexpr, N: tl.constexpr, M: tl.constexpr):
    i, j, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(x + i[:, None] * K + k[None, :])
    top = tl.max(tl.abs(a), 1) / 127.0
    q = tl.extra.cuda.libdevice.rint(a / top[:, None]).to(tl.int8)
    acc = tl.dot(q, tl.load(w + k[:, None] * N + j[None, :]), out_dtype=tl.int32)
    tl.store(
        o + i[:, None] * N + j[None, :], acc.to(tl.float32) * top[:, None] * tl.load(scales + j)[None, :]
    )


def test_dynamically_quantised_product() -> None:
    x, w, scales, out = ramp(16, 64), ramp(64, 32, dtype=torch.int8), ramp(32).abs() / 50, torch.empty(16, 32)
    quantised[(1,)](x, w, scales, out, K=64, N=32, M=16)
    top = x.abs().amax(1, keepdim=True) / 127.0
    q = (x / top).round()
    want = (q.double() @ w.double()) * top * scales
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-5)


@triton.jit
def int4_weights(x, packed, o, K: tl.constexpr, N: tl.constexpr, M: tl.constexpr):
    i, j = tl.arange(0, M), tl.arange(0, N)
    k = tl.arange(0, K // 2)
    byte = tl.load(packed + k[:, None] * N + j[None, :])
    low, high = (byte & 0xF).to(tl.int8) - 8, (byte >> 4).to(tl.int8) - 8
    w = tl.reshape(tl.permute(tl.join(low, high), (0, 2, 1)), (K, N)).to(tl.float32)
    a = tl.load(x + i[:, None] * K + tl.arange(0, K)[None, :])
    tl.store(o + i[:, None] * N + j[None, :], tl.dot(a, w))


def test_four_bit_weights() -> None:
    x, out = ramp(16, 32), torch.empty(16, 16)
    packed = torch.randint(0, 256, (16, 16), dtype=torch.uint8)
    int4_weights[(1,)](x, packed, out, K=32, N=16, M=16)
    w = torch.stack([(packed & 15).int() - 8, (packed >> 4).int() - 8], 1).reshape(32, 16)
    torch.testing.assert_close(out.double(), x.double() @ w.double(), rtol=1e-5, atol=1e-4)


@triton.jit
def online(x, o, n, N: tl.constexpr):
    row = tl.program_id(0)
    i = tl.arange(0, N)
    top = tl.full((N,), -float("inf"), tl.float32)
    total = tl.zeros((N,), tl.float32)
    for at in range(0, n, N):
        v = tl.load(x + row * n + at + i, mask=at + i < n, other=-float("inf"))
        new = tl.maximum(top, v)
        total = tl.where(new == -float("inf"), 0.0, total * tl.exp(top - new) + tl.exp(v - new))
        top = new
    best = tl.max(top, 0)
    norm = tl.sum(tl.where(top == -float("inf"), 0.0, total * tl.exp(top - best)), 0)
    for at in range(0, n, N):
        v = tl.load(x + row * n + at + i, mask=at + i < n, other=-float("inf"))
        tl.store(o + row * n + at + i, v - best - tl.log(norm), mask=at + i < n)


@pytest.mark.parametrize("n", [5, 64, 300])
def test_online_log_softmax(n: int) -> None:
    x, out = ramp(4, n), torch.empty(4, n)
    online[(4,)](x, out, n, N=64)
    torch.testing.assert_close(out.double(), x.double().log_softmax(1), rtol=1e-5, atol=1e-5)


@triton.jit
def selective_scan(x, a, o, length, D: tl.constexpr, S: tl.constexpr):
    d, s = tl.arange(0, D), tl.arange(0, S)
    decay = tl.load(a + d[:, None] * S + s[None, :])
    h = tl.zeros((D, S), tl.float32)
    for t in range(length):
        h = h * decay + tl.load(x + t * D + d)[:, None]
        tl.store(o + t * D + d, tl.sum(h, 1))


def test_a_recurrence_over_time() -> None:
    x, a, out = ramp(7, 8), ramp(8, 16).sigmoid(), torch.empty(7, 8)
    selective_scan[(1,)](x, a, out, 7, D=8, S=16)
    h = torch.zeros(8, 16)
    for t in range(7):
        h = h * a + x[t][:, None]
        torch.testing.assert_close(out[t], h.sum(1), rtol=1e-5, atol=1e-5)


@triton.jit
def nearest(x, centres, labels, o, n, N: tl.constexpr, C: tl.constexpr, D: tl.constexpr):
    i, c, d = tl.program_id(0) * N + tl.arange(0, N), tl.arange(0, C), tl.arange(0, D)
    a = tl.load(x + i[:, None] * D + d[None, :], mask=(i < n)[:, None], other=0.0)
    b = tl.load(centres + c[:, None] * D + d[None, :])
    distance = tl.sum(a * a, 1)[:, None] - 2 * tl.dot(a, tl.trans(b)) + tl.sum(b * b, 1)[None, :]
    best, which = tl.min(distance, 1, return_indices=True)
    tl.store(labels + i, which, mask=i < n)
    tl.store(o + i, best, mask=i < n)


def test_nearest_centres() -> None:
    x, centres = ramp(40, 16), ramp(8, 16, seed=1)
    labels, best = torch.empty(40, dtype=torch.int32), torch.empty(40)
    nearest[(3,)](x, centres, labels, best, 40, N=16, C=8, D=16)
    distance = torch.cdist(x.double(), centres.double()) ** 2
    assert_equal(labels, distance.argmin(1).int())
    torch.testing.assert_close(best.double(), distance.amin(1), rtol=1e-4, atol=1e-4)
