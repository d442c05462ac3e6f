"""Lowering rules of pointwise operators (the texts are in the table of pointwise.py)."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..errors import NotLowered
from ..graph import DTYPE_NAMES, FLOATS, Node, compute_type
from .pointwise import ATEN
from .registry import Context, rule


def common_type(*values: Any) -> str:
    """PyTorch's promoted type of tensors and numbers (a 0-d tensor does not promote within its category)."""
    metas = [torch.empty((0,) if v.shape else (), dtype=_torch(v.dtype), device="meta") if isinstance(v, Node) else v
             for v in values]  # fmt: skip
    kind = metas[0]
    if len(metas) == 1:
        return DTYPE_NAMES[kind.dtype]
    state = torch.result_type(metas[0], metas[1])
    if len(metas) > 2:
        state = torch.promote_types(state, torch.result_type(metas[1], metas[2]))
    return DTYPE_NAMES[state]


def _torch(name: str) -> torch.dtype:
    return getattr(torch, name)


def _simple(fn: str) -> Any:
    def lower(cx: Context, *args: Any) -> Node:
        dtype = cx.dtype
        compute = common_type(*args) if dtype == "bool" else dtype
        return cx.b.call(fn, dtype, *(cx.node(a, compute) for a in args), compute=compute)

    return lower


for _aten, _fn in ATEN.items():
    rule(f"aten.{_aten}")(_simple(_fn))


# whole numbers up to here have no gaps in a floating-point type
EXACT_WHOLE = {"float64": 1 << 53, "float32": 1 << 24, "float16": 1 << 11, "bfloat16": 1 << 8}


@rule("prims.convert_element_type")
def _convert(cx: Context, x: Node, dtype: torch.dtype) -> Node:
    return cx.b.cast(x, cx.dtype)


@rule("aten._to_copy")
def _to_copy(cx: Context, x: Node, **kw: Any) -> Node:
    device = kw.get("device")
    if device is not None and torch.device(device).type != cx.out().device.type:
        raise NotLowered("a copy between devices")
    return cx.b.cast(x, cx.dtype)


@rule("aten.alias", "aten.lift_fresh_copy", "aten.detach", "aten.contiguous", "aten.lift_fresh")
def _alias(cx: Context, x: Node, **kw: Any) -> Node:
    return x


@rule("aten.empty", "aten.empty_permuted", "aten.empty_strided", "aten.empty_like", "aten.new_empty")
def _empty(cx: Context, *args: Any, **kw: Any) -> Node:
    """Any values will do; what fills it comes next."""
    return cx.b.const(0, cx.dtype, cx.shape)


@rule("aten.copy")
def _copy(cx: Context, x: Node, source: Node, non_blocking: bool = False) -> Node:
    """What x holds after x.copy_(source); x gives the shape and the type."""
    return cx.b.expand(cx.b.cast(source, cx.dtype), cx.shape)


@rule("aten.clone")
def _clone(cx: Context, x: Node, *, memory_format: Any = None) -> Node:
    """A copy that changes the layout is kept: it says in which order its producer should write."""
    if x.kind == "view" and memory_format == torch.contiguous_format:
        return cx.b.copy(x)
    return x


@rule("aten.add")
def add(cx: Context, x: Any, y: Any, *, alpha: Any = 1, fn: str = "add") -> Node:
    dtype = cx.dtype
    a, c = cx.node(x, dtype), cx.node(y, dtype)
    if alpha != 1:
        c = cx.b.call("mul", dtype, c, cx.b.const(alpha, dtype))
    return cx.b.call(fn, dtype, a, c)


@rule("prims.fma")
def _fma(cx: Context, x: Node, y: Node, z: Node) -> Node:
    return cx.b.call("fma", cx.dtype, x, y, z)


@rule("aten.sub")
def sub(cx: Context, x: Any, y: Any, *, alpha: Any = 1) -> Node:
    return add(cx, x, y, alpha=alpha, fn="sub")


