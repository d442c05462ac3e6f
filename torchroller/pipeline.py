"""fx.GraphModule -> ExecutionPlan: one function per arrow, in order."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx

from .build import Kernel, build
from .choose import tiling_of
from .device import DeviceSpec, cpu
from .emit.attention import attention_tiling, emit_attention, is_attention
from .emit.common import Tiling, TritonSource
from .emit.contraction import emit_contraction, is_contraction, packable
from .emit.loops import emit_loops
from .errors import GroupError, KernelError
from .expr import TensorExpr
from .fuse import Fused, Group, fuse, strided_view
from .graph import Node, base_of
from .kernel import CompiledKernel, cache_dir, compile_all, executor_for
from .lower import ExternCall, Lowered, lower
from .options import Options
from .plan import BufferSpec, ExecutionPlan, Extern, Launch, PackedWeight, TensorView, make_plan
from .search import Construction, construct
from .views import NeedSplit, NotAffine

log = logging.getLogger("torchroller")


def compile_graph(gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options,
                  static: frozenset[int] = frozenset()) -> ExecutionPlan:  # fmt: skip
    """Compiles one ATen graph with static shapes. `static` are inputs whose values rarely change (weights)."""
    denied: dict[str, str] = {}
    while True:
        lowered = lower(gm, options, denied)
        try:
            return assemble(lowered, fuse(lowered, options.fuse), options, static)
        except GroupError as error:
            fresh = error.origins - denied.keys()
            if options.strict or not fresh:
                raise
            log.warning("torchroller: %s; calling ATen for %s", error.reason, sorted(fresh))
            denied.update(dict.fromkeys(fresh, error.reason))


def assemble(lowered: Lowered, fused: Fused, options: Options, static: frozenset[int]) -> ExecutionPlan:
    executor = executor_for(options.executor, lowered.device, cache_dir(options.cache_dir))
    constant = {f"arg{i}" for i in static} | set(lowered.constants) if options.pack_weights else set()
    needed = frozenset(n for n in fused.writers if n in fused.storage)
    kernels: dict[Group, Kernel] = {}
    for step in fused.steps:
        if isinstance(step, Group):
            with _blame(step):
                kernels[step] = build(step, fused, frozenset(n for n in step.index if n in needed), kernel_name(step))
    chosen: dict[Any, tuple[TritonSource, Construction | None]] = {}
    picks: dict[Group, tuple[TritonSource, Construction | None]] = {}
    spec = device_spec(lowered.device)
    for group, kernel in kernels.items():
        pack = is_contraction(kernel.expr) and _is_constant(kernel, packable(kernel.expr), constant)
        key = (kernel.expr, pack)
        if key not in chosen:
            with _blame(group):
                chosen[key] = choose(kernel.expr, spec, options, pack)
        picks[group] = chosen[key]
    owners = {s: group for group, (s, _) in picks.items()}
    compiled = compile_all(executor, list(owners))
    for source, result in zip(owners, compiled):
        if isinstance(result, KernelError):
            raise GroupError(str(result), _origins(owners[source])) from result
    built = {s: k for s, k in zip(owners, compiled) if isinstance(k, CompiledKernel)}
    buffers = _buffers(lowered, fused)
    packed: dict[Any, PackedWeight] = {}
    steps: list[Launch | Extern] = []
    for step in fused.steps:
        if isinstance(step, ExternCall):
            steps.append(_extern(step, fused))
            continue
        kernel, (source, construction) = kernels[step], picks[step]
        names = list(kernel.buffers)
        for layout in source.packs:
            at = int(layout.tensor[1:])
            key = (names[at], layout.n_shape, layout.n_strides, layout.k, layout.k_stride, layout.offset, layout.block)
            if key not in packed:
                name = f"packed{len(packed)}"
                packed[key] = PackedWeight(name, names[at], layout)
                buffers[name] = BufferSpec(name, "packed", layout.elements, layout.dtype)
            names[at] = packed[key].name
        writes = tuple(names[int(t[1:])] for t in kernel.outputs)
        steps.append(Launch(built[source], tuple(names), writes, kernel.expr, construction))
    outputs = [_view(o, fused) if isinstance(o, Node) else o for o in fused.outputs]
    return make_plan(steps, buffers, outputs, list(packed.values()), lowered.constants, executor, lowered.device)


@contextlib.contextmanager
def _blame(group: Group) -> Iterator[None]:
    """Turns a failure in a stage into a GroupError, which makes the group's operators extern calls."""
    try:
        yield
    except (ArithmeticError, AssertionError, AttributeError, LookupError, NotAffine, NeedSplit, NotImplementedError,
            RuntimeError, TypeError, ValueError) as error:  # fmt: skip
        log.debug("kernel %s failed", kernel_name(group), exc_info=True)
        reason = f"no kernel for {kernel_name(group)}: {type(error).__name__}: {error}"
        raise GroupError(reason, _origins(group)) from error


