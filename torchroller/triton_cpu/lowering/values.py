"""Tensor values as index functions.

A Tensor is a function from a place in the tile (one coordinate per dimension, one of them possibly a vector of
consecutive positions) to an LLVM value. Nothing is computed until a consumer (store, reduce, dot, …) asks at a place.
Integer and pointer tensors also have a linear form, from which contiguity is proved:

    position = pointer + base + sum(coordinate[d] * strides[d]) + sum(terms)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.lowering.code import Operand

if TYPE_CHECKING:
    from torchroller.triton_cpu.lowering.evaluate import Evaluator


@dataclass(frozen=True)
class Place:
    """Where in a tile: coordinates, and the dimension along which `lanes` consecutive positions are meant."""

    coords: tuple[Operand, ...]
    vdim: int | None = None
    lanes: int = 1

    @property
    def width(self) -> int | None:
        return None if self.vdim is None else self.lanes

    def scalar(self) -> Place:
        return Place(self.coords, None, 1)


@dataclass(frozen=True)
class Linear:
    """Linear form of an integer or pointer tensor, in elements. `guards` are run-time conditions it rests on."""

    pointer: str | None
    base: Operand
    strides: tuple[Operand, ...]
    terms: tuple[Tensor, ...] = ()
    guards: tuple[str, ...] = ()

    @property
    def affine(self) -> bool:
        return not self.terms

    @property
    def uniform(self) -> bool:
        return not self.terms and all(s == 0 for s in self.strides)


@dataclass(frozen=True)
class Buffer:
    """A tensor held in memory by the kernel; strides in elements."""

    pointer: str
    elem: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    strides, run = [], 1
    for extent in reversed(shape):
        strides.append(run)
        run *= extent
    return tuple(reversed(strides))


Dims = tuple[int | None, ...]


@dataclass(eq=False)
class Tensor:
    """Base: an opaque tensor. `varies` names the dimensions along which values may differ."""

    shape: tuple[int, ...]
    elem: str
    buffer: Buffer | None = field(default=None, kw_only=True)

    def deps(self) -> list[tuple[Tensor, Dims]]:
        """What this is computed from, each with the own dimension behind each of its dimensions."""
        return []

    @property
    def varies(self) -> frozenset[int]:
        return frozenset(d for d, n in enumerate(self.shape) if n > 1)

    @property
    def reads_memory(self) -> bool:
        """Whether evaluating later could give another result than evaluating now."""
        return self.buffer is None and any(t.reads_memory for t, _ in self.deps())

    @property
    def weight(self) -> int:
        """Rough number of vector operations to evaluate one place."""
        return 1 if self.buffer is not None else 1 + sum(t.weight for t, _ in self.deps())

    def compute(self, ev: Evaluator, place: Place) -> str:
        raise NotImplementedError(type(self).__name__)

    def linear(self, ev: Evaluator, fast: bool) -> Linear:
        return self.opaque()

    def same_dims(self) -> Dims:
        return tuple(range(len(self.shape)))

    def opaque(self) -> Linear:
        """The form of a tensor of which nothing is known but its values."""
        return Linear(None, 0, (0,) * len(self.shape), (self,))


@dataclass(eq=False)
class Stored(Tensor):
    """A tensor that was eager from the start (result of reduce, dot, scan, loop): it lives in its buffer."""


@dataclass(eq=False)
class Splat(Tensor):
    """One scalar everywhere. `position` is its value as an i64 where it is an integer; `pointer` where a pointer."""

    value: str = ""
    position: Operand | None = None

    @property
    def varies(self) -> frozenset[int]:
        return frozenset()

    @property
    def weight(self) -> int:
        return 0

    def compute(self, ev: Evaluator, place: Place) -> str:
        return self.value

    def linear(self, ev: Evaluator, fast: bool) -> Linear:
        zeros = (0,) * len(self.shape)
        if self.elem == "ptr":
            return Linear(self.value, 0, zeros)
        if self.position is not None:
            return Linear(None, self.position, zeros)
        return super().linear(ev, fast)


@dataclass(eq=False)
class Range(Tensor):
    """`tt.make_range`: start + index."""

    start: int = 0

    @property
    def weight(self) -> int:
        return 0

    def compute(self, ev: Evaluator, place: Place) -> str:
        return ev.from_linear(self, self.linear(ev, True), place)

    def linear(self, ev: Evaluator, fast: bool) -> Linear:
        return Linear(None, self.start, (1,))


@dataclass(eq=False)
class Elementwise(Tensor):
    """An operation applied place by place; `emit(ev, arguments, lanes)` writes it."""

    name: str = ""
    args: tuple[Tensor, ...] = ()
    emit: Callable[[Evaluator, list[str], int | None], str] = None  # type: ignore[assignment]
    cost: int = 1
    linear_rule: Callable[[Evaluator, Elementwise, bool], Linear | None] | None = None

    def __post_init__(self) -> None:
        self._reads = any(t.reads_memory for t in self.args)
        self._weight = self.cost + sum(t.weight for t in self.args)
        self._varies = frozenset().union(*(t.varies for t in self.args)) if self.args else frozenset()
        self._forms: dict[bool, Linear] = {}

    def deps(self) -> list[tuple[Tensor, Dims]]:
        return [(a, self.same_dims()) for a in self.args]

    @property
    def varies(self) -> frozenset[int]:
        return self._varies

    @property
    def reads_memory(self) -> bool:
        return self.buffer is None and self._reads

    @property
    def weight(self) -> int:
        return 1 if self.buffer is not None else self._weight

    def compute(self, ev: Evaluator, place: Place) -> str:
        return self.emit(ev, [ev.at(a, place) for a in self.args], place.width)

    def linear(self, ev: Evaluator, fast: bool) -> Linear:
        if self.buffer is not None and self._reads:
            return self.opaque()  # its form would read memory that may have changed since
        if fast not in self._forms:
            form = self.linear_rule(ev, self, fast) if self.linear_rule else None
            self._forms[fast] = form if form is not None else super().linear(ev, fast)
        return self._forms[fast]


@dataclass(eq=False)
class Remap(Tensor):
    """expand_dims, broadcast, trans: another view of `source`. `source_dims[k]` is the own dimension behind
    dimension k of the source, None where the source has extent 1 there."""

    source: Tensor = None  # type: ignore[assignment]
    source_dims: Dims = ()

    def __post_init__(self) -> None:
        self._forms: dict[bool, Linear] = {}

    def deps(self) -> list[tuple[Tensor, Dims]]:
        return [(self.source, self.source_dims)]

    @property
    def varies(self) -> frozenset[int]:
        inner = self.source.varies
        return frozenset(d for k, d in enumerate(self.source_dims) if d is not None and k in inner)

    @property
    def weight(self) -> int:
        return 1 if self.buffer is not None else self.source.weight

    def inner(self, place: Place) -> Place:
        coords = tuple(0 if d is None else place.coords[d] for d in self.source_dims)
        vdim = None
        if place.vdim is not None and place.vdim in self.source_dims:
            vdim = self.source_dims.index(place.vdim)
        return Place(coords, vdim, place.lanes if vdim is not None else 1)

    def source_dim(self, vdim: int | None) -> int | None:
        """The dimension of the source behind an own one; None where the source does not vary along it."""
        return self.source_dims.index(vdim) if vdim is not None and vdim in self.source_dims else None

    def compute(self, ev: Evaluator, place: Place) -> str:
        return ev.at(self.source, self.inner(place))

    def linear(self, ev: Evaluator, fast: bool) -> Linear:
        if self.buffer is not None and self.source.reads_memory:
            return self.opaque()
        if fast in self._forms:
            return self._forms[fast]
        form = self.source.linear(ev, fast)
        strides: list[Operand] = [0] * len(self.shape)
        for k, d in enumerate(self.source_dims):
            if d is not None:
                strides[d] = form.strides[k]
        terms = tuple(Remap(self.shape, t.elem, source=t, source_dims=self.source_dims) for t in form.terms)
        self._forms[fast] = replace(form, strides=tuple(strides), terms=terms)
        return self._forms[fast]


@dataclass(eq=False)
class Load(Tensor):
    """`tt.load`: reads when it is evaluated; the lowering evaluates it before anything could change the memory."""

    pointer: Tensor = None  # type: ignore[assignment]
    mask: Tensor | None = None
    other: Tensor | None = None
    volatile: bool = False

    def deps(self) -> list[tuple[Tensor, Dims]]:
        parts = [self.pointer, *(t for t in (self.mask, self.other) if t is not None)]
        return [(t, self.same_dims()) for t in parts]

    @property
    def varies(self) -> frozenset[int]:
        return frozenset().union(*(t.varies for t, _ in self.deps()))

    @property
    def reads_memory(self) -> bool:
        return self.buffer is None

    @property
    def weight(self) -> int:
        return 1 if self.buffer is not None else 2

    def compute(self, ev: Evaluator, place: Place) -> str:
        return ev.load(self, place)


@dataclass(eq=False)
class Merged(Tensor):
    """A reshape that joins the last two of three dimensions, read without a copy: (k, p, w) as (k, p * w).

    Vectors along the joined dimension must lie within one `w`; whoever makes one sees to that.
    """

    source: Tensor = None  # type: ignore[assignment]

    def deps(self) -> list[tuple[Tensor, Dims]]:
        return [(self.source, (0, None, 1))]

    @property
    def weight(self) -> int:
        return 1 if self.buffer is not None else self.source.weight

    def compute(self, ev: Evaluator, place: Place) -> str:
        row, column = place.coords
        panel, within = digits(ev, column, self.source.shape[2])
        vdim = {None: None, 0: 0, 1: 2}[place.vdim]
        return ev.at(self.source, Place((row, panel, within), vdim, place.lanes))


@dataclass(eq=False)
class Interleaved(Tensor):
    """(k / s, w, s) or (k / s, p, w, s), read without a copy as (k, w) or (k, p * w): a constant operand of a dot whose
    instruction multiplies s neighbours along k, stored side by side.

    Vectors along the columns must lie within one `w`; whoever makes one sees to that.
    """

    source: Tensor = None  # type: ignore[assignment]

    def deps(self) -> list[tuple[Tensor, Dims]]:
        between: Dims = (None,) * (len(self.source.shape) - 3)
        return [(self.source, (None, *between, 1, None))]

    @property
    def weight(self) -> int:
        return 1 if self.buffer is not None else self.source.weight

    def compute(self, ev: Evaluator, place: Place) -> str:
        if place.vdim == 0:  # neighbours along k lie apart
            return self._gathered(ev, place)
        row, column = place.coords
        *_, width, step = self.source.shape
        first, second = (digits(ev, row, step), digits(ev, column, width))
        panel = (second[0],) if len(self.source.shape) == 4 else ()
        at = (first[0], *panel, second[1], first[1])
        return ev.at(self.source, Place(at, None if place.vdim is None else len(at) - 2, place.lanes))

    def _gathered(self, ev: Evaluator, place: Place) -> str:
        row, column = place.coords
        type, vector = lt.scalar(self.elem), "poison"
        for lane in range(place.lanes):
            value = ev.at(self, Place((ev.code.add(row, lane), column)))
            vector = ev.code.let(
                f"insertelement <{place.lanes} x {type}> {vector}, {type} {value}, i64 {lane}"
            )
        return vector


def digits(ev: Evaluator, position: Operand, width: int) -> tuple[Operand, Operand]:
    """(position // width, position % width)."""
    if isinstance(position, int):
        return divmod(position, width)

    def digit(operation: str) -> str:
        key = (operation, position, width)
        level = ev.code.depth(position)
        return ev.remember(key, level, lambda: ev.code.let(f"{operation} i64 {position}, {width}"))

    return digit("udiv"), digit("urem")
