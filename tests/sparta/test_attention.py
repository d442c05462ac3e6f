"""Sparse attention against masked attention in fp64, for every mask family, dtype and odd shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchsparta.attention import (
    AttentionPattern,
    SparseAttention,
    block_mask,
    masked_attention,
    nearby_3d,
    patch_order,
    sliding_window,
    with_global_tokens,
)

TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def masks():
    torch.manual_seed(1)
    yield "window", sliding_window(70, 9)
    yield "causal window", sliding_window(50, 8, causal=True)
    yield "blocks", block_mask(torch.rand(4, 4) < 0.5, 16, 55)
    yield "global", with_global_tokens(sliding_window(48, 5), [0, 17])
    yield "nearby", nearby_3d((2, 4, 6), (1, 3, 3))
    yield "random per head", torch.rand(2, 37, 37) < 0.1
    yield "everything", torch.ones(33, 33, dtype=torch.bool)


MASKS = dict(masks())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", MASKS)
def test_equals_masked_attention(name, dtype):
    mask = MASKS[name]
    s = mask.shape[-1]
    q, k, v = (torch.randn(2, 2, s, 24).to(dtype) for _ in range(3))
    got = SparseAttention(mask)(q, k, v)
    want = masked_attention(q.double(), k.double(), v.double(), mask)
    assert got.dtype == dtype
    assert float((got.double() - want).abs().max()) <= TOLERANCE[dtype]


def test_agrees_with_torch():
    mask = sliding_window(40, 7)
    q, k, v = (torch.randn(1, 2, 40, 16, dtype=torch.float64) for _ in range(3))
    want = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(SparseAttention(mask)(q, k, v), want, rtol=1e-10, atol=1e-12)


def test_queries_with_nothing_alive_give_zeros():
    mask = sliding_window(40, 7)
    mask[5] = False
    mask[32:] = False
    q, k, v = (torch.randn(1, 1, 40, 16) for _ in range(3))
    out = SparseAttention(mask)(q, k, v)
    assert torch.equal(out[0, 0, 5], torch.zeros(16))
    assert torch.equal(out[0, 0, 32:], torch.zeros(8, 16))
    assert bool(torch.isfinite(out).all())


def test_transposed_heads_and_scale():
    mask = sliding_window(33, 5)
    q, k, v = (torch.randn(2, 33, 2, 16, dtype=torch.float64).transpose(1, 2) for _ in range(3))
    got = SparseAttention(mask, scale=0.5)(q, k, v)
    torch.testing.assert_close(got, masked_attention(q, k, v, mask, 0.5), rtol=1e-10, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 2), st.floats(0, 1), st.integers(0, 999))
def test_pattern_round_trip(sq, sk, heads, share, seed):
    g = torch.Generator().manual_seed(seed)
    mask = torch.rand(heads, sq, sk, generator=g) < share
    order = torch.randperm(sq, generator=g)
    pattern = AttentionPattern.build(mask, 16, 8, order)
    assert torch.equal(pattern.dense_mask(), mask)
    assert pattern.alive == int(mask.sum())


def test_patch_order_needs_fewer_keys():
    frames = (1, 16, 16)
    mask = nearby_3d(frames, (1, 5, 5))
    raster = AttentionPattern.build(mask)
    patches = AttentionPattern.build(mask, order=patch_order(frames, (1, 4, 8)))
    assert patches.computed_share < raster.computed_share
    assert torch.equal(patches.dense_mask(), raster.dense_mask())


def test_nearby_3d_counts():
    mask = nearby_3d((1, 32, 32), (1, 5, 5))
    assert mask.shape == (1024, 1024)
    counts = mask.sum(1).view(32, 32)
    assert int(counts[16, 16]) == 25
    assert int(counts[0, 0]) == 9
    assert int(nearby_3d((3, 4, 4), (3, 3, 3), causal=True)[0].sum()) == 1


def test_gradients():
    mask = sliding_window(20, 5)
    q, k, v = (torch.randn(1, 2, 20, 16, dtype=torch.float64, requires_grad=True) for _ in range(3))
    got = torch.autograd.grad(SparseAttention(mask)(q, k, v).square().sum(), (q, k, v))
    want = torch.autograd.grad(masked_attention(q, k, v, mask).square().sum(), (q, k, v))
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_bad_masks_are_refused():
    with pytest.raises(ValueError, match="values other than 0 and 1"):
        SparseAttention(torch.full((4, 4), -1e9))
    with pytest.raises(ValueError, match="do not fit a mask of 4 queries by 4 keys"):
        SparseAttention(torch.ones(4, 4))(*(torch.randn(1, 1, 5, 16) for _ in range(3)))
    with pytest.raises(ValueError, match="must be odd"):
        nearby_3d((1, 4, 4), (1, 2, 3))
