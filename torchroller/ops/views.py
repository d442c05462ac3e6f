"""Lowering rules of operators that only rename elements: they cost nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import NotLowered
from ..graph import Node
from .registry import Context, rule


@rule("aten.view", "aten.reshape", "aten._unsafe_view", "aten._reshape_alias", "aten.unsqueeze", "aten.squeeze",
      "aten.flatten")  # fmt: skip
def _reshape(cx: Context, x: Node, *args: Any) -> Node:
    if cx.dtype != x.dtype:
        raise NotLowered("a view as another type")
    return cx.b.reshape(x, cx.shape)


@rule("aten.permute")
def _permute(cx: Context, x: Node, dims: Sequence[int]) -> Node:
    return cx.b.permute(x, dims)


@rule("aten.t", "aten.numpy_T")
def _t(cx: Context, x: Node) -> Node:
    return cx.b.permute(x, tuple(reversed(range(len(x.shape)))))


@rule("aten.transpose")
def _transpose(cx: Context, x: Node, a: int, c: int) -> Node:
    dims = list(range(len(x.shape)))
    if dims:
        dims[a], dims[c] = dims[c], dims[a]
    return cx.b.permute(x, dims)


@rule("aten.expand", "aten.broadcast_to")
def _expand(cx: Context, x: Node, shape: Sequence[int], **kw: Any) -> Node:
    return cx.b.expand(x, cx.shape)


@rule("aten.slice")
def _slice(
    cx: Context, x: Node, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Node:
    dim %= len(x.shape)
    size = x.shape[dim]
    first = 0 if start is None else max(start + size, 0) if start < 0 else min(start, size)
    return cx.b.slice(x, dim, first, cx.shape[dim], step)


@rule("aten.select")
def _select(cx: Context, x: Node, dim: int, at: int) -> Node:
    dim %= len(x.shape)
    return cx.b.select(x, dim, at % x.shape[dim])


@rule("aten.diagonal")
def _diagonal(cx: Context, x: Node, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Node:
    """Of the two dimensions as one: a walk by its row length plus one."""
    rank = len(x.shape)
    dim1, dim2 = dim1 % rank, dim2 % rank
    rest = [d for d in range(rank) if d not in (dim1, dim2)]
    rows, columns = x.shape[dim1], x.shape[dim2]
    flat = cx.b.reshape(cx.b.permute(x, (*rest, dim1, dim2)), (*cx.shape[:-1], rows * columns))
    first = offset if offset >= 0 else -offset * columns
    return cx.b.slice(flat, rank - 2, first, cx.shape[-1], columns + 1)


@rule("aten.repeat")
def _repeat(cx: Context, x: Node, repeats: Sequence[int]) -> Node:
    front = len(repeats) - len(x.shape)
    shape = (1,) * front + x.shape
    spread = [s for n, size in zip(repeats, shape) for s in (n, size)]
    folded = cx.b.reshape(x, [s for size in shape for s in (1, size)])
    return cx.b.reshape(cx.b.expand(folded, spread), cx.shape)


@rule("aten.split", "aten.split_with_sizes")
def _split(cx: Context, x: Node, sizes: Any, dim: int = 0) -> tuple[Node, ...]:
    dim %= len(x.shape)
    parts, at = [], 0
    for out in cx.meta:
        length = int(out.shape[dim])
        parts.append(cx.b.slice(x, dim, at, length))
        at += length
    return tuple(parts)


@rule("aten.unbind")
def _unbind(cx: Context, x: Node, dim: int = 0) -> tuple[Node, ...]:
    dim %= len(x.shape)
    return tuple(cx.b.select(x, dim, i) for i in range(x.shape[dim]))


@rule("aten.as_strided")
def _as_strided(
    cx: Context, x: Node, size: Sequence[int], stride: Sequence[int], offset: int | None = None
) -> Node:
    """Only other names for the steps of dimensions that have one element, as adaptive pooling gives them."""
    source = cx.operands[0]
    start = source.storage_offset() if offset is None else offset
    same = tuple(size) == x.shape and start == source.storage_offset()
    if not same or any(s > 1 and int(a) != int(b) for s, a, b in zip(size, stride, source.stride())):
        raise NotLowered("a view by strides")
    return x


@rule("aten.flip")
def _flip(cx: Context, x: Node, dims: Sequence[int]) -> Node:
    for dim in dims:
        x = cx.b.slice(x, dim % len(x.shape), x.shape[dim] - 1, x.shape[dim], -1)
    return x


@rule("aten.cat", "aten.concatenate")
def _cat(cx: Context, parts: Sequence[Node], dim: int = 0) -> Node:
    kept = [p for p in parts if p.numel]
    dim %= len(cx.shape)
    if not kept or any(len(p.shape) != len(cx.shape) for p in kept):
        raise NotLowered("a cat of empty tensors")
    kept = [cx.b.cast(p, cx.dtype) for p in kept]
    return kept[0] if len(kept) == 1 else cx.b.cat(kept, dim)


@rule("aten.stack")
def _stack(cx: Context, parts: Sequence[Node], dim: int = 0) -> Node:
    dim %= len(cx.shape)
    shape = list(cx.shape)
    shape[dim] = 1
    return cx.b.cat([cx.b.reshape(cx.b.cast(p, cx.dtype), shape) for p in parts], dim)
