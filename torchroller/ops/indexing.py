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
    if not x.shape or not index.shape:
        raise NotLowered("a gather of 0-d tensors")
    dim %= len(x.shape)
    return cx.b.gather(x, [index if d == dim else d for d in range(len(x.shape))], cx.shape)


@rule("aten.index_select")
def _index_select(cx: Context, x: Node, dim: int, index: Node) -> Node:
    if not x.shape or not index.shape:
        raise NotLowered("an index_select of 0-d tensors")
    dim %= len(x.shape)
    shape = [index.shape[0] if d == dim else 1 for d in range(len(x.shape))]
    rows = cx.b.expand(cx.b.reshape(index, shape), cx.shape)
    return cx.b.gather(x, [rows if d == dim else d for d in range(len(x.shape))], cx.shape)


@rule("aten.index", "aten._unsafe_index")
def _index(cx: Context, x: Node, indices: Sequence[Node | None]) -> Node:
    given = [i for i in indices if i is not None]
    if any(i.dtype in ("bool", "uint8") for i in given):
        raise NotLowered("a mask as index: the result's shape depends on values")
    at = [d for d, i in enumerate(indices) if i is not None]
    shape = tuple(torch.broadcast_shapes(*(i.shape for i in given)))
    adjacent = at == list(range(at[0], at[-1] + 1))
    before = [d for d in range(len(x.shape)) if d not in at]
    first = at[0] if adjacent else 0  # where the index dimensions land in the result
    position: dict[int, int] = {}
    for n, d in enumerate(before):
        position[d] = n if n < first else n + len(shape)
    rank = len(before) + len(shape)
    out: list[Any] = []
    for d in range(len(x.shape)):
        if d in position:
            out.append(position[d])
            continue
        index = cx.b.cast(indices[d], "int64")  # type: ignore[arg-type]
        full = (1,) * (len(shape) - len(index.shape)) + index.shape
        index = cx.b.reshape(index, (1,) * first + full + (1,) * (rank - first - len(shape)))
        size = cx.b.const(x.shape[d], "int64")
        below = cx.b.call("lt", "bool", index, cx.b.const(0, "int64"), compute="int64")
        index = cx.b.call("where", "int64", below, cx.b.call("add", "int64", index, size), index)
        out.append(cx.b.expand(index, cx.shape))
    return cx.b.gather(x, out, cx.shape)


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
