"""`tt.extern_elementwise`: the functions of CUDA's and ROCm's device libraries, by name, on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchroller.triton_cpu.errors import UnsupportedOperation
from torchroller.triton_cpu.lowering import elementwise as ew
from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.ttir import Op

if TYPE_CHECKING:
    from torchroller.triton_cpu.lowering.evaluate import Evaluator

# Library name (without prefix, and without the `f` of single precision) → LLVM intrinsic of the argument's type.
_INTRINSICS = {
    "sqrt": "sqrt", "fsqrt_rn": "sqrt", "dsqrt_rn": "sqrt", "fabs": "fabs", "floor": "floor", "ceil": "ceil",
    "trunc": "trunc", "fma": "fma", "fmaf_rn": "fma", "fma_rn": "fma", "rint": "roundeven", "nearbyint": "roundeven",
    "round": "round", "fmax": "maxnum", "fmin": "minnum", "copysign": "copysign",
}  # fmt: skip
_ARITHMETIC = {
    "fadd_rn": "fadd", "dadd_rn": "fadd", "fsub_rn": "fsub", "dsub_rn": "fsub", "fmul_rn": "fmul", "dmul_rn": "fmul",
    "fdiv_rn": "fdiv", "ddiv_rn": "fdiv", "fast_fdivide": "fdiv", "fdivide": "fdiv",
}  # fmt: skip
_BITS = {
    "popc": "ctpop",
    "popcll": "ctpop",
    "clz": "ctlz",
    "clzll": "ctlz",
    "brev": "bitreverse",
    "brevll": "bitreverse",
}
_ROUNDED = {"rn": "roundeven", "rz": "trunc", "rd": "floor", "ru": "ceil"}


def library_call(op: Op, elem: str) -> ew.Emit:
    """How to write a library call place by place. Raises UnsupportedOperation for functions without a CPU version."""
    symbol = (op.attr("symbol") or "").strip('"')
    source = op.operands[0].type.elem
    name = symbol.removeprefix("__nv_").removeprefix("__ocml_").removesuffix("_f32").removesuffix("_f64")
    if source == "f32" and name.endswith("f") and name not in ("erf", "isinf"):
        name = name[:-1]
    if source == "f64" and name in ("isnand", "isinfd", "isfinited", "signbitd"):
        name = name[:-1]
    from torchroller.triton_cpu.vector_math import FUNCTIONS

    fast = name.removeprefix("fast_")
    if name in _INTRINSICS:
        return ew._in_f32(elem, lambda ev, k, a, n: ew.intrinsic(ev, _INTRINSICS[name], k, a, n))
    if name in _ARITHMETIC:
        text = _ARITHMETIC[name]
        return lambda ev, a, n: ev.code.let(f"{text} {lt.typed(elem, n)} {a[0]}, {a[1]}")
    if fast in FUNCTIONS:
        return ew._in_f32(elem, lambda ev, k, a, n: ew.math_call(ev, fast, k, a, n))
    special = _special(name, source, elem)
    if special is None:
        raise UnsupportedOperation(
            op.name, op.location or None, f"the library function {symbol!r} has no CPU version"
        )
    return special


def _special(name: str, source: str, elem: str) -> ew.Emit | None:
    if lt.is_float(source) and name in ("isnan", "isinf", "finite", "isfinite", "signbit"):
        return lambda ev, a, n: _flag(ev, _classify(ev, name, source, a[0], n), elem, n)
    family, _, rounding = name.rpartition("_")
    if rounding in _ROUNDED and family in ("float2int", "double2int", "float2ll", "double2ll"):
        return lambda ev, a, n: _rounded(ev, _ROUNDED[rounding], source, elem, a[0], n)
    if name in ("llrint", "lrint", "llround", "lround"):
        how = "roundeven" if name.endswith("rint") else "round"
        return lambda ev, a, n: _rounded(ev, how, source, elem, a[0], n)
    if name == "fdim":
        return lambda ev, a, n: _positive_difference(ev, elem, a, n)
    if name in _BITS and lt.is_int(source):
        extra = ", i1 false" if _BITS[name] == "ctlz" else ""
        return lambda ev, a, n: _resize(
            ev, ew.intrinsic(ev, _BITS[name], source, a, n, extra=extra), source, elem, n
        )
    return None


def _classify(ev: Evaluator, name: str, source: str, value: str, lanes: int | None) -> str:
    code, type = ev.code, lt.typed(source, lanes)
    if name == "signbit":
        bits = lt.typed(f"i{8 * lt.size_bytes(source)}", lanes)
        integer = code.let(f"bitcast {type} {value} to {bits}")
        return code.let(f"icmp slt {bits} {integer}, {'zeroinitializer' if lanes else '0'}")
    if name == "isnan":
        return code.let(f"fcmp uno {type} {value}, {value}")
    size = ew.intrinsic(ev, "fabs", source, [value], lanes)
    infinity = lt.constant(lt.float_literal("inf", source), source, lanes)
    return code.let(f"fcmp {'oeq' if name == 'isinf' else 'olt'} {type} {size}, {infinity}")


def _flag(ev: Evaluator, flag: str, elem: str, lanes: int | None) -> str:
    if elem == "i1":
        return flag
    return ev.code.let(f"zext {lt.typed('i1', lanes)} {flag} to {lt.typed(elem, lanes)}")


def _rounded(ev: Evaluator, how: str, source: str, elem: str, value: str, lanes: int | None) -> str:
    whole = ew.intrinsic(ev, how, source, [value], lanes)
    return ew._to_integer(ev, "fptosi", whole, source, elem, lanes)


def _positive_difference(ev: Evaluator, elem: str, args: list[str], lanes: int | None) -> str:
    code, type = ev.code, lt.typed(elem, lanes)
    difference = code.let(f"fsub {type} {args[0]}, {args[1]}")
    less = code.let(f"fcmp ole {type} {args[0]}, {args[1]}")
    zero = lt.constant("0.0", elem, lanes)
    return code.let(f"select {lt.typed('i1', lanes)} {less}, {type} {zero}, {type} {difference}")


def _resize(ev: Evaluator, value: str, source: str, elem: str, lanes: int | None) -> str:
    if source == elem:
        return value
    word = "trunc" if lt.size_bytes(elem) < lt.size_bytes(source) else "zext"
    return ev.code.let(f"{word} {lt.typed(source, lanes)} {value} to {lt.typed(elem, lanes)}")
