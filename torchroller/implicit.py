"""A convolution as the matrix product that its kernel computes: what the search sees of it.

    y[n, *out, g, m] = sum over window and channels of
                       x[n, *(out * stride + window * dilation), g, c] w[*window, g, c, m]

The positions of the output are one axis of rows, the taps of the window one axis, and so are channels and columns:
an rTile of these four says all that the kernel needs. Neighbouring taps read almost the same rows of x, so x is
indexed by row + tap, and each of its elements counts once. Source: Zhu et al., ROLLER, OSDI 2022, fuse the axes of
convolutions in this way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .expr import Access, Affine, Axis, TensorExpr, Value, Write

ROWS, COLUMNS, TAPS, CHANNELS, GROUPS = "rows", "columns", "taps", "channels", "groups"
TILED = (ROWS, COLUMNS, CHANNELS)
IMAGE, WEIGHT = "x", "w"


@dataclass(frozen=True)
class Sides:
    """Axes of a convolution: groups move both operands, rows the image, columns the weight; the window and the
    channels are summed over. `taps` come first in `over`; what is left is walked as one run of memory.
    """

    groups: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]
    taps: tuple[Axis, ...]
    channels: tuple[Axis, ...]

    @property
    def depth(self) -> int:
        """Length of the run of channels."""
        return math.prod(a.extent for a in self.channels)


def sides(expr: TensorExpr) -> Sides:
    """The axes of a convolution by their part in it."""
    (dot,) = expr.dots
    moves = expr.moves()
    a, b = (moves[i] for i in dot.args)
    over = sorted((x for x in expr.axes if x.name in dot.over), key=lambda x: -_step(expr, x))
    groups = tuple(x for x in expr.spatial if x.name in a and x.name in b)
    columns = tuple(x for x in expr.spatial if x.name in b and x.name not in a)
    rows = tuple(x for x in expr.spatial if x not in groups and x not in columns)
    image, weight = (expr.values[i].access for i in dot.args)
    inner = 1  # how many of the innermost summed axes lie in memory as one run
    if image is not None and not image.bounded and weight is not None:
        while inner < len(over):
            outer, last = over[-inner - 1], over[-inner]
            if image.stride_of(outer.name) != image.stride_of(last.name) * last.extent:
                break
            inner += 1
    return Sides(groups, rows, columns, tuple(over[: len(over) - inner]), tuple(over[len(over) - inner :]))


def _step(expr: TensorExpr, axis: Axis) -> int:
    (dot,) = expr.dots
    found = [abs(v.access.stride_of(axis.name)) for v in _loads(expr, dot.args[0]) if v.access is not None]
    return max(found, default=0)


def _loads(expr: TensorExpr, value: int) -> list[Value]:
    v = expr.values[value]
    below = [x for a in v.args for x in _loads(expr, a)]
    return [v, *below] if v.access is not None else below


def as_product(expr: TensorExpr) -> TensorExpr:
    """The matrix product, with the epilogue of `expr`."""
    parts = sides(expr)
    (dot,) = expr.dots
    rows = math.prod(a.extent for a in parts.rows)
    columns = math.prod(a.extent for a in parts.columns)
    taps = math.prod(a.extent for a in parts.taps)
    groups = math.prod(a.extent for a in parts.groups)
    axes = [Axis(GROUPS, groups)] if groups > 1 else []
    axes += [Axis(ROWS, rows), Axis(COLUMNS, columns)]
    axes += [Axis(TAPS, taps, "reduce")] if taps > 1 else []
    axes.append(Axis(CHANNELS, parts.depth, "reduce"))
    lines = [(GROUPS, groups)] if groups > 1 else []
    image = next(v.access for v in _loads(expr, dot.args[0]))
    assert image is not None
    spread = max(1, round(math.prod(image.shape) / (rows * groups * parts.depth))) if image.bounded else 1

    def image_access(dtype: str) -> Access:
        long = rows * spread + taps
        index = (*(Affine(((n, 1),)) for n, _ in lines),
                 Affine(((ROWS, spread), *(((TAPS, 1),) if taps > 1 else ()))), Affine(((CHANNELS, 1),)))  # fmt: skip
        shape = (*(s for _, s in lines), long, parts.depth)
        return _dense(IMAGE, dtype, shape, index)

    def weight_access(dtype: str) -> Access:
        kept = [*lines, *([(TAPS, taps)] if taps > 1 else []), (CHANNELS, parts.depth), (COLUMNS, columns)]
        return _dense(WEIGHT, dtype, tuple(s for _, s in kept), tuple(Affine(((n, 1),)) for n, _ in kept))

    of_a, of_b = (_feeding(expr, a) for a in dot.args)

    def other(access: Access) -> Access:
        names = {a for ix in access.index for a, _ in ix.terms}
        kept = [(n, s) for n, s, mine in ((GROUPS, groups, parts.groups), (ROWS, rows, parts.rows),
                                          (COLUMNS, columns, parts.columns))
                if s > 1 and any(a.name in names for a in mine)]  # fmt: skip
        return _dense(
            access.tensor, access.dtype, tuple(s for _, s in kept), tuple(Affine(((n, 1),)) for n, _ in kept)
        )

    values: list[Value] = []
    for n, v in enumerate(expr.values):
        if v.access is not None:
            moved = (
                image_access(v.dtype)
                if n in of_a
                else weight_access(v.dtype)
                if n in of_b
                else other(v.access)
            )
            values.append(replace(v, access=moved))
        elif v.kind == "index":
            mine = ROWS if any(a.name == v.axis for a in parts.rows) else COLUMNS
            values.append(replace(v, axis=mine))
        elif v.kind == "dot":
            values.append(replace(v, over=(TAPS, CHANNELS) if taps > 1 else (CHANNELS,)))
        else:
            values.append(v)
    writes = tuple(Write(other(w.access), w.value) for w in expr.writes)
    return TensorExpr(expr.name, tuple(axes), tuple(values), writes)


def _feeding(expr: TensorExpr, value: int) -> set[int]:
    """Numbers of the values that `value` is computed from, itself included."""
    return {value}.union(*(_feeding(expr, a) for a in expr.values[value].args))


def _dense(tensor: str, dtype: str, shape: tuple[int, ...], index: tuple[Affine, ...]) -> Access:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return Access(tensor, dtype, shape, tuple(reversed(strides)), index)
