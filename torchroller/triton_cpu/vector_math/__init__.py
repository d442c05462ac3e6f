"""Vector versions of the mathematical functions, as LLVM IR text, with stated and tested error bounds.

    symbol, ir = function("exp", "f32", 16, features)

`ir` defines `symbol` over `<16 x float>` and is pasted into the module that calls it. Two functions never
define the same symbol; they may declare the same libm function, and `abi.wrap` keeps one declaration of each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from . import double, single
from .body import Body, Value

ELEMENTS = {"f16": "half", "bf16": "bfloat", "f32": "float", "f64": "double"}


@dataclass(frozen=True)
class Function:
    """One mathematical function: its number of arguments, libm's name, and bounds on its error.

    `f32_ulp` and `f64_ulp` bound the error, in units in the last place of the true value; tests hold every
    function to them, special values included. None stands for a version that calls libm lane by lane, with
    libm's own bound. f16 and bf16 are computed in float32 and rounded.
    `library` is libm's name for float64 (float32 has an `f` behind it); None where libm has no such function.
    """

    arity: int
    library: str | None
    f32_ulp: float | None
    f64_ulp: float | None


FUNCTIONS: dict[str, Function] = {
    "exp": Function(1, "exp", 1.0, 1.0),
    "exp2": Function(1, "exp2", 1.0, None),
    "expm1": Function(1, "expm1", 1.5, 2.0),
    "log": Function(1, "log", 1.0, 1.0),
    "log2": Function(1, "log2", 1.0, None),
    "log10": Function(1, "log10", 1.0, None),
    "log1p": Function(1, "log1p", 1.5, None),
    "sin": Function(1, "sin", 1.6, 1.6),
    "cos": Function(1, "cos", 1.6, 1.6),
    "tan": Function(1, "tan", 1.25, None),
    "asin": Function(1, "asin", 2.0, None),
    "acos": Function(1, "acos", 2.0, None),
    "atan": Function(1, "atan", 2.0, None),
    "sinh": Function(1, "sinh", 2.0, None),
    "cosh": Function(1, "cosh", 1.5, None),
    "tanh": Function(1, "tanh", 1.5, 2.5),
    "sigmoid": Function(1, None, 1.6, 2.5),
    "erf": Function(1, "erf", 1.25, None),
    "sqrt": Function(1, "sqrt", 0.5, 0.5),
    "rsqrt": Function(1, None, 1.5, 1.5),
    "pow": Function(2, "pow", 1.0, None),
    "erfc": Function(1, "erfc", None, None),
    "lgamma": Function(1, "lgamma", None, None),
    "tgamma": Function(1, "tgamma", None, None),
    "asinh": Function(1, "asinh", None, None),
    "acosh": Function(1, "acosh", None, None),
    "atanh": Function(1, "atanh", None, None),
    "cbrt": Function(1, "cbrt", None, None),
    "exp10": Function(1, "exp10", None, None),
    "j0": Function(1, "j0", None, None),
    "j1": Function(1, "j1", None, None),
    "y0": Function(1, "y0", None, None),
    "y1": Function(1, "y1", None, None),
    "atan2": Function(2, "atan2", None, None),
    "fmod": Function(2, "fmod", None, None),
    "remainder": Function(2, "remainder", None, None),
    "hypot": Function(2, "hypot", None, None),
    "nextafter": Function(2, "nextafter", None, None),
}


@functools.cache
def function(
    name: str, element_type: str, lanes: int, features: frozenset[str] = frozenset()
) -> tuple[str, str]:
    """(symbol, IR text) of `name` over `<lanes x element_type>`; lanes 1 means a scalar.

    `element_type` is one of "f16", "bf16", "f32", "f64". The definition is `internal alwaysinline`, and takes
    and returns values of that type. `features` (CPU.feature_names) allow instructions of that CPU.
    Raises KeyError for a function or element type that is not there.
    """
    if name not in FUNCTIONS:
        raise KeyError(f"no vector function {name!r}; there are {', '.join(sorted(FUNCTIONS))}")
    if element_type not in ELEMENTS:
        raise KeyError(f"no vector functions of {element_type!r}; element types are {', '.join(ELEMENTS)}")
    kind = ELEMENTS[element_type]
    symbol = f"math.{name}.{element_type}x{lanes}"
    body = Body(symbol, lanes, features)
    typed = body.typed(kind)
    parameters = [body.parameter(index, kind) for index in range(FUNCTIONS[name].arity)]
    computed = "double" if element_type == "f64" else "float"
    operands = [p if kind == computed else p.cast("fpext", computed) for p in parameters]
    result = _implementation(name, computed)(body, *operands)
    if result.type != kind:
        result = _to_bfloat(body, result) if kind == "bfloat" else result.cast("fptrunc", kind)
    arguments = ", ".join(f"{typed} {p.text}" for p in parameters)
    text = [
        *dict.fromkeys(body.declarations),
        *body.helpers,
        f"define internal {typed} @{symbol}({arguments}) alwaysinline {{",
        "entry:",
        *body.allocas,
        *body.lines,
        f"  ret {typed} {result.text}",
        "}",
    ]
    return symbol, "\n".join(text) + "\n"


def _to_bfloat(body: Body, x: Value) -> Value:
    """Rounded to nearest even; without an instruction for it LLVM would call a library function that few have."""
    if "avx512bf16" in body.features:
        return x.cast("fptrunc", "bfloat")
    bits = x.bits()
    odd = (bits >> 16) & 1
    rounded = x.is_nan().select(bits | 0x400000, bits + 0x7FFF + odd)
    return (rounded >> 16).cast("trunc", "i16").as_float("bfloat")


def _implementation(name: str, kind: str) -> Callable:
    module = double if kind == "double" else single
    inline = getattr(module, name, None)
    if inline is not None:
        return inline
    library = FUNCTIONS[name].library
    assert library is not None, f"{name} has neither an inline version for {kind} nor a libm name"
    symbol = library + ("f" if kind == "float" else "")
    return lambda body, *operands: body.library(symbol, *operands)
