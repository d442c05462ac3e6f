"""What the row-group kernels must know of the processor: how many sums fit its vector registers.

A kernel keeps `group` rows times `tokens` tokens of sums in registers. Where they do not fit, every multiply-add
becomes a load, an add and a store; so tile sizes are chosen here, from the width and number of registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from torchroller.triton_cpu.cpu import caches, select_cpu


@dataclass(frozen=True)
class VectorUnit:
    """float32 lanes of a register, number of registers, bytes of the first two levels of data cache of one core."""

    lanes: int
    registers: int
    l1_bytes: int
    l2_bytes: int = 1 << 20

    @property
    def wide(self) -> bool:
        """Whether half of the registers hold 16 vectors of sums."""
        return self.registers >= 32

    @property
    def max_group(self) -> int:
        """Rows that share the loads of a column. With 16 registers, 8 rows would leave 8 tokens each."""
        return 8 if self.wide else 4

    @property
    def fine_unroll(self) -> int:
        """Independent sums of a row with one list, to hide the latency of multiply-adds (4 cycles, 2 a cycle)."""
        return 2 if self.wide else 1

    @property
    def mixed_unroll(self) -> int:
        """As fine_unroll for a part beside blocks: their group leaves a row few tokens, so few vectors of sums."""
        return 2 if self.wide else 4

    def tokens(self, m: int, group: int) -> int:
        """Tokens of a panel: about half of the registers hold sums, no more than m needs.

        Wide: 8 vectors for one or two rows (one row counts twice, see fine_unroll), 16 for four or eight.
        Narrow: 8 vectors, as many as keep both multiply-add units busy.
        """
        widest = ({1: 64, 2: 64, 4: 64}.get(group, 32)) if self.wide else max(self.lanes, 64 // group)
        tokens = min(16, widest)
        while tokens < min(m, widest):
            tokens *= 2
        return tokens

    def panel_columns(self) -> int:
        """Columns of a 64-token panel that fit the first-level cache, as a power of two.

        Weights and sums stream past it, yet leaving them room costs more: half the columns mean twice as many lists.
        With 32 KiB (Zen 4), 128 columns take 2 to 14 % less time than 64 at 75 and 90 % sparsity, AVX2 code too.
        """
        columns = 64
        while columns * 2 * 64 * 4 <= self.l1_bytes:
            columns *= 2
        return columns


WIDE = VectorUnit(lanes=16, registers=32, l1_bytes=48 * 1024)
"""AVX-512; also what GPUs are given, whose registers hold far more."""


@lru_cache(maxsize=1)
def _host() -> VectorUnit:
    cpu = select_cpu()
    l1_bytes = caches().l1d_bytes or 32 * 1024
    l2_bytes = caches().l2_bytes or 1 << 20
    if cpu.vector_bits >= 512:
        return VectorUnit(16, 32, l1_bytes, l2_bytes)
    return VectorUnit(max(4, cpu.vector_bits // 32), 16, l1_bytes, l2_bytes)


def vector_unit(device: torch.device | str = "cpu") -> VectorUnit:
    """The unit of the CPU that kernels are compiled for (TORCHROLLER_CPU, else this one); GPUs get `WIDE`."""
    return _host() if torch.device(device).type == "cpu" else WIDE
