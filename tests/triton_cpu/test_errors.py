"""What is not lowered gives one error that names the operation and the user's line; assertions and prints report."""

from __future__ import annotations

import inspect
import pickle

import pytest
import torch
import triton.language as tl
from oracle import needs_backend, triton

from torchroller.triton_cpu.errors import DeviceAssertion, UnsupportedOperation

pytestmark = needs_backend


@triton.jit
def assembly(p, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.inline_asm_elementwise("shl.b32 $0, $1, 3;", "=r,r", [i], dtype=tl.int32, is_pure=True, pack=1)
    tl.store(p + i, x)


def line_of(kernel: object, text: str) -> str:
    """`file:line` of the line of a kernel that contains `text`."""
    lines, first = inspect.getsourcelines(kernel.fn)
    number = next(k for k, line in enumerate(lines) if text in line)
    return f"{__file__}:{first + number}"


def test_inline_assembly_is_refused_with_its_line() -> None:
    with pytest.raises(UnsupportedOperation) as caught:
        assembly[(1,)](torch.zeros(16, dtype=torch.int32), N=16)
    error = caught.value
    assert error.op == "tt.elementwise_inline_asm"
    assert error.location == line_of(assembly, "inline_asm_elementwise")
    assert "shl.b32" in error.detail and "TRITON_INTERPRET=1" in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@triton.jit
def scaled(a, b, o, N: tl.constexpr):
    i = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    s = tl.full((N, 1), 127, tl.uint8)
    acc = tl.dot_scaled(tl.load(a + i), s, "e5m2", tl.load(b + i), s, "e5m2")
    tl.store(o + i, acc)


def test_an_operation_without_lowering_is_refused() -> None:
    a = torch.zeros(32, 32, dtype=torch.uint8)
    with pytest.raises(UnsupportedOperation) as caught:
        scaled[(1,)](a, a, torch.zeros(32, 32), N=32)
    assert caught.value.op == "tt.dot_scaled"
    assert caught.value.location == line_of(scaled, "dot_scaled")


@triton.jit(noinline=True)
def returns_early(p, k):
    if k > 1:
        return
    tl.store(p + k, 5.0)


@triton.jit
def calls_in_a_loop(p, n):
    for k in range(n):
        returns_early(p, k)


def test_a_call_that_cannot_be_inlined_is_refused() -> None:
    with pytest.raises(UnsupportedOperation, match="returns early") as caught:
        calls_in_a_loop[(1,)](torch.zeros(4), 3)
    assert caught.value.op == "tt.call"
    assert caught.value.location == line_of(calls_in_a_loop, "returns_early(")


@triton.jit
def library(p, N: tl.constexpr):
    i = tl.arange(0, N)
    x = tl.load(p + i)
    tl.store(p + i, tl.softmax(x))


def test_a_location_inside_tritons_library_is_the_users_line() -> None:
    from torchroller.triton_cpu import ttir

    compiled = library.warmup(torch.zeros(16), N=16, grid=(1,))
    (function,) = ttir.read(compiled.asm["ttir"])
    users = line_of(library, "tl.softmax")
    found = {op.location for block in function.body.blocks for op in block.ops if op.name.startswith("math.")}
    assert found == {users}


@triton.jit
def asserting(p, n, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.device_assert(i < n, "index outside")
    tl.store(p + i, 1.0)


def test_device_assertions() -> None:
    p = torch.zeros(64)
    asserting[(2,)](p, 64, N=32, debug=True)
    assert p.all()
    p.zero_()
    with pytest.raises(DeviceAssertion, match="index outside") as caught:
        asserting[(2,)](p, 40, N=32, debug=True)
    assert caught.value.program == (1, 0, 0) and caught.value.kernel == "asserting"
    assert line_of(asserting, "device_assert") in str(caught.value)
    assert p[:32].all() and not p[32:].any()  # the program that failed stopped there
    asserting[(2,)](p, 64, N=32, debug=True)  # and the next launch is as good as new
    asserting[(2,)](p, 40, N=32)  # nothing is tested outside of debug mode
    assert p.all()


@triton.jit
def printing(p, N: tl.constexpr):
    x = tl.load(p + tl.arange(0, N))
    tl.device_print("value", x)
    tl.device_print("pair", x.to(tl.int32), tl.program_id(0))
    tl.device_print("bits", x.to(tl.int32), hex=True)
    tl.device_print("done")


def test_device_print(capfd: pytest.CaptureFixture[str]) -> None:
    printing[(1,)](torch.tensor([1.5, -2.0]), N=2)
    lines = capfd.readouterr().out.splitlines()
    assert lines == [
        "pid (0, 0, 0) idx (0) value: 1.500000",
        "pid (0, 0, 0) idx (1) value: -2.000000",
        "pid (0, 0, 0) idx (0) pair: (operand 0) 1",
        "pid (0, 0, 0) idx (1) pair: (operand 0) -2",
        "pid (0, 0, 0) pair: (operand 1) 0",
        "pid (0, 0, 0) idx (0) bits: 0x00000001",
        "pid (0, 0, 0) idx (1) bits: 0xfffffffe",
        "pid (0, 0, 0) done",
    ]
