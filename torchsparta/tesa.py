"""TeSA: a tensor with sparsity attributes, one attribute per element.

An element is **pruned** (zero), a **constant** (its value is kept, apart from zero) or **alive**; the last
two carry the number of bits that represent them. One signed int8 code per element holds it:

    0   pruned        b > 0   alive in b bits        -b < 0   constant, stored in b bits

The codes (and the constants) are kept *compact*: a dimension along which the attribute does not change has
size 1, so a tensor whose channels are pruned costs one byte per channel, whatever the batch.

Order of attributes: pruned < constant(v, b) < alive(b), each side ordered by bits; constants with different
values are not comparable. That is a lattice: `meet` (both hold: union of pruned, fewer bits) and `join`
(either holds) are commutative, associative, idempotent and absorb each other.

The idea of TeSA is SparTA's (Zheng et al., OSDI 2022); zero and constant are merged there and apart here,
because f(0) != 0 for sigmoid, softmax, a bias and others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from .errors import MaskError

_SHADES = " .:-=+*#%@"


def compact(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Shrink to size 1 every dimension along which none of `tensors` changes.

    The tensors have one rank and sizes that broadcast together; NaN counts as equal to NaN.
    """
    rank = tensors[0].dim()
    out = list(tensors)
    for dim in range(rank):
        if all(t.shape[dim] <= 1 for t in out):
            continue
        if all(_uniform(t, dim) for t in out):
            out = [t.narrow(dim, 0, 1) for t in out]
    return tuple(t.clone() if t.numel() < s.numel() else t for t, s in zip(out, tensors))


def _uniform(t: Tensor, dim: int) -> bool:
    if t.shape[dim] <= 1 or t.stride(dim) == 0:
        return True
    last = t.narrow(dim, t.shape[dim] - 1, 1)
    first = t.narrow(dim, 0, 1)
    if t.is_floating_point():
        return torch.equal(first.nan_to_num(0.5), last.nan_to_num(0.5)) and bool(
            ((t == first) | (t.isnan() & first.isnan())).all()
        )
    return torch.equal(first, last) and bool((t == first).all())


