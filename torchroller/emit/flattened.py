"""Kernel bodies whose rows and columns are several axes each, walked as one: addresses from a row-major number."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..expr import Access, Axis
from .common import Body


@dataclass
class Flattened(Body):
    """A body whose rows and columns are several axes walked as one.

    flattened: (text of the row-major number, the axes that it counts); spelled: names of positions that the kernel
    has computed, by number and axes
    """

    flattened: tuple[tuple[str, tuple[Axis, ...]], ...] = ()
    spelled: dict[tuple[str, tuple[str, ...]], str] = field(default_factory=dict)

    def offset(self, access: Access) -> str:
        parts = [
            _scaled(self.digit(count, order, names), step)
            for count, order in self.flattened
            for names, step in runs(access, order)
        ]
        flat = {a.name for _, order in self.flattened for a in order}
        for ix, stride in zip(access.index, access.strides):
            if ix.indirect is not None:
                parts.append(_scaled(self.have[ix.indirect], stride))
            parts += [_scaled(self.position[a], c * stride) for a, c in ix.terms if a not in flat]
        start = access.offset + sum(ix.offset * stride for ix, stride in zip(access.index, access.strides))
        if start or not parts:
            parts.append(str(start))
        return " + ".join(parts)

    def digit(self, count: str, order: tuple[Axis, ...], names: tuple[str, ...]) -> str:
        """The position along neighbouring axes of `order`, of which `count` is the row-major number."""
        known = self.spelled.get((count, names))
        if known is not None:
            return known
        at = [a.name for a in order].index(names[-1])
        inner = math.prod(a.extent for a in order[at + 1 :])
        text = count if inner == 1 else f"({count} // {inner})"
        if names[0] != order[0].name:
            text = f"({text} % {math.prod(a.extent for a in order if a.name in names)})"
        return text


def runs(access: Access, order: tuple[Axis, ...]) -> list[tuple[tuple[str, ...], int]]:
    """Neighbouring axes that the access walks as one: (names, step of the last), without axes that do not move it."""
    out: list[tuple[tuple[str, ...], int]] = []
    after: Axis | None = None
    for a in reversed(order):
        step = access.stride_of(a.name)
        if (
            out
            and after is not None
            and out[0][0][0] == after.name
            and step == access.stride_of(after.name) * after.extent
        ):
            out[0] = ((a.name, *out[0][0]), out[0][1])
        elif step:
            out.insert(0, ((a.name,), step))
        after = a
    return out


def _scaled(text: str, factor: int) -> str:
    return text if factor == 1 else f"{text} * {factor}"
