"""Evaluates tensors at places: memoised, hoisted to the outermost loop level that its coordinates allow.

Contiguity decides how memory is touched: a vector load where the innermost stride is proved to be one, a scalar load
and a broadcast where nothing moves along the vector, a gather otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.lowering.access import read, write
from torchroller.triton_cpu.lowering.code import Code, Operand
from torchroller.triton_cpu.lowering.strided import STRIDES, load_strided
from torchroller.triton_cpu.lowering.values import (
    Buffer,
    Dims,
    Elementwise,
    Linear,
    Load,
    Place,
    Remap,
    Splat,
    Stored,
    Tensor,
)

_BLANK = 64  # elements of the memory that stands in for masked vectors: at least one vector of any type


@dataclass(frozen=True)
class Mode:
    """What holds in the version of a nest being written: guarded linear forms, and tests that masks are true.

    `inside` and `outside`: masks, each with its own dimension along the vectors, that hold for every, or for no,
    vector of this part of the nest; the part outside begins at `start` (see prefix.py).
    """

    forms: bool = False
    tests: frozenset[str] = frozenset()
    inside: frozenset[tuple[Tensor, int]] = frozenset()
    outside: frozenset[tuple[Tensor, int]] = frozenset()
    start: Operand = 0
    same: dict[tuple[Tensor, int], bool] = field(
        default_factory=dict, compare=False
    )  # memo of Evaluator.level


class Evaluator:
    """Writes the code for tensors at places into a `Code`."""

    def __init__(
        self,
        code: Code,
        vector_bits: int,
        cpu_features: frozenset[str],
        fusion: bool = True,
        arch: str = "",
    ) -> None:
        self.code = code
        self.arch = arch
        self.vector_bits = vector_bits
        self.features = cpu_features
        self.fusion = fusion  # whether a * b + c may become one fma
        self.mode = Mode()
        self.write_through: dict[Tensor, Buffer] = {}

    @property
    def lanes(self) -> int:
        """Lanes of a full vector of 32-bit elements."""
        return self.vector_bits // 32

    # ---- values ----------------------------------------------------------------------------------------------
    def at(self, t: Tensor, place: Place) -> str:
        """The value of `t` at `place`: a scalar, or a vector of `place.lanes` where the place has a vector dim."""
        if place.vdim is not None and place.vdim not in t.varies:
            scalar = self.at(t, place.scalar())
            level = self.code.depth(*(place.coords[d] for d in t.varies))
            key = ("splat", scalar, t.elem, place.lanes)
            return self.remember(key, level, lambda: lt.splat(self.code, scalar, t.elem, place.lanes))
        if t.elem == "i1" and place.vdim is not None:
            known = self.settled(t, place.vdim)
            if known is not None:
                return lt.constant("true" if known else "false", "i1", place.width)
        if self.mode.outside and place.vdim is not None and self.level(t, place.vdim):
            first = Place(
                tuple(self.mode.start if d == place.vdim else c for d, c in enumerate(place.coords)),
                place.vdim,
                place.lanes,
            )
            if first != place:
                return self._as_at(t, first, place)
        varies = t.varies
        coords = tuple(c if d in varies else 0 for d, c in enumerate(place.coords))
        place = Place(coords, place.vdim, place.lanes)
        return self.remember((t, place), self.code.depth(*coords), lambda: self.fresh(t, place))

    def _as_at(self, t: Tensor, first: Place, place: Place) -> str:
        """The value at `first`, which is the value at `place` too."""
        value = self.at(t, first)
        buffer = self.write_through.get(t)
        if buffer is None:
            return value

        def keep() -> str:
            self.store_buffer(buffer, place, value)
            return value

        return self.remember((t, place), self.code.depth(*place.coords), keep)

    @contextmanager
    def during(self, mode: Mode) -> Iterator[None]:
        """Write a part of a nest in which `mode` holds."""
        saved, self.mode = self.mode, mode
        try:
            yield
        finally:
            self.mode = saved

    def settled(self, mask: Tensor, vdim: int | None) -> bool | None:
        """What a mask is throughout the vectors along its dimension `vdim` in this part of the nest, if known."""
        if self.holds(mask):
            return True
        if vdim is None or mask.buffer is not None or not (self.mode.inside or self.mode.outside):
            return None
        if (mask, vdim) in self.mode.inside:
            return True
        if (mask, vdim) in self.mode.outside:
            return False
        if isinstance(mask, Remap):
            return self.settled(mask.source, mask.source_dim(vdim))
        if isinstance(mask, Elementwise) and mask.name == "arith.andi":
            parts = [self.settled(a, vdim) for a in mask.args]
            return False if False in parts else True if all(parts) else None
        return None

    def level(self, t: Tensor, vdim: int | None) -> bool:
        """Whether a tensor is the same all along its dimension `vdim` outside of the masks."""
        if vdim is None or vdim not in t.varies:
            return True
        if t.buffer is not None or isinstance(t, Stored):
            return False
        key = (t, vdim)
        if key not in self.mode.same:
            self.mode.same[key] = self._level(t, vdim)
        return self.mode.same[key]

    def _level(self, t: Tensor, vdim: int) -> bool:
        if t.elem == "i1" and self.settled(t, vdim) is not None:
            return True
        if isinstance(t, Remap):
            return self.level(t.source, t.source_dim(vdim))
        if isinstance(t, Load):
            masked = t.mask is not None and self.settled(t.mask, vdim) is False
            return masked and (t.other is None or self.level(t.other, vdim))
        if isinstance(t, Elementwise) and t.args:
            chosen = self.chosen(t, vdim)
            return self.level(chosen, vdim) if chosen else all(self.level(a, vdim) for a in t.args)
        return False

    def chosen(self, t: Tensor, vdim: int | None) -> Tensor | None:
        """The side that a select takes, where its condition is settled."""
        if not isinstance(t, Elementwise) or t.name != "arith.select":
            return None
        known = self.settled(t.args[0], vdim)
        return None if known is None else t.args[1] if known else t.args[2]

    def remember(self, key: object, level: int, make: Callable[[], str]) -> str:
        level = min(level, self.code.level)
        for scope in self.code.scopes[: level + 1]:
            if key in scope.memo:
                return scope.memo[key]
        with self.code.at_level(level):
            value = make()
        self.code.scopes[level].memo[key] = value
        return value

    def fresh(self, t: Tensor, place: Place) -> str:
        if t.buffer is not None:
            return self.load_buffer(t.buffer, place)
        if isinstance(t, Splat):
            return t.value
        value = self.computed(t, place)
        if t in self.write_through:
            self.store_buffer(self.write_through[t], place, value)
        return value

    def computed(self, t: Tensor, place: Place) -> str:
        if lt.is_int(t.elem) and t.elem != "i1":
            form = t.linear(self, self.mode.forms)
            if form.affine and form.pointer is None:
                return self.from_linear(t, form, place)
        chosen = self.chosen(t, place.vdim)
        return self.at(chosen, place) if chosen is not None else t.compute(self, place)

    def from_linear(self, t: Tensor, form: Linear, place: Place) -> str:
        """An integer tensor from its affine form."""
        code, type = self.code, lt.scalar(t.elem)
        position = self.position(form, place)
        if isinstance(position, str) and type != "i64":
            position = code.let(f"trunc i64 {position} to {type}")
        if place.vdim is None:
            return str(position)
        stride = form.strides[place.vdim]
        if isinstance(stride, int):
            steps = lt.iota(type, place.lanes, stride)
        else:
            narrow = stride if type == "i64" else code.let(f"trunc i64 {stride} to {type}")
            wide = lt.splat(code, narrow, t.elem, place.lanes)
            steps = code.let(f"mul <{place.lanes} x {type}> {wide}, {lt.iota(type, place.lanes)}")
        if position == 0:
            return steps
        base = lt.splat(code, str(position), t.elem, place.lanes)
        return code.let(f"add <{place.lanes} x {type}> {base}, {steps}")

    def position(self, form: Linear, place: Place, terms: Iterable[Tensor] | None = None) -> Operand:
        """Scalar i64 position of the first lane: base + coordinates * strides + the given scalar terms."""
        code, total = self.code, form.base
        for coordinate, stride in sorted(zip(place.coords, form.strides), key=lambda p: code.depth(p[0])):
            level = min(max(code.depth(coordinate), code.depth(total)), code.level)
            with code.at_level(level):
                total = code.add(total, code.mul(coordinate, stride))
        for term in form.terms if terms is None else terms:
            total = code.add(total, self.as_i64(term, place.scalar()))
        return total

    def as_i64(self, term: Tensor, place: Place) -> str:
        value = self.at(term, place)
        if lt.scalar(term.elem) == "i64":
            return value
        type = lt.typed(term.elem, place.width)
        wide = "i64" if place.width is None else f"<{place.width} x i64>"
        return self.code.let(f"sext {type} {value} to {wide}")

    # ---- addresses -------------------------------------------------------------------------------------------
    def address(self, pointer: Tensor, elem: str, place: Place) -> tuple[str, str]:
        """(kind, operand): "run" a pointer to consecutive elements, "same" one pointer for all lanes,
        "each" a vector of pointers; without a vector dimension always "same"."""
        code = self.code
        if pointer.buffer is not None:
            value = self.at(pointer, place)
            return ("same" if place.vdim is None or place.vdim not in pointer.varies else "each", value)
        form = pointer.linear(self, self.mode.forms)
        if form.pointer is None:  # pointers out of memory, or selected
            if place.vdim is None or place.vdim not in pointer.varies:
                return "same", self.at(pointer, place.scalar())
            return "each", pointer.compute(self, place)
        moving = [t for t in form.terms if place.vdim in t.varies]
        still = [t for t in form.terms if place.vdim not in t.varies]
        position = self.position(form, place, still)
        type = lt.storage(elem)
        first = form.pointer
        if position != 0:
            first = code.let(f"getelementptr {type}, ptr {form.pointer}, i64 {position}")
        if place.vdim is None:
            return "same", first
        stride = form.strides[place.vdim]
        if not moving and stride == 0:
            return "same", first
        if not moving and stride == 1:
            return "run", first
        wide = f"<{place.lanes} x i64>"
        offsets = None
        if isinstance(stride, int):
            offsets = lt.iota("i64", place.lanes, stride) if stride else None
        else:
            spread = lt.splat(code, stride, "i64", place.lanes)
            offsets = code.let(f"mul {wide} {spread}, {lt.iota('i64', place.lanes)}")
        for term in moving:
            more = self.as_i64(term, place)
            offsets = more if offsets is None else code.let(f"add {wide} {offsets}, {more}")
        return "each", code.let(f"getelementptr {type}, ptr {first}, {wide} {offsets}")

    def load(self, t: Load, place: Place) -> str:
        """Read memory for a load at a place, under its mask in the current mode."""
        lanes = place.width
        known = True if t.mask is None else self.settled(t.mask, place.vdim)
        if known is False and lanes is not None:
            return self.at(t.other, place) if t.other is not None else "zeroinitializer"
        step = self.spacing(t, place)
        kind, where = self.address(t.pointer, t.elem, place.scalar() if step else place)
        mask = None
        if t.mask is not None and not known:
            blank = self.blank(t) if kind == "run" or step else None
            if blank is None:
                mask = self.at(t.mask, place)
            else:  # a choice of pointers costs less than a lane mask
                test, mask = self.split_mask(t.mask, place)
                if test is not None:
                    where = self.code.let(f"select i1 {test}, ptr {where}, ptr {blank}")
        other = self.at(t.other, place) if t.other is not None else None
        if step:
            return load_strided(self.code, t.elem, where, step, place.lanes, mask, other)
        return read(self.code, t.elem, kind, where, mask, other, lanes, volatile=t.volatile)

    def spacing(self, t: Load, place: Place) -> int:
        """Elements between what neighbouring lanes of a load read, where `load_strided` serves; else 0."""
        if place.vdim is None or t.volatile or t.elem in ("i1", "ptr") or t.pointer.buffer is not None:
            return 0
        form = t.pointer.linear(self, self.mode.forms)
        if form.pointer is None or any(place.vdim in term.varies for term in form.terms):
            return 0
        stride = form.strides[place.vdim]
        return stride if isinstance(stride, int) and stride in STRIDES else 0

    def blank(self, t: Load) -> str | None:
        """Memory that holds what a masked load gives where its mask is false; None where that is not one constant."""
        if t.volatile or t.elem in ("i1", "ptr"):
            return None
        value = "zeroinitializer"
        if t.other is not None:
            if not isinstance(t.other, Splat) or t.other.value.startswith("%"):
                return None
            value = t.other.value
        type = lt.storage(t.elem)
        if type != lt.scalar(t.elem):
            return None
        name = "@blank_" + "".join(c if c.isalnum() else "_" for c in f"{type}_{value}")
        row = value if value == "zeroinitializer" else "[" + ", ".join([f"{type} {value}"] * _BLANK) + "]"
        self.code.declare(name, f"{name} = internal constant [{_BLANK} x {type}] {row}, align 64")
        return name

    def split_mask(self, mask: Tensor, place: Place) -> tuple[str | None, str | None]:
        """A conjunction as a scalar (what does not change along a vector) and a vector (the rest); None for nothing."""
        parts = [m for m in conjuncts(mask) if not self.holds(m)]
        uniform = [m for m in parts if place.vdim not in m.varies]
        along = [m for m in parts if place.vdim in m.varies]
        if not uniform:
            return None, self.at(mask, place)
        test = self.code.both([self.at(m, place.scalar()) for m in uniform])
        lanes: str | None = None
        for m in along:
            more = self.at(m, place)
            lanes = more if lanes is None else self.code.let(f"and <{place.lanes} x i1> {lanes}, {more}")
        return test, lanes

    # ---- buffers ---------------------------------------------------------------------------------------------
    def buffer_address(self, b: Buffer, place: Place) -> tuple[str, str]:
        form = Linear(b.pointer, 0, b.strides)
        position = self.position(form, place)
        where = b.pointer
        if position != 0:
            where = self.code.let(f"getelementptr {lt.storage(b.elem)}, ptr {b.pointer}, i64 {position}")
        if place.vdim is None:
            return "same", where
        stride = b.strides[place.vdim]
        if stride == 1:
            return "run", where
        offsets = lt.iota("i64", place.lanes, stride)
        vector = f"getelementptr {lt.storage(b.elem)}, ptr {where}, <{place.lanes} x i64> {offsets}"
        return "each", self.code.let(vector)

    def load_buffer(self, b: Buffer, place: Place) -> str:
        kind, where = self.buffer_address(b, place)
        return read(self.code, b.elem, kind, where, None, None, place.width)

    def store_buffer(self, b: Buffer, place: Place, value: str) -> None:
        kind, where = self.buffer_address(b, place)
        write(self.code, b.elem, kind, where, value, None, place.width)

    # ---- masks and guards ------------------------------------------------------------------------------------
    def all_true(self, mask: Tensor) -> tuple[str, ...] | None:
        """Run-time conditions under which the whole mask is true; None where no such test is known."""
        from torchroller.triton_cpu.lowering.masks import all_true

        return all_true(self, mask)

    def holds(self, mask: Tensor) -> bool:
        """Whether the whole mask is known to be true in the version being written."""
        tests = self.all_true(mask)
        return tests is not None and all(t == "true" or t in self.mode.tests for t in tests)

    def walk(self, roots: Iterable[tuple[Tensor, Dims]]) -> Iterable[tuple[Tensor, Dims]]:
        """Every tensor that evaluating the roots would visit, with the nest dimension behind each of its own."""
        seen: set[tuple[int, Dims]] = set()
        stack = list(roots)
        while stack:
            t, dims = stack.pop()
            if (id(t), dims) in seen:
                continue
            seen.add((id(t), dims))
            yield t, dims
            if t.buffer is None and not isinstance(t, Stored):
                for dep, inner in t.deps():
                    stack.append((dep, tuple(None if d is None else dims[d] for d in inner)))


def conjuncts(mask: Tensor) -> list[Tensor]:
    """Masks whose conjunction is `mask`, of its shape; the same objects each time."""
    known = mask.__dict__.get("conjuncts")
    if known is None:
        if mask.buffer is None and isinstance(mask, Elementwise) and mask.name == "arith.andi":
            known = [m for a in mask.args for m in conjuncts(a)]
        elif mask.buffer is None and isinstance(mask, Remap):
            inner = conjuncts(mask.source)
            known = [mask] if len(inner) == 1 else [
                Remap(mask.shape, mask.elem, source=m, source_dims=mask.source_dims) for m in inner
            ]  # fmt: skip
        else:
            known = [mask]
        mask.__dict__["conjuncts"] = known
    return known
