"""tt.reduce and tt.scan: any combining region, on vectors.

Along the vector dimension a reduction keeps several accumulators, so that the latency of the combining operation is
hidden, and ends in a tree of shuffles. Along another dimension each lane reduces on its own.
"""

from __future__ import annotations

from torchroller.triton_cpu.errors import UnsupportedOperation
from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.lowering.code import Operand
from torchroller.triton_cpu.lowering.elementwise import emitter
from torchroller.triton_cpu.lowering.function import Lowering, handles
from torchroller.triton_cpu.lowering.nests import along, identity, new_buffer, stored, vector_dim, versions
from torchroller.triton_cpu.lowering.prefix import Split, find_split
from torchroller.triton_cpu.lowering.values import Buffer, Place, Splat, Tensor
from torchroller.triton_cpu.ttir import Op, Value

_ACCUMULATORS = 4
# A tensor this costly that is needed again is kept while a reduction evaluates it.
_KEEP_WEIGHT = 10


def combine(low: Lowering, op: Op, left: list[str], right: list[str], lanes: int | None) -> list[str]:
    """Apply the combining region to two sets of values."""
    block = op.regions[0].blocks[0]
    values: dict[Value, str] = dict(zip(block.args, [*left, *right]))

    def operand(v: Value) -> str:
        if v in values:
            return values[v]
        return lt.splat(low.code, low.scalar(v), v.type.elem, lanes)

    for inner in block.ops:
        if inner.name in ("tt.reduce.return", "tt.scan.return"):
            return [operand(v) for v in inner.operands]
        if inner.name == "arith.constant":
            text = inner.text.split(" : ")[0]
            elem = inner.results[0].type.elem
            literal = lt.float_literal(text, elem) if lt.is_float(elem) else {"1": "true", "0": "false"}.get(
                text, text) if elem == "i1" else text  # fmt: skip
            values[inner.results[0]] = lt.constant(literal, elem, lanes)
            continue
        emit = emitter(inner)
        if emit is None:
            raise UnsupportedOperation(
                inner.name, inner.location or op.location, f"inside the region of {op.name}"
            )
        values[inner.results[0]] = emit(low.ev, [operand(v) for v in inner.operands], lanes)
    raise UnsupportedOperation(op.name, op.location, "its combining region returns nothing")


def keep_on_the_way(low: Lowering, operands: list[Tensor]) -> dict[Tensor, Buffer]:
    """Costly tensors below the operands that later operations need: this nest evaluates them anyway."""
    wanted = {t for v, t in low.tensors.items() if low.used_later(v) and t.buffer is None}
    found: dict[Tensor, Buffer] = {}
    stack = list(operands)
    while stack:
        t = stack.pop()
        full = frozenset(d for d, n in enumerate(t.shape) if n > 1)
        if t in wanted and t.weight >= _KEEP_WEIGHT and t.varies == full and not isinstance(t, Splat):
            if t not in found:
                found[t] = new_buffer(low.code, t.elem, t.shape)
            continue
        if t.buffer is None:
            stack += [d for d, dims in t.deps() if dims == t.same_dims()]
    return found


@handles("tt.reduce")
def reduce(low: Lowering, op: Op) -> None:
    ev, code = low.ev, low.code
    axis = op.int_attr("axis")
    operands = [low.tensor(v) for v in op.operands]
    shape = operands[0].shape
    rest = [d for d in range(len(shape)) if d != axis]
    out_shape = tuple(shape[d] for d in rest)
    outputs = [new_buffer(code, v.type.elem, out_shape or (1,)) for v in op.results]
    kept = keep_on_the_way(low, operands)
    roots = [identity(t) for t in operands]

    def write() -> None:
        vdim = vector_dim(ev, shape, roots)
        ev.write_through.update(kept)
        split = find_split(ev, roots, shape, vdim, ev.lanes)
        if vdim == axis:
            _along_vector(low, op, operands, axis, rest, outputs, split, bool(kept))
        else:
            _across_vector(low, op, operands, axis, rest, vdim, outputs, split)
        for t in kept:
            del ev.write_through[t]

    versions(ev, roots, write)
    for t, buffer in kept.items():
        t.buffer = buffer
        if low.borrowed:
            low.borrowed[-1].append(t)
    for v, buffer in zip(op.results, outputs):
        if v.type.is_tensor:
            low.set_tensor(v, stored(buffer))
        else:
            low.set_scalar(v, ev.load_buffer(buffer, Place((0,))))


