"""Is the program that is chosen without measuring the fastest one? Measures it among its rivals, in turns.

The rivals of a kernel are the other rPrograms of the search's top ten and random feasible ones of the same space
(`torchroller.search.sample`), a fixed seed for each expression. All run on the same tensors.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from workers import CLOCKS

from torchroller import backend
from torchroller.choose import arguments, emit, ranked, sampled, tiling_of
from torchroller.errors import KernelError
from torchroller.expr import TensorExpr
from torchroller.kernel import NativeExecutor, cache_dir, compile_all
from torchroller.pipeline import device_spec
from torchroller.plan import Launch
from torchroller.tile import RProgram

TOP, RANDOM = 10, 40
_TURN_S = 2e-3  # a turn is at least this long
_OUT = 1.3  # times the fastest: a rival this slow after _TRIALS turns gets no more of them
_TRIALS = 2


def main_launch(fn: Callable[..., Any], inputs: tuple[torch.Tensor, ...]) -> Launch:
    """The kernel that does most of a function's work: most operations, then most bytes."""
    torch._dynamo.reset()
    torch.compile(fn, backend="roller")(*inputs)
    launches = getattr(backend.last_plans()[-1], "launches", ())
    if not launches:
        raise ValueError("no kernel of ours: the operator runs in ATen")
    return max(launches, key=lambda s: (s.expr.flops(), s.expr.bytes()))


def rivals(expr: TensorExpr, pack: bool) -> list[tuple[str, RProgram]]:
    """("top" or "random", rPrograms), the chosen one first. Raises ValueError where tiles are not searched for."""
    spec = device_spec(torch.device("cpu"))
    found = ranked(expr, spec, TOP, pack)
    if found is None:
        raise ValueError("the tiles of this kernel are not searched for")
    seed = int.from_bytes(hashlib.sha256(str(expr).encode()).digest()[:4], "big")
    known = {p.key for p in found.ranked}
    drawn = [p for p in sampled(expr, spec, RANDOM + len(known), seed, pack) if p.key not in known][:RANDOM]
    return [*(("top", p) for p in found.ranked), *(("random", p) for p in drawn)]


def measure(launch: Launch, rounds: int, clock: str) -> dict[str, Any]:
    """Least seconds of each program over the rounds; `ratio` is those of the fastest over those of the chosen one."""
    expr, pack = replace(launch.expr, source=()), bool(launch.kernel.source.packs)
    programs = rivals(expr, pack)
    spec = device_spec(torch.device("cpu"))
    executor = NativeExecutor(torch.device("cpu"), cache_dir())
    sources = [emit(expr, tiling_of(p, spec), pack) for _, p in programs]
    kernels = compile_all(executor, sources)
    kept: dict[tuple[str, int], torch.Tensor] = {}
    calls: list[Callable[[], None] | None] = []
    for source, kernel in zip(sources, kernels):
        if isinstance(kernel, KernelError):
            calls.append(None)
            continue
        calls.append(_prepared(executor, kernel, arguments(expr, source, executor.device, kept)))
    times = take_turns(calls, rounds, CLOCKS[clock])
    rows = [
        {"kind": kind, "program": p.key, "predicted_s": p.estimate.time_s, "measured_s": t}
        for (kind, p), t in zip(programs, times)
    ]
    timed = [t for t in times if t is not None]
    if times[0] is None:
        raise ValueError(f"the chosen program does not compile: {kernels[0]}")
    fastest = min(range(len(times)), key=lambda i: times[i] or float("inf"))
    return {"kernel": expr.name, "ratio": min(timed) / times[0], "fastest": rows[fastest], "programs": rows,
            "failed": sum(t is None for t in times)}  # fmt: skip


def _prepared(executor: NativeExecutor, kernel: Any, tensors: Sequence[torch.Tensor]) -> Callable[[], None]:
    """A launch with everything but the call done before."""
    block, scratch = executor.block(kernel, [t.data_ptr() for t in tensors])
    entries = (ctypes.c_void_p * 1)(executor.entry(kernel))
    blocks = (ctypes.c_void_p * 1)(ctypes.addressof(block))
    run = executor.driver.utils.run_many
    held = (tensors, block, scratch)

    def call(held: Any = held) -> None:
        run(1, entries, blocks)

    return call


def take_turns(
    calls: Sequence[Callable[[], None] | None], rounds: int, clock: Callable[[], int]
) -> list[float | None]:
    """Least seconds of a call in its turns, None for what cannot be called. The first is never left out."""
    best: list[float | None] = [None] * len(calls)
    counts = [0] * len(calls)
    for number in range(rounds):
        leader = min((b for b in best if b is not None), default=float("inf"))
        for i, call in enumerate(calls):
            if call is None or (number >= _TRIALS and i and (best[i] or 0.0) > _OUT * leader):
                continue
            if not counts[i]:
                call()  # warms up: pages, code
                start = clock()
                call()
                counts[i] = max(1, round(_TURN_S / max((clock() - start) * 1e-9, 1e-7)))
            start = clock()
            for _ in range(counts[i]):
                call()
            taken = (clock() - start) * 1e-9 / counts[i]
            known = best[i]
            best[i] = taken if known is None else min(known, taken)
    return best
