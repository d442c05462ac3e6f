"""Running sums and what else is counted along a dimension: numbers against float64, in odd shapes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from roller_helpers import compiled, judge
from test_offline import SOME_DEVICES, fits

SCANS = {
    "cumsum": lambda x, d: x.cumsum(d), "cumprod": lambda x, d: (x * 0.1 + 1).cumprod(d),
    "logcumsumexp": lambda x, d: x.logcumsumexp(d), "count": lambda x, d: (x > 0).cumsum(d),
    "with an epilogue": lambda x, d: x.exp().cumsum(d) * 2 + x,
    "cumulative type": lambda x, d: x.cumsum(d, dtype=torch.float64),
}  # fmt: skip


@pytest.mark.parametrize(
    "shape, dim", [((3, 700), 1), ((700, 3), 0), ((5,), 0), ((2, 3, 40), 1), ((7, 1), 1), ((1, 257), -1)]
)
@pytest.mark.parametrize("name", SCANS)
def test_scans(name, shape, dim):
    torch.manual_seed(0)
    plan = judge(lambda x: SCANS[name](x, dim), torch.randn(shape))
    assert len(plan.launches) == 1 and not plan.externs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int32, torch.bool])
def test_types(dtype):
    x = (torch.arange(-60, 60).view(3, 40) % 7 - 3).to(dtype)
    assert not judge(lambda x: x.cumsum(1), x).externs


def test_special_values():
    x = torch.tensor([[1.0, float("inf"), 2.0, -float("inf"), 3.0], [float("nan"), 1, 2, 3, 4],
                      [-float("inf"), -float("inf"), 0, 1, 2]])  # fmt: skip
    judge(lambda x: (x.cumsum(1), x.cumprod(0), x.logcumsumexp(1)), x)


def test_views_and_chains():
    torch.manual_seed(0)
    x = torch.randn(8, 30)
    assert not judge(lambda x: x.t().cumsum(0).cumsum(1), x).externs
    assert not judge(lambda x: x.reshape(6, 40).cumsum(1).reshape(-1) + 1, x).externs
    assert not judge(lambda x: x[:, ::3].softmax(-1).cumsum(-1), x).externs


def test_gradients():
    x = torch.rand(4, 50, requires_grad=True)
    fn = lambda x: (x.cumsum(1) ** 2).sum() + x.logcumsumexp(0).sum()  # noqa: E731
    (want,) = torch.autograd.grad(fn(x.double()), x)
    (got,) = torch.autograd.grad(compiled(fn)(x), x)
    assert torch.allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_embedding_bags_of_one_size(mode):
    torch.manual_seed(0)
    table, bags = torch.randn(50, 16), torch.randint(0, 50, (6, 3))
    plan = judge(lambda i, w: F.embedding_bag(i, w, mode=mode), bags, table)
    assert len(plan.launches) == 1 and not plan.externs
    weights = torch.rand(6, 3)
    assert not judge(
        lambda i, w, s: F.embedding_bag(i, w, mode="sum", per_sample_weights=s), bags, table, weights
    ).externs


def test_embedding_bags_of_other_sizes_are_left_to_aten():
    table, flat = torch.randn(50, 16), torch.randint(0, 50, (9,))
    plan = judge(lambda i, o, w: F.embedding_bag(i, w, o), flat, torch.tensor([0, 2, 7]), table)
    assert ["bags are data" in e.reason for e in plan.externs] == [True]


def test_what_stays_aten_says_why():
    x = torch.randn(4, 30)
    plan = judge(lambda x: (x.topk(3)[0] + 1, x.sort(-1)[0] * 2, x.kthvalue(2)[0] - 1), x)
    assert len(plan.externs) == 3 and all("sorting network" in e.reason for e in plan.externs)


@pytest.mark.parametrize("device", SOME_DEVICES)
def test_scan_kernels_fit_gpus(device):
    found: dict = {}
    for name in ("cumsum", "logcumsumexp"):
        plan = judge(lambda x, name=name: SCANS[name](x, 1), torch.randn(30, 700))
        found |= dict.fromkeys(replace(k.expr, source=()) for k in plan.launches)
    fits(list(found), device)
