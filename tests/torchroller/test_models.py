"""Whole models through torch.compile, judged against float64, and in training, gradient by gradient."""

from __future__ import annotations

import copy
from typing import Any

import model_cases
import pytest
import torch
import torch.nn.functional as F
from roller_helpers import double
from torch.utils._pytree import tree_leaves

from torchroller.backend import last_plans, roller
from torchroller.plan import ExecutionPlan


def floats(value: Any) -> list[torch.Tensor]:
    if hasattr(value, "to_tuple"):
        value = value.to_tuple()
    return [t for t in tree_leaves(value) if isinstance(t, torch.Tensor) and t.is_floating_point()]


def closer(got: Any, want: Any, exact: Any, slack: float = 4.0) -> None:
    """Our distance from the exact values is at most `slack` times eager's, tensor by tensor."""
    triples = list(zip(floats(got), floats(want), floats(exact), strict=True))
    assert triples
    for n, (g, w, e) in enumerate(triples):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        assert torch.isfinite(g).all(), f"tensor {n}"
        scale = float(e.abs().max())
        ours, theirs = (float((x.double() - e).abs().max()) for x in (g, w))
        assert ours <= slack * theirs + 8 * torch.finfo(w.dtype).eps * scale, (n, ours, theirs, scale)


def compiled(fn: Any, **kw: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(fn, backend=roller, **{"fullgraph": True, **kw})


def no_fallback(allowed: tuple[str, ...] = ()) -> ExecutionPlan:
    plan = last_plans()[-1]
    assert isinstance(plan, ExecutionPlan), str(plan)
    stray = [str(e) for e in plan.externs if not any(a in str(e.target) for a in allowed)]
    assert plan.launches and not stray, stray
    return plan


@pytest.mark.parametrize("name", model_cases.MODELS)
def test_inference(name):
    model, inputs = model_cases.make(name)
    with torch.no_grad():
        want, exact = model(*inputs), copy.deepcopy(model).double()(*double(inputs))
        fast = compiled(model)
        for _ in range(2):  # the second call reuses memory
            closer(fast(*inputs), want, exact)
    plan = no_fallback()
    assert plan.packed
    texts = {launch.kernel.source.text for launch in plan.launches}
    assert len(texts) < len(plan.launches) or name in ("block", "mixed", "resnet")  # layers share kernels


def gradients(model: torch.nn.Module, call: Any, inputs: Any) -> tuple[list[torch.Tensor], list[str]]:
    """The loss and the gradient of every parameter that has one, and the names of those that have none."""
    model.zero_grad()
    out = call(*inputs)
    loss = sum((t * t).mean() for t in floats(out))
    loss.backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    return [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)], missing


QUICK = ("encoder", "lstm")


SOME_SLOW = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in model_cases.MODELS]


@pytest.mark.parametrize("name", SOME_SLOW)
def test_loss_and_every_gradient(name):
    model, inputs = model_cases.make(name)
    upper = copy.deepcopy(model).double()
    exact, none = gradients(upper, upper, double(inputs))
    want, _ = gradients(model, model, inputs)
    got, missing = gradients(model, compiled(model), inputs)
    assert missing == none
    # gradients that are zero in exact arithmetic (a bias before a normalisation) are rounding errors everywhere
    largest = max(float(e.abs().max()) for e in exact)
    assert len(got) == len(want) == len(exact)
    for n, (g, w, e) in enumerate(zip(got, want, exact)):
        ours, theirs = (float((x.double() - e).abs().max()) for x in (g, w))
        assert ours <= 6 * theirs + 8 * 1.2e-7 * float(e.abs().max()) + 1e-8 * largest, (n, ours, theirs)


def test_training_in_train_mode_updates_running_statistics():
    model, inputs = model_cases.make("resnet")
    model.train()
    upper, fast = copy.deepcopy(model).double(), copy.deepcopy(model)
    exact, _ = gradients(upper, upper, double(inputs))
    want, _ = gradients(model, model, inputs)
    got, _ = gradients(fast, compiled(fast), inputs)
    largest = max(float(e.abs().max()) for e in exact)
    for n, (g, w, e) in enumerate(zip(got, want, exact)):
        ours, theirs = (float((x.double() - e).abs().max()) for x in (g, w))
        assert ours <= 6 * theirs + 1e-5 * float(e.abs().max()) + 1e-8 * largest, (n, ours, theirs)
    for (name, g), w, e in zip(fast.named_buffers(), model.buffers(), upper.buffers()):
        assert torch.allclose(g.double(), e.double(), rtol=1e-5, atol=1e-6), name
        assert g.dtype == w.dtype


def test_a_few_optimizer_steps_follow_eager():
    model, (tokens,) = model_cases.make("encoder")
    labels = torch.tensor([3, 7])
    runs = []
    for kind in ("eager", "roller"):
        m = copy.deepcopy(model)
        call = m if kind == "eager" else compiled(m)
        optimizer = torch.optim.AdamW(m.parameters(), lr=1e-2)
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = F.cross_entropy(call(tokens), labels)
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        runs.append(losses)
    assert runs[0][-1] < runs[0][0]
    assert torch.allclose(torch.tensor(runs[0]), torch.tensor(runs[1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["block", pytest.param("bert", marks=pytest.mark.slow),
                                  pytest.param("gpt2", marks=pytest.mark.slow)])  # fmt: skip
def test_autocast_bfloat16(name):
    model, inputs = model_cases.make(name)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(*double(inputs))
        with torch.autocast(torch.get_default_device().type, torch.bfloat16):
            want = model(*inputs)
            got = compiled(model)(*inputs)
    closer(got, want, exact, slack=2.0)


def test_bfloat16_training():
    model, inputs = model_cases.make("block")
    upper = copy.deepcopy(model).double()
    exact, _ = gradients(upper, upper, double(inputs))
    half = model.bfloat16()
    inputs = tuple(x.bfloat16() for x in inputs)
    want, _ = gradients(half, half, inputs)
    got, _ = gradients(half, compiled(half), inputs)
    for n, (g, w, e) in enumerate(zip(got, want, exact)):
        ours, theirs = (float((x.double() - e).abs().max()) for x in (g, w))
        assert ours <= 2 * theirs + 0.02 * float(e.abs().max()), (n, ours, theirs)


def test_dynamic_shapes_are_right_and_recompiles_are_counted():
    model, _ = model_cases.make("encoder")
    counter = torch._dynamo.testing.CompileCounterWithBackend(roller)
    torch._dynamo.reset()
    fast = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        for batch, length in ((2, 19), (2, 7), (2, 12), (3, 12), (5, 3), (2, 7)):
            tokens = model_cases.tokens(batch, length)
            closer(fast(tokens), model(tokens), copy.deepcopy(model).double()(tokens))
    # one graph of the first shape, one with a dynamic length, one with a dynamic batch as well
    assert counter.frame_count <= 3


def test_marked_dynamic_compiles_once():
    def fn(x):
        return (x * 2 + x.shape[0]).softmax(0)

    counter = torch._dynamo.testing.CompileCounterWithBackend(roller)
    torch._dynamo.reset()
    fast = torch.compile(fn, backend=counter, fullgraph=True, dynamic=True)
    for n in (5, 9, 64, 9, 100):
        x = torch.randn(n, 6)
        assert torch.allclose(fast(x), fn(x), atol=1e-6)
    assert counter.frame_count == 1
