"""What Triton's interpreter lacks: the device library, as NumPy's functions, and arithmetic of bfloat16."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

NUMPY_LIBRARY: dict[str, Callable[..., Any]] = {
    "tan": np.tan, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "atan2": np.arctan2, "sinh": np.sinh,
    "cosh": np.cosh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh, "hypot": np.hypot,
    "copysign": np.copysign, "fmod": np.fmod, "pow": np.float_power,
    "erfc": np.vectorize(math.erfc, [float]),
    "lgamma": np.vectorize(lambda x: math.inf if x <= 0 and x % 1 == 0 else math.lgamma(x), [float]),
}  # fmt: skip


def interpreted(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` on the interpreter's tensors and on numbers, computed in double precision and rounded once."""

    def call(*args: Any, **_: Any) -> Any:
        import triton.language as tl
        from triton.runtime.interpreter import TensorHandle

        scalar = next(x.type.scalar for x in args if isinstance(x, tl.tensor))
        given = [
            x.handle.data if isinstance(x, tl.tensor) else np.asarray(getattr(x, "value", x)) for x in args
        ]
        with np.errstate(all="ignore"):
            found = np.asarray(function(*(x.astype(np.float64) for x in given)))
            found = found.astype(next(x.handle.data.dtype for x in args if isinstance(x, tl.tensor)))
        shaped = tl.block_type(scalar, list(found.shape)) if any(
            isinstance(x, tl.tensor) and x.type.is_block() for x in args
        ) else scalar  # fmt: skip
        return tl.tensor(TensorHandle(found, scalar), shaped)

    return call


def wide_products(create_dot: Callable[..., Any]) -> Callable[..., Any]:
    """The interpreter's `create_dot` for bfloat16 too, whose bits it would multiply as unsigned integers."""

    def call(builder: Any, a: Any, b: Any, *rest: Any) -> Any:
        return create_dot(builder, _widened(a), _widened(b), *rest)

    return call


def wide_casts(cast: Callable[..., Any]) -> Callable[..., Any]:
    """The interpreter's `cast_impl`, through float32 where bfloat16 meets a type that it does not convert it to."""

    def call(builder: Any, x: Any, to: Any) -> Any:
        import triton.language as tl

        ends = {x.dtype.scalar, to.scalar}
        if tl.bfloat16 in ends and tl.float32 not in ends and len(ends) == 2:
            x = cast(builder, x, tl.float32)
        return cast(builder, x, to)

    return call


def _widened(x: Any) -> Any:
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    if x.dtype.scalar != tl.bfloat16:
        return x
    return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)
