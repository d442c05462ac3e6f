"""What may change between two calls of a compiled model, and what a call must leave alone."""

from __future__ import annotations

import copy
import threading

import model_cases
import pytest
import torch
from torch import nn

from torchroller.backend import last_plans, roller
from torchroller.plan import ExecutionPlan


def compiled(fn, **options):
    torch._dynamo.reset()
    return torch.compile(fn, backend=roller, fullgraph=True, options=options)


def close(got, want):
    assert torch.allclose(got, want, rtol=1e-4, atol=1e-5), float((got - want).abs().max())


# ---- weights that change in place --------------------------------------------------------------------


def step(layer):
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    with torch.enable_grad():
        layer(torch.ones(3, 40)).square().sum().backward()
    optimizer.step()


def load(layer):
    layer.load_state_dict({k: torch.randn_like(v) for k, v in layer.state_dict().items()})


def copied(layer):
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight))


def swapped(layer):
    layer.weight.data = torch.randn_like(layer.weight)


def swapped_twice(layer):
    """The allocator may hand the second tensor the memory of the first."""
    shape = layer.weight.shape
    for _ in range(2):
        layer.weight.data = torch.randn(shape)


def written_through_data(layer):
    """`.data` shares memory with the parameter, but not its version counter."""
    layer.weight.data.mul_(-1.25)


def written_through_numpy(layer):
    layer.weight.detach().numpy()[:] *= -1.5


def replaced(layer):
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))


CHANGES = [step, load, copied, swapped, swapped_twice, written_through_data, written_through_numpy, replaced]


# weights of 11 KiB are compared in full, those of 20 KiB in samples
@pytest.mark.parametrize("grad_mode,columns", [(torch.no_grad, 130), (torch.inference_mode, 70)])
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_changed_weights_are_never_stale(change, grad_mode, columns):
    torch.manual_seed(0)
    layer = nn.Linear(40, columns)
    x = torch.randn(9, 40)
    fast = compiled(layer)
    with grad_mode():
        for _ in range(2):
            close(fast(x), layer(x))
    for _ in range(6):
        with torch.inference_mode(False):
            change(layer)
        with grad_mode():
            close(fast(x), layer(x))


def test_weights_are_packed_so_that_the_tests_above_test_something():
    layer = nn.Linear(256, 512)
    with torch.no_grad():
        compiled(layer)(torch.randn(64, 256))
    assert last_plans()[-1].packed


def test_weights_made_in_inference_mode():
    torch.manual_seed(0)
    with torch.inference_mode():
        layer = nn.Linear(40, 70)
        x = torch.randn(9, 40)
        fast = compiled(layer)
        close(fast(x), layer(x))
        layer.weight.mul_(2)
        close(fast(x), layer(x))


def test_buffers_that_change():
    norm = nn.BatchNorm1d(12).eval()
    fast, x = compiled(norm), torch.randn(5, 12)
    with torch.no_grad():
        close(fast(x), norm(x))
        norm.running_mean.add_(3)
        norm.running_var.mul_(2)
        close(fast(x), norm(x))


# ---- outputs that are kept ---------------------------------------------------------------------------


def whole(t):
    return t


def view(t):
    return t[1:].T


def storage(t):
    return t.untyped_storage()


def array(t):
    return t.numpy()


def array_view(t):
    return t.numpy()[1:, ::2]


def capsule(t):
    return torch.utils.dlpack.to_dlpack(t)


def detached(t):
    return t.detach()


def read(kept):
    if isinstance(kept, torch.UntypedStorage):
        return torch.tensor([], dtype=torch.float32).set_(kept).clone()
    if type(kept).__name__ == "PyCapsule":
        return torch.utils.dlpack.from_dlpack(kept).clone()
    return torch.as_tensor(kept).clone()


KEEPERS = [whole, view, storage, array, array_view, capsule, detached]


