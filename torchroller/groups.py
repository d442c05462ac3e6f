"""Groups of values that will share a kernel, and where stored values live."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .graph import Node
from .lower import ExternCall
from .views import Index, reshaped_strides, substitute


@dataclass(eq=False)
class Group:
    """One future kernel. `index[node]` is where in the iteration space a member lives."""

    number: int
    kind: str
    extents: dict[str, int]
    reduced: tuple[str, ...] = ()
    index: dict[Node, Index] = field(default_factory=dict)
    operands: dict[Node, tuple[Index, ...]] = field(default_factory=dict)  # of reduce and dot members
    root: tuple[tuple[int, ...], tuple[int, ...], Index] | None = (
        None  # shape, dims, index of a reduction's operand
    )
    depends: set[Any] = field(default_factory=set)  # groups and extern calls that must run before
    tensors: set[Node] = field(default_factory=set)

    def cut(self, name: str, inner: int) -> None:
        """Splits an axis into an outer and an inner one."""
        hi, lo = f"{name}h", f"{name}l"
        items = []
        for key, extent in self.extents.items():
            items += [(hi, extent // inner), (lo, inner)] if key == name else [(key, extent)]
        self.extents = dict(items)
        if name in self.reduced:
            self.reduced = tuple(x for r in self.reduced for x in ((hi, lo) if r == name else (r,)))
        swap: Callable[[Index], Index] = lambda ix: substitute(ix, name, hi, lo, inner)  # noqa: E731
        self.index = {n: swap(ix) for n, ix in self.index.items()}
        self.operands = {n: tuple(swap(ix) for ix in many) for n, many in self.operands.items()}
        if self.root is not None:
            self.root = (*self.root[:2], swap(self.root[2]))


@dataclass(frozen=True, eq=False)
class Storage:
    """Where a stored value lives: strides and offset in elements within buffer `buffer`."""

    buffer: str
    strides: tuple[int, ...]
    offset: int = 0


@dataclass(frozen=True, eq=False)
class Fused:
    """The cut graph: steps in execution order, storage of every stored node."""

    steps: tuple[Group | ExternCall, ...]
    storage: dict[Node, Storage]
    buffers: dict[str, tuple[int, str]]  # buffer -> elements, dtype, of what kernels and extern calls write
    writers: dict[Node, Group]
    outputs: tuple[Node | Any, ...]

    def __str__(self) -> str:
        lines = []
        for step in self.steps:
            if isinstance(step, Group):
                axes = " ".join(f"{k}:{n}{'r' if k in step.reduced else ''}" for k, n in step.extents.items())
                members = " ".join(n.fn or n.kind for n in sorted(step.index, key=lambda n: n.serial))
                stored = ", ".join(self.storage[n].buffer for n in step.index if n in self.storage)
                lines.append(f"kernel {step.number} ({step.kind})  axes {axes}")
                lines.append(f"  computes {members}\n  stores {stored}")
            else:
                lines.append(f"extern {step}")
        return "\n".join(lines)


def strided_view(
    value: Node, strides: tuple[int, ...], offset: int, backwards: bool = False
) -> tuple[tuple[int, ...], int] | None:
    """(strides, offset) of a chain of views over a base stored with `strides`; None where none exist.

    backwards: strides may be negative, which a kernel can read by and a tensor cannot have
    """
    chain = []
    while value.kind == "view":
        chain.append(value)
        value = value.args[0]
    for view in reversed(chain):
        kind, old = view.view[0], view.args[0].shape
        if kind == "permute":
            strides = tuple(strides[d] for d in view.view[1])
        elif kind == "expand":
            strides = tuple(0 if s == 1 and t != 1 else st for s, t, st in zip(old, view.shape, strides))
        elif kind == "pad":
            return None
        elif kind == "slice":
            _, dim, start, step = view.view
            if step < 0 and not backwards:
                return None
            offset += start * strides[dim]
            strides = tuple(st * step if d == dim else st for d, st in enumerate(strides))
        else:
            found = reshaped_strides(old, strides, view.shape)
            if found is None:
                return None
            strides = found
    return tuple(strides), offset


def padding_below(value: Node) -> Node | None:
    """The pad view in a chain of views; there is at most one (`Builder.pad` sees to it)."""
    while value.kind == "view":
        if value.view[0] == "pad":
            return value
        value = value.args[0]
    return None


def channels_last(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides with dimension 1 innermost and the others in order."""
    order = [0, *range(2, len(shape)), 1]
    strides, step = [0] * len(shape), 1
    for d in reversed(order):
        strides[d] = step
        step *= max(shape[d], 1)
    return tuple(strides)


def walked_strides(value: Node, base_strides: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides in which a chain of views walks a base stored with `base_strides`, borders and starts aside."""
    chain = []
    while value.kind == "view":
        chain.append(value)
        value = value.args[0]
    strides: tuple[int, ...] | None = base_strides
    for view in reversed(chain):
        kind, old = view.view[0], view.args[0].shape
        assert strides is not None
        if kind == "permute":
            strides = tuple(strides[d] for d in view.view[1])
        elif kind == "expand":
            strides = tuple(0 if s == 1 and t != 1 else st for s, t, st in zip(old, view.shape, strides))
        elif kind == "slice":
            strides = tuple(st * view.view[3] if d == view.view[1] else st for d, st in enumerate(strides))
        elif kind == "reshape":
            strides = reshaped_strides(old, strides, view.shape)
            if strides is None:
                return None
    return strides


def is_channels_last(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Is dimension 1 innermost in memory, and the others in order?"""
    if len(shape) < 3 or shape[1] == 1 or math.prod(shape[2:]) == 1 or strides[1] != 1:
        return False
    walked = [st for d, (s, st) in enumerate(zip(shape, strides)) if d != 1 and s > 1]
    return walked == sorted(walked, reverse=True) and all(st >= shape[1] for st in walked)


def same_layout(shape: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(x == y for s, x, y in zip(shape, a, b) if s > 1)


def apart(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Does every element have a place of its own, with or without gaps between?"""
    reach = 0
    for st, size in sorted((st, s) for s, st in zip(shape, strides) if s > 1):
        if st <= reach:
            return False
        reach += st * (size - 1)
    return True


def dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Do these strides fill a block of memory exactly once?"""
    step = 1
    for st, size in sorted((st, s) for s, st in zip(shape, strides) if s > 1):
        if st != step:
            return False
        step *= size
    return True
