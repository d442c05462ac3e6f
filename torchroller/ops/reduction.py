"""Lowering rules of reductions and of the normalisations built from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import NotLowered
from ..graph import FLOATS, TORCH_DTYPES, Node
from .registry import Context, rule

SETTLED_ROWS = 16  # a factor per channel that is used at least so often is computed first


def _dims(x: Node, dims: Any) -> tuple[int, ...]:
    if dims is None or (isinstance(dims, (list, tuple)) and not dims):
        return tuple(range(len(x.shape)))
    if isinstance(dims, int):
        dims = (dims,)
    return tuple(d % len(x.shape) for d in dims) if x.shape else ()


def _wide(dtype: str) -> str:
    return "float32" if dtype in ("float16", "bfloat16") else dtype


def _count(x: Node, dims: Sequence[int]) -> int:
    return math.prod(x.shape[d] for d in dims)


@rule("aten.sum")
def _sum(cx: Context, x: Node, dims: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Node:
    wide = _wide(cx.dtype)
    return cx.b.cast(cx.b.reduce("sum", cx.b.cast(x, wide), _dims(x, dims), wide, keepdim), cx.dtype)


@rule("aten.mean")
def _mean(cx: Context, x: Node, dims: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Node:
    return cx.b.cast(mean(cx, cx.b.cast(x, _wide(cx.dtype)), _dims(x, dims), keepdim), cx.dtype)


def mean(cx: Context, x: Node, dims: Sequence[int], keepdim: bool) -> Node:
    total = cx.b.reduce("sum", x, dims, x.dtype, keepdim)
    return cx.b.call("mul", x.dtype, total, cx.b.const(1 / _count(x, dims), x.dtype))


@rule("aten.linalg_vector_norm")
def _vector_norm(
    cx: Context, x: Node, order: Any = 2, dims: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Node:
    b, wide = cx.b, _wide(cx.dtype)
    x, over = b.cast(x, wide), _dims(x, dims)
    if order == 0:
        present = b.cast(b.call("ne", "bool", x, b.const(0, wide), compute=wide), wide)
        return b.cast(b.reduce("sum", present, over, wide, keepdim), cx.dtype)
    size = b.call("abs", wide, x)
    if math.isinf(order):
        return b.cast(b.reduce("max" if order > 0 else "min", size, over, wide, keepdim), cx.dtype)
    if order == 1:
        return b.cast(b.reduce("sum", size, over, wide, keepdim), cx.dtype)
    if order == 2:
        total = b.reduce("sum", b.call("mul", wide, x, x), over, wide, keepdim)
        return b.cast(b.call("sqrt", wide, total), cx.dtype)
    total = b.reduce("sum", b.call("pow", wide, size, b.const(order, wide)), over, wide, keepdim)
    return b.cast(b.call("pow", wide, total, b.const(1 / order, wide)), cx.dtype)


@rule("aten.prod")
def _prod(cx: Context, x: Node, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Node:
    wide = _wide(cx.dtype)
    return cx.b.cast(cx.b.reduce("prod", cx.b.cast(x, wide), _dims(x, dim), wide, keepdim), cx.dtype)


@rule("aten.amax")
def _amax(cx: Context, x: Node, dims: Any = (), keepdim: bool = False, fn: str = "max") -> Node:
    if x.dtype == "bool":
        fn = "any" if fn == "max" else "all"
    return cx.b.reduce(fn, x, _dims(x, dims), cx.dtype, keepdim)


@rule("aten.amin")
def _amin(cx: Context, x: Node, dims: Any = (), keepdim: bool = False) -> Node:
    return _amax(cx, x, dims, keepdim, "min")


@rule("aten.any")
def _any(cx: Context, x: Node, dims: Any = None, keepdim: bool = False, fn: str = "any") -> Node:
    return cx.b.cast(cx.b.reduce(fn, cx.b.cast(x, "bool"), _dims(x, dims), "bool", keepdim), cx.dtype)


@rule("aten.all")
def _all(cx: Context, x: Node, dims: Any = None, keepdim: bool = False) -> Node:
    return _any(cx, x, dims, keepdim, "all")


@rule("aten.argmax")
def _argmax(cx: Context, x: Node, dim: int | None = None, keepdim: bool = False, fn: str = "max") -> Node:
    if dim is None:
        flat = cx.b.reshape(x, (x.numel,))
        return cx.b.reshape(extremum(cx, flat, 0, fn)[1], cx.shape)
    if not x.shape:
        return cx.b.const(0, "int64", cx.shape)
    return cx.b.reshape(extremum(cx, x, dim % len(x.shape), fn)[1], cx.shape)


@rule("aten.argmin")
def _argmin(cx: Context, x: Node, dim: int | None = None, keepdim: bool = False) -> Node:
    return _argmax(cx, x, dim, keepdim, "min")


def extremum(cx: Context, x: Node, dim: int, fn: str) -> tuple[Node, Node]:
    """(value, position of its first occurrence) along `dim`; a NaN wins, as in ATen."""
    b = cx.b
    if x.dtype == "bool":
        x = b.cast(x, "int32")
    best = b.reduce(fn, x, (dim,), x.dtype, keepdim=True)
    hit = b.call("eq", "bool", x, best, compute=x.dtype)
    if x.dtype in FLOATS:
        hit = b.call("or", "bool", hit, b.call("isnan", "bool", x, compute=x.dtype))
    length = x.shape[dim]
    shape = [length if d == dim else 1 for d in range(len(x.shape))]
    position = b.reshape(b.iota(length, 0, 1, "int64"), shape)
    first = b.call("where", "int64", hit, position, b.const(length, "int64"))
    return b.reduce(fn, x, (dim,), x.dtype), b.reduce("min", first, (dim,), "int64")


@rule("aten.max")
def _max(cx: Context, x: Node, dim: Any = None, keepdim: bool = False, fn: str = "max") -> Any:
    if isinstance(dim, Node):
        return cx.b.call(f"{fn}imum", cx.dtype, cx.node(x, cx.dtype), cx.node(dim, cx.dtype))
    return _max_dim(cx, fn, x, dim, keepdim)


@rule("aten.min")
def _min(cx: Context, x: Node, dim: Any = None, keepdim: bool = False) -> Any:
    return _max(cx, x, dim, keepdim, "min")


def _max_dim(cx: Context, fn: str, x: Node, dim: int | None, keepdim: bool) -> Any:
    if dim is None:
        return _amax(cx, x, (), False, fn)
    if not x.shape:
        return x, cx.b.const(0, "int64")
    value, position = extremum(cx, x, dim % len(x.shape), fn)
    shape = tuple(int(s) for s in cx.out(0).shape)
    return cx.b.reshape(cx.b.cast(value, x.dtype), shape), cx.b.reshape(position, shape)


@rule("aten.var")
def _var(cx: Context, x: Node, dims: Any = None, *, correction: Any = None, keepdim: bool = False) -> Node:
    return var_mean(cx, x, dims, correction, keepdim, cx.dtype)[0]


@rule("aten.var_mean")
def _var_mean(
    cx: Context, x: Node, dims: Any = None, *, correction: Any = None, keepdim: bool = False
) -> Any:
    return var_mean(cx, x, dims, correction, keepdim, x.dtype)


def moments(cx: Context, x: Node, dims: Sequence[int]) -> tuple[Node, Node]:
    """(mean, mean squared deviation) with kept dimensions; two passes over the row, so nothing cancels."""
    b, dtype = cx.b, x.dtype
    average = mean(cx, x, dims, True)
    centred = b.call("sub", dtype, x, average)
    return average, mean(cx, b.call("mul", dtype, centred, centred), dims, True)


def var_mean(
    cx: Context, x: Node, dims: Any, correction: Any, keepdim: bool, dtype: str
) -> tuple[Node, Node]:
    b = cx.b
    x = b.cast(x, _wide(x.dtype))
    over = _dims(x, dims)
    count = _count(x, over)
    rest = count - (1 if correction is None else correction)
    average, second = moments(cx, x, over)
    ratio = count / rest if rest > 0 else math.nan if rest == 0 and count <= 1 else math.inf
    variance = b.call("mul", x.dtype, second, b.const(ratio, x.dtype))
    if not keepdim:
        shape = [s for d, s in enumerate(x.shape) if d not in over]
        average, variance = b.reshape(average, shape), b.reshape(variance, shape)
    return b.cast(variance, dtype), b.cast(average, dtype)


def affine(cx: Context, x: Node, scale: Node | None, shift: Node | None) -> Node:
    if scale is not None:
        x = cx.b.call("mul", x.dtype, x, cx.b.cast(scale, x.dtype))
    if shift is not None:
        x = cx.b.call("add", x.dtype, x, cx.b.cast(shift, x.dtype))
    return x


def _normalised(cx: Context, x: Node, average: Node | None, second: Node, eps: float) -> tuple[Node, Node]:
    b, dtype = cx.b, x.dtype
    rstd = b.call("rsqrt", dtype, b.call("add", dtype, second, b.const(eps, dtype)))
    centred = x if average is None else b.call("sub", dtype, x, average)
    return b.call("mul", dtype, centred, rstd), rstd


@rule("aten.native_layer_norm")
def _layer_norm(cx: Context, x: Node, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Any:
    dtype = x.dtype
    wide = cx.b.cast(x, _wide(dtype))
    dims = tuple(range(len(x.shape) - len(shape), len(x.shape)))
    average, second = moments(cx, wide, dims)
    y, rstd = _normalised(cx, wide, average, second, eps)
    out = cx.b.cast(affine(cx, y, weight, bias), dtype)
    kind = str(cx.out(1).dtype).removeprefix("torch.")
    return out, cx.b.cast(average, kind), cx.b.cast(rstd, kind)


@rule("aten._fused_rms_norm")
def _rms_norm(cx: Context, x: Node, shape: Sequence[int], weight: Any, eps: float | None) -> Any:
    b, dtype = cx.b, x.dtype
    wide = b.cast(x, _wide(dtype))
    dims = tuple(range(len(x.shape) - len(shape), len(x.shape)))
    if eps is None:
        if dtype not in ("float32", "float64"):
            raise NotLowered(f"rms_norm of {dtype} without eps")
        eps = torch.finfo(TORCH_DTYPES[dtype]).eps
    y, rstd = _normalised(cx, wide, None, mean(cx, b.call("mul", wide.dtype, wide, wide), dims, True), eps)
    kind = str(cx.out(1).dtype).removeprefix("torch.")
    return b.cast(affine(cx, y, weight, None), dtype), b.cast(rstd, kind)


@rule("aten.native_group_norm")
def _group_norm(
    cx: Context, x: Node, weight: Any, bias: Any, n: int, c: int, hxw: int, groups: int, eps: float
) -> Any:
    b, dtype = cx.b, x.dtype
    wide = b.reshape(b.cast(x, _wide(dtype)), (n, groups, c // groups, hxw))
    average, second = moments(cx, wide, (2, 3))
    y, rstd = _normalised(cx, wide, average, second, eps)
    scale, shift = (None if p is None else b.reshape(p, (1, groups, c // groups, 1)) for p in (weight, bias))
    out = b.cast(affine(cx, y, scale, shift), dtype)
    kind = str(cx.out(1).dtype).removeprefix("torch.")
    average, rstd = (b.cast(b.reshape(v, (n, groups)), kind) for v in (average, rstd))
    return b.reshape(out, x.shape), average, rstd


def _per_channel(cx: Context, x: Node, value: Node | None) -> Node | None:
    """A value per channel, in the wide type and spread over x[n, c, ...]."""
    if value is None:
        return None
    return cx.b.reshape(cx.b.cast(value, _wide(x.dtype)), (1, value.shape[0]) + (1,) * (len(x.shape) - 2))


@rule("aten._native_batch_norm_legit_no_training")
def _batch_norm_inference(
    cx: Context,
    x: Node,
    weight: Any,
    bias: Any,
    running_mean: Node,
    running_var: Node,
    momentum: float,
    eps: float,
) -> Any:
    if {1, 2} & cx.used:
        raise NotLowered("a saved statistic of inference batch norm is used")
    wide = cx.b.cast(x, _wide(x.dtype))
    if len(x.shape) > 2 and x.numel >= SETTLED_ROWS * x.shape[1]:
        return cx.b.cast(_scaled(cx, wide, weight, bias, running_mean, running_var, eps), x.dtype), None, None
    average, variance = _per_channel(cx, x, running_mean), _per_channel(cx, x, running_var)
    assert variance is not None
    y, _ = _normalised(cx, wide, average, variance, eps)
    out = affine(cx, y, _per_channel(cx, x, weight), _per_channel(cx, x, bias))
    return cx.b.cast(out, x.dtype), None, None


def _scaled(cx: Context, x: Node, weight: Any, bias: Any, mean: Node, variance: Node, eps: float) -> Node:
    """x * scale + shift, with one scale and shift per channel: a multiply-add behind a convolution."""
    b, kind = cx.b, x.dtype
    mean, variance = b.cast(mean, kind), b.cast(variance, kind)
    scale = b.call("rsqrt", kind, b.call("add", kind, variance, b.const(eps, kind)))
    if weight is not None:
        scale = b.call("mul", kind, scale, b.cast(weight, kind))
    scale = b.settled(scale)
    shift = b.call("neg", kind, b.call("mul", kind, mean, scale))
    if bias is not None:
        shift = b.call("add", kind, shift, b.cast(bias, kind))
    shift = b.settled(shift)
    per_channel = (x.shape[1], *(1,) * (len(x.shape) - 2))
    product = b.call("mul", kind, x, b.reshape(scale, per_channel))
    return b.call("add", kind, product, b.reshape(shift, per_channel))


@rule("aten._native_batch_norm_legit_functional")
def _batch_norm_training(
    cx: Context,
    x: Node,
    weight: Any,
    bias: Any,
    running_mean: Node,
    running_var: Node,
    training: bool,
    momentum: float,
    eps: float,
) -> Any:
    if not training:
        out, *_ = _batch_norm_inference(cx, x, weight, bias, running_mean, running_var, momentum, eps)
        return out, None, None, running_mean, running_var
    b = cx.b
    wide = b.cast(x, _wide(x.dtype))
    kind = wide.dtype
    dims = (0, *range(2, len(x.shape)))
    count = _count(x, dims)
    average, second = moments(cx, wide, dims)
    y, rstd = _normalised(cx, wide, average, second, eps)
    out = b.cast(affine(cx, y, _per_channel(cx, x, weight), _per_channel(cx, x, bias)), x.dtype)
    average, rstd, second = (b.reshape(v, (x.shape[1],)) for v in (average, rstd, second))
    unbiased = b.call("mul", kind, second, b.const(count / max(count - 1, 1), kind))

    def blend(old: Node, new: Node) -> Node:
        kept = b.call("mul", kind, b.cast(old, kind), b.const(1 - momentum, kind))
        return b.cast(b.call("add", kind, kept, b.call("mul", kind, new, b.const(momentum, kind))), old.dtype)

    saved = (b.cast(v, str(cx.out(1).dtype).removeprefix("torch.")) for v in (average, rstd))
    return out, *saved, blend(running_mean, average), blend(running_var, unbiased)


@rule("aten._softmax")
def _softmax(cx: Context, x: Node, dim: int, half_to_float: Any = False) -> Node:
    b = cx.b
    wide = b.cast(x, _wide(cx.dtype))
    if not x.shape:
        return b.call("add", cx.dtype, b.call("sub", cx.dtype, x, x), b.const(1, cx.dtype))
    e, total, _ = _exponentials(cx, wide, dim % len(x.shape))
    return b.cast(b.call("div", wide.dtype, e, total), cx.dtype)


@rule("aten._safe_softmax")
def _safe_softmax(cx: Context, x: Node, dim: int, dtype: Any = None) -> Node:
    """Softmax that gives zeros for a row of -inf."""
    if not x.shape:
        raise NotLowered("a 0-d tensor")
    b = cx.b
    wide = b.cast(x, _wide(cx.dtype))
    e, total, _ = _exponentials(cx, wide, dim % len(x.shape))
    top = b.reduce("fmax", wide, (dim % len(x.shape),), wide.dtype, keepdim=True)
    nothing = b.call("eq", "bool", top, b.const(float("-inf"), wide.dtype), compute=wide.dtype)
    ratio = b.call("div", wide.dtype, e, total)
    return b.cast(b.call("where", wide.dtype, nothing, b.const(0, wide.dtype), ratio), cx.dtype)


@rule("aten._log_softmax")
def _log_softmax(cx: Context, x: Node, dim: int, half_to_float: bool = False) -> Node:
    b = cx.b
    wide = b.cast(x, _wide(cx.dtype))
    if not x.shape:
        return b.call("sub", cx.dtype, x, x)
    _, total, centred = _exponentials(cx, wide, dim % len(x.shape))
    return b.cast(b.call("sub", wide.dtype, centred, b.call("log", wide.dtype, total)), cx.dtype)


def _exponentials(cx: Context, x: Node, dim: int) -> tuple[Node, Node, Node]:
    b, dtype = cx.b, x.dtype
    # "fmax" skips NaN; the sum brings it back into every element of the row, as in ATen
    top = b.reduce("fmax", x, (dim,), dtype, keepdim=True)
    centred = b.call("sub", dtype, x, top)
    e = b.call("exp", dtype, centred)
    return e, b.reduce("sum", e, (dim,), dtype, keepdim=True), centred
