"""The law of propagation, on random graphs in float64.

Zeroing the pruned elements of every tensor while the graph runs leaves the outputs as they were; every
element that is claimed constant or zero by value has that value in the masked model; elements that are not
needed may be anything. And the structured model built from the same analysis computes the same.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import fx, nn

from torchsparta.api import difference
from torchsparta.capture import capture
from torchsparta.masked import ModelTeSA, masked_model
from torchsparta.propagation import Facts, analyse
from torchsparta.structure import structure_first
from torchsparta.tesa import TeSA

UNARY = [
    torch.relu, torch.sigmoid, torch.tanh, nn.functional.gelu, nn.functional.silu, torch.neg, torch.abs,
    torch.cos,
    lambda x: x * 2 + 1, lambda x: x.softmax(-1), lambda x: x.transpose(1, 2), lambda x: x.flip(1),
    lambda x: x * 0,
    lambda x: x.mean(-1, keepdim=True).expand(x.shape), lambda x: x.cumsum(1), lambda x: x.clamp(min=0.25),
    lambda x: torch.where(x > 0, x, torch.zeros_like(x)), lambda x: x.tril(),
    lambda x: nn.functional.pad(x, (1, 1), value=0.5)[..., 1:-1],
]  # fmt: skip
BINARY = [
    torch.add, torch.sub, torch.mul, torch.maximum,
    lambda a, b: torch.cat([a, b], -1).chunk(2, -1)[0] + torch.cat([b, a], -1)[..., a.shape[-1] :],
    lambda a, b: a / (1 + b.abs()), lambda a, b: torch.stack([a, b], 1).sum(1),
    lambda a, b: a.masked_fill(b > 0, 0.0),
]  # fmt: skip


class RandomNet(nn.Module):
    """A program: a list of steps over a growing list of [2, T, D] tensors."""

    def __init__(self, steps, width):
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleList()
        for kind, *rest in steps:
            if kind == "linear":
                self.layers.append(nn.Linear(width, width, bias=rest[1]))
            elif kind == "conv":
                groups = {0: 1, 1: width, 2: 2}[rest[1]]
                self.layers.append(nn.Conv1d(width, width, 3, padding=rest[2], groups=groups))
            elif kind == "norm":
                self.layers.append(nn.LayerNorm(width) if rest[1] else nn.BatchNorm1d(width))
            elif kind == "lstm":
                self.layers.append(nn.LSTM(width, width, batch_first=True))
            else:
                self.layers.append(nn.Identity())

    def forward(self, x):
        values = [x]
        for (kind, *rest), layer in zip(self.steps, self.layers):
            a = values[rest[0] % len(values)]
            if kind == "unary":
                y = UNARY[rest[1]](a)
            elif kind == "binary":
                y = BINARY[rest[2]](a, values[rest[1] % len(values)])
            elif kind == "linear":
                y = layer(a)
            elif kind == "conv":
                y = layer(a.transpose(1, 2)).transpose(1, 2)
            elif kind == "norm":
                y = layer(a) if rest[1] else layer(a.transpose(1, 2)).transpose(1, 2)
            elif kind == "lstm":
                y = layer(a)[0]
            else:  # attention over heads of width 2
                b = values[rest[1] % len(values)]
                q, k, v = (
                    t.unflatten(-1, (-1, 2)).transpose(1, 2) for t in (a, b, values[rest[2] % len(values)])
                )
                y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            if y.shape != x.shape:  # a transpose of a square, a convolution without padding
                y = y[:, : x.shape[1], : x.shape[2]]
                y = nn.functional.pad(y, (0, x.shape[2] - y.shape[2], 0, x.shape[1] - y.shape[1]))
            values.append(y)
        return values[-1], values[len(values) // 2]


def steps():
    index = st.integers(0, 7)
    return st.lists(
        st.one_of(
            st.tuples(st.just("linear"), index, st.booleans()),
            st.tuples(st.just("conv"), index, st.integers(0, 2), st.integers(0, 1)),
            st.tuples(st.just("norm"), index, st.booleans()),
            st.tuples(st.just("unary"), index, st.integers(0, len(UNARY) - 1)),
            st.tuples(st.just("binary"), index, index, st.integers(0, len(BINARY) - 1)),
            st.tuples(st.just("attention"), index, index, index),
            st.tuples(st.just("lstm"), index),
        ),
        min_size=2,
        max_size=7,
    )


def random_masks(model, seed):
    """Rows, columns or single elements of about half of the parameters; biases sometimes left alone."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, p in model.named_parameters():
        kind = int(torch.randint(0, 5, (), generator=generator))
        mask = torch.ones(p.shape)
        if kind == 0:
            mask[torch.rand(p.shape[0], generator=generator) < 0.6] = 0
        elif kind == 1 and p.dim() > 1:
            mask[:, torch.rand(p.shape[1], generator=generator) < 0.6] = 0
        elif kind == 2:
            mask = (torch.rand(p.shape, generator=generator) < 0.4).float()
        elif kind == 3:
            mask[: p.shape[0] // 2] = 0
        if kind < 4:
            found[name] = TeSA.from_mask(mask)
    return ModelTeSA(found)


class Zeroing(fx.Interpreter):
    """Runs a graph; `change(node, part, tensor)` may replace every tensor after it was computed."""

    def __init__(self, module, change):
        super().__init__(module)
        self.change = change

    def run_node(self, node):
        out = super().run_node(node)
        if isinstance(out, torch.Tensor):
            return self.change(node, None, out)
        if isinstance(out, (tuple, list)) and node.op == "call_function":
            return type(out)(self.change(node, i, t) for i, t in enumerate(out))
        return out


def part_of(mapping, node, part):
    found = mapping.get(node)
    return found if part is None else (found[part] if found is not None else None)


_GRAPHS = (steps(), st.integers(0, 10**6), st.sampled_from([4, 6]))
_OPTIONS = {"deadline": None, "suppress_health_check": list(HealthCheck), "derandomize": True}


@settings(max_examples=10, **_OPTIONS)
@given(*_GRAPHS)
def test_law(program, seed, width):
    holds(program, seed, width)


@pytest.mark.slow
@settings(max_examples=400, **_OPTIONS)
@given(*_GRAPHS)
def test_law_on_many_graphs(program, seed, width):
    holds(program, seed, width)


def holds(program, seed, width):
    torch.manual_seed(seed)
    model = RandomNet(program, width).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    law(model, random_masks(model, seed), torch.randn(2, 5, width, dtype=torch.float64))


def law(model, tesa, x):
    """Check all that the analysis of `model` claims; returns the analysis and the smaller model."""
    captured = capture(masked_model(model, tesa), (x,))
    analysis = analyse(captured, tesa)
    flat = {}

    def record(node, part, tensor):
        flat[(node, part)] = tensor
        return tensor

    with torch.no_grad():
        want = Zeroing(captured.graph_module, record).run(x)

        # 1. what is claimed to be known has that value
        for (node, part), tensor in flat.items():
            facts = part_of(analysis.facts, node, part)
            if isinstance(facts, Facts) and node.op != "placeholder" and not tensor.is_complex():
                known = facts.known.expand(tensor.shape)
                torch.testing.assert_close(
                    tensor[known].double(),
                    facts.value.expand(tensor.shape)[known].double(),
                    atol=1e-12,
                    rtol=1e-10,
                    equal_nan=True,
                )
                zero = facts.zero.expand(tensor.shape)
                assert (
                    float(tensor[zero].double().abs().sum()) <= 1e-12
                )  # memory that nobody filled may be NaN

        # 2. zeroing what is pruned, everywhere at once, changes no output; 3. nor does noise in what is not
        # needed
        def zeroed(node, part, tensor):
            if node.op == "placeholder" or not tensor.is_floating_point():
                return tensor
            facts, need = part_of(analysis.facts, node, part), part_of(analysis.need, node, part)
            dead = facts.zero if need is None else facts.zero | ~need
            dead = torch.ones(()).bool() if need is None else dead
            return torch.where(dead.expand(tensor.shape), torch.zeros((), dtype=tensor.dtype), tensor)

        got = Zeroing(captured.graph_module, zeroed).run(x)
        assert difference(want, got) <= 1e-10

    # 4. the smaller model computes the same
    smaller = fast = structure_first(analysis, tesa).module
    with torch.no_grad():
        assert difference(want, fast(x)) <= 1e-9

    # 5. and so does the one that will be trained, in which no parameter's value may be relied on
    training = analyse(captured, tesa, parameters_fixed=False)
    fast = structure_first(training, tesa, trainable=True).module
    with torch.no_grad():
        assert difference(want, fast(x)) <= 1e-9
    return analysis, smaller
