"""The choice: covers at the least predicted time, sites that become sparse layers, predictions by pattern."""

import dataclasses

import pytest
import torch
from torch import nn

import torchsparta
from torchroller.device import DeviceSpec
from torchsparta.cost import Rates, time_of
from torchsparta.cover import cover
from torchsparta.formats import Block, FineGrained, QuantizedInt8
from torchsparta.modules import SparseConv2d, SparseLinear
from torchsparta.rates import shipped_rates
from torchsparta.specialise import SpecialisedLinear
from torchsparta.specialised import pattern_mask, predict, specialised
from torchsparta.tesa import Quant, TeSA
from torchsparta.transform import DenseSite, Epilogue, SparseSite

MAC_S = {"1": 2e-11, "2": 1.6e-11, "4": 1.3e-11, "8": 1.2e-11, "dense": 1.2e-11, "nm": 2e-11,
         "dot16": 1.6e-11, "dot32": 1.25e-11, "dotdense": 1.22e-11}  # fmt: skip
FAST = Rates(
    device="test", threads=1, launch_s=1e-5, panel_s=1e-10, epilogue_s=1e-10, store_s=1e-11, quantise_s=1e-10,
    list_s=1e-9, mac_s=MAC_S, dense_launch_s=3e-6, dense_mac_s=1.2e-11, source="made up for tests",
)  # fmt: skip


def site(weight, mask, op="linear", tokens=128, **kwargs):
    shape = (tokens, weight.shape[1]) if op == "linear" else (2, weight.shape[1], 9, 9)
    tesa = kwargs.pop("tesa", None) or TeSA.from_mask(mask)
    return SparseSite("layer", op, weight * mask, kwargs.pop("bias", None), tesa, shape, **kwargs)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("unstructured 99%", "fine-grained"),
        ("block 32x1 90%", "block"),
        ("block 16x16 90%", "block"),
        ("dense", "dense"),
    ],
)
def test_the_pattern_decides(pattern, expected):
    found = predict((256, 256), pattern, rates=FAST)
    assert found.table[0].format.startswith(expected)
    assert [p.time_s for p in found.table] == sorted(p.time_s for p in found.table)


def test_a_little_sparsity_stays_dense_and_says_so():
    w = torch.randn(256, 256)
    found = cover(w, pattern_mask("unstructured 10%", (256, 256)), 128, rates=FAST)
    assert found.parts is None
    assert "stays dense" in found.why


def test_mixed_cover_sums_to_the_weight():
    mask = pattern_mask("block 8x1 90%", (128, 128)) | pattern_mask("unstructured 98%", (128, 128), seed=1)
    w = torch.randn(128, 128, dtype=torch.float64)
    cheap = {**FAST.mac_s, "8": 4e-12, "4": 1e-11}
    found = cover(
        w,
        mask,
        4096,
        rates=dataclasses.replace(FAST, list_s=0.0, panel_s=0.0, epilogue_s=0.0, mac_s=cheap),
    )
    assert found.parts is not None
    assert {type(p) for p in found.parts} == {Block, FineGrained}
    assert torch.equal(sum(p.unpack() for p in found.parts), w * mask)
    x = torch.randn(5, 128, dtype=torch.float64)
    torch.testing.assert_close(SpecialisedLinear(found.parts)(x), x @ (w * mask).T, rtol=1e-11, atol=1e-11)


def test_predicted_work_is_that_of_the_packed_parts():
    """The search predicts from counts alone; what it packs must then be what it predicted."""
    for pattern in ("unstructured 90%", "block 16x16 75%", "block 32x1 90%", "unstructured 60%"):
        mask = pattern_mask(pattern, (160, 200))
        w = torch.randn(160, 200)
        found = cover(w, mask, 128, rates=dataclasses.replace(FAST, dense_mac_s=1.0))
        assert found.parts is not None
        from torchsparta.cost import predict_parts

        packed = predict_parts(found.parts, 128, FAST)
        assert packed.time_s == pytest.approx(found.table[0].time_s, rel=0.1)