@dataclass(frozen=True, eq=False)
class Quant:
    """Affine quantization of one tensor: real = scale * (q - zero_point), qmin <= q <= qmax, q an integer.

    `scale` and `zero_point` (float64; a zero point need not be an integer, as in LSQ+) broadcast against the
    tensor after `_spread`: per tensor (one value), per channel (N, 1, ...) or per block (one value per
    block). warp: "tanh" if tanh(real) / max|tanh(real)| over the tensor is quantized instead of real
    (DoReFa's weights); what comes out is not warped, so `settled()` quantizes it again to itself.
    """

    scale: Tensor
    zero_point: Tensor
    bits: int
    qmin: int
    qmax: int
    warp: str = "none"

    def settled(self) -> Quant:
        """The parameters of a tensor that is already fake-quantized."""
        return replace(self, warp="none")

    def _spread(self, t: Tensor, shape: Sequence[int]) -> Tensor:
        if t.numel() == 1:
            return t.reshape(())
        if t.dim() != len(shape):
            raise MaskError(
                f"quantization parameters of shape {tuple(t.shape)} do not fit a tensor of shape "
                f"{tuple(shape)}: "
                "expected one value, one per channel, or one per block with the tensor's rank"
            )
        for dim, (have, want) in enumerate(zip(t.shape, shape)):
            if have not in (1, want):
                if want % have:
                    raise MaskError(
                        f"{have} quantization blocks do not divide size {want} of dimension {dim}"
                    )
                t = t.repeat_interleave(want // have, dim)
        return t

    def check_fits(self, shape: Sequence[int]) -> None:
        """Raise MaskError if these parameters cannot belong to a tensor of `shape`."""
        self._spread(self.scale, shape)
        self._spread(self.zero_point, shape)

    def quantize(self, real: Tensor) -> Tensor:
        """The integers (as float64) that represent `real`."""
        scale, zero = self._spread(self.scale, real.shape), self._spread(self.zero_point, real.shape)
        real = real.double()
        if self.warp == "tanh":
            real = torch.tanh(real)
            real = real / real.abs().max().clamp_min(1e-300)
        return torch.clamp(torch.round(real / scale + zero), self.qmin, self.qmax)

    def dequantize(self, q: Tensor) -> Tensor:
        """scale * (q - zero_point), float64."""
        return self._spread(self.scale, q.shape) * (q.double() - self._spread(self.zero_point, q.shape))

    def fake(self, real: Tensor) -> Tensor:
        """What the quantized tensor stands for, in the dtype of `real`."""
        return self.dequantize(self.quantize(real)).to(real.dtype)

    def index(self, dim: int, keep: Tensor, size: int) -> Quant:
        """The parameters of the tensor after `index_select(dim, keep)`; `size` is the dimension before it."""

        def pick(t: Tensor) -> Tensor:
            if t.numel() == 1 or t.dim() <= dim or t.shape[dim] == 1:
                return t
            if t.shape[dim] != size:
                t = t.repeat_interleave(size // t.shape[dim], dim)
            return t.index_select(dim, keep)

        return replace(self, scale=pick(self.scale), zero_point=pick(self.zero_point))

    def __str__(self) -> str:
        kind = "per tensor" if self.scale.numel() == 1 else f"{self.scale.numel()} scales"
        return f"int{self.bits} [{self.qmin}, {self.qmax}] {kind}"


@dataclass(frozen=True, eq=False)
class TeSA:
    """Sparsity attributes of one tensor. Build one with `from_mask`, `dense`, `constant` or `from_codes`.

    shape: the tensor's. code: int8, each dimension 1 or full. value: float64 constants in the layout of
    `code`, None when there are none. quant: how alive elements are quantized, if they are. confidence: 1.0
    where a rule proved it, less where scrambling observed it.
    """

    shape: tuple[int, ...]
    code: Tensor
    value: Tensor | None = None
    quant: Quant | None = None
    confidence: float = field(default=1.0)

    # -- making one ----------------------------------------------------------------------------------------
    @staticmethod
    def from_codes(
        shape: Sequence[int],
        code: Tensor,
        value: Tensor | None = None,
        quant: Quant | None = None,
        confidence: float = 1.0,
    ) -> TeSA:
        """A TeSA from (broadcastable) codes; stored compact. Constants (code < 0) need `value`."""
        shape = tuple(int(s) for s in shape)
        code = code.detach().to("cpu", torch.int8)
        code = code.reshape((1,) * (len(shape) - code.dim()) + tuple(code.shape))
        if any(c not in (1, s) for c, s in zip(code.shape, shape)) or code.dim() != len(shape):
            raise MaskError(
                f"codes of shape {tuple(code.shape)} do not broadcast to a tensor of shape {shape}"
            )
        const = code < 0
        if not bool(const.any()):
            return TeSA(shape, compact(code)[0], None, quant, confidence)
        if value is None:
            raise MaskError("a TeSA with constant elements (code < 0) needs their values")
        value = torch.where(const, value.detach().double().cpu().expand(code.shape), 0.0)
        code, value = compact(code, value)
        return TeSA(shape, code, value, quant, confidence)

    @staticmethod
    def dense(shape: Sequence[int], bits: int = 32) -> TeSA:
        """Everything alive in `bits` bits."""
        return TeSA.from_codes(shape, torch.full((1,) * len(shape), bits))

    @staticmethod
    def from_mask(mask: Tensor, bits: int = 32, quant: Quant | None = None) -> TeSA:
        """Pruned where `mask` is zero (or False), alive in `bits` bits elsewhere."""
        alive = (mask.detach().cpu() != 0).to(torch.int8)
        return TeSA.from_codes(mask.shape, alive * (quant.bits if quant else bits), quant=quant)

    @staticmethod
    def constant(value: Tensor, bits: int = 32) -> TeSA:
        """Every element a constant; those that are zero are pruned."""
        value = value.detach().double().cpu()
        return TeSA.from_codes(value.shape, torch.where(value == 0, 0, -bits), value)

    # -- reading it ----------------------------------------------------------------------------------------
    @property
    def pruned(self) -> Tensor:
        """bool, full shape."""
        return (self.code == 0).expand(self.shape)

    @property
    def mask(self) -> Tensor:
        """bool, full shape: not pruned (alive or constant)."""
        return (self.code != 0).expand(self.shape)

    @property
    def is_constant(self) -> Tensor:
        """bool, full shape: a constant other than a pruned zero."""
        return (self.code < 0).expand(self.shape)

    @property
    def bits(self) -> Tensor:
        """int8, full shape: bits that represent each element, 0 where pruned."""
        return self.code.abs().expand(self.shape)

    @property
    def values(self) -> Tensor:
        """float64, full shape: the constants, 0 elsewhere."""
        if self.value is None:
            return torch.zeros((), dtype=torch.float64).expand(self.shape)
        return self.value.expand(self.shape)

    @property
    def numel(self) -> int:
        return int(torch.Size(self.shape).numel())

    @property
    def nbytes(self) -> int:
        """Bytes that this TeSA itself occupies."""
        return self.code.numel() + (0 if self.value is None else 8 * self.value.numel())

    def density(self) -> float:
        """Share of elements that are not pruned, 0 to 1; 1.0 for an empty tensor."""
        return 1.0 if self.code.numel() == 0 else float((self.code != 0).double().mean())

    def sparsity(self) -> float:
        """Share of elements that are pruned, 0 to 1."""
        return 1.0 - self.density()

    def constant_share(self) -> float:
        """Share of elements that are constants other than zero, 0 to 1."""
        return 0.0 if self.code.numel() == 0 else float((self.code < 0).double().mean())

    def density_along(self, dim: int) -> Tensor:
        """float64 [shape[dim]]: density of each slice along `dim` (rows: 0, columns: 1, channels: 1)."""
        dim = dim % max(len(self.shape), 1)
        other = [d for d in range(len(self.shape)) if d != dim]
        dense = (self.code != 0).double()
        dense = dense.mean(other) if other else dense
        return dense.expand(self.shape[dim])

    def density_blocks(self, block: Sequence[int]) -> Tensor:
        """Density of each block of the last len(block) dimensions; ragged edges are averaged over what is
        there.

        Returns float64 of the shape (..., ceil(size / block), ...).
        """
        dense = (self.code != 0).double().expand(self.shape)
        ones = torch.ones((), dtype=torch.float64).expand(self.shape)
        return _block_sum(dense, block) / _block_sum(ones, block)

    def dead_slices(self, dim: int) -> Tensor:
        """bool [shape[dim]]: slices along `dim` in which everything is pruned."""
        return self.density_along(dim) == 0

    def bit_histogram(self) -> dict[int, int]:
        """Number of elements by bit width; 0 is pruned."""
        widths, counts = self.code.abs().unique(return_counts=True)
        times = self.numel // max(self.code.numel(), 1)
        return {int(w): int(c) * times for w, c in zip(widths, counts)}

    # -- algebra -------------------------------------------------------------------------------------------
    def meet(self, other: TeSA) -> TeSA:
        """Both hold: pruned in either is pruned, constant over alive, the fewer bits. SparTA's merge."""
        a, b, va, vb = self._aligned(other)
        bits = torch.minimum(a.abs(), b.abs())
        clash = (a < 0) & (b < 0) & (va != vb)
        const = ((a < 0) | (b < 0)) & ~clash
        code = torch.where((a == 0) | (b == 0) | clash, 0, torch.where(const, -bits, bits))
        value = torch.where(a < 0, va, vb)
        return TeSA.from_codes(
            self.shape, code, value, self.quant or other.quant, min(self.confidence, other.confidence)
        )

    def join(self, other: TeSA) -> TeSA:
        """Either holds: alive over constant over pruned, the more bits; unequal constants become alive."""
        a, b, va, vb = self._aligned(other)
        bits = torch.maximum(a.abs(), b.abs())
        same = (a < 0) & (b < 0) & (va == vb)
        const = same | ((a < 0) & (b == 0)) | ((b < 0) & (a == 0))
        code = torch.where(const, -bits, bits)
        value = torch.where(a < 0, va, vb)
        return TeSA.from_codes(
            self.shape, code, value, self.quant or other.quant, min(self.confidence, other.confidence)
        )

    __and__ = meet
    __or__ = join

    def same_as(self, other: TeSA) -> bool:
        """Equal attributes and constants (equality of dataclasses would compare tensors elementwise)."""
        if self.shape != other.shape:
            return False
        a, b, va, vb = self._aligned(other)
        return torch.equal(a, b) and torch.equal(va, vb)

    def _aligned(self, other: TeSA) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.shape != other.shape:
            raise MaskError(
                f"two TeSAs of different shapes, {self.shape} and {other.shape}, cannot be merged"
            )
        zero = torch.zeros((), dtype=torch.float64)
        a, b, va, vb = torch.broadcast_tensors(
            self.code,
            other.code,
            zero if self.value is None else self.value,
            zero if other.value is None else other.value,
        )
        return a, b, va, vb

    def index_select(self, dim: int, keep: Tensor) -> TeSA:
        """The TeSA of `tensor.index_select(dim, keep)`; `keep` int64 indices."""
        shape = list(self.shape)
        size, shape[dim] = shape[dim], int(keep.numel())
        pick = (lambda t: t) if self.code.shape[dim] == 1 else (lambda t: t.index_select(dim, keep))
        value = None if self.value is None else pick(self.value)
        quant = self.quant.index(dim, keep, size) if self.quant else None
        return TeSA.from_codes(shape, pick(self.code), value, quant, self.confidence)

    def apply(self, tensor: Tensor) -> Tensor:
        """The masked tensor: zero where pruned, the constants where constant, fake-quantized where
        quantized."""
        if tuple(tensor.shape) != self.shape:
            raise MaskError(
                f"a TeSA of shape {self.shape} cannot mask a tensor of shape {tuple(tensor.shape)}"
            )
        code = self.code.to(tensor.device)
        zero = torch.zeros((), dtype=tensor.dtype, device=tensor.device)
        out = torch.where(code != 0, tensor, zero)
        if self.quant is not None:
            out = torch.where(code != 0, self.quant.fake(out), zero)
        if self.value is not None:
            out = torch.where(code < 0, self.value.to(tensor.device, tensor.dtype), out)
        return out

    # -- seeing it -----------------------------------------------------------------------------------------
    def heatmap(self, rows: int = 8, columns: int = 48) -> str:
        """A text picture, at most rows x columns characters: ' ' nothing alive … '@' everything alive."""
        if not self.shape or self.numel == 0:
            return ""
        grid = (self.code != 0).double()
        if grid.dim() == 1:
            grid = grid.expand(self.shape).reshape(1, -1)
        else:  # the two largest dimensions, averaged over the others
            order = sorted(range(grid.dim()), key=lambda d: (-self.shape[d], d))[:2]
            other = [d for d in range(grid.dim()) if d not in order]
            grid = grid.mean(other) if other else grid
            first, second = sorted(order)
            grid = grid.expand(self.shape[first], self.shape[second])
        block = [-(-grid.shape[0] // rows), -(-grid.shape[1] // columns)]
        cells = _block_sum(grid, block) / _block_sum(torch.ones_like(grid), block)
        top = len(_SHADES) - 1
        return "\n".join(
            "".join(_SHADES[0 if c == 0 else max(1, int(c * top + 1e-9))] for c in row)
            for row in cells.tolist()
        )

    def __str__(self) -> str:
        parts = [f"{'x'.join(map(str, self.shape)) or 'scalar'}", f"{self.sparsity():.1%} pruned"]
        if self.value is not None:
            parts.append(f"{self.constant_share():.1%} constant")
        widths = [b for b in self.bit_histogram() if b]
        if widths:
            parts.append("/".join(map(str, widths)) + " bits")
        if self.quant is not None:
            parts.append(str(self.quant))
        if self.confidence < 1:
            parts.append(f"confidence {self.confidence:.4g} (scrambling)")
        return ", ".join(parts)

    __repr__ = __str__


def _block_sum(t: Tensor, block: Sequence[int]) -> Tensor:
    for i, size in enumerate(block):
        dim = t.dim() - len(block) + i
        pad = -t.shape[dim] % size
        if pad:
            zeros = t.new_zeros([pad if d == dim else s for d, s in enumerate(t.shape)])
            t = torch.cat([t, zeros], dim)
        t = t.unflatten(dim, (-1, size)).sum(dim + 1)
    return t
