"""Pointwise operators in which one operand can decide the result alone."""

from __future__ import annotations

import torch
from torch import Tensor

from .facts import Call, Facts
from .rule import Pointwise

_ZERO = torch.zeros((), dtype=torch.float64)


class Multiply(Pointwise):
    """0 * x = 0; an operand does not matter where the other is zero. Also `and` of booleans."""

    def absorb(self, call: Call) -> tuple[Tensor, Tensor]:
        zero = call.inputs[0].zero
        for f in call.inputs[1:]:
            zero = zero | f.zero
        return zero, _ZERO

    def matters(self, call: Call, i: int) -> Tensor | None:
        others = [f.maybe for j, f in enumerate(call.inputs) if j != i]
        return others[0] if others else None


class And(Multiply):
    """`and` absorbs like a product for booleans and for the bits of integers."""


class Or(Pointwise):
    """True or x is True, for booleans."""

    def _true(self, f: Facts) -> Tensor:
        return f.known & (f.value != 0) if f.dtype == torch.bool else torch.zeros((), dtype=torch.bool)

    def absorb(self, call: Call) -> tuple[Tensor, Tensor]:
        true = self._true(call.inputs[0])
        for f in call.inputs[1:]:
            true = true | self._true(f)
        return true, torch.ones((), dtype=torch.float64)

    def matters(self, call: Call, i: int) -> Tensor | None:
        others = [~self._true(f) for j, f in enumerate(call.inputs) if j != i]
        return others[0] if others else None


class Divide(Pointwise):
    """0 / x = 0 for a divisor that is not zero."""

    def absorb(self, call: Call) -> tuple[Tensor, Tensor] | None:
        numerator = call.facts_at(0)
        return None if numerator is None or call.at(2, "rounding_mode") else (numerator.zero, _ZERO)

    def matters(self, call: Call, i: int) -> Tensor | None:
        numerator = call.facts_at(0)
        if numerator is None or len(call.inputs) < 2 or call.sources[0] is call.sources[1]:
            return None
        return numerator.maybe if i == 1 else None


class Add(Pointwise):
    """x + (-inf) = -inf: masks of attention. Covers sub, whose second operand changes sign."""

    def absorb(self, call: Call) -> tuple[Tensor, Tensor] | None:
        infinite = [f.known & f.value.isinf() for f in call.inputs]
        if len(infinite) != 2 or not any(bool(m.any()) for m in infinite):
            return None
        a, b = infinite
        sign = -1.0 if call.op in ("sub", "rsub") else 1.0
        first, second = call.inputs[0].value, call.inputs[1].value
        if call.op == "rsub":
            first, second = -first, -second
        return (a ^ b), torch.where(a, first, sign * second if call.op == "sub" else second)

    def matters(self, call: Call, i: int) -> Tensor | None:
        if len(call.inputs) != 2:
            return None
        other = call.inputs[1 - i]
        return ~(other.known & other.value.isinf())


class Where(Pointwise):
    """where(condition, a, b): only the chosen side matters where the condition is known."""

    def _parts(self, call: Call) -> tuple[Facts | None, Facts | None, Facts | None]:
        return call.facts_at(0), call.facts_at(1), call.facts_at(2)

    def absorb(self, call: Call) -> tuple[Tensor, Tensor] | None:
        condition, a, b = self._parts(call)
        if condition is None or a is None or b is None:
            return None
        yes = condition.known & (condition.value != 0)
        no = condition.known & (condition.value == 0)
        same = a.known & b.known & (a.value == b.value)
        return (yes & a.known) | (no & b.known) | same, torch.where(yes | same, a.value, b.value)

    def matters(self, call: Call, i: int) -> Tensor | None:
        condition, a, b = self._parts(call)
        if condition is None or a is None or b is None:
            return None
        if i == 0:
            return ~(a.known & b.known & (a.value == b.value))
        return ~(condition.known & ((condition.value == 0) if i == 1 else (condition.value != 0)))


class MaskedFill(Pointwise):
    """masked_fill(x, mask, value): x matters only where the mask may be False."""

    def absorb(self, call: Call) -> tuple[Tensor, Tensor] | None:
        x, mask = call.inputs[0], call.inputs[1]
        fill = call.at(2)
        if isinstance(fill, (int, float, bool)):
            filled, value = torch.ones((), dtype=torch.bool), torch.tensor(float(fill), dtype=torch.float64)
        elif len(call.inputs) == 3:
            filled, value = call.inputs[2].known, call.inputs[2].value
        else:
            return None
        yes = mask.known & (mask.value != 0)
        no = mask.known & (mask.value == 0)
        same = x.known & filled & (x.value == value)
        return (yes & filled) | (no & x.known) | same, torch.where(yes, value, x.value)

    def matters(self, call: Call, i: int) -> Tensor | None:
        mask = call.inputs[1]
        if i == 0:
            return ~(mask.known & (mask.value != 0))
        return ~(mask.known & (mask.value == 0)) if i == 2 else None
