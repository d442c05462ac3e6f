"""The worklist: from a captured graph and its masks to one TeSA per tensor."""

from __future__ import annotations

import heapq
import operator
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..capture import Captured, capture, shape_of
from ..masked import ModelTeSA, masked_model, validate, with_default_bits
from ..tesa import TeSA, compact
from .facts import Call, Facts, is_tensor, tensor_sources
from .rule import Rule, everything, unknown
from .scramble import Scramble
from .table import rule_for
from .widths import propagate_widths


@dataclass(frozen=True, eq=False)
class Analysis:
    """facts and need of every node (a tuple for operators with several results); rules are the ones that were
    used.

    need is a compact bool, or None where nothing is needed. parameters_fixed: their values count as constants
    (inference); otherwise only what masks fix does (training).
    """

    captured: Captured
    facts: Mapping[fx.Node, Any]
    need: Mapping[fx.Node, Any]
    rules: Mapping[fx.Node, Rule]
    visits: int
    parameters_fixed: bool

    def call(self, node: fx.Node) -> Call:
        return make_call(node, self.facts)


@dataclass(frozen=True, eq=False)
class Propagation:
    """TeSA of every tensor of a model's graph. Print it; index it by the name of a parameter or graph node.

    given: what the masks said. tensors: after propagation, parameters under their own names, then the graph's
    intermediate tensors in the order of execution. scrambled: operators without a rule. seconds: wall time.
    """

    given: ModelTeSA
    tensors: Mapping[str, TeSA]
    kinds: Mapping[str, str]
    scrambled: tuple[str, ...]
    visits: int
    seconds: float
    graph: fx.Graph = field(repr=False)

    def __getitem__(self, name: str) -> TeSA:
        return self.tensors[name]

    def parameters(self) -> dict[str, TeSA]:
        """The propagated TeSA of every parameter and buffer."""
        return {n: t for n, t in self.tensors.items() if self.kinds[n] == "parameter"}

    def gained(self) -> dict[str, int]:
        """Elements of each parameter that propagation pruned beyond the masks."""
        out = {}
        for name, tesa in self.parameters().items():
            before = self.given[name].code == 0 if name in self.given else torch.zeros((), dtype=torch.bool)
            more = int(((tesa.code == 0) & ~before.expand(tesa.shape)).sum()) if tesa.shape else 0
            if more:
                out[name] = more
        return out

    def __str__(self) -> str:
        gained = self.gained()
        width = min(64, max((len(n) for n in self.tensors), default=4))
        lines = []
        for name, tesa in self.tensors.items():
            more = f"  (+{gained[name]} by propagation)" if name in gained else ""
            lines.append(f"{self.kinds[name]:9} {name:{width}}  {tesa}{more}")
        total = sum(gained.values())
        lines.append(
            f"{len(self.tensors)} tensors, {self.visits} visits, {self.seconds:.2f} s; "
            f"{total} parameter elements pruned by propagation"
        )
        if self.scrambled:
            lines.append("scrambled, not relied on: " + ", ".join(self.scrambled))
        return "\n".join(lines + [f"note: {n}" for n in self.given.notes])


