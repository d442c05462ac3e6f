"""Readers of masks, and bad input: each a clear error or the right answer."""

from __future__ import annotations

import warnings
from collections import defaultdict

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import torchsparta
from torchsparta import MaskError, ModelMismatch, TeSA


def mlp():
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)).eval()


X = (torch.ones(2, 8),)


def masks(**of_first):
    return {"0": {"weight": torch.ones(12, 8), **of_first}}


# -- refused ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"0": {"weight": torch.ones(8, 12)}},
            MaskError,
            r"0\.weight: the mask has shape \(8, 12\), the parameter \(12, 8\)",
        ),
        ({"fc9": {"weight": torch.ones(12, 8)}}, ModelMismatch, "no module 'fc9'"),
        ({"0": {"wieght": torch.ones(12, 8)}}, ModelMismatch,
         r"no parameter or buffer '0\.wieght'; did you mean '0\.weight'"),
        (masks(weight=torch.full((12, 8), 0.5)), MaskError, "96 of 96 values that are neither 0 nor 1.*0.5"),
        (masks(weight=torch.full((12, 8), float("nan"))), MaskError, "contains 96 NaN"),
        ({"0": torch.ones(12, 8)}, MaskError, "expected a dictionary of targets"),
        ([torch.ones(12, 8)], MaskError, "pass the second"),
        ({"0": {"weight": "all"}}, MaskError, "expected a tensor or a quantizer entry, got str"),
        ({"0": {"weight": {"scale": torch.tensor(1.0)}}}, MaskError, "lacks .'zero_point'."),
        (
            {"0": {"weight": {"scale": torch.tensor(-1.0), "zero_point": torch.tensor(0.0)}}},
            MaskError,
            "must be finite and positive",
        ),
        (
            {"0": {"weight": {"scale": torch.ones(5, 1), "zero_point": torch.zeros(5, 1)}}},
            MaskError,
            "5 quantization blocks do not divide size 12",
        ),
        (
            {"0": {"weight": {"scale": torch.tensor(1.0), "zero_point": torch.tensor(0.0),
            "quant_dtype": "fp8"}}},
            MaskError,
            "quant_dtype 'fp8' is not of the form",
        ),
    ],
)  # fmt: skip
def test_bad_masks_are_refused(given, error, message):
    with pytest.raises(error, match=message):
        torchsparta.sparsify(mlp(), given, X)


def test_a_bias_mask_without_a_bias_is_noted():
    model = nn.Sequential(nn.Linear(8, 12, bias=False))
    fast = torchsparta.sparsify(model, {"0": {"weight": torch.ones(12, 8), "bias": torch.ones(12)}}, X)
    assert any("has no bias" in n for n in fast.meta["sparta"].notes)


def test_no_masks_at_all():
    with pytest.raises(MaskError, match="neither masks nor a quantizer"):
        torchsparta.from_nni()
    with pytest.raises(MaskError, match="from_nni"):
        torchsparta.propagate(mlp(), masks(), X)  # raw dictionaries go through from_nni
    with pytest.raises(MaskError, match="from_zeros"):
        torchsparta.from_torch_prune(mlp())
    with pytest.raises(MaskError, match="from_zeros"):
        torchsparta.from_torch_ao(mlp())


# -- odd but right ----------------------------------------------------------------------------------
def test_an_all_zero_layer(same_as_masked):
    fast = same_as_masked(mlp(), torchsparta.from_nni(masks(weight=torch.zeros(12, 8))), X, single=True)
    assert torch.equal(
        fast(torch.randn(2, 8)), fast(torch.randn(2, 8))
    )  # nothing depends on the input any more


def test_an_all_ones_mask_changes_nothing(same_as_masked):
    model = mlp()
    fast = same_as_masked(model, torchsparta.from_nni(masks()), X, single=True)
    assert [s.shape for s in fast.meta["sparta"].sites] == [(12, 8), (4, 12)]
    torch.testing.assert_close(fast(*X), model(*X))


def test_boolean_and_integer_masks():
    mask = torch.rand(12, 8) < 0.5
    for kind in (torch.bool, torch.uint8, torch.int64, torch.float64):
        tesa = torchsparta.from_nni(masks(weight=mask.to(kind)))
        assert torch.equal(tesa["0.weight"].mask, mask)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.head = nn.Embedding(10, 6), nn.Linear(6, 10, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.emb(ids)))


