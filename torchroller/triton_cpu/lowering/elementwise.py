"""The table of operations that act place by place: arith, math and a few of tt.

Each entry writes LLVM IR for scalars (`lanes` is None) or vectors. Half types compute in f32 and round after every
operation, as Triton does on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torchroller.triton_cpu.errors import UnsupportedOperation
from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.ttir import Op

if TYPE_CHECKING:
    from torchroller.triton_cpu.lowering.evaluate import Evaluator

Emit = Callable[["Evaluator", list[str], "int | None"], str]

_FLOAT_BINARY = {
    "arith.addf": "fadd contract",
    "arith.subf": "fsub contract",
    "arith.mulf": "fmul contract",
    "arith.divf": "fdiv",
    "tt.precise_divf": "fdiv",
    "arith.remf": "frem",
}
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
    "arith.addi": "add", "arith.subi": "sub", "arith.muli": "mul", "arith.divsi": "sdiv", "arith.divui": "udiv",
    "arith.remsi": "srem", "arith.remui": "urem", "arith.shli": "shl", "arith.shrsi": "ashr", "arith.shrui": "lshr",
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
    """Float to float; f16 and bf16 pass through f32 where the other side is not f32."""
    if source == target:
        return value
    if {source, target} & {"f16", "bf16"} and "f32" not in (source, target):
        if (
            source == "f64"
        ):  # one rounding only: to odd is not at hand, LLVM rounds f64 → half correctly itself
            return ev.code.let(f"fptrunc {lt.typed(source, lanes)} {value} to {lt.typed(target, lanes)}")
        value = convert(ev, value, source, "f32", lanes)
        return convert(ev, value, "f32", target, lanes)
    op = "fpext" if lt.size_bytes(target) > lt.size_bytes(source) else "fptrunc"
    return ev.code.let(f"{op} {lt.typed(source, lanes)} {value} to {lt.typed(target, lanes)}")


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


def _cast(name: str, source: str, target: str) -> Emit:
    kind = _CASTS[name]
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


def _extern(op: Op, elem: str) -> Emit:
    """`tt.extern_elementwise`: libdevice names (`__nv_expf`, `exp`) map to our own functions."""
    symbol = (op.attr("symbol") or "").strip('"')
    name = symbol.removeprefix("__nv_").removeprefix("__ocml_").removesuffix("_f32").removesuffix("_f64")
    if elem == "f32" and name.endswith("f") and name not in ("erf",):
        name = name[:-1]
    from torchroller.triton_cpu.vector_math import FUNCTIONS

    direct = {"sqrt": "sqrt", "fabs": "fabs", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "fma": "fma",
              "rint": "roundeven", "nearbyint": "roundeven", "round": "round", "fmax": "maxnum", "fmin": "minnum",
              "copysign": "copysign"}  # fmt: skip
    if name in direct:
        return _in_f32(elem, lambda ev, kind, args, lanes: intrinsic(ev, direct[name], kind, args, lanes))
    if name in FUNCTIONS:
        return _in_f32(elem, lambda ev, kind, args, lanes: math_call(ev, name, kind, args, lanes))
    raise UnsupportedOperation(op.name, op.location, f"the library function {symbol!r} has no CPU version")


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
        text = _FLOAT_BINARY[name]
        return _in_f32(elem, lambda ev, k, a, n: ev.code.let(f"{text} {lt.typed(k, n)} {a[0]}, {a[1]}"))
    if name in _FLOAT_INTRINSIC:
        return _in_f32(elem, lambda ev, k, a, n: intrinsic(ev, _FLOAT_INTRINSIC[name], k, a, n))
    if name == "arith.negf":
        return lambda ev, a, n: ev.code.let(f"fneg {lt.typed(elem, n)} {a[0]}")
    if name in _MATH:
        return _in_f32(elem, lambda ev, k, a, n: math_call(ev, _MATH[name], k, a, n))
    if name in _INT_BINARY:
        return lambda ev, a, n: ev.code.let(f"{_INT_BINARY[name]} {lt.typed(elem, n)} {a[0]}, {a[1]}")
    if name in _INT_INTRINSIC:
        return lambda ev, a, n: intrinsic(ev, _INT_INTRINSIC[name], elem, a, n)
    if name == "math.absi":
        return lambda ev, a, n: intrinsic(ev, "abs", elem, a, n, extra=", i1 false")
    if name in _CASTS:
        return _cast(name, op.operands[0].type.elem, elem)
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
        return _extern(op, elem)
    return None
