"""Laws of the formats: unpack(pack(w, m)) == w * m, exactly, for every format, dtype and odd shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchsparta.formats import NM, Block, Dense, FineGrained, Int4, QuantizedInt8, Tile, fits_nm
from torchsparta.formats.quantized import pack_nibbles, quantize, unpack_nibbles

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int8]


def weight(n: int, k: int, density: float, seed: int, dtype: torch.dtype = torch.float32):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(n, k, generator=g)
    w = (w * 20).to(dtype) if dtype == torch.int8 else w.to(dtype)
    return w, torch.rand(n, k, generator=g) < density


sizes = st.tuples(st.integers(1, 70), st.integers(1, 70), st.floats(0, 1), st.integers(0, 9999))
tiles = st.builds(Tile, st.sampled_from([8, 16, 32, 64]), st.sampled_from([0, 4, 12, 32]))


@settings(max_examples=60, deadline=None)
@given(sizes, tiles, st.sampled_from(DTYPES), st.sampled_from([1, 2, 4]))
def test_fine_grained_round_trip(size, tile, dtype, unroll):
    w, m = weight(*size, dtype)
    packed = FineGrained.pack(w, m, tile, unroll)
    assert torch.equal(packed.unpack(), w * m)
    assert int((packed.idx < w.shape[1]).sum()) == int(m.sum())
    assert bool(((packed.ptr[..., 1:] - packed.ptr[..., :-1]) % unroll == 0).all())
    assert unroll > 1 or packed.entries == packed.work().macs == int(m.sum())


@settings(max_examples=60, deadline=None)
@given(sizes, st.sampled_from([(32, 1), (16, 16), (32, 32), (4, 4), (1, 8), (8, 3)]), st.booleans())
def test_block_round_trip(size, block, blocked_columns):
    w, m = weight(*size)
    tile = Tile(32, block[1] * 3 if blocked_columns else 0)
    assert torch.equal(Block.pack(w, m, block, tile).unpack(), w * m)


def test_block_stores_only_alive_blocks():
    m = torch.zeros(64, 96, dtype=torch.bool)
    m[35, 40] = True
    packed = Block.pack(torch.randn(64, 96), m, (16, 16))
    assert packed.entries * packed.width * packed.group == 16 * 16


@settings(max_examples=40, deadline=None)
@given(sizes, st.sampled_from([1, 4, 8]))
def test_dense_round_trip(size, group):
    w, m = weight(*size)
    assert torch.equal(Dense.pack(w, m, group=group).unpack(), w * m)
    assert torch.equal(Dense.pack(w, group=group).unpack(), w)


@settings(max_examples=40, deadline=None)
@given(sizes, st.sampled_from([(2, 4), (1, 4), (4, 8), (1, 1)]))
def test_nm_round_trip(size, nm):
    w, m = weight(*size)
    n_alive, n_of = nm
    n, k = w.shape
    keep = torch.arange(k) % n_of < n_alive
    m &= keep
    assert fits_nm(m, n_alive, n_of)
    packed = NM.pack(w, m, n_alive, n_of)
    assert torch.equal(packed.unpack(), w * m)
    if n_alive > 1:
        assert bool((packed.meta[..., 1:] > packed.meta[..., :-1]).all())


def test_nm_refuses_a_full_run_and_says_where():
    m = torch.zeros(3, 8, dtype=torch.bool)
    m[2, 4:7] = True
    with pytest.raises(ValueError, match=r"row 2, columns 4\.\.7 have 3 alive elements, 2:4 allows 2"):
        NM.pack(torch.randn(3, 8), m)


@settings(max_examples=40, deadline=None)
@given(sizes, st.sampled_from(["dense", "fine", "block"]), st.sampled_from([QuantizedInt8, Int4]))
def test_quantized_round_trip(size, how, cls):
    w, m = weight(*size)
    layout = {"dense": {}, "fine": {"fine": True}, "block": {"block": (8, 8)}}[how]
    packed = cls.pack(w, m, **layout)
    q = quantize(w * m, packed.scale, cls.bits)
    assert torch.equal(packed.unpack_integers(), q)
    assert torch.equal(packed.unpack(), q.float() * packed.scale[:, None])
    assert float((packed.unpack() - w * m).abs().max()) <= float(packed.scale.max()) * 0.5001
    # What is representable comes back unchanged.
    assert torch.equal(cls.pack(packed.unpack(), m, scale=packed.scale, **layout).unpack(), packed.unpack())


@settings(deadline=None)
@given(st.lists(st.integers(-8, 7), min_size=1, max_size=33))
def test_nibbles_round_trip(values):
    t = torch.tensor(values, dtype=torch.int8)
    packed = pack_nibbles(t)
    assert packed.numel() == (len(values) + 1) // 2
    assert torch.equal(unpack_nibbles(packed, (len(values),)), t)


def test_int4_is_half_the_bytes_of_int8():
    w = torch.randn(64, 64)
    assert Int4.pack(w).inner.nbytes * 2 == QuantizedInt8.pack(w).inner.nbytes


@pytest.mark.parametrize("cls", [FineGrained, Block, NM])
def test_bad_masks_are_refused(cls):
    with pytest.raises(ValueError, match=r"mask has shape \(3, 4\), the weight \(4, 4\)"):
        cls.pack(torch.randn(4, 4), torch.ones(3, 4))
    with pytest.raises(ValueError, match="other than 0 and 1"):
        cls.pack(torch.randn(4, 4), torch.full((4, 4), 0.5))


def test_all_dead_and_all_alive():
    w = torch.randn(5, 7)
    dead = FineGrained.pack(w, torch.zeros(5, 7))
    assert dead.entries == 0
    assert torch.equal(dead.unpack(), torch.zeros(5, 7))
    assert torch.equal(FineGrained.pack(w, torch.ones(5, 7)).unpack(), w)


def test_heaviest_row_block_first():
    m = torch.zeros(96, 16, dtype=torch.bool)
    m[32:64] = True
    m[64:70] = True
    order = FineGrained.pack(torch.randn(96, 16), m, Tile(32)).balanced_order()
    assert order.tolist() == [1, 2, 0]
