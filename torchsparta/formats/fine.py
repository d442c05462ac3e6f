"""Fine-grained (unstructured) sparsity: row-wise compressed, cache-blocked, balanced over programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..vector_unit import vector_unit
from .base import RowGroups, Tile, check_weight, pack_row_groups, runs_alive


@dataclass(frozen=True, eq=False)
class FineGrained(RowGroups):
    """Each row lists its alive columns; within a row block, column block by column block."""

    name: ClassVar[str] = "fine-grained"

    @classmethod
    def pack(
        cls, dense: Tensor, mask: Tensor | None = None, tile: Tile | None = None, unroll: int | None = None
    ) -> FineGrained:
        """dense [N, K]; mask [N, K] of 0/1 or bool, default: what is not zero.

        unroll: sums that a kernel keeps per row, to hide the latency of multiply-adds; default: what the registers
        of the device hold.
        """
        dense, mask = check_weight(dense, mask, "FineGrained")
        tile = tile or Tile()
        unroll = unroll or vector_unit(dense.device).fine_unroll
        n, k = dense.shape
        alive = runs_alive(mask, 1, 1, tile)
        ptr, idx, val = pack_row_groups(dense, alive, 1, 1, tile, unroll)
        return cls((n, k), 1, 1, tile, ptr, idx, val, unroll)
