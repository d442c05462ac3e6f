"""Programs that a compiler is seldom shown: unusual dtypes and layouts, shared and tied weights, huge tensors,
deep graphs, transforms. Each gives eager's numbers, and what is left to ATen says why."""

from __future__ import annotations

import pickle
import threading

import pytest
import torch
from roller_helpers import compiled, last_plan
from torch import nn
from torch.nn import functional as F

from torchroller.backend import last_plans, roller


def same(fn, *args, fullgraph: bool = True, atol: float = 1e-5):
    """Compiled against eager; returns the plan made last, if any."""
    torch._dynamo.reset()
    before = last_plans()[-1:]
    fast = torch.compile(fn, backend=roller, fullgraph=fullgraph)
    with torch.no_grad():
        got, want = fast(*args), fn(*args)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=atol)
    made = last_plans()[-1:]
    return made[0] if made != before else None


@pytest.mark.parametrize(
    "make, fn, reason",
    [
        (lambda: torch.randn(4, 5, dtype=torch.complex64), lambda x: (x * 2 + 1).abs() + 1, "complex64"),
        (
            lambda: torch.randn(8, 8).to(torch.float8_e4m3fn),
            lambda x: x.to(torch.float32) * 2,
            "float8_e4m3fn",
        ),
        (lambda: torch.arange(16).to(torch.uint16), lambda x: x.to(torch.float32) * 2, "uint16"),
    ],
    ids=["complex", "float8", "uint16"],
)
def test_types_without_kernels_are_aten_calls_that_say_so(make, fn, reason):
    plan = same(fn, make())
    assert plan.launches and any(reason in e.reason for e in plan.externs)


@pytest.mark.parametrize(
    "make, fn",
    [
        (lambda: torch.randn(6, 6).relu().to_sparse(), lambda s, x: torch.sparse.mm(s, x) + 1),
        (lambda: torch.randn(6, 6).relu().to_sparse_csr(), lambda s, x: (s @ x).relu()),
        (
            lambda: torch.quantize_per_tensor(torch.randn(6, 6), 0.1, 0, torch.qint8),
            lambda q, x: q.dequantize() @ x,
        ),
    ],
    ids=["coo", "csr", "quantized"],
)
@pytest.mark.filterwarnings("ignore")
def test_layouts_that_dynamo_leaves_to_eager(make, fn):
    same(fn, make(), torch.randn(6, 3), fullgraph=False)


# ---- weights ----------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(ids))


def test_tied_weights_have_one_gradient_and_are_packed_again_when_they_change():
    model, ids = Tied(), torch.randint(0, 50, (2, 5))
    fast = compiled(model)
    for _ in range(2):
        grads = []
        for f in (fast, model):
            model.zero_grad()
            f(ids).square().sum().backward()
            grads.append(model.table.weight.grad.clone())
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(fast(ids), model(ids))
            model.table.weight.mul_(1.5)


def test_weights_that_are_views_of_one_tensor():
    base, x = torch.randn(40, 16), torch.randn(3, 16)
    a, b = (nn.Parameter(t, requires_grad=False) for t in (base[:20], base[20:].t()))
    model = nn.Module()
    model.a, model.b = a, b
    fn = lambda x: (x @ model.a.t()).relu() @ model.b.t()  # noqa: E731
    fast = compiled(fn)
    with torch.no_grad():
        for _ in range(2):
            exact = (x.double() @ a.double().t()).relu() @ b.double().t()
            theirs = (fn(x).double() - exact).abs().max()
            ours = (fast(x).double() - exact).abs().max()
            assert ours <= 4 * theirs + 1e-6 * exact.abs().max()
            base.mul_(2)


def test_two_graphs_share_a_weight():
    layer, x = nn.Linear(16, 32), torch.randn(4, 16)
    f, g = compiled(lambda x: layer(x).relu()), torch.compile(lambda x: layer(x).tanh(), backend=roller)
    with torch.no_grad():
        f(x), g(x)
        layer.weight.mul_(3)
        torch.testing.assert_close(f(x), layer(x).relu())
        torch.testing.assert_close(g(x), layer(x).tanh())


# ---- sizes ------------------------------------------------------------------------------------------


