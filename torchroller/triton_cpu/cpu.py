"""The CPU to compile for, and the one this process runs on: names, features, caches, cores."""

from __future__ import annotations

import difflib
import functools
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from .errors import UnknownCPU

ENVIRONMENT = "TORCHROLLER_CPU"

# What each named CPU can do, as far as the lowering asks. LLVM knows more, but has no call that tells,
# and aborts the process on an intrinsic that the CPU lacks. tests/triton_cpu/test_cpu.py checks every name
# and feature here against the instructions that LLVM selects.
_V2 = frozenset({"sse2", "sse4.1", "sse4.2", "ssse3", "popcnt"})
_V3 = _V2 | {"avx", "avx2", "fma", "f16c", "bmi", "bmi2"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_CASCADELAKE = _V4 | {"avx512vnni"}
_ICELAKE = _CASCADELAKE | {"avx512vbmi", "avx512ifma"}
_SAPPHIRERAPIDS = _ICELAKE | {"avx512bf16", "avx512fp16", "avxvnni", "amx-tile", "amx-bf16", "amx-int8"}
_FEATURES: dict[str, frozenset[str]] = {
    "x86-64": frozenset({"sse2"}),
    "x86-64-v2": _V2,
    "x86-64-v3": _V3,
    "x86-64-v4": _V4,
    "haswell": _V3,
    "broadwell": _V3,
    "skylake": _V3,
    "alderlake": _V3 | {"avxvnni"},
    "skylake-avx512": _V4,
    "cascadelake": _CASCADELAKE,
    "cooperlake": _CASCADELAKE | {"avx512bf16"},
    "icelake-server": _ICELAKE,
    "sapphirerapids": _SAPPHIRERAPIDS,
    "emeraldrapids": _SAPPHIRERAPIDS,
    "graniterapids": _SAPPHIRERAPIDS | {"amx-fp16"},
    "znver1": _V3,
    "znver2": _V3,
    "znver3": _V3,
    "znver4": _ICELAKE | {"avx512bf16"},
    "znver5": _ICELAKE | {"avx512bf16", "avxvnni"},
}


@dataclass(frozen=True)
class CPU:
    """A CPU to compile for. `features` is LLVM's feature string ("" = all that the name implies)."""

    name: str
    features: str
    feature_names: frozenset[str] = field(repr=False)
    vector_bits: int

    def has(self, *features: str) -> bool:
        """True when the CPU has every one of `features` (LLVM's names, such as "avx512bf16")."""
        return self.feature_names.issuperset(features)


@dataclass(frozen=True)
class Caches:
    """Data cache sizes in bytes as one core sees them; None where the kernel does not tell."""

    l1d_bytes: int | None
    l2_bytes: int | None
    l3_bytes: int | None
    line_bytes: int


def _vector_bits(features: frozenset[str]) -> int:
    if features.issuperset(("avx512f", "avx512bw", "avx512dq", "avx512vl")):
        return 512
    return 256 if "avx2" in features else 128


@functools.cache
def host_cpu() -> CPU:
    """This machine's CPU, with the features that its operating system lets us use."""
    import llvmlite.binding as llvm

    available = llvm.get_host_cpu_features()
    names = frozenset(name for name, present in available.items() if present)
    return CPU(llvm.get_host_cpu_name(), available.flatten(), names, _vector_bits(names))


def known_cpus() -> tuple[str, ...]:
    """The names that `select_cpu` takes besides the host's."""
    return tuple(_FEATURES)


def select_cpu(name: str | None = None) -> CPU:
    """The CPU called `name`; without one, what TORCHROLLER_CPU says, else the host.

    Raises UnknownCPU for a name that is neither the host's nor in `known_cpus()`.
    """
    wanted = name or os.environ.get(ENVIRONMENT) or "host"
    host = host_cpu()
    if wanted in ("host", "native", host.name):
        return host
    features = _FEATURES.get(wanted)
    if features is None:
        close = tuple(difflib.get_close_matches(wanted, _FEATURES, n=2))
        raise UnknownCPU(wanted, known_cpus(), close)
    return CPU(wanted, "", features, _vector_bits(features))


def missing_on_host(cpu: CPU) -> tuple[str, ...]:
    """Features of `cpu` that code compiled for it may use and this machine lacks, sorted."""
    # The AMX tiles are used only through intrinsics that the lowering asks for, never by LLVM's own choice.
    needed = {name for name in cpu.feature_names if not name.startswith("amx")}
    return tuple(sorted(needed - host_cpu().feature_names))


def core_count() -> int:
    """CPUs that this process may keep busy: its affinity mask, cut by the cgroup's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _cgroup_quota(Path("/sys/fs/cgroup"))
    return max(1, min(cores, math.ceil(quota))) if quota else cores


def _cgroup_quota(root: Path) -> float | None:
    """CPUs' worth of time that the cgroup mounted at `root` (v2, then v1) grants; None when unlimited."""
    try:
        limit, period = (root / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            limit = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        return int(limit) / int(period) if int(limit) > 0 and int(period) > 0 else None
    except ValueError:  # "max"
        return None


def caches(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> Caches:
    """Sizes of the data caches, read from sysfs."""
    sizes: dict[int, int] = {}
    line = 64
    for index in sorted(root.glob("index*")):
        try:
            if (index / "type").read_text().strip() == "Instruction":
                continue
            text = (index / "size").read_text().strip()
            unit = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1)
            sizes[int((index / "level").read_text())] = int(text.rstrip("KMG")) * unit
            line = int((index / "coherency_line_size").read_text())
        except (OSError, ValueError):
            continue
    return Caches(sizes.get(1), sizes.get(2), sizes.get(3), line)
