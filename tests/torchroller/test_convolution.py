"""Convolution and pooling in our own kernels: values against float64, layouts, gradients, what stays an ATen call."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from roller_helpers import compiled, double, judge, last_plan
from torch import nn

from torchroller import choose
from torchroller.backend import last_plans, roller
from torchroller.implicit import CHANNELS, COLUMNS, ROWS, TAPS

LAST = torch.channels_last


def image(*shape: int, seed: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator(torch.get_default_device()).manual_seed(seed)).to(
        dtype
    )


def ours(fn, *args, launches: int | None = None):
    """Judges and asks that nothing was left to ATen."""
    torch.manual_seed(5)
    plan = judge(fn, *args)
    assert not plan.externs, [str(e) for e in plan.externs]
    if launches is not None:
        assert len(plan.launches) == launches, [str(x.expr) for x in plan.launches]
    return plan


CONVOLUTIONS = {
    "3x3": (dict(in_channels=32, out_channels=48, kernel_size=3, padding=1), (2, 32, 14, 13)),
    "no padding, no bias": (dict(in_channels=19, out_channels=21, kernel_size=3, bias=False), (1, 19, 9, 10)),
    "stride and dilation": (
        dict(in_channels=32, out_channels=17, kernel_size=(5, 3), stride=2, padding=(2, 1), dilation=(2, 1)),
        (2, 32, 14, 14),
    ),
    "padding wider than the image": (dict(in_channels=16, out_channels=8, kernel_size=3, padding=4), (1, 16, 2, 3)),
    "1x1": (dict(in_channels=32, out_channels=64, kernel_size=1), (2, 32, 7, 7)),
    "1x1 over rows": (dict(in_channels=24, out_channels=42, kernel_size=1), (2, 24, 12, 21)),
    "1x1 stride 2": (dict(in_channels=32, out_channels=40, kernel_size=1, stride=2), (2, 32, 7, 9)),
    "1x1 padded": (dict(in_channels=16, out_channels=8, kernel_size=1, padding=1), (1, 16, 5, 5)),
    "stem": (dict(in_channels=3, out_channels=24, kernel_size=7, stride=2, padding=3, bias=False), (1, 3, 37, 41)),
    "channels that fill no step": (dict(in_channels=83, out_channels=24, kernel_size=3, padding=1), (1, 83, 7, 7)),
    "channels in one short step": (dict(in_channels=9, out_channels=24, kernel_size=3), (1, 9, 11, 10)),
    "patches": (dict(in_channels=3, out_channels=40, kernel_size=8, stride=8), (2, 3, 32, 24)),
    "one channel": (dict(in_channels=1, out_channels=6, kernel_size=5, padding=2), (2, 1, 12, 11)),
    "one filter": (dict(in_channels=20, out_channels=1, kernel_size=3), (1, 20, 8, 8)),
    "one position": (dict(in_channels=16, out_channels=12, kernel_size=4), (1, 16, 4, 4)),
    "grouped": (dict(in_channels=32, out_channels=48, kernel_size=3, padding=1, groups=4), (2, 32, 9, 8)),
    "grouped, few channels": (dict(in_channels=12, out_channels=8, kernel_size=3, stride=2, groups=4), (1, 12, 9, 8)),
    "depthwise": (dict(in_channels=20, out_channels=20, kernel_size=3, padding=1, groups=20), (2, 20, 9, 11)),
    "depthwise stride 2": (
        dict(in_channels=32, out_channels=32, kernel_size=5, stride=2, padding=2, groups=32),
        (1, 32, 14, 14),
    ),
    "depthwise stride 3": (
        dict(in_channels=7, out_channels=7, kernel_size=(3, 4), stride=3, padding=1, groups=7), (2, 7, 14, 65),
    ),
    "depthwise, dilated": (
        dict(in_channels=9, out_channels=9, kernel_size=3, dilation=(2, 3), padding=(1, 4), groups=9, bias=False),
        (1, 9, 19, 40),
    ),
    "depthwise, two filters a channel": (
        dict(in_channels=16, out_channels=32, kernel_size=3, padding=2, dilation=2, groups=16),
        (2, 16, 9, 9),
    ),
    "reflected border": (
        dict(in_channels=16, out_channels=8, kernel_size=3, padding=1, padding_mode="reflect"),
        (1, 16, 6, 7),
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "transposed", "part"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_values_and_layouts(name, layout):
    arguments, shape = CONVOLUTIONS[name]
    if layout in ("transposed", "part") and name not in ("3x3", "1x1", "depthwise", "stem"):
        pytest.skip("the layout of the input is the point of four cases")
    torch.manual_seed(1)
    module = nn.Conv2d(**arguments)
    x = image(*shape)
    if layout == "channels last":
        x, module = x.to(memory_format=LAST), module.to(memory_format=LAST)
    elif layout == "transposed":
        x = image(shape[0], shape[1], shape[3], shape[2]).mT
    elif layout == "part":
        x = image(shape[0], shape[1] + 5, 2 * shape[2], shape[3] + 1)[:, 2:-3, ::2, :-1]
    ours(module, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["3x3", "1x1 stride 2", "stem", "depthwise", "grouped"])
def test_half_types(name, dtype):
    arguments, shape = CONVOLUTIONS[name]
    torch.manual_seed(1)
    module = nn.Conv2d(**arguments).to(dtype)
    with torch.no_grad():
        x = image(*shape).to(dtype)
        got = compiled(module)(x)
        exact = copy.deepcopy(module).double()(x.double())
    assert not last_plan().externs
    assert got.dtype == dtype
    # products are exact and sums are float32: what is left is the rounding of the result (and of the bias' sum)
    bound = torch.finfo(dtype).eps * exact.abs() + 1e-5 * float(exact.abs().max())
    assert ((got.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize(
    "module, shape",
    [
        (nn.Conv1d(20, 24, 5, padding=2, dilation=2), (3, 20, 33)),
        (nn.Conv1d(6, 6, 3, groups=6), (2, 6, 17)),
        (nn.Conv3d(8, 16, 3, padding=1), (1, 8, 5, 6, 7)),
        (nn.Conv3d(3, 5, (1, 3, 2), stride=(1, 2, 1)), (2, 3, 3, 7, 5)),
        (nn.ConvTranspose2d(16, 24, 3, padding=1), (2, 16, 9, 8)),
        (nn.ConvTranspose2d(16, 24, 3, stride=2, padding=1, output_padding=1), (2, 16, 5, 8)),
        (nn.ConvTranspose2d(12, 9, 2, stride=(3, 2), groups=3, dilation=2), (1, 12, 5, 4)),
        (nn.ConvTranspose1d(16, 8, 4, stride=2, padding=1), (2, 16, 9)),
        (nn.ConvTranspose2d(16, 8, 2, padding=1), (1, 16, 5, 5)),
    ],
    ids=str,
)
def test_other_ranks_and_transposed(module, shape):
    ours(module, image(*shape))


def test_what_follows_a_convolution_is_its_epilogue():
    module = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.Hardswish()).to(memory_format=LAST)
    x = image(1, 32, 10, 10).to(memory_format=LAST)
    ours(module, x, launches=1)

    def residual(x, w, v):
        return F.silu(F.conv2d(x, w, padding=1)) * 0.5 + x, F.relu6(F.conv2d(x, v))

    ours(residual, x, image(32, 32, 3, 3).to(memory_format=LAST), image(16, 32, 1, 1))


def test_batch_norm_is_a_multiply_add_behind_the_convolution():
    module = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()).eval()
    module[1].running_mean.normal_()
    module[1].running_var.uniform_(0.5, 2)
    module = module.to(memory_format=LAST)
    plan = ours(module, image(2, 16, 9, 9).to(memory_format=LAST))
    (kernel,) = (x for x in plan.launches if x.expr.dots)
    assert "rsqrt" not in kernel.kernel.source.text


def test_nothing_is_transposed_between_convolutions():
    body = nn.Sequential(
        nn.Conv2d(24, 32, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(32, 24, 3), nn.AvgPool2d(2),
    )  # fmt: skip
    plan = ours(body, image(1, 24, 16, 16))
    copies = [x for x in plan.launches if not x.expr.flops()]
    # the filters of the depthwise convolution; the product reads its input, and the last kernel writes the result,
    # in the layout of the caller
    assert len(copies) == 1, [str(x.expr) for x in copies]


@pytest.mark.parametrize("layer", [
    nn.Conv2d(16, 42, 1), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 5, 2, 2, groups=16),
    nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2),
], ids=str)  # fmt: skip
def test_a_layer_alone_works_along_the_rows_of_its_image(layer):
    """Channels first at both ends of the graph: one kernel, whose innermost axis is that of the image's rows."""
    plan = ours(nn.Sequential(layer, nn.ReLU()), image(2, 16, 32, 32), launches=1)
    access = plan.launches[0].expr.writes[0].access
    assert access.stride_of(plan.launches[0].expr.spatial[-1].name) == 1


