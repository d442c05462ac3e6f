"""construct(): from a tensor expression and a device to ranked rPrograms, without running anything.

    scale up    grow an aligned tile from the smallest one, along the axis with the best data-reuse
                score first, until it fills its memory level
    scale out   the grid repeats the tile over the device; while the grid is smaller than the machine,
                shrink along the axis with the worst score
    refine      rate the neighbours of the best tiles, so that whole rounds of programs count and not the
                order of growth
    rank        by the micro-performance model, `cost.estimate`

A pure function of its arguments: no clock, no randomness and no measurement decides anything. The search is
the same for every device; what differs (alignment, capacities, warps, stages) is read from the DeviceSpec.

Sources: Zhu et al., ROLLER, OSDI 2022, for rTiles, the reuse score, padding relaxation and scale-out.
Ranking every aligned program by traffic and waves follows its successor, Welder, OSDI 2023.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torchroller import capacity, cost
from torchroller.capacity import Launch
from torchroller.cost import Estimate
from torchroller.expr import TensorExpr
from torchroller.space import Space
from torchroller.spec import DeviceSpec
from torchroller.tile import RProgram, RTile, ceil_div, next_pow2, padded
from torchroller.tiled import Tiled, pairs, register_block, row_group, wave_tile

_SCALE_UP_TILES = 40  # tiles visited by one scale-up
_REFINE_TILES = 40  # tiles rated around the best ones
_WINDOW = 4  # loads of one tensor at different places from which on a program is narrow along its vectors
_WINDOW_VECTORS, _WINDOW_ROWS, _WINDOW_IMAGES = 2, 8, 4
_WINDOW_ROW_VECTORS = 8  # vectors of a row of positions that one program may have whole
_FRONT = 3  # best tiles that scale-out and refinement start from
_EPSILON_START, _EPSILON_STEP = 0.1, 0.2
_EPSILON_ENOUGH = 0.3  # masks make padding cheap: tolerate this much before settling for fewer choices
_EPSILON_MAX = 1.0
_MAX_REDUCE_STEP = {True: 512, False: 128}  # of a dot, on a CPU and on a GPU
_DRAWS = 100  # random tiles tried for each one that is asked for
_WARP_STORES = 32  # positions in a row that are worth a tile of their own: those of a warp
_MIN_DOT = 16  # tl.dot on a GPU takes at least 16 along every axis

Extents = tuple[int, ...]


@dataclass(frozen=True)
class Construction:
    """What the search found, best first; what it turned down and why; how long it took.

    epsilon: padding of a spatial axis that had to be tolerated, as a share of its length
    """

    ranked: tuple[RProgram, ...]
    rejected: tuple[tuple[RTile, str], ...]
    seconds: float
    visited: int
    epsilon: float

    @property
    def best(self) -> RProgram:
        return self.ranked[0]

    def __str__(self) -> str:
        lines = [
            f"{len(self.ranked)} rPrograms out of {self.visited} tiles in {self.seconds * 1e3:.1f} ms, "
            f"padding up to {self.epsilon:.0%}"
        ]
        for rank, p in enumerate(self.ranked, 1):
            seconds = cost.time_text(p.estimate.time_s)
            lines.append(f"  {rank:>2}. {seconds:>8}  {p.key}  bound by {p.estimate.bound_by}")
        lines += [f"  rejected {tile}: {reason}" for tile, reason in self.rejected]
        return "\n".join(lines)


def construct(
    expr: TensorExpr,
    device: DeviceSpec,
    *,
    top_k: int = 10,
    candidates: Iterable[Mapping[str, int]] | None = None,
    tiled: Collection[str] | None = None,
    packed: Collection[str] = (),
    gathered: Collection[str] = (),
) -> Construction:
    """The `top_k` best rPrograms of `expr` on `device`, best first; always at least one.

    candidates: extents per axis name (block of a spatial axis, step of a reduce axis) to rank instead of
    searching; they are rounded up to powers of two, and axes left out are taken whole. A candidate that
    breaks a capacity is listed in `rejected`, not ranked.
    tiled: axes that a program may hold more than one point of. By default all of them; in a contraction the
    reduce axes and the longest axis of the rows and of the columns, the others being numbered by the grid.
    packed: tensors that will be stored tile by tile, each tile one run of memory (weights packed once).
    gathered: tensors whose rows are collected from several places (the image of a convolution).
    Raises ValueError when `top_k` is below 1, an axis name is unknown, or no candidate fits.
    """
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; ask for at least 1 rProgram")
    started = time.perf_counter()
    search = _Search(Space(expr, packed, gathered), device, tiled)
    if candidates is None:
        search.run(top_k)
    else:
        for extents in candidates:
            search.visit(tuple(next_pow2(x) for x in search.space.order(extents)))
        if not search.found:
            reasons = "; ".join(sorted(set(search.rejected.values()))) or "the list is empty"
            raise ValueError(f"no candidate for {expr.name} fits {device.name}: {reasons}")
    ranked = sorted(search.found.values(), key=lambda c: c.rank)[:top_k]
    return Construction(
        ranked=tuple(_program(search.space, device, c) for c in ranked),
        rejected=tuple((search.space.tile(e), why) for e, why in sorted(search.rejected.items())),
        seconds=time.perf_counter() - started,
        visited=len(search.found) + len(search.rejected),
        epsilon=search.epsilon,
    )


def sample(
    expr: TensorExpr,
    device: DeviceSpec,
    count: int,
    seed: int = 0,
    *,
    tiled: Collection[str] | None = None,
    packed: Collection[str] = (),
    gathered: Collection[str] = (),
) -> tuple[RProgram, ...]:
    """`count` feasible rPrograms drawn at random from the space that `construct` searches, all of them where it has
    fewer: what its ranking is judged against. The same seed draws the same ones.

    A tile is drawn axis by axis, each extent a power of two from the smallest aligned one to the first that covers
    the axis; what breaks a capacity is drawn again.
    """
    search = _Search(Space(expr, packed, gathered), device, tiled)
    choices = [
        [low << n for n in range((high // low).bit_length())]
        for low, high in zip(search.start, search.limits)
    ]
    most = math.prod(map(len, choices))
    if most <= 4 * count:
        for e in itertools.product(*choices):
            search.visit(e)
    draw = random.Random(seed)
    left = _DRAWS * count
    while len(search.found) < count and left and len(search.found) + len(search.rejected) < most:
        search.visit(tuple(draw.choice(c) for c in choices))
        left -= 1
    found = [_program(search.space, device, c) for c in search.found.values()]
    return tuple(draw.sample(found, count) if len(found) > count else found)


class _Candidate:
    """A tile with its best launch parameters."""

    __slots__ = ("tiled", "extents", "launch", "estimate", "rank")

    def __init__(self, tiled: Tiled, launch: Launch, estimate: Estimate) -> None:
        self.tiled, self.extents, self.launch, self.estimate = tiled, tuple(tiled.e), launch, estimate
        # Ties are broken by bytes moved, launch size and extents, never by the order of discovery.
        moved = sum(n for _, n in estimate.level_bytes)
        larger_first = tuple(-x for x in self.extents)
        self.rank = (estimate.time_s, moved, launch.num_warps, launch.num_stages, larger_first)


class _Search:
    """One construction: the tiles seen so far, accepted and rejected."""

    def __init__(self, space: Space, device: DeviceSpec, tiled: Collection[str] | None) -> None:
        self.space, self.device = space, device
        self.tiled = _tiled_axes(space, device, tiled)
        self.limits = tuple(next_pow2(d) if i in self.tiled else 1 for i, d in enumerate(space.extents))
        if device.is_cpu and space.taps >= _WINDOW and not space.has_dot:
            # The factors of the taps stay in registers while the program walks the positions; and most programs
            # are away from the border, where no tap needs a test, or know where it is: they have a whole row.
            # Images lie far apart: their rows take turns in one set of a cache.
            lanes = device.lanes(space.itemsize)
            self.limits = tuple(
                min(n, self._window_rows(i))
                if i not in space.inner
                else min(n, _WINDOW_VECTORS * lanes)
                if n > _WINDOW_ROW_VECTORS * lanes or i not in space.borders
                else n
                for i, n in enumerate(self.limits)
            )
        self.start = self._smallest()
        self.epsilon = _EPSILON_START
        self.blocked = False  # a step was left out because it pads too much
        self.found: dict[Extents, _Candidate] = {}
        self.rejected: dict[Extents, str] = {}
        self._tiles: dict[Extents, Tiled] = {}

    def _window_rows(self, axis: int) -> int:
        """Rows of a window's positions along an axis that one program may have; of other images few, in one loop."""
        shared = self.space.shared_axes
        if shared is None or axis in self.space.borders:
            return _WINDOW_ROWS
        apart = shared - self.space.borders.keys()
        return _WINDOW_IMAGES if axis == min(apart, default=-1) else 1

    def _smallest(self) -> Extents:
        """The smallest aligned tile: matrix instruction or register block, vector, transaction, warp."""
        space, device = self.space, self.device
        e = [1] * len(space.extents)
        if space.has_dot and device.is_cpu:
            rows, most = device.micro_kernels[0]
            vectors = min(v for r, v in device.micro_kernels if r >= rows and r * v == rows * most)
            self._spread(e, space.m_axes, rows)
            self._spread(e, space.n_axes, vectors * device.lanes(4))
            self._spread(e, self._by_length(space.reduce), device.lanes(4))
        elif space.has_dot:
            for axes in (space.m_axes, space.n_axes, self._by_length(space.reduce)):
                self._spread(e, axes, _MIN_DOT)
                short = ceil_div(_MIN_DOT, math.prod(e[i] for i in axes))
                inside = [i for i in axes if i in self.tiled]
                if inside:
                    e[inside[-1]] *= short
        else:
            width = max(1, device.dram.transaction_bytes // space.itemsize)
            for i in space.inner:
                e[i] = min(next_pow2(width), self.limits[i])
            by_contiguity = sorted(range(len(e)), key=lambda i: (i in space.inner, i))
            self._spread(e, by_contiguity, max(math.prod(e), device.warp_size))
        return tuple(e)

    def _spread(self, e: list[int], axes: Sequence[int], width: int) -> None:
        """Give `axes` together at least `width` points where they are that long, the last axis first."""
        for i in reversed(axes):
            others = math.prod(e[j] for j in axes if j != i)
            e[i] = max(e[i], min(next_pow2(ceil_div(width, others)), self.limits[i]))

    def _by_length(self, axes: Sequence[int]) -> list[int]:
        """Axes with the longest last: a window's short axes would be mostly padding."""
        return sorted(axes, key=lambda i: self.space.extents[i])

    def _next(self, e: Extents, axis: int) -> Extents | None:
        """The next aligned tile along an axis: the next power of two that pads a spatial axis tolerably.

        Rows of a CPU's product may pad at will: it computes none behind the last register block (`live_rows`). Those
        of a GPU's pad to one matrix instruction.
        """
        space, extent, limit = self.space, e[axis], self.limits[axis]
        if space.is_reduce[axis] and space.has_dot:
            limit = min(limit, _MAX_REDUCE_STEP[self.device.is_cpu])
        allowed = space.extents[axis] * (1 + self.epsilon)
        rows = space.has_dot and axis in space.m_axes
        skipped = space.is_reduce[axis] or (self.device.is_cpu and rows)
        instruction = space.peak(self.device).instruction[0] if rows else 0
        while extent < limit:
            extent *= 2
            if extent <= instruction:  # fewer rows than one instruction of a matrix unit multiplies
                return (*e[:axis], extent, *e[axis + 1 :])
            whole = axis in space.borders and extent >= space.extents[axis]  # both ends in one program
            if skipped or whole or padded(space.extents[axis], extent) <= allowed:
                return (*e[:axis], extent, *e[axis + 1 :])
            self.blocked = True
        return None

    def _halve(self, e: Extents, axis: int) -> Extents | None:
        if e[axis] <= self.start[axis]:
            return None
        return (*e[:axis], e[axis] // 2, *e[axis + 1 :])

    def visit(self, e: Extents) -> _Candidate | None:
        """Rate a tile with its best launch parameters; None when it does not fit."""
        if e in self.found or e in self.rejected:
            return self.found.get(e)
        best, why = None, ""
        tiled = self._tile(e)
        for launch in capacity.launches(tiled):
            broken = capacity.violation(tiled, launch, smallest=e == self.start)
            if broken:
                why = broken
                continue
            candidate = _Candidate(tiled, launch, cost.estimate(tiled, launch))
            if best is None or candidate.rank < best.rank:
                best = candidate
        if best is None:
            self.rejected[e] = why
        else:
            self.found[e] = best
        return best

    def score(self, e: Extents, larger: Extents) -> float:
        """Data-reuse score of a step: traffic saved per byte of footprint added."""
        small, large = self._tile(e), self._tile(larger)
        added, saved = large.footprint - small.footprint, small.traffic - large.traffic
        return saved / added if added > 0 and saved > 0 else 0.0

    def _tile(self, e: Extents) -> Tiled:
        known = self._tiles.get(e)
        if known is None:
            known = self._tiles[e] = Tiled(self.space, self.device, e)
        return known

    def _steps(self, e: Extents) -> list[Extents]:
        """The next tiles, best data-reuse score first; among equals contiguous axes, then inner ones."""
        options = []
        for axis in range(len(e)):
            larger = self._next(e, axis)
            if larger is not None:
                options.append((-self.score(e, larger), axis not in self.space.inner, -axis, larger))
        return [o[-1] for o in sorted(options)]

    def _front(self) -> list[Extents]:
        return sorted(self.found, key=lambda e: self.found[e].rank)[:_FRONT]

    def scale_up(self) -> None:
        """Depth first along the best scores, a fixed number of tiles; what does not fit ends its branch."""
        stack = [self.start]
        seen: set[Extents] = set()
        while stack and len(seen) < _SCALE_UP_TILES:
            e = stack.pop()
            if e not in seen:
                seen.add(e)
                if self.visit(e) is not None:
                    stack.extend(reversed(self._steps(e)))

    def scale_out(self) -> None:
        """While the grid leaves units idle, halve the spatial axis whose growth reused the least."""
        for e in self._front():
            while self.found[e].tiled.grid < self.device.units:
                options = []
                for axis in self.space.spatial:
                    smaller = self._halve(e, axis)
                    if smaller is not None:
                        options.append((self.score(smaller, e), -axis, smaller))
                if not options:
                    break
                e = min(options)[-1]
                if self.visit(e) is None:
                    break

    def refine(self) -> None:
        """Rate the neighbours of the best tiles until none of them is better."""
        asked: set[Extents] = set()
        budget = _REFINE_TILES
        while budget > 0:
            fresh = [e for e in self._front() if e not in asked]
            if not fresh:
                return
            asked.update(fresh)
            around = dict.fromkeys(n for e in fresh for n in self._neighbours(e))
            for n in [n for n in around if n not in self.found and n not in self.rejected][:budget]:
                self.visit(n)
                budget -= 1

    def _neighbours(self, e: Extents) -> list[Extents]:
        """One axis longer, one shorter, or one shorter and another longer."""
        near = self._steps(e)
        for axis in range(len(e)):
            smaller = self._halve(e, axis)
            if smaller is not None:
                near.append(smaller)
                near += [n for other in range(len(e)) if other != axis and (n := self._next(smaller, other))]
        return near

    def run(self, top_k: int) -> None:
        """Scale up, out and refine, tolerating more padding until there is choice enough."""
        while True:
            self.blocked = False
            self.scale_up()
            self.scale_out()
            self.refine()
            enough = len(self.found) >= top_k and self.epsilon >= _EPSILON_ENOUGH
            if enough or not self.blocked or self.epsilon >= _EPSILON_MAX:
                break
            self.epsilon = min(_EPSILON_MAX, self.epsilon + _EPSILON_STEP)
        if not self.found:
            # Even the smallest aligned tile breaks a limit of the model: offer it, the compiler may spill.
            tiled = self._tile(self.start)
            launch = capacity.launches(tiled)[0]
            self.found[self.start] = _Candidate(tiled, launch, cost.estimate(tiled, launch))


def _tiled_axes(space: Space, device: DeviceSpec, names: Collection[str] | None) -> frozenset[int]:
    if names is not None:
        unknown = sorted(set(names) - set(space.names))
        if unknown:
            raise ValueError(f"{space.expr.name} has no axis {unknown}; its axes are {list(space.names)}")
        return frozenset(space.names.index(n) for n in names)
    if not space.has_dot:
        return frozenset(range(len(space.extents)))
    stored: frozenset[int] = frozenset()
    if not device.is_cpu:  # neighbours that one instruction of a warp stores come before the length
        stored = frozenset(i for o in space.operands if o.write for i in o.contiguous)

    def key(i: int) -> tuple[bool, int]:
        return i in stored and space.extents[i] >= _WARP_STORES, space.extents[i]

    longest = [max(axes, key=key) for axes in (space.m_axes, space.n_axes) if axes]
    return frozenset((*longest, *space.reduce))


def _program(space: Space, device: DeviceSpec, c: _Candidate) -> RProgram:
    names, e = space.names, c.extents
    return RProgram(
        name=space.expr.name,
        device=device.name,
        block={names[i]: e[i] for i in space.spatial},
        step={names[i]: e[i] for i in space.reduce},
        num_warps=c.launch.num_warps,
        num_stages=c.launch.num_stages,
        grid=c.tiled.grid,
        levels=_levels(space, device, c),
        estimate=c.estimate,
        extents=dict(zip(names, space.extents)),
        row_group=row_group(c.tiled),
        panel=register_block(c.tiled)[1] if device.is_cpu and space.has_dot else 0,
        pairs=pairs(c.tiled),
    )


def _levels(space: Space, device: DeviceSpec, c: _Candidate) -> tuple[tuple[str, RTile], ...]:
    """The tile that is resident at each level, from the whole problem down to registers."""
    wave = wave_tile(c.tiled, c.estimate.occupancy)
    held = space.tile([min(x, d) for x, d in zip(wave, space.extents)])
    return (
        (device.dram.name, space.tile(space.extents)),
        *((level.name, held) for level in device.shared_levels),
        *((level.name, space.tile(c.extents)) for level in device.private_levels[:-1]),
        *(
            (level.name, space.tile(_innermost_tile(space, device, c)))
            for level in device.private_levels[-1:]
        ),
        ("registers", space.tile(_register_tile(space, device, c))),
    )


def _innermost_tile(space: Space, device: DeviceSpec, c: _Candidate) -> Extents:
    """What the innermost private level keeps: the block; in a core's L1 one panel of rows and columns."""
    if not (device.is_cpu and space.has_dot):
        return c.extents
    tile = list(c.extents)
    for axes, width in zip((space.m_axes, space.n_axes), register_block(c.tiled)):
        _fill(tile, c.extents, axes, width)
    return tuple(tile)


def _register_tile(space: Space, device: DeviceSpec, c: _Candidate) -> list[int]:
    """The register block of a core, or a GPU thread's share of the block; innermost axes first."""
    tile = [1] * len(c.extents)
    share = max(1, c.tiled.block // (c.launch.num_warps * device.warp_size))
    if space.has_dot:
        cols = next_pow2(round(math.sqrt(share)))
        rows = max(1, share // cols)
        if device.is_cpu:
            rows, cols = register_block(c.tiled)
        _fill(tile, c.extents, space.m_axes, rows)
        _fill(tile, c.extents, space.n_axes, cols)
    elif device.is_cpu:
        _fill(tile, c.extents, sorted(space.inner), device.lanes(space.itemsize))
    else:
        _fill(tile, c.extents, (*space.spatial, *space.reduce), share)
    return tile


def _fill(tile: list[int], e: Extents, axes: Sequence[int], width: int) -> None:
    for i in reversed(axes):
        tile[i] = min(width, e[i])
        width = max(1, width // tile[i])
