"""One process per contender, taking turns: no contender's thread pool spins while another one is timed."""

from __future__ import annotations

import contextlib
import copy
import gc
import multiprocessing as mp
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from cases import Case


@dataclass(frozen=True)
class Ready:
    """A contender that compiled a case: seconds of build plus first call, and its error against fp64 eager."""

    compile_s: float
    error: float
    notes: str


CLOCKS: dict[str, Callable[[], int]] = {"wall": time.perf_counter_ns, "thread": time.thread_time_ns}


def _worker(pipe: Connection, contender: str, threads: int, clock: str) -> None:
    torch.set_num_threads(threads)
    while True:
        try:
            message = pipe.recv()
        except (EOFError, OSError):  # the controller is gone
            return
        if message == "stop":
            return
        try:
            _serve(pipe, contender, message, CLOCKS[clock])
        except BaseException as failure:  # noqa: BLE001  (the controller reports it)
            pipe.send(f"{type(failure).__name__}: {failure}\n{traceback.format_exc(limit=3)}")
        torch._dynamo.reset()
        gc.collect()


def _serve(pipe: Connection, contender: str, case_name: str, clock: Callable[[], int]) -> None:
    """One case, until the controller says that it is done."""
    from contenders import CONTENDERS
    from operator_cases import find

    case = find(case_name)
    with torch.set_grad_enabled(case.training):
        module, inputs = case.make()
        start = time.perf_counter()
        run = CONTENDERS[contender](module, inputs)
        if case.training:
            run = training_step(run, module)
        run()
        compile_s = time.perf_counter() - start
        got = getattr(run, "result", run)()
        pipe.send(
            Ready(compile_s, _error(module, inputs, got, case), _notes(contender, 2 if case.training else 1))
        )
        calls = 0
        while pipe.recv() == "turn":
            run()  # wake the caches and the thread pool, untimed
            if not calls:  # counted here, when nobody else compiles
                calls = max(1, int(case.turn_s / max(min(_timed(run, 1, clock) for _ in range(3)), 1e-7)))
            pipe.send(_timed(run, calls, clock))


def _timed(run, calls: int, clock: Callable[[], int]) -> float:
    start = clock()
    for _ in range(calls):
        run()
    return (clock() - start) * 1e-9 / calls


def training_step(forward: Callable[[], Any], module: torch.nn.Module) -> Callable[[], object]:
    """Forward and backward pass of a loss and a step of AdamW; `result` is the gradients, without a step."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5)

    def step() -> object:
        forward().backward()
        optimizer.step()
        optimizer.zero_grad()
        return None

    def gradients() -> torch.Tensor:
        forward().backward()
        found = _gradients(module)
        optimizer.zero_grad()
        return found

    step.result = gradients  # type: ignore[attr-defined]
    return step


def _gradients(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def _error(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], got: object, case: Case) -> float:
    """Largest error relative to the largest magnitude of the double-precision result (gradients, in training)."""
    wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    exact = copy.deepcopy(module).double()
    reference = exact(*wide)
    if case.training:
        reference.backward()
        reference = _gradients(exact)
    result = got.double() if isinstance(got, torch.Tensor) else torch.as_tensor(got).double()
    return ((result.reshape(reference.shape) - reference).abs().max() / reference.abs().max()).item()


def _notes(contender: str, graphs: int) -> str:
    if not contender.startswith("roller"):
        return ""
    from torchroller import backend
    from torchroller.collect import collect
    from torchroller.explaining import device_of

    plans = backend.last_plans()[-graphs:]  # of this case; earlier ones of this process are not meant
    if not plans:
        return ""
    report = collect(plans, device_of(plans))
    (nodes, all_nodes), (flops, all_flops) = report.nodes, report.flops
    share = f", {flops / all_flops:.0%} of FLOPs" if all_flops else ""
    return f"{nodes / max(all_nodes, 1):.0%} of nodes{share} in our kernels"


class Contender:
    """A worker process; it serves one case after the other: `open`, `wait`, `turn` …, `done`."""

    def __init__(self, name: str, threads: int, clock: str = "wall") -> None:
        self.name, self.threads, self.clock = name, threads, clock
        self.process: mp.process.BaseProcess | None = None
        self.ready: Ready | None = None
        self.failure = ""
        self.samples: list[float] = []

    def open(self, case: str) -> None:
        """Starts to compile a case, in a fresh process where there is none or the last one died."""
        self.ready, self.failure, self.samples = None, "", []
        if self.process is None or not self.process.is_alive():
            context = mp.get_context("spawn")
            self.pipe, child = context.Pipe()
            self.process = context.Process(
                target=_worker, args=(child, self.name, self.threads, self.clock), daemon=True
            )
            self.process.start()
            child.close()
        self.pipe.send(case)

    def wait(self, timeout_s: float) -> None:
        """Until the case is compiled, has failed, or time is up."""
        try:
            if not self.pipe.poll(timeout_s):
                self.failure = f"not compiled within {timeout_s:.0f} s"
                self.kill()
                return
            answer = self.pipe.recv()
        except (EOFError, OSError):
            answer = "the process died while compiling"
            self.kill()
        if isinstance(answer, Ready):
            self.ready = answer
        else:
            self.failure = str(answer)

    def turn(self) -> None:
        try:
            self.pipe.send("turn")
            answer = self.pipe.recv()
        except (EOFError, OSError):
            answer = "the process died while it was timed"
            self.kill()
        if isinstance(answer, float):
            self.samples.append(answer)
        else:
            self.failure, self.ready = str(answer), None

    def done(self) -> None:
        """The case is over; its memory is given back."""
        if self.ready is not None:
            with contextlib.suppress(OSError):
                self.pipe.send("done")

    def stop(self) -> None:
        if self.process is not None and self.process.is_alive():
            with contextlib.suppress(OSError):
                self.pipe.send("stop")
            self.process.join(5)
            self.kill()

    def kill(self) -> None:
        if self.process is not None and self.process.is_alive():
            self.process.kill()
            self.process.join(5)
        self.process = None
