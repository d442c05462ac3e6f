"""Packed weights: a constant matmul operand in the order that its kernel reads it, and whether it still holds.

Three things tell that a weight has changed since it was packed. Its version counter moves with every write that
goes through PyTorch on the parameter itself. Its address moves when `.data` is swapped; the old memory is held
until then, so that the allocator cannot hand the same address to the new one. Writes through `.data`, a NumPy
view or a pointer leave both alone: weights up to 16 KiB are compared in full, of larger ones about a hundred
elements spread over the memory. A write past PyTorch to a few elements of a large weight is the one change that
this does not see; options={"pack_weights": False} is for programs that do that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

from .buffers import huge_pages
from .emit.common import Pack
from .graph import TORCH_DTYPES

_COMPARED_BYTES = 16384  # weights up to this size are compared in full
_SAMPLES = 96
_WORD = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class Packed:
    """`tensor` is the packed copy of a weight; the rest says of what."""

    tensor: torch.Tensor
    address: int
    version: int
    memory: torch.UntypedStorage
    sample: np.ndarray | None  # a view of the weight's own memory; None where the host cannot read it
    seen: bytes

    @staticmethod
    def of(source: torch.Tensor, layout: Pack) -> Packed:
        """Packs `source` as it is now."""
        # AOTAutograd watches the operators of a first call through a mode, at 50 µs each; these are not the user's.
        with _disable_current_modes():
            sample = _sample(source)
            seen = sample.tobytes() if sample is not None else b""
            address, version = source.data_ptr(), source._version
            return Packed(pack(source, layout), address, version, source.untyped_storage(), sample, seen)

    def current(self, source: torch.Tensor) -> bool:
        """Does the packed copy hold what `source` holds now?"""
        if source.data_ptr() != self.address or source._version != self.version:
            return False
        return self.sample is None or self.sample.tobytes() == self.seen


def _sample(source: torch.Tensor) -> np.ndarray | None:
    if source.device.type != "cpu" or source.numel() == 0:
        return None
    extent = 1 + sum((size - 1) * stride for size, stride in zip(source.shape, source.stride()))
    flat = torch.as_strided(source.detach(), (extent,), (1,), source.storage_offset())
    words = flat.view(_WORD[source.dtype.itemsize]).numpy()
    if words.nbytes <= _COMPARED_BYTES:
        return words
    return words[:: extent // _SAMPLES | 1]  # an odd step visits every column of a matrix of even width


def pack(source: torch.Tensor, layout: Pack) -> torch.Tensor:
    """`source`, read as the matrix that `layout` describes, in [n tile][k][block] order, zero padded, flat.

    With pairs, [n tile][k / pairs][block][pairs].
    """
    *outer, last = layout.n_shape
    k_shape, k_strides = layout.k_shape or (layout.k,), layout.k_strides or (layout.k_stride,)
    strides = (*layout.n_strides[:-1], *k_strides, layout.n_strides[-1])
    with torch.no_grad():
        start = source.storage_offset() + layout.offset
        shape = (*outer, *k_shape, last)
        back = [d for d, st in enumerate(strides) if st < 0]  # axes that walk memory backwards
        start += sum(strides[d] * (shape[d] - 1) for d in back)
        rows = torch.as_strided(source.detach(), shape, [abs(st) for st in strides], start)
        rows = rows.flip(back) if back else rows
        rows = rows.reshape(math.prod(outer), layout.k, last)
        full, rest = divmod(last, layout.block)
        depth = layout.depth or layout.k
        steps = (len(rows), layout.tiles, depth // layout.pairs, layout.block, layout.pairs)
        dtype = source.dtype if layout.parts > 1 else TORCH_DTYPES[layout.dtype]
        out = huge_pages(torch.empty(math.prod(steps), dtype=dtype, device=source.device)).view(steps)
        by_k = out.transpose(3, 4)  # outer, tile, k / pairs, pairs, column
        if layout.k < depth:
            rows = torch.nn.functional.pad(rows, (0, 0, 0, depth - layout.k))
        rows = rows.unflatten(1, (-1, layout.pairs))
        if full:
            by_k[:, :full] = rows[..., : last - rest].unflatten(3, (full, layout.block)).movedim(3, 1)
        if full < layout.tiles:
            out[:, full:] = 0
        if rest:
            by_k[:, full, :, :, :rest] = rows[..., last - rest :]
        return split(out, layout) if layout.parts > 1 else out.flatten()


def split(values: torch.Tensor, layout: Pack) -> torch.Tensor:
    """`values` as `layout.parts` numbers of its type that add up to them: [part, element], flat."""
    found, rest = [], values
    for _ in range(layout.parts):
        found.append(rest.to(TORCH_DTYPES[layout.dtype]))
        rest = rest - found[-1].to(values.dtype)
    return torch.stack(found).flatten()
