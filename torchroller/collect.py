"""Execution plans -> Report: what the backend keeps about a compiled model, counted and named."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torchroller.expr import TensorExpr
from torchroller.report import ExternReport, KernelReport, Report, user_line
from torchroller.spec import DeviceSpec


def collect(
    plans: Iterable[Any],
    device: DeviceSpec,
    name: str = "model",
    traces: Callable[[Any], Mapping[str, str]] | None = None,
    **facts: Any,
) -> Report:
    """A report of execution plans (`torchroller.plan`). Equal kernels and calls are counted once.

    traces: gives the user's stack trace per FX node name of a plan (`backend.traces_of`)
    """
    plans = list(plans)
    kernels: dict[tuple[str, TensorExpr], KernelReport] = {}
    externs: dict[tuple[str, str], ExternReport] = {}
    for plan in plans:
        lines = traces(plan) if traces is not None else {}
        for launch in plan.launches:
            new = _kernel_report(launch, lines)
            key = (new.source, new.expr)
            old = kernels.get(key)
            kernels[key] = new if old is None else replace(old, calls=old.calls + 1)
        for call in plan.externs:
            trace = lines.get(getattr(call, "name", ""), "") or getattr(call, "where", "")
            where = (user_line(trace),) if trace else ()
            made = ExternReport(str(call.target), call.reason, where, 1, extern_flops(call))
            at = (made.target, made.reason)
            known = externs.get(at)
            externs[at] = made if known is None else _together(known, made)
    return Report(name, device, tuple(kernels.values()), tuple(externs.values()), len(plans), **facts)


def _kernel_report(launch: Any, lines: Mapping[str, str]) -> KernelReport:
    construction = launch.construction() if callable(launch.construction) else launch.construction
    program = None
    if construction is not None and launch.chosen < len(construction.ranked):
        program = construction.ranked[launch.chosen]
    source = launch.kernel.source
    origins = (f"{n} at {user_line(lines[n])}" if n in lines else n for n in launch.expr.source)
    return KernelReport(
        name=source.name,
        expr=launch.expr,
        program=program,
        construction=construction,
        source=source.text,
        measured_s=None if launch.measured_s is None else tuple(launch.measured_s),
        cached=bool(launch.kernel.cached),
        origins=tuple(origins),
    )


def _together(a: ExternReport, b: ExternReport) -> ExternReport:
    flops = None if a.flops is None or b.flops is None else a.flops + b.flops
    return ExternReport(a.target, a.reason, tuple(dict.fromkeys(a.where + b.where)), a.calls + b.calls, flops)


def extern_flops(call: Any) -> int | None:
    """FLOPs of an extern call by PyTorch's own formulas (convolution, attention, …); None elsewhere."""
    import torch
    from torch.utils import _pytree
    from torch.utils.flop_counter import flop_registry

    packet = getattr(call.target, "overloadpacket", call.target)
    formula = flop_registry.get(packet)
    if formula is None and "_scaled_dot_product" in str(packet):
        formula = _attention_flops  # variants that PyTorch's table lacks, such as the CPU's
    if formula is None:
        return None

    def tensor(x: Any) -> Any:
        shape = getattr(x, "shape", None)
        return torch.empty(tuple(shape), device="meta") if shape is not None else x

    try:
        args, kwargs = _pytree.tree_map(tensor, (tuple(call.args), dict(call.kwargs)))
        results = [tensor(r) for r in call.results]
        out = results[0] if len(results) == 1 else tuple(results)
        return int(formula(*args, **kwargs, out_val=out))
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError, AssertionError):
        return None  # a formula that does not take this overload: unknown, not zero


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Both products of softmax(q k^T) v; q is [batch, heads, tokens, width]."""
    *batch, tokens, width = query.shape
    return 2 * math.prod(batch) * tokens * key.shape[-2] * (width + value.shape[-1])
