"""Lazy tensor values: what an ATen graph means, before it is cut into kernels.

`fx.GraphModule` is read node by node (`lower.py`) into a DAG of `Node`s. A node has a shape, a dtype and a
definition; nothing says yet where it is stored. `fuse.py` groups nodes into kernels, and `build.py` turns
each group into a `TensorExpr`. Views are index maps (`views.py`), so they cost nothing unless a reader's
index cannot be written as an affine function.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from .errors import NotLowered
from .expr import ITEMSIZE
from .ops.pointwise import TABLE

NodeKind = Literal[
    "input",
    "const",
    "iota",
    "pointwise",
    "view",
    "reduce",
    "dot",
    "conv",
    "gather",
    "scatter",
    "scan",
    "cat",
    "attention",
    "lse",
    "extern",
]
Shape = tuple[int, ...]

DTYPE_NAMES = {
    torch.float64: "float64", torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16",
    torch.int64: "int64", torch.int32: "int32", torch.int16: "int16", torch.int8: "int8", torch.uint8: "uint8",
    torch.bool: "bool",
}  # fmt: skip
TORCH_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
FLOATS = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True, eq=False)
class Node:
    """One tensor value.

    input:     buffer `name` with `strides` and `offset` (elements)
    const:     `number`, shape ()
    iota:      start + step * i, shape (n,)
    pointwise: `fn` of `args`, all of this shape (operands are converted to `compute` first)
    view:      `args[0]` read through `view` (see views.py)
    reduce:    `fn` over dimensions `dims` of args[0]; those dimensions are dropped
    dot:       args = (a[*batch, m, k], b[*batch, k, n]) -> [*batch, m, n], accumulated in float32
    conv:      args = (x[n, *in, g, c], w[*window, g, c, m]) -> [n, *out, g, m], accumulated in float32; number =
               (stride, dilation) per spatial dimension; x is padded by a view
    gather:    args[0] indexed per dimension by `index`: an int names a dimension of this node, a Node holds
               the position (its shape is this node's)
    scatter:   args = (base, source); element s of source is written at `index` of a copy of base: an int names a
               dimension of source, a Node (of its shape) holds the position. fn (set, add, prod, max, min) says
               how; updates that may meet are done in order
    scan:      running `fn` (add, mul) of args[0] along dimension dims[0], in the order of memory
    cat:       args joined along dimension dims[0]
    attention: args = (q[b, h, m, d], k[b, h, n, d], v[b, h, n, e], mask?) -> [b, h, m, e];
               number = (scale, causal, safe): safe gives zeros to a query that sees no key, else it gets NaN
    lse:       log of the row sums of exponentials of the attention args[0], [b, h, m]
    extern:    result `number` of the ATen call `call`
    """

    kind: NodeKind
    shape: Shape
    dtype: str
    args: tuple[Node, ...] = ()
    fn: str = ""
    name: str = ""
    number: Any = None
    strides: Shape = ()
    offset: int = 0
    compute: str = ""
    view: Any = None
    dims: tuple[int, ...] = ()
    index: tuple[Any, ...] = ()
    call: Any = None
    origin: str = ""
    serial: int = 0

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEMSIZE[self.dtype]

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        what = {"input": self.name, "const": repr(self.number), "view": str(self.view)}.get(
            self.kind, self.fn
        )
        return f"%{self.serial} {self.kind} {what} {list(self.shape)} {self.dtype}"


SETTLED = "settled"  # number of a copy that is stored rather than computed by each reader
FEW_ROWS, LONG_ROW = 16, 1 << 16


def _parts(shape: Shape, dims: Sequence[int]) -> int:
    """Into how many parts a reduction to fewer than FEW_ROWS values is cut along its first dimension; 0: not."""
    total = math.prod(shape[d] for d in dims)
    if math.prod(shape) // max(total, 1) >= FEW_ROWS or total < LONG_ROW:
        return 0
    size = shape[dims[0]]
    return max(
        (p for p in range(8, min(256, size) + 1) if size % p == 0 and (p < size or len(dims) > 1)), default=0
    )


def contiguous_strides(shape: Sequence[int]) -> Shape:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def compute_type(dtype: str) -> str:
    """The type that a kernel computes in for values of `dtype`."""
    return "float32" if dtype in ("float16", "bfloat16") else dtype


@dataclass
class Builder:
    """Makes nodes; folds what folds for free. `origin` is stamped on each node made."""

    nodes: list[Node] = field(default_factory=list)
    origin: str = ""

    def _add(self, kind: NodeKind, shape: Sequence[int], dtype: str, **kw: Any) -> Node:
        node = Node(
            kind, tuple(int(s) for s in shape), dtype, origin=self.origin, serial=len(self.nodes), **kw
        )
        self.nodes.append(node)
        return node

    def input(
        self, name: str, shape: Sequence[int], dtype: str, strides: Sequence[int], offset: int = 0
    ) -> Node:
        return self._add("input", shape, dtype, name=name, strides=tuple(strides), offset=offset)

    def extern(
        self, call: Any, number: int, shape: Sequence[int], dtype: str, strides: Sequence[int]
    ) -> Node:
        return self._add("extern", shape, dtype, call=call, number=number, strides=tuple(strides))

    def const(self, number: float | int | bool, dtype: str, shape: Sequence[int] = ()) -> Node:
        if dtype == "bool":
            number = bool(number)
        elif dtype not in FLOATS:
            number = _wrap(int(number), dtype)
        else:
            number = float(number)
        return self.expand(self._add("const", (), dtype, number=number), shape)

    def iota(self, length: int, start: int, step: int, dtype: str) -> Node:
        base = self._add("iota", (length,), "int64", fn="iota", number=(0, 1))
        value = base
        if step != 1:
            value = self.call("mul", "int64", value, self.const(step, "int64"))
        if start != 0:
            value = self.call("add", "int64", value, self.const(start, "int64"))
        return self.cast(value, dtype)

    def call(self, fn: str, dtype: str, *args: Node, compute: str | None = None) -> Node:
        """Pointwise `fn`; operands are broadcast against each other and converted to `compute` (default: dtype)."""
        shape = _broadcast([a.shape for a in args])
        entry = TABLE[fn]
        compute = compute_type(compute or dtype)
        if entry.on == "float" and compute not in FLOATS:
            raise NotLowered(f"{fn} of {compute} has no kernel text")
        if compute == "bool" and fn in ("add", "sub", "mul", "maximum", "minimum", "neg", "abs"):
            alias = {"add": "or", "mul": "and", "maximum": "or", "minimum": "and"}.get(fn)
            if alias is None:
                raise NotLowered(f"{fn} of bool")
            fn = alias
        if fn in ("maximum", "minimum") and compute not in FLOATS:
            fn = "i" + fn
        args = tuple(self.expand(a, shape) for a in args)
        return self._add("pointwise", shape, dtype, args=args, fn=fn, compute=compute)

    def cast(self, value: Node, dtype: str) -> Node:
        if value.dtype == dtype:
            return value
        if value.kind == "const":
            return self.const(value.number, dtype)
        return self._add(
            "pointwise", value.shape, dtype, args=(value,), fn="cast", compute=compute_type(dtype)
        )

    def copy(self, value: Node) -> Node:
        """The same values, stored on their own."""
        return self._add("pointwise", value.shape, value.dtype, args=(value,), fn="copy", compute=value.dtype)

    def settled(self, value: Node) -> Node:
        """The same values, computed once and stored: for small factors of large tensors."""
        return self._add("pointwise", value.shape, value.dtype, args=(value,), fn="copy", compute=value.dtype,
                         number=SETTLED)  # fmt: skip

    def reduce(self, fn: str, value: Node, dims: Sequence[int], dtype: str, keepdim: bool = False) -> Node:
        rank = len(value.shape)
        dims = tuple(sorted({d % rank for d in dims})) if rank else ()
        if dims and (parts := _parts(value.shape, dims)):
            # few results over long rows: reduce parts first, so that there is work for every core
            first, size = dims[0], value.shape[dims[0]]
            split = self.reshape(
                value, (*value.shape[:first], parts, size // parts, *value.shape[first + 1 :])
            )
            inner = (
                self.reduce(fn, split, [d + 1 for d in dims], dtype)
                if size > parts or len(dims) > 1
                else split
            )
            out = self.reduce(fn, inner, (first,), dtype)
        elif not dims:
            out = self.cast(value, dtype)
        else:
            kept = [s for d, s in enumerate(value.shape) if d not in dims]
            out = self._add(
                "reduce", kept, dtype, args=(value,), fn=fn, dims=dims, compute=compute_type(dtype)
            )
        if keepdim:
            out = self.reshape(out, [1 if d in dims else s for d, s in enumerate(value.shape)])
        return out

    def dot(self, a: Node, b: Node, dtype: str) -> Node:
        shape = (*a.shape[:-1], b.shape[-1])
        return self._add("dot", shape, dtype, args=(a, b), fn="dot", compute=dtype)

    def conv(self, x: Node, w: Node, stride: Sequence[int], dilation: Sequence[int]) -> Node:
        window = w.shape[:-3]
        out = [
            (size - d * (k - 1) - 1) // s + 1
            for size, k, s, d in zip(x.shape[1:-2], window, stride, dilation)
        ]
        shape = (x.shape[0], *out, x.shape[-2], w.shape[-1])
        return self._add("conv", shape, "float32", args=(x, w), fn="conv", compute="float32",
                         number=(tuple(stride), tuple(dilation)))  # fmt: skip

    def attention(
        self, q: Node, k: Node, v: Node, mask: Node | None, scale: float, causal: bool, safe: bool = True
    ) -> tuple[Node, Node]:
        args = (q, k, v) if mask is None else (q, k, v, mask)
        out = self._add("attention", (*q.shape[:-1], v.shape[-1]), q.dtype, args=args, number=(scale, causal, safe),
                        fn="attention", compute="float32")  # fmt: skip
        return out, self._add("lse", q.shape[:-1], "float32", args=(out,), fn="lse", compute="float32")

    def gather(self, source: Node, index: Sequence[Any], shape: Sequence[int]) -> Node:
        return self._add("gather", shape, source.dtype, args=(source,), index=tuple(index), fn="gather")

    def scatter(self, base: Node, source: Node, index: Sequence[Any], fn: str) -> Node:
        return self._add("scatter", base.shape, base.dtype, args=(base, source), index=tuple(index), fn=fn,
                         compute=compute_type(base.dtype))  # fmt: skip

    def scan(self, fn: str, value: Node, dim: int, dtype: str) -> Node:
        return self._add(
            "scan", value.shape, dtype, args=(value,), fn=fn, dims=(dim,), compute=compute_type(dtype)
        )

    def cat(self, parts: Sequence[Node], dim: int) -> Node:
        shape = list(parts[0].shape)
        shape[dim] = sum(p.shape[dim] for p in parts)
        return self._add("cat", shape, parts[0].dtype, args=tuple(parts), dims=(dim,), fn="cat")

    # views: see views.py for what each means
    def _view(self, source: Node, shape: Sequence[int], view: tuple[Any, ...]) -> Node:
        return self._add("view", shape, source.dtype, args=(source,), view=view)

    def permute(self, x: Node, dims: Sequence[int]) -> Node:
        dims = tuple(d % len(x.shape) for d in dims) if x.shape else ()
        if dims == tuple(range(len(x.shape))):
            return x
        return self._view(x, [x.shape[d] for d in dims], ("permute", dims))

    def expand(self, x: Node, shape: Sequence[int]) -> Node:
        shape = tuple(int(s) for s in shape)
        if len(shape) != len(x.shape):
            x = self.reshape(x, (1,) * (len(shape) - len(x.shape)) + x.shape)
        if x.shape == shape:
            return x
        return self._view(x, shape, ("expand",))

    def slice(self, x: Node, dim: int, start: int, length: int, step: int = 1) -> Node:
        if start == 0 and step == 1 and length == x.shape[dim]:
            return x
        shape = list(x.shape)
        shape[dim] = length
        return self._view(x, shape, ("slice", dim, start, step))

    def pad(
        self, x: Node, low: Sequence[int], high: Sequence[int], fill: float | int | bool, gather: bool = False
    ) -> Node:
        """`x` with `low` and `high` positions of `fill` around each dimension (cut off where negative).

        Nothing is written; readers test their index. `gather`: many readers walk the last dimension, so that it
        is brought together in memory first where it is not.
        """
        if any(v.view[0] == "pad" for v in views_of(x)):
            if not any(low) and not any(high):
                return x
            x = self.copy(x)
        shape = [a + s + z for a, s, z in zip(low, x.shape, high)]
        return self._view(x, shape, ("pad", tuple(low), fill, gather))

    def reshape(self, x: Node, shape: Sequence[int]) -> Node:
        shape = tuple(int(s) for s in shape)
        if shape == x.shape:
            return x
        if x.kind == "view" and x.view[0] == "reshape":
            return self.reshape(x.args[0], shape)
        return self._view(x, shape, ("reshape",))

    def select(self, x: Node, dim: int, at: int) -> Node:
        return self.reshape(self.slice(x, dim, at, 1), x.shape[:dim] + x.shape[dim + 1 :])


def _broadcast(shapes: Sequence[Shape]) -> Shape:
    """PyTorch's broadcasting; torch.broadcast_shapes costs more than the rest of a rule."""
    if all(s == shapes[0] for s in shapes):
        return shapes[0] if shapes else ()
    return tuple(torch.broadcast_shapes(*(s for s in shapes if s)))


def _wrap(number: int, dtype: str) -> int:
    """`number` as two's complement of the width of `dtype`, as C conversion does."""
    bits = 8 * ITEMSIZE[dtype]
    number &= (1 << bits) - 1
    signed = not dtype.startswith("u")
    return number - (1 << bits) if signed and number >> (bits - 1) else number


def views_of(node: Node) -> list[Node]:
    """The chain of views over a value, outermost first."""
    chain = []
    while node.kind == "view":
        chain.append(node)
        node = node.args[0]
    return chain


def base_of(node: Node) -> Node:
    """The value under a chain of views."""
    while node.kind == "view":
        node = node.args[0]
    return node
