"""Images in lowering rules: channels last inside a graph, as they lie where nothing else needs them otherwise.

Convolutions and pooling keep channels innermost, so that nothing is transposed from one layer to the next. Where an
image comes into the graph with its channels first and the result goes out of it in the same way, both would be turned
for one layer alone: there the layer works along the rows of the image.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import fx

from ..graph import Node, contiguous_strides
from .registry import Context

_FAR = 16  # users of a value, and of what is computed from it, that are looked at
_ROW = 8  # positions of a row from which on vectors along it pay


@dataclass(frozen=True)
class Image:
    """`value` is [n, c, *in] if `planar`, else [n, *in, c]."""

    value: Node
    planar: bool

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.value.shape[2:] if self.planar else self.value.shape[1:-1]

    @property
    def channels(self) -> int:
        return self.value.shape[1 if self.planar else -1]

    def shape(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Of an image with the same channels and other sizes."""
        n, c = self.value.shape[0], self.channels
        return (n, c, *sizes) if self.planar else (n, *sizes, c)

    def padded(self, cx: Context, low: Sequence[int], high: Sequence[int], fill: float | int) -> Image:
        """With `low` and `high` positions of `fill` around its sizes."""
        below, above = ([0, 0, *v] if self.planar else [0, *v, 0] for v in (low, high))
        return Image(cx.b.pad(self.value, below, above, fill, gather=True), self.planar)

    def by_position(self, cx: Context, value: Node) -> Node:
        """[*out] so that it meets an image of these sizes."""
        return value if self.planar else cx.b.reshape(value, (*value.shape, 1))

    def by_channel(self, cx: Context, value: Node) -> Node:
        """[c] so that it meets the image."""
        return cx.b.reshape(value, (self.channels, *(1,) * len(self.sizes))) if self.planar else value

    def windows(self, cx: Context, window: Sequence[int], stride: Sequence[int], dilation: Sequence[int],
                out: Sequence[int]) -> list[tuple[tuple[int, ...], Node]]:  # fmt: skip
        """Per tap of the window: its place, and what all positions of the output read there."""
        found = []
        for tap in product(*(range(k) for k in window)):
            value = self.value
            for d, (t, s, dil, size) in enumerate(zip(tap, stride, dilation, out), 2 if self.planar else 1):
                value = cx.b.slice(value, d, t * dil, size, s)
            found.append((tap, value))
        return found

    def first(self, cx: Context, value: Node) -> Node:
        """A result with the layout of this image as [n, c, *out]."""
        return value if self.planar else first(cx, value)


def image_of(cx: Context, x: Node) -> Image:
    """[n, c, *in] in the layout that its layer works in."""
    if stays_planar(cx, x) and x.shape[-1] >= _ROW:
        return Image(x, True)
    return Image(last(cx, x), False)


def stays_planar(cx: Context, x: Node) -> bool:
    """Whether x comes into the graph, and the result goes out of it, with channels first."""
    whole = x.kind == "input" and len(x.shape) > 2 and x.strides == contiguous_strides(x.shape)
    outs = cx.meta if isinstance(cx.meta, (tuple, list)) else (cx.meta,)
    return whole and all(m.is_contiguous() for m in outs) and cx.source is not None and _leaves(cx.source)


def _leaves(node: fx.Node) -> bool:
    """Whether a value goes out of the graph, through operators of one element at a time at most."""
    todo, seen = [node], {node}
    while todo:
        for user in todo.pop().users:
            if user.op == "output" or user in seen:
                continue
            tags = getattr(user.target, "tags", ())
            passes_on = user.target in (operator.getitem, torch.ops.aten.copy_.default)
            if len(seen) > _FAR or not (torch.Tag.pointwise in tags or passes_on):
                return False
            seen.add(user)
            todo.append(user)
    return True


def last(cx: Context, x: Node) -> Node:
    """[n, c, *in] as [n, *in, c]."""
    return cx.b.permute(x, (0, *range(2, len(x.shape)), 1))


def first(cx: Context, x: Node) -> Node:
    """[n, *in, c] as [n, c, *in]."""
    return cx.b.permute(x, (0, len(x.shape) - 1, *range(1, len(x.shape) - 1)))
