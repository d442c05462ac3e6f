"""Lowering rules of convolutions: channels last inside, whatever the layout of the arguments (images.py).

A convolution reads x[n, *in, g, c] through a padded view and gives [n, *out, g, m]; its result is a permuted view, so
that what follows keeps channels innermost. Windows of one tap without strides are matrix products; a filter per
channel is a sum over taps, vectorised over the channels, or over the positions where channels come first. A transposed
convolution of stride s is s plain ones, one for each remainder of the output position, whose results are interleaved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

from ..emit.split import HOW
from ..errors import NotLowered
from ..graph import Node, base_of, contiguous_strides
from ..tile import padded
from .contraction import DOT_TYPES
from .images import Image, first, image_of, last, stays_planar
from .registry import Context, rule

MAX_TAPS = 64  # of a depthwise window: its taps are written out
_COLUMNS = 32  # that a tile of a product is wide at least
_FILLED = 0.8  # share of its columns that the positions of an image must fill to be the columns of a product


@rule("aten.convolution", "aten._convolution")
def _convolution(cx: Context, x: Node, w: Node, bias: Node | None, stride: Sequence[int], padding: Sequence[int],
                 dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
                 *_: Any) -> Node:  # fmt: skip
    if x.dtype != w.dtype or x.dtype not in DOT_TYPES:
        raise NotLowered(f"a convolution of {x.dtype} and {w.dtype}")
    rank = len(x.shape) - 2
    stride, padding, dilation = (_each(v, rank) for v in (stride, padding, dilation))
    if transposed:
        value = _transposed(cx, last(cx, x), w, stride, padding, dilation, groups)
    else:
        window = w.shape[2:]
        if w.shape[1] == 1 and groups > 1 and math.prod(window) <= MAX_TAPS:
            return _depthwise(cx, x, w, bias, stride, padding, dilation)
        if groups == 1 and set(window) == {1} and set(padding) == {0}:
            if set(stride) == {1}:
                return _product(cx, x, w, bias)
            if _planes(x) and x.dtype == "float32" and _splits(cx):  # only the places that count are copied
                for d, (size, step) in enumerate(zip(cx.shape[2:], stride), 2):
                    x = cx.b.slice(x, d, 0, size, step)
                return _product(cx, x, w, bias)
        border = [0, *padding, 0]
        filters = last_filters(cx, w, groups)
        value = convolve(cx, last(cx, x), border, border, filters, stride, dilation)
    if bias is not None:
        value = cx.b.call("add", "float32", value, cx.b.cast(bias, "float32"))
    return first(cx, cx.b.cast(value, cx.dtype))


def last_filters(cx: Context, w: Node, groups: int) -> Node:
    """[g * m, c, *window] as [*window, g, c, m]."""
    rank = len(w.shape) - 2
    split = cx.b.reshape(w, (groups, w.shape[0] // groups, *w.shape[1:]))
    return cx.b.permute(split, (*range(3, 3 + rank), 0, 2, 1))


def convolve(cx: Context, image: Node, low: Sequence[int], high: Sequence[int], filters: Node,
             stride: Sequence[int], dilation: Sequence[int]) -> Node:  # fmt: skip
    """[n, *out, g * m] from [n, *in, g * c] with a border, and filters [*window, g, c, m]."""
    b = cx.b
    if any(low) or any(high):
        image = b.pad(image, low, high, 0, gather=True)
    *_, groups, channels, columns = filters.shape
    image = b.reshape(image, (*image.shape[:-1], groups, channels))
    out = b.conv(image, filters, stride, dilation)
    return b.reshape(out, (*out.shape[:-2], groups * columns))


def _product(cx: Context, x: Node, w: Node, bias: Node | None) -> Node:
    """A window of one tap: rows are positions and columns filters, or the other way round where channels come first."""
    b, (n, c, *sizes) = cx.b, x.shape
    positions, matrix = math.prod(sizes), b.reshape(w, w.shape[:2])
    planar = positions >= _FILLED * padded(positions, _COLUMNS) and stays_planar(cx, x)
    if x.dtype == "float32" and _splits(cx):
        # Filters are the operand that can come split from memory, and that is the right one. An H100 multiplies tiles
        # that it has to turn at a third of the rate: channels are brought together first.
        image = last(cx, x)
        rows = b.reshape(b.settled(image) if _planes(x) else image, (n, positions, c))
        filters = b.expand(b.reshape(b.permute(matrix, (1, 0)), (1, c, w.shape[0])), (n, c, w.shape[0]))
        value = b.permute(b.dot(rows, filters, "float32"), (0, 2, 1))
        planar = True
    elif planar:
        filters = b.expand(b.reshape(matrix, (1, *matrix.shape)), (n, *matrix.shape))
        value = b.dot(filters, b.reshape(x, (n, c, positions)), "float32")
    else:
        flat = b.reshape(last(cx, x), (n * positions, c))
        value = b.dot(flat, b.permute(matrix, (1, 0)), "float32")
    if bias is not None:
        added = b.cast(bias, "float32")
        value = b.call("add", "float32", value, b.reshape(added, (w.shape[0], 1)) if planar else added)
    value = b.cast(value, cx.dtype)
    return b.reshape(value, cx.shape) if planar else first(cx, b.reshape(value, (n, *sizes, w.shape[0])))


def _planes(x: Node) -> bool:
    """Does x come into the graph with channels first?"""
    root = base_of(x)
    return root.kind == "input" and root.strides == contiguous_strides(root.shape)


def _splits(cx: Context) -> bool:
    """Does the device make products of float32 from parts (emit/split.py)?"""
    from ..pipeline import device_spec  # which lowers with these rules

    return device_spec(cx.out().device).float32_dot == HOW


def _depthwise(cx: Context, x: Node, w: Node, bias: Node | None, stride: Sequence[int], padding: Sequence[int],
               dilation: Sequence[int]) -> Node:  # fmt: skip
    b, out = cx.b, cx.shape[2:]
    window, rank = w.shape[2:], len(x.shape) - 2
    times = w.shape[0] // x.shape[1]
    image = image_of(cx, x) if times == 1 else Image(last(cx, x), False)
    split = b.permute(b.reshape(w, (x.shape[1], times, *window)), (*range(2, 2 + rank), 0, 1))
    # Vectors along the channels read the factors of one tap as a run; along positions there is one factor for all.
    filters = b.cast(split, "float32") if image.planar else b.settled(b.cast(split, "float32"))
    total = None
    bordered = image.padded(cx, padding, padding, 0)
    for tap, value in bordered.windows(cx, window, stride, dilation, out):
        factor = filters
        for t in tap:
            factor = b.select(factor, 0, t)
        value = b.cast(value, "float32")
        if times == 1:
            factor = image.by_channel(cx, b.reshape(factor, (image.channels,)))
        else:
            value = b.reshape(value, (*value.shape, 1))
        term = b.call("mul", "float32", value, factor)
        total = term if total is None else b.call("add", "float32", total, term)
    assert total is not None
    if times > 1:
        total = b.reshape(total, (x.shape[0], *out, w.shape[0]))
    if bias is not None:
        added = b.cast(bias, "float32")
        total = b.call("add", "float32", total, image.by_channel(cx, added) if times == 1 else added)
    return image.first(cx, b.cast(total, cx.dtype))


def _transposed(cx: Context, image: Node, w: Node, stride: Sequence[int], padding: Sequence[int],
                dilation: Sequence[int], groups: int) -> Node:  # fmt: skip
    """out[o] = sum of x[i] w[k] over i * stride - padding + k * dilation = o, one remainder of o / stride at a time."""
    b = cx.b
    sizes = cx.shape[2:]
    rank = len(sizes)
    channels, columns = w.shape[0] // groups, w.shape[1]
    split = b.reshape(w, (groups, channels, *w.shape[1:]))
    filters = b.permute(split, (*range(3, 3 + rank), 0, 1, 2))  # [*window, g, c, m]
    lengths = [-(-o // s) for o, s in zip(sizes, stride)]
    parts: dict[tuple[int, ...], Node] = {}
    for phase in product(*(range(s) for s in stride)):
        taken, reached = filters, True  # reached: some tap of the window meets these positions
        low, high, steps = [0] * (rank + 2), [0] * (rank + 2), []
        for d in range(rank):
            s, dil, size = stride[d], dilation[d], image.shape[1 + d]
            taps = [k for k in range(filters.shape[d]) if (phase[d] + padding[d] - k * dil) % s == 0]
            if not taps:
                reached = False
                break
            start = (phase[d] + padding[d] - taps[-1] * dil) // s
            step = dil // math.gcd(s, dil)
            taken = b.slice(taken, d, taps[-1], len(taps), -(s // math.gcd(s, dil)))
            low[1 + d] = -start
            high[1 + d] = lengths[d] + start + (len(taps) - 1) * step - size
            steps.append(step)
        if not reached:
            shape = (image.shape[0], *lengths, groups * columns)
            parts[phase] = b.const(0.0, "float32", shape)
            continue
        parts[phase] = convolve(cx, image, low, high, taken, (1,) * rank, steps)
    return _interleaved(cx, parts, stride, sizes)


def _interleaved(
    cx: Context, parts: dict[tuple[int, ...], Node], stride: Sequence[int], sizes: Sequence[int]
) -> Node:
    """Joins results per remainder, [n, *lengths, c] each, to [n, *sizes, c]."""
    b = cx.b
    for d in reversed(range(len(stride))):
        joined: dict[tuple[int, ...], Node] = {}
        for phase in dict.fromkeys(p[:d] for p in parts):
            row = [parts[(*phase, r)] for r in range(stride[d])]
            at = 1 + d
            n, c = row[0].shape[:at], row[0].shape[at + 1 :]
            if len(row) > 1:
                row = [b.reshape(v, (*n, v.shape[at], 1, *c)) for v in row]
                whole = b.cat(row, at + 1)
                whole = b.reshape(whole, (*n, whole.shape[at] * stride[d], *c))
            else:
                whole = row[0]
            joined[phase] = b.slice(whole, at, 0, sizes[d])
        parts = joined
    return parts[()]


def _each(value: Sequence[int], rank: int) -> tuple[int, ...]:
    """One number per spatial dimension."""
    value = tuple(int(v) for v in value)
    return value * rank if len(value) == 1 else value
