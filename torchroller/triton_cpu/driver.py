"""Triton's runtime on the CPU: which driver is active, loading of compiled kernels, benchmarking.

Triton imports this module during `import triton`, in every program on the machine: it must be cheap and must
not raise. It holds exactly one concrete subclass of DriverBase, because Triton looks for exactly one.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from .compiler import BACKEND

_asking = threading.local()


def current_target() -> GPUTarget:
    """The target that kernels are compiled for here: this machine's CPU, or what TORCHROLLER_CPU names."""
    from .cpu import select_cpu

    return GPUTarget(BACKEND, select_cpu().name, 1)


class Event:
    """A point in time, with the interface of torch.cuda.Event. Launches are synchronous."""

    def __init__(self, enable_timing: bool = True, **_: Any) -> None:
        self.time_s = 0.0

    def record(self, stream: Any = None) -> None:
        self.time_s = time.perf_counter()

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from this event to `end`."""
        return (end.time_s - self.time_s) * 1e3

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        return True


class CPUDeviceInterface:
    """The part of torch.cuda that Triton's own tools ask a device for."""

    Event = Event

    @staticmethod
    def synchronize(device: Any = None) -> None:
        """Nothing to wait for: a launch returns when the kernel has run."""

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def is_available() -> bool:
        return True


class CPUUtils:
    """Loads compiled kernels, and the calls that a plan of many kernels is built from."""

    def load_binary(
        self, name: str, binary: bytes, shared: int, device: int
    ) -> tuple[Any, Any, int, int, int]:
        """(module, function, registers, spills, most threads) as Triton wants them.

        `function` is a ctypes function over the address of a launch block (abi.py).
        """
        import ctypes

        from . import abi, jit

        library = jit.link(name, binary, abi.ENTRY)
        return library, library.function(None, ctypes.c_void_p), 32, 0, 1 << 30

    def get_device_properties(self, device: int = 0) -> dict[str, int]:
        """What kernels read to size their grids. Shared memory has no limit here: scratch is plain memory."""
        from .cpu import core_count

        return {
            "max_shared_mem": 1 << 30,
            "max_num_regs": 32 * 64,
            "multiprocessor_count": core_count(),
            "warpSize": 1,
            "sm_clock_rate": 0,
            "mem_clock_rate": 0,
            "mem_bus_width": 0,
        }

    def set_printf_fifo_size(self, size_bytes: int) -> None:
        """Nothing: device_print writes to the process's own output."""

    def entry_address(self, kernel: Any) -> int:
        """Address of `void entry(block)` of a CompiledKernel or of the function that load_binary gave.

        The code stays loaded as long as the kernel (or function) that was passed is alive. It is loaded here,
        not by the active driver, which on a machine with a GPU is another one.
        """
        import ctypes

        if hasattr(kernel, "asm"):
            loaded = getattr(kernel, "_cpu_function", None)
            if loaded is None:
                loaded = kernel._cpu_function = self.load_binary(kernel.name, kernel.asm["obj"], 0, 0)[1]
            kernel = loaded
        address = ctypes.cast(kernel, ctypes.c_void_p).value
        assert address is not None
        return address

    @functools.cached_property
    def run_many(self) -> Any:
        """ctypes function run_many(n, entries, blocks): calls entries[i](blocks[i]) for i < n, in order.

        `entries` and `blocks` are ctypes arrays of n addresses (c_void_p × n). Nothing in a block is written,
        so the arrays and blocks can be reused as they are.
        """
        import ctypes

        from . import abi, jit
        from .cpu import host_cpu

        code = jit.optimize(abi.RUN_MANY, abi.RUN_MANY_IR, host_cpu()).object_code()
        library = jit.link(abi.RUN_MANY, code, abi.RUN_MANY)
        return library.function(None, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)

    def pack_block(
        self, grid: Sequence[int], args: Sequence[int | float], types: Sequence[str], **fields: Any
    ) -> Any:
        """A launch block on torch's pool with its current number of threads; see abi.pack_block."""
        from . import abi, openmp

        fields.setdefault("threads", openmp.thread_count())
        fields.setdefault("gomp_parallel", openmp.gomp_parallel())
        return abi.pack_block(grid, args, types, **fields)


class CPUDriver(DriverBase):
    """The CPU as a Triton device: number 0, with one stream, on which launches run at once."""

    def __init__(self) -> None:
        from .launch import CPULauncher

        super().__init__()
        self.utils = CPUUtils()
        self.launcher_cls = CPULauncher

    @staticmethod
    def is_active() -> bool:
        """True when TRITON_DEFAULT_BACKEND names this backend, or names none and no GPU driver is active.

        Triton, and programs that count active drivers, refuse two of them.
        """
        selected = os.environ.get("TRITON_DEFAULT_BACKEND")
        if selected:
            return selected == BACKEND
        return not _another_driver_is_active()

    def get_current_target(self) -> GPUTarget:
        return current_target()

    def get_active_torch_device(self) -> Any:
        return importlib.import_module("torch").device("cpu")

    def get_current_device(self) -> int:
        return 0

    def set_current_device(self, device: int) -> None:
        """Nothing: there is one device."""

    def get_current_stream(self, device: Any = None) -> int:
        return 0

    def get_device_capability(self, device: Any = None) -> tuple[int, int]:
        """(0, 0): a CPU has no compute capability, and every check for a feature of a GPU should fail."""
        return 0, 0

    def get_device_interface(self) -> type[CPUDeviceInterface]:
        return CPUDeviceInterface

    def map_python_to_cpp_type(self, ty: str) -> str:
        if ty.startswith("*"):
            return "void*"
        names = {
            "fp16": "_Float16",
            "bf16": "__bf16",
            "fp32": "float",
            "f32": "float",
            "fp64": "double",
            "i1": "bool",
        }
        return names.get(ty) or f"{'u' if ty[0] == 'u' else ''}int{ty[1:]}_t"

    def get_benchmarker(self) -> Any:
        from triton.testing import do_bench

        return do_bench

    def get_empty_cache_for_benchmark(self) -> Any:
        """A tensor as large as the last-level cache (at most 256 MiB), to overwrite between measurements."""
        from .cpu import caches

        sizes = caches()
        size_bytes = min(max(filter(None, (sizes.l3_bytes, sizes.l2_bytes, 1 << 25))), 1 << 28)
        torch = importlib.import_module("torch")
        return torch.empty(size_bytes // 4, dtype=torch.int32, device="cpu")

    def clear_cache(self, cache: Any) -> None:
        cache.zero_()


def _another_driver_is_active() -> bool:
    if getattr(_asking, "now", False):  # another backend defers to us in the same way
        return True
    _asking.now = True
    try:
        from triton.backends import backends

        for name, backend in backends.items():
            if name == BACKEND:
                continue
            try:
                if backend.driver.is_active():
                    return True
            except Exception:  # a broken driver of another vendor is not ours to report
                continue
        return False
    finally:
        _asking.now = False
