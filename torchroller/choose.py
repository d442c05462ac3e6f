"""Which rProgram a kernel gets: the search's best, or the fastest of its top-k where measuring is asked for."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from . import store
from .device import DeviceSpec
from .emit import split
from .emit.attention import attention_tiling, emit_attention, is_attention
from .emit.common import Tiling, TritonSource
from .emit.contraction import emit_contraction, is_contraction, packable
from .emit.convolution import emit_convolution, is_convolution
from .emit.descriptors import emit_descriptors
from .emit.loops import emit_loops
from .emit.scan import emit_scan, is_scan, scan_tiling
from .emit.scatter import emit_scatter, is_scatter, scatter_tiling
from .errors import KernelError
from .expr import ITEMSIZE, TensorExpr
from .graph import TORCH_DTYPES
from .implicit import IMAGE, TILED, WEIGHT, as_product
from .kernel import CompiledKernel, Executor, compile_all, known, remember
from .search import Construction, construct, sample
from .tile import RProgram
from .variants import with_variants


@dataclass(frozen=True)
class Choice:
    """A chosen kernel: its source, the rank of its rProgram, what was measured, the code if it came from disk."""

    source: TritonSource
    key: str
    chosen: int = 0
    measured_s: tuple[float, ...] | None = None
    cached: bool = False
    search: Callable[[], Construction | None] = field(default=lambda: None, compare=False)


def choose(expr: TensorExpr, spec: DeviceSpec, executor: Executor, directory: Path, *, topk: int, pack: bool,
           measure: bool, check: bool) -> Choice:  # fmt: skip
    """The kernel for `expr`; from the disk cache where it has been chosen before."""
    plain = replace(expr, source=())
    search = functools.partial(ranked, plain, spec, topk, pack)
    environment = getattr(executor, "environment", executor.name)
    key = store.key_of(plain, spec.fingerprint, environment, topk, pack, measure, check)
    entry = store.read(directory, key)
    if entry is not None:
        restored = known(executor, entry.source) or executor.restore(entry.source, entry.code, entry.metadata)
        if restored is not None:
            remember(executor, restored)
        return Choice(entry.source, key, entry.chosen, entry.measured_s, restored is not None, search)
    construction = search()
    if construction is None:
        return Choice(emit(plain, given_tiling(plain, spec), pack, check), key, search=search)
    if measure and len(construction.ranked) > 1:
        sources = [emit(plain, tiling_of(p, spec), pack, check) for p in construction.ranked]
        times = timings(plain, sources, executor)
        chosen = min(range(len(times)), key=times.__getitem__)
        return Choice(sources[chosen], key, chosen, tuple(times), search=search)
    return Choice(emit(plain, tiling_of(construction.best, spec), pack, check), key, search=search)


def keep(choice: Choice, kernel: CompiledKernel, executor: Executor, directory: Path) -> None:
    """Writes a newly compiled choice to the disk cache."""
    if not choice.cached and executor.name == "native":
        code, metadata = executor.code(kernel)
        store.write(
            directory,
            choice.key,
            store.Entry(choice.source, code, metadata, choice.chosen, choice.measured_s),
        )


@functools.lru_cache(maxsize=1024)
def ranked(expr: TensorExpr, spec: DeviceSpec, topk: int, pack: bool = False) -> Construction | None:
    """The search's result, once per expression and device; None for kernels whose tiles are given.

    pack: the second operand comes packed, so a CPU need not bring it into order within the kernel.
    """
    if is_attention(expr) or is_scatter(expr) or is_scan(expr):
        return None
    if is_convolution(expr):
        return construct(as_product(expr), spec, top_k=topk, **_of_convolution(spec, pack))
    return with_variants(construct(expr, spec, top_k=topk, packed=_packed(expr, spec, pack)), expr, spec)


def _of_convolution(spec: DeviceSpec, pack: bool) -> dict[str, Any]:
    """What the search is told of a convolution: filters that are split in memory, or not, differ in registers."""
    whole = pack or spec.float32_dot != split.HOW
    return {"tiled": TILED, "packed": (WEIGHT,) if whole else (), "gathered": (IMAGE,)}


def _packed(expr: TensorExpr, spec: DeviceSpec, pack: bool) -> tuple[str, ...]:
    arranged = spec.is_cpu or spec.float32_dot == split.HOW
    return tuple(filter(None, (packable(expr),))) if pack and arranged and is_contraction(expr) else ()


def sampled(
    expr: TensorExpr, spec: DeviceSpec, count: int, seed: int, pack: bool = False
) -> tuple[RProgram, ...]:
    """Random feasible rPrograms of the space in which `ranked` searches; none for kernels whose tiles are given."""
    if is_attention(expr) or is_scatter(expr) or is_scan(expr):
        return ()
    if is_convolution(expr):
        return sample(as_product(expr), spec, count, seed, **_of_convolution(spec, pack))
    return sample(expr, spec, count, seed, packed=_packed(expr, spec, pack))


def given_tiling(expr: TensorExpr, spec: DeviceSpec) -> Tiling:
    """Tiles of the kernels that are not searched."""
    if is_scatter(expr):
        return scatter_tiling(expr, spec.is_cpu)
    if is_scan(expr):
        return scan_tiling(expr, spec.is_cpu)
    tiling = attention_tiling(expr, spec.units if spec.is_cpu else 0)
    # with both operands split in registers, TF32 needs the fewest of them
    return replace(tiling, precision="tf32x3" if spec.float32_dot == split.HOW else spec.float32_dot)


def tiling_of(program: RProgram, spec: DeviceSpec) -> Tiling:
    """The emitters' view of an rProgram. A dot on a GPU takes at least 16 rows and columns, even of nothing."""
    lone = () if spec.is_cpu else (("m", 16), ("n", 16))
    return Tiling(
        (*lone, *program.block.items(), *program.step.items()),
        program.num_warps,
        program.num_stages,
        panel=program.panel,
        pairs=program.pairs,
        group=program.row_group,
        variant=program.variant,
        units=program.grid if program.variant == "tma-persist" else 0,
        gpu=not spec.is_cpu,
        precision=spec.float32_dot,
        narrow=spec.is_cpu,
    )


