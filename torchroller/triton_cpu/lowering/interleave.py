"""Stores of two to four planes side by side: `x[i * C + c] = f(i, c)`, as an image becomes channels last.

Vectors run along the planes, where the values lie next to each other; shuffles bring C of them into the order of
memory, so that whole vectors are stored. Without this, each place takes a store of C elements with a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchroller.triton_cpu.lowering.code import Code
from torchroller.triton_cpu.lowering.evaluate import Evaluator, conjuncts
from torchroller.triton_cpu.lowering.nests import Roots, stride_along
from torchroller.triton_cpu.lowering.prefix import ended
from torchroller.triton_cpu.lowering.values import Load, Place, Tensor


@dataclass(frozen=True)
class Planes:
    """`count` neighbours along dimension `inner` make a whole with their neighbours along dimension `along`."""

    along: int
    inner: int
    count: int

    def at(self, place: Place, plane: int) -> Place:
        coords = tuple(plane if d == self.inner else c for d, c in enumerate(place.coords))
        return Place(coords, place.vdim, place.lanes)


def planes(ev: Evaluator, roots: Roots, pointer: Tensor, value: Tensor, mask: Tensor | None) -> Planes | None:
    """How a store interleaves, where it does and what it reads lies along the planes."""
    if value.elem not in ("f32", "i32") or pointer.buffer is not None:
        return None
    strides = [stride_along(ev, pointer, d) for d in range(len(pointer.shape))]
    inner = next((d for d, s in enumerate(strides) if s == 1 and pointer.shape[d] in (2, 4)), None)
    if inner is None:
        return None
    count = pointer.shape[inner] if mask is None else ended(ev, mask, pointer.shape[inner], inner)
    along = next((d for d, s in enumerate(strides) if s == count and pointer.shape[d] % ev.lanes == 0), None)
    if count is None or count < 2 or along is None or along == inner:
        return None
    if mask is not None and any({along, inner} <= set(part.varies) for part in conjuncts(mask)):
        return None
    for t, dims in ev.walk(roots):
        if isinstance(t, Load) and t.buffer is None and along in dims:
            if t.volatile or stride_along(ev, t.pointer, dims.index(along)) not in (0, 1):
                return None
        elif t.buffer is not None and along in dims and t.buffer.strides[dims.index(along)] not in (0, 1):
            return None
    return Planes(along, inner, count)


def interleave(code: Code, vectors: Sequence[str], lanes: int, type: str) -> list[str]:
    """Two to four vectors → as many, which hold element 0 of each, then element 1 of each, and so on."""
    count = len(vectors)
    wide = [_joined(code, vectors[n : n + 2], lanes, type) for n in range(0, count, 2)]
    if len(wide) == 1:
        wide.append("poison")
    pair, out = f"<{2 * lanes} x {type}>", []
    for n in range(count):
        places = [(i % count) * lanes + i // count for i in range(n * lanes, (n + 1) * lanes)]
        order = ", ".join(f"i32 {p}" for p in places)
        out.append(code.let(f"shufflevector {pair} {wide[0]}, {pair} {wide[1]}, <{lanes} x i32> <{order}>"))
    return out


def spread(code: Code, mask: str, lanes: int, count: int) -> list[str]:
    """The masks of the vectors that `interleave` gives, from that of what it takes."""
    out, vec = [], f"<{lanes} x i1>"
    for n in range(count):
        order = ", ".join(f"i32 {i // count}" for i in range(n * lanes, (n + 1) * lanes))
        out.append(code.let(f"shufflevector {vec} {mask}, {vec} poison, <{lanes} x i32> <{order}>"))
    return out


def _joined(code: Code, pair: Sequence[str], lanes: int, type: str) -> str:
    second = pair[1] if len(pair) > 1 else "poison"
    vec, order = f"<{lanes} x {type}>", ", ".join(f"i32 {i}" for i in range(2 * lanes))
    return code.let(f"shufflevector {vec} {pair[0]}, {vec} {second}, <{2 * lanes} x i32> <{order}>")
