"""Which operators share a kernel, and that views cost nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from roller_helpers import compiled, judge, last_plan


def names(plan):
    return [launch.kernel.source.name for launch in plan.launches]


def test_a_pointwise_chain_is_one_kernel_over_one_axis():
    plan = judge(lambda x, y: (x * 2 + y).relu().sqrt(), torch.rand(3, 4, 5), torch.rand(3, 4, 5))
    assert len(plan.launches) == 1
    assert [a.extent for a in plan.launches[0].expr.axes] == [60]


def test_softmax_with_its_producers_and_consumers_is_one_kernel():
    plan = judge(lambda x, m: (x * 0.125 + m).softmax(-1) * 2, torch.randn(4, 6, 40), torch.randn(40))
    assert len(plan.launches) == 1
    assert [v.fn for v in plan.launches[0].expr.values if v.kind == "reduce"] == ["fmax", "sum"]


def test_bias_activation_and_residual_are_an_epilogue():
    plan = judge(lambda x, w, b, r: F.gelu(F.linear(x, w, b)) + r, torch.randn(10, 32), torch.randn(48, 32),
                 torch.randn(48), torch.randn(10, 48))  # fmt: skip
    assert len(plan.launches) == 1
    assert sum(v.kind == "dot" for v in plan.launches[0].expr.values) == 1


def test_a_transformer_block_is_as_many_kernels_as_it_has_products_and_norms():
    torch.manual_seed(0)

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = torch.nn.LayerNorm(64), torch.nn.LayerNorm(64)
            self.qkv, self.out = torch.nn.Linear(64, 192), torch.nn.Linear(64, 64)
            self.up, self.down = torch.nn.Linear(64, 256), torch.nn.Linear(256, 64)

        def forward(self, x):
            b, s, _ = x.shape
            q, k, v = (t.view(b, s, 4, 16).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(a.transpose(1, 2).reshape(b, s, 64))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    plan = judge(Block().eval(), torch.randn(2, 24, 64))
    assert not plan.externs
    assert len(plan.launches) == 7, names(plan)  # 2 norms, 4 products, attention


def test_splitting_heads_copies_nothing():
    def fn(x, w, b):
        q = F.linear(x, w, b).view(2, 5, 4, 8).transpose(1, 2)
        return q @ q.mT

    assert len(judge(fn, torch.randn(2, 5, 32), torch.randn(32, 32), torch.randn(32)).launches) == 2


def test_merging_heads_is_written_by_the_producer():
    def fn(p, v, w):
        return (p @ v).transpose(1, 2).reshape(2, 5, 32) @ w

    plan = judge(fn, torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 8), torch.randn(32, 16))
    assert len(plan.launches) == 2


def test_parts_of_a_cat_are_written_in_place():
    plan = judge(lambda x, y: torch.cat([x.relu(), y * 2, x + 1], 1), torch.randn(6, 8), torch.randn(6, 3))
    assert len(plan.launches) == 3 and plan.arena_bytes == 0


def test_embeddings_are_summed_and_normalised_in_one_kernel():
    plan = judge(lambda i, a, b: F.layer_norm(F.embedding(i, a) + b[: i.shape[1]], (16,)), torch.tensor([[1, 3, 2]]),
                 torch.randn(9, 16), torch.randn(5, 16))  # fmt: skip
    assert len(plan.launches) == 1


def test_one_kernel_per_operator_without_fusion():
    plan = judge(lambda x: (x * 2).relu().sqrt() + 1, torch.rand(30), fuse=False)
    assert len(plan.launches) == 4


def test_a_value_with_readers_at_other_points_is_stored():
    def fn(x):
        y = x.exp()
        return y + y.transpose(0, 1)

    assert len(judge(fn, torch.randn(20, 20)).launches) == 2


def test_a_fusion_that_would_wait_for_itself_is_not_made():
    def fn(x, w):
        y = x.exp()
        z = y @ w
        return y + z.sum(), y * z.softmax(-1)

    judge(fn, torch.randn(16, 16), torch.randn(16, 16))


def test_few_results_of_a_long_reduction_come_from_two_kernels():
    plan = judge(lambda x: x.sum(), torch.randn(512, 256))
    assert len(plan.launches) == 2
    assert plan.launches[0].kernel.source.grid > 1 or torch.get_num_threads() == 1


def test_equal_layers_share_their_kernels():
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        *[torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.ReLU()) for _ in range(5)]
    )
    plan = judge(net, torch.randn(4, 32))
    assert len(plan.launches) == 5
    assert len({id(launch.kernel) for launch in plan.launches}) == 1


def test_the_same_graph_gives_the_same_text():
    def fn(x, w):
        return F.gelu(x @ w).softmax(-1)

    args = torch.randn(16, 32), torch.randn(32, 64)
    first, second = ([x.kernel.source.text for x in judge(fn, *args).launches] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("view", [
    lambda x: x.reshape(-1).flip(0),
    lambda x: x.flatten(0, 1).flip(0).reshape(4, 6, 5).flip(2),
    lambda x: x.flatten(1).flip(1).reshape(4, 5, 6).flip(0, 2),
    lambda x: (x * 2).flatten(1).flip(1)[:, 3:27:2].reshape(4, 3, 4),
    lambda x: x.transpose(0, 2).flip(1).reshape(-1).flip(0).view(5, 24),
])  # fmt: skip
def test_views_that_walk_backwards_over_merged_dimensions(view):
    x = torch.arange(120.0).view(4, 6, 5)
    with torch.no_grad():
        assert torch.equal(compiled(lambda x: view(x) + 1)(x), view(x) + 1)
    assert not last_plan().externs


def test_a_value_that_several_products_read_is_stored_once():
    torch.manual_seed(0)
    first, second = torch.nn.Linear(40, 7), torch.nn.Linear(40, 9)

    def fn(x):
        hidden = torch.tanh(x) * 2 + 1
        return first(hidden), second(hidden.view(5, 40))

    with torch.no_grad():
        for got, want in zip(compiled(fn)(x := torch.randn(5, 40)), fn(x)):
            assert torch.allclose(got, want, atol=1e-5)
    assert len(last_plan().launches) == 3
