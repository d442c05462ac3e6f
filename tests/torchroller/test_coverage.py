"""Model classes: numbers against float64, and the least shares of FLOPs and nodes that run in our kernels."""

from __future__ import annotations

import coverage_cases
import pytest

QUICK = ("graph", "dlrm", "experts")
CASES = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in coverage_cases.CASES]


@pytest.mark.parametrize("name", CASES)
def test_coverage(name):
    found = coverage_cases.evaluate(name)
    assert not found.failed, found.failed
    eps = 2**-8 if "bf16" in name else 2**-23
    assert found.ours <= 4 * found.eager + 16 * eps
    flops, nodes = coverage_cases.CASES[name].bars
    externs = [f"{e.calls} x {e.target}: {e.reason}" for e in found.report.externs]
    assert found.shares[0] >= flops and found.shares[1] >= nodes, (found.shares, externs)
