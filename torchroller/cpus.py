"""CPUs that are not under us, by LLVM's name: for tiles and kernels of a machine that one does not have at hand.

    construct(expr, by_name("znver5"))          one socket of that CPU
    construct(expr, named("znver5", cores=8))   eight of its cores

Each is one representative part with figures of its data sheet: caches, memory channels, the clock of all cores under
vector load. `host.read_cpu` reads the CPU that is here; both follow the same rules for what no data sheet says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torchroller import host
from torchroller.spec import GB_S, DeviceSpec, GiB, KiB, MemLevel, MiB, Peak

_AVX2 = frozenset({"avx", "avx2", "fma"})
_AVX512 = _AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
_NOWHERE = Path("/nonexistent")  # read_cpu finds nothing there and takes its defaults


@dataclass(frozen=True)
class Part:
    """One socket. `l3_mib` is what one core can use: an L3 that is cut into slices counts as one of them."""

    model: str
    cores: int
    hz: float
    features: frozenset[str]
    l1_kib: int
    l2_kib: int
    l3_mib: float
    dram_gb_s: float
    core_gb_s: float
    source: str


PARTS: dict[str, Part] = {
    "haswell": Part(
        "Intel Xeon E5-2699 v3", 18, 2.6e9, _AVX2, 32, 256, 45, 68, 12,
        "Intel ARK and the Xeon E5 v3 specification update (AVX clocks); 4 channels of DDR4-2133",
    ),
    "skylake-avx512": Part(
        "Intel Xeon Platinum 8180", 28, 2.3e9, _AVX512, 32, 1024, 38.5, 128, 12,
        "Intel ARK and the Xeon Scalable specification update (AVX-512 clocks); 6 channels of DDR4-2666",
    ),
    "sapphirerapids": Part(
        "Intel Xeon Platinum 8480+", 56, 2.6e9, _AVX512 | {"avx512bf16", "avx512vnni"}, 48, 2048, 105, 307, 14,
        "Intel ARK; 8 channels of DDR5-4800; AMX is not counted, torchroller does not use it",
    ),
    "znver3": Part(
        "AMD EPYC 7763", 64, 3.1e9, _AVX2, 32, 512, 32, 205, 24,
        "AMD EPYC 7003 data sheet: 8 channels of DDR4-3200, 32 MB of L3 per 8 cores",
    ),
    "znver4": Part(
        "AMD EPYC 9654", 96, 3.5e9, _AVX512 | {"avx512bf16", "avx512vnni"}, 32, 1024, 32, 461, 30,
        "AMD EPYC 9004 data sheet: 12 channels of DDR5-4800, 32 MB of L3 per 8 cores; 512-bit in two passes",
    ),
    "znver5": Part(
        "AMD EPYC 9755", 128, 3.4e9, _AVX512 | {"avx512bf16", "avx512vnni"}, 48, 1024, 32, 614, 28,
        "AMD EPYC 9005 data sheet: 12 channels of DDR5-6400, 32 MB of L3 per 8 cores",
    ),
}  # fmt: skip


def named(name: str, cores: int | None = None) -> DeviceSpec:
    """One socket of the CPU that LLVM calls `name`, or `cores` of its cores. Raises ValueError for others."""
    part = PARTS.get(name.lower())
    if part is None:
        raise ValueError(f"no CPU named {name!r}: known are {', '.join(PARTS)}")
    units = cores or part.cores
    if not 1 <= units <= part.cores:
        raise ValueError(f"{part.model} has {part.cores} cores, {units} were asked for")
    like = host.read_cpu(cores=units, root=_NOWHERE, calibration=None, isa=(name.lower(), part.features))
    scale = part.hz / host._DEFAULT_HZ
    peaks = tuple(
        Peak(p.dtype, p.vector_flops * scale, p.matrix_flops and p.matrix_flops * scale, p.instruction)
        for p in like.peaks
    )
    return replace(
        like,
        name=part.model if units == part.cores else f"{part.model}, {units} cores",
        levels=_levels(part, name.lower(), units, like.vector_bytes),
        peaks=peaks,
        source=f"{part.source}; cache bandwidths by rule of thumb",
    )


def _levels(part: Part, name: str, units: int, vector_bytes: int) -> tuple[MemLevel, ...]:
    """DRAM to L1; bytes a clock of one core as in host.py: some from L3, 3/4 of a vector from L2, two from L1."""
    one = part.core_gb_s * GB_S
    dram = min(part.dram_gb_s * GB_S, units * one)
    l3, l2, l1 = (
        part.hz * b for b in (host.l3_bytes_per_clock(name), 3 * vector_bytes // 4, 2 * vector_bytes)
    )
    return (
        MemLevel("DRAM", 256 * GiB, dram, 64, False, 9e-8, one, ramp_bytes=host.DRAM_RAMP_BYTES),
        MemLevel(
            "L3", int(part.l3_mib * MiB), l3 * units, 64, False, 1.5e-8, l3, ramp_bytes=host.L3_RAMP_BYTES
        ),
        MemLevel("L2", part.l2_kib * KiB, l2, 64, True, 4e-9, l2),
        MemLevel("L1", part.l1_kib * KiB, l1, 64, True, 1.5e-9, l1),
    )
