"""Loads, stores and atomics."""

from __future__ import annotations

from collections.abc import Callable

from torchroller.triton_cpu.errors import UnsupportedOperation
from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.lowering.access import write
from torchroller.triton_cpu.lowering.code import Code
from torchroller.triton_cpu.lowering.elementwise import convert, emitter
from torchroller.triton_cpu.lowering.evaluate import conjuncts
from torchroller.triton_cpu.lowering.function import HANDLERS, Lowering, handles, has_effects
from torchroller.triton_cpu.lowering.interleave import Planes, interleave, planes, spread
from torchroller.triton_cpu.lowering.nests import (
    Roots,
    identity,
    new_buffer,
    over_tile,
    stored,
    vector_dim,
    versions,
)
from torchroller.triton_cpu.lowering.prefix import Split, find_split
from torchroller.triton_cpu.lowering.transpose import across, over_blocks, over_turned, stored_across
from torchroller.triton_cpu.lowering.values import Dims, Load, Place, Tensor
from torchroller.triton_cpu.ttir import Op, Value

# Operations that may stand between two stores that are written in one nest.
_LAZY = {
    "tt.splat",
    "tt.broadcast",
    "tt.expand_dims",
    "tt.addptr",
    "tt.make_range",
    "arith.constant",
    "tt.trans",
}
_GROUP = 6


@handles("tt.load")
def load(low: Lowering, op: Op) -> None:
    result = op.results[0]
    pointer, *optional = (low.tensor(v) for v in op.operands)
    mask, other = (*optional, None, None)[:2]
    volatile = "isVolatile = true" in op.text
    t = Load(result.type.dims, result.type.elem, pointer=pointer, mask=mask, other=other, volatile=volatile)
    if result.type.is_tensor:
        low.set_tensor(result, t)
        if volatile:
            low.keep(t)
        return
    low.set_scalar(result, low.ev.load(t, Place(())))


@handles("tt.store")
def store(low: Lowering, op: Op) -> None:
    if not op.operands[1].type.is_tensor:
        low.settle(op)
        pointer, value, *masks = (low.scalar(v) for v in op.operands)
        mask = masks[0] if masks else None
        write(low.code, op.operands[1].type.elem, "same", pointer, value, mask, None)
        return
    write_stores(low, [op])


def keep_overlapping(low: Lowering, roots: Roots, pointers: list[Tensor]) -> None:
    """Keep loads below `roots` that a nest writing through `pointers` could overtake.

    A nest goes place by place. Reading where that very place is written is safe; reading the same memory at another
    place, or at a place reached through an index tensor, is not. Pointers that come from different arguments are
    taken to name different memory, or the same elements.
    """
    ev, root = low.ev, low.code.pointer_roots
    targets = [p.linear(ev, False) for p in pointers]

    def safe(load: Load, dims: Dims) -> bool:
        form = load.pointer.linear(ev, False)
        for target in targets:
            if form.pointer is None or target.pointer is None:
                return False
            if root.get(form.pointer, form.pointer) != root.get(target.pointer, target.pointer):
                continue
            same = (form.pointer, form.base, form.strides) == (target.pointer, target.base, target.strides)
            onto = all(s != 0 for s, n in zip(target.strides, pointers[0].shape) if n > 1)
            if not (same and onto and form.affine and target.affine and dims == load.same_dims()):
                return False
        return True

    for t, dims in list(ev.walk(roots)):
        if isinstance(t, Load) and t.buffer is None and not safe(t, dims):
            low.keep(t)