def test_masks_on_tied_weights_are_merged(same_as_masked):
    model, ids = Tied(), torch.arange(10).reshape(2, 5)
    one, two = torch.ones(10, 6), torch.ones(10, 6)
    one[:, 1], two[:, 4] = 0, 0
    tesa = torchsparta.from_nni({"emb": {"weight": one}, "head": {"weight": two}})
    fast = same_as_masked(model, tesa, (ids,))
    assert any("tied" in n for n in fast.meta["sparta"].notes)
    assert fast.meta["sparta"].sites[0].shape == (10, 4)
    assert torch.equal(torchsparta.propagate(model, tesa, (ids,))["emb.weight"].mask, (one * two).bool())


def test_masks_of_activations(same_as_masked):
    inputs = torch.ones(2, 8)
    inputs[:, :3] = 0
    outputs = torch.ones(2, 12)
    outputs[:, 5:] = 0
    tesa = torchsparta.from_nni({"0": {"_input_0": inputs, "_output_0": outputs}})
    fast = same_as_masked(mlp(), tesa, (torch.randn(2, 8),))
    assert [s.shape for s in fast.meta["sparta"].sites] == [(5, 8), (4, 5)]


# -- other sources ----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["dict", "defaultdict", "safetensors"])
def test_mask_files(kind, tmp_path):
    mask = (torch.rand(12, 8) < 0.5).float()
    if kind == "safetensors":
        from safetensors.torch import save_file

        path = tmp_path / "m.safetensors"
        save_file({"0.weight": mask}, str(path))
    else:
        path = tmp_path / "m.pth"
        data = {"0": {"weight": mask}} if kind == "dict" else defaultdict(dict, {"0": {"weight": mask}})
        torch.save(data, path)
    tesa = torchsparta.from_nni(path, model=mlp())
    assert torch.equal(tesa["0.weight"].mask, mask.bool())


def test_mask_files_that_are_none(tmp_path):
    with pytest.raises(MaskError, match="no mask file at"):
        torchsparta.from_nni(tmp_path / "nothing.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(MaskError, match="holds a list"):
        torchsparta.from_nni(tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(MaskError, match="could not be read as masks"):
        torchsparta.from_nni(tmp_path / "text.pth")


def test_torch_prune(same_as_masked):
    model = mlp()
    prune.ln_structured(model[0], "weight", 0.5, n=1, dim=0)
    prune.l1_unstructured(model[2], "weight", 0.5)
    tesa = torchsparta.from_torch_prune(model)
    assert sorted(tesa) == ["0.weight", "2.weight"]
    fast = same_as_masked(torchsparta.prune_free(model), tesa, (torch.randn(2, 8),))
    assert fast.meta["sparta"].sites[0].shape == (6, 8)


def test_torch_ao_pruning(same_as_masked):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao.pruning import WeightNormSparsifier

        model = mlp()
        sparsifier = WeightNormSparsifier(sparsity_level=0.5, sparse_block_shape=(1, 4), zeros_per_block=4)
        sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
        sparsifier.step()
        tesa = torchsparta.from_torch_ao(sparsifier)
    assert 0.3 < tesa["0.weight"].sparsity() < 0.7
    same_as_masked(torchsparta.prune_free(model), tesa, (torch.randn(2, 8),))


def test_zeros_of_a_dense_model():
    model = mlp()
    with torch.no_grad():
        model[0].weight[:6] = 0
    tesa = torchsparta.from_zeros(model)
    assert list(tesa) == ["0.weight"] and tesa["0.weight"].sparsity() == 0.5
    assert not torchsparta.from_zeros(model, min_sparsity=0.6)


def test_masks_and_quantizer_together():
    mask = (torch.rand(12, 8) < 0.5).float()
    entry = {
        "scale": torch.tensor(0.01),
        "zero_point": torch.tensor(0.0),
        "quant_dtype": "int8",
        "quant_bits": 8,
    }
    tesa = torchsparta.from_nni(masks(weight=mask), {"0": {"weight": entry}})
    assert tesa["0.weight"].bit_histogram() == {0: int((mask == 0).sum()), 8: int(mask.sum())}
    model = mlp()
    weight = torchsparta.masked_model(model, tesa)[0].weight
    q = weight / 0.01
    assert torch.allclose(q, q.round(), atol=1e-3) and bool((weight[mask == 0] == 0).all())
    plain = torchsparta.from_nni({"0": {"weight": entry}}, model=model)["0.weight"]
    assert plain.shape == (12, 8) and plain.sparsity() == 0


def test_tesa_of_the_wrong_kind():
    with pytest.raises(MaskError, match="expected a mapping of parameter names to TeSA"):
        torchsparta.propagate(mlp(), {"0.weight": torch.ones(12, 8)}, X)
    with pytest.raises(MaskError, match="the mask has shape"):
        torchsparta.propagate(mlp(), {"0.weight": TeSA.dense((3, 3))}, X)
