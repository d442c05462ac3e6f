"""Triton finds the backend, other programs are not disturbed by it, and kernels persist across processes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

pytest.importorskip("triton")

VECTOR_ADD = """
import json, sys
import triton, triton.language as tl, torch

@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    tl.store(out + i, tl.load(x + i, mask=mask) + tl.load(y + i, mask=mask), mask=mask)

x, y = torch.randn(10_001), torch.randn(10_001)
out = torch.empty_like(x)
"""

RUN_ADD = VECTOR_ADD + """
times = []
triton.knobs.compilation.listener = lambda **event: times.append(event["cache_hit"])
kernel = add[(triton.cdiv(10_001, 256),)](x, y, out, 10_001, BLOCK=256)
assert torch.equal(out, x + y)
print(json.dumps({"hits": times, "stages": sorted(kernel.asm), "asm": kernel.asm["asm"][:200000],
                  "llir": kernel.asm["llir"], "hash": kernel.hash, "arch": kernel.metadata.target.arch}))
"""  # fmt: skip

FAKE_GPU = """
import triton.backends as registry
from triton.backends.driver import DriverBase

class GPU(DriverBase):
    is_active = staticmethod(lambda: True)
    def map_python_to_cpp_type(self, ty): ...
    def get_current_target(self): return registry.compiler.GPUTarget("cuda", 90, 32)
    def get_active_torch_device(self): ...
    def get_benchmarker(self): ...

nvidia = registry.backends["nvidia"]
registry.backends["nvidia"] = registry.Backend(nvidia.compiler, GPU)
import triton
from triton.runtime import driver
"""


def test_import_is_cheap_and_brings_nothing_heavy(run_python: Callable[..., str]) -> None:
    out = run_python(
        "import sys, triton\n"
        "from triton.backends import backends\n"
        "assert 'cpu' in backends\n"
        "print([m for m in ('torch', 'llvmlite', 'numpy') if m in sys.modules])\n"
        "print(sorted(m for m in sys.modules if m.startswith('torchroller')))\n"
    )
    heavy, ours = out.splitlines()
    assert heavy == "[]"
    assert ours == str(
        [
            "torchroller",
            "torchroller.triton_cpu",
            "torchroller.triton_cpu.compiler",
            "torchroller.triton_cpu.driver",
        ]
    )


def test_import_survives_without_llvmlite(run_python: Callable[..., str]) -> None:
    out = run_python("import sys; sys.modules['llvmlite'] = None\nimport triton; print(triton.__version__)")
    assert out.strip()


def test_each_module_holds_one_concrete_class() -> None:
    from triton.backends import _find_concrete_subclasses
    from triton.backends.compiler import BaseBackend
    from triton.backends.driver import DriverBase

    from torchroller.triton_cpu import compiler, driver

    assert _find_concrete_subclasses(compiler, BaseBackend) is compiler.CPUBackend
    assert _find_concrete_subclasses(driver, DriverBase) is driver.CPUDriver


def test_a_kernel_is_compiled_once_for_two_processes(run_python: Callable[..., str]) -> None:
    first, second = (json.loads(run_python(RUN_ADD)) for _ in range(2))
    assert first["hits"] == [False]
    assert second["hits"] == [True]
    assert first["stages"] == ["asm", "llir", "obj", "source", "ttir"]
    assert {**first, "hits": None} == {**second, "hits": None}
    assert "define void @entry(ptr" in first["llir"]
    assert "entry:" in first["asm"]


def test_overrides_take_llvm_ir_and_refuse_assembly(run_python: Callable[..., str], tmp_path) -> None:
    import re

    dump, override = tmp_path / "dump", tmp_path / "override"
    folders = {
        "TRITON_DUMP_DIR": str(dump),
        "TRITON_OVERRIDE_DIR": str(override),
        "TRITON_ALWAYS_COMPILE": "1",
    }
    run_python(RUN_ADD, TRITON_KERNEL_DUMP="1", **folders)
    (source,) = dump.glob("*/add.llir")
    target = override / source.parent.name / "add.llir"
    target.parent.mkdir(parents=True)
    target.write_text(re.sub(r"= fadd( \w+)*", "= fsub", source.read_text()))
    changed = RUN_ADD.replace("x + y", "x - y")
    (tmp_path / "script0.py").unlink()  # the override is found by the kernel's source, file and line included
    run_python(changed, TRITON_KERNEL_OVERRIDE="1", **folders)
    target.rename(target.with_suffix(".asm")).write_text("nonsense\n")
    (tmp_path / "script0.py").unlink()
    out = run_python(RUN_ADD, check=False, TRITON_KERNEL_OVERRIDE="1", **folders)
    assert out.startswith("1\n")
    assert "The assembly of kernel `add` cannot be overridden" in out


def test_another_cpu_gets_other_code(run_python: Callable[..., str]) -> None:
    host = json.loads(run_python(RUN_ADD))
    haswell = json.loads(run_python(RUN_ADD, TORCHROLLER_CPU="haswell"))
    assert haswell["hits"] == [False]
    assert haswell["arch"] == "haswell"
    assert haswell["hash"] != host["hash"]
    assert "%zmm" not in haswell["asm"]
    assert "%ymm" in haswell["asm"]


def test_a_bad_cpu_name_is_a_clear_error(run_python: Callable[..., str]) -> None:
    out = run_python(RUN_ADD, check=False, TORCHROLLER_CPU="skylake-512")
    assert out.startswith("1\n")
    assert "Unknown CPU 'skylake-512'" in out
    assert "'skylake-avx512'" in out


def test_alone_the_driver_is_active(run_python: Callable[..., str]) -> None:
    code = "import triton\nprint(triton.runtime.driver.active.get_current_target().backend)"
    assert run_python(code).strip() == "cpu"


def test_beside_a_gpu_the_driver_is_not_active(run_python: Callable[..., str]) -> None:
    code = (
        FAKE_GPU
        + "print(driver.active.get_current_target().backend, registry.backends['cpu'].driver.is_active())"
    )
    assert run_python(code).strip() == "cuda False"


def test_beside_a_gpu_the_environment_chooses(run_python: Callable[..., str]) -> None:
    code = (
        FAKE_GPU
        + "print(driver.active.get_current_target().backend, registry.backends['cpu'].driver.is_active())"
    )
    assert run_python(code, TRITON_DEFAULT_BACKEND="cpu").strip() == "cpu True"
    assert run_python(code, TRITON_DEFAULT_BACKEND="nvidia").strip() == "cuda False"


def test_two_backends_that_defer_do_not_recurse(cpu_backend: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.backends import Backend, backends

    from torchroller.triton_cpu.driver import CPUDriver

    class Deferring(CPUDriver):
        @staticmethod
        def is_active() -> bool:
            return not CPUDriver.is_active()

    monkeypatch.setitem(backends, "other", Backend(backends["cpu"].compiler, Deferring))
    monkeypatch.delenv("TRITON_DEFAULT_BACKEND", raising=False)
    assert CPUDriver.is_active() is False  # the other one has the machine: exactly one is active


def test_a_broken_neighbour_does_not_break_us(cpu_backend: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.backends import Backend, backends

    from torchroller.triton_cpu.driver import CPUDriver

    class Broken(CPUDriver):
        @staticmethod
        def is_active() -> bool:
            raise OSError("libvendor.so: cannot open shared object file")

    monkeypatch.setitem(backends, "vendor", Backend(backends["cpu"].compiler, Broken))
    monkeypatch.delenv("TRITON_DEFAULT_BACKEND", raising=False)
    assert CPUDriver.is_active() is True


def test_named_target_needs_no_active_driver(run_python: Callable[..., str]) -> None:
    code = (
        VECTOR_ADD.replace("import json, sys", FAKE_GPU)
        + """
