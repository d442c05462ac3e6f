"""What is read of the host as a whole: kernel memory, free memory, shared memory segments."""

from __future__ import annotations

import contextlib
import os

from ..model import Entity
from .collectors import Tick
from .procfs import HeldFile, keyed_kilobytes

# slab_bytes is what the kernel cannot give back: caches of names and inodes grow without being a leak.
_KERNEL = {
    b"SUnreclaim": "slab_bytes",
    b"SReclaimable": "slab_reclaimable_bytes",
    b"KernelStack": "kernel_stack_bytes",
    b"PageTables": "page_tables_bytes",
    b"VmallocUsed": "vmalloc_bytes",
    b"Percpu": "percpu_bytes",
}
_HOST = {
    b"MemTotal": "memory_total_bytes",
    b"MemAvailable": "memory_available_bytes",
    b"Shmem": "shmem_bytes",
    b"SwapTotal": "swap_total_bytes",
    b"SwapFree": "swap_free_bytes",
}


class KernelCollector:
    """Unreclaimable slab, page tables, vmalloc and the host's totals from /proc/meminfo."""

    def __init__(self) -> None:
        self._meminfo: HeldFile | None = None

    def collect(self, tick: Tick) -> None:
        """Report the entities `kernel` and `host`."""
        if self._meminfo is None:
            self._meminfo = HeldFile(f"{tick.roots.proc}/meminfo")
        data = self._meminfo.read()
        if not data:
            return
        sizes = keyed_kilobytes(data)
        kernel = {name: float(sizes[key]) for key, name in _KERNEL.items() if key in sizes}
        tick.report(Entity(tick.host, "kernel"), kernel)
        tick.report(
            Entity(tick.host, "host"),
            {name: float(sizes[key]) for key, name in _HOST.items() if key in sizes},
        )


class SharedMemoryCollector:
    """Bytes and files in /dev/shm: segments that nobody unlinked belong to no process's anonymous memory."""

    def collect(self, tick: Tick) -> None:
        """Report `dev_shm_bytes` every tick and `dev_shm_files` at slow ticks, on the entity `host`."""
        try:
            usage = os.statvfs(tick.roots.shm)
        except OSError:
            return
        values = {
            "dev_shm_bytes": float((usage.f_blocks - usage.f_bfree) * usage.f_frsize),
            "dev_shm_size_bytes": float(usage.f_blocks * usage.f_frsize),
        }
        if tick.slow:
            with contextlib.suppress(OSError):
                values["dev_shm_files"] = float(len(os.listdir(tick.roots.shm)))
        tick.report(Entity(tick.host, "host"), values)
