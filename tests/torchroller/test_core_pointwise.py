"""Every pointwise operator of ATen's core set runs in our kernels, special values and integers included."""

from __future__ import annotations

import pytest
import torch
from roller_helpers import compiled, judge

import torchroller.lower  # noqa: F401  (registers the rules)
from torchroller.decompose import decompositions
from torchroller.emit.common import TritonSource
from torchroller.errors import KernelError
from torchroller.kernel import cache_dir, executor_for
from torchroller.ops.registry import RULES

SPECIAL = torch.tensor(
    [0.0, -0.0, 1.0, -1.0, 0.5, -1.5, 3.0, 2.0, 1e-20, -88.9, 88.9, 700.0, 1e30, -7.0]
    + [float("inf"), -float("inf"), float("nan")]
)


def test_every_core_pointwise_operator_has_a_rule():
    named = {
        name: [getattr(packet, o) for o in packet.overloads()]
        for name in dir(torch.ops.aten)
        if hasattr(packet := getattr(torch.ops.aten, name), "overloads")
    }
    core = {
        name
        for name, overloads in named.items()
        if any({torch.Tag.core, torch.Tag.pointwise} <= set(o.tags) for o in overloads)
    }
    assert len(core) > 60
    taken_apart = {str(o).split(".")[1] for o in decompositions()}
    assert not {name for name in core if f"aten.{name}" not in RULES} - taken_apart


INVERSE = [torch.tan, torch.asin, torch.acos, torch.atan, torch.sinh, torch.cosh, torch.asinh, torch.acosh,
           torch.atanh, torch.erfc, torch.lgamma, torch.signbit]  # fmt: skip
POWERS = [lambda x: x**2.5, lambda x: x**11, lambda x: 2**x, lambda x: x**-3.5]


def calls(*functions):
    """One graph of several functions: compiling is what takes the time."""
    return lambda *given: [f(*given) for f in functions]


@pytest.mark.parametrize("executor", ["native", "interpret"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_functions_of_the_device_library(dtype, executor):
    torch.manual_seed(0)
    x = torch.cat([torch.randn(200) * 3, SPECIAL]).to(dtype)
    plan = judge(calls(*INVERSE, *POWERS), x, executor=executor, strict=True)
    assert plan.launches and not plan.externs


@pytest.mark.parametrize("fn", [torch.pow, torch.atan2, torch.hypot, torch.copysign, torch.fmax, torch.fmin],
                         ids=lambda f: f.__name__)  # fmt: skip
def test_pairs_of_special_values(fn):
    x, y = SPECIAL.repeat(len(SPECIAL)), SPECIAL.repeat_interleave(len(SPECIAL))
    for dtype in (torch.float32, torch.float64):
        judge(fn, x.to(dtype), y.to(dtype), strict=True)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_integers_by_integers(dtype):
    x = torch.tensor([-128, -100, -7, -3, -1, 0, 1, 2, 3, 7, 100, 127]).to(dtype)
    y = torch.tensor([1, -1, 2, 3, -3, 7, 64, 31, 8, 5]).to(dtype)
    a, b = x.repeat(len(y)), y.repeat_interleave(len(x))
    fn = calls(
        lambda a, b: a // b, lambda a, b: a % b, torch.fmod, lambda a, b: torch.div(a, b, rounding_mode="trunc"),
        lambda a, b: a << b.abs(), lambda a, b: a >> b.abs(), lambda a, b: a ** (b.abs() % 20), lambda a, b: a**9,
        lambda a, b: a**b,
    )  # fmt: skip
    assert not judge(fn, a, b, strict=True).externs


def test_the_smallest_integer_by_minus_one_does_not_trap():
    lowest = torch.tensor([torch.iinfo(torch.int64).min, 5])
    fast = compiled(lambda a, b: (a // b, a % b), strict=True)
    quotient, rest = fast(lowest, torch.tensor([-1, -1]))
    assert quotient.tolist() == [torch.iinfo(torch.int64).min, -5] and rest.tolist() == [0, 0]


def test_integer_division_by_zero_raises_as_in_aten():
    fn = lambda a, b: a // b  # noqa: E731
    fast, x = compiled(fn, strict=True), torch.tensor([6, 7, 8])
    assert fast(x, torch.tensor([1, 2, 3])).tolist() == [6, 3, 2]
    for call in (fn, fast):
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            call(x, torch.tensor([1, 0, 3]))
    assert fast(x, torch.tensor([2, 2, 2])).tolist() == [3, 3, 4]  # and the flag is down again


def test_a_failure_of_triton_names_its_cause():
    text = """\
import triton
import triton.language as tl

@triton.jit
def inner(x):
    return tl.nothing(x)

@triton.jit
def k(t0):
    tl.store(t0, inner(t0))
"""
    executor = executor_for("native", torch.device("cpu"), cache_dir())
    with pytest.raises(KernelError, match="(?s)kernel k for .* because .*nothing"):
        executor.compile(TritonSource("k", text, ("*fp32",), 1))
