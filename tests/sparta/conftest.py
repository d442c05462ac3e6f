"""Shared by the tests of torchsparta: threads, seeds, and comparison with the masked model.

Kernels run natively where a Triton backend for the CPU is installed, else in Triton's interpreter.
"""

from __future__ import annotations

import copy
import os
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch

import torchsparta
from torchsparta.api import difference

# Rates that someone measured on this machine would choose the formats in place of the shipped ones.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parents[2] / "out" / "test-caches" / "xdg")

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
    """sparsify in float64 and compare with the masked model (to rounding); single=True: in float32 as well.

    Returns the sparse model, of the last precision that was tried.
    """

    def check(model, tesa, inputs, *, exact=1e-9, single=False, **options):
        model = model.eval()
        wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
        tries = [(copy.deepcopy(model).double(), wide, exact)] + ([(model, inputs, 2e-5)] if single else [])
        for candidate, arguments, tolerance in tries:
            fast = torchsparta.sparsify(candidate, tesa, arguments, **options)
            with torch.no_grad():
                want = torchsparta.masked_model(candidate, tesa)(*arguments)
                assert difference(want, fast(*arguments)) <= tolerance
        return fast

    return check