import ctypes
from triton.compiler import ASTSource
from torchroller.triton_cpu.driver import CPUUtils, current_target

signature = {"x": "*fp32", "y": "*fp32", "out": "*fp32", "n": "i32", "BLOCK": "constexpr"}
kernel = triton.compile(ASTSource(add, signature, constexprs={"BLOCK": 256}), target=current_target())
assert driver.active.get_current_target().backend == "cuda"
utils = CPUUtils()
pointers = [x.data_ptr(), y.data_ptr(), out.data_ptr(), 10_001]
block = utils.pack_block((40,), pointers, ["*fp32", "*fp32", "*fp32", "i32"])
entries = (ctypes.c_void_p * 1)(utils.entry_address(kernel))
utils.run_many(1, entries, (ctypes.c_void_p * 1)(ctypes.addressof(block)))
assert torch.equal(out, x + y)
print(utils.entry_address(kernel) == entries[0])
"""
    )
    assert run_python(code).strip() == "True"


def test_kernels_launch_from_several_threads_at_once(run_python: Callable[..., str]) -> None:
    code = (
        VECTOR_ADD
        + """
import threading
wrong = []
def work(seed):
    a, b, c = torch.full((5000,), seed), torch.arange(5000.0), torch.empty(5000)
    for _ in range(50):
        c.zero_()
        add[(20,)](a, b, c, 5000, BLOCK=256)
        if not torch.equal(c, a + b):
            wrong.append(seed)
threads = [threading.Thread(target=work, args=(float(i),)) for i in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
print(wrong)
"""
    )
    assert run_python(code).strip() == "[]"


def test_device_properties_size_a_persistent_grid(cpu_backend: None) -> None:
    import triton

    active = triton.runtime.driver.active
    properties = active.utils.get_device_properties(active.get_current_device())
    assert properties["multiprocessor_count"] >= 1
    assert properties["max_num_regs"] // (32 * properties["warpSize"] * 8) >= 1
    assert str(active.get_active_torch_device()) == "cpu"


def test_do_bench_and_autotune(run_python: Callable[..., str]) -> None:
    code = VECTOR_ADD.replace(
        "@triton.jit",
        "@triton.autotune([triton.Config({'BLOCK': 64}, num_warps=4), "
        "triton.Config({'BLOCK': 1024, 'waves_per_eu': 2}, num_stages=4)], key=['n'])\n@triton.jit",
    )
    out = run_python(
        code + "add[lambda meta: (triton.cdiv(10_001, meta['BLOCK']),)](x, y, out, 10_001)\n"
        "assert torch.equal(out, x + y)\n"
        "print(add.best_config.kwargs['BLOCK'], len(add.configs_timings))\n"
        "print(triton.testing.do_bench(lambda: x.add_(1), warmup=1, rep=5) > 0)\n"
    )
    best, measured = out.splitlines()
    assert best in ("64 2", "1024 2")
    assert measured == "True"