def propagate(
    model: nn.Module,
    tesa: Mapping[str, TeSA],
    example_inputs: tuple[Any, ...],
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    scramble_trials: int = 8,
    trainable: bool = False,
    dynamic_shapes: Any = None,
) -> Propagation:
    """TeSA of every tensor of the model's graph, given that of some.

    example_inputs: a tuple. scramble_trials: runs of each operator that has no rule; 0 assumes the worst of
    it. trainable: do not count the values of alive parameters as known. Raises MaskError, ModelMismatch,
    CaptureError.
    """
    started = time.perf_counter()
    given = with_default_bits(validate(model, tesa), model)
    captured = capture(masked_model(model, given), example_inputs, example_kwargs, dynamic_shapes)
    black_box: Rule = Scramble(scramble_trials) if scramble_trials else Rule()
    analysis = analyse(captured, given, black_box=black_box, parameters_fixed=not trainable)
    widths = propagate_widths(analysis, given)
    tensors, kinds, aliases = {}, {}, _aliases(model)
    for node in captured.graph.nodes:
        if not is_tensor(node) or node.op == "output":
            continue
        name, kind = (str(node.target), "parameter") if node.op == "get_attr" else (node.name, "tensor")
        kind = "input" if node.op == "placeholder" else kind
        tensors[name] = tesa_of(analysis, node, widths[node], given.get(str(node.target)))
        kinds[name] = kind
        for alias in aliases.get(name, ()) if kind == "parameter" else ():  # tied: one tensor, several names
            tensors[alias], kinds[alias] = tensors[name], kind
    scrambled = tuple(
        n.name for n, r in analysis.rules.items() if type(r) in (Scramble, Rule) and tensor_sources(n)
    )
    return Propagation(
        given, tensors, kinds, scrambled, analysis.visits, time.perf_counter() - started, captured.graph
    )


def _aliases(model: nn.Module) -> dict[str, list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {n: group for group in names.values() for n in group if len(group) > 1}


def tesa_of(analysis: Analysis, node: fx.Node, width: Tensor, given: TeSA | None) -> TeSA:
    """The TeSA of one node from its facts, its need and its widths (a compact int8 tensor)."""
    facts, need = analysis.facts[node], analysis.need[node]
    dead = ~need if need is not None else torch.ones((1,) * len(facts.shape), dtype=torch.bool)
    quant = given.quant if given is not None else None
    if node.op == "get_attr":
        code = width if given is None else given.code
        code = torch.where(dead, 0, code)
        value = None if given is None else given.value
        return TeSA.from_codes(facts.shape, code, value, quant)
    code = torch.where(dead | facts.zero, 0, torch.where(facts.known, -width, width))
    return TeSA.from_codes(facts.shape, code, facts.value, quant, facts.confidence)


def analyse(
    captured: Captured,
    given: Mapping[str, TeSA] | None = None,
    *,
    black_box: Rule | None = None,
    parameters_fixed: bool = True,
) -> Analysis:
    """Forward facts and backward needs of every node, by worklist to a fixpoint."""
    box = black_box or Rule()
    nodes = list(captured.graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    rules: dict[fx.Node, Rule] = {
        n: rule_for(n.target) or box
        for n in nodes
        if n.op == "call_function" and n.target is not operator.getitem
    }
    facts: dict[fx.Node, Any] = {}
    visits = _forward(captured, given or {}, nodes, order, rules, facts, parameters_fixed)
    need: dict[fx.Node, Any] = {}
    visits += _backward(nodes, order, rules, facts, need)
    return Analysis(captured, facts, need, rules, visits, parameters_fixed)


def make_call(node: fx.Node, facts: Mapping[fx.Node, Any]) -> Call:
    sources = tensor_sources(node)
    return Call(node, tuple(facts[s] for s in sources), sources, node.meta.get("val"))


def _forward(
    captured: Captured,
    given: Mapping[str, TeSA],
    nodes: list[fx.Node],
    order: dict[fx.Node, int],
    rules: dict[fx.Node, Rule],
    facts: dict[fx.Node, Any],
    parameters_fixed: bool,
) -> int:
    parameters = {n for n, _ in captured.graph_module.named_parameters(remove_duplicate=False)}
    queue, visits = list(range(len(nodes))), 0
    heapq.heapify(queue)
    queued = set(queue)
    while queue:
        index = heapq.heappop(queue)
        queued.discard(index)
        node, visits = nodes[index], visits + 1
        new: Any = None
        if node.op == "get_attr":
            new = _parameter_facts(captured, given, str(node.target), node, parameters, parameters_fixed)
        elif node.op == "placeholder":
            new = unknown(node.meta.get("val"))
        elif node.op == "call_function" and node.target is operator.getitem:
            whole, part = facts.get(node.args[0]), int(node.args[1])  # type: ignore[arg-type]
            new = whole[part] if isinstance(whole, tuple) else unknown(node.meta.get("val"))
        elif node.op == "call_function" and _has_tensor(node):
            new = rules[node].forward(make_call(node, facts))
        elif node.op == "call_module":
            new = unknown(node.meta.get("val"))
        if node not in facts or not _same(facts[node], new):
            facts[node] = new
            for user in node.users:
                if order[user] not in queued:
                    queued.add(order[user])
                    heapq.heappush(queue, order[user])
    return visits


def _has_tensor(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) or (
        isinstance(value, (tuple, list)) and any(isinstance(v, Tensor) for v in value)
    )


def _parameter_facts(
    captured: Captured,
    given: Mapping[str, TeSA],
    name: str,
    node: fx.Node,
    parameters: set[str],
    parameters_fixed: bool,
) -> Facts | None:
    like = node.meta.get("val")
    if not isinstance(like, Tensor):
        return None
    tensor = captured.tensor(name)
    if parameters_fixed or name not in parameters:
        return Facts.literal(tensor, like)
    if name not in given:
        return Facts.unknown(like)
    tesa = given[name]
    value = torch.zeros((), dtype=torch.float64) if tesa.value is None else tesa.value
    return Facts.of(tesa.code <= 0, value, like)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Facts) and isinstance(b, Facts):
        return (
            a.known.shape == b.known.shape
            and torch.equal(a.known, b.known)
            and torch.equal(a.value.nan_to_num(0.5), b.value.nan_to_num(0.5))
        )
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b))
    return a is b


