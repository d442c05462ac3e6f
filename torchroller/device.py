"""What the search knows about a machine: `DeviceSpec`, data only.

    DeviceSpec = memory levels (outermost first) + compute units + peaks + limits of one program

A program is one instance of a Triton kernel; a unit is what runs programs: an SM, a CU, a CPU core.
`search.construct` is the same function for every device: whatever differs stands in the spec. To add a
device, write one spec (docs/recipes/add_a_device.md).

Figures of GPUs are data-sheet peaks, dense (no structured sparsity), with the source in `source`. Cache
bandwidths, which vendors seldom state, follow from bytes per clock times clock or from the cited
measurement. They rank candidates; they do not promise times.
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

    capacity_bytes and bandwidth_bytes_per_s belong to one instance, which one unit (`private`) or all use.
    `run_overhead_bytes` is what starting a new contiguous run
    costs, in bytes not transferred meanwhile: hardware prefetchers and TLBs make it large on a CPU.
    """

    name: str
    capacity_bytes: int
    bandwidth_bytes_per_s: float
    transaction_bytes: int
    private: bool = False
    latency_s: float = 0.0
    unit_bandwidth_bytes_per_s: float = 0.0  # what one unit alone can draw from a shared level; 0: everything
    run_overhead_bytes: int = 0
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
        return tuple(lv for lv in self.levels[1:] if not lv.private)

    @property
    def private_levels(self) -> tuple[MemLevel, ...]:
        """Levels that belong to one unit, outermost first (L2 and L1 of a CPU, shared memory of a GPU)."""
        return tuple(lv for lv in self.levels[1:] if lv.private)

    def peak(self, dtype: str) -> Peak:
        """Peaks for operands of `dtype`; types without an entry run at float32 rate (integers, bool)."""
        by_name = {p.dtype: p for p in self.peaks}
        return by_name.get(dtype) or by_name["float32"]

    def lanes(self, itemsize: int) -> int:
        return max(1, self.vector_bytes // itemsize)

    @staticmethod
    def for_target(backend: str, arch: object = None, units: int | None = None) -> DeviceSpec:
        """The spec for a Triton target: ("cpu", …), ("cuda", 80 | 90 | 100 | …), ("hip", "gfx942" | …).

        An architecture that is not shipped takes the spec of its closest relative, within its own limit of
        shared memory. `units` overrides the number of SMs or CUs, for instance with
        `torch.cuda.get_device_properties(0).multi_processor_count`. Raises ValueError for an unknown backend.
        """
        if backend == "cpu":
            return cpu()
        family = [d for d in SHIPPED if d.kind == backend]
        if not family:
            raise ValueError(
                f"no device of Triton backend {backend!r}: known are cpu, cuda and hip. "
                "Write a DeviceSpec for it (docs/recipes/add_a_device.md)."
            )
        arch_name = str(arch)
        if arch_name in _RELATIVES:
            relative, scratch_kib, warp_size = _RELATIVES[arch_name]
            spec = replace(
                relative,
                name=f"{backend} {arch_name} (like {relative.name})",
                arch=arch_name,
                program_scratch_bytes=scratch_kib * KiB,
                unit_scratch_bytes=max(scratch_kib * KiB, min(relative.unit_scratch_bytes, 100 * KiB)),
                warp_size=warp_size,
            )
        else:
            exact = [d for d in family if d.arch == arch_name]
            older = [d for d in family if _arch_number(d.arch) <= _arch_number(arch)]
            spec = (exact or list(reversed(older)) or family)[0]
        return replace(spec, units=units, name=f"{spec.name}, {units} units") if units else spec

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


def _arch_number(arch: object) -> int:
    digits = "".join(c for c in str(arch) if c.isdigit())
    return int(digits) if digits else 0


_SUSTAINED = 0.7  # share of a shared cache's nominal bandwidth that kernels see: a rule of thumb


def _peaks(*rows: tuple) -> tuple[Peak, ...]:
    """Rows of (dtype, vector TFLOP/s[, matrix TFLOP/s, instruction shape])."""
    return tuple(
        Peak(r[0], r[1] * TFLOPS, r[2] * TFLOPS if len(r) > 2 else None, r[3] if len(r) > 2 else (1, 1, 1))
        for r in rows
    )


def _hbm(capacity_gib: float, tb_per_s: float, transaction_bytes: int = 32) -> MemLevel:
    return MemLevel(
        name="HBM",
        capacity_bytes=int(capacity_gib * GiB),
        bandwidth_bytes_per_s=tb_per_s * TB_S,
        transaction_bytes=transaction_bytes,
        latency_s=6e-7,
        unit_bandwidth_bytes_per_s=90 * GB_S,
        run_overhead_bytes=32,
    )


def _l2(capacity_mib: float, nominal_tb_per_s: float, transaction_bytes: int = 32) -> MemLevel:
    return MemLevel(
        name="L2",
        capacity_bytes=int(capacity_mib * MiB),
        bandwidth_bytes_per_s=_SUSTAINED * nominal_tb_per_s * TB_S,
        transaction_bytes=transaction_bytes,
        latency_s=2.5e-7,
        unit_bandwidth_bytes_per_s=110 * GB_S,
    )


def _gpu(
    name: str,
    kind: str,
    arch: str,
    units: int,
    clock_hz: float,
    scratch_kib: int,
    dram: MemLevel,
    l2: MemLevel,
    peaks: tuple[Peak, ...],
    source: str,
    program_scratch_kib: int | None = None,
    **differences: object,
) -> DeviceSpec:
    """A GPU spec; `differences` replace what the shipped GPUs have in common.

    Shared memory delivers 32 banks of 4 bytes a clock on all of them. NVIDIA keeps 1 KiB per program.
    """
    shared = MemLevel("shared", scratch_kib * KiB, 128 * clock_hz, 128, True, 2e-8, explicit=True)
    common = DeviceSpec(
        name=name,
        kind=kind,
        arch=arch,
        units=units,
        levels=(dram, l2, shared),
        peaks=peaks,
        warp_size=32,
        max_warps=16,
        unit_warps=64,
        unit_partitions=4,
        unit_registers=65536,
        thread_registers=255,
        program_scratch_bytes=(program_scratch_kib or scratch_kib) * KiB,
        unit_scratch_bytes=scratch_kib * KiB,
        accumulator_bytes=0,
        stages=(2, 3, 4, 5),
        vector_bytes=16,
        micro_kernels=(),
        launch_s=3e-6,
        fork_s=0.0,
        program_s=1e-7,
        step_s=2e-8,
        exposed=0.08,
        skew=0.0,
        raster_group=8,
        source=source,
    )
    return replace(common, **differences)  # type: ignore[arg-type]


V100 = _gpu(
    "V100",
    "cuda",
    "70",
    units=80,
    clock_hz=1.53e9,
    scratch_kib=96,
    dram=_hbm(16, 0.9),
    l2=_l2(6, 3.1),
    peaks=_peaks(
        ("float64", 7.8),
        ("float32", 15.7),
        ("float16", 31.4, 125, (16, 16, 4)),
        ("bfloat16", 15.7),
    ),
    stages=(1, 2),
    source="NVIDIA V100 (SXM2) data sheet, Volta white paper; L2 as measured by Jia et al., "
    "arXiv:1804.06826 (2.15 TB/s). Triton no longer compiles for sm_70: construction and ranking only.",
)

A100 = _gpu(
    "A100",
    "cuda",
    "80",
    units=108,
    clock_hz=1.41e9,
    scratch_kib=164,
    program_scratch_kib=163,
    dram=_hbm(80, 2.039),
    l2=_l2(40, 7.2),
    peaks=_peaks(
        ("float64", 9.7, 19.5, (8, 8, 4)),
        ("float32", 19.5),
        ("tf32", 19.5, 156, (16, 8, 8)),
        ("float16", 78, 312, (16, 8, 16)),
        ("bfloat16", 39, 312, (16, 8, 16)),
        ("int8", 19.5, 624, (16, 8, 32)),
    ),
    source="NVIDIA A100 80 GB SXM data sheet, Ampere white paper (L2: 5120 B a clock)",
)

H100 = _gpu(
    "H100",
    "cuda",
    "90",
    units=132,
    clock_hz=1.83e9,
    scratch_kib=228,
    program_scratch_kib=227,
    dram=_hbm(80, 3.35),
    l2=_l2(50, 9.0),
    peaks=_peaks(
        ("float64", 33.5, 66.9, (16, 8, 4)),
        ("float32", 66.9),
        ("tf32", 66.9, 494.7, (64, 16, 8)),
        ("float16", 133.8, 989.4, (64, 16, 16)),
        ("bfloat16", 133.8, 989.4, (64, 16, 16)),
        ("int8", 66.9, 1978.9, (64, 16, 32)),
    ),
    source="NVIDIA H100 SXM5 data sheet, Hopper white paper; L2 taken as 5120 B a clock, as on A100",
)

H200 = replace(
    H100,
    name="H200",
    levels=(_hbm(141, 4.8), *H100.levels[1:]),
    source="NVIDIA H200 SXM data sheet; the chip is H100's",
)

B200 = _gpu(
    "B200",
    "cuda",
    "100",
    units=148,
    clock_hz=1.85e9,
    scratch_kib=228,
    program_scratch_kib=227,
    dram=_hbm(180, 7.7),
    l2=_l2(126, 15),
    peaks=_peaks(
        ("float64", 37, 37, (16, 8, 4)),
        ("float32", 75),
        ("tf32", 75, 1125, (64, 16, 8)),
        ("float16", 150, 2250, (64, 16, 16)),
        ("bfloat16", 150, 2250, (64, 16, 16)),
        ("int8", 75, 4500, (64, 16, 32)),
    ),
    accumulator_bytes=256 * KiB,
    source="NVIDIA DGX B200 data sheet (per GPU, dense), Blackwell tuning guide; L2 bandwidth is an estimate",
)

MI300X = _gpu(
    "MI300X",
    "hip",
    "gfx942",
    units=304,
    clock_hz=2.1e9,
    scratch_kib=64,
    dram=_hbm(192, 5.3, transaction_bytes=64),
    l2=replace(_l2(256, 17.2, transaction_bytes=128), name="LLC"),
    peaks=_peaks(
        ("float64", 81.7, 163.4, (16, 16, 4)),
        ("float32", 163.4, 163.4, (16, 16, 4)),
        ("tf32", 163.4, 653.7, (16, 16, 8)),
        ("float16", 163.4, 1307.4, (16, 16, 16)),
        ("bfloat16", 163.4, 1307.4, (16, 16, 16)),
        ("int8", 163.4, 2614.9, (16, 16, 32)),
    ),
    warp_size=64,
    unit_warps=32,
    max_warps=8,
    unit_registers=131072,
    stages=(1, 2),
    source="AMD Instinct MI300X data sheet, CDNA 3 white paper; LLC is the 256 MB Infinity Cache",
)

SHIPPED: tuple[DeviceSpec, ...] = (V100, A100, H100, H200, B200, MI300X)

# Architectures without a spec of their own: closest relative, shared memory of one program in KiB, warp size.
# The limits are those of the CUDA programming guide (compute capabilities) and of AMD's ISA documents.
_RELATIVES: dict[str, tuple[DeviceSpec, int, int]] = {
    "75": (V100, 64, 32),
    "86": (A100, 99, 32),
    "87": (A100, 163, 32),
    "89": (A100, 99, 32),
    "120": (A100, 99, 32),
    "121": (A100, 99, 32),
    "gfx90a": (MI300X, 64, 64),
    "gfx950": (MI300X, 160, 64),
    "gfx1100": (MI300X, 64, 32),
    "gfx1101": (MI300X, 64, 32),
    "gfx1200": (MI300X, 64, 32),
    "gfx1201": (MI300X, 64, 32),
}


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
