"""Sparse formats: one class each. `FORMATS` names those that a transformation may choose from."""

from .base import RowGroups, SparseFormat, Tile, Work
from .block import Block
from .dense import Dense
from .fine import FineGrained
from .nm import NM, fits_nm
from .quantized import Int4, Quantized, QuantizedInt8

FORMATS: dict[str, type[SparseFormat]] = {
    f.name: f for f in (Dense, FineGrained, Block, NM, QuantizedInt8, Int4)
}

__all__ = [
    "FORMATS", "NM", "Block", "Dense", "FineGrained", "Int4", "Quantized", "QuantizedInt8",
    "RowGroups", "SparseFormat", "Tile", "Work", "fits_nm",
]  # fmt: skip
