"""Micro-performance model: a tile with its launch parameters on a device, as an `Estimate`.

A program streams its operands through the memory levels and computes. Every level and the arithmetic
get their own time; the slowest bounds the kernel, and a device-specific share of the rest is exposed:

    time = slowest + exposed * rest + late + launch + program starts + loop iterations + skew

`late` is what a CPU waits for at the start of runs of memory that its prefetchers do not know yet.

Whole rounds are counted: three programs on two cores take as long as four. The model is there to rank;
tests/torchroller/test_cost.py has the orderings that it must get right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torchroller.capacity import Launch, occupancy, split_dot
from torchroller.space import Space
from torchroller.spec import DeviceSpec, MemLevel, rate_text
from torchroller.tile import ceil_div, padded
from torchroller.tiled import CACHE_SHARE, Tiled, live_rows, register_block
from torchroller.traffic import (
    FEW_ROWS,
    cache_bytes,
    copied_bytes,
    late_bytes,
    scratch_traffic,
    shared_bytes,
    turned,
)
from torchroller.triton_cpu.blocking import heights

_LOAD_COST = 0.75  # of a load from shared memory, in multiply-adds, given that wide loads and broadcasts help
# Loss of rate for each doubling of the accumulator tile beyond a third of L1: its loads wait for L2. Measured on a
# Emerald Rapids core: 64x64 159, 128x64 153, 256x64 134 GFLOP/s of 2048^3.
_FAR_ACCUMULATOR = 0.04
_SECOND_STRIP = (
    0.03  # with few rows, of each further pass over a panel while the next one is on its way from memory
)
_BROKEN_PANELS = 0.8  # with few rows nothing hides that the panels of a wide block lie apart
_BLOCK_CYCLES = 40  # of a register block, besides its multiply-adds: accumulators in and out, the call
_TESTED = 4.0  # vector instructions of a load that may leave its tensor: compare, mask, select
# Of the time of a window, for each loop around a row of positions: what the row's loop has hoisted is computed again.
# Measured on Zen 4 on windows of 3 x 3 to 7 x 7: two rows take 3 to 30 % longer than twice one, two images as well.
_AROUND = 0.1
# Vector instructions of spreading a factor, or a test, of one tap for all rows of a program. Measured on Zen 4 on
# windows of 3 x 3 to 7 x 7: 18 cycles a tap, of which a row then takes one.
_PREPARED = 16.0
# Vector instructions of what lies across the vectors: turned by shuffles in whole blocks, picked lane by lane else.
_TURN, _PICKED = 5.0, 2.0
_FMA_CHAINS = 8  # independent accumulators that keep two FMA pipes of four cycles latency busy
_TIGHT = 0.94  # of the rate where no further one makes up for a late operand: on Zen 3, 73 of 80 GFLOP/s
# Loss of rate for each load of a register block beyond one in two multiply-adds, where the rows of A come from L2. On
# Zen 4: 4x64 116, 8x32 113 GFLOP/s.
_EXTRA_LOADS = 0.2
_EVEN_LOADS = 0.5
# A unit with fewer buffers of operands computes and copies in turns. Measured on H100, of 8192^3 in bfloat16:
# 128x256x128 with two stages 534, 128x256x64 with three 743 TFLOP/s.
_BUFFERS, _TAKING_TURNS = 3, 0.72
# Share of the rate of six products of bfloat16. Measured on H100, of 4096^3: 130 of 165 TFLOP/s with the right operand
# split in memory, 66 with both split in registers.
_SPLIT_PACKED, _SPLIT = 0.8, 0.4
# A program that is alone on its unit splits and multiplies in turns: 128x128x32, of 65536x4096x1024, 75 TFLOP/s with
# registers for one, 130 with registers for two.
_ALONE = 0.62
# Bytes that prefetchers of a CPU are ahead of a program that goes on to the next rows. Measured on Zen 4, one core,
# layer_norm of 8192 rows of 3 KB: one row a program 1.4 ms, two 2.1, four 2.5; of 16384 rows of 1 KB: two 0.78, four
# 0.93, eight 1.26.
_FETCHED_AHEAD = 2048
# Of a loop along the reduction without a dot on a CPU. Measured on Zen 4: one iteration for 16 to 128 points of a row
# differs by a third of a nanosecond.
_LOOP_S = 5e-10
# Share of the time of L1 and L2 that a register-blocked product exposes: it reads panels in order, well ahead.
_EXPOSED_PANELS = 0.05


@dataclass(frozen=True)
class Estimate:
    """Predicted time of one kernel, and where it goes; level_s and level_bytes follow the device's levels."""

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
        rate = f", {rate_text(self.flops / self.time_s)[:-1]}FLOP/s" if self.flops else ""
        levels = ", ".join(f"{name} {time_text(s)}" for name, s in self.level_s)
        return (
            f"predicted {time_text(self.time_s)}{rate}, bound by {self.bound_by}; compute "
            f"{time_text(self.compute_s)}, {levels}, overhead {time_text(self.overhead_s)}; "
            f"waves {self.waves:.2f}, padding {self.padding_waste:.1%}"
        )


