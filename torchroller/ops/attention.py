"""Lowering rules of scaled dot product attention: one kernel, in which the scores stay in registers."""

from __future__ import annotations

import math
from typing import Any

from ..errors import NotLowered
from ..graph import Node
from .contraction import DOT_TYPES
from .registry import Context, rule

HEAD_MAX = 256  # features of one head that a kernel holds at once


@rule("aten._scaled_dot_product_flash_attention_for_cpu")
def _flash(cx: Context, q: Node, k: Node, v: Node, dropout_p: float = 0.0, is_causal: bool = False, *,
           attn_mask: Node | None = None, scale: float | None = None) -> Any:  # fmt: skip
    if dropout_p != 0.0:
        raise NotLowered("attention with dropout")
    if len(q.shape) != 4 or q.dtype not in DOT_TYPES:
        raise NotLowered(f"attention of {q.dtype}{list(q.shape)}")
    m, n, d, e = q.shape[-2], k.shape[-2], q.shape[-1], v.shape[-1]
    if min(m, n, d, e) < 2 or max(d, e) > HEAD_MAX:
        raise NotLowered(f"attention of {m} x {n} positions with heads of {d} and {e} features")
    mask = None
    if attn_mask is not None:
        mask = cx.b.expand(cx.b.cast(attn_mask, "float32"), (*q.shape[:2], m, n))
    out, lse = cx.b.attention(q, k, v, mask, 1 / math.sqrt(d) if scale is None else scale, is_causal)
    for node, meta in ((out, cx.out(0)), (lse, cx.out(1))):
        object.__setattr__(node, "strides", tuple(int(s) for s in meta.stride()))
    return out, lse if 1 in cx.used else None
