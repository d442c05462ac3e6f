"""Tensor scrambling: what a black box does with known zeros, found by trying it.

Known elements keep their value, all others are drawn at random, the operator runs, again and again. An output
element that never changes is claimed known; an input element whose gradient towards every needed output is
zero in every draw is claimed not needed. An element that changes in at least half of all draws is caught with
probability 1 - 2^-(trials - 1): that is the stated confidence. It is below 1, so nothing that is required to
be exact relies on it, and an operator with a rule is never scrambled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..tesa import compact
from .facts import Call, Facts
from .rule import Needs, Rule, everything, is_random, unknown


@dataclass(frozen=True)
class Scramble(Rule):
    """The rule of an operator that has none, if scrambling is asked for."""

    trials: int = 8
    seed: int = 0
    exact = False

    @property
    def confidence(self) -> float:
        return 1.0 - 2.0 ** -(self.trials - 1)

    def _draw(self, call: Call, trial: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed + trial)
        out = []
        for f in call.inputs:
            known, value = f.full(f.known), f.full(f.value)
            if f.dtype == torch.bool:
                noise = torch.randint(0, 2, f.shape, generator=generator).double()
            elif f.dtype.is_floating_point:
                noise = torch.randn(f.shape, generator=generator, dtype=torch.float64) * (1 + trial)
            else:
                raise NotImplementedError("integers cannot be drawn: they may be indices")
            mixed = torch.where(known, value, noise)
            out.append(mixed if f.dtype.is_floating_point else mixed.to(f.dtype))
        return out

    def forward(self, call: Call) -> Any:
        exact = super().forward(call)
        if is_random(call) or all(f.none_known for f in call.inputs) or not _open(exact):
            return exact
        try:
            runs = [call.invoke(self._draw(call, t)) for t in range(self.trials)]
        except (RuntimeError, NotImplementedError, TypeError, IndexError):
            return exact
        confidence = min(self.confidence, call.confidence)
        outs = call.out if isinstance(call.out, (tuple, list)) else (call.out,)
        found = []
        for i, like in enumerate(outs):
            drawn = [r[i] if isinstance(call.out, (tuple, list)) else r for r in runs]
            if not isinstance(like, Tensor) or drawn[0].is_complex():
                found.append(unknown(like, call.confidence))
                continue
            same = torch.stack([d == drawn[0] for d in drawn]).all(0)
            facts = Facts.of(same, drawn[0].double(), like, call.confidence)
            found.append(facts if facts.none_known else facts.weaken(confidence))
        return tuple(found) if isinstance(call.out, (tuple, list)) else found[0]

    def backward(self, call: Call, out: Any, need: Any) -> Needs:
        pessimistic = super().backward(call, out, need)
        if isinstance(need, (tuple, list)) or not bool(need.any()) or is_random(call):
            return pessimistic
        wanted = [torch.zeros(f.shape, dtype=torch.bool) for f in call.inputs]
        try:
            for t in range(self.trials):
                leaves = [
                    x.requires_grad_(True) if x.is_floating_point() else x
                    for x in map(torch.clone, self._draw(call, t))
                ]
                with torch.enable_grad():
                    result = _invoke_with_grad(call, leaves)
                    cotangent = torch.randn(result.shape, dtype=torch.float64) * need.expand(result.shape)
                    live = [x for x in leaves if x.requires_grad]
                    gradients = torch.autograd.grad(
                        result, live, cotangent.to(result.dtype), allow_unused=True
                    )
                found = iter(gradients)
                for i, x in enumerate(leaves):
                    gradient = next(found) if x.requires_grad else None
                    if not x.requires_grad:
                        wanted[i] |= True
                    elif gradient is not None:
                        wanted[i] |= gradient != 0
        except (RuntimeError, NotImplementedError, TypeError, IndexError):
            return pessimistic
        return [
            compact(w)[0] if bool(w.any()) else everything(f) & False for w, f in zip(wanted, call.inputs)
        ]


def _open(facts: Any) -> bool:
    if isinstance(facts, Facts):
        return not facts.all_known
    return isinstance(facts, tuple) and any(_open(f) for f in facts)


def _invoke_with_grad(call: Call, tensors: list[Tensor]) -> Tensor:
    from torch.utils._pytree import tree_flatten, tree_unflatten

    from .facts import is_tensor

    leaves, spec = tree_flatten(
        (tuple(call.node.args), dict(call.node.kwargs)), is_leaf=lambda x: isinstance(x, torch.fx.Node)
    )
    rest = iter(tensors)
    filled = [next(rest) if isinstance(x, torch.fx.Node) and is_tensor(x) else x for x in leaves]
    args, kwargs = tree_unflatten(filled, spec)
    return call.node.target(*args, **kwargs)  # type: ignore[operator]
