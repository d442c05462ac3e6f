"""tl.dot of three dimensions: one product for each index of the first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.lowering.code import Operand
from torchroller.triton_cpu.lowering.function import Lowering
from torchroller.triton_cpu.lowering.nests import materialise, stored
from torchroller.triton_cpu.lowering.values import Buffer, Tensor, row_major


def batches(
    low: Lowering, a: Tensor, b: Tensor, c: Buffer, multiply: Callable[[Tensor, Tensor, Buffer], None]
) -> None:
    """Call `multiply(a[i], b[i], c[i])` for every i; a [B, M, K], b [B, K, N] and c [B, M, N] lie in memory."""
    code = low.code
    with code.nest():
        memory = [t.buffer or materialise(low.ev, t) for t in (a, b)] + [c]

        def one(index: Operand) -> None:
            parts = [_slice(low, m, index) for m in memory]
            multiply(stored(parts[0]), stored(parts[1]), parts[2])

        def alone(index: Operand) -> None:
            with code.nest():
                one(index)

        code.loop(c.shape[0], alone)


def _slice(low: Lowering, memory: Buffer, index: Operand) -> Buffer:
    offset = low.code.mul(index, memory.strides[0])
    pointer = low.code.let(f"getelementptr {lt.storage(memory.elem)}, ptr {memory.pointer}, i64 {offset}")
    return replace(memory, pointer=pointer, shape=memory.shape[1:], strides=memory.strides[1:])


def is_row_major(memory: Buffer) -> bool:
    return memory.strides == row_major(memory.shape)
