"""Split-K: a small product with a long reduction is cut along it, so that every unit has a part to compute.

One program sums up a tile of the result alone. Where the result has fewer tiles than the machine has units, the others
would idle: then partial products of `parts` equal parts of k are computed side by side, and a second kernel adds them
up. Whether that pays is predicted, as everything else is: `parts` compares both ways with the search's own model.
"""

from __future__ import annotations

import functools

from torchroller.expr import Access, Affine, Axis, TensorExpr, Value, Write
from torchroller.search import construct
from torchroller.spec import DeviceSpec
from torchroller.tile import ceil_div

_LEAST_K = 1024  # of a part: shorter ones are mostly loop overhead
_WORTH = 0.9  # of the predicted time: below that a second kernel and its buffer are worth it
_LEAST_DOT = 16  # rows and columns of the smallest tl.dot of a GPU


@functools.lru_cache(maxsize=256)
def parts(m: int, n: int, k: int, dtype: str, spec: DeviceSpec) -> int:
    """Into how many parts k is cut; 1 where one kernel is predicted to be faster, or k has no equal parts.

    Nothing is cut where the smallest tiles already give every unit one.
    """
    if k < 2 * _LEAST_K or k % 2 or _tiles(m, n, spec) >= spec.units:
        return 1
    whole = construct(_products(1, m, n, k, dtype), spec, top_k=1).best
    best, best_s = 1, _WORTH * whole.estimate.time_s
    count = 2
    while k % count == 0 and k // count >= _LEAST_K and count <= 2 * spec.units:
        partial = construct(_products(count, m, n, k // count, dtype), spec, top_k=1).best
        total = construct(_sum(count, m * n), spec, top_k=1).best
        found_s = partial.estimate.time_s + total.estimate.time_s
        if found_s < best_s:
            best, best_s = count, found_s
        count *= 2
    return best


def _tiles(m: int, n: int, spec: DeviceSpec) -> int:
    """Smallest tiles of the result."""
    rows = columns = _LEAST_DOT
    if spec.is_cpu:
        rows, vectors = spec.micro_kernels[0]
        columns = vectors * spec.lanes(4)
    return ceil_div(m, rows) * ceil_div(n, columns)


def _products(count: int, m: int, n: int, k: int, dtype: str) -> TensorExpr:
    axes = (Axis("s", count), Axis("m", m), Axis("n", n), Axis("k", k, "reduce"))
    values = (
        Value("load", dtype, access=_access("a", dtype, axes, "msk")),
        Value("load", dtype, access=_access("b", dtype, axes, "skn")),
        Value("dot", "float32", (0, 1), over=("k",)),
    )
    return TensorExpr("products", axes, values, (Write(_access("c", "float32", axes, "smn"), 2),))


def _sum(count: int, results: int) -> TensorExpr:
    axes = (Axis("i", results), Axis("s", count, "reduce"))
    values = (
        Value("load", "float32", access=_access("c", "float32", axes, "si")),
        Value("reduce", "float32", (0,), fn="sum", over=("s",)),
    )
    return TensorExpr("total", axes, values, (Write(_access("y", "float32", axes, "i"), 1),))


def _access(tensor: str, dtype: str, axes: tuple[Axis, ...], order: str) -> Access:
    """Row-major in the order of these axes."""
    extent = {a.name: a.extent for a in axes}
    shape = tuple(extent[a] for a in order)
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return Access(tensor, dtype, shape, tuple(reversed(strides)), tuple(Affine(((a, 1),)) for a in order))
