"""What NNI 3.0 returns is taken in and gives the right model: recorded runs everywhere, real ones where NNI
is.

For each of NNI's pruners: sparse model == masked model. For each quantizer also: masked model == the model
that NNI itself simulated while it was wrapped.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

import torchsparta
from torchsparta.api import difference

from . import nni_runs

DATA = Path(__file__).parent / "data"
PRUNERS = ["level", "l1", "l2", "fpgm", "slim", "taylor", "movement", "agp", "linear", "block"]
QUANTIZERS = ["qat", "qat_int4", "qat_activations", "ptq", "ptq_channel", "ptq_activations", "lsq",
"lsq_plus", "dorefa",
              "bnn", "pruned_ptq"]  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore")


def recorded(name):
    from safetensors.torch import load_file

    out: dict = {}
    plain = json.loads((DATA / "nni_runs.json").read_text())
    for key, value in {**load_file(str(DATA / "nni_runs.safetensors")), **plain}.items():
        run, *path = key.split("/")
        if run == name:
            at = out
            for part in path[:-1]:
                at = at.setdefault(part, {})
            at[path[-1]] = value
    return out


def check(run, quantized):
    model = nni_runs.small()
    model.load_state_dict(run["state"])
    model.eval()
    tesa = torchsparta.from_nni(run.get("masks"), run.get("config"), model=model)
    x = nni_runs.batch()
    masked = torchsparta.masked_model(model, tesa).eval()
    fast = torchsparta.sparsify(model, tesa, (x,))
    with torch.no_grad():
        assert difference(masked(x), fast(x)) < 1e-5
        if quantized:
            assert difference(run["output"], masked(x)) < 1e-5
            assert difference(run["output"], model(x)) > 1e-4  # quantizing was not for nothing
    return tesa, fast


@pytest.mark.parametrize("name", PRUNERS)
def test_recorded_pruner(name):
    tesa, fast = check(recorded(name), quantized=False)
    # LinearPruner ends at 0.25 to 0.31 of the 0.5 that it was asked for
    assert any((0.2 if name == "linear" else 0.4) < t.sparsity() < 0.6 for t in tesa.values())
    if name in ("l1", "l2", "fpgm", "taylor", "movement", "agp"):
        assert fast.get_submodule("fc1").weight.shape == (8, 4)
        assert fast.get_submodule("fc2").weight.shape == (4, 8)


def test_slim_masks_the_norm_and_leaves_its_bias():
    # the channels become the constant relu(bias), which is folded into fc1
    _, fast = check(recorded("slim"), quantized=False)
    assert fast.get_submodule("conv").weight.shape[0] == 4
    assert fast.get_submodule("fc1").weight.shape == (16, 4)
    assert fast.meta["sparta"].folded


@pytest.mark.parametrize("name", QUANTIZERS)
def test_recorded_quantizer(name):
    tesa, _ = check(recorded(name), quantized=True)
    bits = {"qat_int4": 4, "bnn": 1}.get(name, 8)
    assert set(tesa["fc2.weight"].bit_histogram()) == {bits}
    assert bool(tesa.notes) == (name in ("dorefa", "bnn"))


@pytest.mark.slow
@pytest.mark.parametrize("name", PRUNERS + QUANTIZERS)
def test_real(name):
    pytest.importorskip("nni")
    runs = {**nni_runs.pruners(), **nni_runs.quantizers()}
    check(runs[name](), quantized=name in QUANTIZERS)


def test_recorded_runs_are_those_of_the_script():
    assert importlib.util.find_spec("tests.sparta.nni_runs")
    names = {k.split("/")[0] for k in json.loads((DATA / "nni_runs.json").read_text())}
    assert names <= set(PRUNERS + QUANTIZERS) and set(QUANTIZERS) <= names
