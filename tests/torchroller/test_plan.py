"""Memory of a plan, weights that change, aliasing, and what happens on errors."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.nn.functional as F
from roller_helpers import compiled, judge, last_plan

from torchroller.buffers import Life, OutputPool, assign


def test_buffers_alive_together_do_not_overlap():
    lives = {"a": Life(100, 0, 1), "b": Life(200, 1, 2), "c": Life(100, 2, 3), "d": Life(50, 0, 3)}
    offsets, total = assign(lives)
    for x, p in lives.items():
        for y, q in lives.items():
            if x < y and not (p.last < q.first or q.last < p.first):
                assert offsets[x] + p.nbytes <= offsets[y] or offsets[y] + q.nbytes <= offsets[x]
    assert all(at % 64 == 0 for at in offsets.values())
    assert total < sum(-(-life.nbytes // 64) * 64 for life in lives.values())


def test_a_deep_network_reuses_its_intermediates():
    net = torch.nn.Sequential(*[torch.nn.Linear(64, 64) for _ in range(10)])
    plan = judge(net, torch.randn(32, 64))
    assert plan.arena_bytes == 2 * 32 * 64 * 4


@pytest.mark.parametrize(
    "hold",
    [lambda t: t, lambda t: t[2:], lambda t: t.numpy(), lambda t: t.untyped_storage(), torch.utils.dlpack.to_dlpack,
     lambda t: t.detach()],
    ids=["tensor", "view", "numpy", "storage", "dlpack", "detached"],
)  # fmt: skip
def test_an_output_is_not_reused_while_anything_holds_it(hold):
    pool = OutputPool(16, torch.float32, torch.device("cpu"))
    tensor = torch.empty(0).set_(pool.storage(), 0, (16,), (1,))
    address = tensor.data_ptr()
    held = hold(tensor)
    del tensor
    assert pool.storage().data_ptr() != address
    del held
    assert pool.storage().data_ptr() == address


@pytest.mark.parametrize(
    "hold", [lambda t: t, lambda t: t[2:], lambda t: t.numpy(), lambda t: t.untyped_storage()]
)
def test_aliases_that_a_pool_makes_count_as_holders_too(hold):
    pool = OutputPool(16, torch.float32, torch.device("cpu"))

    def make():
        storage = pool.storage()
        return pool.tensor(storage, 0, torch.float32, (4, 4), (4, 1), 0)

    tensor = make()
    address = tensor.data_ptr()
    tensor.add_(1)
    assert tensor._version == 1 and not tensor._is_view()
    held = hold(tensor)
    del tensor
    other = make()
    assert other.data_ptr() != address and other._version == 0
    del held, other
    assert make().data_ptr() == address


def test_memory_that_a_caller_resized_is_not_handed_out_again():
    pool = OutputPool(16, torch.float32, torch.device("cpu"))
    pool.storage().resize_(0)
    assert pool.storage().nbytes() == 64


def test_results_of_earlier_calls_stay_as_they_were():
    fn = compiled(lambda x: x * 2)
    kept = [fn(torch.full((1000,), float(i))) for i in range(8)]
    assert [k[0].item() for k in kept] == [2.0 * i for i in range(8)]


CHANGES = {
    "in place": lambda m: m.weight.mul_(3),
    "copy_": lambda m: m.weight.copy_(torch.randn_like(m.weight)),
    "load_state_dict": lambda m: m.load_state_dict(torch.nn.Linear(40, 24).state_dict()),
    "swapped data": lambda m: setattr(m.weight, "data", torch.randn(24, 40)),
    "optimizer": lambda m: _step(m),
    "bias": lambda m: m.bias.add_(1),
}


def _step(m):
    m.weight.grad = torch.ones_like(m.weight)
    torch.optim.SGD([m.weight], lr=0.5).step()


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_changed_weight_is_packed_again(change):
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(40, 24), torch.randn(5, 40)
    with torch.no_grad():
        fn = compiled(layer)
        fn(x)
        assert last_plan().packed
        for _ in range(2):
            CHANGES[change](layer)
            torch.testing.assert_close(fn(x), layer(x))


def test_inference_tensors_are_never_packed():
    with torch.inference_mode():
        layer, x = torch.nn.Linear(40, 24), torch.randn(5, 40)
        fn = compiled(layer)
        fn(x)
        layer.weight.mul_(2)
        torch.testing.assert_close(fn(x), layer(x))
    assert not last_plan().packed


def test_packing_pads_ragged_columns():
    judge(torch.nn.Linear(33, 71), torch.randn(5, 33))
    assert last_plan().packed


def test_a_mutated_input_is_mutated():
    def fn(x, y):
        x.add_(y)
        return x * 2

    x, y = torch.randn(10), torch.randn(10)
    expect_x, other = x + y, x.clone()
    torch.testing.assert_close(compiled(fn)(other, y), expect_x * 2)
    torch.testing.assert_close(other, expect_x)


def test_aliases_of_inputs_and_of_outputs_stay_aliases():
    x = torch.randn(4, 6)
    a, b, c = compiled(lambda x: (x.t(), x.view(-1)[3:], x + 1))(x)
    assert a.data_ptr() == x.data_ptr() and b.data_ptr() == x.data_ptr() + 12
    assert c.data_ptr() != x.data_ptr()

    y, z = compiled(lambda x: (lambda t: (t, t.t()))(x * 2))(x)
    y.zero_()
    assert not z.any()


def test_a_clone_is_memory_of_its_own():
    x = torch.randn(4, 6)
    a, b = compiled(lambda x: (x.clone(), x.clone()))(x)
    assert len({a.data_ptr(), b.data_ptr(), x.data_ptr()}) == 3


def test_calls_from_many_threads():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.Linear(64, 64), torch.nn.LayerNorm(64)
    )
    xs = [torch.randn(16, 64) for _ in range(4)]
    with torch.no_grad():
        fn, wants = compiled(net), [net(x) for x in xs]
        fn(xs[0])
    wrong = []

    def work(i):
        with torch.no_grad():
            for _ in range(20):
                close = torch.allclose(fn(xs[i]), wants[i], atol=1e-5)
                wrong.extend([] if close else [i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_what_has_no_rule_is_called_in_aten_with_a_reason():
    plan = judge(lambda x: x.relu().cummax(0)[0].exp(), torch.randn(5, 3))
    (call,) = plan.externs
    assert call.reason == "no rule for aten.cummax" and "test_plan.py" in call.where
    assert len(plan.launches) == 2


def test_a_failing_rule_becomes_an_extern_call(monkeypatch):
    from torchroller.ops.registry import RULES

    def broken(cx, x):
        raise ValueError("on purpose")

    monkeypatch.setitem(RULES, "aten.exp", broken)
    plan = judge(lambda x: x.relu().exp() + 1, torch.randn(5))
    assert [e.reason for e in plan.externs] == ["the lowering rule failed: ValueError: on purpose"]


def test_a_failing_emitter_becomes_extern_calls(monkeypatch):
    from torchroller import choose

    real = choose.emit_loops

    def broken(expr, *args):
        if any(v.fn == "sqrt" for v in expr.values):
            raise RuntimeError("on purpose")
        return real(expr, *args)

    monkeypatch.setattr(choose, "emit_loops", broken)
    plan = judge(lambda x: (x.abs() + 0.12345).sqrt().sum(-1), torch.randn(5, 7))
    assert plan.externs and all("RuntimeError: on purpose" in e.reason for e in plan.externs)


def test_shapes_that_change_are_specialised():
    layer = torch.nn.Linear(8, 16)
    fn = torch.compile(
        lambda x: F.gelu(layer(x)).softmax(-1).reshape(-1, 4), backend=_backend(), dynamic=True
    )
    for n in (3, 5, 7, 5, 1):
        x = torch.randn(n, 8, requires_grad=True)
        fn(x).square().sum().backward()
        got, x.grad = x.grad, None
        F.gelu(layer(x)).softmax(-1).reshape(-1, 4).square().sum().backward()
        torch.testing.assert_close(got, x.grad)


def test_sizes_that_depend_on_values_run_in_aten():
    torch._dynamo.reset()
    fn = torch.compile(lambda x: x[x > 0].sum() + 1, backend=_backend())
    x = torch.randn(50)
    torch.testing.assert_close(fn(x), x[x > 0].sum() + 1)


def _backend():
    from torchroller.backend import roller

    torch._dynamo.reset()
    return roller


def test_max_autotune_measures_the_ranked_programs():
    torch._dynamo.reset()
    x, w = torch.randn(64, 96), torch.randn(96, 80)
    fn = torch.compile(lambda x, w: (x @ w).relu(), backend=_backend(), options={"measure": True, "topk": 3})
    torch.testing.assert_close(fn(x, w), (x @ w).relu(), atol=1e-4, rtol=1e-4)
    (launch,) = last_plan().launches
    assert launch.measured_s is not None and len(launch.measured_s) == len(launch.construction.ranked) > 1
    assert launch.measured_s[launch.chosen] == min(launch.measured_s)


def test_autocast():
    layer, x = torch.nn.Linear(24, 12), torch.randn(5, 24)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        want, got = torch.relu(layer(x)), compiled(lambda x: torch.relu(layer(x)))(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("executor", ["native", "interpret"])
def test_an_index_out_of_range_raises_as_in_aten(executor):
    table = torch.randn(10, 4)
    fn = compiled(lambda i, t: F.embedding(i, t) * 2, executor=executor)
    good = torch.tensor([1, 9, 0])
    torch.testing.assert_close(fn(good, table), table[good] * 2)
    for bad in ([1, 10, 0], [1, -1, 0]):
        with pytest.raises(IndexError, match="index out of range in one of the kernels fused_embedding_mul"):
            fn(torch.tensor(bad), table)
    torch.testing.assert_close(fn(good, table), table[good] * 2)


def test_kernels_are_dumped_where_asked(tmp_path):
    compiled(lambda x: x.softmax(-1) @ x.mT, dump_dir=str(tmp_path / "out"))(torch.randn(8, 8))
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert len(files) == 2 and files[0].startswith("000_fused_") and files[1].startswith("001_fused_")
    assert "reduce fmax" in (tmp_path / "out" / files[0]).read_text()


def test_packed_columns_of_several_axes_are_padded_axis_by_axis():
    """Columns that are split into heads of 12 are tiled by 16: four padded tiles, not the three that 48 / 16 gives."""
    layer, scale = torch.nn.Linear(48, 48, bias=False), torch.randn(19, 12)

    def fn(x):
        return (layer(x).view(2, 19, 4, 12).transpose(1, 2) * scale).transpose(1, 2) + 0

    x = torch.randn(2, 19, 48)
    with torch.no_grad():
        got = compiled(fn)(x)
        torch.testing.assert_close(got, fn(x))


@pytest.mark.parametrize("k,depth,pairs", [(6, 0, 2), (6, 8, 2), (5, 8, 4), (7, 16, 1)])
def test_packing_in_pairs_pads_along_k(k, depth, pairs):
    from torchroller.emit.common import Pack
    from torchroller.weights import pack

    n, block = 40, 16
    source = torch.randn(n, k)
    layout = Pack("t1", "float32", k, 1, (n,), (k,), 0, block, depth=depth, pairs=pairs)
    packed = pack(source, layout)
    assert packed.numel() == layout.elements
    got = packed.reshape(3, (depth or k) // pairs, block, pairs).permute(1, 3, 0, 2).reshape(depth or k, 48)
    assert torch.equal(got, torch.nn.functional.pad(source.T, (0, 48 - n, 0, (depth or k) - k)))


@pytest.mark.parametrize(
    "shape,block", [((48,), 16), ((50,), 16), ((4, 12), 16), ((3, 5, 20), 8), ((7,), 32), ((4, 16), 16)]
)
def test_packing_puts_every_element_where_the_kernel_reads_it(shape, block):
    from torchroller.emit.common import Pack
    from torchroller.weights import pack

    k, n = 6, torch.Size(shape).numel()
    source = torch.randn(n, k)
    strides = tuple(k * torch.Size(shape[d + 1 :]).numel() for d in range(len(shape)))
    layout = Pack("t1", "float32", k, 1, shape, strides, 0, block)
    packed = pack(source, layout)
    assert packed.numel() == layout.elements
    tiles = packed.reshape(*shape[:-1], -(-shape[-1] // block), k, block).movedim(
        -2, 0
    )  # k, outer.., tile, column
    want = source.T.reshape(k, *shape)
    padded = torch.nn.functional.pad(want, (0, tiles.shape[-1] * tiles.shape[-2] - shape[-1]))
    assert torch.equal(tiles.flatten(-2), padded)
