"""A small language for straight-line vector code: Python expressions that write LLVM IR.

    y = body.fma(x, x, 1.0)        # numbers are splatted
    r = (x < 0).select(-y, y)

Comparisons are ordered (false when either side is NaN) except `!=`, which is unordered.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

_INTRINSIC_SUFFIX = {"half": "f16", "bfloat": "bf16", "float": "f32", "double": "f64"}
INTEGER_OF = {"float": "i32", "double": "i64", "half": "i16", "bfloat": "i16"}
_FLOATS = tuple(_INTRINSIC_SUFFIX)

Number: TypeAlias = "Value | float | int"


@dataclass(frozen=True, eq=False)
class Value:
    """An SSA value or constant: `lanes` elements of LLVM scalar type `type`."""

    body: Body
    text: str
    type: str

    def __add__(self, other: Number) -> Value:
        return self.body.binary("fadd" if self.is_float else "add", self, other)

    def __sub__(self, other: Number) -> Value:
        return self.body.binary("fsub" if self.is_float else "sub", self, other)

    def __rsub__(self, other: Number) -> Value:
        return self.body.value(other, self.type) - self

    def __mul__(self, other: Number) -> Value:
        return self.body.binary("fmul" if self.is_float else "mul", self, other)

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other: Number) -> Value:
        return self.body.binary("fdiv", self, other)

    def __rtruediv__(self, other: Number) -> Value:
        return self.body.value(other, self.type) / self

    def __neg__(self) -> Value:
        return self.body.emit(f"fneg {self.body.typed(self.type)} {self.text}", self.type)

    def __and__(self, other: Number) -> Value:
        return self.body.binary("and", self, other)

    def __or__(self, other: Number) -> Value:
        return self.body.binary("or", self, other)

    def __xor__(self, other: Number) -> Value:
        return self.body.binary("xor", self, other)

    def __lshift__(self, bits: int) -> Value:
        return self.body.binary("shl", self, bits)

    def __rshift__(self, bits: int) -> Value:
        return self.body.binary("ashr", self, bits)

    def __lt__(self, other: Number) -> Value:
        return self.body.compare("olt", "slt", self, other)

    def __le__(self, other: Number) -> Value:
        return self.body.compare("ole", "sle", self, other)

    def __gt__(self, other: Number) -> Value:
        return self.body.compare("ogt", "sgt", self, other)

    def __ge__(self, other: Number) -> Value:
        return self.body.compare("oge", "sge", self, other)

    def equals(self, other: Number) -> Value:
        return self.body.compare("oeq", "eq", self, other)

    def differs(self, other: Number) -> Value:
        return self.body.compare("une", "ne", self, other)

    def is_nan(self) -> Value:
        return self.body.compare("uno", "ne", self, self)

    def select(self, yes: Number, no: Number) -> Value:
        """Lane by lane `yes` where this (an i1) is true, else `no`; at least one is a Value."""
        kind = next(value.type for value in (yes, no) if isinstance(value, Value))
        a, b = self.body.value(yes, kind), self.body.value(no, kind)
        typed = self.body.typed
        return self.body.emit(
            f"select {typed('i1')} {self.text}, {typed(kind)} {a.text}, {typed(kind)} {b.text}", kind
        )

    @property
    def is_float(self) -> bool:
        return self.type in _FLOATS

    def bits(self) -> Value:
        """The same bits as integers."""
        return self.cast("bitcast", INTEGER_OF[self.type])

    def as_float(self, kind: str) -> Value:
        """The same bits as floats of LLVM type `kind`."""
        return self.cast("bitcast", kind)

    def cast(self, operation: str, kind: str) -> Value:
        return self.body.emit(
            f"{operation} {self.body.typed(self.type)} {self.text} to {self.body.typed(kind)}", kind
        )


class Body:
    """The instructions of one function over `lanes` lanes (1: scalars)."""

    def __init__(self, symbol: str, lanes: int, features: frozenset[str] = frozenset()) -> None:
        self.symbol = symbol
        self.lanes = lanes
        self.features = features
        self.allocas: list[str] = []
        self.lines: list[str] = []
        self.helpers: list[str] = []
        self.declarations: list[str] = []
        self.count = 0

    def typed(self, kind: str) -> str:
        return kind if self.lanes == 1 else f"<{self.lanes} x {kind}>"

    def fresh(self) -> str:
        self.count += 1
        return f"%v{self.count}"

    def emit(self, instruction: str, kind: str) -> Value:
        name = self.fresh()
        self.lines.append(f"  {name} = {instruction}")
        return Value(self, name, kind)

    def parameter(self, index: int, kind: str) -> Value:
        return Value(self, f"%a{index}", kind)

    def value(self, number: Number, kind: str) -> Value:
        """A constant in every lane, rounded to `kind`; Values pass through."""
        if isinstance(number, Value):
            return number
        if kind in _FLOATS:
            literal = float_literal(float(number), kind)
        else:
            literal = ("true" if number else "false") if kind == "i1" else str(int(number))
        return Value(self, literal if self.lanes == 1 else f"splat ({kind} {literal})", kind)

    def binary(self, operation: str, a: Value, b: Number) -> Value:
        b = self.value(b, a.type)
        return self.emit(f"{operation} {self.typed(a.type)} {a.text}, {b.text}", a.type)

    def compare(self, ordered: str, signed: str, a: Value, b: Number) -> Value:
        b = self.value(b, a.type)
        operation = f"fcmp {ordered}" if a.is_float else f"icmp {signed}"
        return self.emit(f"{operation} {self.typed(a.type)} {a.text}, {b.text}", "i1")

    def intrinsic(self, name: str, *arguments: Value) -> Value:
        """A call of `llvm.<name>` overloaded on the type of the first argument alone."""
        kind = arguments[0].type
        element = _INTRINSIC_SUFFIX.get(kind, kind)
        suffix = element if self.lanes == 1 else f"v{self.lanes}{element}"
        given = ", ".join(f"{self.typed(a.type)} {a.text}" for a in arguments)
        return self.emit(f"call {self.typed(kind)} @llvm.{name}.{suffix}({given})", kind)

    def fma(self, a: Value, b: Number, c: Number) -> Value:
        return self.intrinsic("fma", a, self.value(b, a.type), self.value(c, a.type))

    def abs(self, a: Value) -> Value:
        return self.intrinsic("fabs", a)

    def copysign(self, magnitude: Value, sign: Value) -> Value:
        return self.intrinsic("copysign", magnitude, sign)

    def sqrt(self, a: Value) -> Value:
        return self.intrinsic("sqrt", a)

    def round_even(self, a: Value) -> Value:
        return self.intrinsic("rint", a)

    def at_most(self, a: Value, limit: float) -> Value:
        """min(a, limit) that keeps NaN: one minps."""
        return (a > limit).select(limit, a)

    def at_least(self, a: Value, limit: float) -> Value:
        """max(a, limit) that keeps NaN: one maxps."""
        return (a < limit).select(limit, a)

    def polynomial(self, x: Value, coefficients: Sequence[float]) -> Value:
        """Σ cᵢ xⁱ by Horner's rule, lowest power first."""
        result = self.value(coefficients[-1], x.type)
        for c in reversed(coefficients[:-1]):
            result = self.fma(x, result, c)
        return result

    def polynomial_pairs(self, x: Value, coefficients: Sequence[float]) -> Value:
        """Σ cᵢ xⁱ with even and odd powers apart: half the latency, one multiplication more."""
        square = x * x
        even = self.polynomial(square, coefficients[0::2])
        odd = self.polynomial(square, coefficients[1::2])
        return self.fma(x, odd, even)

    def polynomial_tree(self, x: Value, coefficients: Sequence[float]) -> Value:
        """Σ cᵢ xⁱ by Estrin's scheme: a chain of log₂ n steps, a few multiplications more than Horner's.

        A long chain of dependent operations fills the schedulers of a core (about 128 operations on Zen 3)
        before independent elements can overlap it: the length of the chain, not the count, then sets the time.
        """
        terms = [self.value(c, x.type) for c in coefficients]
        power = x
        while len(terms) > 1:
            pairs = [self.fma(power, terms[i + 1], terms[i]) for i in range(0, len(terms) - 1, 2)]
            terms = pairs + terms[2 * len(pairs) :]
            if len(terms) > 1:
                power = power * power
        return terms[0]

    def lookup(self, table: Sequence[float], index: Value) -> Value:
        """table[index % 16], floats, lane by lane: an instruction of AVX-512 for 16 lanes."""
        values = ", ".join(f"float {float_literal(c, 'float')}" for c in table)
        found = []
        for start in range(0, self.lanes, 16):
            lanes = min(16, self.lanes)
            if self.lanes == 1:
                whole = f"insertelement <16 x i32> zeroinitializer, i32 {index.text}, i32 0"
            else:  # what lies behind the last lane comes out of the zeros
                order = [start + i if i < lanes else self.lanes for i in range(16)]
                whole = _shuffle(self.typed("i32"), index.text, "zeroinitializer", order)
            at = self.emit(whole, "i32").text
            call = "call <16 x float> @llvm.x86.avx512.permvar.sf.512"
            found.append(self.emit(f"{call}(<16 x float> <{values}>, <16 x i32> {at})", "float"))
        if self.lanes == 1:
            return self.emit(f"extractelement <16 x float> {found[0].text}, i32 0", "float")
        width = 16
        while len(found) > 1:
            order = list(range(2 * width))
            found = [self.emit(_shuffle(f"<{width} x float>", a.text, b.text, order), "float")
                     for a, b in zip(found[::2], found[1::2])]  # fmt: skip
            width *= 2
        return self.emit(_shuffle(f"<{width} x float>", found[0].text, "poison", range(self.lanes)), "float")

    def library(self, name: str, *arguments: Value) -> Value:
        """libm's `name`, lane by lane."""
        kind = arguments[0].type
        self.declarations.append(f"declare {kind} @{name}({', '.join(a.type for a in arguments)})")
        if self.lanes == 1:
            given = ", ".join(f"{a.type} {a.text}" for a in arguments)
            return self.emit(f"call {kind} @{name}({given})", kind)
        return self._library_loop(name, None, None, arguments)

    def library_where(self, mask: Value, name: str, otherwise: Value, *arguments: Value) -> Value:
        """libm's `name` in the lanes where `mask` holds, `otherwise` elsewhere; skipped when none does."""
        kind = arguments[0].type
        self.declarations.append(f"declare {kind} @{name}({', '.join(a.type for a in arguments)})")
        return self._library_loop(name, mask, otherwise, arguments)

    def _library_loop(
        self, name: str, mask: Value | None, otherwise: Value | None, arguments: Sequence[Value]
    ) -> Value:
        """A loop over the lanes in a function of its own, reached through memory: rare, and kept small."""
        kind = arguments[0].type
        helper = f"{self.symbol}.{name}"
        slots = []
        for operand in [*arguments, *([otherwise] if otherwise is not None else [])]:
            slots.append(self._slot(kind))
            self.lines.append(f"  store {self.typed(kind)} {operand.text}, ptr {slots[-1]}")
        result = slots[-1] if otherwise is not None else self._slot(kind)
        conditions = None
        if mask is not None:
            conditions = self._slot("i8")
            wide = mask.cast("zext", "i8")
            self.lines.append(f"  store {self.typed('i8')} {wide.text}, ptr {conditions}")
            label = self.fresh()[1:]
            some = mask.text
            if self.lanes > 1:
                some = self.fresh()
                reduce = f"@llvm.vector.reduce.or.v{self.lanes}i1"
                self.lines.append(f"  {some} = call i1 {reduce}({self.typed('i1')} {mask.text})")
            self.lines += [f"  br i1 {some}, label %{label}.slow, label %{label}.done", f"{label}.slow:"]
        given = ", ".join(f"ptr {slot}" for slot in [*slots[: len(arguments)], result, conditions or "null"])
        self.lines.append(f"  call void @{helper}({given})")
        if mask is not None:
            self.lines += [f"  br label %{label}.done", f"{label}.done:"]
        self.helpers.append(_loop_helper(helper, name, kind, len(arguments), self.lanes, mask is not None))
        return self.emit(f"load {self.typed(kind)}, ptr {result}", kind)

    def _slot(self, kind: str) -> str:
        name = self.fresh()
        self.allocas.append(f"  {name} = alloca {self.typed(kind)}, align 64")
        return name