def _outer_loops(low: Lowering, shape: tuple[int, ...], dims: list[int], coords: list[Operand], body) -> None:
    if not dims:
        body()
        return

    def inner(index: Operand) -> None:
        coords[dims[0]] = index
        _outer_loops(low, shape, dims[1:], coords, body)

    low.code.loop(shape[dims[0]], inner)


def _accumulate(low: Lowering, op: Op, slots: list[list[str]], lanes: int | None, values: list[list[str]],
                first: bool) -> None:  # fmt: skip
    """slots[u][k] (op)= values[u][k]; the first values just fill the slots."""
    code = low.code
    elems = [v.type.elem for v in op.operands]
    types = [lt.typed(e, lanes) for e in elems]
    for group, new in zip(slots, values):
        if not first:
            old = [code.let(f"load {t}, ptr {s}") for t, s in zip(types, group)]
            new = combine(low, op, old, new, lanes)
        for type, slot, value in zip(types, group, new):
            code.line(f"  store {type} {value}, ptr {slot}")


def _slots(low: Lowering, op: Op, count: int, lanes: int | None) -> list[list[str]]:
    return [[low.code.alloca(lt.typed(v.type.elem, lanes)) for v in op.operands] for _ in range(count)]


_NEUTRAL = {
    "arith.addf": "0", "arith.addi": "0", "arith.ori": "0", "arith.xori": "0", "arith.maxui": "0",
    "arith.mulf": "1", "arith.muli": "1", "arith.andi": "-1", "arith.maxnumf": "-inf", "arith.maximumf": "-inf",
    "arith.minnumf": "inf", "arith.minimumf": "inf",
}  # fmt: skip


def _neutral(op: Op, lanes: int) -> str | None:
    """The vector that combining leaves a total as it is; None where the region is not one known operation."""
    ops = op.regions[0].blocks[0].ops
    if len(ops) != 2 or len(op.operands) != 1 or ops[0].name not in _NEUTRAL:
        return None
    elem, text = op.operands[0].type.elem, _NEUTRAL[ops[0].name]
    if text.endswith("inf") and elem not in ("f32", "f64"):
        return None
    if text.endswith("inf"):
        text = {"f32": "0x7F800000", "f64": "0x7FF0000000000000"}[elem] if text == "inf" else {
            "f32": "0xFF800000", "f64": "0xFFF0000000000000"}[elem]  # fmt: skip
    return lt.constant(lt.float_literal(text, elem) if lt.is_float(elem) else text, elem, lanes)


