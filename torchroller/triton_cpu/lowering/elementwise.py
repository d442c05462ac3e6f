"""The table of operations that act place by place: arith, math and a few of tt.

Each entry writes LLVM IR for scalars (`lanes` is None) or vectors. Half types compute in f32 and round after every
operation, as Triton does on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torchroller.triton_cpu.lowering import float8, integer
from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.ttir import Op

if TYPE_CHECKING:
    from torchroller.triton_cpu.lowering.evaluate import Evaluator

Emit = Callable[["Evaluator", list[str], "int | None"], str]

_FLOAT_BINARY = {
    "arith.addf": "fadd",
    "arith.subf": "fsub",
    "arith.mulf": "fmul",
    "arith.divf": "fdiv",
    "tt.precise_divf": "fdiv",
    "arith.remf": "frem",
}
_CONTRACTED = {"arith.addf", "arith.subf", "arith.mulf"}  # a * b + c may become one fma
_FLOAT_INTRINSIC = {
    "arith.maximumf": "maximum",
    "arith.minimumf": "minimum",
    "arith.maxnumf": "maxnum",
    "arith.minnumf": "minnum",
    "math.fma": "fma",
    "math.sqrt": "sqrt",
    "tt.precise_sqrt": "sqrt",
    "math.absf": "fabs",
    "math.floor": "floor",
    "math.ceil": "ceil",
    "math.trunc": "trunc",
    "math.round": "round",
    "math.roundeven": "roundeven",
    "math.copysign": "copysign",
}
_INT_BINARY = {
    "arith.addi": "add", "arith.subi": "sub", "arith.muli": "mul",
    "arith.andi": "and", "arith.ori": "or", "arith.xori": "xor",
}  # fmt: skip
_INT_INTRINSIC = {"arith.maxsi": "smax", "arith.minsi": "smin", "arith.maxui": "umax", "arith.minui": "umin"}
_MATH = {
    "math.exp": "exp", "math.exp2": "exp2", "math.log": "log", "math.log2": "log2", "math.log1p": "log1p",
    "math.expm1": "expm1", "math.tanh": "tanh", "math.erf": "erf", "math.sin": "sin", "math.cos": "cos",
    "math.tan": "tan", "math.rsqrt": "rsqrt", "math.powf": "pow", "math.asin": "asin", "math.acos": "acos",
    "math.atan": "atan", "math.sinh": "sinh", "math.cosh": "cosh", "math.log10": "log10", "math.atan2": "atan2",
}  # fmt: skip
_CASTS = {
    "arith.extf": "fpext", "arith.truncf": "fptrunc", "arith.extsi": "sext", "arith.extui": "zext",
    "arith.trunci": "trunc", "arith.sitofp": "sitofp", "arith.uitofp": "uitofp", "arith.fptosi": "fptosi",
    "arith.fptoui": "fptoui", "arith.bitcast": "bitcast", "tt.bitcast": "bitcast", "tt.int_to_ptr": "inttoptr",
    "tt.ptr_to_int": "ptrtoint", "arith.index_cast": "index", "tt.fp_to_fp": "fp",
}  # fmt: skip
_PREDICATES = {"eq", "ne", "slt", "sle", "sgt", "sge", "ult", "ule", "ugt", "uge"}
_FLOAT_PREDICATES = {
    "oeq",
    "one",
    "olt",
    "ole",
    "ogt",
    "oge",
    "ueq",
    "une",
    "ult",
    "ule",
    "ugt",
    "uge",
    "ord",
    "uno",
}

COSTLY = {name: 12 for name in _MATH} | {
    "arith.divf": 4,
    "math.sqrt": 4,
    "tt.precise_sqrt": 4,
    "arith.remf": 20,
}


def _suffix(elem: str, lanes: int | None) -> str:
    base = {"float": "f32", "double": "f64", "half": "f16", "bfloat": "bf16"}.get(
        lt.scalar(elem), lt.scalar(elem)
    )
    return base if lanes is None else f"v{lanes}{base}"


def intrinsic(
    ev: Evaluator, name: str, elem: str, args: list[str], lanes: int | None, extra: str = ""
) -> str:
    """Call an overloaded LLVM intrinsic whose arguments and result all have one type."""
    type, symbol = lt.typed(elem, lanes), f"@llvm.{name}.{_suffix(elem, lanes)}"
    arguments = ", ".join(f"{type} {a}" for a in args) + extra
    ev.code.declare(
        symbol, f"declare {type} {symbol}({', '.join([type] * len(args))}{', i1' if extra else ''})"
    )
    return ev.code.let(f"call {type} {symbol}({arguments})")


def convert(ev: Evaluator, value: str, source: str, target: str, lanes: int | None) -> str:
    """Float to float, to nearest; f16, bf16 and 8-bit floats pass through f32 where the other side is not f32."""
    if source == target:
        return value
    if source in float8.FORMATS:
        return convert(ev, float8.to_f32(ev, value, source, lanes), "f32", target, lanes)
    if target in float8.FORMATS:
        single = _to_odd(ev, value, lanes) if source == "f64" else convert(ev, value, source, "f32", lanes)
        return float8.from_f32(ev, single, target, lanes)
    if {source, target} & {"f16", "bf16"} and "f32" not in (source, target):
        value = _to_odd(ev, value, lanes) if source == "f64" else convert(ev, value, source, "f32", lanes)
        return convert(ev, value, "f32", target, lanes)
    if target == "bf16":
        return _to_bfloat16(ev, value, lanes)
    if source == "bf16":
        wide = ev.code.let(f"zext {lt.typed('i16', lanes)} {value} to {lt.typed('i32', lanes)}")
        moved = ev.code.let(f"shl {lt.typed('i32', lanes)} {wide}, {lt.constant('16', 'i32', lanes)}")
        return ev.code.let(f"bitcast {lt.typed('i32', lanes)} {moved} to {lt.typed('f32', lanes)}")
    op = "fpext" if lt.size_bytes(target) > lt.size_bytes(source) else "fptrunc"
    return ev.code.let(f"{op} {lt.typed(source, lanes)} {value} to {lt.typed(target, lanes)}")


def _to_bfloat16(ev: Evaluator, value: str, lanes: int | None) -> str:
    """f32 → bf16 to nearest even; where there is no instruction, LLVM would call a library function for scalars."""
    code, ints, shorts = ev.code, lt.typed("i32", lanes), lt.typed("i16", lanes)
    if "avx512bf16" in ev.features:
        brain = "bfloat" if lanes is None else f"<{lanes} x bfloat>"
        narrow = code.let(f"fptrunc {lt.typed('f32', lanes)} {value} to {brain}")
        return code.let(f"bitcast {brain} {narrow} to {shorts}")

    def number(n: int) -> str:
        return lt.constant(str(n), "i32", lanes)

    bits = code.let(f"bitcast {lt.typed('f32', lanes)} {value} to {ints}")
    high = code.let(f"lshr {ints} {bits}, {number(16)}")
    odd = code.let(f"and {ints} {high}, {number(1)}")
    half = code.let(f"add {ints} {bits}, {number(0x7FFF)}")
    total = code.let(f"add {ints} {half}, {odd}")
    rounded = code.let(f"lshr {ints} {total}, {number(16)}")
    quiet = code.let(f"or {ints} {high}, {number(0x40)}")
    is_nan = code.let(f"fcmp uno {lt.typed('f32', lanes)} {value}, {value}")
    result = code.let(f"select {lt.typed('i1', lanes)} {is_nan}, {ints} {quiet}, {ints} {rounded}")
    return code.let(f"trunc {ints} {result} to {shorts}")


def _to_odd(ev: Evaluator, value: str, lanes: int | None) -> str:
    """f64 → f32 rounded to odd: toward zero, with the last bit set where that was inexact.

    A second rounding, to a half type, then gives what one rounding would. (LLVM calls a library for f64 → half.)
    """
    code, double, single = ev.code, lt.typed("f64", lanes), lt.typed("f32", lanes)
    ints, bools = lt.typed("i32", lanes), lt.typed("i1", lanes)
    near = code.let(f"fptrunc {double} {value} to {single}")
    back = code.let(f"fpext {single} {near} to {double}")
    inexact = code.let(f"fcmp one {double} {back}, {value}")
    sizes = [intrinsic(ev, "fabs", "f64", [v], lanes) for v in (back, value)]
    beyond = code.let(f"fcmp ogt {double} {sizes[0]}, {sizes[1]}")
    bits = code.let(f"bitcast {single} {near} to {ints}")
    steps = [code.let(f"zext {bools} {flag} to {ints}") for flag in (beyond, inexact)]
    truncated = code.let(f"sub {ints} {bits}, {steps[0]}")
    odd = code.let(f"or {ints} {truncated}, {steps[1]}")
    return code.let(f"bitcast {ints} {odd} to {single}")


def _in_f32(elem: str, emit: Callable[[Evaluator, str, list[str], int | None], str]) -> Emit:
    """Compute a float operation in f32 where `elem` is a half type."""
    if elem not in ("f16", "bf16"):
        return lambda ev, args, lanes: emit(ev, elem, args, lanes)

    def widened(ev: Evaluator, args: list[str], lanes: int | None) -> str:
        wide = [convert(ev, a, elem, "f32", lanes) for a in args]
        return convert(ev, emit(ev, "f32", wide, lanes), "f32", elem, lanes)

    return widened


def math_call(ev: Evaluator, name: str, elem: str, args: list[str], lanes: int | None) -> str:
    """A call of our own inline vector function."""
    from torchroller.triton_cpu.vector_math import function

    code, type = ev.code, lt.typed(elem, lanes)
    if lanes == 1:  # the one lane left of a fold: these functions know no vectors of one
        one = [code.let(f"extractelement {type} {a}, i64 0") for a in args]
        value = math_call(ev, name, elem, one, None)
        return code.let(f"insertelement {type} poison, {lt.scalar(elem)} {value}, i64 0")
    symbol, text = function(name, elem, lanes or 1, ev.features)
    code.declare(symbol, text)
    arguments = ", ".join(f"{type} {a}" for a in args)
    return code.let(f"call {type} @{symbol}({arguments})")


def _toward_zero(ev: Evaluator, value: str, source: str, target: str, lanes: int | None) -> str:
    """Float to a narrower float, rounded toward zero: to nearest, then one step back where that was too far."""
    if target in float8.FORMATS:
        return float8.from_f32(ev, convert(ev, value, source, "f32", lanes), target, lanes, toward_zero=True)
    code = ev.code
    near = convert(ev, value, source, target, lanes)
    back = convert(ev, near, target, source, lanes)
    kind, bits = lt.typed(source, lanes), lt.typed(f"i{8 * lt.size_bytes(target)}", lanes)
    sizes = [intrinsic(ev, "fabs", source, [v], lanes) for v in (back, value)]
    beyond = code.let(f"fcmp ogt {kind} {sizes[0]}, {sizes[1]}")
    as_bits = code.let(f"bitcast {lt.typed(target, lanes)} {near} to {bits}")
    step = code.let(f"zext {lt.typed('i1', lanes)} {beyond} to {bits}")
    stepped = code.let(f"sub {bits} {as_bits}, {step}")
    return code.let(f"bitcast {bits} {stepped} to {lt.typed(target, lanes)}")


def _to_integer(ev: Evaluator, kind: str, value: str, source: str, target: str, lanes: int | None) -> str:
    """Float to integer, truncated; what does not fit saturates, NaN gives 0, as on a GPU.

    Integers of 8 and 16 bits are cut out of the 32-bit result, as C compilers do and torch's CPU casts show.
    """
    code, bits = ev.code, 8 * lt.size_bytes(target)
    narrow = bits < 32
    to = lt.typed("i32" if narrow else target, lanes)
    if lanes is not None and (narrow or kind == "fptosi"):
        result = _saturated(ev, value, source, "i32" if narrow else lt.scalar(target), lanes)
        return code.let(f"trunc {to} {result} to {lt.typed(target, lanes)}") if narrow else result
    name = "fptosi" if narrow else kind
    symbol = (
        f"@llvm.{name}.sat.{_suffix('i32' if narrow else lt.scalar(target), lanes)}.{_suffix(source, lanes)}"
    )
    code.declare(symbol, f"declare {to} {symbol}({lt.typed(source, lanes)})")
    result = code.let(f"call {to} {symbol}({lt.typed(source, lanes)} {value})")
    return code.let(f"trunc {to} {result} to {lt.typed(target, lanes)}") if narrow else result


def _saturated(ev: Evaluator, value: str, source: str, target: str, lanes: int) -> str:
    """fptosi.sat on vectors, which LLVM would take apart lane by lane: convert what fits, select the rest."""
    code, bits = ev.code, int(target[1:])
    floats, ints, masks = lt.typed(source, lanes), lt.typed(target, lanes), lt.typed("i1", lanes)
    low, high = (
        lt.constant(lt.float_literal(f"{sign}{2.0 ** (bits - 1)!r}", source), source, lanes) for sign in "- "
    )
    above = code.let(f"fcmp oge {floats} {value}, {high}")
    not_below = code.let(f"fcmp oge {floats} {value}, {low}")  # false for NaN
    below = code.let(f"fcmp olt {floats} {value}, {low}")
    not_above = code.let(f"xor {masks} {above}, {lt.constant('true', 'i1', lanes)}")
    fits = code.let(f"and {masks} {not_below}, {not_above}")
    safe = code.let(f"select {masks} {fits}, {floats} {value}, {floats} zeroinitializer")
    result = code.let(f"fptosi {floats} {safe} to {ints}")
    largest, least = (lt.constant(str(n), target, lanes) for n in (2 ** (bits - 1) - 1, -(2 ** (bits - 1))))
    result = code.let(f"select {masks} {above}, {ints} {largest}, {ints} {result}")
    return code.let(f"select {masks} {below}, {ints} {least}, {ints} {result}")


def _cast(op: Op, source: str, target: str) -> Emit:
    kind = _CASTS[op.name]
    if kind in ("fptrunc", "fp") and "rtz" in op.text:
        return lambda ev, args, lanes: _toward_zero(ev, args[0], source, target, lanes)
    if kind == "bitcast" and "ptr" in (source, target):
        return lambda ev, args, lanes: args[0]  # pointers are opaque
    if kind == "index":
        kind = "sext" if lt.size_bytes(target) > lt.size_bytes(source) else "trunc"
    if kind in ("fpext", "fptrunc", "fp"):
        return lambda ev, args, lanes: convert(ev, args[0], source, target, lanes)

    def emit(ev: Evaluator, args: list[str], lanes: int | None) -> str:
        value, a, b = args[0], source, target
        after = None
        if kind in ("sitofp", "uitofp") and b in ("f16", "bf16"):
            b, after = "f32", target
        if kind in ("fptosi", "fptoui") and a in ("f16", "bf16"):
            value, a = convert(ev, value, a, "f32", lanes), "f32"
        if lt.scalar(a) == lt.scalar(b):
            return value
        if kind in ("fptosi", "fptoui"):
            return _to_integer(ev, kind, value, a, b, lanes)
        value = ev.code.let(f"{kind} {lt.typed(a, lanes)} {value} to {lt.typed(b, lanes)}")
        return convert(ev, value, b, after, lanes) if after else value

    return emit


def _high_product(signed: bool, elem: str) -> Emit:
    def emit(ev: Evaluator, args: list[str], lanes: int | None) -> str:
        bits = int(elem[1:])
        narrow, wide = lt.typed(elem, lanes), lt.typed(f"i{2 * bits}", lanes)
        ext = "sext" if signed else "zext"
        a, b = (ev.code.let(f"{ext} {narrow} {x} to {wide}") for x in args)
        product = ev.code.let(f"mul {wide} {a}, {b}")
        amount = lt.constant(str(bits), f"i{2 * bits}", lanes)
        high = ev.code.let(f"lshr {wide} {product}, {amount}")
        return ev.code.let(f"trunc {wide} {high} to {narrow}")

    return emit


def _clamp(op: Op, elem: str) -> Emit:
    propagate = "propagateNan = all" in op.text

    def emit(ev: Evaluator, kind: str, args: list[str], lanes: int | None) -> str:
        x, low, high = args
        low_name, high_name = ("maximum", "minimum") if propagate else ("maxnum", "minnum")
        return intrinsic(ev, high_name, kind, [intrinsic(ev, low_name, kind, [x, low], lanes), high], lanes)

    return _in_f32(elem, emit)


def _add_pointer(op: Op) -> Emit:
    """Pointer arithmetic on pointers that have no common base (loaded or selected ones)."""
    pointee = op.results[0].type.pointee or "i8"
    memory = "ptr" if pointee.startswith("!") else lt.storage(pointee)
    offset = op.operands[1].type.elem

    def emit(ev: Evaluator, args: list[str], lanes: int | None) -> str:
        return ev.code.let(
            f"getelementptr {memory}, {lt.typed('ptr', lanes)} {args[0]}, {lt.typed(offset, lanes)} {args[1]}"
        )

    return emit


def emitter(op: Op) -> Emit | None:
    """How to write `op` place by place; None where it is no elementwise operation."""
    name = op.name
    if not op.results:
        return None
    elem = op.results[0].type.elem
    if name in _FLOAT_BINARY:
        text, fused = _FLOAT_BINARY[name], name in _CONTRACTED
        return _in_f32(
            elem,
            lambda ev, k, a, n: ev.code.let(
                f"{text} {'contract ' if fused and ev.fusion else ''}{lt.typed(k, n)} {a[0]}, {a[1]}"
            ),
        )
    if name in _FLOAT_INTRINSIC:
        return _in_f32(elem, lambda ev, k, a, n: intrinsic(ev, _FLOAT_INTRINSIC[name], k, a, n))
    if name == "arith.negf" and elem == "bf16":
        return lambda ev, a, n: ev.code.let(
            f"xor {lt.typed(elem, n)} {a[0]}, {lt.constant('-32768', elem, n)}"
        )
    if name == "arith.negf":
        return lambda ev, a, n: ev.code.let(f"fneg {lt.typed(elem, n)} {a[0]}")
    if name in _MATH:
        return _in_f32(elem, lambda ev, k, a, n: math_call(ev, _MATH[name], k, a, n))
    if name in _INT_BINARY:
        return lambda ev, a, n: ev.code.let(f"{_INT_BINARY[name]} {lt.typed(elem, n)} {a[0]}, {a[1]}")
    if name in integer.DIVISIONS:
        known = integer.known_value(op.operands[1])
        return lambda ev, a, n: integer.divide(ev, name, elem, a, n, known)
    if name in integer.SHIFTS:
        known = integer.known_value(op.operands[1])
        return lambda ev, a, n: integer.shift(ev, name, elem, a, n, known)
    if name in _INT_INTRINSIC:
        return lambda ev, a, n: intrinsic(ev, _INT_INTRINSIC[name], elem, a, n)
    if name == "math.absi":
        return lambda ev, a, n: intrinsic(ev, "abs", elem, a, n, extra=", i1 false")
    if name in _CASTS:
        return _cast(op, op.operands[0].type.elem, elem)
    source = op.operands[0].type.elem if op.operands else elem
    if name in ("arith.cmpi", "arith.cmpf"):
        predicate = op.text.split(",")[0].split()[0]
        kind = "icmp" if name == "arith.cmpi" else "fcmp"
        if predicate in ("false", "true"):
            return lambda ev, a, n: lt.constant(predicate, "i1", n)
        if kind == "fcmp" and source in ("f16", "bf16"):
            return lambda ev, a, n: ev.code.let(
                f"fcmp {predicate} {lt.typed('f32', n)} {convert(ev, a[0], source, 'f32', n)}, "
                f"{convert(ev, a[1], source, 'f32', n)}"
            )
        return lambda ev, a, n: ev.code.let(f"{kind} {predicate} {lt.typed(source, n)} {a[0]}, {a[1]}")
    if name == "arith.select":
        return lambda ev, a, n: ev.code.let(
            f"select {lt.typed('i1', n)} {a[0]}, {lt.typed(elem, n)} {a[1]}, {lt.typed(elem, n)} {a[2]}"
        )
    if name in ("tt.mulhiui", "math.mulhiui"):
        return _high_product(False, elem)
    if name == "tt.addptr":
        return _add_pointer(op)
    if name == "tt.clampf":
        return _clamp(op, elem)
    if name == "tt.extern_elementwise":
        from torchroller.triton_cpu.lowering.library import library_call

        return library_call(op, elem)
    return None
