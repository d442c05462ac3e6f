"""Micro-performance model: an rProgram on a device, as an `Estimate`.

A program streams its operands through the memory levels and computes. Every level and the arithmetic get their own
time; the slowest one bounds the kernel, and a device-specific share of the others does not overlap with it:

    time = slowest + exposed * rest + launch + programs on the busiest unit * program start + skew

What leaves a level is counted from the tiles alone:

    DRAM       each tensor once, again for every walk along a grid axis whose reuse distance exceeds the shared cache
    shared     (L3, L2 of a GPU) the operand tiles of every program; passes over a reduction that fits nowhere repeat
    private    (L2 and L1 of a core) operands per reduction step, plus accumulators and panels that spill from inside
    scratch    (shared memory of a GPU) what warps read, given how they split the tile

Whole rounds are counted: three programs on two cores take as long as four. The model ranks; see test_cost.py for
the orderings that it must get right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torchroller.device import DeviceSpec, rate_text, size_text
from torchroller.tile import Space, ceil_div, next_pow2, padded

_SHARED_CACHE_SHARE = (
    0.7  # of a cache's capacity that reused data can count on, the rest being streamed through
)


@dataclass(frozen=True)
class Estimate:
    """Predicted time of one kernel, and where it goes. `level_s` and `level_bytes` follow the device's levels."""

    time_s: float
    bound_by: str  # a memory level, "compute" or "launch"
    level_s: tuple[tuple[str, float], ...]
    level_bytes: tuple[tuple[str, float], ...]
    compute_s: float
    overhead_s: float  # launch, program starts, loop iterations, skew
    flops: float  # useful floating-point operations
    waves: float  # programs per place on the device; 2.0 means two full rounds
    rounds: int  # programs on the busiest unit
    occupancy: int  # programs resident on one unit at once
    padding_waste: float  # share of computed points that lie outside the axes

    def __str__(self) -> str:
        levels = "  ".join(f"{name} {time_text(s)}" for name, s in self.level_s)
        parts = [f"predicted {time_text(self.time_s)}, bound by {self.bound_by}"]
        if self.flops:
            parts.append(f"{rate_text(self.flops / self.time_s)[:-1]}FLOP/s")
        parts.append(f"compute {time_text(self.compute_s)}  {levels}  overhead {time_text(self.overhead_s)}")
        parts.append(f"waves {self.waves:.2f}, padding {self.padding_waste:.1%}")
        return "; ".join(parts)


