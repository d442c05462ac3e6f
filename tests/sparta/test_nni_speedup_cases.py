"""Six cases in which NNI 3.0's ModelSpeedup ignores masks, computes something else, or crashes.

Measured with nni 3.0 and torch 2.13.0 (ModelSpeedup through torch.fx.symbolic_trace; without it, it always
fails: NNI issue 5768). The comment of each test says what NNI gave: largest error against the masked model.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import torchsparta


def rows_of(layer, share=0.5):
    """L1NormPruner's choice: the rows with the smallest L1 norm."""
    norm = layer.weight.detach().abs().flatten(1).sum(1)
    alive = (norm > norm.kthvalue(int(share * norm.numel()))[0]).float()
    return alive.reshape(-1, *[1] * (layer.weight.dim() - 1)).expand(layer.weight.shape).contiguous(), alive


def mlp(activation):
    return nn.Sequential(nn.Linear(16, 32), activation, nn.Linear(32, 8))


def test_unstructured_masks_are_not_ignored(same_as_masked):
    # NNI: masks of LevelPruner silently ignored, the output is that of the unpruned model
    model, x = mlp(nn.ReLU()), torch.randn(4, 16)
    weight = model[0].weight.detach().abs()
    mask = (weight > weight.flatten().kthvalue(256)[0]).float()
    tesa = torchsparta.from_nni({"0": {"weight": mask, "bias": torch.ones(32)}})
    fast = same_as_masked(model, tesa, (x,), single=True)
    assert not torch.allclose(fast(x), model(x), atol=1e-3)
    assert 0.4 < fast.meta["sparta"].sites[0].density < 0.6


def test_a_bias_left_unmasked_survives(same_as_masked):
    # NNI: wrong by 0.038; a row that is constant (std == 0) is taken for zero and its constant is dropped
    model, x = mlp(nn.ReLU()), torch.randn(4, 16)
    nn.init.uniform_(model[0].bias, 0.1, 0.5)
    mask, _ = rows_of(model[0])
    fast = same_as_masked(model, torchsparta.from_nni({"0": {"weight": mask}}), (x,))
    assert [s.shape for s in fast.meta["sparta"].sites] == [(16, 16), (8, 16)]
    assert fast.meta["sparta"].folded == ("linear_1",)


def test_sigmoid_of_pruned_rows_is_one_half(same_as_masked):
    # NNI: wrong by 0.41; sigmoid is taken for an operator that preserves masks, but sigmoid(0) = 0.5
    model, x = mlp(nn.Sigmoid()), torch.randn(4, 16)
    mask, bias = rows_of(model[0])
    tesa = torchsparta.from_nni({"0": {"weight": mask, "bias": bias}})
    fast = same_as_masked(model, tesa, (x,))
    assert [s.shape for s in fast.meta["sparta"].sites] == [(16, 16), (8, 16)]
    found = torchsparta.propagate(model, tesa, (x,))["sigmoid"]
    assert set(found.values[:, bias == 0].flatten().tolist()) == {0.5}


def test_softmax_over_pruned_rows_keeps_their_share(same_as_masked):
    # NNI: wrong by 0.072; exp(0) = 1 takes part in the sum
    model, x = mlp(nn.Softmax(dim=-1)), torch.randn(4, 16)
    mask, bias = rows_of(model[0])
    same_as_masked(model, torchsparta.from_nni({"0": {"weight": mask, "bias": bias}}), (x,))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv1 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.conv2, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.head(F.relu(x + self.conv2(F.relu(self.conv1(x)))))


def test_residual_convolutions(same_as_masked):
    # NNI: 0.27 from the masked model; its conflict fix brings channels back (0.5 -> 0.375 pruned) at original
    # weights
    model, x = Residual(), torch.randn(2, 3, 8, 8)
    masks = {}
    for name in ("stem", "conv1", "conv2"):
        weight, bias = rows_of(model.get_submodule(name))
        masks[name] = {"weight": weight, "bias": bias}
    fast = same_as_masked(model, torchsparta.from_nni(masks), (x,))
    shapes = {s.name: s.shape for s in fast.meta["sparta"].sites}
    both = int(((masks["stem"]["bias"] + masks["conv2"]["bias"]) > 0).sum())
    assert shapes["conv1"] == (8, both, 3, 3) or shapes["conv1"] == (8, 8, 3, 3)
    assert shapes["head"][1] == both < 16


class Heads(nn.Module):
    def __init__(self, width=32, heads=4):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (
            f(x).view(b, t, self.heads, c // self.heads).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        scores = (q @ k.transpose(-2, -1)) / (c // self.heads) ** 0.5
        return self.o((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, c))


def test_rows_of_q_k_v_with_views_of_heads(same_as_masked):
    # NNI: builds, then the forward crashes: the view still has the old number of heads
    model, x = Heads(), torch.randn(2, 5, 32)
    masks = {}
    for name in "qkv":
        weight, bias = rows_of(model.get_submodule(name))
        masks[name] = {"weight": weight, "bias": bias}
    same_as_masked(model, torchsparta.from_nni(masks), (x,))


def test_whole_heads_of_q_k_v_disappear(same_as_masked):
    model, x = Heads(), torch.randn(2, 5, 32)
    alive = torch.ones(32)
    alive[:8], alive[16:24] = 0, 0
    mask = {"weight": alive[:, None].expand(32, 32).contiguous(), "bias": alive}
    fast = same_as_masked(model, torchsparta.from_nni({n: mask for n in "qkv"}), (x,))
    shapes = {s.name: s.shape for s in fast.meta["sparta"].sites}
    assert shapes == {"q": (16, 32), "k": (16, 32), "v": (16, 32), "o": (32, 16)}


def test_masking_values_alone_removes_the_whole_head(same_as_masked):
    # backward and sideways: a head whose values are zero needs no queries and no keys
    model, x = Heads(), torch.randn(2, 5, 32)
    alive = torch.ones(32)
    alive[8:16] = 0
    mask = {"weight": alive[:, None].expand(32, 32).contiguous(), "bias": alive}
    tesa = torchsparta.from_nni({"v": mask})
    fast = same_as_masked(model, tesa, (x,))
    assert {s.shape for s in fast.meta["sparta"].sites} == {(24, 32), (32, 24)}
    gained = torchsparta.propagate(model, tesa, (x,)).gained()
    assert gained == {"q.weight": 256, "q.bias": 8, "k.weight": 256, "k.bias": 8, "o.weight": 256}


def test_columns_of_the_next_layer_prune_the_rows_before_it(same_as_masked):
    # NNI: right
    model, x = mlp(nn.ReLU()), torch.randn(4, 16)
    mask = torch.ones(8, 32)
    mask[:, ::2] = 0
    fast = same_as_masked(model, torchsparta.from_nni({"2": {"weight": mask}}), (x,))
    assert [s.shape for s in fast.meta["sparta"].sites] == [(16, 16), (8, 16)]


def test_transformer_encoder_layer(same_as_masked):
    # NNI: symbolic_trace fails on it
    model = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
    weight, bias = rows_of(model.linear1)
    fast = same_as_masked(
        model, torchsparta.from_nni({"linear1": {"weight": weight, "bias": bias}}), (torch.randn(2, 5, 32),)
    )
    assert (32, 32) in {s.shape for s in fast.meta["sparta"].sites}
