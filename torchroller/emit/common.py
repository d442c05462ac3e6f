"""Shared by the kernel emitters: turning accesses and values of a TensorExpr into Triton text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..expr import Access, Affine, TensorExpr, Value
from ..graph import compute_type
from ..ops.pointwise import LIBRARY, TABLE, library_functions

TL = {
    "float64": "tl.float64", "float32": "tl.float32", "float16": "tl.float16", "bfloat16": "tl.bfloat16",
    "int64": "tl.int64", "int32": "tl.int32", "int16": "tl.int16", "int8": "tl.int8", "uint8": "tl.uint8",
    "bool": "tl.int1",
}  # fmt: skip
# How a tensor's pointer is declared to Triton; bool is stored as one byte 0 or 1.
POINTER = {
    "float64": "*fp64", "float32": "*fp32", "float16": "*fp16", "bfloat16": "*bf16",
    "int64": "*i64", "int32": "*i32", "int16": "*i16", "int8": "*i8", "uint8": "*u8", "bool": "*i8",
}  # fmt: skip


# What a kernel stores to `errors`.
OUT_OF_RANGE, BY_ZERO = 1, 2
DIVISIONS = ("idiv_by", "imod_by")


@dataclass(frozen=True)
class Tiling:
    """Block extent per axis (a power of two). A spatial axis of block 1 is a scalar of the program; a reduce
    axis whose block covers it is held whole, otherwise it is looped over."""

    blocks: tuple[tuple[str, int], ...]
    num_warps: int = 4
    num_stages: int = 2
    panel: int = 0  # contraction: columns of B that the register block reads together; 0: the whole block
    pairs: int = (
        1  # contraction: neighbours along k that one instruction multiplies, side by side in a packed B
    )
    group: int = 0  # contraction: so many tiles of rows share each tile of columns before the next; 0: all
    variant: str = ""  # contraction on a GPU: how operands arrive (emit/descriptors.py); "": through pointers
    units: int = 0  # programs of a persistent grid
    gpu: bool = False  # exp of the device library; what loops walk, on a side of its own in tests of borders
    precision: str = "ieee"  # of products of float32: `input_precision` of tl.dot
    narrow: bool = (
        False  # contraction: columns that fill no whole step along k are steps of their own, narrower ones
    )

    def of(self, axis: str) -> int:
        return dict(self.blocks).get(axis, 1)


@dataclass(frozen=True)
class Pack:
    """Layout of a constant matrix operand: [tiles of n][k][block], padded with zeros to a multiple of `group` tiles
    and to `depth` along k (0: not at all). `pairs` neighbours along k lie side by side: [k / pairs][block][pairs].

    Element (k, n) of the matrix lies in the original buffer at offset + k * k_stride + sum(n digits * strides);
    where k counts several axes, `k_shape` and `k_strides` are theirs.
    Tiles run along the last digit of n alone: each combination of the other digits starts a tile of its own.
    With `parts` an element is stored as that many numbers of `dtype` that add up to it, one plane after the other.
    """

    tensor: str
    dtype: str
    k: int
    k_stride: int
    n_shape: tuple[int, ...]
    n_strides: tuple[int, ...]
    offset: int
    block: int
    group: int = 1
    k_shape: tuple[int, ...] = ()
    k_strides: tuple[int, ...] = ()
    depth: int = 0
    pairs: int = 1
    parts: int = 1

    @property
    def tiles(self) -> int:
        """Tiles along the last digit of n."""
        return -(-self.n_shape[-1] // (self.block * self.group)) * self.group

    @property
    def elements(self) -> int:
        """Of all parts."""
        return self.parts * self.plane

    @property
    def plane(self) -> int:
        """Elements of one part."""
        return math.prod(self.n_shape[:-1]) * self.tiles * self.block * (self.depth or self.k)


@dataclass(frozen=True)
class TritonSource:
    """A kernel as text that stands alone: `name` is the function, `signature` its pointer types in order."""

    name: str
    text: str
    signature: tuple[str, ...]
    grid: int
    num_warps: int = 4
    num_stages: int = 2
    packs: tuple[Pack, ...] = ()
    flags: bool = False  # the last parameter is an int32 that is set where an index or divisor is not valid

    def __str__(self) -> str:
        return self.text


def next_power(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def dependences(expr: TensorExpr) -> list[frozenset[str]]:
    """For each value the axes that it varies over."""
    out: list[frozenset[str]] = []
    for v in expr.values:
        if v.kind == "load" and v.access is not None:
            axes = frozenset(a for ix in v.access.index for a, _ in ix.terms)
            for ix in v.access.index:
                if ix.indirect is not None:
                    axes |= out[ix.indirect]
            out.append(axes)
        elif v.kind == "index":
            out.append(frozenset([v.axis or ""]))
        else:
            axes = frozenset().union(*(out[a] for a in v.args)) if v.args else frozenset()
            out.append(axes - frozenset(v.over) if v.kind in ("reduce", "dot") else axes)
    return out


def pointers(expr: TensorExpr) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Tensor names in order of first use, and their Triton pointer types."""
    types: dict[str, str] = {}
    for access in (*(v.access for v in expr.values if v.access), *(w.access for w in expr.writes)):
        types.setdefault(access.tensor, POINTER[access.dtype])
    names = sorted(types, key=lambda t: int(t[1:]))
    return tuple(names), tuple(types[n] for n in names)


