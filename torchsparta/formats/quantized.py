"""Quantised weights: int8 and int4 values with one scale per output channel, inside any other format.

w[n, k] = scale[n] * q[n, k], symmetric (no zero point): a pruned element is exactly zero in every format.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from .base import SparseFormat, Tile, Work, check_weight
from .block import Block
from .dense import Dense
from .fine import FineGrained

QMAX = {8: 127, 4: 7}
"""Largest magnitude by bit width; -128 and -8 stay unused, so that negation is exact (NNI does the same)."""


def channel_scale(dense: Tensor, bits: int) -> Tensor:
    """Per-row scale [N] float32: max |w| / qmax; a row of zeros gets 1."""
    peak = dense.abs().amax(dim=1).float() if dense.shape[1] else dense.new_zeros(dense.shape[0]).float()
    return torch.where(peak > 0, peak / QMAX[bits], torch.ones_like(peak))


def quantize(dense: Tensor, scale: Tensor, bits: int) -> Tensor:
    """int8 tensor of round-half-even(w / scale), clamped to +-qmax; shape [N, K]."""
    q = torch.round(dense.float() / scale[:, None])
    return q.clamp(-QMAX[bits], QMAX[bits]).to(torch.int8)


def pack_nibbles(values: Tensor) -> Tensor:
    """int8 values in [-8, 7] to uint8, two a byte, the even element in the low nibble; flat."""
    flat = values.reshape(-1)
    if flat.numel() % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    pair = (flat.view(-1, 2).to(torch.int16) + 8).to(torch.uint8)
    return pair[:, 0] | (pair[:, 1] << 4)


def unpack_nibbles(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `pack_nibbles`."""
    pair = torch.stack([packed & 15, packed >> 4], dim=-1).reshape(-1)
    count = 1
    for d in shape:
        count *= d
    return (pair[:count].to(torch.int8) - 8).view(shape)


@dataclass(frozen=True, eq=False)
class Quantized(SparseFormat):
    """`inner` holds the integers (as nibbles in a flat uint8 tensor when `bits` is 4), scale [N] float32."""

    name: ClassVar[str] = "quantized"
    bits: ClassVar[int] = 8
    inner: SparseFormat
    scale: Tensor

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.inner.shape

    @classmethod
    def pack(
        cls,
        dense: Tensor,
        mask: Tensor | None = None,
        scale: Tensor | None = None,
        block: tuple[int, int] | None = None,
        fine: bool = False,
        tile: Tile | None = None,
        group: int | None = None,
    ) -> Quantized:
        """dense [N, K] real weights. `block` stores alive blocks, `fine` alive elements, neither everything.

        group: rows that share a list (blocks) or a panel (dense), see `Block` and `Dense`.
        scale [N] or a scalar: the quantizer's own scale where there is one; default max |w| / qmax.
        """
        who = cls.__name__
        dense, mask = (
            check_weight(dense, mask, who) if mask is not None else check_weight(dense, dense != 0, who)
        )
        scale = channel_scale(dense, cls.bits) if scale is None else scale.reshape(-1).float()
        if scale.numel() == 1:
            scale = scale.expand(dense.shape[0])
        if scale.numel() != dense.shape[0]:
            raise ValueError(
                f"{who}.pack: {scale.numel()} scales for {dense.shape[0]} rows; give one per row or one in all"
            )
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise ValueError(f"{who}.pack: scales must be finite and positive, got {scale.min().item()}")
        q = quantize(dense, scale, cls.bits)
        inner: SparseFormat
        if block is not None:
            inner = Block.pack(q, mask, block, tile, group)
        elif fine:
            inner = FineGrained.pack(q, mask, tile)
        else:
            inner = Dense.pack(q, None, tile, group)
        return cls.wrap(inner, scale.contiguous())

    @classmethod
    def wrap(cls, inner: SparseFormat, scale: Tensor) -> Quantized:
        return cls(inner, scale)

    def integers(self) -> SparseFormat:
        """The format over plain int8 values."""
        return self.inner

    def unpack_integers(self) -> Tensor:
        """q [N, K] int8."""
        return self.integers().unpack()

    def unpack(self) -> Tensor:
        return self.unpack_integers().float() * self.scale[:, None]

    def tensors(self) -> dict[str, Tensor]:
        return {**self.inner.tensors(), "scale": self.scale}

    def to(self, device: torch.device | str) -> Quantized:
        return replace(self, inner=self.inner.to(device), scale=self.scale.to(device))

    def work(self) -> Work:
        inner = self.integers().work()
        return replace(inner, storage_bytes=self.nbytes, bits=self.bits)

    def describe(self) -> str:
        return f"int{self.bits} {self.inner.describe()}"


@dataclass(frozen=True, eq=False)
class QuantizedInt8(Quantized):
    """Int8 values with a scale per output channel."""

    name: ClassVar[str] = "int8"
    bits: ClassVar[int] = 8


@dataclass(frozen=True, eq=False)
class Int4(Quantized):
    """Int4 values, two a byte, with a scale per output channel; `val_shape` is the shape of the values."""

    name: ClassVar[str] = "int4"
    bits: ClassVar[int] = 4
    val_shape: tuple[int, ...] = ()

    @classmethod
    def wrap(cls, inner: SparseFormat, scale: Tensor) -> Int4:
        packed = replace(inner, val=pack_nibbles(inner.val))  # type: ignore[type-var, attr-defined]
        return cls(packed, scale, tuple(inner.val.shape))  # type: ignore[attr-defined]

    def integers(self) -> SparseFormat:
        values = unpack_nibbles(self.inner.val, self.val_shape)  # type: ignore[attr-defined]
        return replace(self.inner, val=values)  # type: ignore[type-var]