def test_a_layer_in_front_of_another_keeps_channels_last():
    plan = ours(nn.Sequential(nn.Conv2d(16, 32, 1), nn.ReLU(), nn.Conv2d(32, 8, 3)), image(2, 16, 16, 16))
    (product,) = (x.expr for x in plan.launches if x.expr.dots and len(x.expr.reduce) == 1)
    (channels,) = (a for a in product.spatial if a.extent == 32)
    assert product.writes[0].access.stride_of(channels.name) == 1


def test_a_weight_that_changes_is_packed_again():
    module = nn.Conv2d(16, 16, 3)
    x = image(1, 16, 6, 6)
    fast = compiled(module)
    with torch.no_grad():
        fast(x)
        module.weight.mul_(-2)
        torch.testing.assert_close(fast(x), module(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "x",
    [image(2, 17, 13, 12), image(1, 3, 21, 30), image(1, 32, 12, 12).to(memory_format=LAST)],
    ids=["nchw", "long rows", "nhwc"],
)
@pytest.mark.parametrize(
    "fn",
    [
        nn.MaxPool2d(3, 2, 1),
        nn.MaxPool2d((2, 3), dilation=(2, 1), ceil_mode=True),
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False, ceil_mode=True),
        nn.AvgPool2d(4, 3, ceil_mode=True),
        nn.AvgPool2d(2, divisor_override=3),
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((4, 3)),
        nn.AdaptiveAvgPool2d((5, 7)),
        nn.MaxPool2d(3, 2, 1, return_indices=True),
        nn.MaxPool2d(2, padding=1, dilation=2, return_indices=True),
    ],
    ids=str,
)
def test_pooling(fn, x):
    ours(fn, x)


