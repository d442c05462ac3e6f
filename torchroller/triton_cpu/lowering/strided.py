"""Vectors of every second, third or fourth element: whole vectors of memory, brought together by shuffles.

A gather fetches one element at a time: 16 floats take 5.6 ns on Zen 4, two loads and a shuffle 0.9, of stride 4 1.5.
"""

from __future__ import annotations

from torchroller.triton_cpu.lowering import llvm_types as lt
from torchroller.triton_cpu.lowering.code import Code

STRIDES = range(2, 5)  # elements between neighbours up to which reading what lies between is cheaper


def load_strided(
    code: Code, elem: str, where: str, stride: int, lanes: int, mask: str | None, other: str | None
) -> str:
    """Elements 0, stride, 2 stride, ... from `where`. Nothing in front of the first or behind the last is touched, and
    nothing that `mask` (per lane of the result) forbids; there the result is `other`, or 0.
    """
    memory = lt.storage(elem)
    type, flags = f"<{lanes} x {memory}>", f"<{lanes} x i1>"
    value = ""
    for part in range(stride):
        start = part * lanes
        if mask is None and part == stride - 1:
            start = (lanes - 1) * (stride - 1)  # so that it ends with the last element
        loaded = _part(code, elem, where, start, stride, lanes, mask)
        if not part:
            value = loaded
            continue
        picks = []
        for lane in range(lanes):
            place = lane * stride
            if start <= place < start + lanes:
                picks.append(lanes + place - start)
            else:  # out of the first part as it was read, later where it has been brought to
                picks.append(place if part == 1 and place < lanes else lane)
        value = code.let(f"shufflevector {type} {value}, {type} {loaded}, {_order(picks)}")
    if mask is not None and other is not None:
        value = code.let(f"select {flags} {mask}, {type} {value}, {type} {other}")
    return value


def _part(code: Code, elem: str, where: str, start: int, stride: int, lanes: int, mask: str | None) -> str:
    """`lanes` consecutive elements of memory; under a mask, those that lanes of the result are."""
    memory, align = lt.storage(elem), lt.size_bytes(elem)
    type, flags = f"<{lanes} x {memory}>", f"<{lanes} x i1>"
    at = code.let(f"getelementptr {memory}, ptr {where}, i64 {start}") if start else where
    if mask is None:
        return code.let(f"load {type}, ptr {at}, align {align}")
    lane = [lanes if n % stride else n // stride for n in range(start, start + lanes)]
    wanted = code.let(f"shufflevector {flags} {mask}, {flags} zeroinitializer, {_order(lane)}")
    name = f"@llvm.masked.load.v{lanes}{lt.suffix(memory)}.p0"
    code.declare(name, f"declare {type} {name}(ptr, i32, {flags}, {type})")
    return code.let(f"call {type} {name}(ptr {at}, i32 {align}, {flags} {wanted}, {type} zeroinitializer)")


def _order(lanes: list[int]) -> str:
    return f"<{len(lanes)} x i32> <" + ", ".join(f"i32 {n}" for n in lanes) + ">"
