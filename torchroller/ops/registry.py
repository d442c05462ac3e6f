"""Where lowering rules are registered: ATen overload packet -> function.

A rule takes a `Context` and the operator's arguments (tensors as graph.Node, the rest as Python values) and
returns a Node, or a tuple of Nodes (None for a result that is not computed). It raises NotLowered with a
reason where it has no tensor expression.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..graph import DTYPE_NAMES, Builder, Node

aten = torch.ops.aten
prims = torch.ops.prims


@dataclass
class Context:
    """What a rule may ask: the builder, what ATen's meta function says of the result, which results are used."""

    b: Builder
    meta: Any
    used: frozenset[int] = frozenset()
    call_aten: Callable[[Any, torch.Tensor, str], Node] | None = None
    operands: tuple[Any, ...] = ()  # what ATen's meta functions say of the tensor arguments, in order
    source: fx.Node | None = None  # of the graph that is lowered

    def extern(self, target: Callable[[], torch.Tensor], meta: torch.Tensor, reason: str) -> Node:
        """The result of a call that the plan makes as it stands; `meta` is what it looks like."""
        assert self.call_aten is not None
        return self.call_aten(target, meta, reason)

    def out(self, number: int | None = None) -> torch.Tensor:
        """Fake tensor of the (numbered) result."""
        return self.meta if number is None else self.meta[number]

    @property
    def dtype(self) -> str:
        return DTYPE_NAMES[self.meta.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(s) for s in self.meta.shape)

    def node(self, value: Any, dtype: str) -> Node:
        """A tensor or a Python number as a Node of `dtype`."""
        if isinstance(value, Node):
            return self.b.cast(value, dtype)
        return self.b.const(value, dtype)


Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


GIVEN: dict[str, int] = {}  # operators whose rule gives the first results only: how many


def rule(*names: str, given: int = 0) -> Callable[[Rule], Rule]:
    """Registers a rule for operators by qualified packet name, such as "aten.add".

    given: how many of the results, from the first, the rule gives; where others are used, ATen is called. 0: all
    """

    def register(fn: Rule) -> Rule:
        for name in names:
            if name in RULES:
                raise ValueError(f"two lowering rules for {name}")
            RULES[name] = fn
            if given:
                GIVEN[name] = given
        return fn

    return register