def _along_vector(low: Lowering, op: Op, operands: list[Tensor], axis: int, rest: list[int],
                  outputs: list[Buffer], split: Split | None, keeps: bool) -> None:  # fmt: skip
    ev, code, shape = low.ev, low.code, operands[0].shape
    lanes = min(ev.lanes, shape[axis])
    chunks = (split.whole if split and isinstance(split.whole, int) else shape[axis]) // lanes
    count = min(_ACCUMULATORS, 1 << chunks.bit_length() - 1)
    step = count * lanes
    slots = _slots(low, op, count, lanes)
    elems = [v.type.elem for v in op.operands]
    coords: list[Operand] = [0] * len(shape)

    def at(index: Operand) -> list[str]:
        where = Place(tuple(index if d == axis else c for d, c in enumerate(coords)), axis, lanes)
        return [ev.at(t, where) for t in operands]

    def group(index: Operand, first: bool = False) -> None:
        values = [at(code.add(index, u * lanes)) for u in range(count)]
        _accumulate(low, op, slots, lanes, values, first)

    def single(index: Operand) -> None:
        into = index // lanes % count if isinstance(index, int) else 0
        _accumulate(low, op, slots[into : into + 1], lanes, [at(index)], False)

    def known_parts(split: Split, whole: int, end: int) -> None:
        groups = whole // step * step
        with ev.during(split.inside(ev.mode)):
            group(0, True)
            if groups > step:
                code.dynamic_loop(step, groups, step, "i64", group, at_least_once=True)
            along(ev, groups, whole, lanes, single)
        along(ev, whole, end, lanes, single)
        behind(split, end)

    def found_parts(split: Split) -> None:
        """The first group is masked: it stands whatever the length."""
        group(0, True)
        groups = code.let(f"and i64 {split.whole}, {-step}")
        with ev.during(split.inside(ev.mode)):
            code.dynamic_loop(step, groups, step, "i64", group)
        rest_from = code.let(f"call i64 @llvm.smax.i64(i64 {groups}, i64 {step})")
        code.dynamic_loop(rest_from, split.end, lanes, "i64", single)
        behind(split, code.let(f"call i64 @llvm.smax.i64(i64 {split.end}, i64 {step})"))

    def behind(split: Split, start: Operand) -> None:
        """Behind the end of the masks: nothing, where all that is left is the neutral element."""
        if start == shape[axis]:
            return
        with ev.during(split.outside(ev.mode)):
            if not keeps and ev.level(operands[0], axis) and at(split.end)[0] == _neutral(op, lanes):
                return
            along(ev, start, shape[axis], lanes, single)

    def row() -> None:
        if split is None:
            group(0, True)
            if shape[axis] > step:
                code.dynamic_loop(step, shape[axis], step, "i64", group, at_least_once=True)
        elif isinstance(split.whole, int) and isinstance(split.end, int):
            known_parts(split, split.whole, split.end)
        else:
            found_parts(split)
        partial = [[code.let(f"load {lt.typed(e, lanes)}, ptr {s}") for e, s in zip(elems, g)] for g in slots]
        while len(partial) > 1:
            half = len(partial) // 2
            partial = [combine(low, op, partial[i], partial[i + half], lanes) for i in range(half)]
        final = _fold_lanes(low, op, partial[0], elems, lanes)
        place = Place(tuple(coords[d] for d in rest) or (0,))
        for buffer, value in zip(outputs, final):
            ev.store_buffer(buffer, place, value)

    _outer_loops(low, shape, rest, coords, row)


def _fold_lanes(low: Lowering, op: Op, values: list[str], elems: list[str], lanes: int) -> list[str]:
    """Combine the lanes of vectors down to scalars, halving each time."""
    code = low.code
    while lanes > 1:
        half = lanes // 2
        parts = []
        for start in (0, half):
            mask = ", ".join(f"i32 {start + k}" for k in range(half))
            parts.append([
                code.let(f"shufflevector <{lanes} x {lt.scalar(e)}> {v}, <{lanes} x {lt.scalar(e)}> poison, "
                         f"<{half} x i32> <{mask}>")
                for e, v in zip(elems, values)
            ])  # fmt: skip
        values = combine(low, op, parts[0], parts[1], half)
        lanes = half
    return [code.let(f"extractelement <1 x {lt.scalar(e)}> {v}, i64 0") for e, v in zip(elems, values)]


