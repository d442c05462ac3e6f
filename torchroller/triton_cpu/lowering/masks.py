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


# Positions stay below this many elements; products beyond it are taken for hashes.
_FAR = 1 << 31


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


def _bounded(form: Linear, shape: tuple[int, ...]) -> Linear | None:
    """`form` unless its known strides alone run out of 32 bits: numbers that wrap (hashes) are not positions."""
    reach = sum(abs(s) * (n - 1) for s, n in zip(form.strides, shape) if isinstance(s, int))
    return form if reach < _FAR else None


def mul_rule(ev: Evaluator, t: Elementwise, fast: bool) -> Linear | None:
    a, b = (x.linear(ev, fast) for x in t.args)
    if not b.uniform:
        a, b = b, a
    if not b.uniform or a.terms or a.pointer is not None or b.pointer is not None:
        return None
    mul = ev.code.mul
    strides = tuple(mul(s, b.base) for s in a.strides)
    return _bounded(Linear(None, mul(a.base, b.base), strides, (), a.guards + b.guards), t.shape)


def shift_rule(ev: Evaluator, t: Elementwise, fast: bool) -> Linear | None:
    a, b = (x.linear(ev, fast) for x in t.args)
    if not (b.uniform and isinstance(b.base, int) and 0 <= b.base < 31) or a.terms:
        return None
    factor = 1 << b.base
    mul = ev.code.mul
    strides = tuple(mul(s, factor) for s in a.strides)
    return _bounded(Linear(None, mul(a.base, factor), strides, (), a.guards), t.shape)


def widen_rule(ev: Evaluator, t: Elementwise, fast: bool) -> Linear | None:
    """extsi, index_cast: the position is kept in 64 bits anyway; only its start can have wrapped before.

    A tile that itself crosses the end of 32 bits is taken for a mistake, as in Triton's own analysis.
    """
    form, source = t.args[0].linear(ev, fast), t.args[0].elem
    if source == "i32" and isinstance(form.base, str):
        narrow = ev.code.let(f"trunc i64 {form.base} to i32")
        return replace(form, base=ev.code.let(f"sext i32 {narrow} to i64"))
    return form if source in ("i32", "i64", "index") else None


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
    inside = code.compare("sle", code.add(a.base, reach), largest(t.elem))
    return Linear(None, base, a.strides, (), (*a.guards, *b.guards, fits, positive, inside))


def largest(elem: str) -> int:
    """The largest value of a signed integer type."""
    return (1 << (63 if elem == "index" else int(elem[1:]) - 1)) - 1


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
    code, most = ev.code, largest(mask.args[0].elem)
    unsigned = predicate in ("ult", "ule")  # unsigned: additionally nothing on the left may be negative
    guards = _signed(ev, "s" + predicate[1:] if unsigned else predicate, a, b, mask.shape)
    if guards is None:
        return None
    # The forms are exact, the compared integers wrap: they agree where both sides are inside the type's range.
    for form in (a, b):
        low, high = (_extreme(ev, form, mask.shape, largest=k) for k in (False, True))
        if low is None or high is None:
            return None
        guards += (code.compare("sge", low, 0 if unsigned else -most - 1), code.compare("sle", high, most))
    return guards


def conjuncts(mask: Tensor) -> list[Tensor]:
    """The masks that `mask` is the conjunction of."""
    if mask.buffer is None and isinstance(mask, Remap):
        return conjuncts(mask.source)
    if mask.buffer is None and isinstance(mask, Elementwise) and mask.name == "arith.andi":
        return [part for a in mask.args for part in conjuncts(a)]
    return [mask]


_MIRRORED = {"slt": "sgt", "sle": "sge", "sgt": "slt", "sge": "sle", "ult": "ugt", "ule": "uge", "ugt": "ult",
             "uge": "ule"}  # fmt: skip


def prefix_length(ev: Evaluator, mask: Elementwise, dim: int) -> tuple[Operand, tuple[str, ...]] | None:
    """(n, conditions) with: where the conditions hold, the mask is true exactly at coordinates below n along `dim`.

    None where the mask is nothing of the kind, or where n differs from program to program: then only the last one
    meets the end, and testing the mask as a whole serves better.
    """
    if not mask.name.startswith("arith.cmpi "):
        return None
    predicate = mask.name.split()[1]
    forms = [x.linear(ev, False) for x in mask.args]
    if any(f.terms or f.pointer is not None for f in forms):
        return None
    moving, limit = forms
    if moving.uniform:
        moving, limit, predicate = limit, moving, _MIRRORED.get(predicate, predicate)
    steps = tuple(1 if d == dim else 0 for d in range(len(mask.shape)))
    if not limit.uniform or moving.strides != steps or not isinstance(moving.base, int):
        return None
    code, most = ev.code, largest(mask.args[0].elem)
    unsigned = predicate in ("ult", "ule")
    if predicate not in ("slt", "sle", "ult", "ule") or moving.base + mask.shape[dim] - 1 > most:
        return None
    if moving.base < (0 if unsigned else -most - 1):
        return None
    in_range = (
        code.compare("sge", limit.base, 0 if unsigned else -most - 1),
        code.compare("sle", limit.base, most),
    )
    if "false" in in_range:
        return None
    count = code.sub(limit.base, moving.base - (predicate in ("sle", "ule")))
    return count, tuple(c for c in in_range if c != "true")


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
