"""Rules of single operators: what is claimed, what disappears, and what is added by users."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchsparta
from torchsparta import TeSA
from torchsparta.propagation import RULES, Pointwise, register, rule_for

pytestmark = pytest.mark.filterwarnings("ignore")


def shapes(fast):
    return {s.name: s.shape for s in fast.meta["sparta"].sites}


def channels(module, dead, bias=True):
    mask = torch.ones(module.weight.shape)
    mask[dead] = 0
    found = {"weight": mask}
    if bias and module.bias is not None:
        found["bias"] = mask.flatten(1)[:, 0].clone()
    return found


class Lstm(nn.Module):
    def __init__(self, layers=1, both=False):
        super().__init__()
        self.lstm = nn.LSTM(6, 8, layers, batch_first=True, bidirectional=both)
        self.fc = nn.Linear(16 if both else 8, 3)

    def forward(self, x):
        return self.fc(self.lstm(x)[0])


def lstm_masks(model, units, rows):
    """Prune `units`: the given gate rows ("g" or all) of weights and biases of every layer."""
    found = {}
    for name, p in model.lstm.named_parameters():
        mask = torch.ones(p.shape)
        for gate in (2,) if rows == "g" else range(4):
            for u in units:
                mask[gate * 8 + u] = 0
        found[name] = mask
    return {"lstm": found}


@pytest.mark.parametrize("rows", ["g", "all"])
@pytest.mark.parametrize(("layers", "both"), [(1, False), (2, False), (2, True)])
def test_lstm_units_that_stay_zero_disappear(layers, both, rows, same_as_masked):
    model = Lstm(layers, both)
    tesa = torchsparta.from_nni(lstm_masks(model, (1, 4, 5), rows))
    fast = same_as_masked(model, tesa, (torch.randn(2, 7, 6),))
    assert shapes(fast)["fc"] == (3, 10 if both else 5)
    assert fast.get_parameter("lstm.weight_hh_l0").shape == (20, 5)


def test_lstm_units_that_nobody_reads_disappear(same_as_masked):
    model = Lstm()
    hidden = torch.ones(32, 8)
    hidden[:, 2] = 0
    out = torch.ones(3, 8)
    out[:, 2] = 0
    tesa = torchsparta.from_nni({"lstm": {"weight_hh_l0": hidden}, "fc": {"weight": out}})
    fast = same_as_masked(model, tesa, (torch.randn(2, 7, 6),))
    assert fast.get_parameter("lstm.weight_ih_l0").shape == (28, 6)


def test_lstm_unit_read_by_a_living_one_stays(same_as_masked):
    model = Lstm()
    out = torch.ones(3, 8)
    out[:, 2] = 0
    fast = same_as_masked(model, torchsparta.from_nni({"fc": {"weight": out}}), (torch.randn(2, 7, 6),))
    assert fast.get_parameter("lstm.weight_ih_l0").shape == (32, 6)


class Convs(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.a = nn.Conv2d(3, 12, 3, padding=1)
        self.b = nn.Conv2d(12, 24 if groups == 12 else 12, 3, padding=1, groups=groups)
        self.c = nn.Conv2d(24 if groups == 12 else 12, 5, 1)

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_grouped_and_depthwise_convolutions(groups, same_as_masked):
    model = Convs(groups)
    dead = [0, 1, 2, 3]  # one of three groups
    tesa = torchsparta.from_nni({"a": channels(model.a, dead), "b": channels(model.b, [0, 1, 2, 3])})
    fast = same_as_masked(model, tesa, (torch.randn(2, 3, 6, 6),))
    assert shapes(fast)["a"][0] == 8
    if groups == 3:
        assert shapes(fast)["b"] == (8, 4, 3, 3) and fast.get_submodule("b").attributes["groups"] == 2


def test_a_constant_channel_under_padding_differs_at_the_border(same_as_masked):
    # the constant relu(bias) of a dead channel meets zero padding: the fold is not one number per channel
    model = Convs(1)
    nn.init.uniform_(model.a.bias, 0.2, 0.8)
    fast = same_as_masked(
        model, torchsparta.from_nni({"a": channels(model.a, [0, 5, 7], False)}), (torch.randn(1, 3, 6, 6),)
    )
    assert shapes(fast)["a"] == (9, 3, 3, 3) and shapes(fast)["b"] == (12, 9, 3, 3)
    assert fast.meta["sparta"].folded


def test_transposed_convolution(same_as_masked):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, stride=2))
    same_as_masked(model, torchsparta.from_nni({"0": channels(model[0], [1, 2])}), (torch.randn(2, 3, 6, 6),))


class Concat(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 4)

    def forward(self, x):
        return self.c(torch.cat([self.a(x).relu(), self.b(x).sigmoid()], -1))


def test_concatenation(same_as_masked):
    model = Concat()
    tesa = torchsparta.from_nni({"a": channels(model.a, [0, 1, 2]), "b": channels(model.b, [7])})
    fast = same_as_masked(model, tesa, (torch.randn(2, 6),))
    assert shapes(fast) == {"a": (5, 6), "b": (7, 6), "c": (4, 12)}


class Attend(nn.Module):
    def __init__(self, window, kind="bool"):
        super().__init__()
        self.qkv, self.o = nn.Linear(16, 48), nn.Linear(16, 16)
        t = torch.arange(10)
        mask = (t[:, None] - t[None]).abs() <= window
        if kind == "float":
            mask = torch.where(mask, 0.0, -math.inf)
        self.register_buffer("mask", mask)

    def forward(self, x):
        q, k, v = self.qkv(x).view(2, 10, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        return self.o(y.transpose(1, 2).reshape(2, 10, 16))


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_attention_with_a_known_mask_is_a_site(kind, same_as_masked):
    model = Attend(2, kind)
    dead = list(range(32, 36))  # the values of head 0
    tesa = torchsparta.from_nni({"qkv": channels(model.qkv, dead)})
    fast = same_as_masked(model, tesa, (torch.randn(2, 10, 16),))
    (site,) = [s for s in fast.meta["sparta"].sites if s.op == "attention"]
    assert site.density == pytest.approx(44 / 100) and shapes(fast)["qkv"] == (36, 16)


def test_a_mask_that_hides_nothing_is_dropped(same_as_masked):
    fast = same_as_masked(Attend(10), torchsparta.ModelTeSA({}), (torch.randn(2, 10, 16),))
    assert not [s for s in fast.meta["sparta"].sites if s.op == "attention"]
    (call,) = [n for n in fast.graph.nodes if "scaled_dot" in str(n.target)]
    assert len(call.args) == 3


def test_softmax_of_minus_infinity_is_zero():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, -math.inf, 0.0]))

        def forward(self, x):
            return (x + self.mask).softmax(-1)

    found = torchsparta.propagate(Masked(), {}, (torch.randn(4, 3),))
    assert found["softmax"].dead_slices(1).tolist() == [False, True, False]
    assert found["x"].dead_slices(1).tolist() == [False, True, False]


def test_embedding_columns(same_as_masked):
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 4))
    mask = torch.ones(9, 8)
    mask[:, [1, 3]] = 0
    fast = same_as_masked(model, torchsparta.from_nni({"0": {"weight": mask}}), (torch.arange(6).view(2, 3),))
    assert shapes(fast)["1"] == (4, 6)
    assert fast.get_parameter("0.weight").shape == (9, 6)


def test_gather_and_scatter_when_they_pay(same_as_masked):
    # the residual keeps all channels; dead columns of the first layer and dead rows of the second still go
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(512, 512), nn.Linear(512, 512)

        def forward(self, x):
            return x + self.b(self.a(x).relu())

    model = Block()
    columns, rows = torch.ones(512, 512), torch.ones(512, 512)
    columns[:, :400], rows[100:] = 0, 0
    tesa = torchsparta.from_nni({"a": {"weight": columns}, "b": {"weight": rows}})
    fast = same_as_masked(model, tesa, (torch.randn(4, 512),))
    assert shapes(fast) == {"a": (512, 112), "b": (100, 512)}


def test_shrink_off_keeps_every_shape(same_as_masked):
    model = Convs(1)
    tesa = torchsparta.from_nni({"a": channels(model.a, [0, 5], False)})
    fast = same_as_masked(model, tesa, (torch.randn(1, 3, 6, 6),), shrink=False)
    assert shapes(fast) == {"a": (12, 3, 3, 3), "b": (12, 12, 3, 3), "c": (5, 12, 1, 1)}


# -- operators without a rule
# ------------------------------------------------------------------------------------
@torch.library.custom_op("sparta_test::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@doubled.register_fake
def _(x):
    return torch.empty_like(x)


torch.library.register_autograd("sparta_test::doubled", lambda ctx, g: g * 2)


class BlackBox(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.b(torch.ops.sparta_test.doubled(self.a(x)))


def test_scrambling_states_its_confidence_and_is_not_relied_on(same_as_masked):
    model = BlackBox()
    tesa = torchsparta.from_nni({"a": channels(model.a, [0, 1])})
    x = (torch.randn(3, 6),)
    found = torchsparta.propagate(model, tesa, x)
    assert found.scrambled == ("doubled",)
    assert found["doubled"].dead_slices(1).tolist() == [True, True] + [False] * 6
    assert found["doubled"].confidence == 1 - 2**-7
    assert "confidence 0.9922 (scrambling)" in str(found) and "not relied on: doubled" in str(found)
    assert torchsparta.propagate(model, tesa, x, scramble_trials=0)["doubled"].sparsity() == 0
    assert shapes(same_as_masked(model, tesa, x))["b"] == (
        4,
        8,
    )  # exact claims only: nothing shrinks behind it


def test_a_registered_rule_is_relied_on(same_as_masked):
    model = BlackBox()
    tesa = torchsparta.from_nni({"a": channels(model.a, [0, 1])})
    register(torch.ops.sparta_test.doubled.default, Pointwise())
    try:
        assert rule_for(torch.ops.sparta_test.doubled.default) is not None
        assert shapes(same_as_masked(model, tesa, (torch.randn(3, 6),))) == {"a": (6, 6), "b": (4, 6)}
    finally:
        del RULES["sparta_test::doubled"]


def test_widths_travel_with_moved_elements():
    class Moved(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 6))

        def forward(self, x):
            return x @ self.w.t().reshape(6, 4)

    code = torch.full((4, 6), 32)
    code[1] = 4
    found = torchsparta.propagate(Moved(), {"w": TeSA.from_codes((4, 6), code)}, (torch.randn(2, 6),))
    assert found["w"].bits[1].tolist() == [4] * 6
    moved = [t for n, t in found.tensors.items() if n.startswith(("t", "numpy", "permute", "transpose"))][0]
    assert moved.bits[:, 1].tolist() == [4] * 6 and moved.bits[0, 0] == 32
    assert set(found["matmul"].bit_histogram()) == {32}


def test_training_gives_the_same_steps_as_the_masked_model():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    tesa = torchsparta.from_nni({"0": channels(model[0], [0, 3]), "2": channels(model[2], [1])})
    x = torch.randn(5, 6, dtype=torch.float64)
    fast = torchsparta.sparsify(model, tesa, (x,), trainable=True)
    masked = torchsparta.masked_model(model, tesa)
    assert fast.get_submodule("0").weight.shape == (6, 6)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (fast, masked)]
    for _ in range(3):
        for m, optimizer in zip((fast, masked), optimizers):
            optimizer.zero_grad()
            m(x).square().mean().backward()
            optimizer.step()
        torchsparta.masked_model(masked, tesa, inplace=True)  # dense training needs its masks put back
        torch.testing.assert_close(fast(x), masked(x), atol=1e-10, rtol=1e-10)


def test_every_operator_that_torchroller_lowers_has_a_rule():
    import torchroller.lower  # noqa: F401  (rules register themselves when it is imported)
    from torchroller.ops.registry import RULES as LOWERED
    from torchsparta.propagation.table import rule_for

    without = []
    for name in LOWERED:
        space, _, packet = name.partition(".")
        found = getattr(getattr(torch.ops, space), packet, None)  # None: this torch does not have it
        if found is not None and rule_for(getattr(found, found.overloads()[0])) is None:
            without.append(name)
    assert not without


def test_values_made_from_a_shape_are_known(same_as_masked):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x):
            h = self.a(x)
            h = h * torch.ones_like(h) + torch.zeros_like(h) + h.new_full((8,), 0.5)
            return self.b(h) @ torch.mv(torch.eye(4, dtype=h.dtype), h.new_ones(4))

    mask = torch.ones(8, 6)
    mask[::2] = 0
    tesa = torchsparta.from_nni({"a": {"weight": mask, "bias": mask[:, 0]}})
    x = torch.randn(3, 6)
    fast = same_as_masked(Net(), tesa, (x,))
    assert fast.get_submodule("a").weight.shape == (
        4,
        6,
    )  # a dead row plus one half is a constant, folded into b
    plan = torchsparta.propagate(Net(), tesa, (x,))
    assert not plan.scrambled