def test_max_pooling_knows_nan_and_infinity():
    x = image(1, 16, 8, 8)
    x[0, 0, 3, 3], x[0, 1], x[0, 2, 0, 0] = torch.nan, -torch.inf, torch.inf
    want, where = F.max_pool2d(x, 3, 2, 1, return_indices=True)
    got, at = compiled(lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True))(x)
    assert torch.equal(got.nan_to_num(nan=7.0), want.nan_to_num(nan=7.0))
    assert torch.equal(at, where)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_upsampling(mode):
    ours(lambda x: F.interpolate(x, size=(12, 11), mode=mode), image(1, 8, 6, 5))


@pytest.mark.parametrize(
    "module, shape",
    [
        (nn.Conv2d(16, 24, 3, padding=1), (2, 16, 7, 6)),
        (nn.Conv2d(16, 24, 3, stride=2, groups=2), (2, 16, 7, 6)),
        (nn.Conv2d(12, 12, 3, padding=1, groups=12), (2, 12, 7, 6)),
        (nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False), (1, 3, 19, 17)),
        (nn.ConvTranspose2d(8, 6, 3, stride=2), (1, 8, 5, 4)),
        (nn.Sequential(nn.Conv2d(8, 8, 1), nn.MaxPool2d(2), nn.AvgPool2d(2)), (1, 8, 9, 8)),
    ],
    ids=["plain", "grouped", "depthwise", "stem", "transposed", "pooled"],
)
def test_gradients(module, shape):
    def gradients(m, call, x):
        x = x.clone().requires_grad_()
        m.zero_grad()
        out = call(x)
        (out * out).mean().backward()
        return [x.grad, *(p.grad.clone() for p in m.parameters())]

    torch.manual_seed(2)
    for m in module.modules():
        if hasattr(m, "reset_parameters"):
            m.reset_parameters()
    x = image(*shape)
    upper = copy.deepcopy(module).double()
    exact, want = gradients(upper, upper, double(x)), gradients(module, module, x)
    torch._dynamo.reset()
    got = gradients(module, torch.compile(module, backend=roller, fullgraph=True), x)
    for g, w, e in zip(got, want, exact, strict=True):
        theirs, mine = (float((t.double() - e).abs().max()) for t in (w, g))
        assert g.shape == w.shape and mine <= 4 * theirs + 8 * 1.2e-7 * float(e.abs().max())
    forward = last_plans()[-2]
    assert not forward.externs, [str(e) for e in forward.externs]
    for call in last_plans()[-1].externs:
        assert "backward" in str(call.target) and call.reason


def test_a_large_pooling_window_says_why_it_stays_with_aten():
    plan = judge(lambda x: F.avg_pool2d(x, 9, 2), image(1, 16, 20, 20))
    assert [str(e.target) for e in plan.externs] == ["aten.avg_pool2d.default"]
    assert "more than 64 taps" in plan.externs[0].reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [21, 149])
def test_every_channel_counts_once(channels, dtype, monkeypatch, tmp_path):
    """Steps of 32: 21 channels are shorter than one, 149 are whole ones in a loop and shorter ones in another."""
    construct = choose.construct

    def forced(expr, spec, **options):
        return construct(
            expr, spec, **(options | {"candidates": [{CHANNELS: 32, ROWS: 16, COLUMNS: 32, TAPS: 1}]})
        )

    monkeypatch.setattr(choose, "construct", forced)
    monkeypatch.setenv("TORCHROLLER_CACHE_DIR", str(tmp_path))
    choose.ranked.cache_clear()
    module = nn.Conv2d(channels, 20, 3, padding=1, bias=False).to(dtype)
    (launch,) = ours(module, image(1, channels, 7, 6, dtype=dtype).to(memory_format=LAST)).launches
    choose.ranked.cache_clear()
    assert launch.kernel.source.text.count("tl.dot") == {21: 2, 149: 3}[channels]
    assert launch.kernel.source.text.count("for step") == {21: 1, 149: 2}[channels]
