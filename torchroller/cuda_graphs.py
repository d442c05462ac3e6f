"""mode="reduce-overhead" on a GPU: the launches of a plan recorded once as a CUDA graph, and replayed.

A replay repeats addresses. Inputs that seldom change (parameters, buffers) are read where they are, and the graph is
recorded anew when one of them has moved or changed its packed form; all other inputs are copied to where the graph
reads them, and results are copied out of it, so that a caller may keep them. What a recording cannot hold (a call that
waits for the device) makes the plan run as it does without this mode.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

log = logging.getLogger("torchroller")
_WARM = 2  # calls before recording: allocators, autotuners of libraries and lazily loaded code have settled by then


@dataclass(frozen=True, eq=False)
class Recording:
    """A recorded call: where it reads its inputs, where the fixed ones were, and its results."""

    graph: torch.cuda.CUDAGraph
    inputs: tuple[Any, ...]
    fixed: tuple[tuple[int, int], ...]  # (position, address)
    outputs: tuple[Any, ...]

    def current(self, args: list[Any]) -> bool:
        return all(args[i].data_ptr() == address for i, address in self.fixed)


class Replayed:
    """`run` (takes its inputs as one list, which it empties) behind a CUDA graph.

    static: positions of inputs that are read in place
    steady: whether what was packed from inputs is still what they hold
    """

    def __init__(self, run: Callable[[list[Any]], list[Any]], static: frozenset[int],
                 steady: Callable[[list[Any]], bool]) -> None:  # fmt: skip
        self.run, self.static, self.steady = run, static, steady
        self.calls, self.refused = 0, ""
        self.recording: Recording | None = None

    def __call__(self, args: list[Any]) -> list[Any]:
        self.calls += 1
        if self.refused or self.calls <= _WARM or torch.cuda.is_current_stream_capturing():
            return self.run(args)
        if self.recording is None or not self.recording.current(args) or not self.steady(args):
            try:
                self.recording = self.record(args)
            except Exception as error:
                self.refused = f"{type(error).__name__}: {error}"
                log.warning(
                    "torchroller: no CUDA graph of a plan, which runs without one from now on: %s",
                    self.refused,
                )
                torch.cuda.synchronize()
                return self.run(args)
        kept = self.recording
        for i, own in enumerate(kept.inputs):
            if isinstance(own, torch.Tensor) and i not in self.static:
                own.copy_(args[i])
        args.clear()
        kept.graph.replay()
        return [o.clone() if isinstance(o, torch.Tensor) else o for o in kept.outputs]

    def record(self, args: list[Any]) -> Recording:
        inputs = tuple(
            a if i in self.static or not isinstance(a, torch.Tensor) else a.detach().clone()
            for i, a in enumerate(args)
        )
        fixed = tuple((i, args[i].data_ptr()) for i in sorted(self.static))
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            outputs = tuple(self.run(list(inputs)))
        return Recording(graph, inputs, fixed, outputs)
