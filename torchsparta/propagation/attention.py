"""scaled_dot_product_attention: dead heads, dead rows of q, k and v, and constants that survive the
softmax."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..capture import symbolic_dims
from ..tesa import compact
from .contraction import _gradient
from .facts import Call, Facts, any_over
from .rule import Needs, Rule, everything

if TYPE_CHECKING:
    from ..structure.emit import Emitter
    from ..structure.keep import CallAxes


class Attention(Rule):
    """out[…, t, e] = sum_s softmax_s(q[…, t, :] · k[…, s, :] * scale + mask) v[…, s, e].

    Rows of the softmax sum to one, so an element of v that is the same constant at every s comes out
    unchanged and makes q, k and the mask irrelevant. A row that the mask hides throughout is not assumed.
    """

    def _grouped(self, call: Call) -> int:
        """Query heads per key head: 1 unless enable_gqa."""
        q, k = call.inputs[0].shape, call.inputs[1].shape
        return q[-3] // k[-3] if len(q) > 2 and len(k) > 2 and k[-3] and q[-3] != k[-3] else 1

    def _hidden(self, call: Call) -> Tensor | None:
        """bool: score positions that a known mask hides; None without one."""
        mask = call.facts_at(3)
        if mask is None:
            return None
        if mask.dtype == torch.bool:
            return mask.zero
        return mask.known & (mask.value == float("-inf"))

    def _settled(self, v: Facts) -> Tensor:
        """[…, 1, E] bool: v is one constant over all keys."""
        first = v.value.narrow(-2, 0, 1)
        return v.known.all(-2, keepdim=True) & (v.value == first).all(-2, keepdim=True)

    def forward(self, call: Call) -> Facts:
        v = call.inputs[2]
        if call.at(4, "dropout_p"):
            return Facts.unknown(call.out, call.confidence)
        known, value = self._settled(v), v.value.narrow(-2, 0, 1)
        groups = self._grouped(call)
        if groups > 1 and known.shape[-3] > 1:
            known, value = (t.repeat_interleave(groups, -3) for t in (known, value))
        return Facts.of(known, value, call.out, call.confidence)

    def backward(self, call: Call, out: Facts, need: Tensor) -> Needs:
        q, k, v = call.inputs[:3]
        if call.at(4, "dropout_p") or not bool(need.any()):
            return super().backward(call, out, need)
        groups = self._grouped(call)
        hidden = self._hidden(call)
        open_scores = None if hidden is None else ~hidden

        # v[…, s, e] is needed if some t that may see s needs e
        if open_scores is not None and open_scores.shape[-1] > 1 and bool((~open_scores).any()):
            lead = torch.broadcast_shapes(need.shape[:-2], open_scores.shape[:-2])
            seen = open_scores.expand(*lead, q.shape[-2], k.shape[-2]).float()
            wanted = need.expand(*lead, q.shape[-2], need.shape[-1]).float()
            need_v = (seen.transpose(-2, -1) @ wanted) > 0
        else:
            need_v = need.any(-2, keepdim=True)
        # q and k matter where v is not one constant: [..., t, 1]
        settled = self._settled(v)
        if groups > 1 and settled.shape[-3] > 1:
            settled = settled.repeat_interleave(groups, -3)
        rows = (need & ~settled).any(-1, keepdim=True)
        maybe_q, maybe_k = q.maybe, k.maybe
        if groups > 1 and maybe_k.shape[-3] > 1:
            maybe_k = maybe_k.repeat_interleave(groups, -3)
        qx = maybe_q.expand(*maybe_q.shape[:-1], q.shape[-1])
        kx = maybe_k.expand(*maybe_k.shape[:-1], k.shape[-1])
        if rows.shape[-2] > 1:
            qx = qx.expand(*qx.shape[:-2], q.shape[-2], q.shape[-1])
        lead = torch.broadcast_shapes(qx.shape[:-2], kx.shape[:-2], rows.shape[:-2])
        qx, kx = qx.expand(*lead, *qx.shape[-2:]), kx.expand(*lead, *kx.shape[-2:])
        scores = rows.expand(*lead, qx.shape[-2], 1)

        def dot(a: Tensor, b: Tensor) -> Tensor:
            return a @ b.transpose(-2, -1)

        scores = scores.expand(*lead, qx.shape[-2], kx.shape[-2])
        need_q = _gradient(lambda x: dot(x, kx.float()), qx, scores)
        need_k = _gradient(lambda x: dot(qx.float(), x), kx, scores)
        if groups > 1:
            need_k, need_v = (_per_key_head(t, groups) for t in (need_k, need_v))
        wanted_by = [compact(n)[0] for n in (need_q, need_k, need_v)]
        result: Needs = [any_over(n, f.shape) for n, f in zip(wanted_by, call.inputs)]
        if call.facts_at(3) is not None:
            result.append(everything(call.inputs[3]))
        return result

    def keep(self, axes: CallAxes) -> None:
        q, k, v, out = axes.inp(0), axes.inp(1), axes.inp(2), axes.out()
        if axes.call.at(4, "dropout_p"):
            axes.lock_all()
            return
        axes.lock(q[-1], _live_products(axes.call))
        axes.tie(q[-1], k[-1])
        axes.tie(v[-1], out[-1])
        for a in (q, k, v, out):
            axes.lock(a[-2])
        groups = self._grouped(axes.call)
        if groups > 1:
            inner = axes.fresh(groups)
            axes.lock(inner)
            axes.tie(k[-3], v[-3])
            axes.product(q[-3], [k[-3], inner])
            axes.tie(q[-3], out[-3])
        mask = axes.inp(3) if axes.call.facts_at(3) is not None else None
        if mask is not None:
            for d in range(1, min(2, len(mask)) + 1):
                axes.lock(mask[-d])
        for back in range(3, len(out) + 1):
            if groups > 1 and back == 3:
                operands = []
            else:
                operands = [a for a in (q, k, v) if back <= len(a)]
            if mask is not None and back <= len(mask):
                operands.append(mask)
            for a in operands:
                if len(a[-back]) == len(out[-back]):
                    axes.tie(a[-back], out[-back])
                elif len(a[-back]) != 1:
                    axes.lock(out[-back])

    def emit(self, em: Emitter) -> Any:
        call = em.node_call
        scale = call.at(6, "scale")
        scale = 1.0 / math.sqrt(call.inputs[0].shape[-1]) if scale is None else float(scale)
        has_mask = call.facts_at(3) is not None
        if has_mask and em.axes.static(3) and not call.at(4, "dropout_p") and not call.at(5, "is_causal"):
            mask = em.builder.value(call.sources[3])
            opened = mask if mask.dtype == torch.bool else mask == 0
            if bool(opened.all()):  # a mask that hides nothing
                return em.call(
                    call.node.target,
                    *(em.arg(i) for i in range(3)),
                    scale=scale,
                    enable_gqa=self._grouped(call) > 1,
                )
            if self._grouped(call) == 1 and not symbolic_dims(call.out):
                return em.attention_site(mask, scale)
        return em.same(scale=scale)


def _live_products(call: Call) -> Any:
    """[D] bool: where a known q and a known k multiply to something other than zero, which scores would
    miss."""
    sums = []
    for f in call.inputs[:2]:
        size = f.shape[-1]
        sums.append((f.value != 0).flatten(0, -2).any(0).expand(size).numpy())
    return sums[0] & sums[1]


def _per_key_head(t: Tensor, groups: int) -> Tensor:
    if t.shape[-3] == 1:
        return t
    return t.unflatten(-3, (-1, groups)).any(-3)