@rule("aten.rsub")
def rsub(cx: Context, x: Any, y: Any, alpha: Any = 1) -> Node:
    b, dtype = cx.b, cx.dtype
    value = cx.node(x, dtype)
    if alpha != 1:
        value = b.call("mul", dtype, value, b.const(alpha, dtype))
    return b.call("sub", dtype, cx.node(y, dtype), value)


@rule("aten.div")
def _div(cx: Context, x: Any, y: Any, *, rounding_mode: str | None = None) -> Node:
    dtype = cx.dtype
    if dtype not in FLOATS:
        return _integer_div(cx, x, y, rounding_mode)
    a, c = cx.node(x, dtype), cx.node(y, dtype)
    if rounding_mode == "floor":
        return _floor_div(cx, a, c)
    quotient = cx.b.call("div", dtype, a, c)
    return cx.b.call("trunc", dtype, quotient) if rounding_mode == "trunc" else quotient


def _floor_div(cx: Context, a: Node, c: Node) -> Node:
    """As ATen does it: (a - fmod(a, c)) / c, rounded to the nearest integer, and down where signs differ."""
    b, dtype = cx.b, cx.dtype
    if dtype in ("float16", "bfloat16"):
        raise NotLowered("floor division of half types rounds between its steps")
    mod = b.call("fmod", dtype, a, c)
    zero = b.const(0, dtype)
    quotient = b.call("div", dtype, b.call("sub", dtype, a, mod), c)
    differs = b.call(
        "and", "bool", _nonzero(cx, mod), b.call("ne", "bool", _below(cx, c, 0), _below(cx, mod, 0))
    )
    quotient = b.call("sub", dtype, quotient, b.cast(differs, dtype))
    floored = b.call("floor", dtype, quotient)
    off = b.call("gt", "bool", b.call("sub", dtype, quotient, floored), b.const(0.5, dtype), compute=dtype)
    near = b.call("where", dtype, off, b.call("add", dtype, floored, b.const(1, dtype)), floored)
    by_zero = b.call("eq", "bool", c, zero, compute=dtype)
    return b.call("where", dtype, by_zero, b.call("div", dtype, a, c), near)


def _below(cx: Context, x: Node, number: float) -> Node:
    return cx.b.call("lt", "bool", x, cx.b.const(number, x.dtype), compute=x.dtype)


def _nonzero(cx: Context, x: Node) -> Node:
    return cx.b.call("ne", "bool", x, cx.b.const(0, x.dtype), compute=x.dtype)


def _rest_and_quotient(cx: Context, x: Any, y: Any) -> tuple[Node, Node, Node, Node]:
    """(x, y, x % y, x / y) of integers, rounded towards zero. A tensor's zeros raise at run time, as in ATen."""
    dtype, b = cx.dtype, cx.b
    number = y.number if isinstance(y, Node) and y.kind == "const" else y
    known = not isinstance(number, Node) and int(number) not in (0, -1)
    a, c = cx.node(x, dtype), cx.node(int(number) if known else y, dtype)
    rest, quotient = ("imod", "idiv") if known else ("imod_by", "idiv_by")
    return a, c, b.call(rest, dtype, a, c), b.call(quotient, dtype, a, c)


def _integer_div(cx: Context, x: Any, y: Any, rounding_mode: str | None) -> Node:
    dtype, b = cx.dtype, cx.b
    _, c, rest, quotient = _rest_and_quotient(cx, x, y)
    if rounding_mode == "trunc" or dtype.startswith("u"):
        return quotient
    down = b.call(
        "and", "bool", _nonzero(cx, rest), b.call("ne", "bool", _below(cx, rest, 0), _below(cx, c, 0))
    )
    return b.call("sub", dtype, quotient, b.cast(down, dtype))