def number_text(number: object, dtype: str) -> str:
    if dtype == "bool":
        return "True" if number else "False"
    if isinstance(number, float):
        if math.isnan(number):
            return "float('nan')"
        if math.isinf(number):
            return "float('inf')" if number > 0 else "-float('inf')"
    return repr(number) if not isinstance(number, bool) else str(int(number))


@dataclass
class Body:
    """Text of one kernel in the making. `position[axis]` is the text of the axis' coordinate, already shaped
    for broadcasting; `masks[axis]` the text of its bound check where it needs one."""

    expr: TensorExpr
    indent: int = 1
    lines: list[str] = field(default_factory=list)
    position: dict[str, str] = field(default_factory=dict)
    masks: dict[str, str] = field(default_factory=dict)
    have: dict[int, str] = field(default_factory=dict)
    library: set[str] = field(default_factory=set)
    raw_half: frozenset[int] = frozenset()  # loads kept in their stored half type (operands of a dot)
    check: bool = False  # set a flag where an indirect index leaves its tensor, or an integer divisor is zero
    apart: bool = (
        False  # tests of borders: positions of reduce axes on one side, what a loop leaves alone on the other
    )

    def line(self, text: str) -> None:
        self.lines.append("    " * self.indent + text)

    def offset(self, access: Access) -> str:
        """Elements from the start of the tensor; 64 bits wide, factor by factor, where the tensor needs that."""
        wide = span(access) >= 1 << 31
        whole = lambda text: f"tl.cast({text}, tl.int64)" if wide else text  # noqa: E731
        parts = []
        for ix, stride in zip(access.index, access.strides):
            if ix.indirect is not None:
                parts.append(_times(whole(self.have[ix.indirect]), stride))
            for a, c in ix.terms:
                parts.append(_times(whole(self.position[a]), c * stride))
        start = access.offset + sum(ix.offset * stride for ix, stride in zip(access.index, access.strides))
        if start or not parts:
            parts.append(f"tl.full((), {start}, tl.int64)" if wide else str(start))
        return " + ".join(parts)

    def mask(self, access: Access, depends: Iterable[str]) -> str | None:
        terms = list(dict.fromkeys(self.masks[a] for a in sorted(depends) if a in self.masks))
        for ix, size in zip(access.index, access.shape):
            if ix.indirect is not None:
                v = self.have[ix.indirect]
                terms += [f"({v} >= 0)", f"({v} < {size})"]
            elif access.bounded:
                terms += self.inside(ix, size)
        return " & ".join(terms) if terms else None

    def inside(self, ix: Affine, size: int) -> list[str]:
        """Tests that an affine index lies in [0, size), where it may not."""
        extent = {a.name: a.extent for a in self.expr.axes}
        low = ix.offset + sum(min(0, c * (extent[a] - 1)) for a, c in ix.terms)
        high = ix.offset + sum(max(0, c * (extent[a] - 1)) for a, c in ix.terms)
        walked = {a.name for a in self.expr.reduce} if self.apart else set()
        first = [_times(self.position[a], c) for a, c in ix.terms if a in walked or not walked]
        rest = [_times(self.position[a], c) for a, c in ix.terms if a not in walked and walked]
        if first and rest:
            left, bounds = " + ".join(first), (-ix.offset, size - ix.offset)
            tests = [f"{op} {b} - ({' + '.join(rest)})" for op, b in zip((">=", "<"), bounds)]
        else:
            left = " + ".join([*first, *rest, *([str(ix.offset)] if ix.offset else [])])
            tests = [">= 0", f"< {size}"]
        return [f"({left} {test})" for test, needed in zip(tests, (low < 0, high >= size)) if needed]

    def load(self, n: int, access: Access, depends: frozenset[str]) -> str:
        if self.check:
            self.check_indices(access, depends)
        mask = self.mask(access, depends)
        tail = f", mask={mask}, other={number_text(access.fill, access.dtype)}" if mask else ""
        text = f"tl.load({access.tensor} + ({self.offset(access)}){tail})"
        if access.dtype == "bool":
            text = f"({text} != 0)"
        elif access.dtype in ("float16", "bfloat16") and n not in self.raw_half:
            text += ".to(tl.float32)"
        return text

    def check_indices(self, access: Access, depends: Iterable[str]) -> None:
        inside = [self.masks[a] for a in sorted(depends) if a in self.masks]
        for ix, size in zip(access.index, access.shape):
            if ix.indirect is not None:
                v = self.have[ix.indirect]
                bad = " & ".join([f"(({v} < 0) | ({v} >= {size}))", *inside])
                every = " + ".join(
                    [f"{v} * 0", *(f"{self.position[a]} * 0" for a in sorted(depends) if a in self.masks)]
                )
                self.line(f"tl.store(errors + ({every}), {OUT_OF_RANGE}, mask={bad})")

    def check_divisor(self, v: Value, depends: Iterable[str]) -> None:
        """Flags an integer division by zero. `depends` are the axes of the divisor."""
        y = self.have[v.args[1]]
        inside = [self.masks[a] for a in sorted(depends) if a in self.masks]
        every = " + ".join(
            [
                f"({y} * 0).to(tl.int32)",
                *(f"{self.position[a]} * 0" for a in sorted(depends) if a in self.masks),
            ]
        )
        self.line(f"tl.store(errors + ({every}), {BY_ZERO}, mask={' & '.join([f'({y} == 0)', *inside])})")

    def call(self, v: Value) -> str:
        args = [self.have[a] for a in v.args]
        kinds = [self.expr.values[a] for a in v.args]
        if any(k.kind != "const" for k in kinds) and v.fn not in ("cast", "where"):
            args = [number_text(_rounded(k.number), k.dtype) if k.kind == "const" and k.dtype == "float32" else a
                    for k, a in zip(kinds, args)]  # fmt: skip
        if v.fn == "cast":
            return convert(args[0], self.expr.values[v.args[0]].dtype, v.dtype)
        entry = TABLE[v.fn or ""]
        text = entry.text.format(*args)
        for name in library_functions(entry.text):
            self.need(name)
        return text

    def need(self, name: str) -> None:
        for other in LIBRARY[name][1]:
            self.need(other)
        self.library.add(name)

    def define(self, n: int, text: str) -> None:
        self.line(f"v{n} = {text}")
        self.have[n] = f"v{n}"

    def compute(
        self, wanted: Iterable[int], depends: Sequence[frozenset[str]], stop: Iterable[int] = ()
    ) -> None:
        """Emits every value that `wanted` needs and that is not there yet; reduce and dot values must be."""
        order: list[int] = []
        seen: set[int] = set(stop)

        def visit(n: int) -> None:
            if n in self.have or n in seen:
                return
            seen.add(n)
            v = self.expr.values[n]
            for a in (
                *v.args,
                *(ix.indirect for ix in (v.access.index if v.access else ()) if ix.indirect is not None),
            ):
                visit(a)
            order.append(n)

        for n in wanted:
            visit(n)
        for n in order:
            v = self.expr.values[n]
            if v.kind == "const":
                self.have[n] = _constant(v)
            elif v.kind == "index":
                self.define(n, f"({self.position[v.axis or '']}).to(tl.int64)")
            elif v.kind == "load" and v.access is not None:
                self.define(n, self.load(n, v.access, depends[n]))
            elif v.kind == "call":
                if self.check and v.fn in DIVISIONS:
                    self.check_divisor(v, depends[v.args[1]])
                self.define(n, self.call(v))
            else:
                raise AssertionError(f"v{n} = {v} is not computed yet")

    def store(self, access: Access, value: str, dtype: str, depends: Iterable[str]) -> None:
        mask = self.mask(access, depends)
        tail = f", mask={mask}" if mask else ""
        text = convert_store(value, access.dtype)
        self.line(f"tl.store({access.tensor} + ({self.offset(access)}), {text}{tail})")


