"""Quantised inputs: found in the graph, taken over by the site, multiplied as integers; the numbers stay the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchsparta
from torchsparta.formats import Block, Dense, FineGrained, QuantizedInt8, Tile
from torchsparta.input_quant import InputQuant
from torchsparta.masked import ModelTeSA, masked_model
from torchsparta.modules import SparseConv2d, SparseLinear
from torchsparta.specialise.pieces import ConvSpec
from torchsparta.specialised import _takes_integers
from torchsparta.tesa import Quant, TeSA
from torchsparta.transform import DenseSite, SparseSite

STEP = 0.03125
QUANTS = {
    "symmetric": InputQuant(STEP, 0.0, -127, 127),
    "unsigned": InputQuant(STEP, 120.0, 0, 255),
    "between integers": InputQuant(0.0299999993, 13.4, 0, 255),
    "few bits": InputQuant(0.25, 1.0, -7, 7),
}
by_quant = pytest.mark.parametrize("quant", QUANTS.values(), ids=QUANTS)


def inputs(*shape: int) -> Tensor:
    """Values inside and far outside of the range, among them many halfway between two steps."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3
    flat = x.view(-1)
    flat[::3] = torch.round(flat[::3] / STEP) * STEP + STEP / 2
    flat[::41], flat[1::53] = float("inf"), -1e30
    return x


def weights(n: int, k: int, keep: float = 0.4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    return torch.randn(n, k, generator=g), torch.rand(n, k, generator=g) < keep


def packings(n: int, k: int):
    w, mask = weights(n, k)
    yield QuantizedInt8.pack(w, mask, fine=True)
    yield QuantizedInt8.pack(w, mask, block=(4, 1))
    yield QuantizedInt8.pack(w, None, tile=Tile(64), group=64)
    yield QuantizedInt8.pack(w, mask, block=(16, 16), tile=Tile(16), group=16)


def reference(part: QuantizedInt8, quant: InputQuant, x: Tensor) -> Tensor:
    """The product in exact integers, scaled in float64."""
    q = quant.integers(x).double() + quant.offset - quant.zero_point
    return q @ part.unpack_integers().double().T * (quant.scale * part.scale.double())


@by_quant
@pytest.mark.parametrize(("n", "k", "m"), [(33, 70, 7), (64, 128, 40)])
def test_integer_kernels(quant, n, k, m):
    x = inputs(m, k)
    for part in packings(n, k):
        bias = torch.randn(n)
        got = SparseLinear((part,), bias, integer=True, input_quant=quant)(x)
        wanted = reference(part, quant, x) + bias
        torch.testing.assert_close(got.double(), wanted, rtol=2e-6, atol=2e-6 * float(wanted.abs().max()))


def test_integer_kernels_bit_for_bit():
    """Without a zero point nothing is rounded but the one scaling of an exact integer."""
    quant, x = QUANTS["symmetric"], inputs(9, 70)
    for part in packings(33, 70):
        exact = (quant.integers(x).long() @ part.unpack_integers().long().T).float()
        wanted = exact * (torch.tensor(quant.scale) * part.scale)
        assert torch.equal(SparseLinear((part,), integer=True, input_quant=quant)(x), wanted)


@pytest.mark.parametrize("k", [257, 258, 259, 1032])
def test_the_largest_sums_are_exact(k):
    """-128 x 127 everywhere: 259 of them no longer fit the bits that a float32 keeps for its sums as they stand."""
    quant, x = QUANTS["unsigned"], torch.full((3, k), -1e9)
    w = torch.ones(8, k)
    w[:, ::7] *= -1
    for part in (QuantizedInt8.pack(w, w > -2, fine=True), QuantizedInt8.pack(w, None)):
        exact = (quant.integers(x).long() + 128 - 120) @ part.unpack_integers().long().T
        wanted = exact.double() * quant.scale * part.scale.double()
        got = SparseLinear((part,), integer=True, input_quant=quant)(x)
        torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=0)


