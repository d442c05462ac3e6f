"""Attention: every mask, shared heads, one query, gradients, and as models write it out."""

from __future__ import annotations

import math
import operator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from roller_helpers import compiled, judge, last_plan
from test_offline import SOME_DEVICES, fits

from torchroller.backend import last_plans
from torchroller.emit.attention import TAIL, attention_tiling, roles
from torchroller.lower import lower
from torchroller.options import Options
from torchroller.pipeline import compile_graph


def heads(m: int, n: int, d: int, own: int = 4, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Queries of 4 heads and `own` heads of keys and values."""
    torch.manual_seed(0)
    return [torch.randn(2, h, t, d).to(dtype) for h, t in ((4, m), (own, n), (own, n))]


def alone() -> None:
    plan = last_plan()
    assert len(plan.launches) == 1 and not plan.externs, str(plan)


BF16 = torch.bfloat16
SDPA = F.scaled_dot_product_attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "m, n, d", [(7, 40, 16), (33, 33, 80), (1, 48, 64), (5, 9, 96), (2, 130, 256), (64, 3, 32)]
)
def test_shapes(m, n, d, dtype):
    judge(SDPA, *heads(m, n, d, dtype=dtype))
    alone()


@pytest.mark.parametrize("kw", [{}, {"is_causal": True}], ids=["all", "causal"])
@pytest.mark.parametrize("tokens", [15, 65, 131, 197])
def test_keys_that_fill_no_whole_step(tokens, kw):
    """The last step is narrower than the others."""
    judge(lambda q, k, v: SDPA(q, k, v, **kw), *heads(tokens, tokens, 24))
    alone()


def test_tiles_follow_the_shape():
    """Few rows of padding, and enough programs for every core."""
    judge(SDPA, *heads(197, 197, 24))
    expr = last_plan().launches[0].expr
    (_, m, _, n, _) = roles(expr)
    few, many = (dict(attention_tiling(expr, units).blocks) for units in (2, 512))
    assert -(-197 // few[m.name]) * few[m.name] < 197 * 1.1
    assert 197 // few[n.name] * few[n.name] + few[TAIL] < 197 * 1.1
    assert many[m.name] <= few[m.name]
    assert TAIL not in dict(attention_tiling(expr, 0).blocks)  # a GPU walks the keys in steps of one width


@pytest.mark.parametrize("own", [1, 2])
@pytest.mark.parametrize("m", [1, 3, 9])
def test_heads_that_share_keys(own, m):
    for kw in ({}, {"is_causal": True}, {"attn_mask": torch.randn(2, 1, m, 21)}):
        judge(lambda q, k, v, kw=kw: SDPA(q, k, v, enable_gqa=True, **kw), *heads(m, 21, 24, own))
        alone()


MASKS = {
    "bool": torch.rand(9, 21) > 0.4, "bool by key": torch.rand(2, 1, 1, 21) > 0.4, "float": torch.randn(9, 21),
    "float by head": torch.randn(4, 1, 21), "full": torch.randn(2, 4, 9, 21),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_masks(name):
    mask = MASKS[name].clone()
    if mask.dtype == torch.bool and name == "bool":
        mask[3] = False  # a query that sees nothing gets zeros
    judge(lambda q, k, v: SDPA(q, k, v, attn_mask=mask, scale=0.3), *heads(9, 21, 24))
    assert not last_plan().externs


@pytest.mark.parametrize("own", [4, 2])
@pytest.mark.parametrize("kw", [{}, {"is_causal": True}, {"attn_mask": torch.randn(2, 1, 19, 19)},
                                {"attn_mask": torch.rand(19, 19) > 0.3}],
                         ids=["plain", "causal", "added mask", "bool mask"])  # fmt: skip
def test_gradients(kw, own):
    inputs = [t.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for t in heads(19, 19, 24, own)]

    def fn(q, k, v):
        return (SDPA(q, k, v, enable_gqa=own != 4, **kw).transpose(1, 2).flatten(2) ** 3).sum()

    mask = kw.get("attn_mask")
    upper = kw if mask is None or mask.dtype == torch.bool else {"attn_mask": mask.double()}
    exact = torch.autograd.grad(
        (SDPA(*(t.double() for t in inputs), enable_gqa=own != 4, **upper) ** 3).sum(), inputs
    )
    for got, want in zip(torch.autograd.grad(compiled(fn)(*inputs), inputs), exact):
        assert float((got - want).abs().max()) < 1e-5 * float(want.abs().max())
    assert not any(p.externs for p in last_plans()[-2:])


def test_a_query_that_sees_nothing_has_no_gradient():
    mask = torch.rand(9, 9) > 0.3
    mask[4] = False
    inputs = [t.requires_grad_() for t in heads(9, 9, 16)]
    fn = lambda q, k, v: (SDPA(q, k, v, attn_mask=mask) ** 2).sum()  # noqa: E731
    found = torch.autograd.grad(compiled(fn)(*inputs), inputs)
    assert all(torch.isfinite(g).all() for g in found) and not found[0][:, :, 4].any()


CAUSAL = torch.ones(21, 21, dtype=torch.bool).tril()
WRITTEN = {
    "scaled before": lambda q, k, v: (q * 0.2) @ k.mT,
    "scaled": lambda q, k, v: q @ k.mT / math.sqrt(24),
    "scaled and masked": lambda q, k, v: q @ k.mT * 0.2 + CAUSAL.log(),
    "filled with -inf": lambda q, k, v: (q @ k.mT * 0.2).masked_fill(~CAUSAL, -math.inf),
    "filled with the least number": lambda q, k, v: torch.where(CAUSAL, q @ k.mT, torch.finfo(q.dtype).min),
    "position bias": lambda q, k, v: q @ k.mT + torch.arange(21.0)[:, None].cos(),
    "two masks": lambda q, k, v: (q @ k.mT + CAUSAL.log()) + torch.arange(21.0).sin(),
    "mask below the scale": lambda q, k, v: (q @ k.mT + torch.arange(21.0).sin()) * 0.2,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", WRITTEN)
def test_attention_written_out(name, dtype):
    def fn(q, k, v):
        return WRITTEN[name](q, k, v).float().softmax(-1).to(v.dtype) @ v

    plan = judge(fn, *heads(21, 21, 24, dtype=dtype)) if dtype == torch.bfloat16 else judge(
        lambda q, k, v: WRITTEN[name](q, k, v).softmax(-1) @ v, *heads(21, 21, 24))  # fmt: skip
    fused = [x for x in plan.launches if len(x.expr.dots) == 2]
    assert len(fused) == (0 if name == "mask below the scale" else 1) and not plan.externs


def test_a_hidden_row_is_nan_as_eager_makes_it():
    mask = CAUSAL.clone()
    mask[5] = False
    judge(lambda q, k, v: (q @ k.mT).masked_fill(~mask, -math.inf).softmax(-1) @ v, *heads(21, 21, 24))
    alone()


def test_weights_that_something_else_reads_stay_as_written():
    def fn(q, k, v):
        weights = (q @ k.mT).softmax(-1)
        return weights @ v, weights

    plan = judge(fn, *heads(9, 21, 24))
    assert not any(len(x.expr.dots) == 2 for x in plan.launches)
    plan = judge(lambda q, k, v: (q @ k.mT).softmax(1) @ v, *heads(9, 21, 24))
    assert not any(len(x.expr.dots) == 2 for x in plan.launches)


@pytest.mark.parametrize("device", SOME_DEVICES)
def test_attention_fits_gpus(device):
    cases = [(SDPA, heads(1, 48, 64)), (lambda q, k, v: SDPA(q, k, v, enable_gqa=True), heads(1, 48, 64, 2)),
             (lambda q, k, v: SDPA(q, k, v, enable_gqa=True, is_causal=True), heads(33, 33, 80, 2, BF16))]  # fmt: skip
    found: dict = {}
    for fn, inputs in cases:
        found |= dict.fromkeys(replace(k.expr, source=()) for k in judge(fn, *inputs).launches)
    inputs = [t.requires_grad_() for t in heads(33, 33, 64)]
    torch.autograd.grad((compiled(SDPA)(*inputs) ** 2).sum(), inputs)
    found |= dict.fromkeys(replace(k.expr, source=()) for k in last_plan().launches)
    fits(list(found), device)


GPU_VARIANTS = {
    "flash": ("_scaled_dot_product_flash_attention", lambda causal, bias: (0.0, causal)),
    "efficient": ("_scaled_dot_product_efficient_attention", lambda causal, bias: (bias, False, 0.0, causal)),
    "cudnn": ("_scaled_dot_product_cudnn_attention", lambda causal, bias: (bias, False, 0.0, causal)),
}


def graph_of(variant: str, inputs: list[torch.Tensor], causal: bool, bias: bool) -> torch.fx.GraphModule:
    """The graph in which a GPU's operator is called, with results as its meta function gives them, all on the CPU."""
    name, arguments = GPU_VARIANTS[variant]
    graph = torch.fx.Graph()
    places = []
    for n, x in enumerate(inputs):
        places.append(graph.placeholder(f"x{n}"))
        places[-1].meta["val"] = x
    q, k, v = places[:3]
    call = graph.call_function(
        getattr(torch.ops.aten, name).default, (q, k, v, *arguments(causal, places[3] if bias else None))
    )
    b, h, m, d = inputs[0].shape
    out = torch.empty(b, m, h, d).transpose(1, 2).to(inputs[0].dtype)
    call.meta["val"] = (out, torch.empty(b, h, 0), None, None, m, m, torch.empty(2, dtype=torch.uint64))
    first = graph.call_function(operator.getitem, (call, 0))
    first.meta["val"] = out
    graph.output([first])
    return torch.fx.GraphModule(torch.nn.Module(), graph)


@pytest.mark.parametrize("variant", GPU_VARIANTS)
@pytest.mark.parametrize("causal", [False, True])
def test_what_pytorch_calls_on_a_gpu_is_lowered(variant, causal):
    bias = variant != "flash" and not causal
    inputs = heads(21, 21, 16)
    extra = [torch.randn(2, 1, 21, 21)] if bias else []
    gm = graph_of(variant, [*inputs, *extra], causal, bias)
    plan = compile_graph(gm, [*inputs, *extra], Options())
    assert len(plan.launches) == 1 and not plan.externs
    (got,) = plan([*inputs, *extra])
    exact = SDPA(
        *(x.double() for x in inputs), attn_mask=extra[0].double() if bias else None, is_causal=causal
    )
    assert float((got - exact).abs().max()) < 1e-6 * float(exact.abs().max())


def test_a_gradient_on_a_gpu_is_left_to_the_kernel_that_saved_for_it():
    inputs = heads(21, 21, 16)
    gm = graph_of("efficient", inputs, False, False)
    (call,) = (n for n in gm.graph.nodes if "scaled_dot_product" in str(n.target))
    with gm.graph.inserting_before(next(n for n in gm.graph.nodes if n.op == "output")):
        sums = gm.graph.call_function(operator.getitem, (call, 1))
    sums.meta["val"] = call.meta["val"][1]
    output = next(n for n in gm.graph.nodes if n.op == "output")
    output.args = ([*output.args[0], sums],)
    lowered = lower(gm, Options())
    (extern,) = lowered.externs
    assert "a gradient needs results of ATen's own kernel" in extern.reason


def test_an_extern_call_gets_the_strides_of_the_trace():
    """ATen's kernels of a GPU ask for rows of a mask that start at multiples of 4: PyTorch pads them, and cuts."""
    inputs = [*heads(19, 19, 16), torch.randn(2, 1, 19, 19)]
    gm = graph_of("efficient", inputs, False, True)
    graph = gm.graph
    (call,) = (n for n in graph.nodes if "scaled_dot_product" in str(n.target))
    (mask,) = (n for n in graph.nodes if n.name == "x3")
    with graph.inserting_before(call):
        at, value, aten = mask, mask.meta["val"], torch.ops.aten
        padded = (aten.constant_pad_nd.default, [0, 5]), (aten.slice.Tensor, 3, 0, 19)
        for target, *rest in (*padded, (aten.expand.default, [2, 4, 19, 19])):
            value = target(value, *rest)
            at = graph.call_function(target, (at, *rest))
            at.meta["val"] = value
        sums = torch.empty(2, 4, 32)
        call.args = (*call.args[:3], at, True, *call.args[5:])
    with graph.inserting_before(next(n for n in graph.nodes if n.op == "output")):
        second = graph.call_function(operator.getitem, (call, 1))
    second.meta["val"], call.meta["val"] = sums, (call.meta["val"][0], sums, *call.meta["val"][2:])
    output = next(n for n in graph.nodes if n.op == "output")
    output.args = ([*output.args[0], second],)
    plan = compile_graph(gm, inputs, Options())
    (extern,) = plan.externs
    assert value.stride() == (456, 0, 24, 1) == extern.args[3].strides
    assert plan.buffers[extern.args[3].buffer].elements >= 456 + 18 * 24 + 19
