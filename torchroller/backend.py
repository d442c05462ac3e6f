"""The torch.compile entry point: options, AOTAutograd, and the pipeline from FX graph to plan."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from .decompose import decompositions
from .options import Options, parse_options
from .pipeline import compile_graph
from .plan import ExecutionPlan

log = logging.getLogger("torchroller")
_last: list[ExecutionPlan] = []


def roller(gm: fx.GraphModule, example_inputs: list[Any], *, mode: str | None = None,
           options: Mapping[str, Any] | None = None, **_: Any) -> Callable[..., Any]:  # fmt: skip
    """`torch.compile(model, backend="roller", mode=..., options={...})`.

    Raises OptionError for unknown options. What cannot be lowered is called in ATen, with a reason in the
    report, unless options={"strict": True}.
    """
    from torch._dynamo.backends.common import aot_autograd

    parsed = parse_options(mode, options)
    compile_one = functools.partial(_compile, options=parsed)
    return aot_autograd(
        fw_compiler=functools.partial(compile_one, inference=False),
        bw_compiler=functools.partial(compile_one, inference=False),
        inference_compiler=functools.partial(compile_one, inference=True),
        decompositions=decompositions(),
    )(gm, example_inputs)


def last_plans() -> tuple[ExecutionPlan, ...]:
    """The plans made most recently in this process, oldest first (forward, backward, further graphs)."""
    return tuple(_last)


def _compile(gm: fx.GraphModule, example_inputs: list[Any], *, options: Options, inference: bool) -> Callable[..., Any]:
    static = _static_inputs() if inference else frozenset()
    runner = compile_graph(gm, example_inputs, options, static)
    _last.append(runner)
    del _last[:-64]

    def call(args: list[Any]) -> list[Any]:
        return runner(args)

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


def _static_inputs() -> frozenset[int]:
    """Positions of parameters and buffers among the inputs of the graph being compiled."""
    context = torch._guards.TracingContext.try_get()
    meta = context.fw_metadata if context is not None else None
    return frozenset(meta.static_input_indices or ()) if meta is not None else frozenset()