def write_stores(low: Lowering, ops: list[Op]) -> None:
    """One nest that evaluates and stores every place of the tile."""
    ev = low.ev
    parts: list[tuple[Tensor, Tensor, Tensor | None]] = []
    for op in ops:
        pointer, value, *masks = (low.tensor(v) for v in op.operands)
        parts.append((pointer, value, masks[0] if masks else None))
    # what reads memory and is still needed after these stores is kept first
    low.settle(ops[-1])
    shape = parts[0][0].shape
    roots = [identity(t) for part in parts for t in part if t is not None]
    pointers = [identity(p) for p, _, _ in parts]
    keep_overlapping(low, roots, [p for p, _, _ in parts])

    def put(pointer: Tensor, elem: str, mask: Tensor | None, place: Place, text: str) -> None:
        kind, where = ev.address(pointer, elem, place)
        test, lanes = (None, None) if mask is None else ev.split_mask(mask, place)
        # A vector store without lanes costs hundreds of cycles where nobody may write to the page that it names.
        under_mask(
            low.code, test or "true", lambda: write(low.code, elem, kind, where, text, lanes, place.width)
        )

    def nest() -> None:
        vdim = vector_dim(ev, shape, roots, pointers)

        def body(place: Place) -> None:
            known = [True if m is None else ev.settled(m, place.vdim) for _, _, m in parts]
            written = [k for k, state in enumerate(known) if state is not False]
            values = [ev.at(parts[k][1], place) for k in written]
            for k, text in zip(written, values):
                pointer, value, mask = parts[k]
                put(pointer, value.elem, None if known[k] else mask, place, text)

        side = planes(ev, roots, *parts[0]) if len(parts) == 1 else None
        if side is not None:
            write_planes(side)
            return
        other, crossing = across(ev, roots, len(shape), vdim)
        turned = stored_across(ev, [p for p, _, _ in parts], [v.elem for _, v, _ in parts], vdim)
        if crossing and vdim is not None:
            over_blocks(ev, shape, vdim, other, crossing, body)
        elif turned is not None and vdim is not None:
            write_turned(vdim, turned)
        else:
            split = find_split(ev, roots, shape, vdim, ev.lanes)
            over_tile(ev, shape, vdim, body, split, beyond=split is not None and not masked_out(split, vdim))

    def write_planes(side: Planes) -> None:
        """Whole vectors of the places of all planes, one after the other."""
        (pointer, value, mask), code = parts[0], low.code

        def body(place: Place) -> None:
            first, tests, lanes = side.at(place, 0), [], None
            for part in conjuncts(mask) if mask is not None else ():
                known = True if side.inner in part.varies else ev.settled(part, place.vdim)
                if known is False:
                    return
                if known is None and side.along in part.varies:
                    more = ev.at(part, first)
                    lanes = more if lanes is None else code.let(f"and <{place.lanes} x i1> {lanes}, {more}")
                elif known is None:
                    tests.append(ev.at(part, first.scalar()))
            texts = [ev.at(value, side.at(place, n)) for n in range(side.count)]
            texts = interleave(code, texts, place.lanes, lt.scalar(value.elem))
            _, where = ev.address(pointer, value.elem, first.scalar())
            masks = [None] * side.count if lanes is None else spread(code, lanes, place.lanes, side.count)

            def put_all() -> None:
                for n, (text, chosen) in enumerate(zip(texts, masks)):
                    at = code.let(
                        f"getelementptr {lt.scalar(value.elem)}, ptr {where}, i64 {n * place.lanes}"
                    )
                    write(code, value.elem, "run", at, text, chosen, place.width)

            under_mask(code, code.both(tests), put_all)

        flat = tuple(1 if d == side.inner else n for d, n in enumerate(shape))
        split = find_split(ev, roots, flat, side.along, ev.lanes)
        over_tile(ev, flat, side.along, body, split)

    def write_turned(vdim: int, along: int) -> None:
        """Values are computed as vectors along `vdim` and turned in registers: stores run along `along`."""
        known = [True if m is None else ev.settled(m, along) for _, _, m in parts]
        written = [k for k, state in enumerate(known) if state is not False]

        def values(place: Place) -> list[str]:
            return [ev.at(parts[k][1], place) for k in written]

        def put_turned(n: int, place: Place, text: str) -> None:
            pointer, value, mask = parts[written[n]]
            put(pointer, value.elem, None if known[written[n]] else mask, place, text)

        over_turned(ev, shape, vdim, along, [parts[k][1].elem for k in written], values, put_turned)

    def masked_out(split: Split, vdim: int | None) -> bool:
        """Whether every store is masked off behind the end of the split."""
        with ev.during(split.outside(ev.mode)):
            return all(m is not None and ev.settled(m, vdim) is False for _, _, m in parts)

    versions(ev, roots, nest, masks=[m for _, _, m in parts if m is not None])


_RMW = {"add": "add", "fadd": "fadd", "and": "and", "or": "or", "xor": "xor", "max": "max", "min": "min",
        "umax": "umax", "umin": "umin", "exch": "xchg", "uinc": "uinc_wrap"}  # fmt: skip
_FAIL_ORDER = {"acq_rel": "acquire", "release": "monotonic"}
_ORDER = {"relaxed": "monotonic", "acquire": "acquire", "release": "release", "acq_rel": "acq_rel"}


def under_mask(code: Code, test: str, act: Callable[[], None]) -> None:
    """Run `act` where the scalar condition holds. What it computes must not be reused outside."""
    if test == "true":
        act()
        return
    yes, end = code.label("at"), code.label("ax")
    code.line(f"  br i1 {test}, label %{yes}, label %{end}")
    code.place(yes)
    act()
    code.line(f"  br label %{end}")
    code.place(end)


def _each_lane(
    low: Lowering, op: Op, pointer: Tensor, others: list[Tensor], mask: Tensor | None, act
) -> None:
    """Run `act(pointer, values) -> old` for every element in order, under the mask; results go to a buffer."""
    ev, code, result = low.ev, low.code, op.results[0]
    elem, shape = result.type.elem, pointer.shape
    scalar = not result.type.is_tensor
    out = new_buffer(code, elem, shape or (1,))

    def element(place: Place) -> None:
        where = ev.at(pointer, place) if pointer.linear(ev, ev.mode.forms).pointer is None else ev.address(
            pointer, elem, place)[1]  # fmt: skip
        values = [ev.at(t, place) for t in others]
        test = ev.at(mask, place) if mask is not None else "true"
        target = Place(place.coords or (0,))
        under_mask(code, test, lambda: ev.store_buffer(out, target, act(where, values)))

    roots = [identity(t) for t in (pointer, *others)] + ([identity(mask)] if mask is not None else [])
    keep_overlapping(low, roots, [pointer])
    versions(ev, roots, lambda: over_tile(ev, shape, None, element))
    if scalar:
        low.set_scalar(op.results[0], ev.load_buffer(out, Place((0,))))
    else:
        low.set_tensor(op.results[0], stored(out))


