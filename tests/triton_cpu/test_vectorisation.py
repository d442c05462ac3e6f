"""What the code looks like: contiguous accesses are vector loads, tails are split off, indices stay linear."""

from __future__ import annotations

import re
from typing import Any

import pytest
import triton.language as tl
from oracle import needs_backend, triton

from torchroller.triton_cpu.cpu import select_cpu

pytestmark = needs_backend


def compiled(
    kernel: Any, signature: dict[str, str], cpu: str = "x86-64-v4", **constants: int
) -> dict[str, str]:
    """LLVM IR and assembly of a kernel for a CPU that need not be this one."""
    types = {**signature, **dict.fromkeys(constants, "constexpr")}
    values = {(list(types).index(name),): value for name, value in constants.items()}
    source = triton.compiler.ASTSource(kernel, types, values)
    return triton.compile(source, target=triton.backends.compiler.GPUTarget("cpu", cpu, 1)).asm


POINTERS = {"x": "*fp32", "y": "*fp32", "o": "*fp32"}


@triton.jit
def add(x, y, o, n, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    mask = i < n
    tl.store(o + i, tl.load(x + i, mask=mask) + tl.load(y + i, mask=mask), mask=mask)


def test_contiguous_accesses_are_vectors_and_the_tail_is_masked() -> None:
    ir = compiled(add, {**POINTERS, "n": "i32"}, N=1024)["llir"]
    assert re.search(r"= load <16 x float>, ptr", ir)
    assert re.search(r"store <16 x float> ", ir)
    assert "llvm.masked.load.v16f32" in ir and "llvm.masked.store.v16f32" in ir
    assert "gather" not in ir and "scatter" not in ir


@pytest.mark.parametrize(
    ("cpu", "register", "absent"), [("x86-64-v4", "zmm", "xxx"), ("haswell", "ymm", "zmm")]
)
def test_registers(cpu: str, register: str, absent: str) -> None:
    text = compiled(add, {**POINTERS, "n": "i32"}, cpu=cpu, N=1024)["asm"]
    assert re.search(rf"vaddps\s.*%?{register}", text)
    assert absent not in text
    assert select_cpu(cpu).vector_bits == (512 if register == "zmm" else 256)


@triton.jit
def rows(x, y, o, stride, N: tl.constexpr, M: tl.constexpr):
    i = (tl.program_id(0) * M + tl.arange(0, M))[:, None]
    j = tl.arange(0, N)[None, :]
    bias = tl.load(y + j)
    tl.store(o + i * stride + j, tl.load(x + i * stride + j) * 2 + bias + tl.load(y + i))


def test_tiles_with_a_run_time_stride() -> None:
    """Rows are vectors whatever their distance; what does not move along a row is one scalar load."""
    ir = compiled(rows, {**POINTERS, "stride": "i32"}, N=64, M=8)["llir"]
    assert "gather" not in ir and "scatter" not in ir
    assert re.search(r"= load float, ptr", ir)


@triton.jit
def wrapped(x, y, o, n, N: tl.constexpr):
    i = (tl.program_id(0) * N + tl.arange(0, N)) % n
    tl.store(o + tl.arange(0, N), tl.load(x + i))


def test_a_remainder_is_linear_where_the_tile_does_not_wrap() -> None:
    ir = compiled(wrapped, {**POINTERS, "n": "i32"}, N=64)["llir"]
    assert re.search(r"= load <16 x float>, ptr", ir)  # one version with plain vectors
    assert "llvm.masked.gather" in ir  # and one for the tile that wraps


@triton.jit
def carried_pointers(x, y, o, n, N: tl.constexpr):
    i = tl.arange(0, N)
    at = x + i
    acc = tl.zeros((N,), tl.float32)
    for _ in range(n):
        acc += tl.load(at)
        at += N
    tl.store(o + i, acc)


def test_pointers_that_a_loop_advances_stay_linear() -> None:
    ir = compiled(carried_pointers, {**POINTERS, "n": "i32"}, N=16)["llir"]
    assert re.search(r"<16 x float>", ir) and "gather" not in ir and "<16 x ptr>" not in ir


@triton.jit
def strided(x, y, o, N: tl.constexpr, STEP: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o + i, tl.load(x + STEP * i))


@triton.jit
def indirect(x, index, o, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(o + i, tl.load(x + tl.load(index + i)))


def test_what_is_not_contiguous_is_gathered() -> None:
    far = compiled(strided, POINTERS, N=64, STEP=5)["llir"]
    for ir in (far, compiled(indirect, {"x": "*fp32", "index": "*i32", "o": "*fp32"}, N=64)["llir"]):
        assert "llvm.masked.gather.v16f32" in ir
        assert not re.search(r"= load <16 x float>, ptr", ir)


@pytest.mark.parametrize("step", [2, 3, 4])
def test_what_lies_close_together_is_read_as_vectors(step: int) -> None:
    ir = compiled(strided, POINTERS, N=64, STEP=step)["llir"]
    assert "gather" not in ir
    assert len(re.findall(r"= load <16 x float>, ptr", ir)) == 4 * step


@triton.jit
def some_rows(x, y, o, n, N: tl.constexpr, M: tl.constexpr):
    i, j = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :]
    tl.store(o + i * N + j, tl.load(x + j) + 1.0, mask=i < n)


def test_rows_that_are_not_stored_are_skipped() -> None:
    """A store of no lane to a page that may not be written to costs hundreds of cycles."""
    ir = compiled(some_rows, {**POINTERS, "n": "i32"}, N=64, M=8)["llir"]
    assert "store <16 x float>" in ir and "masked.store" not in ir


@triton.jit
def fused(x, y, o, N: tl.constexpr):
    i = tl.arange(0, N)
    a = tl.exp(tl.load(x + i))
    tl.store(o + i, a / tl.sum(a, 0) * tl.load(y + i) + 1.0)


def test_elementary_functions_are_inline_vectors() -> None:
    asm = compiled(fused, POINTERS, N=1024)["asm"]
    assert "expf" not in asm and re.search(r"vfn?madd\d+ps.*zmm", asm)


@triton.jit
def divided(x, y, o, n, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(o + i, tl.load(x + i // n * 4 + i % n))


def test_index_divisions_are_vectors() -> None:
    asm = compiled(divided, {**POINTERS, "n": "i32"}, N=64)["asm"]
    assert re.search(r"vdivpd.*zmm", asm)
    assert len(re.findall(r"\bidiv", asm)) <= 2  # only the scalar test of the wrapping


def test_the_same_kernel_compiles_to_the_same_code() -> None:
    first, second = (compiled(fused, POINTERS, N=256)["llir"] for _ in range(2))
    assert first == second
