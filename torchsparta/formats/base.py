"""What a sparse format is: pack, unpack, bytes, work, and how a kernel iterates it.

A weight `W[N, K]` (output rows by input columns) is stored for kernels that own `tile.rows` output rows and
walk the columns in blocks of `tile.columns`. Formats that list what is alive share one layout, `RowGroups`:
`group` neighbouring rows share one list of column runs, each `width` columns long. Fine-grained is group 1,
width 1; a 32x1 block is four groups of eight rows with the same list.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """What one program owns: `rows` output rows, its columns walked in blocks of `columns` (0: all at once).

    A column block bounds the part of the input panel that is live at a time (cache blocking).
    """

    rows: int = 32
    columns: int = 0

    def __post_init__(self) -> None:
        if self.rows < 1 or self.rows & (self.rows - 1):
            raise ValueError(f"Tile: rows must be a power of two, got {self.rows}")
        if self.columns < 0:
            raise ValueError(f"Tile: columns must be 0 (no blocking) or positive, got {self.columns}")

    def counts(self, shape: tuple[int, int]) -> tuple[int, int]:
        """(row blocks, column blocks) of a weight of this shape; at least one of each."""
        n, k = shape
        return max(1, -(-n // self.rows)), max(1, -(-k // self.columns)) if self.columns else 1


@dataclass(frozen=True)
class Work:
    """What a format makes a kernel do for each token: the figures that the cost model reads.

    `macs` counts multiply-adds issued, padding inside blocks included; `columns` the loads of an input column
    (one vector of tokens each); `lists` the column lists walked; `storage_bytes` what streams from memory.
    """

    macs: int
    columns: int
    lists: int
    storage_bytes: int
    group: int
    bits: int


def check_weight(dense: Tensor, mask: Tensor | None, who: str) -> tuple[Tensor, Tensor]:
    """The weight with pruned elements zeroed, and its boolean mask (None: every non-zero is alive)."""
    if dense.dim() != 2:
        raise ValueError(
            f"{who}.pack: the weight must have 2 dimensions [out, in], got shape {tuple(dense.shape)}"
        )
    if mask is None:
        mask = dense != 0
    if mask.shape != dense.shape:
        raise ValueError(
            f"{who}.pack: the mask has shape {tuple(mask.shape)}, the weight {tuple(dense.shape)}; "
            "give one mask element per weight element"
        )
    if mask.dtype != torch.bool:
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise ValueError(f"{who}.pack: the mask holds values other than 0 and 1")
        mask = mask.bool()
    return torch.where(mask, dense, torch.zeros_like(dense)), mask


class SparseFormat(abc.ABC):
    """One way to store a weight. Instances are immutable; tensors are listed by `tensors()`."""

    name: ClassVar[str] = ""
    shape: tuple[int, int]

    @abc.abstractmethod
    def unpack(self) -> Tensor:
        """The dense weight [N, K] that this stores; pruned elements are exactly zero."""

    @abc.abstractmethod
    def work(self) -> Work:
        """Multiply-adds, column loads and bytes, for the cost model."""

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor field by name: what is saved, moved between devices and handed to kernels."""
        return {f.name: v for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)}  # type: ignore[arg-type]

    def settings(self) -> dict[str, Any]:
        """Every other field by name, JSON-friendly, so that a saved format is rebuilt without its class's code."""
        return {
            f.name: v
            for f in fields(self)  # type: ignore[arg-type]
            if not isinstance(v := getattr(self, f.name), Tensor) and v is not None
        }

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def to(self, device: torch.device | str) -> SparseFormat:
        moved = {name: t.to(device) for name, t in self.tensors().items()}
        return replace(self, **moved)  # type: ignore[type-var]

    def describe(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class RowGroups(SparseFormat):
    """Column lists shared by groups of rows.

    ptr [row blocks, column blocks, rows / group + 1] int32: where a group's entries begin; the next one's
        begin is its end.
    idx [entries] int32: first column of a run.       val [entries, width, group]: the run's values.
    Groups that reach past N and runs that reach past K hold zeros there. Lists are padded to a multiple of
    `unroll` entries with zeros at column `shape[1]`, so that a kernel can keep several independent sums.
    """

    name: ClassVar[str] = "row groups"
    shape: tuple[int, int]
    group: int
    width: int
    tile: Tile
    ptr: Tensor
    idx: Tensor
    val: Tensor
    unroll: int = 1

    @property
    def entries(self) -> int:
        """Column runs stored, padding included."""
        return self.idx.numel()

    def work(self) -> Work:
        columns = self.entries * self.width
        alive_lists = int((self.ptr[..., 1:] > self.ptr[..., :-1]).sum())
        bits = self.val.element_size() * 8
        return Work(columns * self.group, columns, alive_lists, self.nbytes, self.group, bits)

    def unpack(self) -> Tensor:
        n, k = self.shape
        n_groups = self.ptr.shape[0] * self.tile.rows // self.group
        k_runs = -(-k // self.width) if k else 0
        full = self.val.new_zeros(n_groups, max(k_runs, 1), self.width, self.group)
        real = self.idx < k
        if bool(real.any()):
            full[self._group_of_entry()[real], self.idx[real].long() // self.width] = self.val[real]
        dense = full.permute(0, 3, 1, 2).reshape(n_groups * self.group, -1)
        return dense[:n, :k].contiguous()

    def _group_of_entry(self) -> Tensor:
        row_blocks, column_blocks, per_block = self.ptr.shape
        counts = (self.ptr[..., 1:] - self.ptr[..., :-1]).reshape(-1).long()
        groups = torch.arange(row_blocks * (per_block - 1), device=self.ptr.device).view(row_blocks, 1, -1)
        groups = groups.expand(row_blocks, column_blocks, per_block - 1).reshape(-1)
        return torch.repeat_interleave(groups, counts)

    def balanced_order(self) -> Tensor:
        """Row blocks, heaviest first (int32): programs start in this order, so that none is left for last."""
        per_block = (self.ptr[:, -1, -1] - self.ptr[:, 0, 0]).long()
        return torch.argsort(per_block, descending=True, stable=True).to(torch.int32)


def pack_row_groups(
    dense: Tensor, alive: Tensor, group: int, width: int, tile: Tile, unroll: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """(ptr, idx, val) of `RowGroups`; `alive` says which [group x width] runs are stored, on a padded grid.

    alive [ceil(N / tile.rows) * tile.rows / group, ceil(K / width)] bool.
    """
    n, k = dense.shape
    if tile.rows % group:
        raise ValueError(f"a tile of {tile.rows} rows cannot hold groups of {group} rows; use a multiple")
    if tile.columns % width:
        raise ValueError(f"a column block of {tile.columns} cannot hold runs of {width}; use a multiple")
    row_blocks, column_blocks = tile.counts((n, k))
    per_block = tile.rows // group
    groups, runs = row_blocks * per_block, max(1, -(-k // width))
    padded = dense.new_zeros(groups * group, runs * width)
    padded[:n, :k] = dense
    gi, ki = alive.nonzero(as_tuple=True)
    block_of_run = ki * width // tile.columns if tile.columns else torch.zeros_like(ki)
    key = ((gi // per_block) * column_blocks + block_of_run) * per_block + gi % per_block
    order = torch.argsort(key, stable=True)
    gi, ki, key = gi[order], ki[order], key[order]
    if key.numel() * width * group >= 2**31:
        raise ValueError(
            f"{key.numel()} runs of {width * group} values need 64-bit offsets, which kernels lack"
        )
    exact = torch.bincount(key, minlength=row_blocks * column_blocks * per_block)
    counts = -(-exact // unroll) * unroll
    ends = torch.cumsum(counts, 0)
    # Where entry i goes: the padded start of its list, plus its place in the list.
    place = (
        torch.arange(key.numel(), device=key.device) + (ends - counts - (torch.cumsum(exact, 0) - exact))[key]
    )
    total = int(ends[-1])
    idx = torch.full((total,), k, dtype=torch.int32, device=dense.device)
    idx[place] = (ki * width).to(torch.int32)
    val = dense.new_zeros(total, width, group)
    val[place] = padded.view(groups, group, runs, width).permute(0, 2, 3, 1)[gi, ki]
    ends = ends.view(row_blocks, column_blocks, per_block)
    starts = ends - counts.view_as(ends)
    return torch.cat([starts[..., :1], ends], dim=-1).to(torch.int32), idx, val


def runs_alive(mask: Tensor, group: int, width: int, tile: Tile) -> Tensor:
    """Which [group x width] runs hold an alive element, on the padded grid that `pack_row_groups` wants."""
    n, k = mask.shape
    row_blocks, _ = tile.counts((n, k))
    groups, runs = row_blocks * (tile.rows // group), max(1, -(-k // width))
    padded = mask.new_zeros(groups * group, runs * width)
    padded[:n, :k] = mask
    return padded.view(groups, group, runs, width).any(dim=3).any(dim=1)


def round_up(value: int, multiple: int) -> int:
    return math.ceil(value / multiple) * multiple
