"""LLVM in process: what it refuses becomes an exception that shows the line; what it takes runs."""

from __future__ import annotations

import copy
import ctypes
import gc
import pickle

import numpy as np
import pytest

from torchroller.triton_cpu import jit
from torchroller.triton_cpu.cpu import host_cpu, known_cpus, select_cpu
from torchroller.triton_cpu.errors import InvalidIR, UnsupportedOperation

AXPY = """
define void @axpy(i64 %n, ptr noalias %x, ptr noalias %y) {
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
  %xp = getelementptr float, ptr %x, i64 %i
  %yp = getelementptr float, ptr %y, i64 %i
  %xv = load float, ptr %xp
  %yv = load float, ptr %yp
  %p = fmul contract float %xv, 3.0
  %s = fadd contract float %p, %yv
  store float %s, ptr %yp
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %n
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""


@pytest.mark.parametrize("full", [False, True])
def test_code_runs_in_process(full: bool) -> None:
    library = jit.link("axpy", jit.optimize("axpy", AXPY, host_cpu(), full=full).object_code(), "axpy")
    run = library.function(None, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
    x, y = np.arange(1000, dtype=np.float32), np.ones(1000, np.float32)
    run(1000, x.ctypes.data, y.ctypes.data)
    np.testing.assert_array_equal(y, 3 * np.arange(1000) + 1)


@pytest.mark.parametrize("cpu", ["skylake-avx512", "x86-64-v4", "sapphirerapids", "znver5"])
def test_avx512_processors_get_512_bit_vectors(cpu: str) -> None:
    assert "%zmm" in jit.optimize("axpy", AXPY, select_cpu(cpu), full=True).assembly()


def test_avx2_processors_get_256_bit_vectors() -> None:
    assembly = jit.optimize("axpy", AXPY, select_cpu("haswell"), full=True).assembly()
    assert "%ymm" in assembly
    assert "%zmm" not in assembly
    assert "vfmadd" in assembly


def test_every_known_cpu_compiles() -> None:
    for name in known_cpus():
        assert "axpy:" in jit.optimize("axpy", AXPY, select_cpu(name)).assembly()


def test_a_parse_error_shows_the_line() -> None:
    bad = "define void @f() {\n  %x = add i32 1, 2\n  %y = add i32 %x, %nowhere\n  ret void\n}\n"
    with pytest.raises(InvalidIR) as caught:
        jit.optimize("my_kernel", bad, select_cpu("haswell"))
    text = str(caught.value)
    assert "`my_kernel`" in text
    assert "line 3: use of undefined value '%nowhere'" in text
    assert "     3 |   %y = add i32 %x, %nowhere" in text
    assert "TRITON_INTERPRET=1" in text


def test_ir_that_parses_but_does_not_verify_is_refused() -> None:
    bad = """
define i32 @f(i1 %c) {
entry:
  br i1 %c, label %a, label %b
a:
  %x = add i32 1, 2
  br label %b
b:
  ret i32 %x
}
"""
    with pytest.raises(InvalidIR, match="Instruction does not dominate all uses"):
        jit.optimize("k", bad, host_cpu())


@pytest.mark.parametrize("name", ["host", "haswell", "x86-64-v2"])
def test_assembly_gives_the_same_code(name: str) -> None:
    cpu = select_cpu(name)
    library = jit.link("axpy", jit.assemble("axpy", jit.optimize("axpy", AXPY, cpu).assembly(), cpu), "axpy")
    run = library.function(None, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
    x, y = np.arange(1000, dtype=np.float32), np.ones(1000, np.float32)
    run(1000, x.ctypes.data, y.ctypes.data)
    np.testing.assert_array_equal(y, 3 * np.arange(1000) + 1)


def test_a_corrupt_object_is_an_error_not_a_crash() -> None:
    with pytest.raises(RuntimeError, match="Cannot load the compiled kernel `k`"):
        jit.link("k", b"not an object file" * 10, "entry")
    good = jit.optimize("axpy", AXPY, host_cpu()).object_code()
    with pytest.raises(RuntimeError, match="Cannot load the compiled kernel `k`"):
        jit.link("k", good, "no_such_symbol")


def test_code_stays_while_its_function_lives() -> None:
    object_code = jit.optimize("axpy", AXPY, host_cpu()).object_code()
    run = jit.link("axpy", object_code, "axpy").function(
        None, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
    )
    for _ in range(20):
        jit.link("other", object_code, "axpy")
    gc.collect()
    x, y = np.ones(8, np.float32), np.ones(8, np.float32)
    run(8, x.ctypes.data, y.ctypes.data)
    assert (y == 4).all()


def test_code_is_the_same_every_time() -> None:
    first = jit.optimize("axpy", AXPY, host_cpu())
    second = jit.optimize("axpy", AXPY, host_cpu())
    assert (first.ir, first.object_code()) == (second.ir, second.object_code())


def test_kernels_compile_in_parallel_to_the_same_code() -> None:
    from concurrent.futures import ThreadPoolExecutor

    sources = [AXPY.replace("3.0", f"{i}.0") for i in range(24)]

    def code(source: str) -> bytes:
        return jit.optimize("axpy", source, host_cpu()).object_code()

    serial = [code(source) for source in sources]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert list(pool.map(code, sources)) == serial


def test_errors_survive_copying() -> None:
    error = UnsupportedOperation("tt.histogram", "kernel.py:31", "tensor<16xi32>")
    for again in (copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert str(again) == str(error)
    assert "`tt.histogram`" in str(error)
    assert "at kernel.py:31" in str(error)
