"""Lowering rules of attention: one kernel, in which the scores stay in registers, and its gradient."""

from __future__ import annotations

import math
from typing import Any

from ..errors import NotLowered
from ..graph import Node
from .contraction import DOT_TYPES
from .registry import Context, rule

HEAD_MAX = 256  # features of one head that a kernel holds at once


def reason_against(q: Node, k: Node, v: Node) -> str | None:
    """Why attention of these operands has no kernel, or None."""
    if len({q.dtype, k.dtype, v.dtype}) > 1 or q.dtype not in DOT_TYPES:
        return f"attention of {q.dtype}{list(q.shape)}"
    n, d, e = k.shape[-2], q.shape[-1], v.shape[-1]
    if min(n, d, e) < 2 or max(d, e) > HEAD_MAX:
        return f"attention of {q.shape[-2]} x {n} positions with heads of {d} and {e} features"
    return None


@rule("aten._scaled_dot_product_flash_attention_for_cpu")
def _flash(cx: Context, q: Node, k: Node, v: Node, dropout_p: float = 0.0, is_causal: bool = False, *,
           attn_mask: Node | None = None, scale: float | None = None) -> Any:  # fmt: skip
    out, lse = _attend(cx, q, k, v, attn_mask, dropout_p, is_causal, scale)
    _laid_out(lse, cx.out(1))
    return out, lse if 1 in cx.used else None


def _attend(cx: Context, q: Node, k: Node, v: Node, attn_mask: Node | None, dropout_p: float, is_causal: bool,
            scale: float | None) -> tuple[Node, Node]:  # fmt: skip
    """The result and, per query, the logarithm of its sum of exponentials."""
    if dropout_p != 0.0:
        raise NotLowered("attention with dropout")
    why = reason_against(q, k, v) if len(q.shape) == 4 else f"attention of rank {len(q.shape)}"
    if why is not None:
        raise NotLowered(why)
    k, v = (shared_heads(cx, q, x) for x in (k, v))
    mask = None if attn_mask is None else _mask(cx, attn_mask, q, k)
    out, lse = cx.b.attention(
        q, k, v, mask, 1 / math.sqrt(q.shape[-1]) if scale is None else scale, is_causal
    )
    _laid_out(out, cx.out(0))
    return out, lse


# What PyTorch picks on a GPU, by type, mask and architecture. Their further results (the sums, padded as each kernel
# wants them, and the state of the generator) are for their own gradients: with those, ATen runs both.
@rule("aten._scaled_dot_product_flash_attention", given=1)
def _flash_gpu(cx: Context, q: Node, k: Node, v: Node, dropout_p: float = 0.0, is_causal: bool = False,
               return_debug_mask: bool = False, *, scale: float | None = None) -> Any:  # fmt: skip
    return (_attend(cx, q, k, v, None, dropout_p, is_causal, scale)[0],)


@rule("aten._scaled_dot_product_efficient_attention", "aten._scaled_dot_product_cudnn_attention", given=1)
def _biased_gpu(cx: Context, q: Node, k: Node, v: Node, attn_bias: Node | None, compute_log_sumexp: bool,
                dropout_p: float = 0.0, is_causal: bool = False, return_debug_mask: bool = False, *,
                scale: float | None = None) -> Any:  # fmt: skip
    return (_attend(cx, q, k, v, attn_bias, dropout_p, is_causal, scale)[0],)