def _across_vector(low: Lowering, op: Op, operands: list[Tensor], axis: int, rest: list[int], vdim: int | None,
                   outputs: list[Buffer], split: Split | None) -> None:  # fmt: skip
    ev, code, shape = low.ev, low.code, operands[0].shape
    lanes = None if vdim is None else min(ev.lanes, shape[vdim])
    chunks = 1 if vdim is None else shape[vdim] // (lanes or 1)
    most = min(_ACCUMULATORS, chunks)
    slots = _slots(low, op, most, lanes)
    coords: list[Operand] = [0] * len(shape)

    def columns(start: Operand, count: int) -> None:
        def places(at: Operand) -> list[Place]:
            result = []
            for u in range(count):
                full = list(coords)
                full[axis] = at
                if vdim is not None:
                    full[vdim] = code.add(start, u * (lanes or 1))
                result.append(Place(tuple(full), vdim, lanes or 1))
            return result

        def step(at: Operand, first: bool) -> None:
            values = [[ev.at(t, p) for t in operands] for p in places(at)]
            _accumulate(low, op, slots[:count], lanes, values, first)

        step(0, True)
        if shape[axis] > 1:
            code.dynamic_loop(1, shape[axis], 1, "i64", lambda i: step(i, False), at_least_once=True)
        for group, place in zip(slots[:count], places(0)):
            inner_dim = rest.index(vdim) if vdim is not None else None
            target = Place(tuple(place.coords[d] for d in rest) or (0,), inner_dim, place.lanes)
            for v, slot, buffer in zip(op.operands, group, outputs):
                ev.store_buffer(buffer, target, code.let(f"load {lt.typed(v.type.elem, lanes)}, ptr {slot}"))

    def pieces() -> None:
        if vdim is None or lanes is None:
            columns(0, most)
            return
        if split is None:
            code.loop(shape[vdim], lambda i: columns(i, most), step=most * lanes)
            return
        groups: Operand = 0
        with ev.during(split.inside(ev.mode)):
            if isinstance(split.whole, int):
                groups = split.whole // (most * lanes) * (most * lanes)
            else:
                groups = code.let(f"and i64 {split.whole}, {-most * lanes}")
            along(ev, 0, groups, most * lanes, lambda i: columns(i, most))
            if isinstance(groups, int):
                along(ev, groups, split.whole, lanes, lambda i: columns(i, 1))
                groups = split.whole
        along(ev, groups, split.end, lanes, lambda i: columns(i, 1))
        with ev.during(split.outside(ev.mode)):
            along(ev, split.end, shape[vdim], lanes, lambda i: columns(i, 1))

    _outer_loops(low, shape, [d for d in rest if d != vdim], coords, pieces)


@handles("tt.scan")
def scan(low: Lowering, op: Op) -> None:
    """Inclusive scan: a running value per line, lanes across another dimension where there is one."""
    ev, code = low.ev, low.code
    axis, reverse = op.int_attr("axis"), op.attr("reverse") == "true"
    operands = [low.tensor(v) for v in op.operands]
    shape = operands[0].shape
    outputs = [new_buffer(code, v.type.elem, shape) for v in op.results]
    roots = [identity(t) for t in operands]
    others = [d for d in range(len(shape)) if d != axis]
    candidates = [d for d in others if shape[d] > 1]
    vdim = candidates[-1] if candidates else None
    lanes = None if vdim is None else min(ev.lanes, shape[vdim])

    def write() -> None:
        slots = _slots(low, op, 1, lanes)
        coords: list[Operand] = [0] * len(shape)

        def line(start: Operand) -> None:
            def step(index: Operand, first: bool) -> None:
                full = list(coords)
                full[axis] = code.sub(shape[axis] - 1, index) if reverse else index
                if vdim is not None:
                    full[vdim] = start
                place = Place(tuple(full), vdim, lanes or 1)
                _accumulate(low, op, slots, lanes, [[ev.at(t, place) for t in operands]], first)
                for v, slot, buffer in zip(op.operands, slots[0], outputs):
                    ev.store_buffer(
                        buffer, place, code.let(f"load {lt.typed(v.type.elem, lanes)}, ptr {slot}")
                    )

            step(0, True)
            if shape[axis] > 1:
                code.dynamic_loop(1, shape[axis], 1, "i64", lambda i: step(i, False), at_least_once=True)

        outer = [d for d in others if d != vdim]
        if vdim is None:
            _outer_loops(low, shape, outer, coords, lambda: line(0))
        else:
            _outer_loops(low, shape, outer, coords, lambda: code.loop(shape[vdim], line, step=lanes or 1))

    versions(ev, roots, write)
    for v, buffer in zip(op.results, outputs):
        low.set_tensor(v, stored(buffer))
