"""What one program takes of a unit: shared memory, registers, occupancy; and why a tile cannot run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torchroller.spec import TRITON_MAX_NUMEL, size_text
from torchroller.tile import ceil_div, next_pow2
from torchroller.tiled import Tiled

_PASSED_OVER = 1.5  # times the innermost cache: what lies beyond still streams from the next one
_MAX_RESIDENT = 32  # programs per unit, whatever their size
_ADDRESS_REGISTERS = 32  # per thread, besides the data of its tile
_FMA_DEPTH = (
    8  # reduction steps of both operands that a thread without matrix instructions keeps in registers
)
_SPLIT = 3  # registers of an element that is split: itself, three halves and a rest


@dataclass(frozen=True)
class Launch:
    """Launch parameters of a Triton kernel; 1 and 1 on a CPU."""

    num_warps: int = 1
    num_stages: int = 1


def scratch_bytes(t: Tiled, stages: int) -> int:
    """Shared memory of one program: the operands of a dot, one buffer per pipeline stage.

    Blocks are whole, also where they overhang the tensor. Triton's AMD pipeline needs one buffer less.
    """
    space, device = t.space, t.device
    if not space.has_dot or not device.program_scratch_bytes:
        return 0
    buffers = max(1, stages - 1) if device.kind == "hip" else stages
    tiles = [(o.side, math.prod(t.e[i] for i in o.axes) * o.itemsize) for o in space.staged]
    wider = 1.5 if split_dot(t) else 1.0  # three parts of two bytes
    return int(buffers * sum(n * (wider if side == "b" else 1.0) for side, n in tiles))


def split_dot(t: Tiled) -> bool:
    """Whether operands of the dot are split into parts (emit/split.py)."""
    return t.device.float32_dot == "bf16x6" and t.space.dot_dtype == "float32"


def thread_registers(t: Tiled, num_warps: int) -> float:
    """32-bit registers of one thread: accumulators or live block values, plus addresses and temporaries."""
    space, device = t.space, t.device
    threads = num_warps * device.warp_size
    words = max(1, space.itemsize // 4)
    if space.has_dot:
        need = t.block / threads
        if split_dot(t):
            split = t.m + (0 if space.b_is_packed else t.n)
            need += need + _SPLIT * split * t.inner / t.steps / threads  # small products are added up apart
        if space.peak(device).matrix_flops is None:
            need += 2 * math.sqrt(need) * min(_FMA_DEPTH, t.inner)
        return need * words + _ADDRESS_REGISTERS
    points = t.block * math.prod(t.e[i] for i in space.reduce)
    return max(1.0, points / threads) * words * space.live_values + _ADDRESS_REGISTERS


def occupancy(t: Tiled, launch: Launch) -> int:
    """Programs resident on one unit at a time."""
    device = t.device
    if device.is_cpu:
        return 1
    used = thread_registers(t, launch.num_warps) * launch.num_warps * device.warp_size
    resident = min(_MAX_RESIDENT, device.unit_warps // launch.num_warps, int(device.unit_registers // used))
    scratch = scratch_bytes(t, launch.num_stages)
    if scratch:
        resident = min(resident, device.unit_scratch_bytes // scratch)
    return max(1, resident)


def launches(t: Tiled) -> list[Launch]:
    """Warps and stages worth rating for a tile: warps keep a thread's share of it near a good size."""
    space, device = t.space, t.device
    if device.is_cpu:
        return [Launch()]
    if not space.has_dot:
        points = t.block * math.prod(t.e[i] for i in space.reduce)
        per_thread = max(1, 2 * device.vector_bytes // space.itemsize)
        wanted = next_pow2(ceil_div(points, per_thread * device.warp_size))
        usual = max(1, min(wanted, 8))
        more = [w for w in (16, 32) if usual < w <= min(wanted, device.max_warps)]
        return [Launch(w) for w in (usual, *more)]
    matrix = space.peak(device).matrix_flops is not None
    ideal = next_pow2(ceil_div(t.block, (64 if matrix else 32) * device.warp_size))
    least = 1 if t.block < 32 * 32 else 2 if t.block < 64 * 64 else 4
    warps = sorted({max(least, min(w, 8, device.max_warps)) for w in (ideal, ideal // 2)})
    stages = sorted({min(s, t.steps) for s in device.stages})
    fitting = [s for s in stages if scratch_bytes(t, s) <= device.program_scratch_bytes]
    return [Launch(w, s) for w in warps for s in fitting[-2:] or stages[:1]]


def violation(t: Tiled, launch: Launch, smallest: bool = False) -> str | None:
    """Why a tile cannot run with these launch parameters, or None. A CPU always runs the smallest tile."""
    space, device = t.space, t.device
    for o in space.operands:
        numel = math.prod(t.e[i] for i in o.axes)
        if numel > TRITON_MAX_NUMEL:
            return f"block of {o.tensor} has {numel} elements, Triton takes {TRITON_MAX_NUMEL}"
    if t.block > TRITON_MAX_NUMEL:
        return f"block has {t.block} elements, Triton takes {TRITON_MAX_NUMEL}"
    if device.is_cpu:
        cache = device.private_levels[0] if device.private_levels else device.levels[-1]
        need, room = sum(t.step_bytes) + t.accumulator_bytes, float(cache.capacity_bytes)
        if space.passes > 1 and not space.has_dot and device.private_levels:
            # each reduction is a pass over the block: it should come from the innermost cache
            cache = device.private_levels[-1]
            room = _PASSED_OVER * cache.capacity_bytes
        if need > room and not smallest:
            return f"tiles take {size_text(need)}, {cache.name} holds {size_text(cache.capacity_bytes)}"
        return None
    scratch = scratch_bytes(t, launch.num_stages)
    if scratch > device.program_scratch_bytes:
        return (
            f"{launch.num_stages} stages take {size_text(scratch)} of shared memory, "
            f"a program has {size_text(device.program_scratch_bytes)}"
        )
    registers = thread_registers(t, launch.num_warps)
    if registers > device.thread_registers:
        return (
            f"{registers:.0f} registers per thread with {launch.num_warps} warps, "
            f"a thread has {device.thread_registers}"
        )
    used = registers * launch.num_warps * device.warp_size
    if used > device.unit_registers:
        return f"{used:.0f} registers per program, a unit has {device.unit_registers}"
    if device.accumulator_bytes and t.accumulator_bytes > device.accumulator_bytes:
        held = size_text(device.accumulator_bytes)
        return f"accumulators take {size_text(t.accumulator_bytes)}, a unit has {held}"
    return None
