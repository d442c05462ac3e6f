"""Runs a vector function over an array: compiled exactly as a kernel would have it."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import numpy as np

from torchroller.triton_cpu import abi, jit, vector_math
from torchroller.triton_cpu.cpu import CPU

DTYPES = {"f16": np.float16, "bf16": np.uint16, "f32": np.float32, "f64": np.float64}


@functools.cache
def compiled(name: str, element: str, lanes: int, cpu: CPU) -> Callable[..., np.ndarray]:
    """arrays → array of vector_math.function(name, element, lanes), any length."""
    symbol, ir = vector_math.function(name, element, lanes, cpu.feature_names)
    kind = vector_math.ELEMENTS[element]
    vector = kind if lanes == 1 else f"<{lanes} x {kind}>"
    arity = vector_math.FUNCTIONS[name].arity
    loads = "\n".join(
        f"  %q{i} = getelementptr {kind}, ptr %p{i}, i64 %i\n  %x{i} = load {vector}, ptr %q{i}, align 2"
        for i in range(arity)
    )
    given = ", ".join(f"{vector} %x{i}" for i in range(arity))
    source = f"""{abi._without_duplicate_declarations(ir)}
define void @run(i64 %n, ptr %out{"".join(f", ptr %p{i}" for i in range(arity))}) {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %next, %loop ]
{loads}
  %r = call {vector} @{symbol}({given})
  %out.p = getelementptr {kind}, ptr %out, i64 %i
  store {vector} %r, ptr %out.p, align 2
  %next = add i64 %i, {lanes}
  %more = icmp ult i64 %next, %n
  br i1 %more, label %loop, label %done
done:
  ret void
}}
"""
    library = jit.link(name, jit.optimize(name, source, cpu).object_code(), "run")
    native = library.function(None, ctypes.c_int64, *[ctypes.c_void_p] * (arity + 1))

    def run(*arrays: np.ndarray) -> np.ndarray:
        count = len(arrays[0])
        padded = [np.resize(a, -(-count // lanes) * lanes).astype(DTYPES[element]) for a in arrays]
        out = np.empty_like(padded[0])
        native(len(out), out.ctypes.data, *[a.ctypes.data for a in padded])
        return out[:count]

    return run


def error_ulp(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """|got - want| in units in the last place of `want`, in got's type; 0 for equal specials, else ∞."""
    kind = got.dtype.type
    with np.errstate(all="ignore"):
        rounded = want.astype(kind)
        unit = np.spacing(np.abs(rounded)).astype(want.dtype)
        unit[~np.isfinite(unit)] = np.spacing(np.finfo(kind).max)
        error = np.abs(got.astype(want.dtype) - want) / unit
    agree = (np.isnan(got) & np.isnan(want)) | (~np.isfinite(rounded) & (got == rounded))
    error[agree] = 0
    error[np.isnan(error)] = np.inf
    return error.astype(np.float64)
