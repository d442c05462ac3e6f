"""A tile on a device with its derived sizes, its register block on a CPU, and the order of its programs.

`Tiled` holds everything about a tile that does not depend on warps and stages, so that several launches of one tile
share the work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torchroller.space import Space
from torchroller.spec import DeviceSpec, MiB
from torchroller.tile import ceil_div, padded, rest_widths
from torchroller.triton_cpu import blocking

# Of a CPU's shared cache a core can count on this much: neighbours (other cores, other virtual machines) use the rest.
_SHARED_PER_CORE = 4 * MiB
CACHE_SHARE = 0.7  # of a cache's capacity that reused data can count on; the rest is streamed through


class Tiled:
    """A tile of a space: block extents of spatial axes and steps of reduce axes, with derived sizes.

    step_bytes, program_bytes: per operand, the data of one reduction step and of a whole program
    useful, charges: per operand, useful bytes of one contiguous run, and bytes moved per useful byte in whole
    DRAM transactions
    footprint, traffic: F and Q of the Roller paper: bytes of one step's tiles; bytes that all programs move
    """

    __slots__ = (
        *("space", "device", "e", "whole", "grid", "steps", "block", "inner", "step_bytes", "program_bytes"),
        *(
            "once",
            "looped",
            "walked",
            "a",
            "b",
            "m",
            "n",
            "rounds",
            "useful",
            "charges",
            "footprint",
            "traffic",
        ),
        *("_register_block", "_row_group", "_runs"),
    )

    def __init__(self, space: Space, device: DeviceSpec, e: Sequence[int]) -> None:
        self.space, self.device, self.e = space, device, e
        extents = space.extents
        whole = list(e)
        grid = steps = block = inner = 1
        for i in space.spatial:
            grid *= -(-extents[i] // e[i])
            block *= e[i]
        for i in space.reduce:
            whole[i] = extents[i]
            trips = -(-extents[i] // e[i])
            steps *= trips
            rest = extents[i] % e[i]
            # as it is emitted: columns that fill no whole step are narrower steps of their own
            narrow = rest and space.has_dot and device.is_cpu
            inner *= extents[i] - rest + sum(rest_widths(rest)) if narrow else trips * e[i]
        self.whole, self.grid, self.steps, self.block, self.inner = whole, grid, steps, block, inner
        self.step_bytes: list[int] = []
        self.program_bytes: list[int] = []
        self.useful: list[int] = []
        self.charges: list[float] = []
        width = device.dram.transaction_bytes
        once = looped = walked = a = b = 0
        moved = 0.0
        for o in space.operands:
            step = o.nbytes(e)
            program = o.nbytes(whole) if o.passes else step
            useful, span = o.run(e, width)
            charge = -(-span // width) * width / useful
            self.step_bytes.append(step)
            self.program_bytes.append(program)
            self.useful.append(useful)
            self.charges.append(charge)
            once += program
            moved += program * charge
            if o.passes:
                walked += program * o.passes
                looped += program
            else:
                walked += program
            if o.side == "a":
                a += step
            elif o.side == "b":
                b += step
        self.once, self.looped, self.walked, self.a, self.b = once, looped, walked, a, b
        self.footprint = sum(self.step_bytes)
        self.traffic = moved * grid
        self.m = math.prod([e[i] for i in space.m_axes])
        self.n = math.prod([e[i] for i in space.n_axes])
        self.rounds = -(-grid // device.units)
        self._register_block: tuple[int, int] | None = None
        self._row_group: int | None = None
        self._runs: dict[int, list[tuple[float, int]]] = {}

    @property
    def accumulator_bytes(self) -> int:
        return 4 * self.block if self.space.has_dot else 0


def register_block(t: Tiled) -> tuple[int, int]:
    """Rows and columns of the CPU micro-kernel for a block."""
    if t._register_block is None:
        lanes = t.device.lanes(4)
        rows, vectors = blocking.register_block(t.device.micro_kernels, t.m, t.n, lanes)
        t._register_block = rows, vectors * lanes
    return t._register_block


def pairs(t: Tiled) -> int:
    """Neighbours along k that one instruction of a CPU multiplies: 2 where it has a dot product of bfloat16."""
    peak = t.space.peak(t.device)
    if not (t.device.is_cpu and t.space.has_dot and peak.dtype == "bfloat16" and peak.matrix_flops):
        return 1
    return peak.instruction[2] if register_block(t)[1] >= t.device.lanes(4) else 1


def live_rows(t: Tiled) -> float:
    """Share of the rows of all tiles that a CPU computes: it skips the register blocks that lie behind the last row."""
    share = 1.0
    height, _ = register_block(t)
    for i in t.space.m_axes:
        extent, tile = t.space.extents[i], t.e[i]
        rest = extent % tile
        if rest and tile > height:
            share *= (extent - rest + padded(rest, height)) / padded(extent, tile)
    return share


def row_axis(t: Tiled) -> int:
    """The axis of rows that a contraction tiles; other axes of rows are numbered by the grid."""
    return max(t.space.m_axes, key=lambda i: (t.e[i], t.space.extents[i]))


def row_group(t: Tiled) -> int:
    """Tiles of rows that a contraction runs through before it goes to the next tile of columns; 0 where all of them.

    A CPU takes as many as its share of the shared cache keeps over all of k, a GPU as many as the device says. It
    divides the tiles of rows, and only powers of two are asked for.
    """
    if t._row_group is None:
        t._row_group = _find_row_group(t)
    return t._row_group


def _find_row_group(t: Tiled) -> int:
    space, device = t.space, t.device
    if not (space.has_dot and space.m_axes and space.n_axes):
        return 0
    tiles = ceil_div(space.extents[row_axis(t)], t.e[row_axis(t)])
    most = device.raster_group
    if device.is_cpu:
        sides = {o.side: n for o, n in zip(space.operands, t.program_bytes) if o.side}
        room = shared_room(device) - sides.get("b", 0) * device.units
        most = int(room // max(1, sides.get("a", 1))) if room > 0 else 1
    if most >= tiles:
        return 0
    group = tiles & -tiles  # the largest power of two that divides it
    while group > max(1, most):
        group //= 2
    return group


def shared_room(device: DeviceSpec) -> float:
    """Bytes of the cache that units share which reused data can count on; without one, their own caches together."""
    private = device.private_levels[0].capacity_bytes if device.is_cpu and device.private_levels else 0
    if not device.shared_levels:
        return CACHE_SHARE * private * device.units
    room = CACHE_SHARE * device.shared_levels[-1].capacity_bytes
    return min(room, float(_SHARED_PER_CORE * device.units)) if device.is_cpu else room


def program_order(t: Tiled) -> list[int]:
    """Spatial axes in the order in which programs are numbered, slowest first: rows move fastest in a contraction."""
    space = t.space
    if not (space.has_dot and space.m_axes and space.n_axes):
        return list(space.spatial)
    rows = row_axis(t)
    others = [i for i in space.spatial if i not in space.m_axes and i not in space.n_axes]
    other_rows = [i for i in space.m_axes if i != rows]
    if row_group(t):
        return [*others, *other_rows, *space.n_axes, rows]
    return [*others, *space.n_axes, *other_rows, rows]


def passed(t: Tiled, axis: int) -> int:
    """Points along an axis that are done before the axes outside it move."""
    whole = t.space.extents[axis]
    group = row_group(t)
    return min(whole, group * t.e[axis]) if group and axis == row_axis(t) else whole


def wave_tile(t: Tiled, occupancy: int) -> list[int]:
    """The part of the space that all units hold at one time, in the order emitters number programs."""
    wave = list(t.whole)
    left = t.device.units * occupancy
    for i in reversed(program_order(t)):
        take = max(1, min(left, ceil_div(passed(t, i), t.e[i])))
        wave[i], left = take * t.e[i], left // take
    return wave
