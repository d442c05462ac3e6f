"""Lowering rules of indirect reads (embedding, index, gather)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import NotLowered
from ..graph import Node
from .registry import Context, rule


@rule("aten.embedding")
def _embedding(cx: Context, weight: Node, indices: Node, *args: Any) -> Node:
    rank = len(indices.shape)
    rows = cx.b.expand(cx.b.reshape(indices, (*indices.shape, 1)), cx.shape)
    return cx.b.gather(weight, (rows, rank), cx.shape)


@rule("aten.gather")
def _gather(cx: Context, x: Node, dim: int, index: Node, **kw: Any) -> Node:
    x, index = _at_least_1d(cx, x), _at_least_1d(cx, index)
    dim %= len(x.shape)
    picked = cx.b.gather(x, [index if d == dim else d for d in range(len(x.shape))], index.shape)
    return cx.b.reshape(picked, cx.shape)


def _at_least_1d(cx: Context, x: Node) -> Node:
    return x if x.shape else cx.b.reshape(x, (1,))


@rule("aten.index_select")
def _index_select(cx: Context, x: Node, dim: int, index: Node) -> Node:
    x, index, out = _at_least_1d(cx, x), _at_least_1d(cx, index), cx.shape or (1,)
    dim %= len(x.shape)
    shape = [index.shape[0] if d == dim else 1 for d in range(len(x.shape))]
    rows = cx.b.expand(cx.b.reshape(index, shape), out)
    return cx.b.reshape(cx.b.gather(x, [rows if d == dim else d for d in range(len(x.shape))], out), cx.shape)


@rule("aten.index", "aten._unsafe_index")
def _index(cx: Context, x: Node, indices: Sequence[Node | None]) -> Node:
    if any(i is not None and i.dtype in ("bool", "uint8") for i in indices):
        raise NotLowered("a mask as index: the result's shape depends on values")
    return cx.b.gather(x, index_layout(cx, x, indices)[0], cx.shape)


def index_layout(cx: Context, x: Node, indices: Sequence[Node | None]) -> tuple[list[Any], tuple[int, ...]]:
    """(per dimension of x the dimension of x[indices] that runs along it, or positions of that shape; the shape)."""
    given = [i for i in indices if i is not None]
    at = [d for d, i in enumerate(indices) if i is not None]
    shape = tuple(torch.broadcast_shapes(*(i.shape for i in given)))
    adjacent = at == list(range(at[0], at[-1] + 1))
    before = [d for d in range(len(x.shape)) if d not in at]
    first = at[0] if adjacent else 0  # where the index dimensions land in the result
    position: dict[int, int] = {}
    for n, d in enumerate(before):
        position[d] = n if n < first else n + len(shape)
    rank = len(before) + len(shape)
    full = [0] * rank
    full[first : first + len(shape)] = shape
    for d, n in position.items():
        full[n] = x.shape[d]
    out: list[Any] = []
    for d in range(len(x.shape)):
        if d in position:
            out.append(position[d])
            continue
        index = indices[d]
        assert index is not None
        line = (1,) * (len(shape) - len(index.shape)) + index.shape
        index = cx.b.reshape(index, (1,) * first + line + (1,) * (rank - first - len(shape)))
        out.append(cx.b.expand(wrapped(cx, index, x.shape[d]), full))
    return out, tuple(full)


def wrapped(cx: Context, index: Node, size: int) -> Node:
    """An index that may count from the end, as int64 from the start."""
    b = cx.b
    index = b.cast(index, "int64")
    below = b.call("lt", "bool", index, b.const(0, "int64"), compute="int64")
    return b.call("where", "int64", below, b.call("add", "int64", index, b.const(size, "int64")), index)


@rule("aten.constant_pad_nd")
def _pad(cx: Context, x: Node, pad: Sequence[int], value: Any = 0) -> Node:
    """A view whose readers test their index; what needs the values in memory writes them with one kernel."""
    low, high = [0] * len(x.shape), [0] * len(x.shape)
    for n in range(len(pad) // 2):
        low[-1 - n], high[-1 - n] = pad[2 * n], pad[2 * n + 1]
    if not any(low) and not any(high):
        return x
    fill = bool(value) if cx.dtype == "bool" else float(value) if "float" in cx.dtype else int(value)
    return cx.b.pad(x, low, high, fill)


@rule("aten._embedding_bag", "aten._embedding_bag_forward_only")
def _embedding_bag(cx: Context, weight: Node, indices: Node, offsets: Node, scale_grad_by_freq: bool = False,
                   mode: int = 0, sparse: bool = False, per_sample_weights: Node | None = None,
                   include_last_offset: bool = False, padding_idx: int = -1) -> Any:  # fmt: skip
    """Bags of one size, as a matrix of indices gives them; their sum or mean is a gather and a reduction."""
    if set(cx.used) - {0}:
        raise NotLowered("an embedding_bag whose bookkeeping the backward pass reads")
    step = _even(offsets)
    if step is None or include_last_offset or padding_idx >= 0 or mode > 1 or len(indices.shape) != 1:
        raise NotLowered("an embedding_bag whose bags are data, or of a mode other than sum and mean")
    if step * offsets.shape[0] != indices.shape[0]:
        raise NotLowered("an embedding_bag whose last bag has another size")
    b, (bags, width) = cx.b, (offsets.shape[0], weight.shape[1])
    kind = "float32" if weight.dtype in ("float16", "bfloat16") else weight.dtype
    at = b.expand(b.reshape(indices, (bags, step, 1)), (bags, step, width))
    rows = b.cast(b.gather(weight, (at, 2), at.shape), kind)
    if per_sample_weights is not None:
        share = b.reshape(b.cast(per_sample_weights, kind), (bags, step, 1))
        rows = b.call("mul", kind, rows, share)
    total = b.reduce("sum", rows, (1,), kind)
    if mode == 1:
        total = b.call("mul", kind, total, b.const(1 / step, kind))
    return b.cast(total, weight.dtype), None, None, None


def _even(offsets: Node) -> int | None:
    """The step of offsets 0, step, 2 * step, …; None where they are something else."""
    node, step = offsets, 1
    while node.kind == "pointwise" and node.fn in ("cast", "mul"):
        if node.fn == "mul":
            factor = node.args[1]
            while factor.kind == "view":
                factor = factor.args[0]
            if factor.kind != "const" or not isinstance(factor.number, int):
                return None
            step *= factor.number
        node = node.args[0]
    return step if node.kind == "iota" and len(node.shape) == 1 else None