def test_offsets_beyond_32_bits():
    """Two gigabytes of addresses, of which a few pages are touched."""
    x = torch.empty(2**31 + 64, dtype=torch.uint8)
    x[-64:] = torch.arange(64, dtype=torch.uint8)
    x[:: 2**26] = 7
    at = torch.tensor([0, 5, 2**31 + 3, -1])
    x[at] = torch.tensor([1, 2, 3, 4], dtype=torch.uint8)

    def fn(x, at):
        far = x.view(2, 2**30 + 32)[:, :: 2**27].float().sum()
        return x[-64:] + 1, x[:: 2**26] * 2, far, x[at] + 1

    assert not same(fn, x, at).externs


def test_more_elements_than_32_bits_count():
    assert not same(lambda x: x.expand(2**31 + 5)[2**31 :] + 1, torch.ones(1)).externs


def test_a_deep_chain():
    def fn(x):
        for n in range(300):
            x = x * 0.999 + 0.001 * n
        return x

    assert not same(fn, torch.randn(64), atol=1e-3).externs


# ---- how programs are written, wrapped and called -------------------------------------------------------


def test_an_exported_program():
    model, x = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).eval(), torch.randn(3, 8)
    assert not same(torch.export.export(model, (x,)).module(), x).externs


def test_inference_mode_no_grad_and_grad_in_turn():
    layer, x = nn.Linear(8, 8), torch.randn(2, 8)
    fast = compiled(layer)
    with torch.inference_mode():
        a = fast(x)
    with torch.no_grad():
        b = fast(x)
    c = fast(x)
    assert c.requires_grad and not b.requires_grad
    torch.testing.assert_close(a.clone(), b)
    torch.testing.assert_close(b, c.detach())


def test_a_compiled_module_is_pickled_as_its_module():
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.randn(2, 8)
    fast = compiled(model)
    fast(x)
    again = pickle.loads(pickle.dumps(fast))
    torch.testing.assert_close(again(x), model(x))


def test_four_threads_compile_at_once():
    torch._dynamo.reset()
    wrong: list[str] = []

    def go(width: int) -> None:
        try:
            layer, x = nn.Linear(width, 16), torch.randn(3, width)
            fast = torch.compile(layer, backend=roller)
            with torch.no_grad():
                for _ in range(3):
                    torch.testing.assert_close(fast(x), layer(x))
        except BaseException as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=go, args=(16 + n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_functional_transforms_and_checkpointing():
    w, x = torch.randn(4, 3), torch.randn(2, 4)
    same(torch.func.grad(lambda w, x: (x @ w).tanh().sum()), w, x)
    same(torch.func.vmap(lambda a, b: (a * b).sum()), x, x + 1)
    from torch.utils.checkpoint import checkpoint

    model, y = (
        nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)),
        torch.randn(3, 8, requires_grad=True),
    )
    compiled(lambda y: checkpoint(model, y, use_reentrant=False).sum())(y).backward()
    got, y.grad = y.grad, None
    model(y).sum().backward()
    torch.testing.assert_close(got, y.grad)


def test_dropout_drops_anew_at_each_call_and_its_gradient_follows():
    x = torch.ones(4000, requires_grad=True)
    fast = compiled(lambda x: F.dropout(x * 1.0, 0.5, True))
    y = fast(x)
    assert set(y.unique().tolist()) == {0.0, 2.0} and 0.4 < float((y == 0).float().mean()) < 0.6
    assert not torch.equal(fast(x), y)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


@pytest.mark.parametrize("fn", [lambda x: x[x > 0].sum() + x.mean(), lambda x: x * x.sum().item()],
                         ids=["mask", "item"])  # fmt: skip
def test_values_that_leave_the_graph(fn):
    same(fn, torch.randn(30), fullgraph=False)


def test_sizes_that_depend_on_values_are_left_to_aten_with_the_reason():
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        plan = same(lambda x: x[x > 0] * 2, torch.randn(30))
    assert "depend on tensor values" in plan.externs[0].reason


def test_slices_written_in_place():
    def fn(x):
        x[1:3] = x[:2] * 2
        x[:, 0] = 0
        return x.sum()

    x = torch.randn(5, 4)
    mine, theirs = x.clone(), x.clone()
    torch.testing.assert_close(compiled(fn)(mine), fn(theirs))
    assert torch.equal(mine, theirs)
    assert last_plan() is not None
