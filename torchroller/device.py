"""What the search knows about a machine: `DeviceSpec`, data only.

    DeviceSpec = memory levels (outermost first) + compute units + peaks + limits of one program

A program is one instance of a Triton kernel; a unit is what runs programs: an SM, a CU, a CPU core.
`search.construct` is the same function for every device: whatever differs stands in the spec. To add a
device, write one spec (docs/recipes/add_a_device.md).

Figures of GPUs are data-sheet peaks, dense (no structured sparsity), with the source in `source`; cache
bandwidths, which vendors seldom state, follow from bytes per clock times clock, or from the cited measurement.
They rank candidates; they do not promise times.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB
GB_S = 1e9
TB_S = 1e12
TFLOPS = 1e12

TRITON_MAX_NUMEL = 1 << 20  # triton.language.core.TRITON_MAX_TENSOR_NUMEL: elements in one block tensor


@dataclass(frozen=True)
class MemLevel:
    """One level of the memory hierarchy.

    capacity_bytes and bandwidth_bytes_per_s belong to one instance; `shared_by` units use it together
    (all units for DRAM, 1 for a private cache). `run_overhead_bytes` is what starting a new contiguous run
    costs, in bytes not transferred meanwhile: hardware prefetchers and TLBs make it large on a CPU.
    """

    name: str
    capacity_bytes: int
    bandwidth_bytes_per_s: float
    transaction_bytes: int
    shared_by: int = 1
    latency_s: float = 0.0
    unit_bandwidth_bytes_per_s: float = 0.0  # what one unit alone can draw from a shared level; 0: everything
    run_overhead_bytes: int = 0
    explicit: bool = False  # programs stage tiles there by hand (shared memory); otherwise it is a cache


@dataclass(frozen=True)
class Peak:
    """FLOP/s of the whole device for one operand type: vector units, matrix units, shape of a matrix instruction.

    `matrix_flops` is None where `tl.dot` of that type runs on the vector units.
    """

    dtype: str
    vector_flops: float
    matrix_flops: float | None = None
    instruction: tuple[int, int, int] = (1, 1, 1)  # m, n, k


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
    source: str = ""

    @property
    def is_cpu(self) -> bool:
        return not self.max_warps > 1

    @property
    def dram(self) -> MemLevel:
        return self.levels[0]

    @property
    def shared_levels(self) -> tuple[MemLevel, ...]:
        """Caches between DRAM and the units that several units use together (L3 of a CPU, L2 of a GPU)."""
        return tuple(lv for lv in self.levels[1:] if lv.shared_by > 1)

    @property
    def private_levels(self) -> tuple[MemLevel, ...]:
        """Levels that belong to one unit, outermost first (L2 and L1 of a CPU, shared memory of a GPU)."""
        return tuple(lv for lv in self.levels[1:] if lv.shared_by == 1)

    def peak(self, dtype: str) -> Peak:
        """Peaks for operands of `dtype`; types without an entry run at float32 rate (integers, bool)."""
        by_name = {p.dtype: p for p in self.peaks}
        return by_name.get(dtype) or by_name["float32"]

    def lanes(self, itemsize: int) -> int:
        return max(1, self.vector_bytes // itemsize)

    @staticmethod
    def for_target(backend: str, arch: object = None, units: int | None = None) -> DeviceSpec:
        """The spec for a Triton target: ("cpu", …), ("cuda", 80 | 90 | 100 | …), ("hip", "gfx942").

        An architecture that is not shipped takes the closest older one of its backend; `units` overrides the
        number of SMs or CUs, for instance from torch.cuda.get_device_properties.
        Raises ValueError for an unknown backend.
        """
        if backend == "cpu":
            return cpu()
        family = [d for d in SHIPPED if d.kind == backend]
        if not family:
            raise ValueError(f"no device of backend {backend!r}: known are cpu, cuda and hip. "
                             "Add a DeviceSpec to torchroller/device.py (docs/recipes/add_a_device.md).")  # fmt: skip
        family.sort(key=lambda d: _arch_number(d.arch))
        older = [d for d in family if _arch_number(d.arch) <= _arch_number(arch)]
        spec = older[-1] if older else family[0]
        same = [d for d in family if d.arch == spec.arch]
        spec = same[0]
        return replace(spec, units=units, name=f"{spec.name} ({units} units)") if units else spec

    def __str__(self) -> str:
        lines = [f"{self.name}  [{self.kind} {self.arch}]  {self.units} units"]
        for lv in self.levels:
            who = "private" if lv.shared_by == 1 else f"shared by {lv.shared_by}"
            lines.append(f"  {lv.name:<10} {size_text(lv.capacity_bytes):>9}  {rate_text(lv.bandwidth_bytes_per_s)}/s  "
                         f"transaction {lv.transaction_bytes} B  {who}")  # fmt: skip
        if self.is_cpu:
            blocks = ", ".join(f"{r}x{v * self.lanes(4)}" for r, v in self.micro_kernels)
            lines.append(f"  registers  {self.vector_bytes * 8}-bit vectors; fp32 register blocks {blocks}")
        else:
            lines.append(f"  registers  {self.unit_registers} per unit, {self.thread_registers} per thread; "
                         f"warps of {self.warp_size}; scratch {size_text(self.program_scratch_bytes)} per program")  # fmt: skip
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


def _arch_number(arch: object) -> int:
    digits = "".join(c for c in str(arch) if c.isdigit())
    return int(digits) if digits else 0


def _gpu(
    name: str, kind: str, arch: str, *, units: int, dram: MemLevel, l2: MemLevel, scratch: MemLevel,
    peaks: tuple[Peak, ...], source: str, program_scratch_bytes: int, unit_scratch_bytes: int, warp_size: int = 32,
    unit_warps: int = 64, unit_registers: int = 65536, accumulator_bytes: int = 0,
    stages: tuple[int, ...] = (2, 3, 4), max_warps: int = 16,
) -> DeviceSpec:  # fmt: skip
    """The fields in which the shipped GPUs agree, in one place."""
    return DeviceSpec(
        name=name, kind=kind, arch=arch, units=units, levels=(dram, l2, scratch), peaks=peaks, warp_size=warp_size,
        max_warps=max_warps, unit_warps=unit_warps, unit_partitions=4, unit_registers=unit_registers,
        thread_registers=255, program_scratch_bytes=program_scratch_bytes, unit_scratch_bytes=unit_scratch_bytes,
        accumulator_bytes=accumulator_bytes, stages=stages, vector_bytes=16, micro_kernels=(), launch_s=3e-6, fork_s=0.0,
        program_s=5e-7, step_s=2e-8, exposed=0.08, skew=0.0, raster_group=8, source=source,
    )  # fmt: skip


def _hbm(capacity_gib: float, tb_per_s: float, units: int, transaction_bytes: int = 32) -> MemLevel:
    return MemLevel(
        "HBM", int(capacity_gib * GiB), tb_per_s * TB_S, transaction_bytes, units, 6e-7, 90 * GB_S
    )


def _l2(capacity_mib: float, tb_per_s: float, units: int, transaction_bytes: int = 32) -> MemLevel:
    return MemLevel(
        "L2", int(capacity_mib * MiB), tb_per_s * TB_S, transaction_bytes, units, 2.5e-7, 110 * GB_S
    )


def _scratch(kib: int, clock_hz: float) -> MemLevel:
    """Shared memory or LDS: 32 banks of 4 bytes a clock on every shipped GPU."""
    return MemLevel("shared", kib * KiB, 128 * clock_hz, 128, latency_s=2e-8, explicit=True)


V100 = _gpu(
    "V100", "cuda", "70", units=80, dram=_hbm(16, 0.9, 80), l2=_l2(6, 2.15, 80), scratch=_scratch(96, 1.53e9),
    peaks=(Peak("float64", 7.8 * TFLOPS), Peak("float32", 15.7 * TFLOPS),
           Peak("float16", 31.4 * TFLOPS, 125 * TFLOPS, (16, 16, 4)), Peak("bfloat16", 15.7 * TFLOPS)),
    program_scratch_bytes=96 * KiB, unit_scratch_bytes=96 * KiB, stages=(1, 2),
    source="NVIDIA V100 (SXM2) data sheet and Volta architecture white paper; L2 bandwidth measured by "
    "Jia et al., arXiv:1804.06826. Current Triton no longer compiles for sm_70: construction and ranking only.",
)  # fmt: skip

A100 = _gpu(
    "A100", "cuda", "80", units=108, dram=_hbm(80, 2.039, 108), l2=_l2(40, 7.2, 108), scratch=_scratch(164, 1.41e9),
    peaks=(Peak("float64", 9.7 * TFLOPS, 19.5 * TFLOPS, (8, 8, 4)), Peak("float32", 19.5 * TFLOPS),
           Peak("tf32", 19.5 * TFLOPS, 156 * TFLOPS, (16, 8, 8)), Peak("float16", 78 * TFLOPS, 312 * TFLOPS, (16, 8, 16)),
           Peak("bfloat16", 39 * TFLOPS, 312 * TFLOPS, (16, 8, 16)), Peak("int8", 19.5 * TFLOPS, 624 * TFLOPS, (16, 8, 32))),
    program_scratch_bytes=163 * KiB, unit_scratch_bytes=164 * KiB, stages=(2, 3, 4, 5),
    source="NVIDIA A100 80 GB SXM data sheet and Ampere architecture white paper (L2: 5120 B a clock)",
)  # fmt: skip

H100 = _gpu(
    "H100", "cuda", "90", units=132, dram=_hbm(80, 3.35, 132), l2=_l2(50, 9.0, 132), scratch=_scratch(228, 1.83e9),
    peaks=(Peak("float64", 33.5 * TFLOPS, 66.9 * TFLOPS, (16, 8, 4)), Peak("float32", 66.9 * TFLOPS),
           Peak("tf32", 66.9 * TFLOPS, 494.7 * TFLOPS, (64, 16, 8)), Peak("float16", 133.8 * TFLOPS, 989.4 * TFLOPS, (64, 16, 16)),
           Peak("bfloat16", 133.8 * TFLOPS, 989.4 * TFLOPS, (64, 16, 16)), Peak("int8", 66.9 * TFLOPS, 1978.9 * TFLOPS, (64, 16, 32))),
    program_scratch_bytes=227 * KiB, unit_scratch_bytes=228 * KiB, stages=(2, 3, 4, 5),
    source="NVIDIA H100 SXM5 data sheet and Hopper architecture white paper; L2 taken as Ampere's 5120 B a clock",
)  # fmt: skip

H200 = replace(H100, name="H200", levels=(_hbm(141, 4.8, 132), *H100.levels[1:]),
               source="NVIDIA H200 SXM data sheet; chip as H100")  # fmt: skip

B200 = _gpu(
    "B200", "cuda", "100", units=148, dram=_hbm(180, 7.7, 148), l2=_l2(126, 15, 148), scratch=_scratch(228, 1.85e9),
    peaks=(Peak("float64", 37 * TFLOPS, 37 * TFLOPS, (16, 8, 4)), Peak("float32", 75 * TFLOPS),
           Peak("tf32", 75 * TFLOPS, 1125 * TFLOPS, (64, 16, 8)), Peak("float16", 150 * TFLOPS, 2250 * TFLOPS, (64, 16, 16)),
           Peak("bfloat16", 150 * TFLOPS, 2250 * TFLOPS, (64, 16, 16)), Peak("int8", 75 * TFLOPS, 4500 * TFLOPS, (64, 16, 32))),
    program_scratch_bytes=227 * KiB, unit_scratch_bytes=228 * KiB, accumulator_bytes=256 * KiB, stages=(2, 3, 4, 5),
    source="NVIDIA DGX B200 data sheet (per GPU, dense) and the Blackwell tuning guide; L2 bandwidth is an estimate",
)  # fmt: skip

MI300X = _gpu(
    "MI300X", "hip", "gfx942", units=304, dram=_hbm(192, 5.3, 304, 64), l2=_l2(256, 17.2, 304, 128),
    scratch=_scratch(64, 2.1e9),
    peaks=(Peak("float64", 81.7 * TFLOPS, 163.4 * TFLOPS, (16, 16, 4)), Peak("float32", 163.4 * TFLOPS, 163.4 * TFLOPS, (16, 16, 4)),
           Peak("tf32", 163.4 * TFLOPS, 653.7 * TFLOPS, (16, 16, 8)), Peak("float16", 163.4 * TFLOPS, 1307.4 * TFLOPS, (16, 16, 16)),
           Peak("bfloat16", 163.4 * TFLOPS, 1307.4 * TFLOPS, (16, 16, 16)), Peak("int8", 163.4 * TFLOPS, 2614.9 * TFLOPS, (16, 16, 32))),
    program_scratch_bytes=64 * KiB, unit_scratch_bytes=64 * KiB, warp_size=64, unit_warps=32, unit_registers=131072,
    stages=(1, 2), max_warps=8,
    source="AMD Instinct MI300X data sheet and CDNA 3 white paper; the shared cache level is the Infinity Cache",
)  # fmt: skip

SHIPPED: tuple[DeviceSpec, ...] = (V100, A100, H100, H200, B200, MI300X)


@functools.lru_cache(maxsize=8)
def cpu(cores: int | None = None) -> DeviceSpec:
    """This machine's CPU, read from the operating system; `cores` overrides how many are used."""
    from torchroller import host

    return host.read_cpu(cores=cores)


def by_name(name: str) -> DeviceSpec:
    """`cpu` or a shipped name, in any case. Raises ValueError naming the known ones."""
    if name.lower() == "cpu":
        return cpu()
    for spec in SHIPPED:
        if spec.name.lower() == name.lower():
            return spec
    raise ValueError(f"no device named {name!r}: known are cpu, {', '.join(d.name for d in SHIPPED)}")
