"""Program ids, constants and the operations that only rearrange indices."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from torchroller.triton_cpu.errors import UnsupportedOperation
from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.lowering.function import Lowering, handles
from torchroller.triton_cpu.lowering.lookup import constant_tile
from torchroller.triton_cpu.lowering.nests import (
    identity,
    new_buffer,
    over_tile,
    reinterpreted,
    stored,
    vector_dim,
    versions,
)
from torchroller.triton_cpu.lowering.values import (
    Interleaved,
    Load,
    Merged,
    Place,
    Range,
    Remap,
    Splat,
    Tensor,
    row_major,
)
from torchroller.triton_cpu.ttir import Op

_AXES = {"x": "x", "y": "y", "z": "z", "0": "x", "1": "y", "2": "z"}


@handles("tt.get_program_id", "tt.get_num_programs")
def program_id(low: Lowering, op: Op) -> None:
    axis = _AXES[op.text.split()[0]]
    low.set_scalar(op.results[0], f"%pid_{axis}" if op.name == "tt.get_program_id" else f"%grid_{axis}")


@handles("arith.constant")
def constant(low: Lowering, op: Op) -> None:
    result = op.results[0]
    text = op.text.strip()
    elem = result.type.elem
    if m := re.match(r"dense<(.*)>$", text, re.S):
        text = m.group(1)
    if text.startswith(("[", '"')):
        low.set_tensor(result, constant_tile(low, op, text))
        return
    text = text.split(" : ")[0]
    number = None
    if lt.is_float(elem) or lt.is_float8(elem):
        text = lt.float_literal(text, elem)
    elif elem == "i1":
        text = {"1": "true", "-1": "true", "0": "false"}.get(text, text)
    elif elem == "ptr":
        text = "null"
    else:
        number = int(text)
    if result.type.is_tensor:
        low.set_tensor(result, Splat(result.type.dims, elem, value=text, position=number))
    else:
        low.set_scalar(result, text, number)


@handles("tt.make_range")
def make_range(low: Lowering, op: Op) -> None:
    result = op.results[0]
    low.set_tensor(result, Range(result.type.dims, result.type.elem, start=op.int_attr("start")))


@handles("tt.splat", "tt.unsplat")
def splat(low: Lowering, op: Op) -> None:
    source, result = op.operands[0], op.results[0]
    if op.name == "tt.unsplat":
        low.set_scalar(result, low.ev.at(low.tensor(source), Place((0,) * len(source.type.dims))))
        return
    value = Splat(result.type.dims, result.type.elem, value=low.scalar(source), position=low.position(source))
    low.set_tensor(result, value)


@handles("tt.broadcast", "tt.expand_dims", "tt.trans")
def remap(low: Lowering, op: Op) -> None:
    result = op.results[0]
    source = low.tensor(op.operands[0])
    shape = result.type.dims
    if op.name == "tt.broadcast":
        dims = tuple(None if n == 1 and shape[d] > 1 else d for d, n in enumerate(source.shape))
    elif op.name == "tt.expand_dims":
        axis = op.int_attr("axis")
        dims = tuple(d if d < axis else d + 1 for d in range(len(source.shape)))
    else:
        order = [int(x) for x in re.findall(r"\d+", (op.attr("order") or "").partition(":")[2])]
        dims = tuple(order.index(d) for d in range(len(order)))
    if isinstance(source, Splat):
        low.set_tensor(result, Splat(shape, source.elem, value=source.value, position=source.position))
        return
    low.set_tensor(result, Remap(shape, source.elem, source=source, source_dims=dims))


@handles("tt.reshape")
def reshape(low: Lowering, op: Op) -> None:
    """Adding or dropping dimensions of extent 1 is a view; anything else goes through row-major memory."""
    result, source = op.results[0], low.tensor(op.operands[0])
    shape = result.type.dims
    if isinstance(source, Splat):
        low.set_tensor(result, Splat(shape, source.elem, value=source.value, position=source.position))
        return
    if [n for n in shape if n > 1] == [n for n in source.shape if n > 1]:
        wide = [d for d, n in enumerate(shape) if n > 1]
        it = iter(wide)
        dims = tuple(next(it) if n > 1 else None for n in source.shape)
        low.set_tensor(result, Remap(shape, source.elem, source=source, source_dims=dims))
        return
    if _joins_columns(low, source, shape):
        low.set_tensor(result, Merged(shape, source.elem, source=source))
        return
    if isinstance(source, Remap) and _joins_rows(low, source, shape):
        low.set_tensor(result, Interleaved(shape, source.elem, source=source.source))
        return
    buffer = low.keep(source)
    if buffer.strides != row_major(buffer.shape):
        source = stored(buffer)
        buffer = new_buffer(low.code, source.elem, source.shape)
        _copy(low, source, buffer)
    low.set_tensor(result, stored(reinterpreted(buffer, shape)))


def _joins_columns(low: Lowering, source: Tensor, shape: Sequence[int]) -> bool:
    """(k, p, w) loaded from memory as (k, p * w): a constant operand of a dot, packed in panels of w columns."""
    loaded = source.source if isinstance(source, Remap) else source
    if not isinstance(loaded, Load) or loaded.buffer is not None or source.buffer is not None:
        return False
    k, *rest = source.shape
    return len(rest) == 2 and tuple(shape) == (k, rest[0] * rest[1]) and rest[1] % low.ev.lanes == 0


def _joins_rows(low: Lowering, source: Remap, shape: Sequence[int]) -> bool:
    """(k, w, s) or (k, p, w, s) loaded from memory, with s moved behind k, as (k * s, p * w): s rows side by side."""
    loaded = source.source
    if not isinstance(loaded, Load) or loaded.buffer is not None or source.buffer is not None:
        return False
    if len(loaded.shape) not in (3, 4) or source.source_dims != (0, *range(2, len(loaded.shape)), 1):
        return False
    k, *panels, width, step = loaded.shape
    return tuple(shape) == (k * step, math.prod(panels) * width) and width % low.ev.lanes == 0


def _copy(low: Lowering, source: object, buffer: object) -> None:
    roots = [identity(source)]  # type: ignore[arg-type]

    def write() -> None:
        vdim = vector_dim(low.ev, source.shape, roots)  # type: ignore[attr-defined]
        over_tile(low.ev, source.shape, vdim,  # type: ignore[attr-defined]
                  lambda p: low.ev.store_buffer(buffer, p, low.ev.at(source, p)))  # type: ignore[arg-type]  # fmt: skip

    versions(low.ev, roots, write)


@handles("tt.join", "tt.cat")
def join(low: Lowering, op: Op) -> None:
    """join: a new last dimension of two; cat: end to end along dimension 0. Both write one buffer."""
    from dataclasses import replace

    result = op.results[0]
    shape = result.type.dims
    parts = [low.tensor(v) for v in op.operands]
    buffer = new_buffer(low.code, result.type.elem, shape)
    size = lt.size_bytes(result.type.elem)
    for k, part in enumerate(parts):
        step = 1 if op.name == "tt.join" else part.shape[0] * buffer.strides[0]
        pointer = low.code.let(f"getelementptr i8, ptr {buffer.pointer}, i64 {k * step * size}")
        strides = buffer.strides[:-1] if op.name == "tt.join" else buffer.strides
        _copy(low, part, replace(buffer, pointer=pointer, shape=part.shape, strides=strides))
    low.set_tensor(result, stored(buffer))


@handles("tt.split")
def split(low: Lowering, op: Op) -> None:
    from dataclasses import replace

    source = low.tensor(op.operands[0])
    buffer = low.keep(source)
    size = lt.size_bytes(source.elem)
    for k, result in enumerate(op.results):
        offset = k * buffer.strides[-1] * size
        pointer = low.code.let(f"getelementptr i8, ptr {buffer.pointer}, i64 {offset}")
        half = replace(buffer, pointer=pointer, shape=buffer.shape[:-1], strides=buffer.strides[:-1])
        low.set_tensor(result, stored(half))


@handles("llvm.intr.assume", "gpu.barrier", "ttg.barrier", "tt.debug_barrier")
def nothing(low: Lowering, op: Op) -> None:
    """Hints, and barriers between threads of one program: a program has one thread here."""


@handles("tt.elementwise_inline_asm")
def inline_assembly(low: Lowering, op: Op) -> None:
    detail = f"inline assembly is written for one GPU: {op.text.split('{')[0].strip()}"
    raise UnsupportedOperation(op.name, op.location or None, detail)
