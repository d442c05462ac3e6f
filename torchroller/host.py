"""Reading the CPU under us into a `DeviceSpec`: caches and cores from sysfs, vectors from LLVM.

Nothing is timed here (`calibrate.measure` does, for `python -m torchroller devices --calibrate`): a spec is
the same in every process of a machine, so the same graph gives the same kernels. What the operating system
does not say (bandwidths, the clock under load) is derived from stated rules of thumb, or taken from the
saved measurement.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from torchroller.spec import GB_S, DeviceSpec, GiB, KiB, MemLevel, MiB, Peak
from torchroller.triton_cpu.blocking import micro_kernels

_NO_CACHES = ((1, 32 * KiB, 1), (2, 512 * KiB, 1))  # (level, bytes, logical CPUs) where sysfs says nothing
L3_BYTES, _L3_BYTES_ZEN = 10, 24  # a clock for one core: a mesh of all cores, or a ring of eight
_HALF_RATE_512 = {"znver4", "icelake-client", "tigerlake", "rocketlake", "cannonlake", "skx-client"}
_DEFAULT_HZ = 3.0e9
# Until the prefetchers follow a run, its lines come one latency after the other. Measured on Zen 4, storing 256 MiB in
# rows of 4 KiB that lie in parts of 128 bytes to 4 KiB: 21 lines of each part take twice as long.
DRAM_RAMP_BYTES, L3_RAMP_BYTES = 1280, 256


@dataclass(frozen=True)
class Calibration:
    """What `calibrate.measure` found. Copies count what they read and what they write; 0 means not measured.

    dram_bytes_per_s, core_bytes_per_s: copying in DRAM, by all cores and by one
    bf16_, int8_flops_per_core: of instructions for these types, 0 where the CPU has none
    levels: (name, bytes per second that one core reads, that it copies)
    launch_s, fork_s: one kernel on the calling thread, and what waking the other threads adds
    """

    fma_flops_per_core: float
    dram_bytes_per_s: float
    core_bytes_per_s: float
    cores: int
    bf16_flops_per_core: float = 0.0
    int8_flops_per_core: float = 0.0
    dram_read_bytes_per_s: float = 0.0
    levels: tuple[tuple[str, float, float], ...] = ()
    launch_s: float = 0.0
    fork_s: float = 0.0


def read_cpu(
    cores: int | None = None,
    root: Path = Path("/"),
    calibration: Calibration | None | str = "saved",
    isa: tuple[str, frozenset[str]] | None = None,
) -> DeviceSpec:
    """A `DeviceSpec` of the CPU whose /sys and /proc lie under `root`; `isa` = (LLVM name, features)."""
    name, features = isa or host_isa()
    units = cores or usable_cores(root)
    if calibration == "saved":
        calibration = load_calibration()
    assert calibration is None or isinstance(calibration, Calibration)
    hz = _clock_hz(root)
    wide = "avx512f" in features
    vector_bytes = 64 if wide else 32 if "avx" in features or "avx2" in features else 16
    fmas = 1 if wide and name in _HALF_RATE_512 else 2
    per_core = 2.0 * fmas * (vector_bytes // 4) * hz
    if calibration is not None:
        per_core = calibration.fma_flops_per_core
    peak = per_core * units
    cycle_s = 2.0 * fmas * (vector_bytes // 4) / per_core  # of the clock under load that the peak implies
    # Intel's dpbf16ps issues every other cycle: there tl.dot widens bf16 to fp32 (lowering/dot.py).
    bf16 = peak * 2 if "avx512bf16" in features and name.startswith("znver") else None
    int8 = peak * 4 if wide and "avx512vnni" in features else peak if "avx2" in features else None
    if calibration is not None and calibration.bf16_flops_per_core and bf16:
        bf16 = calibration.bf16_flops_per_core * units
    if calibration is not None and calibration.int8_flops_per_core:
        int8 = calibration.int8_flops_per_core * units
    source = "sysfs, /proc/cpuinfo and LLVM host features; " + (
        "bandwidth and peak measured" if calibration else "bandwidth and clock by rule of thumb"
    )
    return DeviceSpec(
        name=_model_name(root) or name,
        kind="cpu",
        arch=name,
        units=units,
        levels=_levels(root, units, vector_bytes, cycle_s, calibration, l3_bytes_per_clock(name)),
        peaks=(
            Peak("float64", peak / 2),
            Peak("float32", peak),
            Peak("float16", peak),
            Peak("bfloat16", peak, bf16, (1, 16, 2)),
            Peak("int8", peak, int8, (1, 16, 4)),
        ),
        warp_size=1,
        max_warps=1,
        unit_warps=1,
        unit_partitions=1,
        unit_registers=8 * vector_bytes,
        thread_registers=8 * vector_bytes,
        program_scratch_bytes=0,
        unit_scratch_bytes=0,
        accumulator_bytes=0,
        stages=(1,),
        vector_bytes=vector_bytes,
        micro_kernels=micro_kernels(8 * vector_bytes),
        launch_s=(calibration.launch_s if calibration else 0.0) or 3e-7,
        fork_s=((calibration.fork_s if calibration else 0.0) or 7e-7) if units > 1 else 0.0,
        program_s=8e-9,
        step_s=2e-8,
        exposed=0.3,
        skew=0.15,
        source=source,
    )


def _levels(
    root: Path,
    units: int,
    vector_bytes: int,
    cycle_s: float,
    calibration: Calibration | None,
    l3_bytes: int = L3_BYTES,
) -> tuple[MemLevel, ...]:
    one_core = calibration.core_bytes_per_s if calibration else 20 * GB_S
    dram = calibration.dram_bytes_per_s if calibration else min(units * one_core, 200 * GB_S)
    measured = {level: read for level, read, _ in calibration.levels} if calibration else {}
    levels = [
        MemLevel("DRAM", _memory_bytes(root), dram, 64, False, 9e-8, one_core, ramp_bytes=DRAM_RAMP_BYTES)
    ]
    for level, size, sharers in sorted(_caches(root), reverse=True):
        # Bytes a clock for one core: two loads from L1, three quarters of a vector from L2, little from L3.
        one = {1: 2 * vector_bytes, 2: 3 * vector_bytes // 4}.get(level, l3_bytes) / cycle_s
        one = measured.get(f"L{level}", one)
        latency_s = {1: 1.5e-9, 2: 4e-9}.get(level, 1.5e-8)
        if level >= 3:
            levels.append(
                MemLevel(f"L{level}", size, one * units, 64, False, latency_s, one, ramp_bytes=L3_RAMP_BYTES)
            )
        else:
            # Two hyper-threads of one core share its caches; more sharers are cores that split them.
            own = size if sharers <= 2 else size * 2 // sharers
            levels.append(MemLevel(f"L{level}", own, one, 64, True, latency_s, one))
    return tuple(levels)


def l3_bytes_per_clock(name: str) -> int:
    """What one core draws from the last-level cache of the CPU that LLVM calls `name`."""
    return _L3_BYTES_ZEN if name.startswith("znver") else L3_BYTES


def host_isa() -> tuple[str, frozenset[str]]:
    """LLVM's name of this CPU and the features that are on, without importing torch or triton."""
    try:
        import llvmlite.binding as llvm

        features = dict(llvm.get_host_cpu_features())
        return llvm.get_host_cpu_name(), frozenset(k for k, on in features.items() if on)
    except (ImportError, RuntimeError):
        flags = _cpuinfo(Path("/")).get("flags", "").replace("avx512_", "avx512").split()
        return platform.machine(), frozenset(flags)


