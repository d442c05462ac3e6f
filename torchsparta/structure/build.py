"""Rebuild the graph on the slices that stay: the walk over the nodes, weights, constants and modules.

Every node is emitted by its rule (`Rule.emit`, with an `Emitter`); most calls are simply repeated on smaller
tensors.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from ..capture import symbolic_dims
from ..masked import ModelTeSA
from ..propagation.analysis import Analysis
from ..propagation.facts import is_tensor
from ..transform import SparseSite, choose
from .cut import cut, varying
from .emit import Emitter
from .keep import Axis, Keeps, keep_slices

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Structured:
    """The smaller model. removed: weight name -> (shape before, shape after); folded: sites whose bias took
    constants.

    sites: every operator with a weight, in the order of execution, with the path of its module in `module`.
    """

    module: fx.GraphModule
    sites: tuple[tuple[str, SparseSite], ...]
    removed: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    folded: tuple[str, ...] = ()


def structure_first(
    analysis: Analysis,
    given: ModelTeSA,
    *,
    trainable: bool = False,
    chooser: Callable[[SparseSite], nn.Module] = choose,
    shrink: bool = True,
) -> Structured:
    """Rebuild the captured model. shrink=False keeps every shape (masked weights only)."""
    keeps = keep_slices(analysis)
    if not shrink:
        for axes in keeps.axes.values():
            for axis in axes:
                axis[:] = True
        for axes in keeps.minimal.values():
            for axis in axes:
                axis[:] = True
    return Builder(analysis, keeps, given, trainable, chooser).build()


class Builder:
    def __init__(
        self,
        analysis: Analysis,
        keeps: Keeps,
        given: ModelTeSA,
        trainable: bool,
        chooser: Callable[[SparseSite], nn.Module],
    ):
        self.analysis, self.keeps, self.given = analysis, keeps, given
        self.trainable, self.chooser = trainable, chooser
        self.graph = fx.Graph()
        self.env: dict[fx.Node, Any] = {}
        self.tensors: dict[str, Tensor] = {}
        self.modules: dict[str, nn.Module] = {}
        self.literals: dict[Any, fx.Node] = {}
        self.symbols: dict[Any, fx.Node] = {}
        self.sites: list[tuple[str, SparseSite]] = []
        self.removed: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        self.folded: list[str] = []
        self.device = _device(analysis)
        self.parameters = dict(analysis.captured.graph_module.named_parameters(remove_duplicate=False))

    def build(self) -> Structured:
        source = self.analysis.captured.graph_module
        for node in source.graph.nodes:
            if node in self.env:
                continue  # absorbed into an epilogue
            if node.op == "output":
                self.graph.output(fx.map_arg(node.args[0], lambda n: self.plain(n)))
            elif node.op == "placeholder":
                self.env[node] = self.graph.node_copy(node)
            elif node in self.keeps.static or node.op == "get_attr":
                if node not in self.keeps.static:
                    self.env[node] = self.literal(node, self.keeps.axes[node])
                continue
            elif node.target is operator.getitem and isinstance(node.args[0], fx.Node):
                whole = self.env[node.args[0]]
                if isinstance(whole, tuple):
                    self.env[node] = whole[int(node.args[1])]
                else:
                    self.env[node] = self.graph.call_function(operator.getitem, (whole, node.args[1]))
            elif node in self.analysis.rules and isinstance(node.meta.get("val"), (Tensor, tuple, list)):
                self.env[node] = self.analysis.rules[node].emit(Emitter(self, node))
            else:
                self.env[node] = self.graph.node_copy(node, self.plain)
        self.graph.eliminate_dead_code(lambda n: n.op in ("placeholder", "output"))
        return self._assemble(source)

    def plain(self, node: fx.Node) -> Any:
        """The new node for one that stays whole."""
        if node in self.keeps.static:
            shape = self.analysis.facts[node].shape if is_tensor(node) else ()
            return self.literal(node, [np.ones(s, bool) for s in shape])
        return self.env[node]

    def value(self, node: fx.Node) -> Tensor:
        """The tensor behind a static node, at full size."""
        if node.op == "get_attr":
            return self.analysis.captured.tensor(str(node.target)).detach()
        facts = self.analysis.facts[node]
        return facts.full(facts.value).to(node.meta["val"].dtype)

    def literal(self, node: fx.Node, axes: list[Axis]) -> fx.Node:
        """A static node, cut to `axes`, as a get_attr (and an expand for constants that are stored
        compact)."""
        key = (node, tuple(a.tobytes() for a in axes))
        if key in self.literals:
            return self.literals[key]
        if node.op == "get_attr":
            name = str(node.target)
            tensor = cut(self.analysis.captured.tensor(name).detach(), axes)
            is_parameter = name in self.parameters
            if self.trainable and is_parameter and name in self.given and self.given[name].density() < 1.0:
                found = self._masked_parameter(name, tensor, axes)
            else:
                if is_parameter and tensor.is_floating_point():
                    tensor = nn.Parameter(tensor.clone(), requires_grad=self.trainable)
                found = self.graph.get_attr(self.hold(name, tensor))
        else:
            facts = self.analysis.facts[node]
            shape = [int(a.sum()) for a in axes]
            value = facts.value.expand([s if d in varying(facts) else 1 for d, s in enumerate(facts.shape)])
            value = cut(value, [a if d in varying(facts) else np.ones(1, bool) for d, a in enumerate(axes)])
            device = node.meta["val"].device
            stored = value.to(node.meta["val"].dtype).contiguous().to(device)
            found = self.graph.get_attr(self.hold(f"constants.{node.name}", stored))
            if list(stored.shape) != shape:
                found = self.graph.call_function(aten.expand.default, (found, shape))
        self.literals[key] = found
        return found

    def _masked_parameter(self, name: str, tensor: Tensor, axes: list[Axis]) -> fx.Node:
        """A trainable parameter outside of any site (a norm, an embedding): masked in the graph."""
        alive = cut((self.given[name].code > 0).expand(self.given[name].shape), axes).to(tensor.dtype)
        weight = self.graph.get_attr(self.hold(name, nn.Parameter(tensor.clone())))
        mask = self.graph.get_attr(self.hold(f"{name}_alive", alive))
        found = self.graph.call_function(aten.mul.Tensor, (weight, mask))
        if self.given[name].value is not None:
            fixed = cut(self.given[name].values.to(tensor.dtype), axes)
            found = self.graph.call_function(
                aten.add.Tensor, (found, self.graph.get_attr(self.hold(f"{name}_fixed", fixed)))
            )
        return found

    def size(self, symbol: torch.SymInt) -> fx.Node | None:
        """A node that holds a symbolic size: one that computes it, or the size of an emitted tensor."""
        expression = symbol.node.expr
        if expression not in self.symbols:
            found = self._find_size(expression)
            if found is None:
                return None
            self.symbols[expression] = found
        return self.symbols[expression]

    def _find_size(self, expression: Any) -> fx.Node | None:
        for node, emitted in self.env.items():
            value = node.meta.get("val")
            if isinstance(value, torch.SymInt) and value.node.expr == expression:
                return emitted
            if isinstance(value, Tensor):
                for d in symbolic_dims(value):
                    size: Any = value.shape[d]
                    if size.node.expr == expression:
                        return self.graph.call_function(aten.sym_size.int, (emitted, d))
        return None

    def constant(self, name: str, tensor: Tensor) -> fx.Node:
        return self.graph.get_attr(self.hold(f"constants.{name}", tensor.contiguous().to(self.device)))

    def hold(self, name: str, tensor: Tensor) -> str:
        """Register a tensor under `name`, or the first free variation of it."""
        free, n = name, 1
        while free in self.tensors or free in self.modules:
            free, n = f"{name}_{n}", n + 1
        self.tensors[free] = tensor
        return free

    def module(self, name: str, module: nn.Module) -> str:
        free, n = name, 1
        while free in self.modules or any(t == free or t.startswith(free + ".") for t in self.tensors):
            free, n = f"{name}_{n}", n + 1
        self.modules[free] = module
        return free

    def _assemble(self, source: fx.GraphModule) -> Structured:
        root = nn.Module()
        used = {str(n.target) for n in self.graph.nodes if n.op in ("get_attr", "call_module")}
        for name, module in self.modules.items():
            if name in used:
                place(root, name, module)
        for name, tensor in self.tensors.items():
            if name in used:
                place(root, name, tensor)
        self.graph._codegen = source.graph._codegen
        module = fx.GraphModule(root, self.graph, "SparseModel")
        module.eval()
        sites = tuple((n, s) for n, s in self.sites if n in used)
        return Structured(module, sites, self.removed, tuple(self.folded))


def _device(analysis: Analysis) -> torch.device:
    """Where the model computes: the device of its first tensor."""
    tensors = (n.meta["val"] for n in analysis.captured.graph.nodes if is_tensor(n))
    return next((t.device for t in tensors), torch.device("cpu"))


def place(root: nn.Module, name: str, value: Any) -> None:
    *path, last = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    if isinstance(value, nn.Module):
        existing = getattr(root, last, None)
        if isinstance(existing, nn.Module):
            for child, module in existing.named_children():
                value.add_module(child, module)
        root.add_module(last, value)
    elif isinstance(value, nn.Parameter):
        root.register_parameter(last, value)
    else:
        root.register_buffer(last, value)
