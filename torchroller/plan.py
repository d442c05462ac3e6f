"""ExecutionPlan: the callable that Dynamo gets. Launches, buffers, views and extern calls, in order.

Everything that does not depend on a call is made once: an arena for intermediates, launch blocks for native
code, tensor arguments of extern calls. A call fills in the addresses of inputs and outputs and runs segments
of consecutive launches, each in one native call. State that a call writes to lives in an `_Instance`; calls
that overlap (threads, re-entry) get one each.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from .buffers import Life, OutputPool, allocate, assign, tensor_on
from .emit.common import BY_ZERO, Pack
from .errors import UntrackedWeight
from .expr import ITEMSIZE, TensorExpr
from .gpu_launch import GpuSegment
from .graph import TORCH_DTYPES
from .kernel import CompiledKernel, Executor
from .search import Construction
from .weights import Packed

_ALIGNED_BYTES = 16  # of tensors that compiled kernels may take for aligned (tt.divisibility)
_HEADER_BYTES = 64  # of a launch block, before its arguments (triton_cpu/abi.py)


@dataclass(frozen=True)
class BufferSpec:
    """A buffer of the plan. kind: input, constant, temporary, output, extern, packed or flag."""

    name: str
    kind: str
    elements: int
    dtype: str
    number: int = -1  # input position, or output pool

    @property
    def nbytes(self) -> int:
        return self.elements * ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class Launch:
    """One kernel on buffers.

    `chosen` is the rank of its rProgram in `construction`; `measured_s` the times of the ranked rPrograms where
    they were measured. `search` makes the construction when someone asks (a cached kernel was not searched for).
    """

    kernel: CompiledKernel
    buffers: tuple[str, ...]
    writes: tuple[str, ...]
    expr: TensorExpr
    search: Callable[[], Construction | None]
    chosen: int = 0
    measured_s: tuple[float, ...] | None = None

    @property
    def construction(self) -> Construction | None:
        """The ranked rPrograms, best first; None for attention kernels, whose tiles are not searched."""
        return self.search()


@dataclass(frozen=True)
class TensorView:
    """shape/strides/offset over a buffer; what an extern call gets and what the caller gets back."""

    buffer: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0


@dataclass(frozen=True, eq=False)
class Extern:
    """One ATen call. `args`/`kwargs` hold TensorViews where tensors go; `results` name buffers (or None)."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[TensorView | None, ...]
    is_tuple: bool
    reason: str
    name: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.target} ({self.name}): {self.reason}"


@dataclass(frozen=True)
class PackedWeight:
    """Buffer `name` holds input or constant `source` in the layout of `pack`; `fresh`: packed at every call."""

    name: str
    source: str
    pack: Pack
    fresh: bool = False


