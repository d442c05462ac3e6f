"""A fixed sequence of launches with a few pointers left open: what a specialised layer runs per call.

The first call goes through Triton's launcher. Afterwards, on the native CPU backend, the launch blocks of the
compiled kernels are kept and a call only writes the open pointers into them: tens of microseconds less, which
is more than a small sparse product takes. Elsewhere every call goes through Triton.

Work space (input panels, accumulators between column blocks) comes from one arena per thread, so that the
layers of a model share it and it stays in cache.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torchroller.kernel import frontend

from .program import Launch, interpreting

_ALIGN = 64
_MASK = 15  # Triton specialises kernels on pointers that are multiples of 16
_local = threading.local()


@dataclass(frozen=True)
class Open:
    """A pointer that is given at each call, by name."""

    name: str


@dataclass(frozen=True)
class Space:
    """A work buffer of `count` elements, shared by all launches of a plan under its name."""

    name: str
    count: int
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return -(-self.count * self.dtype.itemsize // _ALIGN) * _ALIGN


@dataclass(frozen=True)
class Step:
    """One launch: `arguments` are numbers, tensors, `Open` pointers or `Space` buffers."""

    launch: Launch
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]


@dataclass(eq=False)
class Plan:
    """Steps in order. Call it with the open tensors by name; reentrant and safe between threads."""

    steps: tuple[Step, ...]
    _free: list[_Blocks] = field(default_factory=list)
    _compiled: list[Any] | None = None

    def spaces(self) -> dict[str, Space]:
        return {a.name: a for s in self.steps for a in s.arguments if isinstance(a, Space)}

    def ready(self, addresses: dict[str, int]) -> bool:
        """Run with these addresses if the native kernels are at hand and take them; else do nothing: False."""
        if self._compiled is None:
            return False
        for address in addresses.values():
            if address & _MASK:
                return False
        try:
            blocks = self._free.pop()
        except IndexError:
            blocks = _Blocks(self, self._compiled)
        blocks.run(addresses, torch.get_num_threads())
        self._free.append(blocks)
        return True

    def __call__(self, **opened: Tensor) -> None:
        addresses = {name: t.data_ptr() for name, t in opened.items()}
        if self.ready(addresses):
            return
        aligned = not any(a & _MASK for a in addresses.values())
        device = next(iter(opened.values())).device
        space = {n: torch.empty(s.count, dtype=s.dtype, device=device) for n, s in self.spaces().items()}
        kernels = []
        for step in self.steps:
            arguments = [
                opened[a.name] if isinstance(a, Open) else space[a.name] if isinstance(a, Space) else a
                for a in step.arguments
            ]
            with frontend:  # the launcher compiles a kernel at its first launch
                kernels.append(step.launch(step.grid, *arguments))
        if device.type == "cpu" and aligned and not interpreting() and all(map(_native, kernels)):
            self._compiled = kernels


MOST_REPEATS = 64


@dataclass(eq=False)
class Repeats:
    """Calls of a linear layer that are like an earlier one: shapes, strides and slabs were settled then.

    Such a call needs the addresses only, which takes a third of the time that settling them takes.
    """

    _known: dict[tuple[Any, ...], tuple[Plan, tuple[int, ...]]] = field(default_factory=dict)

    def run(self, x: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor | None:
        """The output, or None where nothing like this was called before."""
        known = self._known.get(_call_key(x, bias, residual))
        if known is None:
            return None
        plan, shape = known
        y = torch.empty(shape, dtype=x.dtype, device=x.device)
        addresses = {"x": x.data_ptr(), "y": y.data_ptr()}
        if bias is not None:
            addresses["bias"] = bias.data_ptr()
        if residual is not None:
            if residual.shape != y.shape or not residual.is_contiguous():
                return None
            addresses["residual"] = residual.data_ptr()
        return y if plan.ready(addresses) else None

    def remember(
        self, x: Tensor, flat: Tensor, y: Tensor, bias: Tensor | None, residual: Tensor | None, plan: Plan
    ) -> None:
        """`plan` computed all of y from `flat`, which is x itself in two dimensions (else nothing is kept)."""
        if x.device.type != "cpu" or flat.data_ptr() != x.data_ptr():
            return
        if len(self._known) >= MOST_REPEATS:
            self._known.pop(next(iter(self._known)), None)
        self._known[_call_key(x, bias, residual)] = plan, tuple(y.shape)


def _call_key(x: Tensor, bias: Tensor | None, residual: Tensor | None) -> tuple[Any, ...]:
    return (
        x.shape, x.stride(), x.dtype, x.device,
        None if bias is None else bias.dtype, None if residual is None else residual.dtype,
    )  # fmt: skip


def _native(kernel: Any) -> bool:
    """Whether a launched kernel came from the native CPU backend."""
    target = getattr(getattr(kernel, "metadata", None), "target", None)
    return getattr(target, "backend", None) == "cpu"


class _Blocks:
    """The launch blocks of one plan, owned by one call at a time."""

    def __init__(self, plan: Plan, kernels: list[Any]) -> None:
        from triton.runtime import driver

        from torchroller.triton_cpu import abi, launch

        utils = driver.active.utils
        self._kernels = kernels  # keeps the machine code loaded
        self._run: Callable[..., None] = utils.run_many
        self._scratch: Callable[[int], int] = launch.scratch
        self._blocks: list[Any] = []
        self._open: list[tuple[Any, int, str]] = []
        self._space: list[tuple[Any, int, int]] = []
        self._held: list[Tensor] = []
        self._strides = [abi.scratch_stride(k.metadata.scratch_bytes) for k in kernels]
        self._threads = 0
        offsets, total = {}, 0
        for name, space in plan.spaces().items():
            offsets[name] = total
            total += space.nbytes
        self._space_bytes = total
        first = abi.ARGUMENTS_OFFSET // abi.SLOT_BYTES
        for step, kernel in zip(plan.steps, kernels):
            leaves = list(launch.flatten_signature(kernel.src.signature))
            values: list[Any] = []
            later: list[tuple[int, Any]] = []
            for slot, (_, expression) in enumerate(leaves):
                argument = step.arguments[int(expression[1:])]
                if isinstance(argument, (Open, Space)):
                    later.append((slot, argument))
                    values.append(0)
                elif isinstance(argument, Tensor):
                    self._held.append(argument)
                    values.append(argument.data_ptr())
                else:
                    values.append(argument)
            types = [t for t, _ in leaves]
            block = utils.pack_block(step.grid, values, types, scratch_bytes=0)
            words = (ctypes.c_uint64 * (len(block) // 8)).from_buffer(block)
            self._blocks.append((block, words))
            for slot, argument in later:
                if isinstance(argument, Open):
                    self._open.append((words, first + slot, argument.name))
                else:
                    self._space.append((words, first + slot, offsets[argument.name]))
        count = len(kernels)
        self._count = count
        self._entries = (ctypes.c_void_p * count)(*(utils.entry_address(k) for k in kernels))
        self._addresses = (ctypes.c_void_p * count)(*(ctypes.addressof(b) for b, _ in self._blocks))
        self._threads_word = abi.THREADS_OFFSET // 8
        self._scratch_word = abi.SCRATCH_OFFSET // 8
        self._stride_word = abi.SCRATCH_STRIDE_OFFSET // 8

    def run(self, addresses: dict[str, int], threads: int) -> None:
        base = arena(self._space_bytes)
        scratch = self._scratch(threads * max(self._strides)) if any(self._strides) else 0
        for words, slot, name in self._open:
            words[slot] = addresses[name]
        for words, slot, offset in self._space:
            words[slot] = base + offset
        if scratch or threads != self._threads:
            for (_, words), stride in zip(self._blocks, self._strides):
                words[self._threads_word] = threads
                words[self._scratch_word] = scratch if stride else 0
                words[self._stride_word] = stride
            self._threads = threads
        self._run(self._count, self._entries, self._addresses)


def arena(nbytes: int) -> int:
    """Address of at least `nbytes` bytes of this thread's work space, aligned to 64; valid until the next call."""
    held = getattr(_local, "arena", None)
    if held is None or held[1] < nbytes:
        buffer = torch.empty(nbytes + _ALIGN, dtype=torch.uint8)
        start = -(-buffer.data_ptr() // _ALIGN) * _ALIGN
        held = _local.arena = (start, nbytes, buffer)
    return int(held[0])