def shared_heads(cx: Context, q: Node, x: Node) -> Node:
    """Keys or values of grouped-query attention, as if each query head had its own; a view, so nothing is copied."""
    b, heads, own = cx.b, q.shape[1], x.shape[1]
    if own == heads:
        return x
    if heads % own:
        raise NotLowered(f"attention of {heads} query heads over {own} heads")
    batch, _, n, d = x.shape
    spread = b.expand(b.reshape(x, (batch, own, 1, n, d)), (batch, own, heads // own, n, d))
    return b.reshape(spread, (batch, heads, n, d))


def _mask(cx: Context, mask: Node, q: Node, k: Node) -> Node:
    """An additive mask for every score; True in a bool mask means that a key is seen."""
    b = cx.b
    if mask.dtype == "bool":
        zero, low = b.const(0.0, "float32"), b.const(-math.inf, "float32")
        mask = b.call("where", "float32", mask, zero, low)
    return b.expand(b.cast(mask, "float32"), (*q.shape[:-1], k.shape[-2]))


def _laid_out(node: Node, meta: Any) -> Node:
    """Asks for the strides that ATen gives this result."""
    if node.kind != "view":
        object.__setattr__(node, "strides", tuple(int(s) for s in meta.stride()))
    return node


@rule("aten._scaled_dot_product_flash_attention_for_cpu_backward")
def _flash_backward(cx: Context, grad: Node, q: Node, k: Node, v: Node, out: Node, lse: Node, dropout_p: float,
                    is_causal: bool, *, attn_mask: Node | None = None, scale: float | None = None) -> Any:  # fmt: skip
    """Five products (Dao et al., FlashAttention, 2022, appendix B.2): the weights are computed again."""
    if dropout_p != 0.0:
        raise NotLowered("attention with dropout")
    if len(q.shape) != 4 or q.dtype not in DOT_TYPES or len({x.dtype for x in (grad, q, k, v, out)}) > 1:
        raise NotLowered(f"a gradient of attention of {q.dtype}{list(q.shape)}")
    b, f32 = cx.b, "float32"
    heads, own, shapes = q.shape[1], k.shape[1], (k.shape, v.shape)
    k, v = (shared_heads(cx, q, x) for x in (k, v))
    factor = b.const(1 / math.sqrt(q.shape[-1]) if scale is None else scale, f32)

    def turned(x: Node) -> Node:
        return b.permute(x, (0, 1, 3, 2))

    def call(fn: str, *args: Node) -> Node:
        return b.call(fn, f32, *args)

    score = call("mul", b.dot(q, turned(k), f32), factor)
    if attn_mask is not None:
        score = call("add", score, _mask(cx, attn_mask, q, k))
    level = b.expand(b.reshape(b.cast(lse, f32), (*lse.shape, 1)), score.shape)
    low = b.const(-math.inf, f32)
    weights = call("exp", call("sub", score, level))
    seen = b.call("ne", "bool", level, low, compute=f32)  # a query that saw no key has no gradient
    if is_causal:
        m, n = score.shape[-2:]
        rows, columns = b.reshape(b.iota(m, 0, 1, "int64"), (m, 1)), b.iota(n, 0, 1, "int64")
        seen = b.call("and", "bool", seen, b.call("le", "bool", columns, rows, compute="int64"))
    weights = b.call("where", f32, seen, weights, b.const(0.0, f32))
    rounded = b.cast(weights, q.dtype)
    product = call("mul", b.cast(grad, f32), b.cast(out, f32))
    delta = b.reduce("sum", product, (3,), f32, keepdim=True)
    slope = call("sub", b.dot(grad, turned(v), f32), b.expand(delta, score.shape))
    slope = b.cast(call("mul", call("mul", weights, slope), factor), q.dtype)

    def summed(x: Node, shape: tuple[int, ...]) -> Node:
        """Heads that share keys add their gradients."""
        if own != heads:
            x = b.reduce("sum", b.reshape(x, (shape[0], own, heads // own, *shape[2:])), (2,), f32)
        return b.cast(x, q.dtype)

    grads = (
        b.cast(b.dot(slope, k, f32), q.dtype),
        summed(b.dot(turned(slope), q, f32), shapes[0]),
        summed(b.dot(turned(rounded), grad, f32), shapes[1]),
    )
    return tuple(_laid_out(g, cx.out(i)) if i in cx.used else None for i, g in enumerate(grads))