@pytest.mark.parametrize("keep", KEEPERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("fn", [lambda x: x * 2 + 1, lambda x: (x @ x).relu()], ids=["pointwise", "product"])
def test_kept_outputs_are_never_overwritten(fn, keep):
    fast = compiled(fn)
    fast(torch.zeros(8, 8))
    inputs = [torch.full((8, 8), float(n)) for n in range(5)]
    kept = []
    for x in inputs:
        out = fast(x)
        kept.append(keep(out))
        del out
    for x, k in zip(inputs, kept):
        want = keep(fn(x))
        assert torch.equal(read(k), read(want))


def test_saved_activations_survive_later_forward_calls():
    model, (tokens,) = model_cases.make("encoder")
    fast = compiled(model)
    others = [model_cases.tokens(2, 19) + 0, (model_cases.tokens(2, 19) + 5) % 97]
    losses = [fast(t).square().sum() for t in (tokens, *others)]
    fast(others[1])
    for t, loss in zip((tokens, *others), losses):
        model.zero_grad()
        loss.backward()
        got = [p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        model(t).square().sum().backward()
        for g, p in zip(got, model.parameters()):
            assert torch.allclose(g, p.grad, rtol=1e-3, atol=1e-4 * float(p.grad.abs().max()) + 1e-6)


def test_two_outputs_of_one_call_do_not_share_memory_unless_eager_does():
    def fn(x):
        y = x + 1
        return y, y * 1, y.view(-1), x.clone()

    fast = compiled(fn)
    a, b, c, d = fast(torch.zeros(4, 4))
    a.add_(10)
    assert float(b.sum()) == 16 and float(c.sum()) == 16 * 11 and float(d.sum()) == 0


# ---- inputs -----------------------------------------------------------------------------------------


def test_inputs_are_never_written():
    model, inputs = model_cases.make("block")
    before = [p.clone() for p in (*model.parameters(), *inputs)]
    with torch.no_grad():
        compiled(model)(*inputs)
    for p, b in zip((*model.parameters(), *inputs), before):
        assert torch.equal(p, b)


def test_mutated_inputs():
    def fn(x, y):
        x.add_(y)
        y[1:].mul_(2)
        return x * y

    x, y = torch.randn(5, 6), torch.randn(5, 6)
    x2, y2 = x.clone(), y.clone()
    want = fn(x2, y2)
    got = compiled(fn)(x, y)
    close(got, want), close(x, x2), close(y, y2)


def test_aliased_inputs():
    def fn(x, y):
        x.mul_(2)
        return x + y

    for pair in (lambda b: (b, b), lambda b: (b[:4], b[2:]), lambda b: (b, b.view(-1)[:6])):
        base, base2 = torch.arange(36.0).view(6, 6), torch.arange(36.0).view(6, 6)
        want = fn(*pair(base2))
        close(compiled(fn)(*pair(base)), want)
        assert torch.equal(base, base2)


def test_an_output_that_is_an_input_is_that_input():
    def fn(x):
        return x, x.view(-1), x + 1

    x = torch.randn(3, 4)
    a, b, _ = compiled(fn)(x)
    assert a.data_ptr() == x.data_ptr() and b.data_ptr() == x.data_ptr()


ODD = {
    "transposed": lambda: torch.randn(12, 9).t(), "strided": lambda: torch.randn(18, 24)[::2, ::2],
    "expanded": lambda: torch.randn(12).expand(9, 12), "offset": lambda: torch.randn(400)[37:145].view(9, 12),
    "flipped": lambda: torch.randn(9, 12).flip(0), "overlapping": lambda: torch.randn(20).as_strided((9, 12), (1, 1)),
    "unaligned": lambda: torch.randn(9 * 12 + 1)[1:].view(9, 12), "empty": lambda: torch.randn(0, 12),
    "one": lambda: torch.randn(1, 12), "padded rows": lambda: torch.randn(9, 20)[:, :12],
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_odd_layouts_through_a_small_network(kind):
    torch.manual_seed(0)
    x = ODD[kind]()
    net = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3), nn.Softmax(-1))
    with torch.no_grad():
        got, want = compiled(net)(x), net(x)
    assert got.shape == want.shape and got.stride() == want.stride()
    close(got, want)


def test_layouts_may_change_between_calls():
    def fn(x):
        return (x * 2).sum(-1), x.relu() + 1

    fast = compiled(fn)
    for make in (lambda: torch.randn(8, 8), lambda: torch.randn(8, 8).t(), lambda: torch.randn(65)[1:].view(8, 8),
                 lambda: torch.randn(16, 16)[::2, ::2], lambda: torch.randn(8, 8)):  # fmt: skip
        x = make()
        for g, w in zip(fast(x), fn(x)):
            close(g, w)
            assert g.stride() == w.stride()


@pytest.mark.parametrize("fn", [lambda x: x.sum(), lambda x: x.relu() * 2, lambda x: torch.cat([x, x]) + 1,
                                lambda x: x.sum(0), lambda x: x @ torch.zeros(x.shape[-1], 3),
                                lambda x: x.mean(-1)])  # fmt: skip
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0,), (2, 0, 3)])
def test_zero_size(fn, shape):
    x = torch.randn(shape)
    try:
        want = fn(x)
    except RuntimeError:
        return
    got = compiled(fn)(x)
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    assert torch.equal(got.nan_to_num(7), want.nan_to_num(7))


def test_zero_dimensional():
    def fn(x, y):
        return x + y, x * 2, torch.stack([x, y]), x.sum(), x.exp().reshape(1), torch.where(x > y, x, y)

    x, y = torch.tensor(2.5), torch.tensor(-1.25)
    for g, w in zip(compiled(fn)(x, y), fn(x, y)):
        assert g.shape == w.shape
        close(g, w)


def test_out_of_range_indices_raise():
    table = nn.Embedding(10, 4)
    fast = compiled(table)
    with torch.no_grad():
        close(fast(torch.tensor([0, 9])), table(torch.tensor([0, 9])))
        with pytest.raises(IndexError):
            fast(torch.tensor([0, 10]))
        with pytest.raises(IndexError):
            fast(torch.tensor([-1, 3]))
        close(fast(torch.tensor([1, 2])), table(torch.tensor([1, 2])))


# ---- threads ----------------------------------------------------------------------------------------


def test_two_threads_call_one_compiled_model():
    model, (tokens,) = model_cases.make("encoder")
    fast = compiled(model)
    inputs = [(tokens + n) % 97 for n in range(4)]
    with torch.no_grad():
        wanted = [model(t) for t in inputs]
        fast(tokens)
    wrong: list[str] = []

    def work(seed):
        with torch.no_grad():
            for n in range(40):
                at = (n * 3 + seed) % 4
                got = fast(inputs[at])
                if not torch.allclose(got, wanted[at], rtol=1e-4, atol=1e-5):
                    wrong.append(f"thread {seed}, call {n}")

    threads = [threading.Thread(target=work, args=(s,)) for s in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert isinstance(last_plans()[-1], ExecutionPlan)


def test_a_copy_of_a_compiled_model_has_its_own_weights():
    model, inputs = model_cases.make("block")
    with torch.no_grad():
        first = compiled(model)
        first(*inputs)
        other = copy.deepcopy(model)
        for p in other.parameters():
            p.mul_(0.5)
        second = torch.compile(other, backend=roller, fullgraph=True)
        close(second(*inputs), other(*inputs))
        close(first(*inputs), model(*inputs))
