"""What a tile moves: bytes leaving each memory level, counted from the tile alone.

DRAM      each tensor once, and again for every walk along a grid axis whose reuse distance
          exceeds the shared cache
shared    (L3 of a CPU, L2 of a GPU) the operand tiles of every program; a loop that walks its
          data several times repeats when no private cache holds it
private   (L2 and L1 of a core) operands per reduction step, panels and accumulators that spill
scratch   (shared memory of a GPU) what warps read, given how they split the tile
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul

from torchroller.operand import Operand
from torchroller.spec import MemLevel
from torchroller.tile import ceil_div, next_pow2
from torchroller.tiled import (
    CACHE_SHARE,
    Tiled,
    passed,
    program_order,
    register_block,
    shared_room,
    wave_tile,
)
from torchroller.triton_cpu import blocking

_TURNED_AHEAD = (
    4  # times that a run counts of which the next rows are read before it goes on, as blocks are turned
)
_STREAMS = 8  # runs of memory that prefetchers follow at the same time
_ACCUMULATORS = 16  # vectors of partial sums that a column reduction keeps in registers
_ROW_ACCUMULATORS = 8  # the same of a loop along rows: more of them are not written out (lowering/nests.py)
_SPILLED = 24  # bytes per point where they do not fit: load, add and store, one waiting for the other
_REFETCH = 15  # further times that a line is fetched when a transposing tile does not fit
FEW_ROWS = 16  # of a product on a CPU that waits for B, not for its multiply-adds
_BROKEN_STREAM = 1.5  # of B for few rows: it is read panel by panel, not as one stream
# Times that collecting rows of an image from their places costs more than reading them once: load, store, and finding
# each row. Measured on Zen 4: 64 rows of 128 channels for 32 columns take a quarter of the product's time.
_COLLECTED = 24
_ADDRESSED = (
    320  # bytes through L1 that a row costs whose address is looked up instead: the table, and a stream begun
)
_NEAR_COLUMNS = 256  # rows of a packed B at most this long are read in place
_MATRIX_UNIT_N = 256  # columns that one scratch-fed matrix instruction covers (wgmma, tcgen05)
_SCRATCH_FED_M = 64  # matrix instructions with at least this many rows read operands from scratch themselves


def shared_bytes(t: Tiled, occupancy: int) -> tuple[float, float]:
    """Bytes that leave the shared cache, and bytes that leave DRAM, for the whole kernel."""
    space, device = t.space, t.device
    private = device.private_levels[0].capacity_bytes if device.is_cpu and device.private_levels else 0
    walks_again = t.steps > 1 and t.looped > private
    cache = device.shared_levels[-1] if device.shared_levels else None
    capacity = shared_room(device)
    walks_dram = walks_again and t.looped * device.units * occupancy > capacity
    wave = wave_tile(t, occupancy)
    crossed = [i for i in space.spatial if wave[i] < space.extents[i]]
    far = {i for i in crossed if reuse_distance(t, wave, i) > capacity} if crossed else set()
    near_private = _streamed(t, private) if private else t.e
    near_shared = _streamed(t, capacity / (1 if device.is_cpu else device.units * occupancy))
    panel_by_panel = device.is_cpu and space.has_dot and t.m <= FEW_ROWS and t.n > register_block(t)[1]
    broken = (1.0, _BROKEN_STREAM if panel_by_panel else 1.0)
    shared = dram = 0.0
    for k, o in enumerate(space.operands):
        total = space.total_bytes[k]
        walks = max(1, o.passes)
        if cache is not None:
            charge = _charge(t, k, near_private, cache) * broken[o.side == "b"]
            shared += _passing(t, k, near_private) * charge * (walks if walks_again else 1)
        again = walks if walks_dram else 1
        for i in far:
            if i not in o.axes:
                together = wave[i] if passed(t, i) == space.extents[i] else max(wave[i], passed(t, i))
                again *= ceil_div(space.extents[i], together)
        dram += total * _charge(t, k, near_shared, device.dram) * broken[o.side == "b"] * again
    return shared, dram


def _passing(t: Tiled, operand: int, near: Sequence[int]) -> float:
    """Useful bytes of an operand that all programs take from the shared cache.

    Windows overlap: what a core's own cache keeps of the programs before is not taken again.
    """
    if t.space.taps == 1 or near is t.e:
        private = t.device.private_levels[0].capacity_bytes if t.device.private_levels else 0
        return t.grid * t.program_bytes[operand] * _fetching(t, operand, private)
    parts = math.prod(max(1.0, t.space.extents[i] / near[i]) for i in t.space.spatial)
    return parts * t.space.operands[operand].nbytes(near)


def _fetching(t: Tiled, operand: int, capacity: int) -> float:
    """Share of the programs that fetch an operand into a cache of a core: the others find what the last one left.

    A bias that all rows share stays where the rows of a program and it have room.
    """
    share = 1.0
    if t.space.has_dot or not t.device.is_cpu or t.once > CACHE_SHARE * capacity:
        return share
    for i in reversed(program_order(t)):
        tiles = ceil_div(t.space.extents[i], t.e[i])
        if tiles > 1 and i in t.space.operands[operand].axes:
            break
        share /= tiles
    return share


def _charge(t: Tiled, operand: int, near: Sequence[int], level: MemLevel) -> float:
    """Bytes spent per useful byte: whole transactions of what is used while they stay, and starts of runs."""
    width = level.transaction_bytes
    if near is t.e and width == t.device.dram.transaction_bytes:
        lines = t.charges[operand]
    else:
        lines = t.space.operands[operand].charge(near, width)
    return lines + level.run_overhead_bytes / t.useful[operand] + _ramp(t, operand, level)


def _ramp(t: Tiled, operand: int, level: MemLevel) -> float:
    """Share of an operand's bytes that come before the prefetchers of a CPU follow their run."""
    if not level.ramp_bytes:
        return 0.0
    return sum(share * min(run, level.ramp_bytes) / run for share, run in runs(t, operand))


