"""Lowering rules of indirect writes: index_put, scatter, index_add, index_copy, gradients of embeddings.

Each is one scatter value (graph.Node): a copy of a base, into which updates are written or combined one after the
other wherever two may meet, in the order of ATen's CPU kernels, so sums do not depend on timing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import NotLowered
from ..graph import FLOATS, Node
from .indexing import index_layout, wrapped
from .registry import Context, rule

COMBINE = {"add": "add", "sum": "add", "multiply": "prod", "prod": "prod", "amax": "max", "amin": "min"}
MIN_PER_PROGRAM = 64  # updates that meet nowhere else: below this many lanes a long serial walk loses to ATen
LONG_WALK = 1 << 16


def _scatter(cx: Context, base: Node, source: Node, index: Sequence[Any], fn: str) -> Node:
    """`index[d]` is the dimension of `source` that runs along dimension d of `base`, or the positions in it."""
    if len(base.shape) != len(index):
        raise NotLowered("a scatter whose index has another rank than its tensor")
    along = [i for i in index if isinstance(i, int)]
    corner = [source.shape[i] if isinstance(i, int) else size for i, size in zip(index, base.shape)]
    if tuple(corner) != base.shape:
        return _framed(cx, _scatter(cx, _corner(cx, base, corner), source, index, fn), base)
    lanes = math.prod(source.shape[i] for i in along)
    steps = source.numel // max(lanes, 1)
    if steps > LONG_WALK and lanes < MIN_PER_PROGRAM:
        raise NotLowered(
            f"a scatter of {steps} updates that may meet, one after the other, in {lanes} places"
        )
    return cx.b.scatter(base, cx.b.cast(source, base.dtype), index, fn)


@rule("aten.index_put", "aten._unsafe_index_put")
def _index_put(
    cx: Context, x: Node, indices: Sequence[Node | None], values: Node, accumulate: bool = False
) -> Node:
    given = [i for i in indices if i is not None]
    if any(i.dtype in ("bool", "uint8") for i in given):
        return _masked_put(cx, x, indices, values, accumulate)
    out, shape = index_layout(cx, x, indices)
    return _scatter(cx, x, cx.b.expand(values, shape), out, "add" if accumulate else "set")


def _masked_put(cx: Context, x: Node, indices: Sequence[Node | None], values: Node, accumulate: bool) -> Node:
    """A mask as the only index and one value for all its places is a choice between two values."""
    mask = indices[0]
    if mask is None or mask.dtype != "bool" or any(i is not None for i in indices[1:]) or values.numel != 1:
        raise NotLowered("a mask as index: which value goes where depends on values")
    b = cx.b
    mask = b.reshape(mask, (*mask.shape, *(1,) * (len(x.shape) - len(mask.shape))))
    value = b.reshape(b.cast(values, x.dtype), ())
    if accumulate:
        value = b.call("add", x.dtype, x, value)
    return b.call("where", x.dtype, b.expand(mask, x.shape), value, x)


def _positions(x: Node, dim: int, index: Node) -> list[Any]:
    return [index if d == dim else d for d in range(len(x.shape))]


def _lines(cx: Context, *values: Node) -> tuple[Node, ...]:
    """0-d tensors as vectors of one element."""
    return tuple(v if v.shape else cx.b.reshape(v, (1,)) for v in values)


@rule("aten.scatter")
def _scatter_rule(
    cx: Context, x: Node, dim: int, index: Node, source: Any, *, reduce: str | None = None
) -> Node:
    x, index = _lines(cx, x, index)
    if isinstance(source, Node):
        source = _corner(cx, _lines(cx, source)[0], index.shape)
    else:
        source = cx.b.const(source, x.dtype, index.shape)
    fn = COMBINE[reduce] if reduce else "set"
    return cx.b.reshape(_scatter(cx, x, source, _positions(x, dim % len(x.shape), index), fn), cx.shape)


def _framed(cx: Context, corner: Node, base: Node) -> Node:
    """`base` with its first elements along each dimension replaced by `corner`."""
    b = cx.b
    for d in reversed(range(len(base.shape))):
        have, size = corner.shape[d], base.shape[d]
        if have < size:
            rest = _corner(
                cx,
                b.slice(base, d, have, size - have),
                [*corner.shape[:d], size - have, *base.shape[d + 1 :]],
            )
            corner = b.cat([corner, rest], d)
    return corner


def _corner(cx: Context, source: Node, shape: Sequence[int]) -> Node:
    """The part of `source` that an index of `shape` reads."""
    for d, size in enumerate(shape):
        source = cx.b.slice(source, d, 0, size)
    return source


@rule("aten.scatter_add")
def _scatter_add(cx: Context, x: Node, dim: int, index: Node, source: Node) -> Node:
    return _scatter_rule(cx, x, dim, index, source, reduce="add")


@rule("aten.scatter_reduce")
def _scatter_reduce(cx: Context, x: Node, dim: int, index: Node, source: Node, reduce: str, *,
                    include_self: bool = True) -> Node:  # fmt: skip
    b, (x, index, source) = cx.b, _lines(cx, x, index, source)
    at = _positions(x, dim % len(x.shape), index)
    source = _corner(cx, source, index.shape)
    mean = reduce == "mean"
    if mean and x.dtype not in FLOATS:
        raise NotLowered("a mean of integers in a scatter")
    fn = "add" if mean else COMBINE[reduce]
    base = x
    if not include_self:
        base = _scatter(cx, x, b.const(_neutral(fn, x.dtype), x.dtype, index.shape), at, "set")
    total = _scatter(cx, base, source, at, fn)
    if not mean:
        return b.reshape(total, cx.shape)
    count = _scatter(
        cx, b.const(int(include_self), x.dtype, x.shape), b.const(1, x.dtype, index.shape), at, "add"
    )
    count = b.call("maximum", x.dtype, count, b.const(1, x.dtype))
    return b.reshape(b.call("div", x.dtype, total, count), cx.shape)


def _neutral(fn: str, dtype: str) -> float | int:
    if fn in ("add", "prod"):
        return int(fn == "prod")
    if dtype in FLOATS:
        return -math.inf if fn == "max" else math.inf
    if dtype == "bool":
        return int(fn == "min")
    info = torch.iinfo(getattr(torch, dtype))
    return info.min if fn == "max" else info.max


@rule("aten.index_add")
def _index_add(cx: Context, x: Node, dim: int, index: Node, source: Node, *, alpha: Any = 1) -> Node:
    if alpha != 1:
        source = cx.b.call("mul", x.dtype, source, cx.b.const(alpha, x.dtype))
    return _along(cx, x, dim, index, source, "add")


@rule("aten.index_copy")
def _index_copy(cx: Context, x: Node, dim: int, index: Node, source: Node) -> Node:
    return _along(cx, x, dim, index, source, "set")


@rule("aten.index_fill")
def _index_fill(cx: Context, x: Node, dim: int, index: Node, value: Any) -> Node:
    if isinstance(value, Node) and value.shape:
        raise NotLowered("an index_fill with a tensor")
    x, index = _lines(cx, x, index)
    shape = list(x.shape)
    shape[dim % len(shape)] = index.shape[0]
    wrap = wrapped(cx, index, x.shape[dim % len(shape)])
    return _along(cx, x, dim, wrap, cx.b.expand(cx.node(value, x.dtype), shape), "set")


def _along(cx: Context, x: Node, dim: int, index: Node, source: Node, fn: str) -> Node:
    """A one-dimensional index along `dim`: whole slices of `source` go to slices of `x`."""
    x, index, source = _lines(cx, x, index, source)
    dim %= len(x.shape)
    if len(source.shape) != len(x.shape):  # one slice without its dimension
        source = cx.b.reshape(source, [index.shape[0] if d == dim else n for d, n in enumerate(x.shape)])
    line = [index.shape[0] if d == dim else 1 for d in range(len(x.shape))]
    rows = cx.b.expand(cx.b.reshape(index, line), source.shape)
    return cx.b.reshape(_scatter(cx, x, source, _positions(x, dim, rows), fn), cx.shape)


@rule("aten.embedding_dense_backward")
def _embedding_backward(
    cx: Context, grad: Node, indices: Node, rows: int, padding: int, by_frequency: bool
) -> Node:
    if by_frequency:
        raise NotLowered("an embedding gradient scaled by frequency")
    b, width = cx.b, grad.shape[-1]
    grad = b.reshape(grad, (indices.numel, width))
    index = b.expand(b.reshape(indices, (indices.numel, 1)), grad.shape)
    if padding >= 0:
        skip = b.call("eq", "bool", index, b.const(padding, indices.dtype), compute=indices.dtype)
        grad = b.call("where", grad.dtype, skip, b.const(0, grad.dtype), grad)
    return _scatter(cx, b.const(0, grad.dtype, (rows, width)), grad, (index, 1), "add")


@rule("aten.slice_scatter")
def _slice_scatter(cx: Context, x: Node, source: Node, dim: int = 0, start: int | None = None, end: int | None = None,
                   step: int = 1) -> Node:  # fmt: skip
    if step != 1:
        raise NotLowered("a slice_scatter with steps")
    dim %= len(x.shape)
    size, length = x.shape[dim], source.shape[dim]
    first = 0 if start is None else max(start + size, 0) if start < 0 else min(start, size)
    if length == 0:
        raise NotLowered("an operand without elements")
    b = cx.b
    parts = [b.slice(x, dim, 0, first), b.cast(source, x.dtype),
             b.slice(x, dim, first + length, size - first - length)]  # fmt: skip
    kept = [p for p in parts if p.numel]
    return b.cat(kept, dim)


@rule("aten.select_scatter")
def _select_scatter(cx: Context, x: Node, source: Node, dim: int, at: int) -> Node:
    dim %= len(x.shape)
    at %= x.shape[dim]
    return _slice_scatter(
        cx, x, cx.b.reshape(source, (*x.shape[:dim], 1, *x.shape[dim + 1 :])), dim, at, at + 1
    )
