"""Operators that write into a copy of a tensor: scatter, index_put, index_add, slice_scatter, copy and their kin.

out is self with the elements of a source put, or combined, at positions that integers choose. Where the
integers are known the positions are, and each output element is what the operator makes of the known elements
that reach it. Where they are not, any element of the source may reach any element of the output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from ..tesa import compact
from .facts import Call, Facts, any_over
from .pointwise import Pointwise
from .rule import Needs, Rule, everything, unknown

if TYPE_CHECKING:
    from ..structure.keep import CallAxes


@dataclass(frozen=True)
class Write(Rule):
    """kind: how the arguments choose positions, by the name of the family.

    "scatter": (self, dim, index, src or value); "along": (self, dim, index[n], source or value), index_add,
    index_copy, index_fill; "put": (self, indices, values, accumulate); "slice": (self, src, dim, start, end,
    step); "select": (self, src, dim, index). adds: the source is combined with what is there.
    """

    kind: str
    adds: bool = False

    # -- the arguments -------------------------------------------------------------------------------------
    def _source_at(self, call: Call) -> int | None:
        """Which input is what is written; None if that is a Python number."""
        at = {"scatter": 3, "along": 3, "put": 2, "slice": 1, "select": 1}[self.kind]
        return call.index_of(call.at(at))

    def _source(self, call: Call) -> Facts | None:
        at = self._source_at(call)
        return None if at is None else call.inputs[at]

    def _reduces(self, call: Call) -> bool:
        """Whether the source is combined with what is there in another way than by adding."""
        return call.op == "scatter_reduce" or (call.op == "scatter" and bool(call.at(4, "reduce")))

    def _indices(self, call: Call) -> list[int]:
        """Which inputs choose the positions."""
        at = {"scatter": 2, "along": 2, "put": 1}.get(self.kind)
        given = () if at is None else call.at(at)
        nodes = given if isinstance(given, (tuple, list)) else (given,)
        return [i for n in nodes if isinstance(n, fx.Node) and (i := call.index_of(n)) is not None]

    def _replaces(self, call: Call) -> bool:
        """Whether a written element depends on nothing that was there before."""
        if self.kind == "put":
            return not bool(call.at(3, "accumulate"))
        if call.op == "scatter_reduce":
            return call.at(5, "include_self") is False
        return not (self.adds or self._reduces(call))

    def _one_writer(self, call: Call) -> bool:
        """Whether an element that is written twice has the value of one of the writers, no matter which."""
        return self._replaces(call) and call.op != "scatter_reduce"

    def _positions(self, call: Call) -> Tensor | None:
        """The flat output position of each element of the source (at its own shape, or what it is broadcast
        to); None if it is not known."""
        chosen = self._indices(call)
        symbolic = [s for s in (*call.out.shape, *call.node.args) if isinstance(s, torch.SymInt)]
        if symbolic or not all(call.inputs[i].all_known for i in chosen):
            return None
        shape = call.inputs[0].shape
        grid = torch.arange(math.prod(shape)).view(shape)
        if self.kind == "put":
            index = [
                None if n is None else call.inputs[call.index_of(n)].as_input(full=True)  # type: ignore[index]
                for n in call.at(1)
            ]
            return grid[tuple(slice(None) if x is None else x for x in index)] if _plain(index) else None
        if self.kind in ("scatter", "along"):
            rows = call.inputs[chosen[0]].as_input(full=True)
            dim = call.at(1) % max(len(shape), 1)
            if not shape:
                return None
            if self.kind == "along":
                return grid.index_select(dim, rows.reshape(-1))
            return torch.gather(grid, dim, rows)
        rest = {n: call.at(p) for p, n in enumerate(("dim", "start", "end", "step"), 2)}
        if not all(v is None or isinstance(v, int) for v in rest.values()):
            return None
        dim = (rest["dim"] or 0) % len(shape)
        if self.kind == "select":
            return grid.select(dim, call.at(3))
        stop = shape[dim] if rest["end"] is None else rest["end"]
        picked = slice(rest["start"] or 0, stop, rest["step"] or 1)
        return grid[(slice(None),) * dim + (picked,)]

    def _of_source(self, call: Call, what: Tensor, positions: Tensor) -> Tensor:
        """A compact tensor of the source, one element per position."""
        source = self._source(call)
        assert source is not None
        full = source.full(what)
        if self.kind == "scatter":  # the index may be smaller than the source
            full = full[tuple(slice(0, n) for n in positions.shape)]
        return full.expand(positions.shape)

    # -- the algebra ---------------------------------------------------------------------------------------
    def forward(self, call: Call) -> Any:
        x, source, positions = call.inputs[0], self._source(call), self._positions(call)
        if x.none_known and (source is None or source.none_known) and positions is None:
            return unknown(call.out, call.confidence)
        if positions is None:
            return self._anywhere(call, x, source)
        flat, size = positions.reshape(-1), math.prod(x.shape)
        written = torch.zeros(size, dtype=torch.bool)
        written[flat] = True
        missing = torch.zeros(size, dtype=torch.bool)  # written by something that is not known
        if source is not None:
            missing[flat[~self._of_source(call, source.known, positions).reshape(-1)]] = True
        known = x.full(x.known).reshape(-1).clone()
        if self._replaces(call):
            known |= written
        known &= ~missing
        if self._one_writer(call) and source is not None:
            values = self._of_source(call, source.value, positions).reshape(-1).double()
            low, high = (
                torch.full((size,), math.inf, dtype=torch.float64).scatter_reduce(
                    0, flat, sign * values, "amin"
                )
                for sign in (1, -1)
            )
            known &= ~written | (low == -high)
        try:
            value = call.invoke([f.as_input(full=True) for f in call.inputs])
        except (RuntimeError, NotImplementedError, TypeError, IndexError):
            return unknown(call.out, call.confidence)
        return Facts.of(known.view(x.shape), value.double(), call.out, call.confidence)

    def _anywhere(self, call: Call, x: Facts, source: Facts | None) -> Facts:
        """The positions are not known: what is written may land anywhere."""
        if self._reduces(call):
            return Facts.unknown(call.out, call.confidence)
        if source is not None and not (source.all_known and source.value.numel() == 1):
            return Facts.unknown(call.out, call.confidence)
        written = float(call.at(3, "value")) if source is None else float(source.value.reshape(()))
        constant = torch.tensor(written, dtype=torch.float64)
        if not self._replaces(call):
            constant = torch.where(constant == 0, x.value, math.nan)  # x + 0
        return Facts.of(x.known & (x.value == constant), x.value, call.out, call.confidence)

    def backward(self, call: Call, out: Any, need: Any) -> Needs:
        result: Needs = [None] * len(call.inputs)
        if need is None or not bool(need.any()):
            return result
        positions, source, at = self._positions(call), self._source(call), self._source_at(call)
        for i in self._indices(call):
            result[i] = everything(call.inputs[i])
        if positions is None:
            result[0] = need
            if at is not None:
                result[at] = everything(call.inputs[at])
            return _merged(call, result)
        wanted = need.expand(call.inputs[0].shape).reshape(-1)
        kept = wanted.clone()
        if self._replaces(call):
            kept[positions.reshape(-1)] = False
        result[0] = compact(kept.view(call.inputs[0].shape))[0]
        if at is not None and source is not None:
            reached = wanted[positions]
            if self.kind == "scatter":
                full = torch.zeros(source.shape, dtype=torch.bool)
                full[tuple(slice(0, n) for n in positions.shape)] = reached
                reached = full
            else:
                reached = any_over(reached, source.shape)
            result[at] = compact(reached)[0]
        return _merged(call, result)

    def keep(self, axes: CallAxes) -> None:
        if self.kind not in ("along", "slice", "select") or not axes.inp(0):
            axes.lock_all()
            return
        call, x, out = axes.call, axes.inp(0), axes.out()
        dim = call.at(1 if self.kind == "along" else 2)
        if not isinstance(dim or 0, int):
            axes.lock_all()
            return
        dim = (dim or 0) % len(x)
        at = self._source_at(call)
        data: list[Any] | None = None if at is None else list(axes.inp(at))
        if data is not None and self.kind == "select":
            data.insert(dim, None)
        for i in self._indices(call):
            for axis in axes.inp(i):
                axes.lock(axis)
        for d in range(len(x)):
            here = data[d] if data is not None and len(data) == len(x) else None
            if d == dim:
                for touched in (x[d], out[d], here):
                    if touched is not None:
                        axes.lock(touched)
                continue
            axes.tie(x[d], out[d])
            if here is not None:
                axes.tie(here, out[d])


def _plain(index: list[Tensor | None]) -> bool:
    """Whether `tensor[index]` orders dimensions as index_put does: True for integers and booleans alike."""
    return any(x is not None for x in index)


def _merged(call: Call, needs: Needs) -> Needs:
    """A tensor that is given twice (as self and as source) is needed where either use needs it."""
    for i, a in enumerate(call.sources):
        for j, b in enumerate(call.sources):
            if i != j and a is b:
                needs[i] = needs[j] = everything(call.inputs[i])
    return needs


class Copy(Pointwise):
    """copy(self, src), fill(self, value): out is src, broadcast and cast; self gives a shape and a type."""

    def absorb(self, call: Call) -> tuple[Tensor, Tensor]:
        source = call.inputs[1] if len(call.inputs) > 1 else None
        if source is None:
            known, value = (
                torch.ones((), dtype=torch.bool),
                torch.tensor(float(call.at(1)), dtype=torch.float64),
            )
        else:
            known, value = source.known, source.value.double()
        if call.inputs[0].dtype == torch.bool:
            value = (value != 0).double()
        elif not call.inputs[0].dtype.is_floating_point:
            value = value.trunc()
        return known, value

    def forward(self, call: Call) -> Facts:
        known, value = self.absorb(call)
        return Facts.of(known, value, call.out, call.confidence)

    def backward(self, call: Call, out: Any, need: Any) -> Needs:
        if len(call.inputs) == 1 or need is None or not bool(need.any()):
            return [None] * len(call.inputs)
        return [None, any_over(need, call.inputs[1].shape)]
