"""embedding, gather, index and their kin: rows chosen by integers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..tesa import compact
from .facts import Call, Facts
from .movement import Movement
from .rule import Needs, Rule, everything, unknown

if TYPE_CHECKING:
    from ..structure.keep import CallAxes


class Embedding(Rule):
    """embedding(w[V, D], indices): column d is known where it is one constant over the vocabulary."""

    def forward(self, call: Call) -> Facts:
        w, index = call.inputs[0], call.inputs[1]
        if index.all_known and w.all_known:
            found = super().forward(call)
            assert isinstance(found, Facts)
            return found
        first = w.value.narrow(0, 0, 1)
        known = (w.known.all(0, keepdim=True) & (w.value == first).all(0, keepdim=True))[0]
        return Facts.of(known, first[0], call.out, call.confidence)

    def backward(self, call: Call, out: Facts, need: Tensor) -> Needs:
        w, index = call.inputs[0], call.inputs[1]
        if not bool(need.any()):
            return [None, None]
        columns = need.flatten(0, -2).any(0) if need.dim() > 1 else need
        rows = torch.ones((1, 1), dtype=torch.bool)
        if index.all_known:
            rows = torch.zeros((w.shape[0], 1), dtype=torch.bool)
            rows[index.value.long().flatten()] = True
        return [compact(rows & columns)[0], everything(index)]

    def keep(self, axes: CallAxes) -> None:
        w, index, out = axes.inp(0), axes.inp(1), axes.out()
        axes.lock(w[0])
        axes.tie(w[1], out[-1])
        for a, b in zip(index, out):
            axes.lock(a)
            axes.lock(b)


class Gather(Movement):
    """gather, index_select, index.Tensor, take_along_dim: a movement when the indices are known."""

    def __init__(self, kind: str):
        self.kind = kind

    def forward(self, call: Call) -> Any:
        x = call.inputs[0]
        if len(call.inputs) < 2 or not all(f.all_known for f in call.inputs[1:]):
            # any element may be picked: known only if x is one constant throughout
            if x.known.numel() == 1 and x.all_known:
                return Facts.of(x.known.reshape(()), x.value.reshape(()), call.out, call.confidence)
            return unknown(call.out, call.confidence)
        return self._moved(call)

    def _moved(self, call: Call) -> Any:
        rest = [f.as_input(full=True) for f in call.inputs[1:]]
        x = call.inputs[0]
        missing = call.invoke([(~x.full(x.known)).to(torch.uint8), *rest])
        return Facts.of(missing == 0, call.invoke([x.full(x.value), *rest]), call.out, call.confidence)

    def backward(self, call: Call, out: Any, need: Any) -> Needs:
        if not bool(need.any()):
            return [None] * len(call.inputs)
        if not all(f.all_known for f in call.inputs[1:]):
            return [everything(f) for f in call.inputs]
        rest = [f.as_input(full=True) for f in call.inputs[1:]]
        x = call.inputs[0]
        index = torch.arange(torch.Size(x.shape).numel()).view(x.shape)
        moved = call.invoke([index, *rest])
        wanted = torch.zeros(index.numel(), dtype=torch.bool)
        wanted[moved[need.expand(moved.shape)]] = True
        return [compact(wanted.view(x.shape))[0], *[everything(f) for f in call.inputs[1:]]]

    def keep(self, axes: CallAxes) -> None:
        if self.kind != "index_select":
            axes.lock_all()
            return
        x, out = axes.inp(0), axes.out()
        dim = axes.call.at(1) % len(x)
        for d in range(len(x)):
            if d == dim:
                axes.lock(x[d])
                axes.lock(out[d])
            else:
                axes.tie(x[d], out[d])
        axes.lock(axes.inp(1)[0])
