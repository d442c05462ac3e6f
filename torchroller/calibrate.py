"""Measuring this CPU, when asked: peaks of one core, bandwidth of every memory level, cost of a launch.

`python -m torchroller devices --calibrate` keeps the result; `host.read_cpu` uses it from then on. Every loop is
generated for this CPU, so it reaches what generated kernels can reach. Each figure is the best of many short runs: on
a shared machine it is a lower bound.

    peaks       independent accumulators in registers, one vector instruction each: fma, dpbf16ps, dpbusd
    levels      one core reads, or copies, a buffer that half fills the level, again and again
    DRAM        one core, then all of them at once on buffers of their own
    launch      an empty kernel through the real entry: on the caller, and woken on all threads
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from torchroller.host import Calibration, _caches, usable_cores
from torchroller.spec import KiB, MiB
from torchroller.triton_cpu import abi, jit, openmp
from torchroller.triton_cpu.cpu import CPU, host_cpu

_DRAM_BYTES = 96 * MiB  # beyond any core's share of a last-level cache
_L3_BYTES = 4 * MiB
_RUN_S = 2e-3  # of one timed run: long against the clock, short against what disturbs


def measure(seconds: float = 8.0, cores: int | None = None) -> Calibration:
    """Times everything in about `seconds` altogether; `cores` threads for what the whole machine does."""
    units = cores or usable_cores()
    cpu = host_cpu()
    caches = sorted({(level, size) for level, size, _ in _caches(Path("/"))})
    share = seconds / (6 + 2 * len(caches) + 3)
    flops = {kind: _peak(cpu, kind, share) for kind in _kinds(cpu)}
    read, copy = _stream(cpu, False), _stream(cpu, True)
    levels = []
    for level, size in caches:
        buffer = _Buffer(min(size // 2, _L3_BYTES))
        levels.append((f"L{level}", _rate(read, [buffer], share), _rate(copy, [buffer], share)))
    buffers = [_Buffer(_DRAM_BYTES) for _ in range(units)]
    levels.append(("DRAM", _rate(read, buffers[:1], share), _rate(copy, buffers[:1], share)))
    one = levels[-1][2]
    every_read, every = _rate(read, buffers, share), _rate(copy, buffers, share)
    launch_s, fork_s = _launch(cpu, units, share)
    return Calibration(
        fma_flops_per_core=flops["fma"],
        dram_bytes_per_s=max(every, one),
        core_bytes_per_s=one,
        cores=units,
        bf16_flops_per_core=flops.get("bf16", 0.0),
        int8_flops_per_core=flops.get("int8", 0.0),
        dram_read_bytes_per_s=every_read,
        levels=tuple(levels),
        launch_s=launch_s,
        fork_s=fork_s,
    )


def _best(call: Callable[[], object], budget_s: float) -> float:
    """Seconds of the fastest of the runs that fit into the budget, at least three."""
    best, stop, runs = float("inf"), time.perf_counter() + budget_s, 0
    while runs < 3 or time.perf_counter() < stop:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
        runs += 1
    return best


# ---- peaks ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Instruction:
    """`call` of (accumulator, operand, operand) on vectors; `flops` of one, multiply and add counted."""

    accumulator: str
    operand: str
    call: str
    flops: int


def _kinds(cpu: CPU) -> dict[str, _Instruction]:
    lanes = cpu.vector_bits // 32
    f32, i32 = f"<{lanes} x float>", f"<{lanes} x i32>"
    found = {"fma": _Instruction(f32, f32, f"llvm.fma.v{lanes}f32", 2 * lanes)}
    if cpu.vector_bits == 512 and cpu.has("avx512bf16"):
        found["bf16"] = _Instruction(f32, "<32 x bfloat>", "llvm.x86.avx512bf16.dpbf16ps.512", 4 * lanes)
    if cpu.vector_bits == 512 and cpu.has("avx512vnni"):
        found["int8"] = _Instruction(i32, "<64 x i8>", "llvm.x86.avx512.vpdpbusd.512", 8 * lanes)
    elif cpu.has("avx2"):  # exact in 16 bits: pairs of widened bytes
        found["int8"] = _Instruction(i32, "<16 x i16>", "llvm.x86.avx2.pmadd.wd", 4 * lanes)
    return found


def _peak(cpu: CPU, kind: str, budget_s: float) -> float:
    """Operations per second of one core."""
    it = _kinds(cpu)[kind]
    chains = 24 if cpu.vector_bits == 512 else 12
    acc, operand = it.accumulator, it.operand
    bits = f"<{cpu.vector_bits // 32} x i32>"
    lines = [f"  %x = bitcast {bits} %seed to {operand}"]
    lines += [f"  %s{i} = insertelement {bits} %seed, i32 {i + 1}, i64 1" for i in range(chains)]
    lines += [f"  %i{i} = bitcast {bits} %s{i} to {acc}" for i in range(chains)]
    phis = [f"  %a{i} = phi {acc} [ %i{i}, %entry ], [ %b{i}, %loop ]" for i in range(chains)]
    if it.call == "llvm.x86.avx2.pmadd.wd":
        declared = f"declare {acc} @{it.call}({operand}, {operand})"
        steps = []
        for i in range(chains):
            # the product must differ between chains, or it would be computed once
            steps.append(f"  %o{i} = bitcast {acc} %a{i} to {operand}")
            steps.append(f"  %p{i} = call {acc} @{it.call}({operand} %o{i}, {operand} %x)")
            steps.append(f"  %b{i} = add {acc} %a{i}, %p{i}")
    else:
        order = (operand, operand, acc) if kind == "fma" else (acc, operand, operand)
        declared = f"declare {acc} @{it.call}({', '.join(order)})"
        steps = []
        for i in range(chains):
            values = ("%x", "%x", f"%a{i}") if kind == "fma" else (f"%a{i}", "%x", "%x")
            given = ", ".join(f"{t} {v}" for t, v in zip(order, values))
            steps.append(f"  %b{i} = call {acc} @{it.call}({given})")
    ends = [f"  %e{i} = bitcast {acc} %b{i} to {bits}" for i in range(chains)]
    ends += [f"  %r{i} = xor {bits} {'%e0' if i == 1 else f'%r{i - 1}'}, %e{i}" for i in range(1, chains)]
    text = "\n".join([
        declared, "define void @run(i64 %n, i64 %unused, ptr %out) {", "entry:",
        f"  %seed = load {bits}, ptr %out, align 4", *lines, "  br label %loop", "loop:",
        "  %k = phi i64 [ 0, %entry ], [ %k1, %loop ]", *phis, *steps, "  %k1 = add i64 %k, 1",
        "  %more = icmp slt i64 %k1, %n", "  br i1 %more, label %loop, label %done", "done:", *ends,
        f"  store {bits} %r{chains - 1}, ptr %out, align 4", "  ret void", "}",
    ])  # fmt: skip
    run = _native(f"peak_{kind}", text, cpu)
    out = _Buffer(64)
    loops = _loops(lambda n: run(n, 0, out.address))
    return it.flops * chains * loops / _best(lambda: run(loops, 0, out.address), budget_s)


def _native(name: str, text: str, cpu: CPU) -> Callable[[int, int, int], None]:
    """The function `run(i64, i64, ptr)` of a module."""
    code = jit.optimize(name, text, cpu).object_code()
    function: Callable[[int, int, int], None] = jit.link(name, code, "run").function(
        None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
    )
    return function


def _loops(call: Callable[[int], object]) -> int:
    """How many repetitions take about _RUN_S."""
    n = 1
    while True:
        start = time.perf_counter()
        call(n)
        if time.perf_counter() - start > _RUN_S / 2 or n >= 1 << 30:
            return n
        n *= 2


# ---- bandwidth -----------------------------------------------------------------------------------------------


class _Buffer:
    """Page-aligned memory that has been written to."""

    def __init__(self, size_bytes: int) -> None:
        self._memory = ctypes.create_string_buffer(size_bytes + 4 * KiB)
        self.address = -(-ctypes.addressof(self._memory) // (4 * KiB)) * (4 * KiB)
        ctypes.memset(self.address, 1, size_bytes)
        self.size_bytes = size_bytes


def _stream(cpu: CPU, copies: bool) -> Callable[[int, int, int], None]:
    """run(repetitions, bytes, address): reads the memory in order; or copies its first half to its second."""
    width, vector = cpu.vector_bits // 8, f"<{cpu.vector_bits // 32} x i32>"
    batch = 8
    lines = []
    for u in range(batch):
        lines += [f"  %o{u} = add i64 %at, {u * width}", f"  %p{u} = getelementptr i8, ptr %base, i64 %o{u}"]
        lines.append(f"  %v{u} = load {vector}, ptr %p{u}, align 4")
        if copies:
            lines += [f"  %q{u} = getelementptr i8, ptr %p{u}, i64 %half"]
            lines += [f"  store {vector} %v{u}, ptr %q{u}, align 4"]
        else:
            lines.append(f"  %y{u} = xor {vector} %x{u}, %v{u}")
    carried = [] if copies else [
        f"  %x{u} = phi {vector} [ %z{u}, %outer ], [ %y{u}, %loop ]" for u in range(batch)
    ]  # fmt: skip
    outer = [] if copies else [
        f"  %z{u} = phi {vector} [ zeroinitializer, %entry ], [ %y{u}, %next ]" for u in range(batch)
    ]  # fmt: skip
    ends = []
    if not copies:
        ends = [f"  %w{u} = xor {vector} {'%y0' if u == 1 else f'%w{u - 1}'}, %y{u}" for u in range(1, batch)]
        ends.append(f"  store {vector} %w{batch - 1}, ptr %base, align 4")
    text = "\n".join([
        "define void @run(i64 %n, i64 %size, ptr %base) {", "entry:", "  %half = lshr i64 %size, 1",
        f"  %end = {'add i64 %half, 0' if copies else 'add i64 %size, 0'}", "  br label %outer", "outer:",
        "  %r = phi i64 [ 0, %entry ], [ %r1, %next ]", *outer, "  br label %loop", "loop:",
        "  %at = phi i64 [ 0, %outer ], [ %at1, %loop ]", *carried, *lines, f"  %at1 = add i64 %at, {batch * width}",
        "  %more = icmp slt i64 %at1, %end", "  br i1 %more, label %loop, label %next", "next:",
        "  %r1 = add i64 %r, 1", "  %again = icmp slt i64 %r1, %n", "  br i1 %again, label %outer, label %done",
        "done:", *ends, "  ret void", "}",
    ])  # fmt: skip
    return _native("stream_copy" if copies else "stream_read", text, cpu)


def _rate(run: Callable[[int, int, int], None], buffers: Sequence[_Buffer], budget_s: float) -> float:
    """Bytes per second that all buffers together move, one thread each: reads, and writes where it copies."""
    size = buffers[0].size_bytes
    times = _loops(lambda n: run(n, size, buffers[0].address))
    if len(buffers) == 1:
        return size * times / _best(lambda: run(times, size, buffers[0].address), budget_s)
    times = max(times, 4)  # long against the start of the threads
    with ThreadPoolExecutor(len(buffers)) as pool:

        def together() -> None:
            list(pool.map(lambda b: run(times, size, b.address), buffers))

        return len(buffers) * size * times / _best(together, budget_s)


# ---- launches ------------------------------------------------------------------------------------------------


def _launch(cpu: CPU, units: int, budget_s: float) -> tuple[float, float]:
    """(seconds of a launch on the caller, seconds more where `units` threads are woken)."""
    import torch  # noqa: F401  (its OpenMP runtime runs the kernels)

    from torchroller.triton_cpu.lowering import LoweredModule

    sizes = ", ".join(f"i32 %{n}" for n in ("x", "y", "z", "gx", "gy", "gz"))
    empty = f"define internal void @program({sizes}, ptr %scratch) {{\n  ret void\n}}"
    code = jit.optimize("empty", abi.wrap(LoweredModule("empty", empty, (), 0)), cpu).object_code()
    many = jit.optimize(abi.RUN_MANY, abi.RUN_MANY_IR, cpu).object_code()
    kernel = jit.link("empty", code, abi.ENTRY)
    run = jit.link(abi.RUN_MANY, many, abi.RUN_MANY).function(
        None, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p
    )
    entries = (ctypes.c_void_p * 1)(kernel.address)
    found = []
    for grid in (1, units):
        block = abi.pack_block((grid,), (), (), threads=units, gomp_parallel=openmp.gomp_parallel())
        blocks = (ctypes.c_void_p * 1)(ctypes.addressof(block))
        # one at a time: of a waking that other processes disturb, the best of many alone tells
        found.append(_best(lambda: run(1, entries, blocks), budget_s))  # noqa: B023
    foreign_s = _best(lambda: run(0, entries, entries), budget_s)  # of the call from Python
    return max(2e-8, found[0] - foreign_s), max(0.0, found[1] - found[0])
