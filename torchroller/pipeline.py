"""fx.GraphModule -> ExecutionPlan: one function per arrow, in order."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx

from . import debug
from .build import Kernel, build
from .choose import Choice, choose, keep
from .device import DeviceSpec, cpu
from .emit import split
from .emit.common import fallible
from .emit.contraction import is_contraction
from .emit.convolution import is_convolution, packable
from .errors import GroupError, KernelError
from .expr import TensorExpr
from .fuse import fuse
from .graph import Node, base_of
from .groups import Fused, Group, strided_view
from .kernel import CompiledKernel, cache_dir, compile_all, executor_for
from .lower import ExternCall, Lowered, lower
from .options import Options
from .plan import BufferSpec, ExecutionPlan, Extern, Launch, PackedWeight, TensorView, make_plan
from .views import NeedSplit, NotAffine

log = logging.getLogger("torchroller")


def compile_graph(gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options,
                  static: frozenset[int] = frozenset()) -> ExecutionPlan:  # fmt: skip
    """Compiles one ATen graph with static shapes. `static` are inputs whose values rarely change (weights)."""
    denied: dict[str, str] = {}
    while True:
        try:
            with debug.graph(gm), _deep_calls():
                lowered = lower(gm, options, denied)
                debug.stage("lowered", functools.partial(str, lowered))
                constant = _constants(lowered, options, static)
                fused = fuse(lowered, options.fuse, constant | _splittable(lowered))
                debug.stage("fused", functools.partial(str, fused))
                return assemble(lowered, fused, options, constant)
        except GroupError as error:
            fresh = error.origins - denied.keys()
            if options.strict or not fresh:
                raise
            log.warning("torchroller: %s; calling ATen for %s", error.reason, sorted(fresh))
            denied.update(dict.fromkeys(fresh, error.reason))


def _constants(lowered: Lowered, options: Options, static: frozenset[int]) -> frozenset[str]:
    """Inputs that are packed for the kernels that read them; not those that the graph itself writes to."""
    if not options.pack_weights:
        return frozenset()
    held = {f"arg{i}" for i in static} | set(lowered.constants)
    return frozenset(held - {target.name for target, _ in lowered.mutations})


def _splittable(lowered: Lowered) -> frozenset[str]:
    """Inputs that a product reads packed although they are no constants (see `_is_packed`)."""
    if device_spec(lowered.device).float32_dot != split.HOW:
        return frozenset()
    written = {target.name for target, _ in lowered.mutations}
    return frozenset(n.name for n in lowered.inputs if n is not None and n.dtype == "float32") - written


def assemble(lowered: Lowered, fused: Fused, options: Options, constant: frozenset[str]) -> ExecutionPlan:
    executor = executor_for(options.executor, lowered.device, cache_dir(options.cache_dir))
    needed = frozenset(n for n in fused.writers if n in fused.storage)
    kernels: dict[Group, Kernel] = {}
    for step in fused.steps:
        if isinstance(step, Group):
            with _blame(step):
                kernels[step] = build(
                    step, fused, frozenset(n for n in step.index if n in needed), kernel_name(step)
                )
    debug.stage("expressions", lambda: debug.expressions_text(kernels.values()))
    directory = cache_dir(options.cache_dir)
    spec = device_spec(lowered.device)
    checked = options.check_indices and lowered.device.type == "cpu"  # reading a flag would stall a GPU
    choices: dict[Any, Choice] = {}
    picks: dict[Group, Choice] = {}
    for group, kernel in kernels.items():
        pack = _is_packed(kernel, spec, constant)
        key = (kernel.expr, pack)
        if key not in choices:
            with _blame(group):
                choices[key] = choose(
                    kernel.expr,
                    allowed(spec, kernel.expr),
                    executor,
                    directory,
                    topk=options.topk,
                    pack=pack,
                    measure=options.measure,
                    check=checked and fallible(kernel.expr),
                )
        picks[group] = choices[key]
    owners = {c: group for group, c in picks.items()}
    built: dict[Choice, CompiledKernel] = {}
    for choice, result in zip(owners, compile_all(executor, [c.source for c in owners])):
        if isinstance(result, KernelError):
            raise GroupError(str(result), _origins(owners[choice])) from result
        keep(choice, result, executor, directory)
        built[choice] = result
    buffers = _buffers(lowered, fused)
    packed: dict[Any, PackedWeight] = {}
    steps: list[Launch | Extern] = []
    for step in fused.steps:
        if isinstance(step, ExternCall):
            steps.append(_extern(step, fused))
            continue
        kernel, choice = kernels[step], picks[step]
        names = list(kernel.buffers)
        for layout in choice.source.packs:
            at = int(layout.tensor[1:])
            layout_key = (names[at], replace(layout, tensor=""))
            if layout_key not in packed:
                name = f"packed{len(packed)}"
                packed[layout_key] = PackedWeight(name, names[at], layout, names[at] not in constant)
                buffers[name] = BufferSpec(name, "packed", layout.elements, layout.dtype)
            names[at] = packed[layout_key].name
        if choice.source.flags:
            buffers.setdefault("errors", BufferSpec("errors", "flag", 1, "int32"))
            names.append("errors")
        writes = tuple(names[int(t[1:])] for t in kernel.outputs)
        steps.append(Launch(built[choice], tuple(names), writes, kernel.expr, choice.search, choice.chosen,
                            choice.measured_s))  # fmt: skip
    if options.dump_dir:
        _dump(options.dump_dir, steps)
    launches = [s for s in steps if isinstance(s, Launch)]
    debug.stage("ranked", lambda: debug.ranked_text(launches))
    debug.stage("triton", lambda: debug.triton_text(launches))
    outputs = [_view(o, fused) if isinstance(o, Node) else o for o in fused.outputs]
    plan = make_plan(
        steps, buffers, outputs, list(packed.values()), lowered.constants, executor, lowered.device
    )
    debug.stage("plan", lambda: str(plan))
    debug.decisions(plan, lowered)
    return plan


def _dump(directory: str, steps: Sequence[Launch | Extern]) -> None:
    """Writes every launch's Triton text (its tensor expression stands in the comments) in order of execution."""
    at = Path(directory)
    at.mkdir(parents=True, exist_ok=True)
    first = len(list(at.glob("*.py")))
    for n, step in enumerate(s for s in steps if isinstance(s, Launch)):
        source = step.kernel.source
        (at / f"{first + n:03d}_{source.name}.py").write_text(source.text)


