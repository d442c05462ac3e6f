"""docs/triton-cpu.md states what the code does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from torchroller.triton_cpu import cpu
from torchroller.triton_cpu.vector_math import FUNCTIONS, double, single

PAGE = (Path(__file__).parents[2] / "docs" / "triton-cpu.md").read_text()


def test_the_table_of_error_bounds_is_the_codes() -> None:
    for name, function in FUNCTIONS.items():
        bounds = (function.f32_ulp, function.f64_ulp)
        single_bound, double_bound = ("libm" if bound is None else f"{bound:g}" for bound in bounds)
        assert f"| {name} | {single_bound} | {double_bound} |" in PAGE
    assert PAGE.split("| float64 |")[1].count("\n| ") == len(FUNCTIONS)


def test_a_bound_is_stated_exactly_for_what_is_inline() -> None:
    for name, function in FUNCTIONS.items():
        assert (function.f32_ulp is not None) == hasattr(single, name)
        assert (function.f64_ulp is not None) == hasattr(double, name)


def test_variables_are_spelled_as_in_the_code() -> None:
    assert f"`{cpu.ENVIRONMENT}=" in PAGE
    inductor = pytest.importorskip("torch._inductor.config")
    assert "TORCHINDUCTOR_TRITON_DISABLE_DEVICE_DETECTION" in Path(inductor.__file__).read_text()


def test_the_example_runs(run_python: Callable[..., str]) -> None:
    example = PAGE.split("```python\n")[1].split("```")[0]
    assert "entry:" in run_python(example + "assert torch.equal(out, x + y)\n")
