"""Which slices of every tensor stay.

Each axis of each tensor has a bool per index: must it stay? It starts with what the analysis demands (a slice
may go if every element of it is not needed or a known constant) and grows until every operator can be
rebuilt: operands of a sum keep the same channels, a view keeps whole products of its parts, outputs keep
everything. Growing is monotone, so sweeping until nothing changes ends at the smallest model of this kind.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from ..capture import symbolic_dims
from ..propagation.analysis import Analysis
from ..propagation.facts import Call, Facts, is_tensor
from ..propagation.movement import reshape_groups
from ..propagation.rule import Rule

Axis = np.ndarray  # bool, one per index


class Keeps:
    """Axes of every tensor. Those of a static tensor (a weight, a constant) exist once per use: each use may
    be cut differently. Growing is in place and sets `changed`."""

    def __init__(self, analysis: Analysis):
        self.analysis = analysis
        self.axes: dict[Any, list[Axis]] = {}
        self.minimal: dict[fx.Node, list[Axis]] = {}
        self.changed = False
        graph = analysis.captured.graph
        parameters = {n for n, _ in analysis.captured.graph_module.named_parameters(remove_duplicate=False)}
        self.static = {n for n in graph.nodes if is_tensor(n) and self._is_static(n, parameters)}
        for node in graph.nodes:
            facts = analysis.facts.get(node)
            if isinstance(facts, Facts) and node not in self.static:
                if node.target is operator.getitem:
                    self.axes[node] = self.axes[(node.args[0], node.args[1])]
                else:
                    self.axes[node] = self._minimal(node, facts, analysis.need[node], node.meta["val"])
                self.minimal[node] = [a.copy() for a in self.axes[node]]
            elif isinstance(facts, tuple):
                for i, part in enumerate(facts):
                    if isinstance(part, Facts):
                        need = (analysis.need[node] or [None] * len(facts))[i]
                        self.axes[(node, i)] = self._minimal(node, part, need, node.meta["val"][i])

    def _is_static(self, node: fx.Node, parameters: set[str]) -> bool:
        if node.op == "get_attr":
            shared = (
                not self.analysis.parameters_fixed and str(node.target) in parameters and len(node.users) > 1
            )
            return not shared
        facts = self.analysis.facts.get(node)
        return (
            node.op == "call_function"
            and isinstance(facts, Facts)
            and facts.all_known
            and not symbolic_dims(node.meta["val"])
            and not node.meta["val"].is_complex()
        )

    def _minimal(self, node: fx.Node, facts: Facts, need: torch.Tensor | None, like: Any) -> list[Axis]:
        rank = len(facts.shape)
        locked = node.op in ("placeholder", "call_module", "get_attr")
        settled = facts.known if self.analysis.parameters_fixed else facts.zero
        stays = torch.zeros((1,) * rank, dtype=torch.bool) if need is None else need & ~settled
        symbolic = symbolic_dims(like)
        axes = []
        for d, size in enumerate(facts.shape):
            other = [k for k in range(rank) if k != d]
            along = stays.any(dim=other[0]) if len(other) == 1 else (stays.amax(other) if other else stays)
            axis = along.reshape(-1).expand(size).numpy().copy()
            if locked or size == 1 or d in symbolic:
                axis[:] = True
            if size and not axis.any():
                axis[0] = True
            axes.append(axis)
        return axes

    def of_use(self, source: fx.Node, user: fx.Node, position: int) -> list[Axis]:
        """The axes of a tensor as the `position`-th tensor input of `user`."""
        if source not in self.static:
            return self.axes[source]
        key = (source, user, position)
        if key not in self.axes:
            shape = self.analysis.facts[source].shape
            self.axes[key] = [np.full(size, size == 1) for size in shape]
        return self.axes[key]


class CallAxes:
    """The axes of one call, for `Rule.keep` to tie together and `Rule.emit` to read."""

    def __init__(self, keeps: Keeps, call: Call):
        self.keeps, self.call = keeps, call
        self._fresh = 0

    def inp(self, i: int) -> list[Axis]:
        return self.keeps.of_use(self.call.sources[i], self.call.node, i)

    def out(self, i: int | None = None) -> list[Axis]:
        return self.keeps.axes[self.call.node if i is None else (self.call.node, i)]

    def static(self, i: int) -> bool:
        """Whether input i is a weight or constant that can be cut for this call alone."""
        return self.call.sources[i] in self.keeps.static

    def fresh(self, size: int) -> Axis:
        """An axis that no tensor has, such as the groups of a convolution; the n-th of a call is always the
        same."""
        self._fresh += 1
        return self.keeps.axes.setdefault((self.call.node, "fresh", self._fresh), [np.zeros(size, bool)])[0]

    def _grow(self, axis: Axis, to: Axis) -> None:
        if not np.array_equal(axis, to):
            axis[:] = to
            self.keeps.changed = True

    def tie(self, a: Axis, b: Axis) -> None:
        """a and b keep the same indices."""
        both = a | b
        self._grow(a, both)
        self._grow(b, both)

    def lock(self, axis: Axis, where: Axis | None = None) -> None:
        """Everything stays (or everything in `where`)."""
        self._grow(axis, axis | (np.ones_like(axis) if where is None else where))

    def product(self, merged: Axis, parts: Sequence[Axis]) -> None:
        """merged, seen as an array over `parts` (first is outermost), keeps the product of what they keep."""
        sizes = tuple(len(p) for p in parts)
        grid = merged.reshape(sizes)
        for i, part in enumerate(parts):
            self._grow(part, part | grid.any(axis=tuple(k for k in range(len(parts)) if k != i)))
        whole = np.ones(sizes, bool)
        for i, part in enumerate(parts):
            whole &= part.reshape([-1 if k == i else 1 for k in range(len(parts))])
        self._grow(merged, whole.reshape(-1) | merged)

    def reshape(self, src: list[Axis], dst: list[Axis]) -> None:
        """Axes before and after a change of shape that keeps the order of elements."""
        before, after = tuple(map(len, src)), tuple(map(len, dst))
        if 0 in before or 0 in after:
            self.lock_all()
            return
        for left, right in reshape_groups(before, after):
            a = [src[d] for d in left if before[d] != 1]
            b = [dst[d] for d in right if after[d] != 1]
            if len(a) == 1 and len(b) == 1:
                self.tie(a[0], b[0])
            elif len(a) == 1 and b:
                self.product(a[0], b)
            elif len(b) == 1 and a:
                self.product(b[0], a)
            else:
                for axis in a + b:
                    self.lock(axis)

    def broadcast(self) -> None:
        """Axes of a pointwise operator: aligned from the right, size 1 is repeated."""
        out = self.out()
        for i in range(len(self.call.inputs)):
            x = self.inp(i)
            for back in range(1, len(x) + 1):
                if len(x[-back]) == len(out[-back]):
                    self.tie(x[-back], out[-back])

    def lock_all(self) -> None:
        for i in range(len(self.call.inputs)):
            for axis in self.inp(i):
                self.lock(axis)
        parts = range(len(self.call.out)) if isinstance(self.call.out, (tuple, list)) else [None]
        for part in parts:
            key = self.call.node if part is None else (self.call.node, part)
            for axis in self.keeps.axes.get(key, []):
                self.lock(axis)


def keep_slices(analysis: Analysis) -> Keeps:
    """Grow the axes until every call can be rebuilt."""
    keeps = Keeps(analysis)
    graph = analysis.captured.graph
    calls = []
    for node in graph.nodes:
        if node in keeps.static or node.target is operator.getitem:
            continue
        if node.op == "output" or (node.op == "call_function" and node not in analysis.rules):
            _lock_inputs(keeps, node)
        elif node.op == "call_function":
            if not isinstance(node.meta.get("val"), (torch.Tensor, tuple, list)):
                _lock_inputs(keeps, node)
                continue
            calls.append((analysis.call(node), analysis.rules[node]))
    keeps.changed = True
    while keeps.changed:
        keeps.changed = False
        for call, rule in calls:
            _apply(rule, keeps, call)
        for call, rule in reversed(calls):
            _apply(rule, keeps, call)
    return keeps


def _apply(rule: Rule, keeps: Keeps, call: Call) -> None:
    axes = CallAxes(keeps, call)
    if isinstance(call.out, torch.Tensor) and call.node not in keeps.axes:
        return
    rule.keep(axes)


def _lock_inputs(keeps: Keeps, node: fx.Node) -> None:
    for source in node.all_input_nodes:
        if is_tensor(source) and source not in keeps.static:
            for axis in keeps.axes[source]:
                axis[:] = True