def _shuffle(type: str, a: str, b: str, order: Iterable[int]) -> str:
    picked = [f"i32 {i}" for i in order]
    return f"shufflevector {type} {a}, {type} {b}, <{len(picked)} x i32> <{', '.join(picked)}>"


def _loop_helper(helper: str, name: str, kind: str, arity: int, lanes: int, masked: bool) -> str:
    """`void helper(ptr a0 …, ptr result, ptr mask)`: result[i] = name(a0[i] …) in each lane (of the mask)."""
    parameters = "".join(f"ptr %a{i}, " for i in range(arity))
    loads = "\n".join(
        f"  %a{i}.p = getelementptr {kind}, ptr %a{i}, i64 %i\n  %a{i}.v = load {kind}, ptr %a{i}.p"
        for i in range(arity)
    )
    given = ", ".join(f"{kind} %a{i}.v" for i in range(arity))
    test = "br label %call"
    if masked:
        test = """%m.p = getelementptr i8, ptr %mask, i64 %i
  %m = load i8, ptr %m.p
  %wanted = icmp ne i8 %m, 0
  br i1 %wanted, label %call, label %next"""
    return f"""define internal void @{helper}({parameters}ptr %result, ptr %mask) noinline cold {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %i.next, %next ]
  {test}
call:
{loads}
  %value = call {kind} @{name}({given})
  %result.p = getelementptr {kind}, ptr %result, i64 %i
  store {kind} %value, ptr %result.p
  br label %next
next:
  %i.next = add i64 %i, 1
  %more = icmp ult i64 %i.next, {lanes}
  br i1 %more, label %loop, label %done
done:
  ret void
}}
"""


def float_literal(number: float, kind: str) -> str:
    """LLVM's exact spelling of a constant of type `kind`, rounded to it."""
    if kind == "float":
        number = round_to_float(number)
    if kind == "half":
        return f"0xH{struct.unpack('<H', struct.pack('<e', number))[0]:04X}"
    return f"0x{struct.unpack('<Q', struct.pack('<d', number))[0]:016X}"


def round_to_float(number: float) -> float:
    """The float32 nearest to `number`."""
    try:
        return struct.unpack("<f", struct.pack("<f", number))[0]
    except OverflowError:
        return float("inf") if number > 0 else float("-inf")