@rule("aten.remainder")
def _remainder(cx: Context, x: Any, y: Any) -> Node:
    dtype, b = cx.dtype, cx.b
    if dtype in FLOATS:
        a, c = cx.node(x, dtype), cx.node(y, dtype)
        rest = b.call("fmod", dtype, a, c)
    else:
        _, c, rest, _ = _rest_and_quotient(cx, x, y)
    if dtype.startswith("u"):
        return rest
    wrong = b.call(
        "and", "bool", _nonzero(cx, rest), b.call("ne", "bool", _below(cx, rest, 0), _below(cx, c, 0))
    )
    return b.call("where", dtype, wrong, b.call("add", dtype, rest, c), rest)


@rule("aten.fmod")
def _fmod(cx: Context, x: Any, y: Any) -> Node:
    if cx.dtype not in FLOATS:
        return _rest_and_quotient(cx, x, y)[2]
    return cx.b.call("fmod", cx.dtype, cx.node(x, cx.dtype), cx.node(y, cx.dtype))


@rule("aten.pow")
def _pow(cx: Context, x: Any, y: Any) -> Node:
    b, dtype = cx.b, cx.dtype
    exponent = y.number if isinstance(y, Node) and y.kind == "const" else y
    if dtype == "bool":
        raise NotLowered("pow of bool")
    if isinstance(exponent, Node) or not isinstance(x, Node):
        return b.call("pow" if dtype in FLOATS else "ipow", dtype, cx.node(x, dtype), cx.node(y, dtype))
    a = cx.node(x, dtype)
    if dtype not in FLOATS:
        if exponent < 0:
            return b.call("ipow", dtype, a, b.const(exponent, dtype))
        return _integer_power(cx, a, int(exponent))
    if exponent in (0.5, -0.5):
        return b.call("sqrt" if exponent > 0 else "rsqrt", dtype, a)
    if float(exponent).is_integer() and abs(exponent) <= 8:
        power = _integer_power(cx, a, abs(int(exponent)))
        return power if exponent >= 0 else b.call("reciprocal", dtype, power)
    return b.call("pow", dtype, a, b.const(exponent, dtype))


def _integer_power(cx: Context, a: Node, n: int) -> Node:
    result: Node | None = None
    while n:
        if n & 1:
            result = a if result is None else cx.b.call("mul", cx.dtype, result, a)
        n >>= 1
        if n:
            a = cx.b.call("mul", cx.dtype, a, a)
    return cx.b.expand(cx.b.const(1, cx.dtype), a.shape) if result is None else result


@rule("aten.where")
def _where(cx: Context, condition: Node, x: Any, y: Any) -> Node:
    return cx.b.call(
        "where", cx.dtype, cx.b.cast(condition, "bool"), cx.node(x, cx.dtype), cx.node(y, cx.dtype)
    )


@rule("aten.relu")
def _relu(cx: Context, x: Node) -> Node:
    return cx.b.call("maximum", cx.dtype, x, cx.b.const(0, cx.dtype))


@rule("aten.clamp", "aten.hardtanh")
def clamp(
    cx: Context, x: Node, low: Any = None, high: Any = None, *, min: Any = None, max: Any = None
) -> Node:
    low, high = (min if low is None else low), (max if high is None else high)
    value = cx.node(x, cx.dtype)
    if low is not None:
        value = cx.b.call("maximum", cx.dtype, value, cx.node(low, cx.dtype))
    if high is not None:
        value = cx.b.call("minimum", cx.dtype, value, cx.node(high, cx.dtype))
    return value


@rule("aten.clamp_min")
def _clamp_min(cx: Context, x: Node, low: Any) -> Node:
    return clamp(cx, x, low)


@rule("aten.clamp_max")
def _clamp_max(cx: Context, x: Node, high: Any) -> Node:
    return clamp(cx, x, None, high)


