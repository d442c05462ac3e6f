"""Lowering rules of convolutions: channels last inside, whatever the layout of the arguments.

A convolution reads x[n, *in, g, c] through a padded view and gives [n, *out, g, m]; its result is a permuted view, so
that what follows keeps channels innermost. Windows of one tap without strides are matrix products; a filter per
channel is a sum over taps, vectorised over the channels. A transposed convolution of stride s is s plain ones, one
for each remainder of the output position, whose results are interleaved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

from ..errors import NotLowered
from ..graph import Node
from .contraction import DOT_TYPES
from .registry import Context, rule

MAX_TAPS = 64  # of a depthwise window: its taps are written out


@rule("aten.convolution", "aten._convolution")
def _convolution(cx: Context, x: Node, w: Node, bias: Node | None, stride: Sequence[int], padding: Sequence[int],
                 dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
                 *_: Any) -> Node:  # fmt: skip
    if x.dtype != w.dtype or x.dtype not in DOT_TYPES:
        raise NotLowered(f"a convolution of {x.dtype} and {w.dtype}")
    rank = len(x.shape) - 2
    stride, padding, dilation = (_each(v, rank) for v in (stride, padding, dilation))
    image = last(cx, x)
    if transposed:
        value = _transposed(cx, image, w, stride, padding, dilation, groups)
    else:
        window = w.shape[2:]
        channels = w.shape[1]
        if channels == 1 and groups > 1 and math.prod(window) <= MAX_TAPS:
            value = _depthwise(cx, image, w, stride, padding, dilation)
        elif groups == 1 and set(window) == set(stride) == {1} and set(padding) == {0}:
            value = _product(cx, image, w)
        else:
            border = [0, *padding, 0]
            value = convolve(cx, image, border, border, last_filters(cx, w, groups), stride, dilation)
    if bias is not None:
        value = cx.b.call("add", "float32", value, cx.b.cast(bias, "float32"))
    return first(cx, cx.b.cast(value, cx.dtype))


def last(cx: Context, x: Node) -> Node:
    """[n, c, *in] as [n, *in, c]."""
    return cx.b.permute(x, (0, *range(2, len(x.shape)), 1))


def first(cx: Context, x: Node) -> Node:
    """[n, *in, c] as [n, c, *in]."""
    return cx.b.permute(x, (0, len(x.shape) - 1, *range(1, len(x.shape) - 1)))


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


def _product(cx: Context, image: Node, w: Node) -> Node:
    flat = cx.b.reshape(image, (math.prod(image.shape[:-1]), image.shape[-1]))
    filters = cx.b.permute(cx.b.reshape(w, w.shape[:2]), (1, 0))
    return cx.b.reshape(cx.b.dot(flat, filters, "float32"), (*image.shape[:-1], w.shape[0]))


def windows(cx: Context, image: Node, window: Sequence[int], stride: Sequence[int], dilation: Sequence[int],
            out: Sequence[int]) -> list[tuple[tuple[int, ...], Node]]:  # fmt: skip
    """Per tap of the window: its place, and what all positions of the output read there, [n, *out, c]."""
    found = []
    for tap in product(*(range(k) for k in window)):
        value = image
        for d, (t, s, dil, size) in enumerate(zip(tap, stride, dilation, out), 1):
            value = cx.b.slice(value, d, t * dil, size, s)
        found.append((tap, value))
    return found


def _depthwise(cx: Context, image: Node, w: Node, stride: Sequence[int], padding: Sequence[int],
               dilation: Sequence[int]) -> Node:  # fmt: skip
    b = cx.b
    channels, window = image.shape[-1], w.shape[2:]
    times = w.shape[0] // channels
    rank = len(window)
    border = [0, *padding, 0]
    out = [(size + 2 * p - d * (k - 1) - 1) // s + 1
           for size, p, d, k, s in zip(image.shape[1:], padding, dilation, window, stride)]  # fmt: skip
    split = b.reshape(w, (channels, times, *window))
    filters = b.settled(b.cast(b.permute(split, (*range(2, 2 + rank), 0, 1)), "float32"))
    total = None
    for tap, value in windows(
        cx, b.pad(image, border, border, 0, gather=True), window, stride, dilation, out
    ):
        factor = filters
        for t in tap:
            factor = b.select(factor, 0, t)
        value = b.cast(value, "float32")
        if times == 1:
            factor = b.reshape(factor, (channels,))
        else:
            value = b.reshape(value, (*value.shape, 1))
        term = b.call("mul", "float32", value, factor)
        total = term if total is None else b.call("add", "float32", total, term)
    assert total is not None
    return b.reshape(total, (image.shape[0], *out, channels * times))


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
