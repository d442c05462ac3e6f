"""Nests split where a mask ends: `columns < n` is true for whole vectors, then for part of one, then for none.

A tile is a power of two wide and a row often is not, so the mask of a row is true in front of one column, the same in
every program. The vectors in front of that column need no mask, those behind it no memory; only the one across it is
masked. Behind it most values no longer depend on the column: they are evaluated once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torchroller.triton_cpu.lowering.code import Operand
from torchroller.triton_cpu.lowering.evaluate import Evaluator, Mode, conjuncts
from torchroller.triton_cpu.lowering.masks import prefix_length
from torchroller.triton_cpu.lowering.values import Dims, Elementwise, Load, Remap, Tensor

Roots = Sequence[tuple[Tensor, Dims]]


@dataclass(frozen=True)
class Split:
    """The masks (each with its own dimension along the vectors) hold before `whole` and nowhere from `end` on.

    Both are multiples of the vector's lanes, known numbers or SSA names; the tile is `extent` wide.
    """

    whole: Operand
    end: Operand
    extent: int
    masks: frozenset[tuple[Tensor, int]]

    @property
    def known(self) -> bool:
        return isinstance(self.whole, int) and isinstance(self.end, int)

    def inside(self, mode: Mode) -> Mode:
        return replace(mode, inside=mode.inside | self.masks)

    def outside(self, mode: Mode) -> Mode:
        return replace(mode, outside=mode.outside | self.masks, start=self.end, same={})


def find_split(
    ev: Evaluator, roots: Roots, shape: Sequence[int], vdim: int | None, lanes: int
) -> Split | None:
    """Where to split the loop along `vdim`; None where no mask ends at a column that all programs share."""
    if vdim is None or shape[vdim] <= lanes:
        return None
    found: dict[tuple[Operand, tuple[str, ...]], set[tuple[Tensor, int]]] = {}
    for t, dims in ev.walk(roots):
        if t.elem != "i1" or not isinstance(t, Elementwise) or t.buffer is not None or ev.holds(t):
            continue
        own = [k for k, d in enumerate(dims) if d == vdim and t.shape[k] > 1]
        if len(own) != 1:
            continue
        length = prefix_length(ev, t, own[0])
        if length is not None:
            found.setdefault(length, set()).add((t, own[0]))
    if not found:
        return None
    # One split a nest: at the column that most masks share.
    (count, guards), masks = max(found.items(), key=lambda item: len(item[1]))
    extent, code = shape[vdim], ev.code
    if isinstance(count, int) and not guards:
        count = max(0, min(count, extent))
        whole, end = count // lanes * lanes, -(-count // lanes) * lanes
        return Split(whole, end, extent, frozenset(masks)) if whole else None
    code.declare("smax", "declare i64 @llvm.smax.i64(i64, i64)")
    code.declare("smin", "declare i64 @llvm.smin.i64(i64, i64)")
    positive = code.let(f"call i64 @llvm.smax.i64(i64 {count}, i64 0)")
    length_name = code.let(f"call i64 @llvm.smin.i64(i64 {positive}, i64 {extent})")
    whole_name = code.let(f"and i64 {length_name}, {-lanes}")
    rounded = code.let(f"add i64 {length_name}, {lanes - 1}")
    end_name = code.let(f"and i64 {rounded}, {-lanes}")
    if guards:  # where the compared numbers wrap the mask is evaluated everywhere
        holds = code.both(list(guards))
        whole_name = code.let(f"select i1 {holds}, i64 {whole_name}, i64 0")
        end_name = code.let(f"select i1 {holds}, i64 {end_name}, i64 {extent}")
    return Split(whole_name, end_name, extent, frozenset(masks))


def counted(ev: Evaluator, load: Load, dim: int) -> int | None:
    """Where the mask of a load ends along `dim`, if that is known and the same everywhere; else None."""
    return load.shape[dim] if load.mask is None else ended(ev, load.mask, load.shape[dim], dim)


def ended(ev: Evaluator, mask: Tensor, extent: int, dim: int) -> int | None:
    """Where a mask ends along a dimension of this extent, if that is known and the same everywhere; else None."""
    end = extent
    for part in conjuncts(mask):
        if dim not in part.varies or ev.holds(part):
            continue
        inner, at = part, dim
        while isinstance(inner, Remap) and inner.buffer is None:
            at, inner = inner.source_dims.index(at), inner.source
        if not isinstance(inner, Elementwise) or inner.buffer is not None or len(inner.varies) != 1:
            return None
        found = prefix_length(ev, inner, at)
        if found is None or found[1] or not isinstance(found[0], int) or found[0] < 1:
            return None
        end = min(end, found[0])
    return end
