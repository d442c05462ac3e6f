"""Lowering rules of operators on lists of tensors, as optimizers call them: the rule of the operator on each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..graph import Node
from .registry import RULES, Context, rule

PLAIN = ("add", "sub", "mul", "div", "maximum", "minimum", "clamp_min", "clamp_max", "pow", "sqrt", "rsqrt", "neg",
         "abs", "reciprocal", "exp", "log", "sign", "tanh", "sigmoid", "floor", "ceil", "round", "trunc", "erf",
         "expm1", "log1p", "sin", "cos")  # fmt: skip


def _each(fn: Callable[..., Node]) -> Callable[..., list[Node]]:
    """`fn(context, tensor, …)` over lists; what is not a list goes to every call."""

    def lower(cx: Context, *args: Any, **kw: Any) -> list[Node]:
        return [fn(replace(cx, meta=meta), *(a[n] if isinstance(a, (list, tuple)) else a for a in args), **kw)
                for n, meta in enumerate(cx.meta)]  # fmt: skip

    return lower


def _plain(name: str) -> Callable[..., Node]:
    return lambda cx, *args, **kw: RULES[f"aten.{name}"](cx, *args, **kw)


for _name in PLAIN:
    rule(f"aten._foreach_{_name}")(_each(_plain(_name)))


def _combined(fn: str) -> Callable[..., Node]:
    def lower(cx: Context, x: Node, a: Node, c: Node, value: Any = 1) -> Node:
        b, dtype = cx.b, cx.dtype
        term = b.call(
            "mul", dtype, b.call(fn, dtype, cx.node(a, dtype), cx.node(c, dtype)), cx.node(value, dtype)
        )
        return b.call("add", dtype, cx.node(x, dtype), term)

    return lower


rule("aten._foreach_addcmul")(_each(_combined("mul")))
rule("aten._foreach_addcdiv")(_each(_combined("div")))


def _lerp(cx: Context, x: Node, end: Node, weight: Any) -> Node:
    """ATen starts from the nearer end, so that a weight of 1 gives `end` itself."""
    b, dtype = cx.b, cx.dtype
    gap = b.call("sub", dtype, end, x)
    share = cx.node(weight, dtype)
    near = b.call("add", dtype, x, b.call("mul", dtype, share, gap))
    far = b.call("sub", dtype, end, b.call("mul", dtype, b.call("sub", dtype, b.const(1, dtype), share), gap))
    if not isinstance(weight, Node):
        return near if abs(weight) < 0.5 else far
    size = b.call("abs", dtype, share)
    return b.call("where", dtype, b.call("lt", "bool", size, b.const(0.5, dtype), compute=dtype), near, far)


rule("aten._foreach_lerp")(_each(_lerp))


@rule("aten._foreach_copy")
def _copy(cx: Context, xs: Any, sources: Any, non_blocking: bool = False) -> list[Node]:
    return _each(_plain("copy"))(cx, xs, sources)