def test_linear_site_becomes_a_sparse_layer():
    w, mask = torch.randn(48, 64, dtype=torch.float64), pattern_mask("unstructured 95%", (48, 64))
    bias = torch.randn(48, dtype=torch.float64)
    s = site(w, mask, bias=bias, tokens=64, epilogue=(Epilogue("gelu"), Epilogue("add")))
    layer = specialised(s, dataclasses.replace(FAST, dense_launch_s=1.0))
    assert isinstance(layer, SparseLinear)
    assert "predicted" in layer.sparta_reason
    x, res = torch.randn(64, 64, dtype=torch.float64), torch.randn(64, 48, dtype=torch.float64)
    want = nn.functional.gelu(x @ (w * mask).T + bias) + res
    torch.testing.assert_close(layer(x, res), want, rtol=1e-10, atol=1e-11)
    back = layer.sparta_site()
    assert torch.equal(back.weight, w * mask)
    assert torch.equal(back.bias, bias)
    assert back.epilogue == s.epilogue


def test_conv_site_becomes_a_sparse_layer():
    w, mask = torch.randn(12, 4, 3, 3, dtype=torch.float64), torch.rand(12, 4, 3, 3) < 0.2
    attributes = {"stride": (2, 2), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    s = site(w, mask, "conv2d", attributes=attributes, epilogue=(Epilogue("relu"),))
    layer = specialised(s, dataclasses.replace(FAST, dense_launch_s=1.0))
    assert isinstance(layer, SparseConv2d)
    x = torch.randn(2, 4, 9, 9, dtype=torch.float64)
    want = nn.functional.conv2d(x, w * mask, None, 2, 1).relu()
    torch.testing.assert_close(layer(x), want, rtol=1e-10, atol=1e-11)
    assert layer.sparta_site().weight.shape == w.shape


def test_what_has_no_kernel_stays_dense_with_a_reason():
    w, mask = torch.randn(8, 1, 3, 3), torch.ones(8, 1, 3, 3, dtype=torch.bool)
    attributes = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 8}
    s = SparseSite("layer", "conv2d", w, None, TeSA.from_mask(mask), (1, 8, 5, 5), attributes=attributes)
    layer = specialised(s)
    assert isinstance(layer, DenseSite)
    assert "grouped" in layer.sparta_reason


def test_quantised_site_stores_integers():
    w, mask = torch.randn(32, 64), pattern_mask("unstructured 90%", (32, 64))
    scale = (w.abs().amax(1, keepdim=True) / 127).double()
    quant = Quant(scale, torch.zeros(()).double(), 8, -127, 127)
    fake = quant.fake(w * mask)
    s = site(fake, mask, tesa=TeSA.from_mask(mask, quant=quant), tokens=32)
    layer = specialised(s, dataclasses.replace(FAST, dense_launch_s=1.0))
    assert isinstance(layer, SparseLinear)
    assert all(isinstance(p, QuantizedInt8) for p in layer.parts)
    torch.testing.assert_close(layer.current_weight(), fake, rtol=1e-6, atol=0)
    x = torch.randn(32, 64)
    torch.testing.assert_close(layer(x).double(), x.double() @ fake.double().T, rtol=1e-5, atol=1e-5)


def test_trainable_site_trains_only_what_is_alive():
    w, mask = torch.randn(16, 32, dtype=torch.float64), pattern_mask("unstructured 80%", (16, 32))
    layer = specialised(
        site(w, mask, tokens=8, trainable=True), dataclasses.replace(FAST, dense_launch_s=1.0)
    )
    assert isinstance(layer, SparseLinear)
    x = torch.randn(8, 32, dtype=torch.float64)
    layer(x).square().sum().backward()
    grad = 2 * (x @ (w * mask).T).T @ x
    torch.testing.assert_close(layer.weight.grad, grad * mask, rtol=1e-9, atol=1e-9)


