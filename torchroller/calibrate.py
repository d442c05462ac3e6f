"""Measuring this CPU, when asked: FMA peak of a core, DRAM bandwidth of a core and of all.

`python -m torchroller devices --measure` keeps the result; `host.read_cpu` uses it from then on. The FMA
loop is generated with llvmlite for this CPU, so it reaches what generated kernels can reach. On a shared
machine the figures are lower bounds.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

from torchroller.host import Calibration, host_isa, usable_cores
from torchroller.spec import MiB

_CHAINS = 16  # independent accumulators: more than latency times pipes of any CPU
_LOOPS = 200_000


def measure(seconds: float = 2.0, cores: int | None = None) -> Calibration:
    """Times the loops for about `seconds` altogether, `cores` threads for the bandwidth of the machine."""
    import torch

    units = cores or usable_cores()
    loop, flops = _fma_loop()
    before = torch.get_num_threads()
    source = torch.rand(64 * MiB // 4)
    target = torch.empty_like(source)

    def copy() -> None:
        torch.add(source, 1, out=target)

    moved = source.nbytes + target.nbytes
    try:
        torch.set_num_threads(1)
        one_flops = flops / _fastest(loop, seconds / 3)
        one_bytes = moved / _fastest(copy, seconds / 3)
        torch.set_num_threads(units)
        all_bytes = moved / _fastest(copy, seconds / 3)
    finally:
        torch.set_num_threads(before)
    return Calibration(one_flops, max(all_bytes, one_bytes), one_bytes, units)


def _fastest(call: Callable[[], object], budget_s: float) -> float:
    best, stop = float("inf"), time.perf_counter() + budget_s
    while True:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        if time.perf_counter() >= stop:
            return best


def _fma_loop() -> tuple[Callable[[], object], float]:
    """A native loop of independent fp32 multiply-adds on whole vectors, and the FLOPs of one call."""
    import llvmlite.binding as llvm

    name, features = host_isa()
    lanes = 16 if "avx512f" in features else 8 if "avx" in features else 4
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    flags = llvm.get_host_cpu_features().flatten()
    machine = llvm.Target.from_default_triple().create_target_machine(cpu=name, features=flags, opt=3)
    module = llvm.parse_assembly(_fma_ir(lanes))
    module.verify()
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    run = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64)(engine.get_function_address("fma_loop"))

    def call(keep: object = engine) -> object:
        return run(_LOOPS)

    return call, 2.0 * lanes * _CHAINS * _LOOPS


def _fma_ir(lanes: int) -> str:
    vector = f"<{lanes} x float>"

    def splat(number: str) -> str:
        return f"{vector} <{', '.join([f'float {number}'] * lanes)}>"

    phis = "\n".join(
        f"  %a{i} = phi {vector} [{splat(f'{i + 1}.0').removeprefix(vector)}, %entry], [%b{i}, %loop]"
        for i in range(_CHAINS)
    )
    fmas = "\n".join(
        f"  %b{i} = call {vector} @llvm.fma.v{lanes}f32({vector} %a{i}, {splat('0.5')}, {splat('1.0')})"
        for i in range(_CHAINS)
    )
    sums = "\n".join(
        f"  %s{i} = fadd {vector} {'%b0' if i == 1 else f'%s{i - 1}'}, %b{i}" for i in range(1, _CHAINS)
    )
    return f"""
declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})
define float @fma_loop(i64 %n) {{
entry:
  br label %loop
loop:
  %k = phi i64 [0, %entry], [%k1, %loop]
{phis}
{fmas}
  %k1 = add i64 %k, 1
  %more = icmp slt i64 %k1, %n
  br i1 %more, label %loop, label %done
done:
{sums}
  %r = extractelement {vector} %s{_CHAINS - 1}, i32 0
  ret float %r
}}
"""
