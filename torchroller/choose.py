"""Tile extents for a kernel without a search: a plain, valid choice per kernel family."""

from __future__ import annotations

import math

from .emit.common import Tiling, next_power
from .emit.contraction import is_contraction, sides
from .expr import Axis, TensorExpr
from .tile import RProgram

def tiling_of(program: RProgram) -> Tiling:
    """The emitter's view of an rProgram."""
    return Tiling((*program.block.items(), *program.step.items()), program.num_warps, program.num_stages)


VECTOR = 2048  # elements of a pointwise block
ROW = 8192  # longest row that is held whole


def plain_tiling(expr: TensorExpr, cpu: bool = True) -> Tiling:
    """A tiling that fits every device: what is used where no rPrograms are at hand."""
    if is_contraction(expr):
        return _contraction(expr, cpu)
    return _loops(expr)


def _contraction(expr: TensorExpr, cpu: bool) -> Tiling:
    _, m, n, k = sides(expr)
    least = 1 if cpu else 16
    blocks: dict[str, int] = {"m": least, "n": least}
    for axes, most in ((m, 64), (n, 64)):
        if axes:
            axis = max(axes, key=lambda a: a.extent)
            blocks[axis.name] = max(min(next_power(axis.extent), most), least)
    blocks[k.name] = max(min(next_power(k.extent), 128 if cpu else 32), least)
    return Tiling(tuple(blocks.items()))


def _loops(expr: TensorExpr) -> Tiling:
    blocks: dict[str, int] = {}
    accesses = [*expr.loads, *(w.access for w in expr.writes)]

    def contiguity(a: Axis) -> tuple[int, int]:
        return (sum(abs(x.stride_of(a.name)) == 1 for x in accesses), a.extent)

    if not expr.reduce:
        left = VECTOR
        for a in sorted(expr.spatial, key=contiguity, reverse=True)[:2]:
            blocks[a.name] = min(next_power(a.extent), left)
            left = max(left // blocks[a.name], 1)
        return Tiling(tuple(blocks.items()))
    inner = max(expr.reduce, key=contiguity)
    spatial = sorted(expr.spatial, key=contiguity, reverse=True)
    if spatial and contiguity(spatial[0])[0] > contiguity(inner)[0]:
        blocks[spatial[0].name] = min(next_power(spatial[0].extent), 64)
        blocks[inner.name] = min(next_power(inner.extent), 32)
    else:
        whole = next_power(inner.extent) <= ROW and math.prod(a.extent for a in expr.reduce) == inner.extent
        blocks[inner.name] = next_power(inner.extent) if whole else min(next_power(inner.extent), 1024)
        if spatial and blocks[inner.name] < 256:
            blocks[spatial[0].name] = min(next_power(spatial[0].extent), 256 // blocks[inner.name])
    return Tiling(tuple(blocks.items()))
