"""Square transposes in registers, and nests that turn what lies across them block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.lowering.code import Code, Operand
from torchroller.triton_cpu.lowering.evaluate import Evaluator
from torchroller.triton_cpu.lowering.nests import Roots, stride_along
from torchroller.triton_cpu.lowering.values import Dims, Load, Place, Tensor


def transpose_block(code: Code, rows: list[str], lanes: int, type: str) -> list[str]:
    """`lanes` vectors of `lanes` elements → their transpose, by log2(lanes) rounds of two-input shuffles.

    Round s exchanges the off-diagonal s × s blocks of every 2s × 2s block.
    """
    vec = f"<{lanes} x {type}>"
    s = 1
    while s < lanes:
        low = ", ".join(f"i32 {lanes + (i ^ s) if i & s else i}" for i in range(lanes))
        high = ", ".join(f"i32 {lanes + i if i & s else i ^ s}" for i in range(lanes))
        for i in range(lanes):
            if i & s:
                continue
            a, b = rows[i], rows[i + s]
            rows[i] = code.let(f"shufflevector {vec} {a}, {vec} {b}, <{lanes} x i32> <{low}>")
            rows[i + s] = code.let(f"shufflevector {vec} {a}, {vec} {b}, <{lanes} x i32> <{high}>")
        s *= 2
    return rows


def across(ev: Evaluator, roots: Roots, rank: int, vdim: int | None) -> tuple[int, list[tuple[Tensor, Dims]]]:
    """Loads and buffers of a nest that are contiguous across its vector dimension: reading them there would gather.

    The dimension of the nest along which they are contiguous, the same for all of them, and each with the dimensions
    of the nest that its own ones are. The list is empty where there are none.
    """
    other = 0
    found: list[tuple[Tensor, Dims]] = []
    for t, dims in ev.walk(roots):
        if vdim not in dims or len(t.shape) != rank or t.elem not in ("f32", "i32") or t in ev.write_through:
            continue
        along = dims.index(vdim)
        contiguous = None if None in dims else _contiguous(ev, t, along)
        if contiguous is None or t.shape[along] % ev.lanes or t.shape[contiguous] % ev.lanes:
            continue
        at = dims[contiguous]
        assert at is not None
        if not found or at == other:
            other = at
            found.append((t, dims))
    return other, found


def over_blocks(
    ev: Evaluator,
    shape: Sequence[int],
    vdim: int,
    other: int,
    tensors: list[tuple[Tensor, Dims]],
    body: Callable[[Place], None],
) -> None:
    """Visit a tile in blocks of lanes x lanes of two of its dimensions, in which `tensors` are turned by shuffles.

    They are read as vectors along `other`, their own contiguous dimension; the nest finds their turned values
    remembered. All further dimensions are loops around the blocks.
    """
    code, lanes = ev.code, ev.lanes
    own = tuple(range(len(shape)))

    def block(
        place: Callable[[Dims, Operand, Operand, int], Place], position: Operand, start: Operand
    ) -> None:
        lines = [code.add(start, i) for i in range(lanes)]
        for t, dims in tensors:
            rows = [ev.at(t, place(dims, code.add(position, j), start, other)) for j in range(lanes)]
            turned = transpose_block(code, rows, lanes, lt.scalar(t.elem))
            for line, vector in zip(lines, turned):
                code.scopes[code.level].memo[(t, place(dims, position, line, vdim))] = vector
        for line in lines:
            body(place(own, position, line, vdim))

    _blocks(ev, shape, vdim, other, block)


def over_turned(
    ev: Evaluator,
    shape: Sequence[int],
    vdim: int,
    other: int,
    elems: Sequence[str],
    values: Callable[[Place], list[str]],
    write: Callable[[int, Place, str], None],
) -> None:
    """Visit a tile in blocks of lanes x lanes: `values` are vectors along `vdim`, `write` gets them along `other`.

    One of them after the other is computed, in a loop, and waits in memory until its block is complete.
    """
    code, lanes = ev.code, ev.lanes
    own = tuple(range(len(shape)))
    kept = [code.alloca(f"<{lanes} x {lt.scalar(e)}>", lanes, 64) for e in elems]

    def line(n: int, i: Operand) -> str:
        return code.let(f"getelementptr <{lanes} x {lt.scalar(elems[n])}>, ptr {kept[n]}, i64 {i}")

    def block(
        place: Callable[[Dims, Operand, Operand, int], Place], position: Operand, start: Operand
    ) -> None:
        def compute(i: Operand) -> None:
            for n, text in enumerate(values(place(own, position, code.add(start, i), vdim))):
                code.line(f"  store <{lanes} x {lt.scalar(elems[n])}> {text}, ptr {line(n, i)}")

        code.loop(lanes, compute)
        for n, elem in enumerate(elems):
            rows = [code.let(f"load <{lanes} x {lt.scalar(elem)}>, ptr {line(n, i)}") for i in range(lanes)]
            for j, text in enumerate(transpose_block(code, rows, lanes, lt.scalar(elem))):
                write(n, place(own, code.add(position, j), start, other), text)

    _blocks(ev, shape, vdim, other, block)


def _blocks(
    ev: Evaluator,
    shape: Sequence[int],
    vdim: int,
    other: int,
    block: Callable[[Callable[[Dims, Operand, Operand, int], Place], Operand, Operand], None],
) -> None:
    """Call `block(place, position along vdim, start along other)` for each block of lanes x lanes of a tile.

    `place(dims, position, line, vector)` is a place of a tensor whose dimensions are `dims` of the nest.
    """
    code, lanes = ev.code, ev.lanes
    coords: list[Operand] = [0] * len(shape)
    outer = [d for d in range(len(shape)) if d not in (vdim, other)]

    def place(dims: Dims, position: Operand, line: Operand, vector: int) -> Place:
        at = {**dict(enumerate(coords)), vdim: position, other: line}
        return Place(tuple(at[d] for d in dims if d is not None), dims.index(vector), lanes)

    def descend(k: int) -> None:
        if k == len(outer):
            code.loop(
                shape[vdim],
                lambda position: code.loop(shape[other], lambda at: block(place, position, at), step=lanes),
                step=lanes,
            )
            return

        def inner(index: Operand) -> None:
            coords[outer[k]] = index
            descend(k + 1)

        code.loop(shape[outer[k]], inner)

    descend(0)


def stored_across(
    ev: Evaluator, pointers: Sequence[Tensor], elems: Sequence[str], vdim: int | None
) -> int | None:
    """The dimension along which all stores of a nest are contiguous, where its vectors run along another one."""
    if vdim is None:
        return None
    found: set[int] = set()
    for pointer, elem in zip(pointers, elems):
        if elem not in ("f32", "i32") or stride_along(ev, pointer, vdim) == 1:
            return None
        at = [d for d, n in enumerate(pointer.shape) if n > 1 and stride_along(ev, pointer, d) == 1]
        if not at or pointer.shape[vdim] % ev.lanes or pointer.shape[at[0]] % ev.lanes:
            return None
        found.add(at[0])
    return found.pop() if len(found) == 1 else None


def _contiguous(ev: Evaluator, t: Tensor, along: int) -> int | None:
    """The dimension in which neighbours of `t` lie next to each other, where vectors run along another one."""
    if t.buffer is not None:
        strides: list[Operand | None] = list(t.buffer.strides)
    elif isinstance(t, Load) and not t.volatile:
        strides = [stride_along(ev, t.pointer, d) for d in range(len(t.shape))]
    else:
        return None
    if strides[along] in (0, 1):
        return None
    return next((d for d, stride in enumerate(strides) if stride == 1 and t.shape[d] > 1), None)
