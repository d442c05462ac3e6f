"""What the search knows about a machine: the type. `device.py` has the data.

    DeviceSpec = memory levels (outermost first) + compute units + peaks + limits of one program

A program is one instance of a Triton kernel; a unit is what runs programs: an SM, a CU, a CPU core.
`search.construct` is the same function for every device: whatever differs stands in the spec. To add a
device, write one spec (docs/recipes/add_a_device.md).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB
GB_S = 1e9
TB_S = 1e12
TFLOPS = 1e12

# Of one product of float32: (type, how many).
_PRODUCTS = {"ieee": ("float32", 0), "bf16x6": ("bfloat16", 6), "tf32": ("tf32", 1)}
TRITON_MAX_NUMEL = 1 << 20  # triton.language.core.TRITON_MAX_TENSOR_NUMEL: elements in one block tensor


@dataclass(frozen=True)
class MemLevel:
    """One level of the memory hierarchy.

    capacity_bytes and bandwidth_bytes_per_s belong to one instance, which one unit (`private`) or all use.
    `run_overhead_bytes` is what starting a new contiguous run costs, in bytes not transferred meanwhile:
    hardware prefetchers, TLBs and rows of DRAM have to catch up. The first `ramp_bytes` of a run come at half the
    rate: a prefetcher that watches for streams has to see some lines before it runs ahead.
    """

    name: str
    capacity_bytes: int
    bandwidth_bytes_per_s: float
    transaction_bytes: int
    private: bool = False
    latency_s: float = 0.0
    unit_bandwidth_bytes_per_s: float = 0.0  # what one unit alone can draw from a shared level; 0: everything
    run_overhead_bytes: int = 0
    ramp_bytes: int = 0
    explicit: bool = False  # programs stage tiles there by hand (shared memory); otherwise it is a cache


@dataclass(frozen=True)
class Peak:
    """FLOP/s of the whole device for one operand type, on its vector and on its matrix units.

    `instruction` is the shape m, n, k of one matrix instruction; `matrix_flops` is None where `tl.dot` of
    that type runs on the vector units.
    """

    dtype: str
    vector_flops: float
    matrix_flops: float | None = None
    instruction: tuple[int, int, int] = (1, 1, 1)


@dataclass(frozen=True)
class DeviceSpec:
    """A device. `levels` runs from the outermost (DRAM) to the innermost (registers excluded)."""

    name: str
    kind: str  # cpu | cuda | hip: the name of the Triton backend
    arch: str  # 90, gfx942, or the LLVM name of the CPU
    units: int
    levels: tuple[MemLevel, ...]
    peaks: tuple[Peak, ...]
    warp_size: int
    max_warps: int  # warps of one program; 1 on a CPU
    unit_warps: int  # warps resident on one unit
    unit_partitions: int  # schedulers of one unit; fewer warps than this leave some idle
    unit_registers: int  # 32-bit registers of one unit
    thread_registers: int  # 32-bit registers of one thread
    program_scratch_bytes: int  # explicit scratch (shared memory) that one program may take
    unit_scratch_bytes: int
    accumulator_bytes: int  # dedicated accumulator memory of a unit (tensor memory); 0: in registers
    stages: tuple[int, ...]  # software pipeline depths worth trying
    vector_bytes: int  # width of one load, store or FMA instruction of one lane group
    micro_kernels: tuple[tuple[int, int], ...]  # rows x vectors of the register block of tl.dot; () on a GPU
    launch_s: float  # one kernel launch
    fork_s: float  # waking the other units when there is more than one program; part of launch_s on a GPU
    program_s: float  # starting one program on a unit
    step_s: float  # one iteration of a reduction loop: barriers, address arithmetic, call of the micro-kernel
    exposed: float  # share of the slower-than-bottleneck stages that does not overlap
    skew: float  # how much longer the unluckiest unit takes for one program (noise, other processes)
    raster_group: int = 1  # programs along the first axis that emitters order together for cache reuse
    float32_dot: str = "ieee"  # how tl.dot multiplies float32, its `input_precision`; see `multiplying`
    source: str = ""

    @property
    def fingerprint(self) -> str:
        """Differs between any two specs: for keys of caches whose content depends on the device."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    @property
    def is_cpu(self) -> bool:
        return not self.max_warps > 1

    @property
    def dram(self) -> MemLevel:
        return self.levels[0]

    @property
    def shared_levels(self) -> tuple[MemLevel, ...]:
        """Caches between DRAM and the units that several units use together (L3 of a CPU, L2 of a GPU)."""
        return tuple(lv for lv in self.levels[1:] if not lv.private)

    @property
    def private_levels(self) -> tuple[MemLevel, ...]:
        """Levels that belong to one unit, outermost first (L2 and L1 of a CPU, shared memory of a GPU)."""
        return tuple(lv for lv in self.levels[1:] if lv.private)

    def peak(self, dtype: str) -> Peak:
        """Peaks for operands of `dtype`; types without an entry run at float32 rate (integers, bool)."""
        by_name = {p.dtype: p for p in self.peaks}
        return by_name.get(dtype) or by_name["float32"]

    def multiplying(self, how: str) -> DeviceSpec:
        """This device with float32 products made in another way; see `float32_dot`.

        ieee    multiply-adds of the vector units
        bf16x6  six products of bfloat16 on the matrix units, with the error of float32 (emit/split.py)
        tf32    one product of TF32, 10 bits of mantissa: for users who allow it to PyTorch

        A device without matrix units for the type, or one that is no CUDA device, stays as it is.
        """
        if how not in _PRODUCTS:
            raise ValueError(f"float32 products are made by one of {list(_PRODUCTS)}, not by {how!r}")
        kind, count = _PRODUCTS[how]
        units = next((p for p in self.peaks if p.dtype == kind and p.matrix_flops), None)
        if self.kind != "cuda" or (count and units is None):
            return self
        rate, shape = None, (1, 1, 1)
        if units is not None and units.matrix_flops and count:
            rate, shape = units.matrix_flops / count, units.instruction
        peaks = tuple(
            Peak(p.dtype, p.vector_flops, rate, shape) if p.dtype == "float32" else p for p in self.peaks
        )
        return replace(self, peaks=peaks, float32_dot=how)

    def lanes(self, itemsize: int) -> int:
        return max(1, self.vector_bytes // itemsize)

    @staticmethod
    def for_target(backend: str, arch: object = None, units: int | None = None) -> DeviceSpec:
        """The spec for a Triton target: see `torchroller.device.for_target`."""
        from torchroller.device import for_target

        return for_target(backend, arch, units)

    def __str__(self) -> str:
        lines = [f"{self.name}  [{self.kind} {self.arch}]  {self.units} units"]
        for lv in self.levels:
            who = "private" if lv.private else "shared"
            lines.append(
                f"  {lv.name:<10} {size_text(lv.capacity_bytes):>9}  "
                f"{rate_text(lv.bandwidth_bytes_per_s):>8}/s  transaction {lv.transaction_bytes} B  {who}"
            )
        if self.is_cpu:
            blocks = ", ".join(f"{r}x{v * self.lanes(4)}" for r, v in self.micro_kernels)
            lines.append(f"  registers  {self.vector_bytes * 8}-bit vectors, fp32 register blocks {blocks}")
        else:
            lines.append(
                f"  registers  {self.unit_registers} per unit, {self.thread_registers} per thread, warps of "
                f"{self.warp_size}; shared memory {size_text(self.program_scratch_bytes)} per program"
            )
        for p in self.peaks:
            matrix = "" if p.matrix_flops is None else f", matrix {p.matrix_flops / TFLOPS:.4g}"
            lines.append(f"  {p.dtype:<10} vector {p.vector_flops / TFLOPS:.4g}{matrix} TFLOP/s")
        if self.source:
            lines.append(f"  source     {self.source}")
        return "\n".join(lines)


def size_text(n: float) -> str:
    for unit, size in (("GiB", GiB), ("MiB", MiB), ("KiB", KiB)):
        if n >= size:
            return f"{n / size:.4g} {unit}"
    return f"{n:.0f} B"


def rate_text(n: float) -> str:
    return f"{n / TB_S:.3g} TB" if n >= TB_S else f"{n / GB_S:.3g} GB"
