"""Whole models with random weights, forward and gradients, judged against float64."""

from __future__ import annotations

import copy

import pytest
import torch
from roller_helpers import compiled, double, last_plan

transformers = pytest.importorskip("transformers")


def bert():
    config = transformers.BertConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=4, intermediate_size=128,
                                     vocab_size=100)  # fmt: skip
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[1, 10:] = 0
    return transformers.BertModel(config), {"input_ids": torch.randint(0, 100, (2, 16)), "attention_mask": mask}


def gpt2():
    config = transformers.GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=100, n_positions=64, bos_token_id=0,
                                     eos_token_id=0)  # fmt: skip
    return transformers.GPT2Model(config), {"input_ids": torch.randint(0, 100, (2, 16)), "use_cache": False}


def vit():
    config = transformers.ViTConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=4, intermediate_size=128,
                                    image_size=32, patch_size=8)  # fmt: skip
    return transformers.ViTModel(config), {"pixel_values": torch.randn(2, 3, 32, 32)}


def llama():
    config = transformers.LlamaConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=4, vocab_size=100,
                                      num_key_value_heads=2, intermediate_size=128)  # fmt: skip
    return transformers.LlamaModel(config), {"input_ids": torch.randint(0, 100, (2, 16)), "use_cache": False}


def resnet():
    config = transformers.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])
    return transformers.ResNetModel(config), {"pixel_values": torch.randn(2, 3, 32, 32)}


class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = torch.nn.LSTMCell(20, 30)

    def forward(self, x):
        h = torch.zeros(x.shape[0], 30, dtype=x.dtype)
        c = h
        for i in range(3):
            h, c = self.cell(x[:, i], (h, c))
        return (h,)


def lstm():
    return Recurrent(), {"x": torch.randn(5, 3, 20)}


MODELS = [bert, gpt2, vit, llama, resnet, lstm]


def first(out):
    return out[0]


def error(got, exact):
    return float((got.double() - exact).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("make", MODELS, ids=lambda f: f.__name__)
def test_inference(make):
    torch.manual_seed(0)
    model, inputs = make()
    model.eval()
    reference = copy.deepcopy(model).double()
    fn = torch.compile(_fresh(model), backend=_roller())
    with torch.no_grad():
        exact, eager = first(reference(**double(inputs))), first(model(**inputs))
        for _ in range(2):
            ours = first(fn(**inputs))
            assert error(ours, exact) <= 4 * error(eager, exact) + 1e-6
    assert last_plan().launches


@pytest.mark.slow
@pytest.mark.parametrize("make", MODELS, ids=lambda f: f.__name__)
def test_every_gradient(make):
    torch.manual_seed(0)
    model, inputs = make()
    model.eval()
    reference = copy.deepcopy(model).double()
    _, exact = gradients(reference, reference, double(inputs))
    _, eager = gradients(model, model, inputs)
    _, ours = gradients(model, torch.compile(_fresh(model), backend=_roller()), inputs)
    assert ours.keys() == exact.keys()
    scale = max(float(g.abs().max()) for g in exact.values())
    for name, gradient in ours.items():
        assert error(gradient, exact[name]) <= 8 * error(eager[name], exact[name]) + 2e-6 * scale, name


def gradients(model, fn, inputs):
    model.zero_grad()
    out = fn(**inputs)
    loss = sum(out[i].square().mean() for i in range(len(out)))
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def _roller():
    from torchroller.backend import roller

    return roller


def _fresh(model):
    torch._dynamo.reset()
    return model


@pytest.mark.slow
def test_bert_runs_in_our_kernels_alone():
    torch.manual_seed(0)
    model, inputs = bert()
    model.eval()
    with torch.no_grad():
        compiled(model)(**inputs)
    plan = last_plan()
    assert not plan.externs
    assert plan.packed
    texts = {launch.kernel.source.text for launch in plan.launches}
    assert len(texts) < len(plan.launches)