def _origins(group: Group) -> frozenset[str]:
    found: set[str] = set()
    stack = list(group.index)
    seen: set[Node] = set(stack)
    while stack:  # inline values are part of the kernel too
        node = stack.pop()
        if node.origin:
            found.add(node.origin)
        for a in (*node.args, *(i for i in node.index if isinstance(i, Node))):
            if a not in seen and a.kind in ("view", "pointwise", "iota"):
                seen.add(a)
                stack.append(a)
    return frozenset(found)


@functools.lru_cache
def device_spec(device: torch.device) -> DeviceSpec:
    """The machine description that the search works with."""
    if device.type == "cpu":
        return cpu(torch.get_num_threads())
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return DeviceSpec.for_target("hip", properties.gcnArchName.split(":")[0], properties.multi_processor_count)
    return DeviceSpec.for_target("cuda", 10 * properties.major + properties.minor, properties.multi_processor_count)


def choose(expr: TensorExpr, spec: DeviceSpec, options: Options, pack: bool) -> tuple[TritonSource, Construction | None]:
    """The kernel text of the best rProgram, and what the search found."""
    if is_attention(expr):
        return emit(expr, attention_tiling(expr, spec.is_cpu), pack), None
    construction = construct(expr, spec, top_k=options.topk)
    return emit(expr, tiling_of(construction.best), pack), construction


def emit(expr: TensorExpr, tiling: Tiling, pack: bool) -> TritonSource:
    """Triton text of an expression under a tiling."""
    if is_attention(expr):
        return emit_attention(expr, tiling, expr.name)
    if is_contraction(expr):
        return emit_contraction(expr, tiling, expr.name, pack)
    return emit_loops(expr, tiling, expr.name)


def kernel_name(group: Group) -> str:
    """A name that says what is in the kernel, the same for equal kernels."""
    words: list[str] = []
    for node in group.index:
        word = re.sub(r"_?\d+$", "", node.origin) or node.fn or node.kind
        if word not in words:
            words.append(word)
    return re.sub(r"\W", "_", "fused_" + "_".join(words[:6]))[:60]


def _is_constant(kernel: Kernel, tensor: str | None, constant: set[str]) -> bool:
    return tensor is not None and kernel.buffers[int(tensor[1:])] in constant


def _buffers(lowered: Lowered, fused: Fused) -> dict[str, BufferSpec]:
    out: dict[str, BufferSpec] = {}
    for number, node in enumerate(lowered.inputs):
        if node is not None:
            out[node.name] = BufferSpec(node.name, "input", node.numel, node.dtype, number)
    for node in lowered.builder.nodes:
        if node.kind == "input" and node.name not in out:
            out[node.name] = BufferSpec(node.name, "constant", node.numel, node.dtype)
    for name, (elements, dtype) in fused.buffers.items():
        out[name] = BufferSpec(name, "extern" if name.startswith("ext") else "temporary", elements, dtype)
    return out


def _view(node: Node, fused: Fused) -> TensorView:
    base = base_of(node)
    storage = fused.storage[base]
    found = strided_view(node, storage.strides, storage.offset)
    assert found is not None, f"{node!r} has no strides"
    return TensorView(storage.buffer, node.dtype, node.shape, *found)


def _extern(call: ExternCall, fused: Fused) -> Extern:
    swap = lambda v: _view(v, fused) if isinstance(v, Node) else v  # noqa: E731
    args = fx.node.map_aggregate(call.args, swap)
    kwargs = fx.node.map_aggregate(call.kwargs, swap)
    results = tuple(
        None if r not in fused.storage else TensorView(f"ext{r.serial}", r.dtype, r.shape, r.strides) for r in call.results
    )
    return Extern(call.target, tuple(args), dict(kwargs), results, call.is_tuple, call.reason, call.name, call.where)


def with_options(options: Options, **changes: Any) -> Options:
    return dataclasses.replace(options, **changes)