def _backward(
    nodes: list[fx.Node],
    order: dict[fx.Node, int],
    rules: dict[fx.Node, Rule],
    facts: Mapping[fx.Node, Any],
    need: dict[fx.Node, Any],
) -> int:
    """Grow the sets of needed elements from the graph's outputs until nothing changes."""
    for node in nodes:
        count = len(facts[node]) if isinstance(facts.get(node), tuple) else None
        need[node] = None if count is None else [None] * count

    queue = [-order[n] for n in nodes if n.op == "output"]
    heapq.heapify(queue)
    queued, visits = set(queue), 0

    def grow(node: fx.Node, more: Tensor | None, part: int | None = None) -> None:
        if more is None or not bool(more.any()):
            return
        old = need[node] if part is None else need[node][part]
        new = compact(more if old is None else old | more)[0]
        if old is not None and old.shape == new.shape and torch.equal(old, new):
            return
        if part is None:
            need[node] = new
        else:
            need[node][part] = new
        if -order[node] not in queued:
            queued.add(-order[node])
            heapq.heappush(queue, -order[node])

    while queue:
        index = heapq.heappop(queue)
        queued.discard(index)
        node, visits = nodes[-index], visits + 1
        if node.op in ("output", "call_module") or (node.op == "call_function" and not _has_tensor(node)):
            for source in node.all_input_nodes:
                if isinstance(facts.get(source), Facts):
                    grow(source, everything(facts[source]))
        elif node.op == "call_function" and node.target is operator.getitem:
            if isinstance(facts.get(node.args[0]), tuple):  # type: ignore[arg-type]
                grow(node.args[0], need[node], node.args[1])  # type: ignore[arg-type]
        elif node.op == "call_function":
            call = make_call(node, facts)
            for source, wanted in zip(call.sources, rules[node].backward(call, facts[node], need[node])):
                if wanted is not None:
                    shape = facts[source].shape
                    wanted = wanted.reshape((1,) * (len(shape) - wanted.dim()) + tuple(wanted.shape))
                grow(source, wanted)
    return visits


def node_shape(node: fx.Node) -> tuple[int, ...]:
    return shape_of(node.meta["val"])
