"""Lowering rules of matrix products; bias, activation and residual are fused later, as an epilogue."""

from __future__ import annotations

from typing import Any

from ..errors import NotLowered
from ..graph import Node
from ..split_k import parts
from .registry import Context, rule

DOT_TYPES = ("float32", "float16", "bfloat16")


def dot(cx: Context, a: Node, b: Node) -> Node:
    if a.dtype != b.dtype or a.dtype not in DOT_TYPES:
        raise NotLowered(f"a matrix product of {a.dtype} and {b.dtype}")
    quantised = scaled_columns(cx, b)
    if quantised is None:
        return _product(cx, a, b)
    weight, scale = quantised
    value = cx.b.dot(a, weight, "float32")
    return cx.b.call("mul", "float32", value, cx.b.cast(scale, "float32"))


def _product(cx: Context, a: Node, b: Node) -> Node:
    """a @ b; with few results and a long k, in parts along k that are added up."""
    if len(a.shape) == len(b.shape) == 2 and 0 not in (*a.shape, *b.shape):
        from ..pipeline import device_spec  # which lowers with these rules

        (m, k), n = a.shape, b.shape[1]
        count = parts(m, n, k, a.dtype, device_spec(cx.out().device))
        if count > 1:
            rows = cx.b.permute(cx.b.reshape(a, (m, count, k // count)), (1, 0, 2))
            partial = cx.b.dot(rows, cx.b.reshape(b, (count, k // count, n)), "float32")
            return cx.b.reduce("sum", partial, (0,), "float32")
    return cx.b.dot(a, b, "float32")


def scaled_columns(cx: Context, b: Node) -> tuple[Node, Node] | None:
    """(integers as b's type, scale per column) of b[k, n] = integers[k, n] * scale[n].

    The product is scaled instead of the weight: integers are converted where the kernel reads them, and no
    weight of full size is made.
    """
    order = tuple(range(len(b.shape)))
    base = b
    while base.kind == "view" and base.view[0] == "permute":
        order = tuple(base.view[1][d] for d in order)
        base = base.args[0]
    if base.kind != "pointwise" or base.fn != "mul" or len(b.shape) != 2:
        return None
    for weight, scale in (base.args, base.args[::-1]):
        whole = (
            weight.kind == "pointwise" and weight.fn == "cast" and weight.args[0].dtype in ("int8", "uint8")
        )
        if not whole:
            continue
        columns = order[1]  # the dimension of the product below the views that is n
        source = scale
        while source.kind == "pointwise" and source.fn == "cast":
            source = source.args[0]
        if source.kind != "view" or source.view[0] != "expand":
            return None
        have = source.args[0].shape
        if have[1 - columns] != 1:
            return None
        line = cx.b.reshape(source.args[0], (have[columns],))
        return cx.b.permute(weight, order), cx.b.expand(line, (b.shape[1],))
    return None


@rule("aten._int_mm")
def _int_mm(cx: Context, a: Node, b: Node) -> Node:
    if a.dtype != "int8" or b.dtype != "int8":
        raise NotLowered(f"an integer product of {a.dtype} and {b.dtype}")
    return cx.b.dot(a, b, "int32")


@rule("aten._weight_int8pack_mm")
def _int8_weight(cx: Context, x: Node, weight: Node, scales: Node) -> Node:
    b = cx.b
    value = b.dot(x, b.permute(b.cast(weight, x.dtype), (1, 0)), "float32")
    return b.cast(b.call("mul", "float32", value, b.cast(scales, "float32")), cx.dtype)


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