@handles("tt.atomic_rmw")
def atomic_rmw(low: Lowering, op: Op) -> None:
    words = op.text.replace(",", " ").split()
    kind, order = words[0], _ORDER.get(words[1], "acq_rel")
    pointer, value, *masks = (low.tensor(v) for v in op.operands)
    mask = masks[0] if masks else None
    elem = op.operands[1].type.elem
    type, align = lt.scalar(elem), lt.size_bytes(elem)
    if kind not in _RMW:
        raise UnsupportedOperation(
            op.name, op.location or None, f"atomic {kind} on {elem} is not lowered yet"
        )

    def act(where: str, values: list[str]) -> str:
        if elem == "bf16" and kind == "fadd":
            return _add_bfloat16(low, where, values[0], order)
        return low.code.let(f"atomicrmw {_RMW[kind]} ptr {where}, {type} {values[0]} {order}, align {align}")

    _each_lane(low, op, pointer, [value], mask, act)


def _add_bfloat16(low: Lowering, where: str, value: str, order: str) -> str:
    """Compare and exchange until nothing came between."""
    code, ev = low.code, low.ev
    fail = _FAIL_ORDER.get(order, order)
    again, end, slot = code.label("again"), code.label("added"), code.alloca("i16", 1, 2)
    start = code.let(f"load atomic i16, ptr {where} monotonic, align 2")
    code.line(f"  store i16 {start}, ptr {slot}")
    wide = convert(ev, value, "bf16", "f32", None)
    code.line(f"  br label %{again}")
    code.place(again)
    old = code.let(f"load i16, ptr {slot}")
    total = code.let(f"fadd float {convert(ev, old, 'bf16', 'f32', None)}, {wide}")
    new = convert(ev, total, "f32", "bf16", None)
    pair = code.let(f"cmpxchg ptr {where}, i16 {old}, i16 {new} {order} {fail}, align 2")
    seen, done = (code.let(f"extractvalue {{i16, i1}} {pair}, {k}") for k in (0, 1))
    code.line(f"  store i16 {seen}, ptr {slot}")
    code.line(f"  br i1 {done}, label %{end}, label %{again}")
    code.place(end)
    return old


@handles("tt.atomic_cas")
def atomic_cas(low: Lowering, op: Op) -> None:
    order = _ORDER.get(op.text.replace(",", " ").split()[0], "acq_rel")
    fail = _FAIL_ORDER.get(order, order)
    pointer, expected, value = (low.tensor(v) for v in op.operands)
    elem = op.operands[1].type.elem
    bits = f"i{8 * lt.size_bytes(elem)}"

    def act(where: str, values: list[str]) -> str:
        code = low.code
        if lt.is_float(elem) and elem != "bf16":
            values = [code.let(f"bitcast {lt.scalar(elem)} {v} to {bits}") for v in values]
        align = lt.size_bytes(elem)
        pair = code.let(
            f"cmpxchg ptr {where}, {bits} {values[0]}, {bits} {values[1]} {order} {fail}, align {align}"
        )
        old = code.let(f"extractvalue {{{bits}, i1}} {pair}, 0")
        return (
            code.let(f"bitcast {bits} {old} to {lt.scalar(elem)}")
            if lt.is_float(elem) and elem != "bf16"
            else old
        )

    _each_lane(low, op, pointer, [expected, value], None, act)


def _argument_behind(pointer: Value) -> Value:
    """The scalar pointer that a tensor of pointers was computed from."""
    while pointer.op is not None and pointer.op.name in _LAZY and pointer.op.operands:
        pointer = pointer.op.operands[0]
    return pointer


def store_group(ops: list[Op], first: int, arguments: frozenset[Value]) -> tuple[list[Op], list[Op], int]:
    """Stores of one shape that may share a nest with the one at `first`: (stores, what stands between, last index).

    Only index functions may stand between them: a load could read what an earlier store wrote. They go through
    different arguments of the kernel: of two stores to one place the later must win.
    """
    shape = ops[first].operands[1].type.shape
    written = {_argument_behind(ops[first].operands[0])}
    stores, last = [ops[first]], first
    between: list[Op] = []
    pending: list[Op] = []
    for k in range(first + 1, len(ops)):
        op = ops[k]
        if op.name == "tt.store" and op.operands[1].type.shape == shape:
            target = _argument_behind(op.operands[0])
            if target in written or not arguments.issuperset({target, *written}):
                break
            written.add(target)
            stores.append(op)
            between += pending
            pending, last = [], k
            if len(stores) == _GROUP:
                break
        elif op.name in _LAZY or (
            op.name not in HANDLERS and not has_effects(op) and emitter(op) is not None
        ):
            pending.append(op)
        else:
            break
    return stores, between, last
