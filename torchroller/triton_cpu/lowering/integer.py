"""Integer division and shifts without traps or undefined results.

An x86 division by zero, or of the smallest integer by -1, ends the process; LLVM leaves both, and shifts by more than
the width, undefined. Lanes that a mask switches off are computed too, so no operand may do harm:

    x / 0 = 0,  x % 0 = 0,  MIN / -1 = MIN,  MIN % -1 = 0;  a shift by the width or more shifts everything out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.ttir import Value

if TYPE_CHECKING:
    from torchroller.triton_cpu.lowering.evaluate import Evaluator

DIVISIONS = {
    "arith.divsi": ("sdiv", True), "arith.remsi": ("srem", True),
    "arith.divui": ("udiv", False), "arith.remui": ("urem", False),
}  # fmt: skip
SHIFTS = {"arith.shli": "shl", "arith.shrsi": "ashr", "arith.shrui": "lshr"}

# Vectors shorter than this are divided lane by lane: conversions would cost as much.
_FEW_LANES = 4


def known_value(v: Value) -> int | None:
    """The value of an integer operand that is one constant everywhere; None where it is not."""
    op = v.op
    while op is not None and op.name in ("tt.splat", "tt.broadcast", "tt.expand_dims") and op.operands:
        op = op.operands[0].op
    if op is None or op.name != "arith.constant":
        return None
    text = op.text.strip().removeprefix("dense<").split(" : ")[0].rstrip(">").strip()
    try:
        return int(text)
    except ValueError:
        return None


def _bits(elem: str) -> int:
    return 64 if elem == "index" else int(elem[1:])


def divide(
    ev: Evaluator, name: str, elem: str, args: list[str], lanes: int | None, divisor: int | None
) -> str:
    """Quotient or remainder, by the operation's name; `divisor` where it is a known constant."""
    code, type, bits = ev.code, lt.typed(elem, lanes), _bits(elem)
    instruction, signed = DIVISIONS[name]
    a, b = args
    if divisor not in (None, 0, -1, (1 << bits) - 1):
        return code.let(f"{instruction} {type} {a}, {b}")
    zero, one = lt.constant("0", elem, lanes), lt.constant("1", elem, lanes)
    bools = lt.typed("i1", lanes)
    remainder = instruction.endswith("rem")
    is_zero = code.let(f"icmp eq {type} {b}, {zero}")
    is_minus = code.let(f"icmp eq {type} {b}, {lt.constant('-1', elem, lanes)}") if signed else None
    unsafe = code.let(f"or {bools} {is_zero}, {is_minus}") if signed else is_zero
    safe = code.let(f"select {bools} {unsafe}, {type} {one}, {type} {b}")
    if lanes is not None and lanes >= _FEW_LANES and bits <= 32:
        quotient = _by_floats(ev, a, safe, elem, bits, lanes, signed)
        if remainder:
            product = code.let(f"mul {type} {quotient}, {safe}")
            return code.let(f"sub {type} {a}, {product}")  # 0 where the divisor was replaced by 1
    else:
        quotient = code.let(f"{instruction} {type} {a}, {safe}")
        if remainder:
            return quotient
    if is_minus is not None:
        negative = code.let(f"sub {type} {zero}, {a}")
        quotient = code.let(f"select {bools} {is_minus}, {type} {negative}, {type} {quotient}")
    return code.let(f"select {bools} {is_zero}, {type} {zero}, {type} {quotient}")


def _by_floats(ev: Evaluator, a: str, b: str, elem: str, bits: int, lanes: int, signed: bool) -> str:
    """Truncated quotient through floating point, which vectors can divide.

    Exact: |a| < 2^bits, and a quotient that is no integer lies at least 1 / |b| below the next one, more than half a
    unit in the last place of f64 (bits = 32) or f32 (bits <= 16).
    """
    code, type = ev.code, lt.typed(elem, lanes)
    wide = lt.typed("f64" if bits > 16 else "f32", lanes)
    into, back = ("sitofp", "fptosi") if signed else ("uitofp", "fptoui")
    x, y = (code.let(f"{into} {type} {v} to {wide}") for v in (a, b))
    quotient = code.let(f"fdiv {wide} {x}, {y}")
    return code.let(f"{back} {wide} {quotient} to {type}")


def shift(ev: Evaluator, name: str, elem: str, args: list[str], lanes: int | None, amount: int | None) -> str:
    """A shift; `amount` where it is a known constant."""
    code, type, bits, instruction = ev.code, lt.typed(elem, lanes), _bits(elem), SHIFTS[name]
    x, by = args
    if amount is not None and 0 <= amount < bits:
        return code.let(f"{instruction} {type} {x}, {by}")
    inside = code.let(f"icmp ult {type} {by}, {lt.constant(str(bits), elem, lanes)}")
    bools = lt.typed("i1", lanes)
    if instruction == "ashr":
        most = lt.constant(str(bits - 1), elem, lanes)
        by = code.let(f"select {bools} {inside}, {type} {by}, {type} {most}")
        return code.let(f"ashr {type} {x}, {by}")
    shifted = code.let(f"{instruction} {type} {x}, {by}")
    return code.let(f"select {bools} {inside}, {type} {shifted}, {type} {lt.constant('0', elem, lanes)}")
