"""N:M sparsity: at most `n_alive` of every `n_of` neighbouring columns of a row are alive (2:4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import SparseFormat, Work, check_weight


def fits_nm(mask: Tensor, n_alive: int = 2, n_of: int = 4) -> bool:
    """Whether every run of `n_of` columns (the last one padded with dead ones) has at most `n_alive` alive."""
    n, k = mask.shape
    runs = -(-k // n_of)
    padded = torch.zeros(n, runs * n_of, dtype=torch.bool, device=mask.device)
    padded[:, :k] = mask.bool()
    return bool((padded.view(n, runs, n_of).sum(-1) <= n_alive).all())


@dataclass(frozen=True, eq=False)
class NM(SparseFormat):
    """val [N, K / n_of, n_alive]; meta uint8 of the same shape holds each value's position in its run.

    A run with fewer alive elements is filled with zeros at its first dead positions, so positions are distinct
    and ascending, which is what sparse tensor cores ask of 2:4 metadata.
    """

    name: ClassVar[str] = "N:M"
    shape: tuple[int, int]
    n_alive: int
    n_of: int
    val: Tensor
    meta: Tensor

    @classmethod
    def pack(cls, dense: Tensor, mask: Tensor | None = None, n_alive: int = 2, n_of: int = 4) -> NM:
        """dense [N, K]; raises ValueError where a run has more than `n_alive` alive elements."""
        dense, mask = check_weight(dense, mask, "NM")
        if not 0 < n_alive <= n_of <= 255:
            raise ValueError(f"NM.pack: need 0 < alive <= run length <= 255, got {n_alive}:{n_of}")
        n, k = dense.shape
        runs = -(-k // n_of)
        values = dense.new_zeros(n, runs * n_of)
        values[:, :k] = dense
        alive = torch.zeros(n, runs * n_of, dtype=torch.bool, device=dense.device)
        alive[:, :k] = mask
        values, alive = values.view(n, runs, n_of), alive.view(n, runs, n_of)
        count = alive.sum(-1)
        if bool((count > n_alive).any()):
            row, run = (count > n_alive).nonzero()[0].tolist()
            raise ValueError(
                f"NM.pack: row {row}, columns {run * n_of}..{run * n_of + n_of - 1} have {int(count[row, run])} "
                f"alive elements, {n_alive}:{n_of} allows {n_alive}; use a block or fine-grained format"
            )
        # Alive first, then dead, each in column order; the first n_alive of them, back in column order.
        first = torch.argsort((~alive).to(torch.int8), dim=-1, stable=True)[..., :n_alive]
        position = torch.sort(first, dim=-1).values
        return cls((n, k), n_alive, n_of, values.gather(-1, position).contiguous(), position.to(torch.uint8))

    def unpack(self) -> Tensor:
        n, k = self.shape
        runs = self.val.shape[1]
        full = self.val.new_zeros(n, runs, self.n_of)
        full.scatter_(-1, self.meta.long(), self.val)
        return full.view(n, runs * self.n_of)[:, :k].contiguous()

    def work(self) -> Work:
        macs = self.val.numel()
        return Work(macs, macs, self.shape[0], self.nbytes, 1, self.val.element_size() * 8)

    def describe(self) -> str:
        return f"{self.n_alive}:{self.n_of}"
