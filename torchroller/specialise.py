"""Graphs with symbolic sizes: one plan per combination of shapes, made when it is first met.

Dynamo hands over a graph whose sizes are symbols when a shape has changed between calls. The plan needs numbers,
so the graph is traced again with the shapes at hand; a table keeps the most recently used plans.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from .plan import ExecutionPlan

log = logging.getLogger("torchroller")
KEEP = 64  # plans kept per graph


def is_symbolic(gm: fx.GraphModule) -> bool:
    """Does any input have a symbolic size?"""
    for node in gm.graph.nodes:
        if node.op != "placeholder":
            break
        meta = node.meta.get("val")
        if isinstance(meta, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return True
        if isinstance(meta, torch.Tensor) and any(
            isinstance(s, torch.SymInt) for s in (*meta.shape, *meta.stride())
        ):
            return True
    return False


def concrete(gm: fx.GraphModule, args: Sequence[Any]) -> fx.GraphModule:
    """`gm` with the sizes of `args` filled in."""
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        fakes = [mode.from_tensor(a, static_shapes=True) if isinstance(a, torch.Tensor) else a for a in args]

    def call(*inputs: Any) -> Any:
        return gm(*inputs)

    with torch.no_grad(), mode:
        traced = make_fx(call, tracing_mode="real")(*fakes)
    traced.graph.eliminate_dead_code()
    return traced


class Specialised:
    """Callable over a symbolic graph; `compiled` counts the plans made so far."""

    def __init__(self, gm: fx.GraphModule, make: Callable[[fx.GraphModule, Sequence[Any]], Any]) -> None:
        self.gm, self.make = gm, make
        self.plans: OrderedDict[Any, ExecutionPlan] = OrderedDict()
        self.compiled = 0

    def __call__(self, args: list[Any]) -> list[Any]:
        key = tuple((a.shape, a.stride(), a.dtype) if isinstance(a, torch.Tensor) else a for a in args)
        plan = self.plans.get(key)
        if plan is None:
            self.compiled += 1
            log.info("torchroller: specialising a dynamic graph to %s (plan %d)", key, self.compiled)
            plan = self.plans[key] = self.make(concrete(self.gm, args), args)
            while len(self.plans) > KEEP:
                self.plans.popitem(last=False)
        else:
            self.plans.move_to_end(key)
        return plan(args)
