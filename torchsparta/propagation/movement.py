"""Operators that move elements without computing: views, permutations, slices, concatenation, padding.

Forward knowledge is moved by the operator itself; backward knowledge by an index map that the operator moves.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..capture import shape_of
from ..tesa import compact
from .facts import Call, Facts
from .rule import Needs, Rule, everything, unknown

if TYPE_CHECKING:
    from ..structure.emit import Emitter
    from ..structure.keep import CallAxes


class Movement(Rule):
    """Any operator whose every output element is one input element (or a fill value)."""

    def fill_value(self, call: Call) -> float:
        return 0.0

    def move(self, call: Call, tensors: list[Tensor], fill: float) -> Any:
        """Run the operator on `tensors`; elements that come from nowhere get `fill`."""
        return call.invoke(tensors)

    def forward(self, call: Call) -> Any:
        outs = call.out if isinstance(call.out, (tuple, list)) else (call.out,)
        if all(f.none_known for f in call.inputs) and self.fill_value(call) == 0.0 and not self.fills:
            result = tuple(Facts.unknown(v, call.confidence) for v in outs)
            return result if isinstance(call.out, (tuple, list)) else result[0]
        tensors = self._data(call, [f.full(f.known) for f in call.inputs])
        values = self._data(call, [f.full(f.value) for f in call.inputs])
        if tensors is None or values is None:
            return unknown(call.out, call.confidence)
        missing = self.move(call, [(~t).to(torch.uint8) if t.dtype == torch.bool else t for t in tensors], 0)
        moved = self.move(call, values, self.fill_value(call))
        if isinstance(call.out, (tuple, list)):
            return tuple(
                Facts.of(m == 0, v, like, call.confidence) for m, v, like in zip(missing, moved, outs)
            )
        return Facts.of(missing == 0, moved, call.out, call.confidence)

    fills = False  # whether some outputs may come from nowhere (pad, tril)
    index_positions: tuple[int, ...] = ()  # inputs that are indices, not data

    def _data(self, call: Call, tensors: list[Tensor]) -> list[Tensor] | None:
        """Data inputs as given, index inputs as their known integers; None if an index is not known."""
        out = []
        for i, (t, f) in enumerate(zip(tensors, call.inputs)):
            if i in self.index_positions:
                if not f.all_known:
                    return None
                t = f.as_input(full=True)
            out.append(t)
        return out

    def backward(self, call: Call, out: Any, need: Any) -> Needs:
        needs = need if isinstance(need, (tuple, list)) else [need]
        if all(n is None or not bool(n.any()) for n in needs):
            return [None] * len(call.inputs)
        if self.covers and all(n is not None and bool(n.all()) for n in needs):
            return [everything(f) for f in call.inputs]
        offset, maps = 1, []
        for f in call.inputs:
            size = math.prod(f.shape)
            maps.append(torch.arange(offset, offset + size).view(f.shape))
            offset += size
        data = self._data(call, maps)
        if data is None:
            return [everything(f) for f in call.inputs]
        moved = self.move(call, data, 0)
        wanted = torch.zeros(offset, dtype=torch.bool)
        for m, n in zip(moved if isinstance(need, (tuple, list)) else [moved], needs):
            if n is not None:
                wanted[m[n.expand(m.shape)]] = True
        result: Needs = []
        offset = 1
        for i, f in enumerate(call.inputs):
            size = math.prod(f.shape)
            part = wanted[offset : offset + size].view(f.shape)
            result.append(everything(f) if i in self.index_positions else compact(part)[0])
            offset += size
        return result

    covers = False  # whether every input element reaches the output (then "all needed" stays so)


class Reshape(Movement):
    """view, reshape, flatten, squeeze, …: the order of elements stays."""

    covers = True

    def move(self, call: Call, tensors: list[Tensor], fill: float) -> Any:
        return tensors[0].reshape(shape_of(call.out))

    def keep(self, axes: CallAxes) -> None:
        axes.reshape(axes.inp(0), axes.out())

    def emit(self, em: Emitter) -> Any:
        return em.call(torch.ops.aten.reshape.default, em.arg(0), em.sizes())


class Permute(Movement):
    """permute, transpose, t."""

    covers = True

    def order(self, call: Call) -> list[int]:
        """order[d] is the input dimension that becomes output dimension d."""
        rank = len(call.inputs[0].shape)
        if call.op in ("permute", "permute_copy"):
            return [int(d) % rank for d in call.at(1)]
        order = list(range(rank))
        first, second = (
            (0, rank - 1) if call.op in ("t", "numpy_T") else (call.at(1) % rank, call.at(2) % rank)
        )
        if rank:
            order[first], order[second] = order[second], order[first]
        return order

    def keep(self, axes: CallAxes) -> None:
        for d, source in enumerate(self.order(axes.call)):
            axes.tie(axes.out()[d], axes.inp(0)[source])


class Expand(Movement):
    """expand: new or size-1 dimensions are repeated."""

    covers = True

    def keep(self, axes: CallAxes) -> None:
        x, out = axes.inp(0), axes.out()
        for d in range(1, len(x) + 1):
            if len(x[-d]) == len(out[-d]):
                axes.tie(x[-d], out[-d])

    def emit(self, em: Emitter) -> Any:
        return em.call(torch.ops.aten.expand.default, em.arg(0), em.sizes())


class Concat(Movement):
    """cat."""

    covers = True

    def keep(self, axes: CallAxes) -> None:
        out = axes.out()
        dim = (axes.call.at(1, "dim") or 0) % len(out)
        start = 0
        for i in range(len(axes.call.inputs)):
            x = axes.inp(i)
            if len(x) != len(out):  # an empty legacy operand
                axes.lock_all()
                return
            size = len(x[dim])
            axes.tie(x[dim], out[dim][start : start + size])
            for d in range(len(out)):
                if d != dim:
                    axes.tie(x[d], out[d])
            start += size


class Stack(Movement):
    """stack: a new dimension."""

    covers = True

    def keep(self, axes: CallAxes) -> None:
        out = axes.out()
        dim = (axes.call.at(1, "dim") or 0) % len(out)
        axes.lock(out[dim])
        rest = out[:dim] + out[dim + 1 :]
        for i in range(len(axes.call.inputs)):
            for a, b in zip(axes.inp(i), rest):
                axes.tie(a, b)


class Slice(Movement):
    """slice along one dimension; steps other than 1 stay as they are."""

    def _range(self, call: Call) -> tuple[int, int, int, int] | None:
        """(dim, start, stop, step), clamped; None if a bound is symbolic."""
        shape = call.inputs[0].shape
        dim, start, stop, step = (call.at(p) for p in (1, 2, 3, 4))
        values = (dim or 0, start or 0, shape[dim or 0] if stop is None else stop, step or 1)
        if not all(isinstance(v, int) for v in values):
            return None
        lo, hi, stride = slice(*values[1:]).indices(shape[values[0]])
        return values[0] % len(shape), lo, max(hi, lo), stride

    def keep(self, axes: CallAxes) -> None:
        found = self._range(axes.call)
        if found is None:
            axes.lock_all()
            return
        dim, start, stop, step = found
        x, out = axes.inp(0), axes.out()
        for d in range(len(x)):
            if d != dim:
                axes.tie(x[d], out[d])
            elif step == 1:
                axes.tie(x[d][start:stop], out[d])
            else:
                axes.lock(x[d])
                axes.lock(out[d])

    def emit(self, em: Emitter) -> Any:
        found = self._range(em.node_call)
        if found is None or found[3] != 1:
            return em.same()
        dim, start, stop, _ = found
        keep = em.axes.inp(0)[dim]
        if bool(keep.all()):
            return em.same()
        return em.call(
            torch.ops.aten.slice.Tensor, em.arg(0), dim, int(keep[:start].sum()), int(keep[:stop].sum())
        )


class Select(Movement):
    """One index of one dimension."""

    def keep(self, axes: CallAxes) -> None:
        x, out = axes.inp(0), axes.out()
        dim, index = axes.call.at(1) % len(x), axes.call.at(2)
        if not isinstance(index, int):
            axes.lock_all()
            return
        axes.lock(x[dim][index % len(x[dim]) : index % len(x[dim]) + 1])
        for a, b in zip(x[:dim] + x[dim + 1 :], out):
            axes.tie(a, b)

    def emit(self, em: Emitter) -> Any:
        dim = em.node_call.at(1) % len(em.axes.inp(0))
        keep = em.axes.inp(0)[dim]
        index = em.node_call.at(2)
        if bool(keep.all()) or not isinstance(index, int):
            return em.same()
        return em.call(torch.ops.aten.select.int, em.arg(0), dim, int(keep[: index % len(keep)].sum()))


class Split(Movement):
    """split, split_with_sizes, chunk: a tuple of pieces of one dimension."""

    covers = True

    def _dim(self, call: Call) -> int:
        return (call.at(2, "dim") or 0) % len(call.inputs[0].shape)

    def keep(self, axes: CallAxes) -> None:
        x, dim, start = axes.inp(0), self._dim(axes.call), 0
        for i in range(len(axes.call.out)):
            out = axes.out(i)
            size = len(out[dim])
            axes.tie(out[dim], x[dim][start : start + size])
            for d in range(len(x)):
                if d != dim:
                    axes.tie(out[d], x[d])
            start += size

    def emit(self, em: Emitter) -> Any:
        dim = self._dim(em.node_call)
        if bool(em.axes.inp(0)[dim].all()):
            return em.same()
        counts = [int(em.axes.out(i)[dim].sum()) for i in range(len(em.node_call.out))]
        return em.call(torch.ops.aten.split_with_sizes.default, em.arg(0), counts, dim)


class Unbind(Movement):
    """One tensor for each index of a dimension."""

    covers = True

    def keep(self, axes: CallAxes) -> None:
        x = axes.inp(0)
        dim = (axes.call.at(1, "dim") or 0) % len(x)
        axes.lock(x[dim])
        for i in range(len(axes.call.out)):
            for a, b in zip(x[:dim] + x[dim + 1 :], axes.out(i)):
                axes.tie(a, b)


class Pad(Movement):
    """constant_pad_nd: the border is a known constant."""

    fills = True
    covers = True

    def fill_value(self, call: Call) -> float:
        return float(call.at(2, "value") or 0)

    def move(self, call: Call, tensors: list[Tensor], fill: float) -> Any:
        return torch.nn.functional.pad(tensors[0], [int(p) for p in call.at(1)], value=fill)

    def keep(self, axes: CallAxes) -> None:
        pads = list(axes.call.at(1))
        x, out = axes.inp(0), axes.out()
        for d in range(len(x)):
            position = 2 * (len(x) - 1 - d)
            if position < len(pads) and (pads[position] or pads[position + 1]):
                axes.lock(x[d])
                axes.lock(out[d])
            else:
                axes.tie(x[d], out[d])


class Triangle(Movement):
    """tril, triu: the other half is zero."""

    fills = True

    def keep(self, axes: CallAxes) -> None:
        x, out = axes.inp(0), axes.out()
        for d in range(len(x)):
            if d >= len(x) - 2:
                axes.lock(x[d])
                axes.lock(out[d])
            else:
                axes.tie(x[d], out[d])


class Along(Movement):
    """flip, roll, repeat, index_select with known indices, …: some dimensions are rearranged, the rest
    pass."""

    def __init__(self, index_positions: tuple[int, ...] = (), covers: bool = False):
        self.index_positions = index_positions
        self.covers = covers

    def keep(self, axes: CallAxes) -> None:
        axes.lock_all()


def reshape_groups(src: tuple[int, ...], dst: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Smallest groups of dimensions of `src` and `dst` that hold the same elements."""
    groups, i, j = [], 0, 0
    while i < len(src) or j < len(dst):
        left, right, a, b = [], [], 1, 1
        if i < len(src):
            left, a, i = [i], src[i], i + 1
        if j < len(dst):
            right, b, j = [j], dst[j], j + 1
        while a != b:
            if a < b and i < len(src):
                left.append(i)
                a, i = a * src[i], i + 1
            elif j < len(dst):
                right.append(j)
                b, j = b * dst[j], j + 1
            else:
                left.append(i)
                a, i = a * src[i], i + 1
        groups.append((left, right))
    return groups