def late_bytes(t: Tiled) -> float:
    """Bytes whose lines nothing fetched before a core needs them: of results, and of the B of a product.

    Other loads may wait while later ones and their arithmetic go on; the first rows of a product wait for all of B.
    """
    waits = t.space.has_dot and t.m > FEW_ROWS
    late = (k for k, o in enumerate(t.space.operands) if o.write or (waits and o.side == "b"))
    return sum(t.space.total_bytes[k] * _ramp(t, k, t.device.dram) for k in late)


def runs(t: Tiled, operand: int) -> list[tuple[float, int]]:
    """(share, bytes) of an operand that is walked in runs of so many bytes, as the prefetchers of a CPU see it.

    A few runs that go side by side, each continued by what comes next (the next step, the next program), are streams:
    they are as long as that goes on. Of more than _STREAMS the rest starts afresh each time.
    """
    if operand in t._runs:
        return t._runs[operand]
    space, o = t.space, t.space.operands[operand]
    size = t.step_bytes[operand]
    run = min(size, t.useful[operand])
    streams = size // run
    if space.has_dot and o.write and o.dims and t.m > 1 and not o.packed:
        # Results leave the register blocks: all rows of a panel of columns, then the next panel.
        narrow = min(size, register_block(t)[1] * o.itemsize)
        streams = max(streams, min(t.m, size // narrow))
        started = min(run, narrow)
    elif space.crossing and turned(t):
        lanes = t.device.lanes(o.itemsize)
        started = min(run, lanes * o.itemsize) if o.write else _TURNED_AHEAD * run
    else:
        started = run
    afresh = max(0.0, 1.0 - _STREAMS / streams)
    found = [(afresh, started)] if afresh else []
    if afresh < 1.0:
        found.append((1.0 - afresh, _continued(t, o, run, size)))
    t._runs[operand] = found
    return found


def _continued(t: Tiled, o: Operand, run: int, size: int) -> int:
    """Bytes of one run of an operand together with what follows it without a gap, in the order of the loops."""
    if not t.space.has_dot:
        return _walked_on(t, o, run)
    extents = t.space.extents
    wide = list(t.e)
    for i in (*reversed(t.space.reduce), *reversed(program_order(t))):
        if i not in o.axes or wide[i] >= extents[i]:
            continue
        wide[i] = extents[i]
        total = o.nbytes(wide)
        longer = min(total, o.run(wide, t.device.dram.transaction_bytes)[0])
        if longer * size < run * total:  # more runs, not longer ones
            break
        run, size = longer, total
    return run


def _walked_on(t: Tiled, o: Operand, run: int) -> int:
    """`_continued` of a kernel without a dot: of runs side by side each ends where the next step lies elsewhere."""
    width = t.device.dram.transaction_bytes
    useful, reach = o.run(t.e, width)
    reach = reach if run == useful else run
    density = run / reach
    wide = list(t.e)
    for i in (*reversed(t.space.reduce), *reversed(program_order(t))):
        if i not in o.axes or wide[i] >= t.space.extents[i]:
            continue
        step = o.step_bytes(i) * t.e[i]
        if step > reach + width:
            break
        wide[i] = t.space.extents[i]
        reach += step * (ceil_div(wide[i], t.e[i]) - 1)
    return max(run, min(o.nbytes(wide), int(reach * density)))


def _streamed(t: Tiled, capacity: float) -> Sequence[int]:
    """The tile and what follows it in program order, as far as a cache of this capacity keeps every line.

    A program that takes part of a line leaves the rest for the next ones, if they come before it is evicted.
    """
    space = t.space
    if space.taps == 1 and max(t.charges, default=1.0) <= 1.0:
        return t.e
    near = list(t.e)
    for i in (*reversed(space.reduce), *reversed(space.spatial)):
        while near[i] < space.extents[i]:
            wider = [*near[:i], 2 * near[i], *near[i + 1 :]]
            if _lines(t, wider) > CACHE_SHARE * capacity:
                return near
            near = wider
    return near


def reuse_distance(t: Tiled, wave: list[int], axis: int) -> float:
    """Bytes touched between two uses of the same data along `axis`: what moves faster runs through completely."""
    reach = list(wave)
    order = program_order(t)
    inside = order[order.index(axis) + 1 :]
    if passed(t, axis) < t.space.extents[axis]:  # rows in groups: all columns pass before the next group
        inside = [axis, *t.space.n_axes]
    for i in inside:
        reach[i] = passed(t, i)
    return float(sum(o.nbytes(reach) for o in t.space.operands))


def cache_bytes(t: Tiled) -> list[float]:
    """Bytes that leave each private cache of a core during one program, outermost level first."""
    levels = t.device.private_levels
    if not t.space.has_dot:
        return _streaming_bytes(t)
    rows, cols = register_block(t)
    outside = t.once - (t.a + t.b) * t.steps  # operands of the epilogue, and the result
    accumulators = t.accumulator_bytes
    row_panels, column_panels = ceil_div(t.m, rows), ceil_div(t.n, cols)
    moved = []
    for level in levels[1:]:
        # Columns are the outer loop: a panel of B meets all rows, then A comes again for the next panel.
        # What the next level keeps meanwhile comes once.
        room = CACHE_SHARE * level.capacity_bytes
        a = t.a if t.a + t.b // column_panels <= room else t.a * column_panels
        b = t.b if t.b // column_panels + t.a // row_panels <= room else t.b * row_panels
        spill = 2 * accumulators if accumulators + t.a + t.b > level.capacity_bytes else 0
        moved.append(float((a + b + spill) * t.steps + outside))
    # Out of the innermost cache: A is broadcast once per column panel and B read once per row panel,
    # accumulators go in and out, and B is read and written once more to be packed.
    per_step = t.a * column_panels + t.b * row_panels + 2 * accumulators + sum(copied_bytes(t))
    return [*moved, float(per_step * t.steps + outside)]


def copied_bytes(t: Tiled) -> tuple[int, int]:
    """Bytes through L1 that bringing A, and B, into the order of the micro-kernel takes in one reduction step."""
    in_place = t.m <= blocking.IN_PLACE_ROWS or (t.space.b_is_packed and t.n <= _NEAR_COLUMNS)
    rows = _COLLECTED * t.a if t.space.copies_rows else _ADDRESSED * t.m if t.space.looks_up_rows else 0
    return rows, 0 if in_place else 3 * t.b


def _streaming_bytes(t: Tiled) -> list[float]:
    """`cache_bytes` of kernels without a dot: they walk their data in order."""
    space, levels = t.space, t.device.private_levels
    moved = []
    # What one reduction computes for the next lies in memory between them.
    # A loop over a reduction has a partial result for each point of its step; without one, only columns wait for sums.
    partial = t.block * t.inner // t.steps if t.steps > 1 else t.block if space.reduces_columns else 0
    kept = 4 * t.block * t.inner * (space.passes - 1) if space.passes > 1 and t.steps == 1 else 0
    for level in levels[1:]:
        # What leaves a level has missed the levels inside it; later walks are served where the data fits.
        room = CACHE_SHARE * level.capacity_bytes if kept else level.capacity_bytes
        if t.looped + kept > room:
            out = float(t.walked)
        else:
            out = sum(n * _fetching(t, k, level.capacity_bytes) for k, n in enumerate(t.program_bytes))
        if 4 * partial > CACHE_SHARE * level.capacity_bytes:
            out += 8 * t.block * t.inner
        if space.crossing and not turned(t) and sum(map(mul, t.step_bytes, t.charges)) > level.capacity_bytes:
            # Lines read across the vectors are evicted before they are used up.
            out += _REFETCH * sum(n for o, n in zip(space.operands, t.program_bytes) if o in space.crossing)
        moved.append(out)
    registers = _ACCUMULATORS if space.reduces_columns else _ROW_ACCUMULATORS
    far = partial > registers * t.device.lanes(4)
    accumulate = _SPILLED * t.block * t.inner * max(1, space.passes) if far else 0
    return [*moved, float(t.walked + accumulate)]


def turned(t: Tiled) -> bool:
    """Whether what lies across the vectors is turned in registers, in blocks of lanes x lanes."""
    lanes = t.device.lanes(4)
    return t.space.itemsize == 4 and all(t.e[i] >= lanes for i in t.space.inner)


def _lines(t: Tiled, e: Sequence[int]) -> float:
    """Bytes of the cache lines that a tile touches."""
    width = t.device.dram.transaction_bytes
    return sum(o.nbytes(e) * o.charge(e, width) for o in t.space.operands)


def scratch_traffic(t: Tiled, num_warps: int) -> float:
    """Bytes through shared memory of one GPU program: operands written once, read per warp row and column."""
    if not t.space.has_dot:
        return 0.0
    rows = t.space.peak(t.device).instruction[0]
    if rows >= _SCRATCH_FED_M:
        read_a, read_b = ceil_div(t.n, _MATRIX_UNIT_N), ceil_div(t.m, rows)
    else:
        down = min(num_warps, next_pow2(max(1, round(math.sqrt(num_warps * t.m / t.n)))))
        read_a, read_b = num_warps // down, down
    return float((t.a * (1 + read_a) + t.b * (1 + read_b)) * t.steps)