@rule("aten.gelu")
def _gelu(cx: Context, x: Node, *, approximate: str = "none") -> Node:
    b, dtype = cx.b, _wide(cx.dtype)
    v = b.cast(x, dtype)
    if approximate == "tanh":
        cube = b.call("mul", dtype, b.call("mul", dtype, v, v), v)
        inner = b.call("add", dtype, v, b.call("mul", dtype, cube, b.const(0.044715, dtype)))
        inner = b.call("mul", dtype, inner, b.const(math.sqrt(2 / math.pi), dtype))
        gate = b.call("tanh", dtype, inner)
    else:
        gate = b.call("erf", dtype, b.call("mul", dtype, v, b.const(math.sqrt(0.5), dtype)))
    half = b.call("mul", dtype, v, b.const(0.5, dtype))
    return b.cast(b.call("mul", dtype, half, b.call("add", dtype, gate, b.const(1, dtype))), cx.dtype)


@rule("aten.silu")
def _silu(cx: Context, x: Node) -> Node:
    dtype = _wide(cx.dtype)
    v = cx.b.cast(x, dtype)
    return cx.b.cast(cx.b.call("mul", dtype, v, cx.b.call("sigmoid", dtype, v)), cx.dtype)


@rule("aten.leaky_relu")
def _leaky_relu(cx: Context, x: Node, slope: Any = 0.01) -> Node:
    b, dtype = cx.b, cx.dtype
    positive = b.call("gt", "bool", x, b.const(0, dtype), compute=dtype)
    return b.call("where", dtype, positive, x, b.call("mul", dtype, x, b.const(slope, dtype)))


@rule("aten.elu")
def _elu(cx: Context, x: Node, alpha: Any = 1.0, scale: Any = 1.0, input_scale: Any = 1.0) -> Node:
    b, dtype = cx.b, cx.dtype
    positive = b.call("gt", "bool", x, b.const(0, dtype), compute=dtype)
    scaled = b.call("mul", dtype, x, b.const(input_scale, dtype))
    curve = b.call("mul", dtype, b.call("expm1", dtype, scaled), b.const(alpha * scale, dtype))
    return b.call("where", dtype, positive, b.call("mul", dtype, x, b.const(scale, dtype)), curve)


@rule("aten.sign")
def _sign(cx: Context, x: Node) -> Node:
    b, dtype = cx.b, cx.dtype
    if dtype == "bool":
        return x
    zero = b.const(0, dtype)
    above = b.cast(b.call("gt", "bool", x, zero, compute=dtype), dtype)
    if dtype.startswith("u"):
        return above
    return b.call("sub", dtype, above, b.cast(b.call("lt", "bool", x, zero, compute=dtype), dtype))


@rule("aten.round")
def _round(cx: Context, x: Node, *, decimals: int = 0) -> Node:
    b, dtype = cx.b, cx.dtype
    if dtype not in FLOATS:
        if decimals < 0:
            raise NotLowered("rounding integers to a negative number of decimals")
        return x
    if decimals == 0:
        return b.call("round", dtype, x)
    if dtype in ("float16", "bfloat16"):
        raise NotLowered("round to a number of decimals of half types rounds between its steps")
    power = b.const(10.0 ** abs(decimals), dtype)
    up, down = ("mul", "div") if decimals > 0 else ("div", "mul")
    return b.call(down, dtype, b.call("round", dtype, b.call(up, dtype, x, power)), power)


def _rounding(fn: str) -> Any:
    def lower(cx: Context, x: Node) -> Node:
        return cx.b.call(fn, cx.dtype, x) if cx.dtype in FLOATS else x

    return lower


for _name in ("floor", "ceil", "trunc"):
    rule(f"aten.{_name}")(_rounding(_name))


@rule("aten.signbit")
def _signbit(cx: Context, x: Node) -> Node:
    """A minus sign, that of -0.0 too."""
    b, dtype = cx.b, compute_type(x.dtype)
    if dtype not in FLOATS:
        return cx.b.const(False, "bool", x.shape) if dtype == "bool" else _below(cx, x, 0)
    return _below(cx, b.call("copysign", dtype, b.const(1, dtype), b.cast(x, dtype)), 0)