def test_sparsify_end_to_end_uses_sparse_layers(monkeypatch):
    import torchsparta.specialised as module

    monkeypatch.setattr(module, "rates_for", lambda device: dataclasses.replace(FAST, dense_launch_s=1.0))
    monkeypatch.setattr(
        "torchsparta.cover.rates_for", lambda device: dataclasses.replace(FAST, dense_launch_s=1.0)
    )
    model = nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 16)).double().eval()
    masks = {
        n: {"weight": pattern_mask("unstructured 90%", tuple(model.get_submodule(n).weight.shape)).float()}
        for n in ("0", "2")
    }
    x = torch.randn(10, 32, dtype=torch.float64)
    fast = torchsparta.sparsify(model, torchsparta.from_nni(masks), (x,))
    assert any(isinstance(m, SparseLinear) for m in fast.modules())
    with torch.no_grad():
        for n in masks:
            model.get_submodule(n).weight.mul_(masks[n]["weight"])
    torch.testing.assert_close(fast(x), model(x), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("pattern", "alive"),
    [
        ("unstructured 90%", 0.1),
        ("block 4x4 75%", 0.25),
        ("2:4", 0.5),
        ("rows 50%", 0.5),
        ("columns 75%", 0.25),
        ("dense", 1.0),
    ],
)
def test_pattern_masks_have_the_share_they_name(pattern, alive):
    mask = pattern_mask(pattern, (64, 64))
    assert float(mask.float().mean()) == pytest.approx(alive, abs=0.01)
    assert torch.equal(mask, pattern_mask(pattern, (64, 64)))


def test_unknown_patterns_and_wrong_masks_are_refused():
    with pytest.raises(ValueError, match="unknown pattern 'ninety percent'"):
        predict((8, 8), "ninety percent")
    with pytest.raises(ValueError, match=r"mask has shape \(8, 9\), the weight \(8, 8\)"):
        predict((8, 8), torch.ones(8, 9))
    with pytest.raises(TypeError, match="got ReLU"):
        predict(nn.ReLU(), "dense")


@pytest.mark.parametrize("name", ["V100", "A100", "H100", "MI300X"])
def test_shipped_rates_follow_the_device(name):
    from torchroller.device import by_name

    spec: DeviceSpec = by_name(name)
    rates = shipped_rates(spec, 1)
    assert 0 < rates.mac("8") <= rates.mac("1")
    w = predict((1024, 1024), "unstructured 99%", rates=rates).table
    assert all(p.time_s > 0 for p in w)


def test_more_work_takes_longer():
    parts = [
        FineGrained.pack(torch.randn(64, 64), pattern_mask(f"unstructured {s}%", (64, 64))) for s in (90, 50)
    ]
    times = [time_of((64, 64), [("1", p.work())], 128, 1, FAST, 1) for p in parts]
    assert times[0] < times[1]


@pytest.mark.parametrize("shape", [(48, 48), (1, 1, 48, 48), (2, 48, 48)])
def test_attention_site_with_a_sparse_mask(shape):
    from torchsparta.attention import sliding_window

    mask = sliding_window(48, 3)
    mask[:, 32:] &= torch.eye(48, dtype=torch.bool)[:, 32:]
    weight = mask.expand(shape).clone()
    s = SparseSite(
        "attend",
        "attention",
        weight,
        None,
        TeSA.from_mask(weight),
        (2, 2, 48, 16),
        attributes={"scale": 0.25},
    )
    layer = specialised(s)
    q, k, v = (torch.randn(2, 2, 48, 16, dtype=torch.float64) for _ in range(3))
    want = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=weight, scale=0.25)
    torch.testing.assert_close(layer(q, k, v), want, rtol=1e-10, atol=1e-12)
    assert torch.equal(layer.sparta_site().weight, weight)
    assert layer.sparta_reason


def test_long_window_becomes_sparse_attention():
    from torchsparta.attention import SparseAttention, sliding_window

    mask = sliding_window(256, 8)
    s = SparseSite(
        "attend", "attention", mask, None, TeSA.from_mask(mask), (1, 1, 256, 4), attributes={"scale": 0.5}
    )
    assert isinstance(specialised(s), SparseAttention)
