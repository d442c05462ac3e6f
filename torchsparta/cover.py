"""Cover one weight by formats at the least predicted time; stay dense, and say so, when dense is faster.

Candidates: dense; fine-grained; blocks of each size; N:M where the mask fits; and, for each block size, a mixed
cover: blocks where they are cheaper than their alive elements one by one, fine-grained for the rest. Costs are
additive over disjoint blocks, so for one grid of blocks taking exactly those blocks is optimal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .cost import BESIDE_BLOCKS, Prediction, Rates, dense_time, fine_tile, predict_parts, time_of
from .formats import (
    NM,
    Block,
    Dense,
    FineGrained,
    Int4,
    Quantized,
    QuantizedInt8,
    SparseFormat,
    Tile,
    fits_nm,
)
from .formats.base import Work
from .rates import rates_for
from .specialise.rows import EXACT_COLUMNS
from .vector_unit import vector_unit

BLOCKS = ((2, 1), (4, 1), (8, 1), (16, 1), (32, 1), (4, 4), (8, 8), (16, 16), (32, 32))
DOT_BLOCKS = (16, 32)
BLOCK_TILE = Tile(32)
ENTRY_BYTES = 4
MIXED_GAIN = 0.95
WORTH_S = 3e-6  # of predicted gain; below it a layer stays PyTorch's

Packer = Callable[[Tensor, Tensor], tuple[SparseFormat, ...]]


@dataclass(frozen=True, eq=False)
class Cover:
    """The chosen way. parts is None where PyTorch's dense product is predicted to be fastest; else the weight is packed
    when they are first asked for.

    table: every candidate's prediction, the chosen one first; why: one sentence for the report; packer: packs new
    values of the same weight the same way (training).
    """

    pack: Callable[[], tuple[SparseFormat, ...]] | None
    packer: Packer
    table: tuple[Prediction, ...]
    why: str
    dense_s: float

    @cached_property
    def parts(self) -> tuple[SparseFormat, ...] | None:
        return None if self.pack is None else self.pack()

    @property
    def predicted_s(self) -> float:
        return self.table[0].time_s

    def __str__(self) -> str:
        return "\n".join([self.why, *map(str, self.table)])


def dense_pack(weight: Tensor, mask: Tensor) -> tuple[SparseFormat, ...]:
    return (Dense.pack(weight, mask, BLOCK_TILE),)


def fine_pack(weight: Tensor, mask: Tensor) -> tuple[SparseFormat, ...]:
    density = float(mask.float().mean()) if mask.numel() else 0.0
    return (FineGrained.pack(weight, mask, fine_tile(weight.shape[1], density)),)


def block_pack(block: tuple[int, int]) -> Packer:
    return lambda weight, mask: (Block.pack(weight, mask, block, BLOCK_TILE),)


def dot_pack(block: int) -> Packer:
    """Square blocks, whole, for `tl.dot`."""
    return lambda weight, mask: (Block.pack(weight, mask, (block, block), Tile(block), block),)


def dense_dot_pack(weight: Tensor, mask: Tensor) -> tuple[SparseFormat, ...]:
    return (Dense.pack(weight, mask, Tile(64), 64),)


def nm_pack(n_alive: int, n_of: int) -> Packer:
    return lambda weight, mask: (NM.pack(weight, mask, n_alive, n_of),)


def mixed_pack(block: tuple[int, int], least: int) -> Packer:
    """Blocks with at least `least` alive elements as blocks, the rest fine-grained."""

    def pack(weight: Tensor, mask: Tensor) -> tuple[SparseFormat, ...]:
        chosen = _blocks_with(mask, block, least)
        return (
            Block.pack(weight, mask & chosen, block, BLOCK_TILE),
            FineGrained.pack(weight, mask & ~chosen, BLOCK_TILE, vector_unit(weight.device).mixed_unroll),
        )

    return pack


def quantised_pack(inner: Packer, bits: int, scale: Tensor) -> Packer:
    """The same layout over int8 or int4 values with a given scale per row."""
    cls: type[Quantized] = {8: QuantizedInt8, 4: Int4}[bits]  # type: ignore[assignment]

    def pack(weight: Tensor, mask: Tensor) -> tuple[SparseFormat, ...]:
        q = torch.round(weight.double() / scale.double()[:, None]).to(torch.int8)
        return tuple(cls.wrap(part, scale) for part in inner(q, mask))

    return pack


class _Counts:
    """Alive elements of each block of a mask, for blocks of powers of two: each grid is halved from the one before."""

    def __init__(self, mask: Tensor) -> None:
        n, k = mask.shape
        padded = torch.zeros(-(-n // 64) * 64, -(-k // 64) * 64, dtype=torch.int16, device=mask.device)
        padded[:n, :k] = mask
        self.total = int(mask.sum())
        self.rows = int(mask.any(1).sum())
        self._grids: dict[tuple[int, int], Tensor] = {(1, 1): padded}

    def at(self, block: tuple[int, int]) -> Tensor:
        """int16 [rows / bm, columns / bk] of the weight padded to multiples of 64."""
        if block not in self._grids:
            bm, bk = block
            if bk > 1:
                finer = self.at((bm, bk // 2))
                self._grids[block] = finer[:, 0::2] + finer[:, 1::2]
            else:
                finer = self.at((bm // 2, 1))
                self._grids[block] = finer[0::2] + finer[1::2]
        return self._grids[block]


def _blocks_with(mask: Tensor, block: tuple[int, int], least: int) -> Tensor:
    """bool [N, K]: elements of blocks that hold at least `least` alive ones."""
    grid = _Counts(mask).at(block) >= least
    wide = grid.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return wide[: mask.shape[0], : mask.shape[1]]


def _work(macs: int, lists: int, group: int, runs: int, itemsize: int = 4) -> Work:
    return Work(macs, macs // group, lists, macs * itemsize + runs * ENTRY_BYTES, group, itemsize * 8)


def _fine_work(mask: Tensor, counts: _Counts, itemsize: int) -> Work:
    n, k = mask.shape
    density = counts.total / max(1, mask.numel())
    columns = fine_tile(k, density).columns or max(1, k)
    # Lists that hold anything, as if alive elements were scattered over the rows that have any.
    within = counts.total / max(1, counts.rows * k)
    lists = round(counts.rows * -(-k // columns) * (1 - (1 - min(1.0, within)) ** min(columns, k)))
    # Lists are padded to a multiple of the sums that a row keeps.
    padded = counts.total + lists * (vector_unit(mask.device).fine_unroll - 1) // 2
    return _work(padded, lists, 1, padded, itemsize)


def _block_work(grid: Tensor, block: tuple[int, int], itemsize: int) -> Work:
    alive = grid > 0
    group = min(block[0], vector_unit(grid.device).max_group)
    per_block = block[0] // group
    lists = int(torch.count_nonzero(alive.any(1))) * per_block
    blocks = int(torch.count_nonzero(alive))
    return _work(blocks * block[0] * block[1], lists, group, blocks * per_block, itemsize)


@dataclass(frozen=True)
class _Candidate:
    name: str
    packer: Packer
    works: tuple[tuple[str, Work], ...]
    group: int


def _dot_candidates(mask: Tensor, counts: _Counts, itemsize: int, suffix: str) -> list[_Candidate]:
    n, k = mask.shape
    whole = _work(-(-n // 64) * 64 * k, 0, 64, 0, itemsize)
    found = [_Candidate("dense (tl.dot)", dense_dot_pack, (("dotdense" + suffix, whole),), 64)]
    for b in DOT_BLOCKS:
        blocks = int(torch.count_nonzero(counts.at((b, b))))
        work = _work(blocks * b * b, 0, b, blocks, itemsize)
        found.append(_Candidate(f"block {b}x{b} (tl.dot)", dot_pack(b), ((f"dot{b}{suffix}", work),), b))
    return found


def _candidates(mask: Tensor, counts: _Counts, rates: Rates, itemsize: int, suffix: str) -> list[_Candidate]:
    n, k = mask.shape
    rows = -(-n // BLOCK_TILE.rows) * BLOCK_TILE.rows
    most = vector_unit(mask.device).max_group
    found = [
        _Candidate(
            "dense (specialised)",
            dense_pack,
            (("dense" + suffix, _work(rows * k, rows // most, most, 0, itemsize)),),
            most,
        )
    ]
    fine = _fine_work(mask, counts, itemsize)
    found.append(_Candidate("fine-grained", fine_pack, (("1" + suffix, fine),), 1))
    for block in BLOCKS:
        group = min(block[0], most)
        grid = counts.at(block)
        work = _block_work(grid, block, itemsize)
        kind = f"{group}{suffix}"
        found.append(_Candidate(f"block {block[0]}x{block[1]}", block_pack(block), ((kind, work),), group))
        if group < 2:
            continue
        ratio = rates.mac(kind) / rates.mac(BESIDE_BLOCKS + suffix)
        least = max(1, int(ratio * block[0] * block[1]) + 1)
        inside = grid * (grid >= least)
        rest = counts.total - int(inside.sum())
        if not 0 < rest < counts.total:
            continue
        lists = min(counts.rows, rest)
        padded = rest + lists * (vector_unit(mask.device).mixed_unroll - 1) // 2
        works = (
            (kind, _block_work(inside, block, itemsize)),
            (BESIDE_BLOCKS + suffix, _work(padded, lists, 1, rest, itemsize)),
        )
        name = f"block {block[0]}x{block[1]} + fine-grained"
        found.append(_Candidate(name, mixed_pack(block, least), works, group))
    if not suffix and counts.total > mask.numel() // 4 and fits_nm(mask, 2, 4):
        macs = n * (-(-k // 4)) * 2
        found.append(_Candidate("2:4", nm_pack(2, 4), (("nm", _work(macs, n, 1, macs, itemsize)),), 1))
    return found


def cover(
    weight: Tensor,
    mask: Tensor,
    tokens: int,
    images: int = 1,
    rates: Rates | None = None,
    bits: int = 32,
    scale: Tensor | None = None,
    extra_s: float = 0.0,
    dots: bool = True,
    integer: bool = False,
    panel_factor: float = 1.0,
) -> Cover:
    """The fastest predicted way to multiply `images` times `tokens` tokens by weight [N, K] with this mask.

    bits 8 or 4 with `scale` [N]: the weight is quantised; its values are stored as integers. extra_s: time that
    only the dense way spends, such as an activation that a specialised kernel fuses. dots=False leaves out the
    block-dot kernel, which convolutions cannot use. integer: int8 x int8 arithmetic (bits 8), input quantised on the
    way in; PyTorch's dense product is no alternative then. panel_factor: see `cost.time_of`.
    """
    rates = rates or rates_for(weight.device)
    n, k = weight.shape
    mask = mask.bool()
    quantised = bits in (8, 4) and scale is not None
    if integer and not (quantised and bits == 8):
        raise ValueError("cover: integer arithmetic needs 8-bit weights and their scale")
    suffix = ("/i8" if integer else f"/int{bits}") if quantised else ""
    itemsize = 1 if quantised else weight.element_size()
    counts = _Counts(mask)
    options = _candidates(mask, counts, rates, itemsize, suffix)
    if (
        integer
    ):  # sums of more columns than this are not exact in the float32 that the row-group kernel adds in
        options = [o for o in options if o.name == "fine-grained" or k <= EXACT_COLUMNS]
    if dots:
        options += _dot_candidates(mask, counts, itemsize, suffix)
    ways: list[tuple[Prediction, _Candidate | None]] = []
    for option in options:
        time_s = time_of((n, k), option.works, tokens, images, rates, option.group, integer, panel_factor)
        flops = 2 * sum(w.macs for _, w in option.works) * tokens * images
        nbytes = sum(w.storage_bytes for _, w in option.works)
        name = f"int{bits} {option.name}" if quantised else option.name
        ways.append((Prediction(name, time_s, flops, nbytes), option))
    # A mixed cover walks twice as many lists; a gain within the error of the model is not worth that.
    single = min(p.time_s for p, o in ways if o is not None and len(o.works) == 1)
    ways = [(p, o) for p, o in ways if o is None or len(o.works) == 1 or p.time_s < MIXED_GAIN * single]
    dense_s = dense_time((n, k), tokens * images, rates) + extra_s
    dense = Prediction(
        "dense (PyTorch)", dense_s, 2 * n * k * tokens * images, weight.numel() * weight.element_size()
    )
    if not integer:
        ways.append((dense, None))
    # A layer that is left as it is keeps its class and its weight; a gain below the cost of a call is not worth those.
    ways.sort(key=lambda way: way[0].time_s - (0.0 if way[1] else WORTH_S))
    best, chosen = ways[0]
    table = tuple(p for p, _ in ways)
    share = counts.total / mask.numel() if mask.numel() else 1.0
    runner = f"; next: {ways[1][0].format}, {ways[1][0].time_s * 1e6:.0f} us" if len(ways) > 1 else ""
    head = f"{1 - share:.1%} pruned, {tokens * images} tokens: "
    if chosen is None:
        if len(ways) > 1 and ways[1][0].time_s < dense_s:
            runner += f", which gains less than {WORTH_S * 1e6:.0f} us"
        why = head + f"stays dense, predicted {dense_s * 1e6:.0f} us{runner}"
        return Cover(None, dense_pack, table, why, dense_s)
    packer = quantised_pack(chosen.packer, bits, scale) if quantised and scale is not None else chosen.packer
    why = head + f"{best.format}, predicted {best.time_s * 1e6:.0f} us, dense {dense_s * 1e6:.0f} us{runner}"
    return Cover(lambda: packer(weight, mask), packer, table, why, dense_s)


def predicted_by_parts(
    parts: tuple[SparseFormat, ...], tokens: int, rates: Rates | None = None
) -> Prediction:
    """What the model says about parts that are already packed."""
    return predict_parts(parts, tokens, rates or rates_for("cpu"))


__all__ = ["BLOCKS", "Cover", "cover", "predicted_by_parts"]
