"""Shared by the tests of torchsparta: threads, seeds, and comparison with the masked model.

Kernels run natively where a Triton backend for the CPU is installed, else in Triton's interpreter.
"""

from __future__ import annotations

import copy
import os
from importlib.metadata import entry_points

import pytest
import torch

import torchsparta
from torchsparta.api import difference

if not any(e.name == "cpu" for e in entry_points(group="triton.backends")):
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _deterministic():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def same_as_masked():
    """sparsify in float64 (must agree to rounding) and in float32; returns the float32 model."""

    def check(model, tesa, inputs, *, tolerance=2e-5, exact=1e-9, **options):
        model = model.eval()
        if exact is not None:
            double = copy.deepcopy(model).double()
            wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
            fast = torchsparta.sparsify(double, tesa, wide, **options)
            with torch.no_grad():
                assert difference(torchsparta.masked_model(double, tesa)(*wide), fast(*wide)) <= exact
        fast = torchsparta.sparsify(model, tesa, inputs, **options)
        with torch.no_grad():
            assert difference(torchsparta.masked_model(model, tesa)(*inputs), fast(*inputs)) <= tolerance
        return fast

    return check
