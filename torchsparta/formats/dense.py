"""Dense: everything is alive; the format that sparsity has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..vector_unit import vector_unit
from .base import SparseFormat, Tile, Work, check_weight


@dataclass(frozen=True, eq=False)
class Dense(SparseFormat):
    """Values in panels of `group` rows: val [row groups, K, group], so that a kernel streams them."""

    name: ClassVar[str] = "dense"
    shape: tuple[int, int]
    group: int
    tile: Tile
    val: Tensor

    @classmethod
    def pack(
        cls, dense: Tensor, mask: Tensor | None = None, tile: Tile | None = None, group: int | None = None
    ) -> Dense:
        """dense [N, K]; a mask zeroes what is pruned but nothing is skipped."""
        if mask is not None:
            dense, _ = check_weight(dense, mask, "Dense")
        elif dense.dim() != 2:
            raise ValueError(f"Dense.pack: the weight must have 2 dimensions, got shape {tuple(dense.shape)}")
        tile = tile or Tile()
        group = group or vector_unit(dense.device).max_group
        if tile.rows % group:
            raise ValueError(f"Dense.pack: a tile of {tile.rows} rows cannot hold groups of {group} rows")
        n, k = dense.shape
        groups = tile.counts((n, k))[0] * tile.rows // group
        padded = dense.new_zeros(groups * group, k)
        padded[:n] = dense
        return cls((n, k), group, tile, padded.view(groups, group, k).transpose(1, 2).contiguous())

    def unpack(self) -> Tensor:
        n, k = self.shape
        return self.val.transpose(1, 2).reshape(-1, k)[:n].contiguous()

    def work(self) -> Work:
        groups, k, group = self.val.shape
        return Work(groups * k * group, groups * k, groups, self.nbytes, group, self.val.element_size() * 8)