@dataclass(frozen=True, eq=False)
class ExecutionPlan:
    """What runs. Call it with the list of graph inputs; it returns the list of graph outputs."""

    steps: tuple[Launch | Extern, ...]
    buffers: dict[str, BufferSpec]
    outputs: tuple[Any, ...]  # TensorView, or a plain value
    packed: tuple[PackedWeight, ...]
    constants: dict[str, torch.Tensor]
    executor: Executor
    device: torch.device
    arena: dict[str, int] = field(default_factory=dict)
    arena_bytes: int = 0
    pools: tuple[OutputPool, ...] = ()
    free: list[_Instance] = field(default_factory=list)
    weights: dict[str, Packed] = field(default_factory=dict)

    @property
    def launches(self) -> tuple[Launch, ...]:
        return tuple(s for s in self.steps if isinstance(s, Launch))

    @property
    def externs(self) -> tuple[Extern, ...]:
        return tuple(s for s in self.steps if isinstance(s, Extern))

    def written(self) -> frozenset[int]:
        """Positions of the inputs that a call writes to."""
        names = {name for x in self.launches for name in x.writes}
        for step in self.externs:
            if step.target._schema.is_mutable if hasattr(step.target, "_schema") else True:
                _map((step.args, step.kwargs), lambda v: names.add(v.buffer))
        return frozenset(b.number for b in self.buffers.values() if b.kind == "input" and b.name in names)

    def steady(self, args: list[Any]) -> bool:
        """Whether every packed weight is that of the inputs as they are now."""
        for packed in self.packed:
            if packed.fresh:
                continue
            spec = self.buffers[packed.source]
            source = args[spec.number] if spec.kind == "input" else self.constants[packed.source]
            have = self.weights.get(packed.name)
            if have is None or not have.current(source):
                return False
        return True

    def failure(self, flag: int) -> Exception:
        """ATen's exception for what a kernel flagged, with the kernels that check and their operators."""
        where = [
            f"{x.kernel.source.name} (from {', '.join(x.expr.source)})"
            for x in self.launches
            if x.kernel.source.flags
        ]
        kernels = f"in one of the kernels {'; '.join(where)}"
        if flag == BY_ZERO:
            return RuntimeError(
                f"ZeroDivisionError: an integer division by zero {kernels}. Look for //, % or fmod of integer "
                "tensors whose divisor holds a zero; run eagerly to see the line."
            )
        return IndexError(
            f"index out of range {kernels}. Look for an embedding, index or gather "
            "whose index is negative or not below the size of the indexed dimension; run eagerly to see the line."
        )

    def __call__(self, args: list[Any]) -> list[Any]:
        try:
            instance = self.free.pop()
            if instance.threads != torch.get_num_threads():  # the user has set another number since
                instance = _Instance(self)
        except IndexError:
            instance = _Instance(self)
        try:
            return instance.run(args)
        finally:
            self.free.append(instance)

    def __str__(self) -> str:
        lines = [
            f"plan: {len(self.launches)} launches, {len(self.externs)} extern calls, arena {self.arena_bytes} bytes"
        ]
        for step in self.steps:
            if isinstance(step, Launch):
                lines.append(
                    f"  {step.kernel.source.name}({', '.join(step.buffers)}) -> {', '.join(step.writes)}"
                )
            else:
                lines.append(f"  extern {step}")
        return "\n".join(lines)


_plans: weakref.WeakSet[ExecutionPlan] = weakref.WeakSet()


def _after_fork() -> None:
    """Launch blocks name the parent's pool of threads, which a forked child does not have."""
    for plan in _plans:
        plan.free.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True, eq=False)
class EagerPlan:
    """A whole graph that runs in ATen, and why."""

    gm: fx.GraphModule
    reason: str
    launches: tuple[Launch, ...] = ()

    @property
    def externs(self) -> tuple[Extern, ...]:
        return tuple(
            Extern(n.target, (), {}, (), False, self.reason, n.name)
            for n in self.gm.graph.nodes if n.op == "call_function"
        )  # fmt: skip

    def __call__(self, args: list[Any]) -> list[Any]:
        with torch.no_grad():
            out = self.gm(*args)
        args.clear()
        return list(out)

    def __str__(self) -> str:
        return f"plan: the graph runs in ATen: {self.reason}"


def make_plan(steps: Sequence[Launch | Extern], buffers: dict[str, BufferSpec], outputs: Sequence[Any],
              packed: Sequence[PackedWeight], constants: dict[str, torch.Tensor], executor: Executor,
              device: torch.device) -> ExecutionPlan:  # fmt: skip
    """Lays out memory: buffers that reach an output are allocated per call, the rest share one arena."""
    returned = dict.fromkeys(o.buffer for o in outputs if isinstance(o, TensorView))
    specs = dict(buffers)
    pools: list[OutputPool] = []
    for name in returned:
        spec = specs[name]
        if spec.kind == "temporary":
            specs[name] = BufferSpec(name, "output", spec.elements, spec.dtype, len(pools))
            # PyTorch's allocator of a GPU reuses memory at no cost, and knows on which stream it is in use
            keep = 2 if device.type == "cpu" else 0
            pools.append(OutputPool(spec.elements, TORCH_DTYPES[spec.dtype], device, keep))
    lives: dict[str, Life] = {}
    for n, step in enumerate(steps):
        for name in _touched(step):
            spec = specs[name]
            if spec.kind == "temporary":
                first = lives[name].first if name in lives else n
                lives[name] = Life(spec.nbytes, first, n)
    arena, size = assign(lives)
    return ExecutionPlan(tuple(steps), specs, tuple(outputs), tuple(packed), constants, executor, device, arena,
                         size, tuple(pools))  # fmt: skip


