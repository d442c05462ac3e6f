"""How long a sparse layer takes: a small additive model.

    time = 2 launches
         + panel_s    * tokens * columns                (input panel: transposed, padded to whole panels)
         + spill_s    * tokens * columns                (where input and panel together exceed the second-level cache)
         + epilogue_s * tokens * rows                   (transposed back, bias, activation, residual)
         + sum over parts: mac_s[class] * tokens * multiply-adds + list_s * panels * column lists of single rows

    block-dot kernel: launch + store_s * tokens * rows + mac_s[class] * tokens * multiply-adds
    int8 arithmetic:  one more launch + quantise_s * tokens * columns

Tokens are padded to whole panels. A class is the number of rows that share a load of the input ("1", "2", "4",
"8", "dense", "nm"), or the rows of a block that goes through `tl.dot` ("dot16", "dot32", "dotdense"); with the
value type where it is not the input's ("1/int8"), and "/i8" for int8 arithmetic. A list costs what the
mispredicted end of its loop does; lists of groups are few, and their end is part of the class. The dense alternative
is PyTorch's own product. `rates` says where the coefficients come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .formats import NM, Dense, RowGroups, SparseFormat, Tile
from .formats.base import Work, round_up
from .formats.quantized import Quantized
from .specialise import takes_dots
from .vector_unit import vector_unit

PATCH_FACTOR = 2.0
"""Panel elements of a k x k convolution cost about twice those of a matrix: their loads are gathers under a mask."""

BESIDE_BLOCKS = "1m"
"""Class of a fine-grained part beside blocks, whose group leaves it fewer tokens than it has alone."""

PANEL_BYTES = 8
"""Of the input and its panel together, per token and column in float32."""


@dataclass(frozen=True)
class Rates:
    """Coefficients of the model, seconds each; `source` says where they come from."""

    device: str
    threads: int
    launch_s: float
    panel_s: float
    epilogue_s: float
    store_s: float
    quantise_s: float
    list_s: float
    mac_s: dict[str, float]
    dense_launch_s: float
    dense_mac_s: float
    source: str
    spill_s: float = 0.0

    def plausible(self) -> bool:
        """Whether no measurement was swallowed by a disturbance: differences of disturbed times are zero or less."""
        fastest, slowest = min(self.mac_s.values()), max(self.mac_s.values())
        return fastest > 1e-13 / self.threads and slowest < 40 * fastest and self.launch_s < 1e-3

    def mac(self, kind: str) -> float:
        """Seconds per multiply-add of a class; the class without its value type where none was measured."""
        if kind in self.mac_s:
            return self.mac_s[kind]
        if kind.startswith(BESIDE_BLOCKS) and kind != BESIDE_BLOCKS:
            return self.mac(BESIDE_BLOCKS)
        return self.mac_s.get(kind.split("/")[0]) or self.mac_s["1"]


@dataclass(frozen=True)
class Prediction:
    """Predicted seconds of one way to compute a layer. flops counts multiply and add, padding included."""

    format: str
    time_s: float
    flops: int
    nbytes: int

    def __str__(self) -> str:
        return f"{self.format:<28} {self.time_s * 1e6:10.1f} us  {self.flops / 1e6:12.2f} MFLOP  {self.nbytes:>12,} B"


def work_class(part: SparseFormat) -> str:
    """The class of a packed part."""
    if isinstance(part, Quantized):
        return f"{work_class(part.inner)}/int{part.bits}"
    if takes_dots(part):
        return "dotdense" if isinstance(part, Dense) else f"dot{part.group}"  # type: ignore[attr-defined]
    if isinstance(part, Dense):
        return "dense"
    if isinstance(part, NM):
        return "nm"
    assert isinstance(part, RowGroups)
    return str(part.group)


def time_of(
    shape: tuple[int, int],
    works: Sequence[tuple[str, Work]],
    m: int,
    images: int,
    rates: Rates,
    group: int,
    integer: bool = False,
    panel_factor: float = 1.0,
) -> float:
    """Predicted seconds of one specialised layer on `images` times `m` tokens.

    panel_factor: cost of a panel element against that of a plain matrix (patches of an image are gathered).
    """
    n, k = shape
    if works[0][0].startswith("dot"):
        kind, work = works[0]
        tokens = round_up(m * images, min(128, max(16, 1 << (m * images - 1).bit_length())))
        total = rates.launch_s + tokens * (rates.store_s * n + rates.mac(kind) * work.macs)
        return total + (rates.launch_s + rates.quantise_s * tokens * k if integer else 0.0)
    tokens = vector_unit().tokens(m, group)
    panels = -(-m // tokens) * images
    padded = panels * tokens
    per_column = panel_factor * rates.panel_s + (rates.quantise_s if integer else 0.0)
    total = 2 * rates.launch_s + padded * (per_column * round_up(k + 1, 64) + rates.epilogue_s * n)
    if PANEL_BYTES * padded * k > vector_unit().l2_bytes:
        total += rates.spill_s * padded * k
    for kind, work in works:
        total += rates.mac(kind) * work.macs * padded
        if kind.split("/")[0] == "1":
            total += rates.list_s * work.lists * panels
    return total


def dense_time(shape: tuple[int, int], m: int, rates: Rates) -> float:
    """Predicted seconds of PyTorch's dense product."""
    return rates.dense_launch_s + rates.dense_mac_s * shape[0] * shape[1] * m


def predict_parts(
    parts: Sequence[SparseFormat], m: int, rates: Rates, images: int = 1, integer: bool = False
) -> Prediction:
    """The prediction for packed parts."""
    works = [(work_class(p).replace("/int8", "/i8") if integer else work_class(p), p.work()) for p in parts]
    group = max(w.group for _, w in works)
    if group > 1:
        works = [
            (BESIDE_BLOCKS + kind[1:] if w.group == 1 and kind[0] == "1" else kind, w) for kind, w in works
        ]
    return Prediction(
        " + ".join(p.describe() for p in parts),
        time_of(parts[0].shape, works, m, images, rates, group, integer),
        2 * sum(w.macs for _, w in works) * m * images,
        sum(p.nbytes for p in parts),
    )


def fine_tile(k: int, density: float) -> Tile:
    """The tile of a fine-grained part: columns in blocks that fit the first-level cache where lists stay long.

    A block of 128 columns by 64 tokens is 32 KiB, all of the first-level cache of many cores. With fewer than about ten
    alive elements a row and block, the cost of a list outweighs that of reading the panel from the second-level cache.
    """
    fits = vector_unit().panel_columns()
    columns = fits if density * fits >= 10 else 2 * fits if density * 2 * fits >= 10 else 0
    return Tile(64, columns if columns and columns < k else 0)
