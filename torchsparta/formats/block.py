"""Block sparsity: bm x bk blocks of a weight are alive or dead as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..vector_unit import vector_unit
from .base import RowGroups, Tile, check_weight, pack_row_groups, runs_alive


@dataclass(frozen=True, eq=False)
class Block(RowGroups):
    """Blocks of `block` = (bm rows, bk columns); every block with an alive element is stored whole.

    A kernel walks a block as bm / group groups of rows, each with literal loops over its bk columns.
    """

    name: ClassVar[str] = "block"
    block: tuple[int, int] = (32, 32)

    @classmethod
    def pack(
        cls,
        dense: Tensor,
        mask: Tensor | None = None,
        block: tuple[int, int] = (32, 32),
        tile: Tile | None = None,
        group: int | None = None,
    ) -> Block:
        """dense [N, K]; `block` (bm, bk) with bm a power of two; `group` defaults to as many rows as registers hold."""
        dense, mask = check_weight(dense, mask, "Block")
        bm, bk = block
        if bm < 1 or bm & (bm - 1) or bk < 1:
            raise ValueError(f"Block.pack: block must be (a power of two, a positive width), got {block}")
        tile = tile or Tile(rows=max(32, bm))
        if tile.rows % bm:
            raise ValueError(f"Block.pack: a tile of {tile.rows} rows cannot hold blocks of {bm} rows")
        group = group or min(bm, vector_unit(dense.device).max_group)
        if bm % group:
            raise ValueError(f"Block.pack: blocks of {bm} rows do not split into groups of {group}")
        n, k = dense.shape
        alive = runs_alive(mask, bm, bk, tile).repeat_interleave(bm // group, dim=0)
        # Groups that lie wholly past N belong to a block that reaches past the weight: nothing to store.
        alive[-(-n // group) :] = False
        ptr, idx, val = pack_row_groups(dense, alive, group, bk, tile)
        return cls((n, k), group, bk, tile, ptr, idx, val, block=block)

    def describe(self) -> str:
        return f"block {self.block[0]}x{self.block[1]}"