@by_quant
def test_every_way_to_run_a_layer_quantises(quant):
    x = inputs(12, 70).clamp(-50, 50)
    w, mask = weights(33, 70)
    part, bias = QuantizedInt8.pack(w, mask, fine=True), torch.randn(33)
    wanted = torch.nn.functional.linear(quant(x), part.unpack(), bias)
    for integer in (True, False):
        layer = SparseLinear((part,), bias, "relu", integer, input_quant=quant)
        close(layer(x), wanted.relu())
        layer.reason, layer._checked = "as on a device without Triton", x.device
        close(layer(x), wanted.relu())
    real = SparseLinear((FineGrained.pack(w, mask),), bias, input_quant=quant)
    close(real(x), torch.nn.functional.linear(quant(x), w * mask, bias))
    tesa = TeSA.from_mask(mask)
    close(DenseSite(SparseSite("l", "linear", w * mask, bias, tesa, (12, 70), input_quant=quant))(x), real(x))


def close(got: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_gradients_are_those_of_the_fake_quantised_layer():
    quant = QUANTS["unsigned"]
    w, mask = weights(20, 33)
    part = QuantizedInt8.pack(w, mask, fine=True)
    layer = SparseLinear((part,), torch.randn(20), "gelu", True, input_quant=quant)
    layer.bias.requires_grad_(True)
    x, same = (inputs(5, 33).clamp(-9, 9).requires_grad_(True) for _ in range(2))
    layer(x).sum().backward()
    bias = layer.bias.detach().clone().requires_grad_(True)
    nn.functional.gelu(nn.functional.linear(quant(same), part.unpack(), bias)).sum().backward()
    close(layer.bias.grad, bias.grad)
    assert torch.equal(x.grad, same.grad)


def test_saved_layers_quantise_as_before():
    quant, (w, mask) = QUANTS["between integers"], weights(24, 40)
    layer = SparseLinear(
        (QuantizedInt8.pack(w, mask, fine=True),), torch.randn(24), "none", True, input_quant=quant
    )
    other = SparseLinear((FineGrained.pack(w, mask),), torch.zeros(24))
    other.load_state_dict(layer.state_dict())
    x = inputs(6, 40)
    assert other.input_quant == quant and torch.equal(other(x), layer(x))


def test_convolution_with_a_border():
    """Zeros around the image are the integer of 0, which only some quantisers have."""
    w, mask = weights(12, 5 * 9)
    part = QuantizedInt8.pack(w, mask, fine=True)
    conv, x, bias = ConvSpec((3, 3), (1, 1), (1, 1), (1, 1)), inputs(2, 5, 7, 6).clamp(-9, 9), torch.randn(12)
    for name, quant in QUANTS.items():
        dense = part.unpack().view(12, 5, 3, 3)
        site = SparseSite(
            "c", "conv2d", dense, bias, TeSA.from_mask(mask.view(12, 5, 3, 3)), tuple(x.shape),
            attributes={"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}, input_quant=quant,
        )  # fmt: skip
        assert _takes_integers(site) == (name != "between integers")
        layer = SparseConv2d((part,), 5, conv, bias, integer=_takes_integers(site), input_quant=quant)
        close(layer(x), nn.functional.conv2d(quant(x), dense, bias, padding=1))


# -- in whole models ----------------------------------------------------------------------------------------
def quantised(model: nn.Module, zero: float = 0.0, unsigned: bool = False, keep: float = 1.0) -> ModelTeSA:
    """8-bit weights and inputs of every linear and convolution, each input with a scale of its own."""
    tensors: dict[str, TeSA] = {}
    torch.manual_seed(3)
    for n, (name, module) in enumerate(model.named_modules()):
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            continue
        w = module.weight.detach()
        of_weight = Quant((w.abs().max() / 127).double(), torch.zeros(()).double(), 8, -127, 127)
        code = torch.where(torch.rand_like(w) < keep, 8, 0)
        tensors[f"{name}.weight"] = TeSA.from_codes(w.shape, code, None, of_weight)
        limits = (0, 255) if unsigned else (-127, 127)
        of_input = Quant(torch.tensor(0.03 + 0.001 * n).double(), torch.tensor(zero).double(), 8, *limits)
        tensors[f"{name}._input_0"] = TeSA((), torch.tensor(8, dtype=torch.int8), None, of_input)
    return ModelTeSA(tensors)


def agrees(model: nn.Module, tesa: ModelTeSA, x: Tensor, **options) -> nn.Module:
    """The sparse model equals the masked one; where a sum ends next to the middle between two steps, the order of its
    terms decides, and all that follows differs by a step: few elements may."""
    fast = torchsparta.sparsify(model, tesa, (x,), **options)
    with torch.no_grad():
        got, wanted = fast(x), masked_model(model, tesa).eval()(x)
    far = (got - wanted).abs() > 1e-5 * wanted.abs().max()
    assert far.float().mean() < 0.01 and (got - wanted).abs().max() < 0.02 * wanted.abs().max()
    assert not any("round" in str(n.target) for n in fast.graph.nodes), "left in the graph"
    return fast


@pytest.mark.parametrize(
    ("zero", "unsigned", "keep"), [(0.0, False, 1.0), (120.0, True, 0.2), (13.4, True, 0.5)]
)
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_models(kind, zero, unsigned, keep):
    torch.manual_seed(0)
    if kind == "linear":
        model, x = nn.Sequential(nn.Linear(70, 96), nn.ReLU(), nn.Linear(96, 50)), torch.randn(40, 70)
    else:
        model = nn.Sequential(nn.Conv2d(8, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 16, 1))
        x = torch.randn(2, 8, 13, 11)
    agrees(model.eval(), quantised(model, zero, unsigned, keep), x)


def test_large_layers_multiply_integers(monkeypatch):
    monkeypatch.setattr("torchsparta.specialised.cover", cheaper_in_integers(torchsparta.specialised.cover))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 128), nn.GELU(), nn.Linear(128, 64)).eval()
    fast = agrees(model, quantised(model, 120.0, True), torch.randn(33, 96))
    assert all(fast.get_submodule(n).integer for n in "02")


