"""Linear forms of integer arithmetic, and run-time tests that a whole mask is true.

`offsets < N` is true for a whole tile when its largest offset is: one scalar comparison selects between a loop without
masks and the masked one. `offsets % N` is linear in a tile that does not wrap: another scalar comparison.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torchroller.triton_cpu.lowering.code import Operand
from torchroller.triton_cpu.lowering.values import Elementwise, Linear, Remap, Splat, Tensor

if TYPE_CHECKING:
    from torchroller.triton_cpu.lowering.evaluate import Evaluator


def _combine(ev: Evaluator, a: Linear, b: Linear, subtract: bool = False) -> Linear | None:
    if b.pointer is not None or (subtract and b.terms):
        return None
    op = ev.code.sub if subtract else ev.code.add
    strides = tuple(op(x, y) for x, y in zip(a.strides, b.strides))
    return Linear(a.pointer, op(a.base, b.base), strides, a.terms + b.terms, a.guards + b.guards)


def add_rule(ev: Evaluator, t: Elementwise, fast: bool) -> Linear | None:
    """addi, addptr."""
    a, b = (x.linear(ev, fast) for x in t.args)
    if b.pointer is not None:
        a, b = b, a
    return _combine(ev, a, b)


def sub_rule(ev: Evaluator, t: Elementwise, fast: bool) -> Linear | None:
    a, b = (x.linear(ev, fast) for x in t.args)
    return _combine(ev, a, b, subtract=True)


def mul_rule(ev: Evaluator, t: Elementwise, fast: bool) -> Linear | None:
    a, b = (x.linear(ev, fast) for x in t.args)
    if not b.uniform:
        a, b = b, a
    if not b.uniform or a.terms or a.pointer is not None or b.pointer is not None:
        return None
    mul = ev.code.mul
    strides = tuple(mul(s, b.base) for s in a.strides)
    return Linear(None, mul(a.base, b.base), strides, (), a.guards + b.guards)


def shift_rule(ev: Evaluator, t: Elementwise, fast: bool) -> Linear | None:
    a, b = (x.linear(ev, fast) for x in t.args)
    if not (b.uniform and isinstance(b.base, int)) or a.terms:
        return None
    factor = 1 << b.base
    mul = ev.code.mul
    return Linear(None, mul(a.base, factor), tuple(mul(s, factor) for s in a.strides), (), a.guards)


def widen_rule(ev: Evaluator, t: Elementwise, fast: bool) -> Linear | None:
    """extsi, index_cast: the position is kept in 64 bits anyway."""
    form = t.args[0].linear(ev, fast)
    return form if t.args[0].elem != "i1" else None


def remainder_rule(ev: Evaluator, t: Elementwise, fast: bool) -> Linear | None:
    """remsi/remui by a uniform divisor: linear where the tile does not wrap (guarded)."""
    a, b = (x.linear(ev, fast) for x in t.args)
    code = ev.code
    if a.uniform and b.uniform:
        if isinstance(a.base, int) and isinstance(b.base, int) and b.base > 0 and a.base >= 0:
            return Linear(None, a.base % b.base, a.strides)
        return None
    if not fast or not b.uniform or not a.affine or a.pointer is not None:
        return None
    if not all(isinstance(s, int) and s >= 0 for s in a.strides):
        return None
    reach = sum(s * (n - 1) for s, n in zip(a.strides, t.shape) if isinstance(s, int))
    # a divisor of zero is the user's fault, but must not trap in code that only tests a guard
    divisor: Operand = b.base
    if not isinstance(divisor, int):
        zero = code.compare("eq", divisor, 0)
        divisor = code.let(f"select i1 {zero}, i64 1, i64 {divisor}")
    base = (
        a.base % divisor
        if isinstance(a.base, int) and isinstance(divisor, int)
        else code.let(f"srem i64 {a.base}, {divisor}")
    )
    fits = code.compare("slt", code.add(base, reach), divisor)
    positive = code.compare("sge", a.base, 0)
    return Linear(None, base, a.strides, (), (*a.guards, *b.guards, fits, positive))


RULES = {
    "arith.addi": add_rule,
    "tt.addptr": add_rule,
    "arith.subi": sub_rule,
    "arith.muli": mul_rule,
    "arith.shli": shift_rule,
    "arith.extsi": widen_rule,
    "arith.index_cast": widen_rule,
    "arith.remsi": remainder_rule,
}


def all_true(ev: Evaluator, mask: Tensor) -> tuple[str, ...] | None:
    """Scalar conditions whose conjunction implies that every element of the mask is true."""
    memo = ev.code.__dict__.setdefault("mask_guards", {})
    if id(mask) not in memo:
        memo[id(mask)] = (mask, _all_true(ev, mask))
    return memo[id(mask)][1]


def _all_true(ev: Evaluator, mask: Tensor) -> tuple[str, ...] | None:
    if mask.buffer is not None:
        return None
    if isinstance(mask, Splat):
        return () if mask.value == "true" else (mask.value,)
    if isinstance(mask, Remap):
        return all_true(ev, mask.source)
    if not isinstance(mask, Elementwise):
        return None
    if mask.name == "arith.andi":
        parts = [all_true(ev, a) for a in mask.args]
        return None if any(p is None for p in parts) else tuple(g for p in parts for g in p or ())
    if mask.name.startswith("arith.cmpi "):
        return _comparison(ev, mask)
    return None


def _comparison(ev: Evaluator, mask: Elementwise) -> tuple[str, ...] | None:
    predicate = mask.name.split()[1]
    a, b = (x.linear(ev, False) for x in mask.args)
    if a.terms or b.terms or a.pointer is not None or b.pointer is not None:
        return None
    code = ev.code
    if predicate in ("ult", "ule"):  # unsigned: additionally nothing on the left may be negative
        low = _extreme(ev, a, mask.shape, largest=False)
        if low is None or not all(s == 0 for s in b.strides):
            return None
        rest = _signed(ev, "s" + predicate[1:], a, b, mask.shape)
        return None if rest is None else (*rest, code.compare("sge", low, 0))
    return _signed(ev, predicate, a, b, mask.shape)


def _signed(
    ev: Evaluator, predicate: str, a: Linear, b: Linear, shape: tuple[int, ...]
) -> tuple[str, ...] | None:
    if predicate not in ("slt", "sle", "sgt", "sge"):
        return None
    code = ev.code
    difference = replace(a, base=0, strides=tuple(code.sub(x, y) for x, y in zip(a.strides, b.strides)))
    reach = _extreme(ev, difference, shape, largest=predicate in ("slt", "sle"))
    if reach is None:
        return None
    return (code.compare(predicate, code.add(a.base, reach), b.base),)


def _extreme(ev: Evaluator, form: Linear, shape: tuple[int, ...], largest: bool) -> Operand | None:
    total: Operand = form.base
    for stride, extent in zip(form.strides, shape):
        if not isinstance(stride, int):
            return None
        if (stride > 0) == largest:
            total = ev.code.add(total, stride * (extent - 1))
    return total
