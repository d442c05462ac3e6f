"""Every format x dtype x odd shape x epilogue against the masked dense product in fp64."""

import pytest
import torch

from torchsparta.formats import NM, Block, Dense, FineGrained, Int4, QuantizedInt8, Tile
from torchsparta.specialise import ACTIVATIONS, SpecialisedLinear
from torchsparta.specialise.pieces import apply_activation, quantize_tokens

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def pruned(n, k, alive_fraction, kind="fine", block=(1, 1)):
    w = torch.randn(n, k, dtype=torch.float64)
    if kind == "nm":
        m = torch.rand(n, k).argsort(1).argsort(1) >= 0
        m &= torch.arange(k) % 4 < 2
    else:
        grid = torch.rand(-(-n // block[0]), -(-k // block[1])) < alive_fraction
        m = grid.repeat_interleave(block[0], 0)[:n].repeat_interleave(block[1], 1)[:, :k]
    return w, m


def pack(kind, w, m, tile):
    return {
        "fine": lambda: FineGrained.pack(w, m, tile),
        "block32x1": lambda: Block.pack(w, m, (32, 1), tile),
        "block16x16": lambda: Block.pack(w, m, (16, 16), tile),
        "block32x32": lambda: Block.pack(w, m, (32, 32), tile),
        "block4x4": lambda: Block.pack(w, m, (4, 4), tile),
        "dense": lambda: Dense.pack(w, m, tile),
        "nm": lambda: NM.pack(w, m),
    }[kind]()


KINDS = {"fine": (1, 1), "block32x1": (32, 1), "block16x16": (16, 16), "block32x32": (32, 32),
         "block4x4": (4, 4), "dense": (1, 1), "nm": (1, 1)}  # fmt: skip


def close(got, want, dtype):
    scale = want.abs().max().clamp(min=1)
    assert float((got.double() - want).abs().max() / scale) <= TOLERANCE[dtype]


ODD = (5, 33, 37)
SHAPES_AND_DTYPES = [
    pytest.param(s, d, id=f"{s}-{d}", marks=[] if s == ODD or d == torch.float32 else [pytest.mark.slow])
    for s in (ODD, (17, 40, 64), (1, 1, 1))
    for d in TOLERANCE
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape,dtype", SHAPES_AND_DTYPES)
def test_linear_equals_the_masked_dense_product(kind, shape, dtype):
    m, n, k = shape
    w, mask = pruned(n, k, 0.3, "nm" if kind == "nm" else "fine", KINDS[kind])
    w = w.to(dtype)
    x = torch.randn(m, k, dtype=torch.float64).to(dtype)
    bias = torch.randn(n, dtype=torch.float64).to(dtype)
    y = SpecialisedLinear((pack(kind, w, mask, Tile(32)),))(x, bias)
    close(y, x.double() @ (w * mask).double().T + bias.double(), dtype)


@pytest.mark.parametrize("kind", ["fine", "block16x16", "dense", "nm"])
def test_column_blocks_give_the_same_product(kind):
    w, mask = pruned(40, 100, 0.4, "nm" if kind == "nm" else "fine", KINDS[kind])
    x = torch.randn(9, 100, dtype=torch.float64)
    packed = pack(kind, w, mask, Tile(32, 32))
    parts = (packed, FineGrained.pack(torch.zeros(40, 100, dtype=torch.float64), None, Tile(32, 32)))
    close(SpecialisedLinear(parts)(x), x @ (w * mask).T, torch.float64)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue(activation):
    w, mask = pruned(19, 24, 0.5)
    x, res, bias = (torch.randn(*s, dtype=torch.float64) for s in ((2, 3, 24), (2, 3, 19), (19,)))
    kernel = SpecialisedLinear((FineGrained.pack(w, mask),), activation)
    want = apply_activation(activation, x @ (w * mask).T + bias) + res
    close(kernel(x, bias, res), want, torch.float64)


def test_parts_are_summed_in_one_kernel():
    tile = Tile(32)
    w = torch.randn(64, 64, dtype=torch.float64)
    blocks = torch.zeros(64, 64, dtype=torch.bool)
    blocks[16:32, 32:48] = blocks[48:64, 0:16] = True
    rest = (torch.rand(64, 64) < 0.1) & ~blocks
    kernel = SpecialisedLinear((Block.pack(w, blocks, (16, 16), tile), FineGrained.pack(w, rest, tile)))
    x = torch.randn(7, 64, dtype=torch.float64)
    close(kernel(x), x @ (w * (blocks | rest)).T, torch.float64)
    assert torch.equal(kernel.dense_weight(), w * (blocks | rest))


def test_non_contiguous_input():
    w, mask = pruned(16, 24, 0.5)
    x = torch.randn(24, 10, dtype=torch.float64).T
    close(SpecialisedLinear((FineGrained.pack(w, mask),))(x), x @ (w * mask).T, torch.float64)


@pytest.mark.parametrize("cls", [QuantizedInt8, Int4])
@pytest.mark.parametrize("layout", [{}, {"fine": True}, {"block": (16, 16)}], ids=str)
def test_integer_arithmetic_is_exact(cls, layout):
    w, mask = pruned(40, 70, 0.4)
    packed = cls.pack(w.float(), mask, tile=Tile(32, 32), **layout)
    x = torch.randn(11, 70) * 3
    y = SpecialisedLinear((packed,), integer=True)(x)
    q, token_scale = quantize_tokens(x)
    acc = q.long() @ packed.unpack_integers().long().T
    want = acc.to(torch.float32) * (token_scale[:, None] * packed.scale[None, :])
    assert torch.equal(y, want)


@pytest.mark.parametrize("cls", [QuantizedInt8, Int4])
@pytest.mark.parametrize("layout", [{}, {"fine": True}, {"block": (4, 4)}], ids=str)
def test_quantised_weights_with_real_inputs(cls, layout):
    w, mask = pruned(40, 70, 0.4)
    packed = cls.pack(w.float(), mask, **layout)
    x = torch.randn(11, 70)
    close(SpecialisedLinear((packed,))(x), x.double() @ packed.unpack().double().T, torch.float32)


def test_mixed_precision_parts():
    tile = Tile(32)
    w = torch.randn(40, 48)
    high = torch.rand(40, 48) < 0.1
    low = (torch.rand(40, 48) < 0.3) & ~high
    int8 = QuantizedInt8.pack(w, low, fine=True, tile=tile)
    kernel = SpecialisedLinear((int8, FineGrained.pack(w, high, tile)))
    x = torch.randn(5, 48)
    want = x.double() @ (int8.unpack() + w * high).double().T
    close(kernel(x), want, torch.float32)


def test_inexact_integer_sums_are_refused():
    packed = QuantizedInt8.pack(torch.randn(8, 2000))
    with pytest.raises(ValueError, match="column block of at most 1032"):
        SpecialisedLinear((packed,), integer=True)


def test_dead_weight_gives_the_bias():
    kernel = SpecialisedLinear((FineGrained.pack(torch.randn(6, 8), torch.zeros(6, 8)),))
    bias = torch.randn(6)
    assert torch.equal(kernel(torch.randn(3, 8), bias), bias.expand(3, 6))


def test_no_tokens():
    kernel = SpecialisedLinear((FineGrained.pack(torch.randn(6, 8)),))
    assert kernel(torch.randn(0, 8)).shape == (0, 6)
