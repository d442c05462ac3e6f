"""RTile and RProgram: tiles of a tensor expression, and one way to run a kernel made of them.

An rTile is an extent for each axis of the iteration space. An rProgram is one rTile per memory level,
from the whole problem in DRAM down to registers, with the launch parameters of the Triton kernel.

Source of the terms: Zhu et al., ROLLER, OSDI 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchroller.cost import Estimate


_LEAST_WIDTH = 4  # columns that one instruction multiplies at most (int8)
_STEP_COLUMNS = 2  # in the time of so many a register block is loaded and stored


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def next_pow2(n: int) -> int:
    """The smallest power of two that is at least `n`."""
    return 1 << max(0, n - 1).bit_length()


def padded(extent: int, step: int) -> int:
    """The axis length after padding to whole steps."""
    return ceil_div(extent, step) * step


def rest_widths(rest: int) -> tuple[int, ...]:
    """Widths, powers of two, of a CPU's last steps over `rest` columns: little padding in few steps."""
    options: list[tuple[int, ...]] = []
    taken: tuple[int, ...] = ()
    left = rest
    while True:
        last = max(next_pow2(left), _LEAST_WIDTH)
        options.append((*taken, last))
        if last in (left, _LEAST_WIDTH):
            return min(options, key=lambda widths: sum(widths) + _STEP_COLUMNS * len(widths))
        taken, left = (*taken, last // 2), left - last // 2


@dataclass(frozen=True)
class RTile:
    """Extents per axis, in the order of the expression; `storage_padding` is (tensor, elements) per row.

    Storage padding lengthens the innermost dimension of a staged tile so that its rows start in different
    banks of an explicit memory level. Triton swizzles staged tiles itself, so the search leaves it empty.
    """

    axes: tuple[str, ...]
    extents: tuple[int, ...]
    storage_padding: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if len(self.axes) != len(self.extents):
            raise ValueError(f"a tile of axes {self.axes} needs as many extents, got {self.extents}")
        for name, extent in zip(self.axes, self.extents):
            if extent < 1:
                raise ValueError(f"tile extent of axis {name!r} is {extent}; it must be at least 1")

    def __getitem__(self, axis: str) -> int:
        return self.extents[self.axes.index(axis)]

    def as_dict(self) -> dict[str, int]:
        return dict(zip(self.axes, self.extents))

    def __str__(self) -> str:
        tile = " ".join(f"{a}:{e}" for a, e in zip(self.axes, self.extents))
        return tile + "".join(f" +{n} on {t}" for t, n in self.storage_padding)


def storage_padding(row_elements: int, read_elements: int, itemsize: int, banks: int, bank_bytes: int) -> int:
    """Elements to append to a row of a staged tile so that successive rows start in different banks.

    row_elements: innermost extent of the staged tile; read_elements: innermost extent that one register tile
    reads from it, rounded up to a bank. The padded row is `read_elements` past a multiple of all banks.
    """
    per_bank = max(1, bank_bytes // itemsize)
    everything = banks * per_bank
    offset = padded(read_elements, per_bank)
    return (everything + offset - row_elements % everything) % everything


@dataclass(frozen=True)
class RProgram:
    """One way to run a kernel: tiles per memory level and the launch parameters that follow.

    block: extent of one Triton program per spatial axis (powers of two)
    step:  extent of one loop iteration per reduce axis (powers of two; >= the axis means no loop)
    grid:  number of programs
    levels: (memory level, tile resident there), from the whole problem in DRAM down to registers
    row_group: tiles of rows of a contraction that share each tile of columns before the next; 0 for all
    panel: columns of the second operand of a dot that the register block of a CPU reads together; else 0
    pairs: neighbours along k that an instruction of a CPU multiplies together, side by side in a packed operand
    variant: how a GPU kernel reads its operands (torchroller/variants.py); "" is through pointers
    """

    name: str
    device: str
    block: Mapping[str, int]
    step: Mapping[str, int]
    num_warps: int
    num_stages: int
    grid: int
    levels: tuple[tuple[str, RTile], ...]
    estimate: Estimate
    extents: Mapping[str, int] = field(default_factory=dict)
    row_group: int = 0
    panel: int = 0
    pairs: int = 1
    variant: str = ""

    def holds(self, axis: str) -> bool:
        """Whether a program takes the whole of a reduce axis at once instead of looping over it."""
        return self.step[axis] >= self.extents[axis]

    @property
    def key(self) -> str:
        """Short, unique among the rPrograms of one expression on one device."""
        parts = [f"{a}{e}" for a, e in (*self.block.items(), *self.step.items())]
        variant = f"_{self.variant}" if self.variant else ""
        return f"{'_'.join(parts)}_w{self.num_warps}_s{self.num_stages}{variant}"

    def __str__(self) -> str:
        launch = f"grid {self.grid}"
        if (self.num_warps, self.num_stages) != (1, 1):
            launch += f", {self.num_warps} warps, {self.num_stages} stages"
        if self.variant:
            launch += f", {self.variant}"
        lines = [f"{self.name} on {self.device}: {launch}"]
        width = max(len(name) for name, _ in self.levels)
        for depth, (name, tile) in enumerate(self.levels):
            lines.append(f"  {'  ' * depth}{name:<{width}}  {tile}")
        for axis, step in self.step.items():
            trips = ceil_div(self.extents[axis], step)
            how = "the whole axis in one block" if trips == 1 else f"{trips} iterations of {step}"
            lines.append(f"  reduce {axis}: {how}")
        lines.append(f"  {self.estimate}")
        return "\n".join(lines)