def emit(expr: TensorExpr, tiling: Tiling, pack: bool = False, check: bool = False) -> TritonSource:
    """Triton text of an expression under a tiling."""
    if is_scatter(expr):
        return emit_scatter(expr, tiling, expr.name, check)
    if is_scan(expr):
        return emit_scan(expr, tiling, expr.name, check)
    if is_attention(expr):
        return emit_attention(expr, tiling, expr.name, check)
    if is_convolution(expr):
        return emit_convolution(expr, tiling, expr.name, pack, check)
    if tiling.variant:
        return emit_descriptors(expr, tiling, expr.name, tiling.variant, tiling.units, check)
    if is_contraction(expr):
        return emit_contraction(expr, tiling, expr.name, pack, check)
    return emit_loops(expr, tiling, expr.name, check)


def timings(
    expr: TensorExpr, sources: Sequence[TritonSource], executor: Executor, repeat: int = 5
) -> list[float]:
    """Seconds of each kernel on zeroed tensors, the least of `repeat` rounds in which they take turns."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    with unset_fake_temporarily():  # AOTAutograd compiles under a mode in which tensors have no memory
        return _timings(expr, sources, executor, repeat)


def _timings(
    expr: TensorExpr, sources: Sequence[TritonSource], executor: Executor, repeat: int
) -> list[float]:
    kernels = compile_all(executor, sources)
    device = getattr(executor, "device", torch.device("cpu"))
    kept: dict[tuple[str, int], torch.Tensor] = {}
    tensors = [arguments(expr, s, device, kept) for s in sources]
    best = [float("inf")] * len(kernels)
    for turn in range(repeat + 1):
        for n, kernel in enumerate(kernels):
            if isinstance(kernel, KernelError):
                continue
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            started = time.perf_counter()
            executor.launch(kernel, tensors[n])
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:  # the first turn warms up
                best[n] = min(best[n], time.perf_counter() - started)
    return best


def arguments(
    expr: TensorExpr, source: TritonSource, device: torch.device, kept: dict[tuple[str, int], torch.Tensor]
) -> list[torch.Tensor]:
    """Tensors that are large enough for every access; zeros are valid indices and benign numbers.

    `kept` holds those of earlier kernels, which are used again. All are written to: pages that only calloc has touched
    are one and the same page, and lie in the innermost cache.
    """
    need: dict[str, tuple[int, str]] = {}
    for access in (*expr.loads, *(w.access for w in expr.writes)):
        span = (
            access.offset + 1 + sum(max(st, 0) * (size - 1) for st, size in zip(access.strides, access.shape))
        )
        need[access.tensor] = (max(span, need.get(access.tensor, (0, ""))[0]), access.dtype)
    for pack in source.packs:
        need[pack.tensor] = (pack.elements, pack.dtype)
    out = []
    for name in sorted(need, key=lambda t: int(t[1:])):
        elements, dtype = need[name]
        if (name, elements) not in kept:
            kind = torch.int8 if dtype == "bool" else TORCH_DTYPES[dtype]
            assert kind.itemsize == ITEMSIZE[dtype]
            kept[name, elements] = torch.empty(elements, dtype=kind, device=device).zero_()
        out.append(kept[name, elements])
    return [*out, torch.zeros(1, dtype=torch.int32, device=device)] if source.flags else out
