"""Whole models, small and with random weights: the sparse model equals the masked one, and is smaller where
it can be."""

from __future__ import annotations

import pytest
import torch

import torchsparta
from torchsparta.api import difference

from .models import transformers_small as zoo

pytestmark = pytest.mark.filterwarnings("ignore")


def built(name):
    if name in ("bert", "vit", "gpt2", "llama"):
        pytest.importorskip("transformers")
    return zoo.ALL[name]()


def exactness(name):
    # Llama casts to float32 inside (RMSNorm, rotary tables): no float64 comparison can be tighter than that
    return 1e-5 if name == "llama" else 1e-9


@pytest.mark.parametrize("name", ["bert", "mobilenet", "llama"])
def test_rows_pruned(name, same_as_masked):
    model, inputs = built(name)
    fast = same_as_masked(model, zoo.rows(model, 0.5), inputs, exact=exactness(name), single=True)
    info = fast.meta["sparta"]
    assert info.parameters < info.parameters_before
    assert sum(s.macs for s in info.sites) < sum(s.macs_before for s in info.sites)


@pytest.mark.parametrize("name", ["bert", "mobilenet"])
def test_rows_pruned_with_live_biases(name, same_as_masked):
    model, inputs = built(name)
    fast = same_as_masked(model, zoo.rows(model, 0.5, mask_bias=False), inputs, exact=exactness(name))
    assert fast.meta["sparta"].folded


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", pytest.param("vit", marks=pytest.mark.slow)])
def test_half_of_heads_and_ffn_disappear(name, same_as_masked):
    model, inputs = built(name)
    fast = same_as_masked(model, zoo.coarse(model), inputs, exact=exactness(name))
    shapes = {s.name: (s.shape_before, s.shape) for s in fast.meta["sparta"].sites}
    for site, (before, after) in shapes.items():
        if "intermediate" in site or "up_proj" in site or "c_fc" in site or "fc1" in site:
            assert after[0] == before[0] // 2, site
        if site.endswith(("query", "key", "value", "q_proj", "v_proj")) and "llama" not in name:
            assert after[0] == before[0] // 2, site
        if name == "gpt2" and site.endswith("c_attn"):
            assert after[0] == before[0] // 2, site


@pytest.mark.parametrize("name", ["bert", "resnet"])
def test_unstructured(name, same_as_masked):
    model, inputs = built(name)
    fast = same_as_masked(model, zoo.unstructured(model, 0.9), inputs, exact=exactness(name))
    assert all(
        s.density < 0.3 for s in fast.meta["sparta"].sites if "classifier" not in s.name and s.name != "fc"
    )


@pytest.mark.slow
@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9, 0.99])
@pytest.mark.parametrize("kind", ["rows", "unstructured"])
@pytest.mark.parametrize("name", zoo.ALL)
def test_every_model_at_every_level(name, kind, sparsity, same_as_masked):
    model, inputs = built(name)
    same_as_masked(model, getattr(zoo, kind)(model, sparsity), inputs, exact=exactness(name), single=True)


def test_an_all_zero_layer(same_as_masked):
    model, inputs = built("bert")
    tesa = zoo.rows(model, 1.0)
    layer = "encoder.layer.0.intermediate.dense"
    only = type(tesa)({k: v for k, v in tesa.items() if k.startswith(layer)})
    fast = same_as_masked(model, only, inputs)
    assert not any(s.name == layer for s in fast.meta["sparta"].sites)


@pytest.mark.parametrize("name", ["bert", pytest.param("gpt2", marks=pytest.mark.slow), "llama"])
def test_other_batches_and_lengths_through_dynamic_shapes(name):
    model, (ids,) = built(name)
    tesa, auto = zoo.coarse(model), torch.export.Dim.AUTO
    fast = torchsparta.sparsify(model, tesa, (ids,), dynamic_shapes=({0: auto, 1: auto},))
    more = torch.randint(0, 64, (5, ids.shape[1] + 7))
    with torch.no_grad():
        assert difference(torchsparta.masked_model(model, tesa).eval()(more), fast(more)) < 2e-5


def test_a_cache_in_the_output_is_refused_with_the_way_out():
    model, inputs = built("gpt2")
    model.config.use_cache = True
    with pytest.raises(torchsparta.CaptureError, match="use_cache = False"):
        torchsparta.sparsify(model, {}, inputs)
