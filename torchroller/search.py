"""construct(): from a tensor expression and a device to ranked rPrograms, without running anything.

    scale up    grow an aligned tile from the smallest one, along the axis with the best data-reuse score first,
                until it fills its memory level
    scale out   the grid repeats the tile over the device; while the grid is smaller than the machine, shrink along
                the axis with the worst score
    refine      try the neighbours of the best tiles, so that wave quantisation is not decided by the growth order
    rank        by the micro-performance model, cost.estimate

The search is a pure function of its arguments: no clock, no randomness, no measurement decides anything. It is the
same for every device; what differs (alignment, capacities, warps, stages) is read from the DeviceSpec.

Sources: Zhu et al., ROLLER (OSDI 2022) for rTiles, the reuse score, padding relaxation and scale-out; ranking all
aligned programs by traffic and waves follows its successors (Welder, OSDI 2023).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torchroller import cost
from torchroller.cost import Estimate, Launch
from torchroller.device import TRITON_MAX_NUMEL, DeviceSpec, size_text
from torchroller.expr import TensorExpr
from torchroller.tile import RProgram, RTile, Space, ceil_div, next_pow2, padded

_SCALE_UP_TILES = 40  # tiles visited by one scale-up
_REFINE_TILES = 40
_EPSILON_STEP, _EPSILON_MAX = 0.2, 1.0
_MAX_REDUCE_STEP = {True: 512, False: 128}  # of a dot, on a CPU and on a GPU
_MIN_DOT = 16  # tl.dot on a GPU takes at least 16 along every axis


@dataclass(frozen=True)
class Construction:
    """What the search found: the best programs first, what it turned down and why, and how long it took."""

    ranked: tuple[RProgram, ...]
    rejected: tuple[tuple[RTile, str], ...]
    seconds: float
    visited: int
    epsilon: float  # tolerated padding of a spatial axis, as a share of its length

    @property
    def best(self) -> RProgram:
        return self.ranked[0]

    def __str__(self) -> str:
        lines = [f"{len(self.ranked)} rPrograms of {self.visited} tiles in {self.seconds * 1e3:.1f} ms, "
                 f"padding up to {self.epsilon:.0%}"]  # fmt: skip
        for rank, p in enumerate(self.ranked, 1):
            lines.append(
                f"  {rank:>2}. {cost.time_text(p.estimate.time_s):>9}  {p.key}  bound by {p.estimate.bound_by}"
            )
        lines += [f"  rejected {tile}: {reason}" for tile, reason in self.rejected]
        return "\n".join(lines)


def construct(
    expr: TensorExpr,
    device: DeviceSpec,
    *,
    top_k: int = 10,
    candidates: Iterable[Mapping[str, int]] | None = None,
) -> Construction:
    """The `top_k` best rPrograms of `expr` on `device`, best first; always at least one.

    candidates: extents per axis name (block of a spatial axis, step of a reduce axis) to rank instead of searching;
    left-out axes are taken whole. Candidates that break a capacity are listed in `rejected`, not ranked.
    Raises ValueError when `top_k` is below 1, an axis name is unknown, or no candidate fits.
    """
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; ask for at least 1 rProgram")
    started = time.perf_counter()
    search = _Search(Space(expr), device)
    if candidates is not None:
        for extents in candidates:
            search.visit(tuple(next_pow2(x) for x in search.space.order(extents)))
        if not search.found:
            reasons = "; ".join(sorted(set(search.rejected.values()))) or "the list is empty"
            raise ValueError(f"no candidate for {expr.name} fits {device.name}: {reasons}")
    else:
        search.run(top_k)
    ranked = sorted(search.found.values(), key=lambda c: c.rank)[:top_k]
    return Construction(
        tuple(search.program(c) for c in ranked),
        tuple((search.space.tile(e), why) for e, why in sorted(search.rejected.items())),
        time.perf_counter() - started, len(search.found) + len(search.rejected), search.epsilon,
    )  # fmt: skip


@dataclass(frozen=True)
class _Candidate:
    extents: tuple[int, ...]
    launch: Launch
    estimate: Estimate

    @property
    def rank(self) -> tuple:
        """Ties are broken by launch size and extents, never by the order of discovery."""
        e = self.estimate
        return (e.time_s, sum(n for _, n in e.level_bytes), self.launch.num_warps, self.launch.num_stages,
                tuple(-x for x in self.extents))  # fmt: skip


class _Search:
    """One construction: the tiles seen so far, accepted and rejected."""

    def __init__(self, space: Space, device: DeviceSpec) -> None:
        self.space, self.device = space, device
        self.limits = tuple(next_pow2(d) for d in space.extents)
        self.start = self._start()
        self.epsilon = 0.0
        self.found: dict[tuple[int, ...], _Candidate] = {}
        self.rejected: dict[tuple[int, ...], str] = {}
        self._measures: dict[tuple[int, ...], tuple[float, float]] = {}

    # -- alignment ---------------------------------------------------------------------------------

    def _start(self) -> tuple[int, ...]:
        """The smallest aligned tile: matrix instruction or register block, vector and transaction widths."""
        space, device = self.space, self.device
        e = [1] * len(space.extents)
        if space.has_dot:
            if device.is_cpu:
                rows, vectors = device.micro_kernels[0]
                self._spread(e, space.m_axes, rows, force=False)
                self._spread(e, space.n_axes, vectors * device.lanes(4), force=False)
                self._spread(e, space.reduce, device.lanes(4), force=False)
            else:
                for axes in (space.m_axes, space.n_axes, space.reduce):
                    self._spread(e, axes, _MIN_DOT, force=True)
            return tuple(e)
        for i in space.inner:
            width = max(1, device.dram.transaction_bytes // space.itemsize)
            e[i] = min(next_pow2(width), self.limits[i])
        return tuple(e)

    def _spread(self, e: list[int], axes: tuple[int, ...], width: int, force: bool) -> None:
        """Give `axes` together at least `width` points, the innermost axis first."""
        for i in reversed(axes):
            e[i] = min(width, self.limits[i])
            width = ceil_div(width, e[i])
        if force and axes and width > 1:
            e[axes[-1]] *= width

    def _next(self, e: tuple[int, ...], axis: int) -> tuple[int, ...] | None:
        """The next aligned tile along an axis: twice as long, unless that passes the axis or pads it too much."""
        space = self.space
        extent = e[axis]
        if extent >= self.limits[axis]:
            return None
        if space.is_reduce[axis]:
            if space.has_dot and extent >= _MAX_REDUCE_STEP[self.device.is_cpu]:
                return None
            return e[:axis] + (2 * extent,) + e[axis + 1 :]
        length = space.extents[axis]
        wider = 2 * extent
        while wider <= self.limits[axis]:
            if padded(length, wider) <= length * (1 + self.epsilon):
                return e[:axis] + (wider,) + e[axis + 1 :]
            wider *= 2
        return None

    def violation(self, e: tuple[int, ...], launch: Launch) -> str | None:
        """Why a tile cannot run, or None."""
        space, device = self.space, self.device
        block = math.prod(e[i] for i in space.spatial)
        for o in space.operands:
            numel = math.prod(e[i] for i in o.axes)
            if numel > TRITON_MAX_NUMEL:
                return f"block of {o.tensor} has {numel} elements, Triton takes {TRITON_MAX_NUMEL}"
        if device.is_cpu:
            cache = device.private_levels[0] if device.private_levels else device.levels[-1]
            need = space.footprint(e) + (block * 4 if space.has_dot else 0)
            if need > cache.capacity_bytes and e != self.start:
                return f"tiles take {size_text(need)}, {cache.name} holds {size_text(cache.capacity_bytes)}"
            return None
        scratch = cost.scratch_bytes(space, device, list(e), launch.num_stages)
        if scratch > device.program_scratch_bytes:
            return (f"{launch.num_stages} stages take {size_text(scratch)} of shared memory, "
                    f"a program has {size_text(device.program_scratch_bytes)}")  # fmt: skip
        registers = cost.thread_registers(space, device, list(e), launch.num_warps)
        if registers > device.thread_registers:
            return f"{registers:.0f} registers per thread, the limit is {device.thread_registers}"
        used = registers * launch.num_warps * device.warp_size
        if used > device.unit_registers:
            return f"{used:.0f} registers per program, a unit has {device.unit_registers}"
        if device.accumulator_bytes and space.has_dot and block * 4 > device.accumulator_bytes:
            return (
                f"accumulators take {size_text(block * 4)}, a unit has {size_text(device.accumulator_bytes)}"
            )
        return None

    def launches(self, e: tuple[int, ...]) -> list[Launch]:
        """Warps and stages worth rating for a tile: warps keep a thread's share near a good size."""
        space, device = self.space, self.device
        if device.is_cpu:
            return [Launch(1, 1)]
        block = math.prod(e[i] for i in space.spatial)
        if not space.has_dot:
            points = block * math.prod(e[i] for i in space.reduce)
            per_thread = max(1, 2 * device.vector_bytes // space.itemsize)
            warps = next_pow2(ceil_div(points, per_thread * device.warp_size))
            few = max(1, min(warps, 8))
            return [
                Launch(w, 1)
                for w in (few, 16, 32)
                if few <= w <= device.max_warps and (w == few or w <= warps)
            ]
        matrix = device.peak(space.dot_dtype).matrix_flops is not None
        target = 64 if matrix else 32
        ideal = next_pow2(ceil_div(block, target * device.warp_size))
        least = 4 if block >= 64 * 64 else 1
        warps = {max(least, min(w, device.max_warps, 8 if matrix else 16)) for w in (ideal, ideal // 2)}
        trips = max(1, math.prod(ceil_div(space.extents[i], e[i]) for i in space.reduce))
        stages = {min(s, max(1, trips)) if trips > 1 else 1 for s in device.stages}
        fitting = [s for s in sorted(stages)
                   if cost.scratch_bytes(space, device, list(e), s) <= device.program_scratch_bytes]  # fmt: skip
        chosen = fitting[-2:] or [min(stages)]
        return [Launch(w, s) for w in sorted(warps) for s in chosen]

    # -- the walk ----------------------------------------------------------------------------------

    def visit(self, e: tuple[int, ...]) -> _Candidate | None:
        """Rate a tile with its best launch parameters; None when it does not fit."""
        if e in self.found:
            return self.found[e]
        if e in self.rejected:
            return None
        best, why = None, ""
        for launch in self.launches(e):
            broken = self.violation(e, launch)
            if broken:
                why = broken
                continue
            candidate = _Candidate(e, launch, cost.estimate(self.space, self.device, list(e), launch))
            if best is None or candidate.rank < best.rank:
                best = candidate
        if best is None:
            self.rejected[e] = why
        else:
            self.found[e] = best
        return best

    def _measure(self, e: tuple[int, ...]) -> tuple[float, float]:
        if e not in self._measures:
            self._measures[e] = (
                self.space.traffic(e, self.device.dram.transaction_bytes),
                self.space.footprint(e),
            )
        return self._measures[e]

    def score(self, e: tuple[int, ...], larger: tuple[int, ...]) -> float:
        """Data-reuse score of a step: traffic saved per byte of footprint added."""
        traffic, footprint = self._measure(e)
        traffic2, footprint2 = self._measure(larger)
        added = footprint2 - footprint
        return (traffic - traffic2) / added if added > 0 and traffic > traffic2 else 0.0

    def _steps(self, e: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The next tiles, best data-reuse score first; among equals the axis that is contiguous, then the inner one."""
        options = []
        for axis in range(len(e)):
            larger = self._next(e, axis)
            if larger is not None:
                options.append((-self.score(e, larger), axis not in self.space.inner, -axis, larger))
        return [o[-1] for o in sorted(options)]

    def scale_up(self) -> None:
        """Depth first along the best scores, within a fixed number of tiles; a tile that does not fit ends its branch."""
        stack, seen = [self.start], set()
        while stack and len(seen) < _SCALE_UP_TILES:
            e = stack.pop()
            if e in seen:
                continue
            seen.add(e)
            if self.visit(e) is not None:
                stack.extend(reversed(self._steps(e)))

    def scale_out(self) -> None:
        """While the grid leaves units idle, halve the spatial axis whose growth reused the least."""
        for e in sorted(self.found, key=lambda e: self.found[e].rank)[:3]:
            while cost.grid_of(self.space, list(e)) < self.device.units:
                options = []
                for axis in self.space.spatial:
                    if e[axis] > self.start[axis]:
                        smaller = e[:axis] + (e[axis] // 2,) + e[axis + 1 :]
                        options.append((self.score(smaller, e), -axis, smaller))
                if not options:
                    break
                e = min(options)[-1]
                self.visit(e)

    def refine(self) -> None:
        """Rate the neighbours of the best tiles until none of them is better."""
        asked: set[tuple[int, ...]] = set()
        budget = _REFINE_TILES
        while budget > 0:
            front = sorted(self.found, key=lambda e: self.found[e].rank)[:3]
            around = [n for e in front if e not in asked for n in self._neighbours(e)]
            asked.update(front)
            fresh = [n for n in dict.fromkeys(around) if n not in self.found and n not in self.rejected]
            if not fresh:
                if all(e in asked for e in sorted(self.found, key=lambda e: self.found[e].rank)[:3]):
                    return
                continue
            for n in fresh[:budget]:
                self.visit(n)
            budget -= len(fresh)

    def _neighbours(self, e: tuple[int, ...]) -> list[tuple[int, ...]]:
        near = self._steps(e)
        for axis in range(len(e)):
            if e[axis] > self.start[axis]:
                smaller = e[:axis] + (e[axis] // 2,) + e[axis + 1 :]
                near.append(smaller)
                near += [n for other in range(len(e)) if other != axis and (n := self._next(smaller, other))]
        return near

    def run(self, top_k: int) -> None:
        while True:
            self.scale_up()
            self.scale_out()
            self.refine()
            if len(self.found) >= top_k or self.epsilon >= _EPSILON_MAX:
                break
            self.epsilon = min(_EPSILON_MAX, self.epsilon + _EPSILON_STEP)
        if not self.found:
            # Even the smallest aligned tile breaks a capacity (a huge register tile per point): run it regardless.
            launch = self.launches(self.start)[0]
            e = self.start
            self.found[e] = _Candidate(e, launch, cost.estimate(self.space, self.device, list(e), launch))

    # -- result ------------------------------------------------------------------------------------

    def program(self, c: _Candidate) -> RProgram:
        space, device, e = self.space, self.device, c.extents
        names = space.names
        block = {names[i]: e[i] for i in space.spatial}
        step = {names[i]: e[i] for i in space.reduce}
        return RProgram(
            space.expr.name, device.name, block, step, c.launch.num_warps, c.launch.num_stages,
            cost.grid_of(space, list(e)), self._levels(c), c.estimate, dict(zip(names, space.extents)),
        )  # fmt: skip

    def _levels(self, c: _Candidate) -> tuple[tuple[str, RTile], ...]:
        """The tile that is resident at each level, from the whole problem down to registers."""
        space, device, e = self.space, self.device, c.extents
        whole = [d if r else x for x, d, r in zip(e, space.extents, space.is_reduce)]
        levels = [(device.dram.name, space.tile(space.extents))]
        wave = cost._wave_tile(space, device, list(e), whole, c.estimate.occupancy)
        levels += [
            (lv.name, space.tile([min(x, d) for x, d in zip(wave, space.extents)]))
            for lv in device.shared_levels
        ]
        levels += [(lv.name, space.tile(e)) for lv in device.private_levels]
        levels.append(("registers", space.tile(self._register_tile(c))))
        return tuple(levels)

    def _register_tile(self, c: _Candidate) -> list[int]:
        """Per core the register block, per GPU thread its share of the block; innermost axes first."""
        space, device, e = self.space, self.device, c.extents
        tile = [1] * len(e)
        if device.is_cpu:
            if space.has_dot:
                rows, cols = cost._register_block(space, device, list(e))
                self._fill(tile, e, space.m_axes, rows)
                self._fill(tile, e, space.n_axes, cols)
            else:
                self._fill(tile, e, tuple(sorted(space.inner)) or space.spatial, device.lanes(space.itemsize))
            return tile
        share = max(1, math.prod(e[i] for i in space.spatial) // (c.launch.num_warps * device.warp_size))
        if space.has_dot:
            n = next_pow2(round(math.sqrt(share)))
            self._fill(tile, e, space.n_axes, n)
            self._fill(tile, e, space.m_axes, max(1, share // n))
        else:
            self._fill(tile, e, (*space.spatial, *space.reduce), share)
        return tile

    @staticmethod
    def _fill(tile: list[int], e: tuple[int, ...], axes: tuple[int, ...], width: int) -> None:
        for i in reversed(axes):
            tile[i] = min(width, e[i])
            width = max(1, width // tile[i])
