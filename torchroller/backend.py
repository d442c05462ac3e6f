"""The torch.compile entry point: options, AOTAutograd, and what happens when a graph cannot be compiled."""

from __future__ import annotations

import dataclasses
import functools
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from .cuda_graphs import Replayed
from .decompose import decompositions
from .errors import StrictError, UntrackedWeight
from .options import Options, parse_options
from .pipeline import compile_graph
from .plan import EagerPlan, ExecutionPlan
from .specialise import Specialised, is_symbolic

log = logging.getLogger("torchroller")
_RECENT = 64
_last: list[ExecutionPlan | EagerPlan] = []
_traces: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()
_graphs: weakref.WeakKeyDictionary[Any, tuple[fx.GraphModule, Options]] = weakref.WeakKeyDictionary()


def roller(gm: fx.GraphModule, example_inputs: list[Any], *, mode: str | None = None,
           options: Mapping[str, Any] | None = None, **_: Any) -> Callable[..., Any]:  # fmt: skip
    """`torch.compile(model, backend="roller", mode=..., options={...})`.

    Raises OptionError for unknown options. What cannot be lowered is called in ATen, with a reason in the
    report, unless options={"strict": True}.
    """
    from torch._dynamo.backends.common import aot_autograd

    parsed = parse_options(mode, options)
    return aot_autograd(
        fw_compiler=functools.partial(compile_aot_graph, options=parsed, inference=False),
        bw_compiler=functools.partial(compile_aot_graph, options=parsed, inference=False),
        inference_compiler=functools.partial(compile_aot_graph, options=parsed, inference=True),
        decompositions=decompositions(),
        keep_inference_input_mutations=True,
    )(gm, example_inputs)


def last_plans() -> tuple[ExecutionPlan | EagerPlan, ...]:
    """The plans made most recently in this process, oldest first (forward, backward, further graphs)."""
    return tuple(_last)


def traces_of(plan: ExecutionPlan | EagerPlan) -> Mapping[str, str]:
    """The user's stack trace per FX node name of the graph that a plan was made from."""
    return _traces.get(plan, {})


def graph_of(plan: ExecutionPlan | EagerPlan) -> tuple[fx.GraphModule, Options] | None:
    """The ATen graph and the options that a plan was made from; None where they are not kept."""
    return _graphs.get(plan)


def compile_aot_graph(gm: fx.GraphModule, example_inputs: Sequence[Any], *, options: Options,
                      inference: bool) -> Callable[[list[Any]], list[Any]]:  # fmt: skip
    """The compiler that AOTAutograd calls; the result takes its inputs as one list, which it empties."""
    static = _static_inputs() if inference else frozenset()
    runner: Any
    if is_symbolic(gm):
        runner = Specialised(gm, lambda g, args: _Runner(g, args, options, static))
    else:
        runner = _Runner(gm, example_inputs, options, static)
        if options.cuda_graphs and inference and _recordable(runner.plan, static):
            runner = Replayed(runner, static, runner.steady)

    def call(args: list[Any]) -> list[Any]:
        return runner(args)

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


def _recordable(plan: ExecutionPlan | EagerPlan, static: frozenset[int]) -> bool:
    """Whether a CUDA graph of the plan computes what the plan does: inputs that are copied are not written to."""
    return isinstance(plan, ExecutionPlan) and plan.device.type == "cuda" and plan.written() <= static


class _Runner:
    """A plan, and how to replace it when it meets weights whose changes cannot be seen."""

    def __init__(
        self, gm: fx.GraphModule, inputs: Sequence[Any], options: Options, static: frozenset[int]
    ) -> None:
        self.gm, self.options, self.static = gm, options, static
        self.plan = make_plan(gm, inputs, options, static)

    def steady(self, args: list[Any]) -> bool:
        """Whether what was packed from inputs is still what they hold."""
        return isinstance(self.plan, ExecutionPlan) and self.plan.steady(args)

    def __call__(self, args: list[Any]) -> list[Any]:
        try:
            return self.plan(args)
        except UntrackedWeight as error:
            log.info("torchroller: %s; compiling without packed weights", error)
            _last[:] = [p for p in _last if p is not self.plan]
            self.plan = make_plan(
                self.gm, args, dataclasses.replace(self.options, pack_weights=False), self.static
            )
            return self.plan(args)


def make_plan(gm: fx.GraphModule, inputs: Sequence[Any], options: Options,
              static: frozenset[int]) -> ExecutionPlan | EagerPlan:  # fmt: skip
    """The plan of one graph; a plan that calls ATen throughout if our compiler fails, unless `strict`."""
    plan: ExecutionPlan | EagerPlan
    try:
        plan = compile_graph(gm, inputs, options, static)
    except StrictError:
        raise
    except Exception as error:
        if options.strict:
            raise
        log.warning(
            "torchroller: a graph runs in ATen because compiling it failed: %s: %s",
            type(error).__name__,
            error,
        )
        log.debug("compiling failed", exc_info=True)
        plan = EagerPlan(gm, f"compiling the graph failed: {type(error).__name__}: {error}")
    _traces[plan] = {n.name: n.stack_trace for n in gm.graph.nodes if n.stack_trace}
    _graphs[plan] = gm, options
    _last.append(plan)
    del _last[:-_RECENT]
    return plan


def _static_inputs() -> frozenset[int]:
    """Positions of parameters and buffers among the inputs of the graph being compiled."""
    context = torch._guards.TracingContext.try_get()
    meta = context.fw_metadata if context is not None else None
    return frozenset(meta.static_input_indices or ()) if meta is not None else frozenset()
