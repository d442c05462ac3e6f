"""Devices: the CPU under us and the GPUs that are shipped, each one `DeviceSpec` of data.

Figures of GPUs are data-sheet peaks, dense (no structured sparsity), with the source in `source`. Cache
bandwidths, which vendors seldom state, follow from bytes per clock times clock or from the cited
measurement. They rank candidates; they do not promise times. To add a device: docs/recipes/add_a_device.md.
"""

from __future__ import annotations

import functools
from dataclasses import replace

from torchroller.spec import (
    GB_S,
    TB_S,
    TFLOPS,
    TRITON_MAX_NUMEL,
    DeviceSpec,
    GiB,
    KiB,
    MemLevel,
    MiB,
    Peak,
    rate_text,
    size_text,
)

__all__ = [
    "A100",
    "B200",
    "DeviceSpec",
    "GB_S",
    "GiB",
    "H100",
    "H200",
    "KiB",
    "MI250X",
    "MI300X",
    "MemLevel",
    "MiB",
    "Peak",
    "SHIPPED",
    "TB_S",
    "TFLOPS",
    "TRITON_MAX_NUMEL",
    "V100",
    "by_name",
    "cpu",
    "for_target",
    "rate_text",
    "size_text",
]


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
    "arXiv:1804.06826 (2.15 TB/s). Triton supports NVIDIA GPUs from sm_80 on: construction and ranking only.",
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
).multiplying("bf16x6")

H100 = _gpu(
    "H100",
    "cuda",
    "90",
    units=132,
    clock_hz=1.83e9,
    scratch_kib=228,
    program_scratch_kib=227,
    dram=_hbm(80, 3.35),
    l2=_l2(50, 13.0),
    peaks=_peaks(
        ("float64", 33.5, 66.9, (16, 8, 4)),
        ("float32", 66.9),
        ("tf32", 66.9, 494.7, (64, 16, 8)),
        ("float16", 133.8, 989.4, (64, 16, 16)),
        ("bfloat16", 133.8, 989.4, (64, 16, 16)),
        ("int8", 66.9, 1978.9, (64, 16, 32)),
    ),
    source="NVIDIA H100 SXM5 data sheet, Hopper white paper; L2: a product of 8192^3 in bfloat16 was seen to draw "
    "8.7 TB/s (Triton 3.6), more than the 5120 B a clock of A100 would give",
).multiplying("bf16x6")

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
).multiplying("bf16x6")

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

MI250X = _gpu(
    "MI250X",
    "hip",
    "gfx90a",
    units=110,
    clock_hz=1.7e9,
    scratch_kib=64,
    dram=_hbm(64, 1.6, transaction_bytes=64),
    l2=_l2(8, 6.96, transaction_bytes=128),
    peaks=_peaks(
        ("float64", 23.9, 47.9, (16, 16, 4)),
        ("float32", 23.9, 47.9, (16, 16, 4)),
        ("float16", 47.9, 191.5, (16, 16, 16)),
        ("bfloat16", 23.9, 191.5, (16, 16, 16)),
        ("int8", 23.9, 191.5, (16, 16, 16)),
    ),
    warp_size=64,
    unit_warps=32,
    max_warps=8,
    unit_registers=131072,
    stages=(1, 2),
    source="AMD Instinct MI250X data sheet, CDNA 2 white paper (L2: 4096 B a clock); one of its two dies, "
    "which is what PyTorch shows as a device",
)

SHIPPED: tuple[DeviceSpec, ...] = (V100, A100, H100, H200, B200, MI250X, MI300X)

# Architectures without a spec of their own: closest relative, shared memory of one program in KiB, warp size.
# The limits are those of the CUDA programming guide (compute capabilities) and of AMD's ISA documents.
_RELATIVES: dict[str, tuple[DeviceSpec, int, int]] = {
    "75": (V100, 64, 32),
    "86": (A100, 99, 32),
    "87": (A100, 163, 32),
    "89": (A100, 99, 32),
    "120": (A100, 99, 32),
    "121": (A100, 99, 32),
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
    """`cpu`, a shipped GPU, or a CPU by LLVM's name (`znver5`), in any case. Raises ValueError for others."""
    if name.lower() == "cpu":
        return cpu()
    for spec in SHIPPED:
        if spec.name.lower() == name.lower():
            return spec
    from torchroller import cpus

    if name.lower() in cpus.PARTS:
        return cpus.named(name)
    known = ["cpu", *(d.name for d in SHIPPED), *cpus.PARTS]
    raise ValueError(f"no device named {name!r}: known are {', '.join(known)}")


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
        ).multiplying("ieee")  # their matrix units are not six times as fast at bfloat16 as multiply-adds
    else:
        exact = [d for d in family if d.arch == arch_name]
        older = [d for d in family if _arch_number(d.arch) <= _arch_number(arch)]
        spec = (exact or list(reversed(older)) or family)[0]
    return replace(spec, units=units, name=f"{spec.name}, {units} units") if units else spec
