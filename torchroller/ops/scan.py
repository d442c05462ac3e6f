"""Lowering rules of running sums, products and log-sum-exps."""

from __future__ import annotations

from typing import Any

from ..graph import FLOATS, Node
from .registry import Context, rule


def _scan(cx: Context, x: Node, dim: int, fn: str) -> Node:
    """Floating-point numbers run in float64, as in ATen's CPU kernels, so long rows keep their digits."""
    b, dtype = cx.b, cx.dtype
    x = b.cast(x, dtype)
    if not x.shape or x.shape[dim] == 1:
        return x
    wide = "float64" if dtype in FLOATS else "int64"
    return b.cast(b.scan(fn, b.cast(x, wide), dim % len(x.shape), wide), dtype)


@rule("aten.cumsum")
def _cumsum(cx: Context, x: Node, dim: int, *, dtype: Any = None) -> Node:
    return _scan(cx, x, dim, "add")


@rule("aten.cumprod")
def _cumprod(cx: Context, x: Node, dim: int, *, dtype: Any = None) -> Node:
    return _scan(cx, x, dim, "mul")


@rule("aten.logcumsumexp")
def _logcumsumexp(cx: Context, x: Node, dim: int) -> Node:
    return _scan(cx, x, dim, "logaddexp")
