"""Matrix products through tensor descriptors: TMA loads, wgmma or tcgen05, persistent grids, warp specialisation.

The hardware of sm_90 and later copies a tile into shared memory from a description of the tensor: no address
arithmetic and no registers in between, zeros where a tile leaves the tensor. Kernels differ from emit/contraction.py
only in how operands arrive; the epilogue is the same. A variant is a word of `VARIANTS` in `RProgram.variant`:

    tma          descriptors, one program a tile
    tma-ws       the loop over k split between a warp group that copies and warp groups that multiply
    tma-persist  as many programs as units, each walks over tiles; one tile's epilogue overlaps the next one's loads
"""

from __future__ import annotations

from ..expr import ITEMSIZE, Access, Axis, TensorExpr
from .common import Tiling, TritonSource
from .contraction import HALF, _Contraction

VARIANTS = ("tma", "tma-ws", "tma-persist")
_ALIGNED_BYTES = 16  # of the base and of every stride but the last (cuTensorMapEncodeTiled)
_LEAST_BLOCK = 16
_MOST_BOX = 256  # elements of a descriptor's block along one dimension


def describable(expr: TensorExpr) -> bool:
    """Whether both operands of the one dot are plain half-precision matrices that TMA can describe."""
    if len(expr.dots) != 1:
        return False
    (dot,) = expr.dots
    spatial = {a.name for a in expr.spatial}
    found = []
    for number in dot.args:
        value = expr.values[number]
        if value.kind != "load" or value.access is None or value.dtype not in HALF:
            return False
        matrix = _matrix(value.access, spatial, dot.over)
        if matrix is None:
            return False
        found.append(matrix)
    (a, _), (b, _) = found
    return len(spatial) == 2 and a != b


def _matrix(access: Access, spatial: set[str], over: tuple[str, ...]) -> tuple[str, bool] | None:
    """(its spatial axis, whether k runs along memory) of a two-dimensional operand; None where it is not one."""
    if access.bounded or len(over) != 1:
        return None
    moved = {name: access.stride_of(name) for ix in access.index for name, _ in ix.terms}
    outer = [n for n in moved if n in spatial]
    if (
        len(outer) != 1
        or set(moved) != {outer[0], over[0]}
        or any(ix.indirect is not None for ix in access.index)
    ):
        return None
    k_inner = moved[over[0]] == 1
    if not k_inner and moved[outer[0]] != 1:
        return None
    step = moved[outer[0]] if k_inner else moved[over[0]]
    at = access.offset + sum(ix.offset * s for ix, s in zip(access.index, access.strides))
    aligned = all(n * ITEMSIZE[access.dtype] % _ALIGNED_BYTES == 0 for n in (step, at))
    return (outer[0], k_inner) if aligned and step > 0 and at >= 0 else None


def fits(tiling: Tiling, expr: TensorExpr) -> bool:
    """Whether the tiles of these blocks can be described: at least 16, at most 256 elements a side."""
    blocks = [tiling.of(a.name) for a in expr.axes]
    return all(_LEAST_BLOCK <= b <= _MOST_BOX for b in blocks)


def emit_descriptors(
    expr: TensorExpr, tiling: Tiling, name: str, variant: str, units: int = 0, check: bool = False
) -> TritonSource:
    """Triton text of a describable product; `units` is the number of programs of a persistent grid.

    Raises ValueError for an unknown variant or a product that cannot be described.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} of {expr.name} is none of {VARIANTS}")
    if not describable(expr) or not fits(tiling, expr):
        raise ValueError(f"{expr.name} with {tiling.blocks} cannot be read through tensor descriptors")
    return _Described(expr, tiling, name, variant, units, check).run()


class _Described(_Contraction):
    def __init__(
        self, expr: TensorExpr, tiling: Tiling, name: str, variant: str, units: int, check: bool
    ) -> None:
        super().__init__(expr, tiling, name, False, check)
        self.variant, self.units = variant, units

    def programs(self) -> int:
        body = self.body
        for which in (0, 1):
            self.describe(which)
        before = len(body.lines)
        tiles = super().programs()
        if self.variant != "tma-persist" or not 0 < self.units < tiles:
            return tiles
        decoded = [line for line in body.lines[before:] if not line.lstrip().startswith("pid =")]
        del body.lines[before:]
        body.line(f"for pid in tl.range(tl.program_id(0), {tiles}, {self.units}, flatten=True):")
        body.indent += 1
        body.lines += [f"    {line}" for line in decoded]
        return self.units

    def side(self, which: int) -> tuple[Axis, int, bool, Access]:
        """(axis, block, whether k runs along memory, access) of an operand."""
        axis = self.tile_m if which == 0 else self.tile_n
        access = self.expr.values[self.dot.args[which]].access
        assert axis is not None and access is not None
        matrix = _matrix(access, {a.name for a in self.expr.spatial}, self.dot.over)
        assert matrix is not None
        return axis, self.bm if which == 0 else self.bn, matrix[1], access

    def describe(self, which: int) -> None:
        axis, block, k_inner, access = self.side(which)
        at = access.offset + sum(ix.offset * s for ix, s in zip(access.index, access.strides))
        step = access.stride_of(axis.name if k_inner else self.k.name)
        shape = (axis.extent, self.k.extent) if k_inner else (self.k.extent, axis.extent)
        tile = (block, self.bk) if k_inner else (self.bk, block)
        start = f"{access.tensor} + {at}" if at else access.tensor
        self.body.line(
            f"{'ab'[which]}_tile = tl.make_tensor_descriptor({start}, [{shape[0]}, {shape[1]}], [{step}, 1], "
            f"[{tile[0]}, {tile[1]}])"
        )

    def main_loop(self) -> None:
        body, k = self.body, self.k
        body.line(f"acc = tl.zeros(({self.bm}, {self.bn}), tl.float32)")
        special = ", warp_specialize=True" if self.variant == "tma-ws" else ""
        body.line(f"for k0 in tl.range(0, {k.extent}, {self.bk}{special}):")
        body.indent += 1
        for which in (0, 1):
            axis, block, k_inner, _ = self.side(which)
            place = f"{self.program[axis.name]} * {block}" if self.program[axis.name] != "0" else "0"
            at = f"[{place}, k0]" if k_inner else f"[k0, {place}]"
            turned = k_inner == (which == 1)  # a is [m, k], b is [k, n]
            body.line(f"{'ab'[which]} = {'ab'[which]}_tile.load({at}){'.T' if turned else ''}")
        body.line("acc = tl.dot(a, b, acc)")
        body.indent -= 1
        body.have = {self.number: "acc"}
