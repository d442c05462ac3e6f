"""The block-dot kernel: every block size, dtype and odd shape against fp64; int8 bit for bit."""

import pytest
import torch

from torchsparta.formats import Block, Dense, FineGrained, Int4, QuantizedInt8, Tile
from torchsparta.specialise import ACTIVATIONS, BlockDotLinear, specialise
from torchsparta.specialise.pieces import apply_activation, quantize_tokens
from torchsparta.specialised import pattern_mask

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
LAYOUTS = {"16x16": (16, 16), "32x32": (32, 32), "64x16": (64, 16), "dense": None}


def pack(layout, w, mask):
    block = LAYOUTS[layout]
    if block is None:
        return Dense.pack(w, mask, Tile(32), group=32)
    return Block.pack(w, mask, block, Tile(block[0]), group=block[0])


def pack_integers(cls, layout, w, mask):
    block = LAYOUTS[layout]
    if block is None:
        return cls.pack(w, mask, tile=Tile(32), group=32)
    return cls.pack(w, mask, block=block, tile=Tile(block[0]), group=block[0])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(5, 33, 37), (17, 64, 128)], ids=str)
def test_equals_the_masked_dense_product(layout, shape, dtype):
    m, n, k = shape
    w = torch.randn(n, k, dtype=torch.float64).to(dtype)
    mask = pattern_mask("block 16x16 60%", (n, k))
    x, bias = torch.randn(m, k, dtype=torch.float64).to(dtype), torch.randn(n, dtype=torch.float64).to(dtype)
    kernel = specialise((pack(layout, w, mask),))
    assert isinstance(kernel, BlockDotLinear)
    want = x.double() @ (w * mask).double().T + bias.double()
    got = kernel(x, bias)
    assert got.dtype == dtype
    assert float((got.double() - want).abs().max() / want.abs().max().clamp(min=1)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("cls", [QuantizedInt8, Int4])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(5, 33, 37), (17, 64, 2048)], ids=str)
def test_integer_arithmetic_is_exact(cls, layout, shape):
    m, n, k = shape
    packed = pack_integers(cls, layout, torch.randn(n, k), pattern_mask("block 16x16 50%", (n, k)))
    x = torch.randn(m, k) * 3
    y = specialise((packed,), integer=True)(x)
    q, token_scale = quantize_tokens(x)
    acc = q.long() @ packed.unpack_integers().long().T
    assert torch.equal(y, acc.to(torch.float32) * (token_scale[:, None] * packed.scale[None, :]))


@pytest.mark.parametrize("cls", [QuantizedInt8, Int4])
@pytest.mark.parametrize("layout", ["16x16", "dense"])
def test_quantised_weights_with_real_inputs(cls, layout):
    packed = pack_integers(cls, layout, torch.randn(40, 72), pattern_mask("block 16x16 50%", (40, 72)))
    x = torch.randn(11, 72)
    want = x.double() @ packed.unpack().double().T
    assert float((specialise((packed,))(x).double() - want).abs().max() / want.abs().max()) <= 2e-6


@pytest.mark.parametrize("activation", ["none", "gelu", "silu"])
def test_epilogue_and_strides(activation):
    assert activation in ACTIVATIONS
    w, mask = torch.randn(40, 64, dtype=torch.float64), pattern_mask("block 16x16 50%", (40, 64))
    x = torch.randn(2, 64, 9, dtype=torch.float64).transpose(1, 2)
    res, bias = torch.randn(2, 9, 40, dtype=torch.float64), torch.randn(40, dtype=torch.float64)
    kernel = specialise((pack("16x16", w, mask),), activation)
    want = apply_activation(activation, x @ (w * mask).T + bias) + res
    for _ in range(2):  # the second call runs from the prepared launch blocks
        torch.testing.assert_close(kernel(x, bias, res), want, rtol=1e-11, atol=1e-11)


def test_other_parts_take_the_row_group_kernel():
    assert not isinstance(specialise((FineGrained.pack(torch.randn(8, 8)),)), BlockDotLinear)
    with pytest.raises(ValueError, match="below 16 x 16"):
        BlockDotLinear(Block.pack(torch.randn(32, 32), None, (4, 4)))