def _constant(v: Value) -> str:
    text = number_text(v.number, v.dtype)
    if v.dtype == "bool":
        return f"tl.full((), {text}, tl.int1)"
    return f"tl.full((), {text}, {TL[compute_type(v.dtype)]})"


def _rounded(number: float | int | bool | None) -> float:
    """What float32 makes of a number that is too large for it."""
    value = float(number or 0.0) if number is not None else 0.0
    return (
        math.copysign(math.inf, value)
        if math.isfinite(value) and abs(value) > 3.4028235677973366e38
        else value
    )


def _times(text: str, factor: int) -> str:
    return text if factor == 1 else f"{text} * {factor}"


def convert(text: str, have: str, want: str) -> str:
    """Text that converts a register value; conversion to a half type rounds, though registers stay float32."""
    if want == "bool":
        return f"({text} != 0)"
    if want in ("float16", "bfloat16"):
        return f"({text}).to({TL[want]}).to(tl.float32)"
    if want == have:
        return text
    if want in ("int8", "int16", "uint8") and have in ("float64", "float32", "float16", "bfloat16"):
        return f"({text}).to(tl.int32).to({TL[want]})"
    return f"({text}).to({TL[want]})"


def convert_store(text: str, dtype: str) -> str:
    if dtype == "bool":
        return f"({text}).to(tl.int8)"
    return f"({text}).to({TL[dtype]})" if dtype in ("float16", "bfloat16") else text


