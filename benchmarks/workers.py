"""One process per contender, taking turns: no contender's thread pool spins while another one is timed."""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch


@dataclass(frozen=True)
class Ready:
    """A contender that compiled: seconds of build plus first call, and its error against fp64 eager."""

    compile_s: float
    error: float
    calls: int
    notes: str


def _worker(pipe: Connection, contender: str, case_name: str, threads: int) -> None:
    try:
        torch.set_num_threads(threads)
        from cases import CASES
        from contenders import CONTENDERS

        case = next(c for c in CASES if c.name == case_name)
        with torch.no_grad():
            module, inputs = case.make()
            start = time.perf_counter()
            run = CONTENDERS[contender](module, inputs)
            run()
            compile_s = time.perf_counter() - start
            got = getattr(run, "result", run)()
            error = _error(module, inputs, got)
            once = min(_timed(run, 1) for _ in range(3))
            calls = max(1, int(case.turn_s / max(once, 1e-7)))
            pipe.send(Ready(compile_s, error, calls, _notes(contender)))
            while pipe.recv() == "turn":
                run()  # wake the caches and the thread pool, untimed
                pipe.send(_timed(run, calls))
    except BaseException as failure:  # noqa: BLE001  (the controller reports it; this process ends)
        pipe.send(f"{type(failure).__name__}: {failure}\n{traceback.format_exc(limit=3)}")


def _timed(run, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def _error(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], got: object) -> float:
    """Largest error relative to the largest magnitude of the double-precision result."""
    wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    reference = module.double()(*wide)
    result = got.double() if isinstance(got, torch.Tensor) else torch.as_tensor(got).double()
    error = ((result.reshape(reference.shape) - reference).abs().max() / reference.abs().max()).item()
    module.to(next((x.dtype for x in inputs if x.is_floating_point()), torch.float32))
    return error


def _notes(contender: str) -> str:
    if not contender.startswith("roller"):
        return ""
    import torchroller

    report = torchroller.last_report()
    if report is None:
        return ""
    (nodes, all_nodes), (flops, all_flops) = report.nodes, report.flops
    share = f", {flops / all_flops:.0%} of FLOPs" if all_flops else ""
    return f"{nodes / max(all_nodes, 1):.0%} of nodes{share} in our kernels"


class Contender:
    """A worker process and what it said."""

    def __init__(self, name: str, case: str, threads: int) -> None:
        context = mp.get_context("spawn")
        self.name = name
        self.pipe, child = context.Pipe()
        self.process = context.Process(target=_worker, args=(child, name, case, threads), daemon=True)
        self.process.start()
        child.close()
        self.ready: Ready | None = None
        self.failure = ""
        self.samples: list[float] = []

    def wait(self, timeout_s: float) -> None:
        """Until it is compiled, has failed, or time is up."""
        try:
            if not self.pipe.poll(timeout_s):
                self.failure = f"not compiled within {timeout_s:.0f} s"
                self.process.kill()
                return
            answer = self.pipe.recv()
        except EOFError:
            answer = "the process died while compiling"
        if isinstance(answer, Ready):
            self.ready = answer
        else:
            self.failure = str(answer)

    def turn(self) -> None:
        self.pipe.send("turn")
        answer = self.pipe.recv()
        if isinstance(answer, float):
            self.samples.append(answer)
        else:
            self.failure, self.ready = str(answer), None

    def stop(self) -> None:
        if self.process.is_alive():
            with contextlib.suppress(OSError):
                self.pipe.send("stop")
            self.process.join(5)
            if self.process.is_alive():
                self.process.kill()
