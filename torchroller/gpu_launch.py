"""Launches on a GPU: through the launchers that Triton compiles, with addresses instead of tensors.

Triton's `kernel[grid](*tensors)` asks for the device, the stream and every tensor's address at each launch, about 10 µs
of Python. A plan knows all of it in advance but the stream and the addresses that moved since its last call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def loaded(handle: Any, device: int | torch.device) -> Any:
    """Triton's launcher of a compiled kernel, whose machine code is then on `device`."""
    with torch.cuda.device(device):
        return handle.run


def allow_scratch(device: torch.device) -> None:
    """Lets kernels that build tensor descriptors allocate them; Triton keeps the allocator per thread and context."""
    import triton

    def allocate_scratch(size: int, alignment: int, stream: int | None) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int8, device=device)  # PyTorch aligns to 512 bytes

    triton.set_allocator(allocate_scratch)


class GpuSegment:
    """Consecutive launches on one GPU, in order, on the stream that is current when they are called.

    owner: the plan's instance, with `fixed` and `slot` and `places` (see plan.py)
    """

    def __init__(self, owner: Any, launches: Sequence[Any]) -> None:
        from triton import knobs

        self.device: torch.device = owner.plan.executor.device
        self.index = self.device.index if self.device.index is not None else torch.cuda.current_device()
        self.launches: list[tuple[Any, int, Any, Any, list[int], Any]] = []
        self.scratch = False
        self.driver, self.knobs = owner.plan.executor.driver, knobs
        for launch in launches:
            args = [owner.fixed.get(name, 0) for name in launch.buffers]
            for i, name in enumerate(launch.buffers):
                if name in owner.slot:
                    owner.places[owner.slot[name]].append((args, i))
            handle = launch.kernel.handle
            self.scratch |= bool(getattr(handle.metadata, "global_scratch_size", 0))
            run = loaded(handle, self.index)
            grid = launch.kernel.source.grid
            self.launches.append((run, grid, handle.function, handle.packed_metadata, args, handle))

    def call(self) -> None:
        if torch.cuda.current_device() != self.index:
            with torch.cuda.device(self.index):
                self.queue()
        else:
            self.queue()

    def queue(self) -> None:
        if self.scratch:
            allow_scratch(self.device)
        stream, knobs = self.driver.get_current_stream(self.index), self.knobs
        enter, leave = _called(knobs.runtime.launch_enter_hook), _called(knobs.runtime.launch_exit_hook)
        for run, grid, function, packed, args, handle in self.launches:
            told = handle.launch_metadata((grid, 1, 1), stream, *args) if enter is not None else None
            run(grid, 1, 1, stream, function, packed, told, enter, leave, *args)


def _called(hook: Any) -> Any:
    """A hook of Triton's profiler; None where nobody has registered one: Triton would call an empty list."""
    return hook if getattr(hook, "calls", hook) else None