def cheaper_in_integers(cover):
    """As on a machine on which that is so."""

    def patched(*args, integer=False, **more):
        found = cover(*args, integer=integer, **more)
        times = tuple(
            type(p)(p.format, p.time_s * (1e-3 if integer else 1.0), p.flops, p.nbytes) for p in found.table
        )
        return type(found)(found.pack, found.packer, times, found.why, found.dense_s)

    return patched


class Heads(nn.Module):
    """One input for three layers, and for the residual."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(48, 48) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.q(x) * self.k(x) + self.v(x).relu()


def test_an_input_that_others_read_as_well():
    torch.manual_seed(0)
    model = Heads().eval()
    fast = agrees(model, quantised(model, 120.0, True, 0.3), torch.randn(2, 9, 48))
    assert {m.rest.input_quant.scale for m in fast.modules() if hasattr(m, "rest")} == {
        float(torch.tensor(0.03 + 0.001 * n)) for n in (1, 2, 3)
    }


def test_trainable_models_quantise_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16)).eval()
    agrees(model, quantised(model, keep=0.5), torch.randn(20, 32), trainable=True)


def test_models_that_were_saved(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 16)).eval(), torch.randn(20, 32)
    fast = agrees(model, quantised(model, 13.4, True, 0.5), x)
    torchsparta.save(fast, tmp_path / "model.safetensors")
    again = torchsparta.load(tmp_path / "model.safetensors")
    with torch.no_grad():
        close(again(x), fast(x))
    assert {m.rest.input_quant for m in again.modules() if hasattr(m, "rest")} == {
        m.rest.input_quant for m in fast.modules() if hasattr(m, "rest")
    }


def test_dense_parts_and_blocks_meet_the_masked_layer():
    """Formats of real values behind a quantised input: the site quantises for them."""
    quant, (w, mask), x = QUANTS["few bits"], weights(32, 64), inputs(8, 64).clamp(-9, 9)
    for part in (Dense.pack(w * mask, mask, Tile(32)), Block.pack(w, mask, (4, 1), Tile(32))):
        close(SparseLinear((part,), input_quant=quant)(x), nn.functional.linear(quant(x), w * mask))