@contextlib.contextmanager
def _deep_calls() -> Iterator[None]:
    """Values are built operand by operand: a chain of MAX_MEMBERS and what is inlined into it is as deep as that,
    on top of Dynamo's own calls."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, 5000))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


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
    return frozenset(n.origin for n in _members(group) if n.origin)


def _members(group: Group) -> list[Node]:
    """What a kernel computes, inline values included, in the order of the graph."""
    stack = list(group.index)
    seen: set[Node] = set(stack)
    while stack:
        node = stack.pop()
        for a in (*node.args, *(i for i in node.index if isinstance(i, Node))):
            inside = a.kind in ("view", "pointwise", "iota") or (a.kind == "gather" and node.kind != "gather")
            if a not in seen and a not in group.tensors and inside:
                seen.add(a)
                stack.append(a)
    return sorted((n for n in seen if n.kind != "view"), key=lambda n: n.serial)


@functools.lru_cache
def device_spec(device: torch.device) -> DeviceSpec:
    """The machine description that the search works with."""
    if device.type == "cpu":
        return cpu(torch.get_num_threads())
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return DeviceSpec.for_target(
            "hip", properties.gcnArchName.split(":")[0], properties.multi_processor_count
        )
    return DeviceSpec.for_target(
        "cuda", 10 * properties.major + properties.minor, properties.multi_processor_count
    )


def allowed(spec: DeviceSpec, expr: TensorExpr) -> DeviceSpec:
    """The device as PyTorch's settings let it multiply float32: with TF32 where the user has allowed that."""
    if spec.kind != "cuda" or not expr.dots:
        return spec
    convolution = is_convolution(expr)
    try:
        tf32 = torch._C._get_cudnn_allow_tf32() if convolution else torch._C._get_cublas_allow_tf32()
    except RuntimeError:  # set by the newer attribute, which the older one refuses to tell
        backend: Any = getattr(torch.backends.cudnn, "conv") if convolution else torch.backends.cuda.matmul  # noqa: B009
        tf32 = backend.fp32_precision == "tf32"
    return spec.multiplying("tf32") if tf32 else spec


def kernel_name(group: Group) -> str:
    """A name that says what is in the kernel, the same for equal kernels."""
    words: list[str] = []
    for node in _members(group):
        word = re.sub(r"_?\d+$", "", node.origin) or node.fn or node.kind
        if word not in words:
            words.append(word)
    return re.sub(r"\W", "_", "fused_" + "_".join(words[:6]))[:60]


# Rows, and floating-point operations, of a product from which on its right operand is split anew for each call: a dozen
# calls of ATen, a tenth of a millisecond of the host.
_WORTH_SPLITTING, _LEAST_FLOPS = 2048, 2e9


def _is_packed(kernel: Kernel, spec: DeviceSpec, constant: frozenset[str]) -> bool:
    """Does the kernel of a product read its right operand packed: a constant, or one that is split for many rows."""
    tensor = packable(kernel.expr) if is_contraction(kernel.expr) else None
    if tensor is None:
        return False
    buffer = kernel.buffers[int(tensor[1:])]
    if buffer in constant:
        return True
    dot = kernel.expr.dots[0]
    if (
        allowed(spec, kernel.expr).float32_dot != split.HOW
        or kernel.expr.values[dot.args[0]].dtype != "float32"
    ):
        return False
    columns = {name for name in kernel.expr.moves()[dot.args[1]]}
    rows = math.prod(a.extent for a in kernel.expr.spatial if a.name not in columns)
    many = rows >= _WORTH_SPLITTING and kernel.expr.flops() >= _LEAST_FLOPS
    return buffer.startswith("arg") and (many or is_convolution(kernel.expr))


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
    swap: Any = lambda v: _view(v, fused) if isinstance(v, Node) else v  # noqa: E731
    args = fx.node.map_aggregate(call.args, swap)
    kwargs = fx.node.map_aggregate(call.kwargs, swap)
    results = tuple(
        None if r not in fused.storage else TensorView(f"ext{r.serial}", r.dtype, r.shape, r.strides)
        for r in call.results
    )
    return Extern(
        call.target, tuple(args), dict(kwargs), results, call.is_tuple, call.reason, call.name, call.where
    )