def usable_cores(root: Path = Path("/")) -> int:
    """Physical cores that this process may use: CPU affinity, hyper-threads counted once, cgroup quota."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = set()
    for cpu in sorted(allowed):
        text = _read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(text or str(cpu))
    quota = _cgroup_cpus(root)
    return max(1, min(len(siblings), int(quota) if quota else len(siblings)))


def _cgroup_cpus(root: Path) -> float | None:
    v2 = _read(root / "sys/fs/cgroup/cpu.max").split()
    if len(v2) == 2 and v2[0] != "max":
        return max(1.0, int(v2[0]) / int(v2[1]))
    quota = _read(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us")
    period = _read(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if quota and period and int(quota) > 0:
        return max(1.0, int(quota) / int(period))
    return None


def _caches(root: Path) -> list[tuple[int, int, int]]:
    """(level, bytes, logical CPUs sharing it) of the data and unified caches of CPU 0."""
    found = []
    for index in sorted((root / "sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if _read(index / "type") == "Instruction":
            continue
        level, size = _read(index / "level"), _read(index / "size")
        if not level or not size:
            continue
        scale = {"K": KiB, "M": MiB}.get(size[-1], 1)
        found.append(
            (int(level), int(size.rstrip("KM")) * scale, _count_cpus(_read(index / "shared_cpu_list")))
        )
    return found or list(_NO_CACHES)


def _count_cpus(text: str) -> int:
    """How many CPUs a kernel list such as `0-3,8` names."""
    total = 0
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1
    return max(1, total)


def _clock_hz(root: Path) -> float:
    top = _read(root / "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")
    if top:
        return int(top) * 1e3
    mhz = _cpuinfo(root).get("cpu MHz", "")
    return float(mhz) * 1e6 if mhz else _DEFAULT_HZ


def _memory_bytes(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * KiB
    return 8 * GiB


def _model_name(root: Path) -> str:
    return _cpuinfo(root).get("model name", "")


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo."""
    entry: dict[str, str] = {}
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, colon, value = line.partition(":")
        if not colon:
            break
        entry[key.strip()] = value.strip()
    return entry


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def cache_root() -> Path:
    """Where torchroller keeps things on disk: $TORCHROLLER_CACHE_DIR, or torchroller in the user's cache."""
    own = os.environ.get("TORCHROLLER_CACHE_DIR")
    return (
        Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchroller"
    )


def calibration_path() -> Path:
    return cache_root() / "devices" / f"{platform.node() or 'host'}.json"


def load_calibration(path: Path | None = None) -> Calibration | None:
    """The saved measurement of this machine, or None; a damaged file counts as absent."""
    try:
        data = json.loads((path or calibration_path()).read_text())
        levels = tuple((str(n), float(read), float(copy)) for n, read, copy in data.pop("levels", ()))
        cores = int(data.pop("cores"))
        return Calibration(**{k: float(v) for k, v in data.items()}, cores=cores, levels=levels)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def save_calibration(found: Calibration, path: Path | None = None) -> Path:
    path = path or calibration_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(found), indent=1))
    return path
