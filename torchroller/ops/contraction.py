"""Lowering rules of matrix products; bias, activation and residual are fused later, as an epilogue."""

from __future__ import annotations

from typing import Any

from ..errors import NotLowered
from ..graph import Node
from .registry import Context, rule

DOT_TYPES = ("float32", "float16", "bfloat16")


def dot(cx: Context, a: Node, b: Node) -> Node:
    if a.dtype != b.dtype or a.dtype not in DOT_TYPES:
        raise NotLowered(f"a matrix product of {a.dtype} and {b.dtype}")
    return cx.b.dot(a, b, "float32")


@rule("aten.mm", "aten.bmm")
def _mm(cx: Context, a: Node, b: Node) -> Node:
    return cx.b.cast(dot(cx, a, b), cx.dtype)


@rule("aten.addmm", "aten.baddbmm")
def _addmm(cx: Context, bias: Node, a: Node, b: Node, *, beta: Any = 1, alpha: Any = 1) -> Node:
    value = dot(cx, a, b)
    if alpha != 1:
        value = cx.b.call("mul", "float32", value, cx.b.const(alpha, "float32"))
    if beta != 0:
        term = cx.b.cast(bias, "float32")
        if beta != 1:
            term = cx.b.call("mul", "float32", term, cx.b.const(beta, "float32"))
        value = cx.b.call("add", "float32", value, term)
    return cx.b.cast(value, cx.dtype)


@rule("aten.linear")
def _linear(cx: Context, x: Node, weight: Node, bias: Node | None = None) -> Node:
    b = cx.b
    flat = b.reshape(x, (x.numel // x.shape[-1], x.shape[-1]))
    value = dot(cx, flat, b.permute(weight, (1, 0)))
    if bias is not None:
        value = b.call("add", "float32", value, b.cast(bias, "float32"))
    return b.reshape(b.cast(value, cx.dtype), cx.shape)


@rule("aten.mv")
def _mv(cx: Context, a: Node, x: Node) -> Node:
    value = dot(cx, cx.b.reshape(x, (1, x.shape[0])), cx.b.permute(a, (1, 0)))
    return cx.b.reshape(cx.b.cast(value, cx.dtype), cx.shape)
