"""int8 weights that are dequantised in the kernel, and products of int8 with int8."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from roller_helpers import judge, last_plan
from test_offline import SOME_DEVICES, fits


def weights(k: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randint(-127, 128, (n, k), dtype=torch.int8), torch.rand(n) * 0.01


WEIGHT_ONLY = {
    "linear": lambda x, w, s: F.linear(x, w.to(x.dtype) * s[:, None].to(x.dtype)),
    "with an epilogue": lambda x, w, s: F.linear(x, w.to(x.dtype) * s[:, None].to(x.dtype), s.to(x.dtype)).relu(),
    "product": lambda x, w, s: x @ (w.t().to(x.dtype) * s.to(x.dtype)),
    "one scale": lambda x, w, s: F.linear(x, w.to(x.dtype) * 0.01),
    "a scale on the left": lambda x, w, s: F.linear(x, s[:, None].to(x.dtype) * w.to(x.dtype)),
    "scaled afterwards": lambda x, w, s: F.linear(x, w.to(x.dtype)) * s.to(x.dtype),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("m, k, n", [(33, 64, 70), (1, 128, 96), (7, 41, 23)])
@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_the_weight_is_dequantised_in_the_kernel(name, m, k, n, dtype):
    plan = judge(WEIGHT_ONLY[name], torch.randn(m, k).to(dtype), *weights(k, n))
    assert len(plan.launches) == 1 and not plan.externs and plan.arena_bytes == 0
    assert any(a.dtype == "int8" for a in plan.launches[0].expr.loads)


def test_scales_along_the_contracted_dimension_are_not_moved():
    w, _ = weights(64, 70)
    judge(lambda x, w, s: F.linear(x, w.to(x.dtype) * s), torch.randn(9, 64), w, torch.rand(64))
    judge(lambda x, w, s: F.linear(x, w.to(x.dtype) * s), torch.randn(9, 64), w, torch.rand(70, 64))


def test_packed_int8_product():
    w, s = weights(64, 70)
    fn = torch.ops.aten._weight_int8pack_mm
    x = torch.randn(9, 64).bfloat16()
    compiled = torch.compile(lambda x, w, s: fn(x, w, s), backend="roller", fullgraph=True)
    want = (x.float() @ (w.float() * s.bfloat16().float()[:, None]).t()).bfloat16()
    assert torch.allclose(compiled(x, w, s.bfloat16()), want, rtol=1e-2)
    assert not last_plan().externs


@pytest.mark.parametrize("m, k, n", [(17, 40, 24), (33, 64, 70), (64, 256, 96), (40, 3, 8)])
def test_integer_products_are_exact(m, k, n):
    torch.manual_seed(0)
    a = torch.randint(-128, 128, (m, k), dtype=torch.int8)
    b = torch.randint(-128, 128, (k, n), dtype=torch.int8)
    plan = judge(torch._int_mm, a, b)
    assert len(plan.launches) == 1 and not plan.externs


class Dynamic(torch.nn.Module):
    """A linear layer with int8 weights whose inputs are quantised by row as they come."""

    def forward(self, x: torch.Tensor, w: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        step = x.abs().amax(-1, keepdim=True).clamp(min=1e-6) / 127
        whole = torch.clamp(torch.round(x / step), -128, 127).to(torch.int8)
        return torch._int_mm(whole, w.t()) * step * s + 1


def test_dynamic_quantisation():
    plan = judge(Dynamic(), torch.randn(33, 64), *weights(64, 72), slack=8.0)
    assert len(plan.launches) == 2 and not plan.externs


@pytest.mark.parametrize("device", SOME_DEVICES)
def test_quantised_kernels_fit_gpus(device):
    found: dict = {}
    for fn, x in ((Dynamic(), torch.randn(33, 64)), (WEIGHT_ONLY["linear"], torch.randn(33, 64).bfloat16())):
        plan = judge(fn, x, *weights(64, 72), slack=8.0)
        found |= dict.fromkeys(replace(k.expr, source=()) for k in plan.launches)
    fits(list(found), device)