def time_text(s: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if s >= scale:
            return f"{s / scale:.3g} {unit}"
    return f"{s / 1e-9:.3g} ns"


def estimate(t: Tiled, launch: Launch) -> Estimate:
    """Predict the time of a tile run with these launch parameters."""
    space, device = t.space, t.device
    occ = occupancy(t, launch)
    resident = min(occ, t.rounds)
    from_shared, from_dram = shared_bytes(t, occ)
    private = cache_bytes(t) if device.is_cpu else [scratch_traffic(t, launch.num_warps)]

    level_s: list[tuple[str, float]] = []
    level_bytes: list[tuple[str, float]] = []
    inner = iter(private)
    for level in device.levels:
        if level.private:
            moved = next(inner)
            seconds = t.rounds * moved / level.bandwidth_bytes_per_s
            moved *= t.grid
        else:
            moved = from_dram if level is device.levels[0] else from_shared
            seconds = _shared_level_s(t, level, moved, launch, resident)
        level_s.append((level.name, seconds))
        level_bytes.append((level.name, moved))
    compute_s = t.rounds * _compute_s(t, launch, resident)

    bound_by, slowest = max((*level_s, ("compute", compute_s)), key=lambda item: item[1])
    body = slowest + _exposed_s(t, level_s, compute_s, slowest)
    if device.dram.ramp_bytes and bound_by != device.dram.name:
        # Nothing runs ahead of the first lines of a run: what computes waits for them.
        late_s = _shared_level_s(t, device.dram, late_bytes(t), launch, resident)
        body += (1.0 - device.exposed) * min(late_s, dict(level_s)[device.dram.name])
    body += _waiting_share(t) * min(compute_s, dict(level_s)[device.dram.name])
    iterations = t.steps * max(1, space.passes) if t.steps > 1 else 0
    iteration_s = device.step_s if space.has_dot or not device.is_cpu else _LOOP_S
    if not device.is_cpu and launch.num_stages == 1:
        iteration_s += device.levels[0].latency_s  # nothing fetches the next step while this one computes
    overhead = device.launch_s + t.rounds / resident * (device.program_s + iterations * iteration_s)
    if t.grid > 1:
        overhead += device.fork_s
    if device.units > 1:
        overhead += device.skew * body / t.rounds
    computed = t.grid * t.block * t.inner
    return Estimate(
        time_s=body + overhead,
        bound_by="launch" if overhead > body else bound_by,
        level_s=tuple(level_s),
        level_bytes=tuple(level_bytes),
        compute_s=compute_s,
        overhead_s=overhead,
        flops=space.flops,
        waves=t.grid / (device.units * occ),
        rounds=t.rounds,
        occupancy=occ,
        padding_waste=1.0 - space.points / computed,
    )


def _exposed_s(t: Tiled, level_s: list[tuple[str, float]], compute_s: float, slowest: float) -> float:
    """What does not hide behind the slowest stage."""
    device = t.device
    rest = compute_s + sum(s for _, s in level_s) - slowest
    if not (device.is_cpu and t.space.has_dot and slowest == compute_s and t.m > FEW_ROWS):
        return device.exposed * rest
    private = sum(s for level, (_, s) in zip(device.levels, level_s) if level.private)
    innermost = t.rounds * t.steps / device.private_levels[-1].bandwidth_bytes_per_s
    rows, columns = (n * innermost for n in copied_bytes(t))  # packing B hides behind nothing
    panels = private - rows - columns
    return device.exposed * (rest - private + rows) + _EXPOSED_PANELS * panels + columns


def _waiting_share(t: Tiled) -> float:
    """Share of the shorter of DRAM and arithmetic that comes on top of what `exposed` says, on a CPU.

    A program that walks its rows several times reads them from memory in the first walk alone. Meanwhile little is
    computed, and afterwards nothing is fetched but what prefetchers have asked for.
    """
    if not t.device.is_cpu or t.space.has_dot or t.space.passes < 2:
        return 0.0
    rows = sum(n for o, n in zip(t.space.operands, t.program_bytes) if o.passes and not o.write)
    return max(0.0, 1.0 - _FETCHED_AHEAD / max(1, rows) - t.device.exposed)


def _shared_level_s(t: Tiled, level: MemLevel, moved: float, launch: Launch, resident: int) -> float:
    """Time of a level that units share: its own bandwidth, or what the busiest unit can draw from it."""
    one = level.unit_bandwidth_bytes_per_s or level.bandwidth_bytes_per_s
    together = min(level.bandwidth_bytes_per_s, one * min(t.grid, t.device.units))
    seconds = max(moved / together, t.rounds * (moved / t.grid) / one)
    return seconds / _latency_hidden(t, level, launch, resident)


def _latency_hidden(t: Tiled, level: MemLevel, launch: Launch, resident: int) -> float:
    """Share of a level's bandwidth that the loads in flight can use (Little's law).

    The hardware prefetchers of a CPU see to it there.
    """
    if t.device.is_cpu or not level.latency_s:
        return 1.0
    if t.space.has_dot:
        ahead = launch.num_stages - 1 if launch.num_stages > 1 else 0.5
        in_flight = resident * ahead * (t.a + t.b)
    else:
        in_flight = resident * sum(n for o, n in zip(t.space.operands, t.step_bytes) if not o.write)
    needed = level.bandwidth_bytes_per_s / t.device.units * level.latency_s
    return min(1.0, max(0.02, in_flight / needed)) if in_flight else 1.0


def _compute_s(t: Tiled, launch: Launch, resident: int) -> float:
    """Arithmetic time of one program on its unit, padding included; residents share the unit's peak."""
    space, device = t.space, t.device
    peak = space.peak(device)
    # A peak counts a multiply-add as two operations; other instructions are one.
    one = 1.0 / (peak.vector_flops / device.units / 2)
    instructions = space.vector_ops * t.inner + space.row_ops
    cheap, costly = space.repeated_ops
    if not space.has_dot and (device.is_cpu or t.steps > 1):
        instructions += (cheap + costly * (t.steps > 1)) * t.inner
    if device.is_cpu and not space.has_dot:
        instructions = (instructions + _moved(t)) * _live_vectors(t) * _around(t)
    seconds = instructions * t.block * one
    warps = resident * launch.num_warps
    if not space.has_dot:
        return seconds if device.is_cpu else seconds / min(1.0, warps / (2 * device.unit_partitions)) ** 0.5
    rate = (peak.matrix_flops or peak.vector_flops) / device.units
    rate *= _cpu_efficiency(t) if device.is_cpu else _gpu_efficiency(t, device, space, launch, warps)
    computed = t.block * t.inner * (live_rows(t) if device.is_cpu else 1.0)
    return seconds + 2.0 * computed / rate


def _moved(t: Tiled) -> float:
    """Vector instructions per spatial point of a kernel without a dot that load, store, turn and test, on a CPU."""
    space = t.space
    across = (_TURN if turned(t) else _PICKED * t.device.lanes(4)) if space.crossing else 0.0
    moves = space.vector_moves * t.inner + space.row_moves + across
    if space.shared_axes is None:
        return moves + (space.bounded_loads * _tested(t) if space.borders else 0.0)
    shared = math.prod(t.e[i] for i in space.shared_axes)
    prepared = space.factor_loads * t.inner + space.bounded_loads * _ends(t)
    return moves - space.factor_loads * t.inner + _PREPARED * prepared / shared


def _around(t: Tiled) -> float:
    """Times by which the loops around the rows of a window, or rows that leave L1, lengthen its arithmetic."""
    space = t.space
    if space.shared_axes is not None:
        near = CACHE_SHARE * t.device.private_levels[-1].capacity_bytes
        return 1.0 + _AROUND * (t.footprint > near)
    if not space.borders:
        return 1.0
    return 1.0 + _AROUND * sum(t.e[i] > 1 for i in space.spatial if i not in space.inner)


def _live_vectors(t: Tiled) -> float:
    """Share of the vectors of a tile that a CPU computes: none behind the end of a row that is whole in the tile, and
    no row of a window's positions that is not stored.
    """
    space, axis, share = t.space, t.space.vector, 1.0
    if axis is not None and t.e[axis] >= space.extents[axis]:
        share = padded(space.extents[axis], min(t.e[axis], t.device.lanes(4))) / t.e[axis]
    for i in space.shared_axes or ():
        share *= space.extents[i] / padded(space.extents[i], t.e[i])
    return share


def _ends(t: Tiled) -> float:
    """How often the rows of a program, with vectors along the positions of a window, test for the ends of their axis.

    A row of one vector does it once for all rows. A whole row knows its ends; they only are in each of two vectors.
    """
    axis = t.space.vector
    assert axis is not None and t.space.shared_axes is not None
    vectors = ceil_div(min(t.e[axis], t.space.extents[axis]), t.device.lanes(4))
    if vectors > 2 and t.e[axis] >= t.space.extents[axis]:
        return 0.0
    return 1.0 if vectors == 1 else float(math.prod(t.e[i] for i in t.space.shared_axes))


def _tested(t: Tiled) -> float:
    """Vector instructions that a load of a window spends on staying inside its tensor, on average over the programs.

    Programs at the end of an axis test at run time; where one program has the whole axis, its compiler knows the place.
    """
    inside, known = 1.0, False
    for axis, ends in t.space.borders.items():
        tiles = ceil_div(t.space.extents[axis], t.e[axis])
        known |= tiles == 1
        if tiles > 1:
            inside *= max(0, tiles - sum(ceil_div(n, t.e[axis]) for n in ends)) / tiles
    return _TESTED * (1.0 - inside) + known * inside


def _cpu_efficiency(t: Tiled) -> float:
    """Share of the FMA peak: enough accumulators to hide latency, columns that fill vectors."""
    rows, cols = register_block(t)
    lanes = t.device.lanes(4)
    room = t.device.private_levels[-1].capacity_bytes / 3
    spilled = math.log2(max(1.0, t.accumulator_bytes / room))
    if t.m > FEW_ROWS:
        high, reach = heights((rows, max(1, cols // lanes)), t.m, 8 * t.device.vector_bytes)
        reach = min(reach, t.m)
        share = t.m / (reach / _strip_efficiency(t, high) + (t.m - reach) / _strip_efficiency(t, rows))
    else:
        share = min(1.0, rows * max(1, cols // lanes) / _FMA_CHAINS) * _reached(t, rows)
        share *= 1.0 - _SECOND_STRIP * (ceil_div(t.m, rows) - 1)
        share *= _BROKEN_PANELS if t.n > 2 * cols else 1.0
    return share * min(1.0, t.n / lanes) * max(0.5, 1.0 - _FAR_ACCUMULATOR * spilled)


def _strip_efficiency(t: Tiled, rows: int) -> float:
    """Share of the FMA peak of strips of this many rows among many: chains of multiply-adds, loads beside them."""
    _, cols = register_block(t)
    lanes = t.device.lanes(4)
    chains = rows * max(1, cols // lanes)
    share = min(1.0, chains / _FMA_CHAINS) * (_TIGHT if chains <= _FMA_CHAINS else 1.0)
    return share * _reached(t, rows) * (1.0 - _EXTRA_LOADS * max(0.0, lanes / cols + 1 / rows - _EVEN_LOADS))


def _reached(t: Tiled, rows: int) -> float:
    """Share of a register block's time that is multiply-adds."""
    _, cols = register_block(t)
    cycles = t.inner / t.steps * rows * max(1, cols // t.device.lanes(4)) / 2
    return cycles / (cycles + _BLOCK_CYCLES)


def _gpu_efficiency(t: Tiled, device: DeviceSpec, space: Space, launch: Launch, warps: int) -> float:
    """Share of the peak: warps for all schedulers, rows for the matrix instruction or a thread's FMA tile."""
    peak = space.peak(device)
    matrix = peak.matrix_flops is not None
    share = min(1.0, warps / (2 * device.unit_partitions)) ** 0.5
    if device.kind == "cuda" and warps // launch.num_warps * launch.num_stages < _BUFFERS:
        share *= _TAKING_TURNS
    if split_dot(t):
        through_registers = device.arch.isdigit() and int(device.arch) < 90  # B too, on its way to mma.sync
        share *= _SPLIT_PACKED if space.b_is_packed or through_registers else _SPLIT
        share *= _ALONE if warps == launch.num_warps else 1.0
    if matrix:
        return share * min(1.0, t.m / peak.instruction[0]) ** 0.5
    # A thread with side x side accumulators loads 2 * side values for side * side multiply-adds, and shared
    # memory delivers fewer lanes a clock than the FMA pipes consume.
    side = math.sqrt(max(1.0, t.block / (launch.num_warps * device.warp_size)))
    lanes_per_load = (
        peak.vector_flops / device.units / 2 / (device.private_levels[0].bandwidth_bytes_per_s / 4)
    )
    return share * side / (side + _LOAD_COST * lanes_per_load)


def padding_waste(length: int, step: int) -> float:
    """Share of an axis, padded to whole steps, that lies outside it."""
    return 1.0 - length / padded(length, step)
