"""tl.gather (a tile indexed by a tile), tl.histogram, and constant tiles of differing elements."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torchroller.triton_cpu.errors import UnsupportedOperation
from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.lowering.access import read
from torchroller.triton_cpu.lowering.evaluate import Evaluator
from torchroller.triton_cpu.lowering.function import Lowering, handles
from torchroller.triton_cpu.lowering.memory import under_mask
from torchroller.triton_cpu.lowering.nests import identity, new_buffer, over_tile, stored, versions
from torchroller.triton_cpu.lowering.values import (
    Buffer,
    Dims,
    Linear,
    Place,
    Splat,
    Stored,
    Tensor,
    row_major,
)
from torchroller.triton_cpu.ttir import Op


@dataclass(eq=False)
class Gathered(Tensor):
    """result[.., i, ..] = source[.., index[.., i, ..], ..] along `axis`; the source lies in memory."""

    source: Stored = None  # type: ignore[assignment]
    index: Tensor = None  # type: ignore[assignment]
    axis: int = 0

    def deps(self) -> list[tuple[Tensor, Dims]]:
        elsewhere = tuple(None if d == self.axis else d for d in self.same_dims())
        return [(self.index, self.same_dims()), (self.source, elsewhere)]

    @property
    def weight(self) -> int:
        return 1 if self.buffer is not None else 4 + self.index.weight

    def compute(self, ev: Evaluator, place: Place) -> str:
        code, memory = ev.code, self.source.buffer
        assert memory is not None
        step = memory.strides[self.axis]
        others = tuple(0 if d == self.axis else s for d, s in enumerate(memory.strides))
        position = ev.position(Linear(memory.pointer, 0, others), place)
        index = ev.as_i64(self.index, place)
        type = lt.storage(memory.elem)
        if place.vdim is None:
            at = code.add(position, code.mul(index, step))
            where = code.let(f"getelementptr {type}, ptr {memory.pointer}, i64 {at}")
            return read(ev.code, self.elem, "same", where, None, None, None)
        lanes = place.lanes
        wide = f"<{lanes} x i64>"
        offsets = code.let(f"mul {wide} {index}, {lt.constant(str(step), 'i64', lanes)}")
        if place.vdim != self.axis:
            offsets = code.let(f"add {wide} {offsets}, {lt.iota('i64', lanes, others[place.vdim])}")
        first = code.let(f"getelementptr {type}, ptr {memory.pointer}, i64 {position}")
        where = code.let(f"getelementptr {type}, ptr {first}, {wide} {offsets}")
        return read(ev.code, self.elem, "each", where, None, None, lanes)


@handles("tt.gather")
def gather(low: Lowering, op: Op) -> None:
    result, axis = op.results[0], op.int_attr("axis")
    source, index = (low.tensor(v) for v in op.operands)
    shape = result.type.dims
    if isinstance(source, Splat):
        low.set_tensor(result, Splat(shape, source.elem, value=source.value, position=source.position))
        return
    held = stored(low.keep(source))
    low.set_tensor(result, Gathered(shape, result.type.elem, source=held, index=index, axis=axis))


@handles("tt.histogram")
def histogram(low: Lowering, op: Op) -> None:
    """Counts per bin; numbers outside of the bins are not counted."""
    ev, code, result = low.ev, low.code, op.results[0]
    source, *masks = (low.tensor(v) for v in op.operands)
    mask = masks[0] if masks else None
    (bins,) = result.type.shape or (1,)
    elem = result.type.elem
    out = new_buffer(code, elem, (bins,))
    type = lt.scalar(elem)

    def clear(place: Place) -> None:
        ev.store_buffer(out, place, lt.constant("0", elem, place.width))

    def count(place: Place) -> None:
        value = ev.as_i64(source, place)
        inside = code.let(f"icmp ult i64 {value}, {bins}")
        if mask is not None:
            inside = code.let(f"and i1 {inside}, {ev.at(mask, place)}")

        def add() -> None:
            where = code.let(f"getelementptr {type}, ptr {out.pointer}, i64 {value}")
            old = code.let(f"load {type}, ptr {where}")
            new = code.let(f"add {type} {old}, 1")
            code.line(f"  store {type} {new}, ptr {where}")

        under_mask(code, inside, add)

    with code.nest():
        over_tile(ev, (bins,), 0 if bins > 1 else None, clear)
    roots = [identity(t) for t in (source, mask) if t is not None]
    versions(ev, roots, lambda: over_tile(ev, source.shape, None, count))
    low.set_tensor(result, stored(out))


def constant_tile(low: Lowering, op: Op, text: str) -> Stored:
    """`dense<[[1, 2], [3, 4]]>` as read-only memory."""
    result = op.results[0]
    shape, elem = result.type.dims, result.type.elem
    values = re.findall(r"[^\s\[\],]+", text)
    if text.startswith('"') or len(values) != result.type.size:
        detail = f"a constant tensor in a form that is not read: {op.text[:80]}"
        raise UnsupportedOperation(op.name, op.location or None, detail)
    if lt.is_float(elem) or lt.is_float8(elem):
        values = [lt.float_literal(v, elem) for v in values]
    elif elem == "i1":
        values = [{"true": "1", "false": "0"}.get(v, v) for v in values]
    memory = lt.storage(elem)
    name = f"@constant{len(low.code.declarations)}"
    items = ", ".join(f"{memory} {v}" for v in values)
    array = f"{name} = internal constant [{len(values)} x {memory}] [{items}], align 64"
    low.code.declare(name, array)
    return stored(Buffer(name, elem, shape, row_major(shape)))
