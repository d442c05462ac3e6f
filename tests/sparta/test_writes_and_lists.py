"""Operators that write by index, work on lists, or are taken whole: the law, and what may be claimed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.sparta.test_law import law, part_of
from torchsparta.errors import CaptureError
from torchsparta.masked import ModelTeSA
from torchsparta.propagation import propagate
from torchsparta.tesa import TeSA

pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = torch.tensor([0, 2, 2, 1])
WRITES = {
    "scatter src": lambda a, b: a.scatter(1, torch.tensor([[[0], [2]], [[1], [3]]]).expand(2, 2, 6), b[:, :4]),
    "scatter twice": lambda a, b: a.scatter(1, torch.zeros(2, 1, 6, dtype=torch.long), b),
    "scatter value": lambda a, b: a.scatter(2, torch.tensor([1, 3]).expand(2, 5, 2), 0.5) + b,
    "scatter reduce": lambda a, b: a.scatter(1, ROWS.view(1, 4, 1).expand(2, 4, 6), b, reduce="multiply"),
    "scatter_add": lambda a, b: a.scatter_add(1, ROWS.view(1, 4, 1).expand(2, 4, 6), b),
    "scatter_reduce mean": lambda a, b: a.scatter_reduce(1, ROWS.view(1, 4, 1).expand(2, 4, 6), b, "mean"),
    "scatter_reduce amax": lambda a, b: a.scatter_reduce(
        1, ROWS.view(1, 4, 1).expand(2, 4, 6), b, "amax", include_self=False
    ),
    "index_add": lambda a, b: a.index_add(1, ROWS, b[:, :4], alpha=2),
    "index_copy": lambda a, b: a.index_copy(1, torch.tensor([3, 1]), b[:, 1:3]),
    "index_fill": lambda a, b: a.index_fill(2, torch.tensor([1, 4]), 0.0) * 1 + b,
    "index_fill tensor": lambda a, b: a.index_fill(1, torch.tensor([1, 4]), b.sum()),
    "index_put": lambda a, b: a.index_put((torch.tensor([1, 0]), torch.tensor([4, 2])), b[:, 0]),
    "index_put adds": lambda a, b: a.index_put((torch.tensor([1, 1]),), b[:1], accumulate=True),
    "index_put behind": lambda a, b: torch.ops.aten.index_put(a, [None, torch.tensor([4, 2])], b[:, :2]),
    "index_put mask": lambda a, b: a.index_put((torch.tensor([True, False]),), b[:1]),
    "index_put unknown": lambda a, b: a.index_put((a[:, 0, 0].gt(0).long(),), b),
    "index_put zeros somewhere": lambda a, b: a.index_put((b[:, 0, 0].gt(0).long(),), torch.zeros(5, 6).double()),
    "scatter_add unknown": lambda a, b: a.scatter_add(1, b.gt(0).long(), b * 0),
    "slice_scatter": lambda a, b: torch.slice_scatter(a, b[:, :, 1:3], 2, 1, 6, 3),
    "slice_scatter all": lambda a, b: torch.slice_scatter(a, b),
    "select_scatter": lambda a, b: torch.select_scatter(a, b[:, 0], 1, -1),
    "itself": lambda a, b: torch.slice_scatter(a, a, 1) + b,
    "copy": lambda a, b: torch.ops.aten.copy(a, b[:, :1]),
    "fill": lambda a, b: torch.ops.aten.fill(a, 0.25) + torch.ops.aten.fill(a, b.sum()) + b,
    "as_strided": lambda a, b: torch.as_strided(a * 1, (2, 4, 6), (30, 6, 1), 6).sum(1, keepdim=True) + b,
    "as_strided transposed": lambda a, b: torch.as_strided((a * 1).transpose(1, 2), (2, 5, 6), (30, 6, 1)) + b,
    "dropout": lambda a, b: torch.ops.aten.native_dropout(a, 0.5, False)[0] + b,
    "logcumsumexp": lambda a, b: a.logcumsumexp(1) + b,
    "convolution": lambda a, b: torch.ops.aten.convolution(
        a, torch.ones(3, 5, 1).double(), None, [1], [0], [1], False, [0], 1
    ).sum(1, keepdim=True) + b,
    "empty": lambda a, b: torch.empty_like(a).zero_() + b,
}  # fmt: skip
LISTS = {
    "add": lambda a, b: torch._foreach_add([a, b], [b, a], alpha=2),
    "add number": lambda a, b: torch._foreach_add([a, b], 0.5),
    "mul": lambda a, b: torch._foreach_mul([a, b], [b, a]),
    "mul itself": lambda a, b: torch._foreach_mul([a, b], [a, b]),
    "mul numbers": lambda a, b: torch._foreach_mul([a, b], [0.0, 2.0]),
    "mul tensor": lambda a, b: torch._foreach_mul([a, b], a.sum()),
    "div": lambda a, b: torch._foreach_div([a, b], [1 + b.abs(), 1 + a.abs()]),
    "maximum number": lambda a, b: torch._foreach_maximum([a, b], 0.25),
    "clamp_max": lambda a, b: torch._foreach_clamp_max([a, b], [b, a]),
    "pow": lambda a, b: torch._foreach_pow([a, b], 2.0),
    "pow of number": lambda a, b: torch._foreach_pow(2.0, [a, b]),
    "sigmoid": lambda a, b: torch._foreach_sigmoid([a, b]),
    "tanh": lambda a, b: torch._foreach_tanh([a, b]),
    "addcmul": lambda a, b: torch._foreach_addcmul([a, b], [b, a], [a, b], value=0.5),
    "addcmul numbers": lambda a, b: torch._foreach_addcmul([a, b], [b, a], [a, b], [0.5, 2.0]),
    "lerp": lambda a, b: torch._foreach_lerp([a, b], [b, a], 0.25),
}


class Net(nn.Module):
    def __init__(self, step):
        super().__init__()
        self.step = step
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        found = self.step(self.a(x), self.b(x))
        return self.c(found[0] + 3 * found[1] if isinstance(found, (tuple, list)) else found)


def masks(model, dead_a, dead_b, dead_c):
    found = {}
    for layer, dead in (("a", dead_a), ("b", dead_b)):
        mask = torch.ones(6, 6)
        mask[dead] = 0
        found[f"{layer}.weight"] = TeSA.from_mask(mask)
        if layer == "a":  # the dead rows of the other layer are constants: their bias lives
            found["a.bias"] = TeSA.from_mask(mask[:, 0].clone())
    mask = torch.ones(4, 6)
    mask[:, dead_c] = 0
    return ModelTeSA(found | {"c.weight": TeSA.from_mask(mask)})


@pytest.mark.parametrize(
    "dead", [([0, 1, 4], [1, 4, 5], [5]), ([0, 1, 2, 3, 4, 5], [2], [0, 3]), ([], [0], [1])]
)
@pytest.mark.parametrize("name", [*WRITES, *("foreach " + n for n in LISTS)])
def test_law_of_writes_and_lists(name, dead):
    torch.manual_seed(1)
    model = Net(WRITES[name] if name in WRITES else LISTS[name.removeprefix("foreach ")]).double().eval()
    law(model, masks(model, *dead), torch.randn(2, 5, 6, dtype=torch.float64))


def analysed(step, dead=([1, 4], [1, 4, 5], [5])):
    model = Net(step).double().eval()
    return law(model, masks(model, *dead), torch.randn(2, 5, 6, dtype=torch.float64))


def only(analysis, name):
    (node,) = [n for n in analysis.captured.graph.nodes if name in str(n.target)]
    return node


@pytest.mark.parametrize("name", ["index_add", "index_copy", "slice_scatter all", "select_scatter"])
def test_columns_disappear_through_a_write_along_rows(name):
    _, smaller = analysed(WRITES[name])
    assert smaller.get_parameter("c.weight").shape[1] < 6


def test_what_is_overwritten_is_not_needed():
    analysis, _ = analysed(WRITES["index_copy"], ([], [], []))
    node = only(analysis, "index_copy")
    need = analysis.need[node.args[0]].expand(2, 5, 6)
    assert need[:, [0, 2, 4]].all() and not need[:, [1, 3]].any()
    taken = analysis.need[only(analysis, "slice.Tensor")]
    assert bool(taken.all())


def test_an_element_written_twice_is_known_only_if_the_writers_agree():
    class Twice(nn.Module):
        def forward(self, x):
            index = torch.tensor([1, 1, 2, 2])
            return torch.zeros(4).double().scatter(0, index, torch.tensor([5.0, 6.0, 7.0, 7.0]).double()) + x

    model = Twice()
    analysis, _ = law(model, ModelTeSA({}), torch.randn(4, dtype=torch.float64))
    known = part_of(analysis.facts, only(analysis, "scatter"), None)
    assert known.full(known.known).tolist() == [True, False, True, True]
    assert known.full(known.value).tolist() == [0, 0, 7, 0]


def test_memory_that_nobody_filled_is_not_known():
    class Empty(nn.Module):
        def forward(self, x):
            return torch.empty(3, dtype=torch.float64).zero_() + torch.empty_like(x) * 0 + x

    found = propagate(Empty(), {}, (torch.randn(3, dtype=torch.float64),))
    assert found["empty_like"].sparsity() == 0 and not found.scrambled


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_columns_of_an_embedding_bag(mode, same_as_masked):
    class Bags(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.fc = nn.EmbeddingBag(9, 8, mode=mode), nn.Linear(8, 4)

        def forward(self, index, offsets):
            return self.fc(self.bag(index, offsets))

    mask = torch.ones(9, 8)
    mask[:, [1, 3]] = 0
    inputs = (torch.tensor([1, 2, 4, 5, 4, 3, 2, 8]), torch.tensor([0, 4, 4]))  # the second bag is empty
    fast = same_as_masked(Bags(), {"bag.weight": TeSA.from_mask(mask)}, inputs)
    if mode != "max":
        assert fast.get_parameter("bag.weight").shape == (9, 6)
        assert fast.get_parameter("fc.weight").shape == (4, 6)


def test_as_strided_behind_a_view_is_refused_with_what_to_do():
    model = Net(lambda a, b: torch.as_strided((a * 1)[:, :, :4], (2, 5, 6), (30, 6, 1)) + b)
    with pytest.raises(CaptureError, match="does not show; use slicing, unfold or expand"):
        propagate(model, {}, (torch.randn(2, 5, 6),))


def test_products_of_integers():
    class Integers(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("w", torch.randint(-5, 5, (8, 8), dtype=torch.int8))
            self.w[:, 2] = 0

        def forward(self, x):
            q = (x * 3).round().clamp(-100, 100).to(torch.int8)
            return F.relu(torch._int_mm(q, self.w).double())

    analysis, _ = law(Integers().eval(), ModelTeSA({}), torch.randn(32, 8, dtype=torch.float64))
    assert analysis.facts[only(analysis, "_int_mm")].zero.reshape(-1).tolist() == [i == 2 for i in range(8)]
