"""The sparse attention kernel: flash-style over the alive keys of each block of queries only.

A block of queries lists the keys that any of its queries attends to, in chunks; keys and values are gathered
row by row, and a small table of distinct chunk masks says which pairs inside a chunk are alive. The softmax is
the online one, over alive pairs only; a query with nothing alive gives zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

from .program import Program

LOWEST = -1.0e30
"""Start of the running maximum: finite, so that exp(dead - maximum) is 0 and never NaN."""


@dataclass(frozen=True)
class AttentionSpec:
    """What is hard-coded. head_dim is padded to a power of two in `lanes`; `per_head` masks differ by head.

    `widen` multiplies in the compute type: Triton's interpreter has no bfloat16 product.
    """

    queries: int
    keys: int
    head_dim: int
    lanes: int
    query_blocks: int
    heads: int
    per_head: bool
    compute: str
    scale: float
    widen: bool = False


def attention_program(spec: AttentionSpec) -> Program:
    """Grid: (query blocks, batch * heads). Tables: see `torchsparta.attention.AttentionPattern`."""
    s = spec
    ragged = s.lanes != s.head_dim
    inside = f", mask=(dims < {s.head_dim})[None, :], other=0.0" if ragged else ""
    block = f"(head * {s.query_blocks} + tl.program_id(0))" if s.per_head else "tl.program_id(0)"
    widen = f".to({s.compute})" if s.widen else ""
    source = f"""@triton.jit
def attention(q, k, v, o, query_rows, begin, key_rows, pattern, patterns,
              q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, o_batch, o_head, o_row):
    bh = tl.program_id(1)
    batch = bh // {s.heads}
    head = bh % {s.heads}
    block = {block}
    dims = tl.arange(0, {s.lanes})
    lane_q = tl.arange(0, {s.queries})
    lane_k = tl.arange(0, {s.keys})
    rows = tl.load(query_rows + block * {s.queries} + lane_q)
    there = (rows >= 0)[:, None]
    rows = tl.maximum(rows, 0)
    qt = tl.load(q + batch * q_batch + head * q_head + rows[:, None] * q_row + dims[None, :]{inside}){widen}
    kb = k + batch * k_batch + head * k_head
    vb = v + batch * v_batch + head * v_head
    top = tl.full([{s.queries}], {LOWEST}, dtype={s.compute})
    total = tl.zeros([{s.queries}], dtype={s.compute})
    acc = tl.zeros([{s.queries}, {s.lanes}], dtype={s.compute})
    for j in range(tl.load(begin + block), tl.load(begin + block + 1)):
        cols = tl.load(key_rows + j * {s.keys} + lane_k)
        kt = tl.load(kb + cols[:, None] * k_row + dims[None, :]{inside}){widen}
        score = tl.dot(qt, tl.trans(kt), input_precision="ieee").to({s.compute}) * {s.scale!r}
        shape = patterns + tl.load(pattern + j) * {s.queries * s.keys}
        alive = tl.load(shape + lane_q[:, None] * {s.keys} + lane_k[None, :])
        score = tl.where(alive != 0, score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, axis=1))
        weight = tl.exp(score - new_top[:, None])
        fade = tl.exp(top - new_top)
        total = total * fade + tl.sum(weight, axis=1)
        vt = tl.load(vb + cols[:, None] * v_row + dims[None, :]{inside}){widen}
        acc = acc * fade[:, None] + tl.dot(weight.to(vt.dtype), vt, input_precision="ieee").to({s.compute})
        top = new_top
    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    out = o + batch * o_batch + head * o_head + rows[:, None] * o_row + dims[None, :]
    tl.store(out, acc.to(o.dtype.element_ty), mask=there{f" & (dims < {s.head_dim})[None, :]" if ragged else ""})
"""
    return Program("attention", source)
