"""GPU memory per process through NVML, where the pynvml module (package nvidia-ml-py) is importable."""

from __future__ import annotations

from typing import Any

from ..model import Entity
from .collectors import Tick


class GpuCollector:
    """At slow ticks: `gpu_bytes` of each process over all devices, and each device's use.

    Does nothing where pynvml or a driver is missing. Drivers hide the per-process number in some
    configurations (it reads as None); it is then left out.
    """

    def __init__(self, nvml: Any = None) -> None:
        self._nvml = nvml
        self._tried = nvml is not None

    def collect(self, tick: Tick) -> None:
        """Add `gpu_bytes` to processes and report the entities `gpu:N`."""
        if not tick.slow:
            return
        nvml = self._library()
        if nvml is None:
            return
        by_pid: dict[int, float] = {}
        try:
            for index in range(nvml.nvmlDeviceGetCount()):
                device = nvml.nvmlDeviceGetHandleByIndex(index)
                memory = nvml.nvmlDeviceGetMemoryInfo(device)
                tick.report(
                    Entity(tick.host, f"gpu:{index}"),
                    {"gpu_bytes": float(memory.used), "gpu_limit_bytes": float(memory.total)},
                )
                # A process may be listed both as compute and as graphics client of one device, with one total.
                seen: dict[int, float] = {}
                for listing in (
                    nvml.nvmlDeviceGetComputeRunningProcesses,
                    nvml.nvmlDeviceGetGraphicsRunningProcesses,
                ):
                    for client in listing(device):
                        if client.usedGpuMemory is not None:
                            used = float(client.usedGpuMemory)
                            seen[client.pid] = max(seen.get(client.pid, 0.0), used)
                for pid, used in seen.items():
                    by_pid[pid] = by_pid.get(pid, 0.0) + used
        except nvml.NVMLError:
            return
        for process in tick.processes:
            if process.pid in by_pid:
                process.values["gpu_bytes"] = by_pid[process.pid]

    def _library(self) -> Any:
        if not self._tried:
            self._tried = True
            try:
                import pynvml

                pynvml.nvmlInit()
                self._nvml = pynvml
            except Exception:  # no module, no driver, no device: NVML then simply is not there
                self._nvml = None
        return self._nvml
