"""A model in, what was decided about it out.

report = torchroller.explain(model, *inputs)
print(report)                       # kernels, tiles level by level, extern calls with their reasons
report.save("report.html")          # one self-contained page
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import torch

from torchroller import backend
from torchroller.collect import collect
from torchroller.device import cpu
from torchroller.pipeline import device_spec
from torchroller.report import Report
from torchroller.spec import DeviceSpec


def explain(
    model: Callable[..., Any],
    *inputs: Any,
    measure: bool = False,
    mode: str | None = None,
    name: str | None = None,
    kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> Report:
    """Compile `model` for these inputs with backend "roller", run it once and report what was decided.

    measure: also time calls of the compiled and of the eager model (medians of a few)
    kwargs:  keyword arguments of the model; `options` go to the backend, `mode` to torch.compile
    The model runs under the caller's grad mode: a training graph shows its forward pass, and its backward
    pass once that has run. Compiled code of earlier torch.compile calls is dropped (torch._dynamo.reset).
    Raises ValueError when both a mode and options are given, which torch.compile does not take.
    """
    if mode is not None and options:
        raise ValueError(f"mode {mode!r} and options {sorted(options)} exclude each other in torch.compile")
    torch._dynamo.reset()
    before = {id(p) for p in backend.last_plans()}
    compiled: Any = torch.compile(model, backend=backend.roller, mode=mode, options=options or None)
    call_with = kwargs or {}
    start = time.perf_counter()
    compiled(*inputs, **call_with)
    compile_s = time.perf_counter() - start
    plans = [p for p in backend.last_plans() if id(p) not in before]
    timed: dict[str, float] = {}
    if measure:
        pair = (lambda: compiled(*inputs, **call_with), lambda: model(*inputs, **call_with))
        timed = dict(zip(("call_s", "eager_s"), medians(pair)))
    device = device_of(plans)
    title = name or str(getattr(model, "__name__", type(model).__name__))
    return collect(
        plans, device, title, backend.traces_of, compile_s=compile_s, versions=_versions(), **timed
    )


def last_report(name: str = "model") -> Report:
    """The graphs that backend "roller" compiled most recently in this process (the last 64 of them)."""
    plans = backend.last_plans()
    return collect(plans, device_of(plans), name, backend.traces_of, versions=_versions())


def device_of(plans: Sequence[Any]) -> DeviceSpec:
    """The spec that the kernels of these plans were searched for; this CPU where there are none."""
    devices = [p.device for p in plans if hasattr(p, "device")]  # a plan that calls ATen throughout has none
    if not devices:
        return cpu()
    return device_spec(devices[0])


def medians(calls: Sequence[Callable[[], Any]], rounds: int = 7) -> list[float]:
    """Interleaved rounds, so that a busy machine is equally unfair to all."""
    seconds: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(rounds):
        for kept, call in zip(seconds, calls):
            start = time.perf_counter()
            call()
            kept.append(time.perf_counter() - start)
    return [statistics.median(s) for s in seconds]


def _versions() -> tuple[tuple[str, str], ...]:
    found = []
    for package in ("torchroller", "torch", "triton", "llvmlite"):
        try:
            found.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)
