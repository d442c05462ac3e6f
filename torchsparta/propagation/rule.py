"""What a rule is: how knowledge flows through one operator, and which slices it lets disappear.

`forward` and `backward` are the algebra (facts.py says what of); `keep` ties the axes of inputs and output
that must lose the same slices; `emit` rebuilds the call on the smaller tensors. Subclass `Rule`, register an
instance in `table.py` (or `torchsparta.propagation.register`) and the operator is known to the whole package.

Contract of `backward`: replacing any of the inputs' elements that it calls not needed by zero leaves every
needed element of the output as it was, whatever else is replaced. It may rely on the facts of the other
inputs. Everything assumes finite arithmetic: 0 * x is 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .facts import Call, Facts, any_over

if TYPE_CHECKING:
    from ..structure.emit import Emitter
    from ..structure.keep import CallAxes

Needs = list["Tensor | None"]


class Rule:
    """The rule of an operator of which nothing is known: evaluates constants, otherwise assumes the worst."""

    exact = True

    def forward(self, call: Call) -> Any:
        return evaluate(call)

    def backward(self, call: Call, out: Any, need: Any) -> Needs:
        """Per input: None (nothing needed) or a compact bool of what is."""
        if not _any_needed(need):
            return [None] * len(call.inputs)
        return [everything(f) for f in call.inputs]

    def keep(self, axes: CallAxes) -> None:
        axes.lock_all()

    def emit(self, em: Emitter) -> Any:
        return em.same()


class Made(Rule):
    """An operator that takes a tensor for its shape and type only: zeros_like, full_like, new_zeros, …

    Its result is known whatever the tensor holds, and nothing of the tensor is needed.
    """

    def forward(self, call: Call) -> Any:
        blank = [torch.zeros((), dtype=f.dtype).expand(f.shape) for f in call.inputs]
        try:
            result = call.invoke(blank)
        except (RuntimeError, NotImplementedError, TypeError):
            return unknown(call.out, call.confidence)
        if not isinstance(result, Tensor) or result.is_complex():
            return unknown(call.out, call.confidence)
        return Facts.of(torch.ones((), dtype=torch.bool), result.double(), call.out)

    def backward(self, call: Call, out: Any, need: Any) -> Needs:
        return [None] * len(call.inputs)


def everything(facts: Facts) -> Tensor:
    return torch.ones((1,) * len(facts.shape), dtype=torch.bool)


def _any_needed(need: Any) -> bool:
    if isinstance(need, Tensor):
        return bool(need.any())
    return need is not None and any(_any_needed(n) for n in need)


def evaluate(call: Call, full: bool = True) -> Any:
    """The operator on its known inputs if all are; unknown otherwise. full=False: it broadcasts
    (pointwise)."""
    like = call.out
    if not all(f.all_known for f in call.inputs) or is_random(call):
        return unknown(like, call.confidence)
    try:
        result = call.invoke([f.as_input(full) for f in call.inputs])
    except (RuntimeError, NotImplementedError, TypeError, IndexError):
        return unknown(like, call.confidence)
    if isinstance(like, Tensor):
        if not isinstance(result, Tensor) or result.is_complex():
            return Facts.unknown(like, call.confidence)
        return Facts.of(torch.ones((), dtype=torch.bool), result, like, call.confidence)
    return tuple(
        Facts.of(torch.ones((), dtype=torch.bool), r, v, call.confidence)
        if isinstance(v, Tensor) and isinstance(r, Tensor) and not r.is_complex()
        else unknown(v, call.confidence)
        for r, v in zip(result, like)
    )


def unknown(like: Any, confidence: float = 1.0) -> Any:
    if isinstance(like, Tensor):
        return Facts.unknown(like, confidence)
    if isinstance(like, (tuple, list)):
        return tuple(unknown(v, confidence) for v in like)
    return None


def is_random(call: Call) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(call.node.target, "tags", ())


class Pointwise(Rule):
    """out[i] = f(a[i], b[i], …), broadcast: known where all operands are."""

    def absorb(self, call: Call) -> tuple[Tensor, Tensor] | None:
        """(known, value) where one operand decides the result alone, e.g. zero in a product."""
        return None

    def matters(self, call: Call, i: int) -> Tensor | None:
        """bool: where operand i can change the result; None for everywhere."""
        return None

    def forward(self, call: Call) -> Facts:
        if is_random(call):
            return unknown(call.out)
        absorbed = self.absorb(call) if any(not f.none_known for f in call.inputs) else None
        if absorbed is None and any(f.none_known for f in call.inputs):
            return Facts.unknown(call.out, call.confidence)
        ones = [torch.ones((), dtype=torch.bool)]
        known = _all(ones + [f.known for f in call.inputs])
        value = torch.zeros((), dtype=torch.float64)
        if bool(known.any()):
            try:
                result = call.invoke([f.as_input() for f in call.inputs])
            except (RuntimeError, NotImplementedError, TypeError):
                return Facts.unknown(call.out, call.confidence)
            if result.is_complex():
                return Facts.unknown(call.out, call.confidence)
            value = result.double()
        if absorbed is not None:
            value = torch.where(known, value, absorbed[1])
            known = known | absorbed[0]
        return Facts.of(known, value, call.out, call.confidence)

    def backward(self, call: Call, out: Facts, need: Tensor) -> Needs:
        if len(call.inputs) == 1 and bool(out.zero.any()) and self.preserves_zero(call):
            need = need & ~out.zero
        wanted: Needs = []
        for i, f in enumerate(call.inputs):
            matters = self.matters(call, i)
            n = need if matters is None else need & matters
            wanted.append(any_over(n.reshape((1,) * max(0, len(f.shape) - n.dim()) + n.shape), f.shape))
        return wanted

    def preserves_zero(self, call: Call) -> bool:
        """f(0) == 0, tried on zero itself."""
        if is_random(call):
            return False
        try:
            zero = call.inputs[0].as_input().new_zeros((1,) * len(call.inputs[0].shape))
            return bool((call.invoke([zero]) == 0).all())
        except (RuntimeError, TypeError):
            return False

    def keep(self, axes: CallAxes) -> None:
        axes.broadcast()


def _all(parts: list[Tensor]) -> Tensor:
    out = parts[0]
    for p in parts[1:]:
        out = out & p
    return out