def time_text(s: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if s >= scale:
            return f"{s / scale:.3g} {unit}"
    return f"{s / 1e-9:.3g} ns"


@dataclass(frozen=True)
class Launch:
    """Launch parameters of one candidate: warps and stages (1 and 1 on a CPU)."""

    num_warps: int
    num_stages: int


def grid_of(space: Space, e: list[int]) -> int:
    grid = 1
    for i in space.spatial:
        grid *= ceil_div(space.extents[i], e[i])
    return grid


def scratch_bytes(space: Space, device: DeviceSpec, e: list[int], stages: int) -> int:
    """Explicit scratch of one program: the operands of a dot, one buffer per pipeline stage."""
    if not space.has_dot or not device.program_scratch_bytes:
        return 0
    buffers = max(1, stages - 1) if device.kind == "hip" else stages
    total = 0
    for o in space.staged:
        total += _block_elements(o, e) * o.itemsize
    return total * buffers


def _block_elements(operand, e: list[int]) -> int:
    """Elements of the block tensor that holds the operand: not clipped, Triton blocks are whole."""
    total = 1
    for axis in operand.axes:
        total *= e[axis]
    return total


def thread_registers(space: Space, device: DeviceSpec, e: list[int], warps: int) -> float:
    """32-bit registers of one thread: accumulators or live block values, plus addresses and temporaries."""
    threads = warps * device.warp_size
    words = max(1, space.itemsize // 4)
    block = math.prod(e[i] for i in space.spatial)
    if space.has_dot:
        need = block / threads
        if device.peak(space.dot_dtype).matrix_flops is None:
            # Without matrix instructions a thread holds its rows and columns of both operand tiles.
            side = math.sqrt(need)
            need += 2 * side * min(8, math.prod(e[i] for i in space.reduce))
        return need * words + 32
    inner = math.prod(e[i] for i in space.reduce)
    live = max(1, sum(1 for o in space.loads if o.axes)) + 1
    return max(1.0, block * inner / threads) * words * live + 24


def occupancy(space: Space, device: DeviceSpec, e: list[int], launch: Launch) -> int:
    """Programs resident on one unit."""
    if device.is_cpu:
        return 1
    limits = [32, device.unit_warps // launch.num_warps]
    registers = thread_registers(space, device, e, launch.num_warps) * launch.num_warps * device.warp_size
    limits.append(int(device.unit_registers // max(1.0, registers)))
    scratch = scratch_bytes(space, device, e, launch.num_stages)
    if scratch:
        limits.append(device.unit_scratch_bytes // scratch)
    return max(1, min(limits))


def estimate(space: Space, device: DeviceSpec, e: list[int], launch: Launch) -> Estimate:
    """Predict a candidate. `e` has the block extent of every spatial axis and the step of every reduce axis."""
    grid = grid_of(space, e)
    units = device.units
    rounds = ceil_div(grid, units)
    active = min(grid, units)
    occ = occupancy(space, device, e, launch)
    resident = min(occ, rounds)
    whole = [padded(d, x) if r else x for x, d, r in zip(e, space.extents, space.is_reduce)]
    steps = 1
    for i in space.reduce:
        steps *= ceil_div(space.extents[i], e[i])

    block = math.prod(e[i] for i in space.spatial)
    inner = math.prod(whole[i] for i in space.reduce)
    out_per_unit = _private_bytes(space, device, e, whole, steps, block, launch)
    shared_bytes, dram_bytes = _shared_bytes(space, device, e, whole, steps, grid, occ)
    compute_one = _compute_s(space, device, e, block, inner, launch, resident)

    level_s: list[tuple[str, float]] = []
    level_bytes: list[tuple[str, float]] = []
    for level in device.levels:
        if level.shared_by == 1:
            moved = out_per_unit[level.name]
            seconds = rounds * moved / level.bandwidth_bytes_per_s
            moved *= grid
        else:
            moved = dram_bytes if level is device.dram else shared_bytes
            rate = level.bandwidth_bytes_per_s
            if level.unit_bandwidth_bytes_per_s:
                rate = min(rate, active * level.unit_bandwidth_bytes_per_s)
            seconds = moved / (rate * _latency_hidden(space, device, level, e, launch, resident))
            if level.unit_bandwidth_bytes_per_s:
                seconds = max(seconds, rounds * (moved / grid) / level.unit_bandwidth_bytes_per_s)
        level_s.append((level.name, seconds))
        level_bytes.append((level.name, moved))
    compute_s = rounds * compute_one

    stages = [*level_s, ("compute", compute_s)]
    bound_by, slowest = max(stages, key=lambda item: item[1])
    body = slowest + device.exposed * (sum(s for _, s in stages) - slowest)
    trips = steps * max(1, space.passes) if steps > 1 else 1
    overhead = device.launch_s + (device.fork_s if grid > 1 else 0.0)
    overhead += rounds / resident * (device.program_s + trips * device.step_s)
    if units > 1:
        overhead += device.skew * body / rounds
    if overhead > body:
        bound_by = "launch"
    points = math.prod(space.extents)
    computed = grid * block * inner
    return Estimate(
        time_s=body + overhead, bound_by=bound_by, level_s=tuple(level_s), level_bytes=tuple(level_bytes),
        compute_s=compute_s, overhead_s=overhead, flops=float(space.flops), waves=grid / (units * occ), rounds=rounds,
        occupancy=occ, padding_waste=1.0 - points / computed,
    )  # fmt: skip


def _shared_bytes(
    space: Space, device: DeviceSpec, e: list[int], whole: list[int], steps: int, grid: int, occ: int
) -> tuple[float, float]:
    """Bytes that leave the shared cache, and bytes that leave DRAM, for the whole kernel."""
    private = (
        0 if not device.is_cpu else device.private_levels[0].capacity_bytes if device.private_levels else 0
    )
    looped = sum(o.nbytes(whole) for o in space.operands if o.passes)
    repeats = steps > 1 and looped > private
    cache = device.shared_levels[-1] if device.shared_levels else None
    capacity = (cache.capacity_bytes if cache else private * device.units) * _SHARED_CACHE_SHARE
    wave = _wave_tile(space, device, e, whole, occ)
    shared = dram = 0.0
    for o in space.operands:
        run = o.run_bytes(e)
        walks = max(1, o.passes) if repeats else 1
        if cache is not None:
            charge = (padded(run, cache.transaction_bytes) + cache.run_overhead_bytes) / run
            shared += grid * o.nbytes(whole) * charge * walks
        level = device.dram
        charge = (padded(run, level.transaction_bytes) + level.run_overhead_bytes) / run
        again = walks if looped * device.units * occ > capacity else 1
        for i in space.spatial:
            if i not in o.axes and wave[i] < space.extents[i]:
                distance = _reuse_distance(space, wave, whole, i)
                if distance > capacity:
                    again *= ceil_div(space.extents[i], wave[i])
        dram += o.nbytes(space.extents) * charge * again
    return shared, dram


def _wave_tile(space: Space, device: DeviceSpec, e: list[int], whole: list[int], occ: int) -> list[int]:
    """The part of the iteration space that all units hold at one time, in the order emitters number programs."""
    wave = list(whole)
    left = device.units * occ
    order = list(reversed(space.spatial))
    if device.raster_group > 1 and space.m_axes and space.n_axes:
        first = space.m_axes[-1]
        take = min(device.raster_group, left, ceil_div(space.extents[first], e[first]))
        wave[first], left = take * e[first], left // take
        order.remove(first)
    for i in order:
        take = max(1, min(left, ceil_div(space.extents[i], e[i])))
        wave[i], left = take * e[i], left // take
    return wave


def _reuse_distance(space: Space, wave: list[int], whole: list[int], axis: int) -> float:
    """Bytes touched between two uses of the same data along `axis`: faster axes run through completely."""
    reach = list(wave)
    for i in space.spatial:
        if i > axis:
            reach[i] = space.extents[i]
    return float(sum(o.nbytes(reach) for o in space.operands))


def _latency_hidden(
    space: Space, device: DeviceSpec, level, e: list[int], launch: Launch, resident: int
) -> float:
    """Share of a shared level's bandwidth that the loads in flight can use (Little's law); 1 on a CPU."""
    if device.is_cpu or not level.latency_s:
        return 1.0
    if space.has_dot:
        ahead = launch.num_stages - 1 if launch.num_stages > 1 else 0.5
        in_flight = resident * ahead * sum(o.nbytes(e) for o in space.staged)
    else:
        in_flight = resident * sum(o.nbytes(e) for o in space.loads)
    needed = level.bandwidth_bytes_per_s / device.units * level.latency_s
    return max(0.02, min(1.0, in_flight / needed)) if in_flight else 1.0


def _private_bytes(
    space: Space, device: DeviceSpec, e: list[int], whole: list[int], steps: int, block: int, launch: Launch
) -> dict[str, float]:
    """Bytes that leave each private level during one program."""
    levels = device.private_levels
    if not levels:
        return {}
    if not device.is_cpu:
        return {lv.name: _warp_reads(space, device, e, steps, launch) for lv in levels}
    once = float(sum(o.nbytes(whole) for o in space.operands))
    walked = float(sum(o.nbytes(whole) * max(1, o.passes) for o in space.operands))
    looped = sum(o.nbytes(whole) for o in space.operands if o.passes)
    out: dict[str, float] = {}
    if not space.has_dot:
        # What leaves a level has missed all levels inside it; passes after the first are served from where it fits.
        for k, level in enumerate(levels):
            inner = levels[k + 1].capacity_bytes if k + 1 < len(levels) else 0
            out[level.name] = walked if looped > inner else once
        return out
    rows, cols = _register_block(space, device, e)
    m = block_side(e, space.m_axes)
    n = block_side(e, space.n_axes)
    a = sum(o.nbytes(e) for o in space.staged if o.side == "a")
    b = sum(o.nbytes(e) for o in space.staged if o.side == "b")
    accumulator = block * 4
    outside = once - (a + b) * steps  # epilogue operands and the result
    for k, level in enumerate(levels):
        if k + 1 < len(levels):
            inner = levels[k + 1].capacity_bytes
            # A row panel of A meets every column panel of B; B comes again for every row panel unless it stays inside.
            panels = 1 if b + a * rows / max(rows, m) <= 0.8 * inner else ceil_div(m, rows)
            spill = 2 * accumulator if accumulator + a + b > inner else 0
            out[level.name] = (a + b * panels + spill) * steps + outside
        else:
            # Register blocks: A by broadcast once per column panel, B once per row panel, accumulators in and out;
            # B is read and written once more to be packed.
            per_step = a * ceil_div(n, cols) + b * ceil_div(m, rows) + 2 * accumulator + 3 * b
            out[level.name] = per_step * steps + outside
    return out


def block_side(e: list[int], axes: tuple[int, ...]) -> int:
    side = 1
    for i in axes:
        side *= e[i]
    return side


def _register_block(space: Space, device: DeviceSpec, e: list[int]) -> tuple[int, int]:
    """The micro-kernel of a CPU that suits the block: most accumulators, then fewest operand loads."""
    lanes = device.lanes(4)
    m, n = block_side(e, space.m_axes), block_side(e, space.n_axes)
    best = max(device.micro_kernels, key=lambda rv: (min(rv[0], m) * min(rv[1] * lanes, n), -rv[0] - rv[1]))
    return min(best[0], m), min(best[1] * lanes, max(lanes, n))


def _warp_reads(space: Space, device: DeviceSpec, e: list[int], steps: int, launch: Launch) -> float:
    """Scratch bytes of one program on a GPU: operands written once, read once per warp row or column."""
    if not space.has_dot:
        return 0.0
    m, n = block_side(e, space.m_axes), block_side(e, space.n_axes)
    a = sum(o.nbytes(e) for o in space.staged if o.side == "a")
    b = sum(o.nbytes(e) for o in space.staged if o.side == "b")
    instruction = device.peak(space.dot_dtype).instruction
    if instruction[0] >= 64:  # operands are read from scratch by the matrix unit itself, per instruction
        read_a, read_b = ceil_div(n, 256), ceil_div(m, instruction[0])
    else:
        down = min(launch.num_warps, max(1, next_pow2(round(math.sqrt(launch.num_warps * m / n)))))
        across = launch.num_warps // down
        read_a, read_b = across, down
    return (a * (1 + read_a) + b * (1 + read_b)) * steps


def _compute_s(
    space: Space, device: DeviceSpec, e: list[int], block: int, inner: int, launch: Launch, resident: int
) -> float:
    """Arithmetic time of one program on its unit, padding included; programs that share a unit share its peak."""
    peak = device.peak(space.dot_dtype)
    vector = peak.vector_flops / device.units
    ops = (space.vector_ops * inner + space.row_ops) * block
    # A peak counts a multiply-add as two; one instruction of another kind is one.
    seconds = ops / (vector / 2) if ops else 0.0
    if device.is_cpu:
        if space.has_dot:
            rows, cols = _register_block(space, device, e)
            lanes = device.lanes(4)
            n = block_side(e, space.n_axes)
            accumulators = rows * max(1, cols // lanes)
            # Two FMA pipes of four cycles latency want eight chains; columns narrower than a vector leave lanes idle.
            busy = min(1.0, accumulators / 8) * min(1.0, n / lanes)
            rate = (peak.matrix_flops or peak.vector_flops) / device.units
            seconds += 2.0 * block * inner / (rate * busy)
        return seconds
    warps = resident * launch.num_warps
    if space.has_dot:
        rate = (peak.matrix_flops or peak.vector_flops) / device.units
        wanted = device.unit_partitions * (2 if peak.matrix_flops else 3)
        rate *= min(1.0, warps / wanted) ** 0.5
        if peak.matrix_flops:
            m = block_side(e, space.m_axes)
            rate *= min(1.0, m / peak.instruction[0]) ** 0.5
        else:
            # Without matrix units each thread loads tile rows and columns: small thread tiles are bound by loads.
            per_thread = block / (launch.num_warps * device.warp_size)
            side = math.sqrt(max(1.0, per_thread))
            rate *= side / (side + 1.0)
        seconds += 2.0 * block * inner / rate
    elif seconds:
        seconds /= min(1.0, warps / (2 * device.unit_partitions)) ** 0.5
    return seconds


def describe(space: Space, found: Estimate) -> str:
    moved = ", ".join(f"{name} {size_text(n)}" for name, n in found.level_bytes)
    return f"{found} ({moved})"
