"""Where the coefficients of the cost model come from: in this order `calibrate()` in this process, the cache file that
it wrote, figures shipped for this class of CPU, or the device's peaks with shipped efficiencies.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch

from torchroller.device import DeviceSpec
from torchroller.host import load_calibration

from .cost import Rates
from .vector_unit import vector_unit

SHIPPED_EFFICIENCY = {
    "1": 0.50, "2": 0.65, "4": 0.85, "8": 0.88, "dense": 0.85, "nm": 0.35, "dot16": 0.66, "dot32": 0.85,
    "dotdense": 0.95, "dot16/i8": 1.4, "dot32/i8": 2.3, "dotdense/i8": 2.6, "1/i8": 0.5,
}  # fmt: skip
"""Share of the float32 vector peak that each class reaches: measured with AVX-512 on Emerald Rapids, two cores."""


@dataclass(frozen=True)
class ClassRates:
    """Rates of one thread of a class of CPUs, and the peak of the core that they were measured on."""

    rates: Rates
    fma_flops_per_core: float


MEASURED = {
    "znver4": ClassRates(
        Rates(
            device="Zen 4", threads=1, launch_s=2.6e-6, panel_s=4e-11, epilogue_s=2.3e-10, store_s=1.9e-10,
            quantise_s=1.37e-10, list_s=3.6e-9,
            mac_s={
                "1": 2.45e-11, "1m": 3.46e-11, "2": 2.06e-11, "4": 1.84e-11, "8": 1.87e-11, "dense": 2.66e-11,
                "nm": 4.0e-11, "dot16": 2.12e-11, "dot32": 1.93e-11, "dotdense": 1.83e-11, "1/i8": 2.4e-11,
                "1m/i8": 3.68e-11, "2/i8": 2.08e-11, "4/i8": 1.85e-11, "8/i8": 2.0e-11, "dense/i8": 3.11e-11,
                "dot16/i8": 1.06e-11, "dot32/i8": 7.9e-12, "dotdense/i8": 5.5e-12, "dense/int8": 3.3e-11,
                "8/int8": 2.07e-11,
            },
            dense_launch_s=3.2e-6, dense_mac_s=1.94e-11, source="measured on Zen 4, one thread", spill_s=1.6e-10,
        ),
        fma_flops_per_core=118e9,
    ),
}  # fmt: skip
"""By LLVM's name of the CPU. Least squares of relative errors over 852 timings: every way to compute the layers of
`make bench-sparta` (four shapes, 13 patterns in float32 and five in int8, 128 tokens), thread CPU time, median of many
calls. "nm", ".../int8" and PyTorch's own product are from `calibrate`. 3.69 GHz under load."""

VERSION = 4


def shipped_rates(spec: DeviceSpec, threads: int) -> Rates:
    """Rates from a device's peaks and the shipped efficiencies; `threads` of its units take part (CPU only)."""
    if spec.is_cpu and spec.arch in MEASURED and vector_unit().wide:
        return _measured_class(spec, threads)
    share = min(threads, spec.units) / spec.units if spec.is_cpu else 1.0
    peak = spec.peak("float32").vector_flops * share
    mac_s = {kind: 2.0 / (peak * e) for kind, e in SHIPPED_EFFICIENCY.items()}
    moved = 1.0e-10 / max(1, threads) if spec.is_cpu else 8.0 / spec.dram.bandwidth_bytes_per_s
    return Rates(
        device=spec.name,
        threads=threads,
        launch_s=spec.launch_s + spec.fork_s + 4e-6,
        panel_s=2 * moved,
        epilogue_s=2 * moved,
        store_s=moved / 4,
        quantise_s=4 * moved,
        list_s=4e-9 / max(1, threads),
        mac_s=mac_s,
        dense_launch_s=3e-6,
        dense_mac_s=2.0 / (peak * 0.9),
        source=f"shipped efficiencies, peaks of {spec.name}",
    )


def cache_file() -> Path:
    """Where `calibrate` keeps its figures: one file per machine model and number of threads."""
    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "torchsparta"
    key = f"{processor()}-{torch.get_num_threads()}t-v{VERSION}"
    return root / f"rates-{''.join(c if c.isalnum() else '_' for c in key)}.json"


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


_in_process: dict[tuple[str, int], Rates] = {}
"""By device type and threads: what `calibrate` measured, or what its file said."""


def rates_for(device: torch.device | str = "cpu") -> Rates:
    """The rates that predictions on this device use. Measures nothing; see `calibrate`."""
    device = torch.device(device)
    threads = torch.get_num_threads()
    known = _in_process.get((device.type, threads))
    if known is not None:
        return known
    if device.type == "cpu":
        cached = _read_cache(threads)
        if cached is not None:
            _in_process[(device.type, threads)] = cached
            return cached
        return shipped_rates(_spec("cpu"), threads)
    return shipped_rates(_spec(str(device)), 1)


def _read_cache(threads: int) -> Rates | None:
    try:
        read = json.loads(cache_file().read_text())
        rates = Rates(**read)
    except (OSError, ValueError, TypeError):
        return None  # absent, unreadable or of another version: the shipped rates stand in
    return rates if rates.threads == threads else None


@lru_cache(maxsize=8)
def _spec(device: str) -> DeviceSpec:
    if device == "cpu":
        return DeviceSpec.for_target("cpu")
    properties = torch.cuda.get_device_properties(device)
    if getattr(torch.version, "hip", None):
        return DeviceSpec.for_target(
            "hip", properties.gcnArchName.split(":")[0], properties.multi_processor_count
        )
    return DeviceSpec.for_target(
        "cuda", properties.major * 10 + properties.minor, properties.multi_processor_count
    )


def _measured_class(spec: DeviceSpec, threads: int) -> Rates:
    """The figures of this CPU's class; where `torchroller devices --calibrate` knows this core's peak, at its clock."""
    shipped = MEASURED[spec.arch]
    found = load_calibration()
    slower = shipped.fma_flops_per_core / found.fma_flops_per_core if found else 1.0
    each = slower / max(1, min(threads, spec.units))
    r = shipped.rates
    return replace(
        r,
        device=spec.name,
        threads=threads,
        launch_s=r.launch_s * slower + (spec.fork_s if threads > 1 else 0.0),
        panel_s=r.panel_s * each,
        epilogue_s=r.epilogue_s * each,
        store_s=r.store_s * each,
        quantise_s=r.quantise_s * each,
        list_s=r.list_s * each,
        mac_s={kind: s * each for kind, s in r.mac_s.items()},
        dense_launch_s=r.dense_launch_s * slower,
        dense_mac_s=r.dense_mac_s * each,
        spill_s=r.spill_s * each,
        source=f"shipped for {shipped.rates.device}"
        + (", at the measured peak of this core" if found else ""),
    )


def keep(rates: Rates, save: bool) -> None:
    """Predictions of this process use these rates of the CPU from now on; of others too, with `save`."""
    _in_process[("cpu", rates.threads)] = rates
    if not save:
        return
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(json.dumps(asdict(rates), indent=1))
        partial.replace(path)
    except OSError:
        pass  # a read-only home: the figures live as long as the process
