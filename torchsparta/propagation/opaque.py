"""Operators of which little is claimed: taken whole, uninitialised memory, dropout, strides."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import CaptureError
from .facts import Call, Facts
from .movement import Movement
from .rule import Needs, Rule, everything, unknown

if TYPE_CHECKING:
    from ..structure.emit import Emitter
    from ..structure.keep import CallAxes


class Opaque(Rule):
    """Known if everything that goes in is; otherwise nothing is known and everything is needed. Exact: what
    it does not claim nobody relies on."""


class Uninitialised(Rule):
    """empty and its kin: a shape and a type, no values, and nothing of the tensors that they are taken
    from."""

    def forward(self, call: Call) -> Any:
        return unknown(call.out)

    def backward(self, call: Call, out: Any, need: Any) -> Needs:
        return [None] * len(call.inputs)


class Dropout(Rule):
    """native_dropout: (x, ones) outside training; in training a zero stays zero and the mask is random."""

    def _trains(self, call: Call) -> bool:
        return call.at(2, "train") is not False and float(call.at(1) or 0) > 0

    def forward(self, call: Call) -> Any:
        x, true = call.inputs[0], torch.ones((), dtype=torch.bool)
        if self._trains(call):
            return Facts.of(x.zero, x.value, call.out[0], call.confidence), unknown(call.out[1])
        ones = torch.ones((), dtype=torch.float64)
        return Facts.of(x.known, x.value, call.out[0], call.confidence), Facts.of(true, ones, call.out[1])

    def backward(self, call: Call, out: Any, need: Any) -> Needs:
        return [need[0] if need else None]

    def keep(self, axes: CallAxes) -> None:
        if self._trains(axes.call):
            axes.lock_all()
            return
        for a, b, c in zip(axes.inp(0), axes.out(0), axes.out(1)):
            axes.tie(a, b)
            axes.tie(b, c)
            axes.tie(a, b)


class Strided(Movement):
    """as_strided: a movement of the elements in the order in which memory holds them.

    That order is the one of the captured graph; the rebuilt model lays the tensor out so again. A view that
    leaves out elements of its memory is refused: as_strided could read what the view hides.
    """

    def _order(self, call: Call) -> list[int]:
        """Dimensions of the input from the slowest to the fastest in memory."""
        like = call.sources[0].meta["val"]
        shape, strides = call.inputs[0].shape, like.stride()
        order = sorted(range(len(shape)), key=lambda d: (-strides[d], -shape[d], d))
        expected = 1
        for d in reversed(order):
            if shape[d] != 1 and strides[d] != expected:
                expected = -1
                break
            expected *= shape[d]
        if expected < 0 or like.storage_offset() != 0 or math.prod(shape) == 0:
            raise CaptureError(
                f"{call.node.name}: as_strided of a tensor of shape {shape} with strides {tuple(strides)} at offset "
                f"{like.storage_offset()} may read elements that the view does not show; use slicing, unfold or "
                "expand there, or call .contiguous() first"
            )
        return order

    def move(self, call: Call, tensors: list[Tensor], fill: float) -> Any:
        size, stride = (list(map(int, call.at(p))) for p in (1, 2))
        flat = tensors[0].permute(self._order(call)).contiguous()
        return torch.as_strided(flat, size, stride, int(call.at(3) or 0)).contiguous()

    def keep(self, axes: CallAxes) -> None:
        axes.lock_all()

    def emit(self, em: Emitter) -> Any:
        order, call = self._order(em.node_call), em.node_call
        flat = em.call(torch.ops.aten.permute.default, em.arg(0), order)
        flat = em.call(torch.ops.aten.clone.default, flat, memory_format=torch.contiguous_format)
        return em.call(torch.ops.aten.as_strided.default, flat, call.at(1), call.at(2), call.at(3) or 0)


class EmbeddingBag(Rule):
    """embedding_bag(w[V, D], indices, offsets, …): a column that is zero over the vocabulary is zero in every
    bag, whether the bag sums, averages, takes the maximum or is empty."""

    def forward(self, call: Call) -> Any:
        found = super().forward(call)
        w = call.inputs[0]
        if w.all_known and all(f.all_known for f in call.inputs):
            return found
        return (
            Facts.of(w.zero.all(0, keepdim=True), w.value.new_zeros(()), call.out[0], call.confidence),
            *found[1:],
        )

    def backward(self, call: Call, out: Any, need: Any) -> Needs:
        needs = list(need or ())
        if all(n is None or not bool(n.any()) for n in needs):
            return [None] * len(call.inputs)
        result: Needs = [everything(f) for f in call.inputs]
        largest = needs[3] if len(needs) > 3 else None  # which rows hold the maximum
        if largest is None or not bool(largest.any()):
            result[0] = None if needs[0] is None else needs[0].any(0, keepdim=True)
        return result

    def keep(self, axes: CallAxes) -> None:
        call = axes.call
        if call.at(4, "mode") == 2:  # the maximum also says which rows it came from
            axes.lock_all()
            return
        w, out = axes.inp(0), axes.out(0)
        axes.lock(w[0])
        axes.lock(out[0])
        axes.tie(w[1], out[1])
        rest = [axes.inp(i) for i in range(1, len(call.inputs))]
        rest += [axes.out(i) for i in range(1, len(call.out)) if isinstance(call.out[i], Tensor)]
        for axis in (a for part in rest for a in part):
            axes.lock(axis)


class EmbeddingGradient(Rule):
    """embedding_dense_backward(grad[…, D], indices): a column of zeros stays one, and columns do not mix."""

    def forward(self, call: Call) -> Any:
        grad = call.inputs[0]
        if all(f.all_known for f in call.inputs):
            return super().forward(call)
        zero = grad.zero.flatten(0, -2).all(0, keepdim=True) if grad.zero.dim() > 1 else grad.zero[None]
        return Facts.of(zero, grad.value.new_zeros(()), call.out, call.confidence)

    def backward(self, call: Call, out: Any, need: Any) -> Needs:
        if need is None or not bool(need.any()):
            return [None] * len(call.inputs)
        columns = need.any(0)
        grad = call.inputs[0]
        return [columns.reshape((1,) * (len(grad.shape) - 1) + (-1,)), everything(call.inputs[1])]
