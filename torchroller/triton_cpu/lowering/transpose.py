"""Square transposes in registers, and tiles that are turned before a nest walks across them."""

from __future__ import annotations

from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.lowering.code import Code, Operand
from torchroller.triton_cpu.lowering.evaluate import Evaluator
from torchroller.triton_cpu.lowering.nests import Roots, new_buffer, stride_along
from torchroller.triton_cpu.lowering.values import Buffer, Load, Place, Tensor


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


def turn_tiles(ev: Evaluator, roots: Roots, vdim: int | None) -> list[tuple[Tensor, Buffer | None]]:
    """Give loads and buffers that are contiguous across the nest's vector dimension a copy that lies along it.

    A gather fetches one element at a time; blocks of lanes x lanes are read as vectors and turned by shuffles
    instead. Returns what `turn_back` needs after the nest has been written.
    """
    turned: list[tuple[Tensor, Buffer | None]] = []
    for t, dims in list(ev.walk(roots)):
        if vdim not in dims or len(t.shape) != 2 or t.elem not in ("f32", "i32") or t in ev.write_through:
            continue
        along = dims.index(vdim)
        if any(n % ev.lanes for n in t.shape) or not _lies_across(ev, t, along):
            continue
        buffer = new_buffer(ev.code, t.elem, t.shape, order=(1 - along, along))
        _fill_turned(ev, t, along, buffer)
        turned.append((t, t.buffer))
        t.buffer = buffer
    return turned


def turn_back(turned: list[tuple[Tensor, Buffer | None]]) -> None:
    """The tensors read from where they did before `turn_tiles`."""
    for t, buffer in turned:
        t.buffer = buffer


def _lies_across(ev: Evaluator, t: Tensor, along: int) -> bool:
    if t.buffer is not None:
        strides: list[Operand | None] = list(t.buffer.strides)
    elif isinstance(t, Load) and not t.volatile:
        strides = [stride_along(ev, t.pointer, d) for d in (0, 1)]
    else:
        return False
    return strides[1 - along] == 1 and strides[along] not in (0, 1)


def _fill_turned(ev: Evaluator, t: Tensor, along: int, buffer: Buffer) -> None:
    code, lanes, across = ev.code, ev.lanes, 1 - along

    def place(position: Operand, contiguous: Operand, vdim: int) -> Place:
        coords = (position, contiguous) if along == 0 else (contiguous, position)
        return Place(coords, vdim, lanes)

    def block(position: Operand) -> None:
        def inner(contiguous: Operand) -> None:
            rows = [ev.at(t, place(code.add(position, j), contiguous, across)) for j in range(lanes)]
            for i, vector in enumerate(transpose_block(code, rows, lanes, lt.scalar(t.elem))):
                ev.store_buffer(buffer, place(position, code.add(contiguous, i), along), vector)

        code.loop(t.shape[across], inner, step=lanes)

    code.loop(t.shape[along], block, step=lanes)
