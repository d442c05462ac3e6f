"""Lowering rules of pooling: windows as taps of a padded view, in the layout that images.py chooses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

from ..errors import NotLowered
from ..graph import FLOATS, Node
from .conv import MAX_TAPS
from .images import Image, first, image_of, last
from .reduction import mean
from .registry import Context, rule


def _pair(value: Any, rank: int, default: Sequence[int] = ()) -> tuple[int, ...]:
    value = (value,) if isinstance(value, int) else tuple(int(v) for v in value)
    if not value:
        return tuple(default)
    return value * rank if len(value) == 1 else value


def _small(window: Sequence[int]) -> None:
    if math.prod(window) > MAX_TAPS:
        raise NotLowered(
            f"a pooling window of {'x'.join(map(str, window))}: more than {MAX_TAPS} taps are not written out"
        )


def _batched(cx: Context, x: Node, rank: int) -> Node:
    return x if len(x.shape) == rank + 2 else cx.b.reshape(x, (1, *x.shape))


def _image(cx: Context, x: Node, rank: int) -> Image:
    return image_of(cx, x) if len(x.shape) == rank + 2 else Image(last(cx, _batched(cx, x, rank)), False)


def _bordered(cx: Context, image: Image, window: Sequence[int], stride: Sequence[int], padding: Sequence[int],
              dilation: Sequence[int], out: Sequence[int], fill: float | int) -> Image:  # fmt: skip
    """The image with its border; ceil_mode may read further than the padding."""
    high = [max(p, (o - 1) * s + d * (k - 1) + 1 - size - p) for o, s, d, k, size, p in
            zip(out, stride, dilation, window, image.sizes, padding)]  # fmt: skip
    return image.padded(cx, padding, high, fill)


@rule("aten.max_pool2d_with_indices", "aten.max_pool3d_with_indices")
def _max_pool(cx: Context, x: Node, window: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
              ceil_mode: bool = False) -> tuple[Node | None, Node | None]:  # fmt: skip
    """Value and, where it is used, the flat position in its image of the first largest element; a NaN wins."""
    b = cx.b
    values = cx.out(0)
    window = tuple(window) if not isinstance(window, int) else (window,)
    rank = max(len(window), 2)
    window = _pair(window, rank)
    stride, padding, dilation = _pair(stride, rank, window), _pair(padding, rank), _pair(dilation, rank)
    _small(window)
    image = _image(cx, x, rank)
    shape = tuple(int(s) for s in values.shape)
    out = shape[-rank:]
    lowest = -math.inf if x.dtype in FLOATS else None
    if lowest is None:
        raise NotLowered(f"max pooling of {x.dtype}")
    bordered = _bordered(cx, image, window, stride, padding, dilation, out, lowest)
    best = where = None
    if 1 in cx.used:
        best = b.const(lowest, "float64" if x.dtype == "float64" else "float32", image.shape(out))
        inside = _first_inside(cx, image.sizes, out, stride, padding, dilation)
        where = b.expand(image.by_position(cx, inside), best.shape)
    for tap, value in bordered.windows(cx, window, stride, dilation, out):
        value = b.cast(value, "float32" if x.dtype != "float64" else x.dtype)
        if 1 not in cx.used:
            best = value if best is None else b.call("maximum", value.dtype, best, value)
            continue
        at = None
        for d in range(rank):
            start = b.iota(out[d], tap[d] * dilation[d] - padding[d], stride[d], "int64")
            start = b.reshape(start, (out[d],) + (1,) * (rank - 1 - d))
            size = image.sizes[d]
            at = (
                start
                if at is None
                else b.call("add", "int64", b.call("mul", "int64", at, b.const(size, "int64")), start)
            )
        assert at is not None and best is not None and where is not None
        better = b.call("gt", "bool", value, best, compute=value.dtype)
        better = b.call("or", "bool", better, b.call("isnan", "bool", value, compute=value.dtype))
        best = b.call("where", value.dtype, better, value, best)
        at = b.expand(image.by_position(cx, at), value.shape)
        where = b.call("where", "int64", better, at, where)
    assert best is not None
    result = b.reshape(image.first(cx, b.cast(best, x.dtype)), shape)
    return result, None if where is None else b.reshape(image.first(cx, where), shape)


def _first_inside(cx: Context, sizes: Sequence[int], out: Sequence[int], stride: Sequence[int],
                  padding: Sequence[int], dilation: Sequence[int]) -> Node:  # fmt: skip
    """Flat position of the first tap of each window that lies inside the image."""
    b = cx.b
    total: Node | None = None
    for d, (size, o, s, p, dil) in enumerate(zip(sizes, out, stride, padding, dilation)):
        start = b.iota(o, -p, s, "int64")
        later = b.call(
            "imod", "int64", b.call("add", "int64", start, b.const(p * dil, "int64")), b.const(dil, "int64")
        )
        outside = b.call("lt", "bool", start, b.const(0, "int64"), compute="int64")
        at = b.reshape(b.call("where", "int64", outside, later, start), (o,) + (1,) * (len(out) - 1 - d))
        total = (
            at
            if total is None
            else b.call("add", "int64", b.call("mul", "int64", total, b.const(size, "int64")), at)
        )
    assert total is not None
    return total


@rule("aten.max_pool2d")
def _max_pool_plain(cx: Context, x: Node, *args: Any) -> Node:
    inner = Context(cx.b, (cx.meta, cx.meta), frozenset({0}), source=cx.source)
    value = _max_pool(inner, x, *args)[0]
    assert value is not None
    return value


@rule("aten.avg_pool2d", "aten.avg_pool3d", "aten.avg_pool1d")
def _avg_pool(cx: Context, x: Node, window: Any, stride: Any = (), padding: Any = 0, ceil_mode: bool = False,
              count_include_pad: bool = True, divisor_override: int | None = None) -> Node:  # fmt: skip
    b = cx.b
    if x.dtype not in FLOATS:
        raise NotLowered(f"average pooling of {x.dtype}")
    window = (window,) if isinstance(window, int) else tuple(window)
    rank = len(window) if len(x.shape) < 4 or len(window) > 1 else 2
    window = _pair(window, rank)
    stride, padding = _pair(stride, rank, window), _pair(padding, rank)
    _small(window)
    image = _image(cx, x, rank)
    out, wide = cx.shape[-rank:], "float64" if x.dtype == "float64" else "float32"
    one = (1,) * rank
    bordered = _bordered(cx, image, window, stride, padding, one, out, 0)
    total = None
    for _, value in bordered.windows(cx, window, stride, one, out):
        value = b.cast(value, wide)
        total = value if total is None else b.call("add", wide, total, value)
    assert total is not None
    if divisor_override is not None:
        scale: Node = b.const(1 / divisor_override, wide)
    else:
        scale = _share(cx, window, stride, padding, out, image.sizes, count_include_pad, wide)
        scale = image.by_position(cx, scale) if scale.shape else scale
    return b.reshape(image.first(cx, b.cast(b.call("mul", wide, total, scale), x.dtype)), cx.shape)


def _share(cx: Context, window: Sequence[int], stride: Sequence[int], padding: Sequence[int], out: Sequence[int],
           sizes: Sequence[int], count_include_pad: bool, wide: str) -> Node:  # fmt: skip
    """1 / how many positions each output averages: a number where all have the same, else [*out]."""
    b = cx.b
    counts: list[list[int]] = []
    for k, s, p, o, size in zip(window, stride, padding, out, sizes):
        edge = p if count_include_pad else 0
        starts = [i * s - p for i in range(o)]
        counts.append([max(0, min(a + k, size + edge) - max(a, -edge)) for a in starts])
    if all(len(set(c)) == 1 for c in counts):
        return b.const(1 / math.prod(c[0] for c in counts), wide)
    total: Node | None = None
    for d, (k, s, p, o, size) in enumerate(zip(window, stride, padding, out, sizes)):
        edge = p if count_include_pad else 0
        start = b.iota(o, -p, s, "int64")
        end = b.call(
            "iminimum",
            "int64",
            b.call("add", "int64", start, b.const(k, "int64")),
            b.const(size + edge, "int64"),
        )
        begin = b.call("imaximum", "int64", start, b.const(-edge, "int64"))
        length = b.cast(b.call("sub", "int64", end, begin), wide)
        length = b.reshape(length, (o,) + (1,) * (len(out) - 1 - d))
        total = length if total is None else b.call("mul", wide, total, length)
    assert total is not None
    return b.call("div", wide, b.const(1.0, wide), total)


@rule(
    "aten._adaptive_avg_pool2d",
    "aten.adaptive_avg_pool2d",
    "aten._adaptive_avg_pool3d",
    "aten.adaptive_avg_pool1d",
)
def _adaptive(cx: Context, x: Node, size: Sequence[int]) -> Node:
    """Windows of equal size where the output divides the input; else each tap is read where its window has it."""
    b = cx.b
    if x.dtype not in FLOATS:
        raise NotLowered(f"average pooling of {x.dtype}")
    size = _pair(size, 1)
    rank = len(size)
    wide = "float64" if x.dtype == "float64" else "float32"
    image = last(cx, _batched(cx, x, rank))
    n, *sizes, c = image.shape
    out = cx.shape[-rank:]
    if all(i % o == 0 for i, o in zip(sizes, out)):
        parts = [v for i, o in zip(sizes, out) for v in (o, i // o)]
        value = mean(
            cx, b.reshape(b.cast(image, wide), (n, *parts, c)), [2 + 2 * d for d in range(rank)], False
        )
        return b.reshape(first(cx, b.cast(value, x.dtype)), cx.shape)
    spans = [[(o * i // m, -(-((o + 1) * i) // m)) for o in range(m)] for i, m in zip(sizes, out)]
    longest = [max(e - s for s, e in span) for span in spans]
    _small(longest)
    shape = (n, *out, c)
    starts, lengths = [], []
    for d, (i, m) in enumerate(zip(sizes, out)):

        def spread(v: Node, d: int = d, m: int = m) -> Node:
            return b.reshape(v, (m,) + (1,) * (rank - d))

        number = b.iota(m, 0, 1, "int64")
        start = b.call(
            "idiv", "int64", b.call("mul", "int64", number, b.const(i, "int64")), b.const(m, "int64")
        )
        after = b.call(
            "mul", "int64", b.call("add", "int64", number, b.const(1, "int64")), b.const(i, "int64")
        )
        end = b.call(
            "idiv", "int64", b.call("add", "int64", after, b.const(m - 1, "int64")), b.const(m, "int64")
        )
        starts.append(spread(b.settled(start)))
        lengths.append(spread(b.settled(b.call("sub", "int64", end, start))))
    total = None
    for tap in product(*(range(k) for k in longest)):
        index: list[Any] = [0]
        inside = None
        for d, t in enumerate(tap):
            within = b.call("lt", "bool", b.const(t, "int64"), lengths[d], compute="int64")
            at = b.call(
                "where", "int64", within, b.call("add", "int64", starts[d], b.const(t, "int64")), starts[d]
            )
            index.append(b.expand(at, shape))
            inside = within if inside is None else b.call("and", "bool", inside, within)
        value = b.cast(b.gather(image, [*index, rank + 1], shape), wide)
        assert inside is not None
        value = b.call("where", wide, inside, value, b.const(0.0, wide))
        total = value if total is None else b.call("add", wide, total, value)
    count = None
    for length in lengths:
        part = b.cast(length, wide)
        count = part if count is None else b.call("mul", wide, count, part)
    assert total is not None and count is not None
    return b.reshape(first(cx, b.cast(b.call("div", wide, total, count), x.dtype)), cx.shape)
