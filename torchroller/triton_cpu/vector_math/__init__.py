"""Vector versions of the mathematical functions, as LLVM IR text, with stated and tested error bounds.

    symbol, ir = function("exp", "f32", 16, features)

`ir` defines `symbol` over `<16 x float>` and is pasted into the module that calls it. Two functions never define
the same symbol; they may declare the same libm function, and `abi.wrap` keeps one declaration of each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from . import double, single
from .body import Body

ELEMENTS = {"f16": "half", "bf16": "bfloat", "f32": "float", "f64": "double"}


@dataclass(frozen=True)
class Function:
    """One mathematical function: number of arguments, libm's name, and what bounds the error of each version.

    `f32_ulp` and `f64_ulp` are the largest error, in units in the last place of the true value, that the tests
    allow; they hold for every input, special values included. f16 and bf16 are computed in float32 and rounded.
    `library` is libm's name for float64 (float32 has an `f` behind it); None where libm has no such function.
    """

    arity: int
    library: str | None
    f32_ulp: float
    f64_ulp: float


FUNCTIONS: dict[str, Function] = {
    "exp": Function(1, "exp", 1.0, 1.0),
    "exp2": Function(1, "exp2", 1.0, 1.0),
    "expm1": Function(1, "expm1", 2.0, 2.0),
    "log": Function(1, "log", 1.0, 1.0),
    "log2": Function(1, "log2", 1.0, 1.0),
    "log10": Function(1, "log10", 1.0, 2.0),
    "log1p": Function(1, "log1p", 1.0, 1.0),
    "sin": Function(1, "sin", 1.0, 1.0),
    "cos": Function(1, "cos", 1.0, 1.0),
    "tan": Function(1, "tan", 2.0, 1.0),
    "asin": Function(1, "asin", 2.0, 1.0),
    "acos": Function(1, "acos", 2.0, 1.0),
    "atan": Function(1, "atan", 2.0, 1.0),
    "sinh": Function(1, "sinh", 2.0, 2.0),
    "cosh": Function(1, "cosh", 2.0, 2.0),
    "tanh": Function(1, "tanh", 2.0, 2.0),
    "sigmoid": Function(1, None, 2.0, 2.0),
    "erf": Function(1, "erf", 1.0, 1.0),
    "sqrt": Function(1, "sqrt", 0.5, 0.5),
    "rsqrt": Function(1, None, 1.0, 1.0),
    "pow": Function(2, "pow", 1.0, 1.0),
    # Lane by lane through libm.
    "erfc": Function(1, "erfc", 4.0, 4.0),
    "lgamma": Function(1, "lgamma", 8.0, 8.0),
    "tgamma": Function(1, "tgamma", 10.0, 20.0),
    "asinh": Function(1, "asinh", 2.0, 2.0),
    "acosh": Function(1, "acosh", 2.0, 2.0),
    "atanh": Function(1, "atanh", 2.0, 2.0),
    "cbrt": Function(1, "cbrt", 1.0, 4.0),
    "exp10": Function(1, "exp10", 1.0, 2.0),
    "j0": Function(1, "j0", 9.0, 5.0),
    "j1": Function(1, "j1", 9.0, 5.0),
    "y0": Function(1, "y0", 9.0, 5.0),
    "y1": Function(1, "y1", 9.0, 5.0),
    "atan2": Function(2, "atan2", 1.0, 1.0),
    "fmod": Function(2, "fmod", 0.0, 0.0),
    "remainder": Function(2, "remainder", 0.0, 0.0),
    "hypot": Function(2, "hypot", 1.0, 1.0),
    "nextafter": Function(2, "nextafter", 0.0, 0.0),
}


@functools.cache
def function(
    name: str, element_type: str, lanes: int, features: frozenset[str] = frozenset()
) -> tuple[str, str]:
    """(symbol, IR text) of `name` over `<lanes x element_type>`; lanes 1 means a scalar.

    `element_type` is one of "f16", "bf16", "f32", "f64". The definition is `internal alwaysinline` and takes and
    returns values of that type. `features` (CPU.feature_names) allow instructions beyond LLVM's generic ones.
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
        result = result.cast("fptrunc", kind)
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


def _implementation(name: str, kind: str) -> Callable:
    module = double if kind == "double" else single
    inline = getattr(module, name, None)
    if inline is not None:
        return inline
    library = FUNCTIONS[name].library
    assert library is not None, f"{name} has neither an inline version for {kind} nor a libm name"
    symbol = library + ("f" if kind == "float" else "")
    return lambda body, *operands: body.library(symbol, *operands)


def without_duplicate_declarations(ir: str) -> str:
    """IR text with one of each `declare` line: LLVM refuses a second."""
    seen: set[str] = set()
    lines: Iterable[str] = ir.splitlines(keepends=True)
    kept = []
    for line in lines:
        if line.startswith("declare "):
            if line.strip() in seen:
                continue
            seen.add(line.strip())
        kept.append(line)
    return "".join(kept)