@rule("aten.copysign")
def _copysign(cx: Context, x: Any, y: Any) -> Node:
    dtype = cx.dtype
    return cx.b.call("copysign", dtype, cx.node(x, dtype), cx.node(y, dtype))


@rule("aten.isnan")
def isnan(cx: Context, x: Node, fn: str = "isnan") -> Node:
    if x.dtype not in FLOATS:
        return cx.b.const(False, "bool", x.shape)
    return cx.b.call(fn, "bool", x, compute=x.dtype)


@rule("aten.isinf")
def isinf(cx: Context, x: Node) -> Node:
    return isnan(cx, x, "isinf")


@rule("aten.logical_not")
def _logical_not(cx: Context, x: Node) -> Node:
    flag = cx.b.cast(x, "bool")
    return cx.b.call("logical_not", "bool", flag, compute="bool")


def _logical(fn: str) -> Any:
    def lower(cx: Context, x: Any, y: Any) -> Node:
        return cx.b.call(fn, "bool", cx.node(x, "bool"), cx.node(y, "bool"))

    return lower


for _name, _text in (("and", "and"), ("or", "or"), ("xor", "xor")):
    rule(f"aten.logical_{_name}")(_logical(_text))


@rule("aten.bitwise_not")
def _bitwise_not(cx: Context, x: Node) -> Node:
    if x.dtype == "bool":
        return _logical_not(cx, x)
    return cx.b.call("not", cx.dtype, x)


@rule("aten.log10")
def _log10(cx: Context, x: Node) -> Node:
    dtype = _wide(cx.dtype)
    value = cx.b.call("log", dtype, cx.b.cast(x, dtype))
    return cx.b.cast(cx.b.call("mul", dtype, value, cx.b.const(math.log10(math.e), dtype)), cx.dtype)


@rule("aten.full", "aten.full_like", "aten.new_full", "aten.fill")
def _full(cx: Context, _first: Any, number: Any, *rest: Any, **kw: Any) -> Node:
    number = rest[0] if rest and not isinstance(rest[0], torch.dtype) else number
    if isinstance(number, Node):
        return cx.b.expand(cx.b.cast(number, cx.dtype), cx.shape)
    return cx.b.const(number, cx.dtype, cx.shape)


@rule("aten.scalar_tensor")
def _scalar_tensor(cx: Context, number: Any, **kw: Any) -> Node:
    return cx.b.const(number, cx.dtype)


@rule("aten.zeros", "aten.zeros_like", "aten.new_zeros")
def _zeros(cx: Context, *args: Any, **kw: Any) -> Node:
    return cx.b.const(0, cx.dtype, cx.shape)


@rule("aten.ones", "aten.ones_like", "aten.new_ones")
def _ones(cx: Context, *args: Any, **kw: Any) -> Node:
    return cx.b.const(1, cx.dtype, cx.shape)


@rule("aten.arange", "prims.iota")
def _arange(cx: Context, *args: Any, **kw: Any) -> Node:
    b, dtype = cx.b, cx.dtype
    numbers = [a for a in args if not isinstance(a, Node)]
    if "start" in kw:  # prims.iota(length, *, start, step)
        start, step = kw["start"], kw["step"]
    else:
        start = numbers[0] if len(numbers) > 1 else 0
        step = numbers[2] if len(numbers) > 2 else 1
    if all(isinstance(v, int) for v in (start, step)) and dtype not in FLOATS:
        return b.iota(cx.shape[0], start, step, dtype)
    if dtype not in FLOATS:
        raise NotLowered("an arange of integers with fractional steps")
    # as ATen: start + step * i in double precision, then rounded
    at = b.call(
        "mul", "float64", b.cast(b.iota(cx.shape[0], 0, 1, "int64"), "float64"), b.const(step, "float64")
    )
    return b.cast(b.call("add", "float64", at, b.const(start, "float64")), dtype)


def _wide(dtype: str) -> str:
    return "float32" if dtype in ("float16", "bfloat16") else dtype
