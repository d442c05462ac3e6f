"""Sparse layers: same numbers as the masked dense layer, saved and loaded, trained only where alive."""

import io

import pytest
import torch
from torch import nn

from torchsparta.formats import NM, Block, Dense, FineGrained, Int4, QuantizedInt8, Tile
from torchsparta.modules import SparseBmm, SparseConv2d, SparseLinear
from torchsparta.specialise.pieces import ConvSpec
from torchsparta.specialise.program import interpreting


def half(*shape):
    w = torch.randn(*shape, dtype=torch.float64)
    return w, torch.rand(*shape) < 0.5


CONVS = [
    ((1, 1), (1, 1), (0, 0), (1, 1)),
    ((1, 1), (2, 2), (0, 0), (1, 1)),
    ((3, 3), (1, 1), (1, 1), (1, 1)),
    ((3, 3), (2, 2), (1, 1), (1, 1)),
    ((3, 2), (2, 1), (0, 1), (2, 1)),
    ((7, 7), (2, 2), (3, 3), (1, 1)),
]


@pytest.mark.parametrize("geometry", CONVS, ids=str)
@pytest.mark.parametrize("images", [1, 3])
def test_conv2d(geometry, images):
    conv = ConvSpec(*geometry)
    w, m = half(10, 5, *conv.kernel)
    x, bias = torch.randn(images, 5, 11, 13, dtype=torch.float64), torch.randn(10, dtype=torch.float64)
    layer = SparseConv2d((FineGrained.pack(w.flatten(1), m.flatten(1)),), 5, conv, bias, "relu")
    want = nn.functional.conv2d(x, w * m, bias, conv.stride, conv.padding, conv.dilation).relu()
    torch.testing.assert_close(layer(x), want, rtol=1e-11, atol=1e-12)
    residual = torch.randn_like(want)
    torch.testing.assert_close(layer(x, residual), want + residual, rtol=1e-11, atol=1e-12)


