"""Square transposes in registers, and nests that turn what lies across them block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.lowering.code import Code, Operand
from torchroller.triton_cpu.lowering.evaluate import Evaluator
from torchroller.triton_cpu.lowering.nests import Roots, stride_along
from torchroller.triton_cpu.lowering.values import Load, Place, Tensor


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


def across(ev: Evaluator, roots: Roots, vdim: int | None) -> list[tuple[Tensor, int]]:
    """Loads and buffers of a two-dimensional nest that are contiguous across its vector dimension.

    Each with the one of its own dimensions that runs along the nest's vectors. Reading them there would gather.
    """
    found: list[tuple[Tensor, int]] = []
    for t, dims in ev.walk(roots):
        if vdim not in dims or len(t.shape) != 2 or t.elem not in ("f32", "i32") or t in ev.write_through:
            continue
        along = dims.index(vdim)
        if not any(n % ev.lanes for n in t.shape) and None not in dims and _lies_across(ev, t, along):
            found.append((t, along))
    return found


def over_blocks(
    ev: Evaluator,
    shape: Sequence[int],
    vdim: int,
    tensors: list[tuple[Tensor, int]],
    body: Callable[[Place], None],
) -> None:
    """Visit a two-dimensional tile in blocks of lanes x lanes in which `tensors` are turned by shuffles.

    They are read as vectors along their own contiguous dimension; the nest finds their turned values remembered.
    """
    code, lanes, other = ev.code, ev.lanes, 1 - vdim

    def place(along: int, position: Operand, contiguous: Operand, vector: int) -> Place:
        coords = (position, contiguous) if along == 0 else (contiguous, position)
        return Place(coords, vector, lanes)

    def block(position: Operand) -> None:
        def inner(start: Operand) -> None:
            lines = [code.add(start, i) for i in range(lanes)]
            for t, along in tensors:
                rows = [ev.at(t, place(along, code.add(position, j), start, 1 - along)) for j in range(lanes)]
                turned = transpose_block(code, rows, lanes, lt.scalar(t.elem))
                for line, vector in zip(lines, turned):
                    code.scopes[code.level].memo[(t, place(along, position, line, along))] = vector
            for line in lines:
                body(place(vdim, position, line, vdim))

        code.loop(shape[other], inner, step=lanes)

    code.loop(shape[vdim], block, step=lanes)


def _lies_across(ev: Evaluator, t: Tensor, along: int) -> bool:
    if t.buffer is not None:
        strides: list[Operand | None] = list(t.buffer.strides)
    elif isinstance(t, Load) and not t.volatile:
        strides = [stride_along(ev, t.pointer, d) for d in (0, 1)]
    else:
        return False
    return strides[1 - along] == 1 and strides[along] not in (0, 1)