def _touched(step: Launch | Extern) -> list[str]:
    if isinstance(step, Launch):
        return list(step.buffers)
    found: list[str] = []
    _map((step.args, step.kwargs), lambda v: found.append(v.buffer))
    return found + [r.buffer for r in step.results if r is not None]


def _map(value: Any, fn: Any) -> Any:
    """`value` with `fn` applied to each TensorView in nested tuples, lists and dicts."""
    if isinstance(value, TensorView):
        return fn(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_map(v, fn) for v in value)
    if isinstance(value, dict):
        return {k: _map(v, fn) for k, v in value.items()}
    return value


class _Instance:
    """The part of a plan that one call writes to."""

    def __init__(self, plan: ExecutionPlan) -> None:
        self.plan, self.threads = plan, torch.get_num_threads()
        _plans.add(plan)
        self.stays = plan.device.type == "cpu"
        self.storage = allocate(plan.arena_bytes if self.stays else 0, plan.device)
        self.base = self.storage.data_ptr()
        self.fixed: dict[str, int] = {n: self.base + at for n, at in plan.arena.items()} if self.stays else {}
        for name, tensor in plan.constants.items():
            self.fixed[name] = tensor.data_ptr()
        self.flag = torch.zeros(1, dtype=torch.int32, device="cpu")
        self.flagged = self.flag.numpy() if "errors" in plan.buffers else None
        if self.flagged is not None:
            self.fixed["errors"] = self.flag.data_ptr()
        self.moving = [b for b in plan.buffers.values() if b.name not in self.fixed]
        self.slot = {b.name: i for i, b in enumerate(self.moving)}
        self.addresses = [0] * len(self.moving)  # as they stand in the launch blocks
        self.places: list[list[tuple[Any, int]]] = [[] for _ in self.moving]  # (block words, index) by slot
        self.packs = [(self.slot[p.name], p) for p in plan.packed]
        self.in_use: dict[str, Packed] = {}
        self.segments = self.steps() if plan.executor.name == "interpret" else self.joined()
        self.inputs = [
            (self.slot[b.name], b.number)
            for b in self.moving
            if b.kind == "input" and self.places[self.slot[b.name]]
        ]
        self.produced = [(self.slot[b.name], plan.pools[b.number]) for b in self.moving if b.kind == "output"]
        self.outputs = [self.maker(o, n) for n, o in enumerate(plan.outputs)]
        self.whole = {} if self.stays else self.whole_outputs()
        self.shares = bool(plan.externs)  # whose results may lie in an output's storage
        self.written = frozenset() if self.stays else plan.written()

    def whole_outputs(self) -> dict[int, tuple[Any, ...]]:
        """Slots of outputs that are the whole of a buffer, with shape, strides and dtype of the tensor to make."""
        views = [o for o in self.plan.outputs if isinstance(o, TensorView)]
        found = {}
        for v in views:
            spec = self.plan.buffers[v.buffer]
            extent = 1 + sum((size - 1) * stride for size, stride in zip(v.shape, v.strides))
            alone = sum(o.buffer == v.buffer for o in views) == 1
            if (
                spec.kind == "output"
                and alone
                and v.offset == 0
                and extent == spec.elements > 0
                and v.dtype == spec.dtype
            ):
                found[self.slot[v.buffer]] = v.shape, v.strides, TORCH_DTYPES[v.dtype]
        return found

    def maker(self, out: Any, number: int) -> tuple[int, OutputPool, tuple[Any, ...]] | None:
        """(slot, pool, what its `tensor` needs) of an output that lies in a pool's buffer; None for all others."""
        if not isinstance(out, TensorView) or self.plan.buffers[out.buffer].kind != "output":
            return None
        view = (number, TORCH_DTYPES[out.dtype], out.shape, out.strides, out.offset)
        return self.slot[out.buffer], self.plan.pools[self.plan.buffers[out.buffer].number], view

    def place(self, slot: int, address: int) -> None:
        """Write an address into the launch blocks, where it is not there already."""
        if self.addresses[slot] != address:
            self.addresses[slot] = address
            for words, index in self.places[slot]:
                words[index] = address

    # ---- compiled launches: arguments are made once, addresses that move are written in before each run ----
    def joined(self) -> list[Any]:
        """The steps, consecutive launches joined to one each."""
        kind: Any = _Segment if self.plan.executor.native else GpuSegment
        out: list[Any] = []
        run: list[Launch] = []
        for step in (*self.plan.steps, None):
            if isinstance(step, Launch):
                run.append(step)
                continue
            if run:
                out.append(kind(self, run))
                run = []
            if step is not None:
                out.append(step)
        return out

    def steps(self) -> list[Any]:
        return list(self.plan.steps)

    def move(self) -> None:
        """Takes memory for intermediates from the current stream of a GPU, for this call alone: the kernels of this
        call may still be queued when the next one, on another stream, begins."""
        self.storage = allocate(self.plan.arena_bytes, self.plan.device)
        base = self.storage.data_ptr()
        if base != self.base:
            self.base = base
            for name, at in self.plan.arena.items():
                self.place(self.slot[name], base + at)

    def run(self, args: list[Any]) -> list[Any]:
        plan, place = self.plan, self.place
        if not self.stays and plan.arena_bytes:
            self.move()
        back: list[tuple[torch.Tensor, torch.Tensor]] = []
        for slot, number in self.inputs:
            address = args[number].data_ptr()
            if address % _ALIGNED_BYTES and not self.stays:
                address = self.aligned(args, number, back)
            place(slot, address)
        storages: dict[int, torch.UntypedStorage] = {}
        made_whole: dict[int, torch.Tensor] = {}
        for slot, pool in self.produced:
            if slot in self.whole:
                shape, strides, dtype = self.whole[slot]
                made_whole[slot] = fresh = torch.empty_strided(
                    shape, strides, dtype=dtype, device=plan.device
                )
                place(slot, fresh.data_ptr())
                if self.shares:
                    storages[slot] = fresh.untyped_storage()
                continue
            storage = pool.storage()
            storages[slot] = storage
            place(slot, storage.data_ptr())
        for slot, packed in self.packs:
            place(slot, self.packed_weight(packed, args).data_ptr())
        results: dict[str, torch.Tensor] = {}
        for step in self.segments:
            if isinstance(step, _Segment):
                step.call(step.count, step.entries_at, step.blocks_at)
            elif isinstance(step, GpuSegment):
                step.call()
            elif isinstance(step, Extern):
                self.extern(step, args, storages, results)
            else:
                tensors = [self.flat(name, args, storages, results) for name in step.buffers]
                plan.executor.launch(step.kernel, tensors)
        for theirs, own in back:
            theirs.copy_(own)
        if self.flagged is not None and self.flagged[0]:
            what, self.flagged[0] = int(self.flagged[0]), 0
            raise plan.failure(what)
        made = [
            made_whole.get(how[0]) if how and how[0] in made_whole
            else how[1].tensor(storages[how[0]], *how[2]) if how else self.output(o, args, storages, results)
            for o, how in zip(plan.outputs, self.outputs)
        ]  # fmt: skip
        if not self.stays and plan.arena_bytes:
            self.storage = allocate(0, plan.device)
        args.clear()
        return made

    def aligned(self, args: list[Any], number: int, back: list[tuple[torch.Tensor, torch.Tensor]]) -> int:
        """Puts a copy in the place of an input that kernels, compiled for aligned tensors, cannot read on a GPU.

        `back` gets (input, copy) where the graph writes to it.
        """
        given = args[number]
        own = torch.empty_strided(given.shape, given.stride(), dtype=given.dtype, device=given.device)
        args[number] = own.copy_(given.detach())
        if number in self.written:
            back.append((given, own))
        return own.data_ptr()

    def packed_weight(self, packed: PackedWeight, args: list[Any]) -> torch.Tensor:
        spec = self.plan.buffers[packed.source]
        source = args[spec.number] if spec.kind == "input" else self.plan.constants[packed.source]
        if packed.fresh:
            self.in_use[packed.name] = Packed.of(source, packed.pack)
            return self.in_use[packed.name].tensor
        if source.is_inference():
            raise UntrackedWeight(f"input {packed.source} is an inference tensor, which keeps no version")
        have = self.plan.weights.get(packed.name)
        if have is None or not have.current(source):
            have = Packed.of(source, packed.pack)
            self.plan.weights[packed.name] = have
        self.in_use[packed.name] = have  # another call may replace the plan's entry while this one runs
        return have.tensor

    def flat(
        self, name: str, args: list[Any], storages: dict[int, Any], results: dict[str, Any]
    ) -> torch.Tensor:
        """A tensor whose data pointer is the buffer's, for executors that want tensors."""
        spec = self.plan.buffers[name]
        tensor = self.view(TensorView(name, spec.dtype, (1,), (1,)), args, storages, results)
        return tensor.view(torch.int8) if tensor.dtype == torch.bool else tensor

    def view(
        self, v: TensorView, args: list[Any], storages: dict[int, Any], results: dict[str, Any]
    ) -> torch.Tensor:
        spec = self.plan.buffers[v.buffer]
        if spec.kind == "input":
            source = args[spec.number]
        elif spec.kind == "constant":
            source = self.plan.constants[v.buffer]
        elif spec.kind == "extern":
            source = results[v.buffer]
        elif spec.kind == "packed":
            return self.in_use[v.buffer].tensor
        elif spec.kind == "flag":
            return self.flag
        else:
            if spec.kind == "output":
                storage, start = storages[self.slot[v.buffer]], 0
            else:
                storage, start = self.storage, self.plan.arena[v.buffer] // ITEMSIZE[v.dtype]
            return tensor_on(storage, TORCH_DTYPES[v.dtype], v.shape, v.strides, start + v.offset)
        if v.offset == 0 and source.shape == v.shape and source.stride() == v.strides:
            return source
        return torch.as_strided(source.detach(), v.shape, v.strides, source.storage_offset() + v.offset)

    def extern(
        self, step: Extern, args: list[Any], storages: dict[int, Any], results: dict[str, Any]
    ) -> None:
        get = lambda v: self.view(v, args, storages, results)  # noqa: E731
        with torch.no_grad():
            value = step.target(*_map(step.args, get), **_map(step.kwargs, get))
        values = value if step.is_tuple else (value,)
        for want, got in zip(step.results, values):
            if want is None:
                continue
            if not isinstance(got, torch.Tensor):
                continue
            if got.layout == torch.strided and want.dtype in TORCH_DTYPES:
                moved = got.stride() != want.strides and any(
                    s > 1 and a != b for s, a, b in zip(got.shape, got.stride(), want.strides)
                )
                inside = got.untyped_storage().data_ptr() == self.base or any(
                    got.untyped_storage().data_ptr() == s.data_ptr() for s in storages.values()
                )
                if moved or inside:
                    own = torch.empty_strided(want.shape, want.strides, dtype=got.dtype, device=got.device)
                    got = own.copy_(got)
            results[want.buffer] = got
            if want.buffer in self.slot and got.layout == torch.strided:
                self.place(self.slot[want.buffer], got.data_ptr())

    def output(self, out: Any, args: list[Any], storages: dict[int, Any], results: dict[str, Any]) -> Any:
        return self.view(out, args, storages, results) if isinstance(out, TensorView) else out