def test_conv2d_channels_last_and_unbatched():
    conv = ConvSpec((1, 1), (1, 1), (0, 0), (1, 1))
    w, m = half(6, 8, 1, 1)
    layer = SparseConv2d((FineGrained.pack(w.flatten(1), m.flatten(1)),), 8, conv)
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64).to(memory_format=torch.channels_last)
    want = nn.functional.conv2d(x, w * m)
    torch.testing.assert_close(layer(x), want, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(layer(x[0]), want[0], rtol=1e-11, atol=1e-12)


def test_conv2d_int8():
    conv = ConvSpec((3, 3), (1, 1), (1, 1), (1, 1))
    w, m = half(6, 4, 3, 3)
    packed = QuantizedInt8.pack(w.flatten(1).float(), m.flatten(1), fine=True)
    layer = SparseConv2d((packed,), 4, conv, integer=True)
    x = torch.randn(2, 4, 9, 9)
    want = nn.functional.conv2d(x, packed.unpack().view(6, 4, 3, 3), padding=1)
    assert float((layer(x) - want).abs().max() / want.abs().max()) < 0.02


@pytest.mark.parametrize("kind", ["fine", "block", "dense"])
def test_bmm(kind):
    w, m = half(3, 20, 24)
    tile = Tile(32)
    packer = {
        "fine": lambda d, a: (FineGrained.pack(d, a, tile),),
        "block": lambda d, a: (Block.pack(d, a, (4, 4), tile),),
        "dense": lambda d, a: (Dense.pack(d, a, tile),),
    }[kind]
    layer = SparseBmm.pack(w, m, packer)
    x = torch.randn(3, 9, 24, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x @ (w * m).transpose(1, 2), rtol=1e-11, atol=1e-12)


def layers():
    w, m = half(40, 48)
    w = w.float()
    bias = torch.randn(40)
    yield SparseLinear((FineGrained.pack(w, m),), bias, "gelu")
    yield SparseLinear((Block.pack(w, m, (16, 16)),), bias)
    yield SparseLinear((Dense.pack(w, m),))
    yield SparseLinear((NM.pack(w, torch.arange(48).expand(40, 48) % 4 < 2),))
    yield SparseLinear((QuantizedInt8.pack(w, m, fine=True),), bias, integer=True)
    yield SparseLinear((Int4.pack(w, m, block=(8, 8)),), bias)
    yield SparseLinear((QuantizedInt8.pack(w, m, fine=True), FineGrained.pack(w, ~m)))


@pytest.mark.parametrize("layer", list(layers()), ids=lambda layer: layer.format_name())
def test_state_dict_round_trip(layer):
    saved = io.BytesIO()
    torch.save(layer.state_dict(), saved)
    saved.seek(0)
    other = SparseLinear(
        (FineGrained.pack(torch.zeros(40, 48)),), torch.zeros(40) if layer.bias is not None else None
    )
    other.load_state_dict(torch.load(saved, weights_only=True))
    x = torch.randn(5, 48)
    assert torch.equal(other(x), layer(x))
    assert torch.equal(other.current_weight(), layer.current_weight())
    assert other.format_name() == layer.format_name()


def test_whole_module_is_saved():
    layer = next(iter(layers()))
    x = torch.randn(5, 48)
    layer(x)  # what the first call prepares must not travel
    saved = io.BytesIO()
    torch.save(layer, saved)
    saved.seek(0)
    assert torch.equal(torch.load(saved, weights_only=False)(x), layer(x))


def test_training_moves_only_what_is_alive():
    w, m = half(12, 16)
    dense = nn.Linear(16, 12).double()
    dense.weight.data = (w * m).clone()
    packer = lambda d, a: (FineGrained.pack(d, a),)  # noqa: E731
    layer = SparseLinear(packer(w, m), dense.bias.detach())
    layer.make_trainable(packer, m)
    x = torch.randn(7, 16, dtype=torch.float64, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    optimizers = [torch.optim.SGD(mod.parameters(), 0.1) for mod in (layer, dense)]
    for _ in range(3):
        for mod, inp, opt in ((layer, x, optimizers[0]), (dense, other, optimizers[1])):
            opt.zero_grad()
            inp.grad = None
            mod(inp).square().mean().backward()
            if mod is dense:
                dense.weight.grad *= m
            opt.step()
        torch.testing.assert_close(layer.weight, dense.weight, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(x.grad, other.grad, rtol=1e-10, atol=1e-12)
    assert torch.equal(layer.weight.detach()[~m], torch.zeros(int((~m).sum()), dtype=torch.float64))
    torch.testing.assert_close(layer(x), dense(x), rtol=1e-10, atol=1e-12)


def test_gradient_of_the_input_through_frozen_weights():
    w, m = half(12, 16)
    layer = SparseLinear((FineGrained.pack(w, m),))
    x = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, (w * m).sum(0).expand(3, 16), rtol=1e-11, atol=1e-12)


def test_quantised_layers_refuse_training():
    layer = SparseLinear((QuantizedInt8.pack(torch.randn(4, 4)),))
    with pytest.raises(ValueError, match="quantise afterwards"):
        layer.make_trainable(lambda d, a: (Dense.pack(d, a),))


def test_dense_fallback_says_why(monkeypatch):
    import torchsparta.modules as modules

    monkeypatch.setattr(modules, "can_execute", lambda device: "no backend here")
    w, m = half(12, 16)
    layer = SparseLinear((FineGrained.pack(w, m),), activation="silu")
    x = torch.randn(3, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(x), nn.functional.silu(x @ (w * m).T))
    assert layer.reason == "no backend here"


def test_long_inputs_are_computed_slab_by_slab(monkeypatch):
    import torchsparta.specialise.linear as linear

    monkeypatch.setattr(linear, "SLAB_TOKENS", 16)
    w, m = half(12, 16)
    layer = SparseLinear((FineGrained.pack(w, m),))
    x, residual = torch.randn(3, 13, 16, dtype=torch.float64), torch.randn(3, 13, 12, dtype=torch.float64)
    torch.testing.assert_close(layer(x, residual), x @ (w * m).T + residual, rtol=1e-11, atol=1e-12)
    conv = SparseConv2d((FineGrained.pack(w, m),), 16, ConvSpec((1, 1), (1, 1), (0, 0), (1, 1)))
    image = torch.randn(3, 16, 3, 3, dtype=torch.float64)
    want = nn.functional.conv2d(image, (w * m)[..., None, None])
    torch.testing.assert_close(conv(image), want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("block", [None, (16, 16)])
def test_inputs_of_another_type_than_the_weight(block):
    w = torch.randn(32, 32)
    m = torch.rand(32, 32) < 0.5
    part = FineGrained.pack(w, m) if block is None else Block.pack(w, m, block, Tile(16), 16)
    want_mask = part.unpack()
    x = torch.randn(5, 32, dtype=torch.float64).to(torch.bfloat16)
    got = SparseLinear((part,))(x)
    assert got.dtype == torch.bfloat16
    want = x.double() @ want_mask.double().T
    assert float((got.double() - want).abs().max() / want.abs().max()) < 0.01


@pytest.mark.skipif(interpreting(), reason="Triton's interpreter runs on one thread only")
def test_two_threads_share_a_layer():
    import threading

    w, m = half(40, 64)
    layer = SparseLinear((FineGrained.pack(w, m),))
    inputs = [torch.randn(24, 64, dtype=torch.float64) for _ in range(4)]
    right = []

    def work(x):
        want = x @ (w * m).T
        right.extend(torch.allclose(layer(x), want, rtol=1e-10, atol=1e-10) for _ in range(5))

    threads = [threading.Thread(target=work, args=(x,)) for x in inputs]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert right == [True] * 20
