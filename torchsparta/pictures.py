"""Small pictures of sparse tensors as PNG data URIs: where a TeSA is alive, and which format stores what."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from .formats import NM, Block, Dense, FineGrained, SparseFormat
from .formats.quantized import Quantized
from .tesa import TeSA

CELLS = (20, 32)
"""Most rows and columns of a picture; a cell shows the mean over its elements."""

PAPER = (236, 233, 226)
ALIVE, CONSTANT = (46, 134, 171), (237, 174, 73)
PART_COLOURS = {
    "block": (46, 134, 171),
    "fine-grained": (209, 73, 91),
    "N:M": (102, 161, 130),
    "dense": (91, 75, 138),
}
"""Red, green and blue of each format in a picture of a cover."""


def density_grid(alive: Tensor, shape: Sequence[int], cells: tuple[int, int] = CELLS) -> Tensor:
    """float32 [rows, columns] in 0 … 1: share of alive elements in each cell of the two largest dimensions.

    alive: 0/1 of `shape`, or compact (size 1 where a dimension is uniform), as a TeSA's code is.
    """
    grid = alive.float()
    shape = tuple(shape)
    if not shape:
        return grid.reshape(1, 1)
    if len(shape) == 1:
        return _cells(grid.expand(shape).reshape(1, -1), cells)
    largest = sorted(sorted(range(len(shape)), key=lambda d: (-shape[d], d))[:2])
    other = [d for d in range(len(shape)) if d not in largest]
    grid = grid.mean(other) if other else grid
    return _cells(grid.expand(shape[largest[0]], shape[largest[1]]), cells)


def _cells(grid: Tensor, cells: tuple[int, int]) -> Tensor:
    if 0 in grid.shape:
        return torch.zeros(1, 1)
    size = (min(cells[0], grid.shape[0]), min(cells[1], grid.shape[1]))
    return torch.nn.functional.adaptive_avg_pool2d(grid[None, None].float(), size)[0, 0]


def png_uri(rgb: Tensor) -> str:
    """uint8 [rows, columns, 3] as a data URI."""
    rows, columns, _ = rgb.shape
    raw = b"".join(b"\0" + bytes(row.reshape(-1).tolist()) for row in rgb)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    image = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(raw, 9))
        + chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(image).decode()


def paint(layers: Sequence[tuple[Tensor, tuple[int, int, int]]]) -> Tensor:
    """Layers of (density, colour) on paper, as uint8 [rows, columns, 3]. A cell's colours mix by their densities.

    A cell with anything alive is never quite paper: one element in a thousand should be seen.
    """
    rows, columns = layers[0][0].shape
    paper = torch.tensor(PAPER).float().expand(rows, columns, 3)
    total = sum((d for d, _ in layers), torch.zeros(rows, columns))
    mixed = sum((d[..., None] * torch.tensor(c).float() for d, c in layers), torch.zeros(rows, columns, 3))
    mixed = mixed / total.clamp(min=1e-9)[..., None]
    strength = torch.where(total > 0, 0.15 + 0.85 * total.clamp(max=1.0), torch.zeros_like(total))[..., None]
    return (paper * (1 - strength) + mixed * strength).round().to(torch.uint8)


def tesa_picture(tesa: TeSA) -> str:
    """Where a tensor is alive (blue) and constant (yellow); pruned is paper."""
    alive, constant = (density_grid(c, tesa.shape) for c in (tesa.code > 0, tesa.code < 0))
    return png_uri(paint([(alive, ALIVE), (constant, CONSTANT)]))


def part_kind(part: SparseFormat) -> str:
    """The key of `PART_COLOURS` for a part."""
    inner = part.inner if isinstance(part, Quantized) else part
    kinds = ((Block, "block"), (FineGrained, "fine-grained"), (NM, "N:M"), (Dense, "dense"))
    return next((kind for cls, kind in kinds if isinstance(inner, cls)), "dense")


def cover_picture(parts: Sequence[SparseFormat]) -> str:
    """Which format stores which part of a weight, by colour."""
    return png_uri(
        paint([(density_grid(p.unpack() != 0, p.shape), PART_COLOURS[part_kind(p)]) for p in parts])
    )