class _Segment:
    """Consecutive native launches, run by one native call. Their blocks lie in one array."""

    def __init__(self, owner: _Instance, launches: Sequence[Launch]) -> None:
        plan = owner.plan
        executor: Any = plan.executor  # a native one
        self.keep: list[Any] = []
        moving: list[tuple[int, int]] = []
        starts: list[int] = []
        data = bytearray()
        for launch in launches:
            args = [owner.fixed.get(name, 0) for name in launch.buffers]
            block, memory = executor.block(launch.kernel, args)
            self.keep += [memory, launch.kernel.handle]
            starts.append(len(data))
            for i, name in enumerate(launch.buffers):
                if name in owner.slot:
                    moving.append((owner.slot[name], (len(data) + _HEADER_BYTES) // 8 + i))
            data += bytes(block)
        self.memory = (ctypes.c_char * len(data)).from_buffer(data)
        self.words = memoryview(data).cast("Q")
        for slot, index in moving:
            owner.places[slot].append((self.words, index))
        base = ctypes.addressof(self.memory)
        n = len(launches)
        self.entries = (ctypes.c_void_p * n)(*(executor.entry(x.kernel) for x in launches))
        self.pointers = (ctypes.c_void_p * n)(*(base + at for at in starts))
        self.count, self.call = n, executor.driver.utils.run_many
        self.entries_at, self.blocks_at = ctypes.addressof(self.entries), ctypes.addressof(self.pointers)
