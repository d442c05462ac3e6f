"""Loads, stores and atomics: every way to address memory, and the order in which tiles read and write it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import triton.language as tl
from oracle import assert_equal, needs_backend, ramp, sweep, triton

pytestmark = needs_backend

TYPES = [torch.bool, torch.int8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]


@triton.jit
def copy(p, o, n, step, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(o + i, tl.load(p + i * step, mask=i < n), mask=i < n)


@pytest.mark.parametrize("dtype", sweep(TYPES, [torch.bool, torch.bfloat16, torch.float32]), ids=str)
@pytest.mark.parametrize("step", sweep([0, 1, 2, 3], [1, 3]))
@pytest.mark.parametrize("tile", sweep([1, 2, 16, 128], [1, 128]))
def test_strided_loads(dtype: torch.dtype, step: int, tile: int) -> None:
    n = 77
    p, out = ramp(300, dtype=dtype), torch.zeros(100, dtype=dtype)
    copy[(triton.cdiv(n, tile),)](p, out, n, step, N=tile)
    assert_equal(out[:n], p[torch.arange(n) * step])
    assert not out[n:].any()


@triton.jit
def with_other(p, o, n, other, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o + i, tl.load(p + i, mask=i < n, other=other))
    tl.store(o + N + i, tl.load(p + i, mask=(i < n) & (i % 3 != 0), other=7))
    tl.store(o + 2 * N + i, tl.load(p + i * 0, mask=i < n, other=-1))
    tl.store(o + 3 * N + i, tl.load(p + i * 2, mask=i * 2 < n, other=i))


@pytest.mark.parametrize("n", [0, 1, 15, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.float16, torch.int8], ids=str)
def test_masked_loads_with_other(n: int, dtype: torch.dtype) -> None:
    p, i = ramp(64, dtype=dtype), torch.arange(64)
    out = torch.empty(4, 64, dtype=dtype)
    with_other[(1,)](p, out, n, 5, N=64)
    assert_equal(out[0], torch.where(i < n, p, 5).to(dtype))
    assert_equal(out[1], torch.where((i < n) & (i % 3 != 0), p, 7).to(dtype))
    assert_equal(out[2], torch.where(i < n, p[0], -1).to(dtype))
    assert_equal(out[3], torch.where(i * 2 < n, p[(2 * i) % 64], i.to(dtype)).to(dtype))


@triton.jit
def masked_off(p, o, N: tl.constexpr):
    i = tl.arange(0, N)
    bad = i.to(tl.int64) + 1099511627776  # far outside of any allocation
    x = tl.load(p + bad, mask=i < 0, other=3.0)
    y = tl.load(p + bad * 2, mask=i < 0, other=4.0)
    s = tl.load(p + 1099511627776, mask=False, other=5.0)
    tl.store(p + bad, x, mask=i < 0)
    tl.store(o + i, x + y + s)


def test_masked_off_accesses_touch_nothing() -> None:
    out = torch.zeros(32)
    masked_off[(1,)](torch.zeros(1), out, N=32)
    assert (out == 12).all()


@triton.jit
def gather_scatter(p, index, o, q, N: tl.constexpr):
    i = tl.arange(0, N)
    at = tl.load(index + i)
    x = tl.load(p + at)
    tl.store(o + i, x)
    tl.store(q + at, x * 2, mask=at != 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize("kind", [torch.int32, torch.int64], ids=str)
def test_gather_and_scatter(dtype: torch.dtype, kind: torch.dtype) -> None:
    p, index = ramp(64, dtype=dtype), torch.randperm(64).to(kind)
    out, q = torch.empty(64, dtype=dtype), torch.zeros(64, dtype=dtype)
    gather_scatter[(1,)](p, index, out, q, N=64)
    assert_equal(out, p[index.long()])
    want = p * 2
    want[3] = 0
    assert_equal(q, want)


@triton.jit
def tile_2d(p, o, m, n, row, col, orow, ocol, M: tl.constexpr, N: tl.constexpr):
    i = (tl.program_id(0) * M + tl.arange(0, M))[:, None]
    j = (tl.program_id(1) * N + tl.arange(0, N))[None, :]
    inside = (i < m) & (j < n)
    x = tl.load(p + i * row + j * col, mask=inside, other=0.0)
    tl.store(o + i * orow + j * ocol, x + 1, mask=inside)


@pytest.mark.parametrize(
    "tile", sweep([(1, 1), (1, 64), (64, 1), (2, 8), (16, 16), (32, 64)], [(1, 64), (16, 16)])
)
@pytest.mark.parametrize("layout", ["nn", "tn", "nt", "tt"])
def test_tiles_of_two_dimensions(tile: tuple[int, int], layout: str) -> None:
    m, n = 37, 45
    p = ramp(m, n) if layout[0] == "n" else ramp(n, m).T
    out = torch.zeros(m, n) if layout[1] == "n" else torch.zeros(n, m).T
    grid = (triton.cdiv(m, tile[0]), triton.cdiv(n, tile[1]))
    tile_2d[grid](p, out, m, n, *p.stride(), *out.stride(), M=tile[0], N=tile[1])
    assert_equal(out, p + 1)


@triton.jit
def tile_3d(p, o, A: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    a, b, c = tl.arange(0, A)[:, None, None], tl.arange(0, B)[None, :, None], tl.arange(0, C)[None, None, :]
    x = tl.load(p + (a * B + b) * C + c)
    tl.store(o + (c * A + a) * B + b, x)


@pytest.mark.parametrize("shape", [(2, 4, 8), (1, 16, 2), (16, 1, 16), (4, 32, 1), (2, 32, 16), (16, 2, 32)])
def test_tiles_of_three_dimensions(shape: tuple[int, int, int]) -> None:
    p = ramp(*shape)
    out = torch.empty(shape[2], shape[0], shape[1])
    tile_3d[(1,)](p, out, *shape)
    assert_equal(out, p.permute(2, 0, 1).contiguous())


@triton.jit
def windows(p, o, q, h, w, c, A: tl.constexpr, W: tl.constexpr, C: tl.constexpr):
    y = tl.program_id(0)
    a, x, k = tl.arange(0, A)[:, None, None], tl.arange(0, W)[None, :, None], tl.arange(0, C)[None, None, :]
    inside = (x < w) & (k < c)
    at = ((a * h + y) * w + x) * c + k
    left = tl.load(p + at - c, mask=inside & (x > 0), other=0.0)
    here = tl.load(p + at, mask=inside, other=0.0)
    right = tl.load(p + at + c, mask=inside & (x + 1 < w), other=0.0)
    to = ((a * c + k) * h + y) * w + x
    tl.store(o + to, left + here + right, mask=inside)
    tl.store(q + to, left - right, mask=inside)


@pytest.mark.parametrize("tile", [(1, 16, 16), (2, 32, 16), (2, 16, 32), (2, 8, 16)])
def test_windows_over_channels_are_stored_by_channel(tile: tuple[int, int, int]) -> None:
    """Several loads run along the channels and the stores across them: results are turned, not what is read."""
    images, h, w, c = tile[0], 3, tile[1] - 3, tile[2] - 1
    p = ramp(images, h, w, c)
    out, other = torch.zeros(images, c, h, w), torch.zeros(images, c, h, w)
    windows[(h,)](p, out, other, h, w, c, A=tile[0], W=tile[1], C=tile[2])
    wide = torch.nn.functional.pad(p, (0, 0, 1, 1))
    left, right = wide[:, :, :-2], wide[:, :, 2:]
    assert_equal(out, (left + p + right).permute(0, 3, 1, 2).contiguous())
    assert_equal(other, (left - right).permute(0, 3, 1, 2).contiguous())


@triton.jit
def transposed(p, o, n, M: tl.constexpr, N: tl.constexpr):
    i, j = tl.arange(0, M), tl.arange(0, N)
    x = tl.load(p + i[:, None] * N + j[None, :], mask=(i < n)[:, None], other=0)
    tl.store(o + j[:, None] * M + i[None, :], tl.trans(x), mask=(i < n)[None, :])


@pytest.mark.parametrize("dtype", sweep(TYPES, [torch.bool, torch.bfloat16, torch.float32]), ids=str)
@pytest.mark.parametrize("shape", sweep([(1, 8), (4, 4), (16, 16), (32, 64), (64, 2)], [(4, 4), (32, 64)]))
def test_transposed_stores(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    p = ramp(*shape, dtype=dtype)
    for n in (shape[0], (shape[0] + 1) // 2):
        out = torch.zeros(shape[::-1], dtype=dtype)
        transposed[(1,)](p, out, n, *shape)
        assert_equal(out[:, :n], p[:n].T)
        assert not out[:, n:].any()


@triton.jit
def panel(x, xp, m, k, BM: tl.constexpr, BK: tl.constexpr):
    row = tl.program_id(0) // 2 * BM + tl.arange(0, BM)
    col = tl.program_id(0) % 2 * BK + tl.arange(0, BK)
    inside = (row < m)[:, None] & (col < k)[None, :]
    t = tl.load(x + row[:, None] * k + col[None, :], mask=inside, other=0.0)
    place = tl.program_id(0) * BM * BK + tl.arange(0, BK)[:, None] * BM + tl.arange(0, BM)[None, :]
    tl.store(xp + place, tl.trans(t))


@pytest.mark.parametrize(("bm", "bk"), [(1, 16), (16, 16), (16, 32), (64, 1), (2, 64)])
def test_masked_panels(bm: int, bk: int) -> None:
    m, k = bm + (bm + 1) // 2, bk + (bk + 1) // 2
    x, out = ramp(m, k), torch.full((4, bk, bm), 9.0)
    panel[(4,)](x, out, m, k, bm, bk)
    want = torch.zeros(2 * bm, 2 * bk)
    want[:m, :k] = x
    blocks = want.view(2, bm, 2, bk).permute(0, 2, 3, 1).reshape(4, bk, bm)
    assert_equal(out, blocks)


@triton.jit
def updates(p, q, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(p + i)
    tl.store(p + i, x * 2)
    tl.store(q + i, x)  # what was read before the first store
    y = tl.load(p + i)
    tl.store(q + N + i, y + x)


@pytest.mark.parametrize("count", [1, 8, 64, 512])
def test_updates_in_place(count: int) -> None:
    p, q = ramp(count), torch.empty(2, count)
    before = p.clone()
    updates[(1,)](p, q, N=count)
    assert_equal(p, before * 2)
    assert_equal(q[0], before)
    assert_equal(q[1], before * 2 + before)


@triton.jit
def shifted(p, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(p + 1 + i, tl.load(p + i))


@triton.jit
def reversed_(p, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(p + N - 1 - i, tl.load(p + i))


@triton.jit
def transposed_in_place(p, N: tl.constexpr):
    i, j = tl.arange(0, N)[:, None], tl.arange(0, N)[None, :]
    tl.store(p + j * N + i, tl.load(p + i * N + j))


@triton.jit
def row_to_next(p, N: tl.constexpr):
    i = tl.arange(0, N)
    below = p + tl.program_id(0) * N
    tl.store(below + 3 + i, tl.load(below + i) + 1)


@triton.jit
def through_index(p, index, N: tl.constexpr):
    i = tl.arange(0, N)
    at = tl.load(index + i)
    tl.store(p + at, tl.load(p + at) + 1)


@pytest.mark.parametrize("count", [4, 32, 128])
def test_a_tile_is_read_before_it_is_written(count: int) -> None:
    p = ramp(count + 1)
    want = torch.cat([p[:1], p[:-1]])
    shifted[(1,)](p, N=count)
    assert_equal(p, want)

    p = ramp(count)
    want = p.flip(0)
    reversed_[(1,)](p, N=count)
    assert_equal(p, want)

    p = ramp(count, count)
    want = p.T.contiguous()
    transposed_in_place[(1,)](p, N=count)
    assert_equal(p, want)

    p = ramp(count + 3)
    want = torch.cat([p[:3], p[:count] + 1])
    row_to_next[(1,)](p, N=count)
    assert_equal(p, want)

    p, index = ramp(count), torch.arange(count) // 2
    want = p.clone()
    want[: count // 2] += 1
    through_index[(1,)](p, index, N=count)
    assert_equal(p, want)


@triton.jit
def index_changes(p, index, o, N: tl.constexpr):
    i = tl.arange(0, N)
    where = p + tl.load(index + i)
    tl.store(index + i, i * 0)
    tl.store(o + i, tl.load(where + 1))


def test_pointers_are_computed_when_their_index_was_read() -> None:
    p, out = ramp(65), torch.empty(64)
    index = torch.randperm(64).to(torch.int32)
    kept = index.clone()
    index_changes[(1,)](p, index, out, N=64)
    assert_equal(out, p[kept.long() + 1])
    assert not index.any()


@triton.jit
def scalars(p, o):
    x = tl.load(p)
    y = tl.load(p + 1, volatile=True)
    tl.store(p, x + y)
    tl.store(o, x)
    tl.store(o + 1, tl.load(p))
    if x > 100:
        tl.store(o + 2, 1.0)


def test_scalars() -> None:
    p, out = torch.tensor([1.0, 2.0]), torch.zeros(3)
    scalars[(1,)](p, out)
    assert p.tolist() == [3, 2] and out.tolist() == [1, 3, 0]


@triton.jit
def table(pointers, sizes, o, N: tl.constexpr):
    g = tl.program_id(0)
    i = tl.arange(0, N)
    source = tl.load(pointers + g).to(tl.pointer_type(tl.float32))
    n = tl.load(sizes + g)
    tl.store(o + g * N + i, tl.load(source + i, mask=i < n, other=0.0))


@triton.jit
def table_of_rows(pointers, o, M: tl.constexpr, N: tl.constexpr):
    g = tl.arange(0, M)
    rows = tl.load(pointers + g).to(tl.pointer_type(tl.float32))
    i = tl.arange(0, N)
    x = tl.load(rows[:, None] + i[None, :])
    tl.store(o + g[:, None] * N + i[None, :], x)


def test_pointers_loaded_from_memory() -> None:
    parts = [ramp(n, seed=n) for n in (32, 5, 17, 32)]
    pointers = torch.tensor([t.data_ptr() for t in parts])
    out = torch.empty(4, 32)
    table[(4,)](pointers, torch.tensor([t.numel() for t in parts]), out, N=32)
    for row, t in zip(out, parts):
        assert_equal(row[: len(t)], t)
        assert not row[len(t) :].any()
    block = torch.empty(4, 4)
    table_of_rows[(1,)](pointers, block, M=4, N=4)
    assert_equal(block, torch.stack([t[:4] for t in parts]))


@triton.jit
def described(p, o, m, n, M: tl.constexpr, N: tl.constexpr):
    source = tl.make_tensor_descriptor(p, shape=[m, n], strides=[n, 1], block_shape=[M, N])
    target = tl.make_tensor_descriptor(o, shape=[m, n], strides=[n, 1], block_shape=[M, N])
    i, j = tl.program_id(0) * M, tl.program_id(1) * N
    target.store([i, j], source.load([i, j]) * 2)


@triton.jit
def blocks(p, o, m, n, M: tl.constexpr, N: tl.constexpr):
    at = (tl.program_id(0) * M, 0)
    source = tl.make_block_ptr(p, (m, n), (n, 1), at, (M, N), (1, 0))
    target = tl.make_block_ptr(o, (m, n), (n, 1), at, (M, N), (1, 0))
    for _ in range(0, n, N):
        x = tl.load(source, boundary_check=(0, 1), padding_option="zero")
        tl.store(target, x * 2, boundary_check=(0, 1))
        source = tl.advance(source, (0, N))
        target = tl.advance(target, (0, N))


@pytest.mark.parametrize("shape", [(32, 64), (33, 60), (5, 100)])
def test_descriptors_and_block_pointers(shape: tuple[int, int]) -> None:
    p = ramp(*shape)
    for kernel in (described, blocks):
        out = torch.zeros(*shape)
        kernel[(triton.cdiv(shape[0], 16), triton.cdiv(shape[1], 32))](p, out, *shape, M=16, N=32)
        assert_equal(out, p * 2, str(kernel))


@triton.jit
def host_described(source, target, M: tl.constexpr, N: tl.constexpr):
    i, j = tl.program_id(0) * M, tl.program_id(1) * N
    target.store([i, j], source.load([i, j]) + 1)


def test_descriptors_made_on_the_host() -> None:
    from triton.tools.tensor_descriptor import TensorDescriptor

    p, out = ramp(40, 48), torch.zeros(40, 48)
    source, target = (TensorDescriptor.from_tensor(t, [16, 16]) for t in (p, out))
    host_described[(3, 3)](source, target, M=16, N=16)
    assert_equal(out, p + 1)


@triton.jit
def unused(o, p, n):
    tl.store(o, n)


def test_null_pointers_and_empty_grids() -> None:
    out = torch.zeros(1)
    unused[(1,)](out, None, 3)
    assert out.item() == 3
    unused[(0,)](out, None, 4)
    assert out.item() == 3


CONSTANTS = """
module {
  tt.func public @kernel(%o: !tt.ptr<f32>, %q: !tt.ptr<i32>) {
    %i = tt.make_range {end = 4 : i32, start = 0 : i32} : tensor<4xi32>
    %c = arith.constant dense<[1.5, -2.0, 0x7F800000, 3.0]> : tensor<4xf32>
    %p = tt.splat %o : !tt.ptr<f32> -> tensor<4x!tt.ptr<f32>>
    %a = tt.addptr %p, %i : tensor<4x!tt.ptr<f32>>, tensor<4xi32>
    tt.store %a, %c : tensor<4x!tt.ptr<f32>>
    %d = arith.constant dense<[7, -1, 0, 2]> : tensor<4xi32>
    %s = tt.splat %q : !tt.ptr<i32> -> tensor<4x!tt.ptr<i32>>
    %b = tt.addptr %s, %i : tensor<4x!tt.ptr<i32>>, tensor<4xi32>
    tt.store %b, %d : tensor<4x!tt.ptr<i32>>
    tt.return
  }
}
"""


def test_constant_tiles_of_differing_elements(tmp_path: Path) -> None:
    """Triton's Python frontend writes none; a module given as text may."""
    (tmp_path / "kernel.ttir").write_text(CONSTANTS)
    kernel = triton.compile(str(tmp_path / "kernel.ttir"))
    out, ints = torch.zeros(4), torch.zeros(4, dtype=torch.int32)
    kernel[(1, 1, 1)](out, ints)
    assert out.tolist() == [1.5, -2.0, float("inf"), 3.0]
    assert ints.tolist() == [7, -1, 0, 2]