def finish(body: Body, tiling: Tiling, name: str, grid: int, packs: tuple[Pack, ...] = ()) -> TritonSource:
    """The whole module: imports, library functions, the kernel."""
    names, types = pointers(body.expr)
    stored = {p.tensor: POINTER[p.dtype] for p in packs}
    types = tuple(stored.get(n, t) for n, t in zip(names, types))
    if body.check:
        names, types = (*names, "errors"), (*types, "*i32")
    out = ["import triton", "import triton.language as tl"]
    helpers = [line for fn in sorted(body.library) for line in ("", LIBRARY[fn][0])]
    code = [*helpers, "", "@triton.jit", f"def {name}({', '.join(names)}):"]
    code += [f"    # {line}" for line in str(body.expr).splitlines()]
    code += body.lines
    if tiling.gpu:  # whose own exp is 2**(x log2(e)) with a rounded exponent: 20 ulp off at 60
        code = [line.replace("tl.exp(", "libdevice.exp(") for line in code]
    if any("libdevice." in line for line in code):
        out += ["from triton.language.extra import libdevice"]
    text = "\n".join((*out, "", *code)) + "\n"
    return TritonSource(name, text, types, grid, tiling.num_warps, tiling.num_stages, packs, body.check)


def fallible(expr: TensorExpr) -> bool:
    """Does the kernel read or write at positions that are themselves data, or divide integers by data?"""
    accesses = (*expr.loads, *(w.access for w in expr.writes))
    return any(a.gathers for a in accesses) or any(v.fn in DIVISIONS for v in expr.values)


def span(access: Access) -> int:
    """The farthest element from the start of the tensor that an access may touch."""
    return abs(access.offset) + sum(abs(st) * (size - 1) for st, size in zip(access.strides, access.shape))


def wide_index(expr: TensorExpr) -> bool:
    """Do offsets leave 32 bits?"""
    return any(span(access) >= 1 << 31 for access in (*expr.loads, *(w.access for w in expr.writes)))
