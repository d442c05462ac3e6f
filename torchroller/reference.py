"""What a kernel should compute, as ATen code: the operators of the user's graph between its inputs and its outputs.

A kernel reads and writes buffers; the graph names values. A value of the graph that lies in a buffer which the kernel
reads is where the reference starts, one that lies in a buffer which it writes is where it ends. Where the two do not
meet at operators of the graph (a kernel that computes one half of a decomposed operator) there is no reference, and
`Reference.missing` says so.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from torchroller.build import Kernel, build
from torchroller.fuse import fuse
from torchroller.graph import Node, base_of
from torchroller.groups import Fused, Group, strided_view
from torchroller.lower import Lowered, lower
from torchroller.options import Options
from torchroller.views import reshaped_strides


@dataclass(frozen=True)
class View:
    """A strided view of kernel tensor `tensor`, in elements."""

    tensor: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def __str__(self) -> str:
        return f"torch.as_strided({self.tensor}, {self.shape}, {self.strides}, {self.offset})"


@dataclass(frozen=True)
class Reference:
    """ATen statements (`lines`) and which of their names must equal which view of what the kernel wrote."""

    lines: tuple[str, ...] = ()
    results: tuple[tuple[str, View], ...] = ()
    missing: str = ""


class _Missing(Exception):
    pass


def references(gm: fx.GraphModule, options: Options) -> list[tuple[Kernel, Reference]]:
    """Every kernel that the graph is cut into, in order of execution, and its reference.

    Lowers and fuses again, which is deterministic; nothing is compiled. Graphs in which a group had to be given up
    are cut differently the first time: callers compare the expressions.
    """
    lowered = lower(gm, options)
    fused = fuse(lowered, options.fuse)
    needed = frozenset(n for n in fused.writers if n in fused.storage)
    found = []
    for step in fused.steps:
        if not isinstance(step, Group):
            continue
        kernel = build(step, fused, frozenset(n for n in step.index if n in needed), "kernel")
        try:
            reference = _Writer(gm, lowered, fused, step, kernel).run()
        except _Missing as why:
            reference = Reference(missing=str(why))
        found.append((kernel, reference))
    return found


class _Writer:
    def __init__(
        self, gm: fx.GraphModule, lowered: Lowered, fused: Fused, group: Group, kernel: Kernel
    ) -> None:
        self.gm, self.values, self.fused, self.group, self.kernel = gm, lowered.values, fused, group, kernel
        self.tensor = {name: f"t{i}" for i, name in enumerate(kernel.buffers)}
        self.holders: dict[Node, list[Node]] = {}  # what is stored, up to reshapes and copies -> where
        for node, storage in fused.storage.items():
            if storage.buffer in self.tensor:
                self.holders.setdefault(_content(node), []).append(node)
        self.lines: list[str] = []
        self.done: dict[fx.Node, str] = {}

    def run(self) -> Reference:
        written = [n for n in self.group.index if n in self.fused.storage and self.fused.writers.get(n)]
        results: list[tuple[str, View]] = []
        for node in written:
            view = self.end(node)
            if view is None:
                raise _Missing(
                    f"no value of the graph is what it writes to {self.fused.storage[node].buffer}"
                )
            results.append((self.name(view[0]), view[1]))
        outputs = {*self.kernel.outputs}
        for name, tensor in self.tensor.items():
            if tensor not in outputs and not any(f"({tensor}, " in line for line in self.lines):
                raise _Missing(f"it also reads {name}, which is no value of the graph")
        return Reference(tuple(self.lines), tuple(results))

    def end(self, node: Node) -> tuple[fx.Node, View] | None:
        """The value of the graph that is, or is a view of all of, a stored node."""
        for fx_node in self.gm.graph.nodes:
            value = self.values.get(fx_node.name)
            if fx_node.op != "call_function" or not isinstance(value, Node) or value.numel != node.numel:
                continue
            if base_of(value) is node:
                found = self.place(value)
            else:
                found = self.held(value, node) if _content(value) is _content(node) else None
            if found is not None:
                return fx_node, found
        return None

    def place(self, value: Node) -> View | None:
        """Where a value lies in one of the kernel's tensors, if it is a view of what is stored there."""
        storage = self.fused.storage.get(base_of(value))
        if storage is None or storage.buffer not in self.tensor:
            return None
        found = strided_view(value, storage.strides, storage.offset)
        return None if found is None else View(self.tensor[storage.buffer], value.shape, *found)

    def held(self, value: Node, node: Node) -> View | None:
        """Where a value lies, if the stored `node` is a reshaped copy of it."""
        storage = self.fused.storage[node]
        strides = reshaped_strides(node.shape, storage.strides, value.shape)
        if strides is None:
            return None
        return View(self.tensor[storage.buffer], value.shape, tuple(strides), storage.offset)

    def name(self, node: fx.Node) -> str:
        """Python name of a value, after the statements that it needs."""
        for needed in self.order(node):
            self.done[needed] = needed.name
            value = self.values.get(needed.name)
            start = self.start(value)
            if start is not None:
                self.lines.append(f"{needed.name} = {start}")
            elif needed.op == "call_function":
                self.lines.append(f"{needed.name} = {self.call(needed)}")
            elif isinstance(value, Node):
                raise _Missing(f"it does not read {needed.name}, which {node.name} is computed from")
            else:
                self.lines.append(f"{needed.name} = {literal(value)}")
        return node.name

    def order(self, node: fx.Node) -> list[fx.Node]:
        """`node` and what it is computed from, back to what the kernel reads, operands first."""
        found: list[fx.Node] = []
        stack: list[tuple[fx.Node, bool]] = [(node, False)]
        seen: set[fx.Node] = set(self.done)
        while stack:
            at, ready = stack.pop()
            if ready:
                found.append(at)
                continue
            if at in seen:
                continue
            seen.add(at)
            stack.append((at, True))
            if self.start(self.values.get(at.name)) is None:
                stack += [(a, False) for a in reversed(at.all_input_nodes)]
        return found

    def start(self, value: Any) -> View | None:
        """The view that a value is read through, if the kernel reads it."""
        if not isinstance(value, Node):
            return None
        if base_of(value) not in self.group.index and (found := self.place(value)) is not None:
            return found
        for node in self.holders.get(_content(value), ()):
            if node not in self.group.index and (found := self.held(value, node)) is not None:
                return found
        return None

    def call(self, node: fx.Node) -> str:
        args = [literal(a) for a in node.args] + [f"{k}={literal(v)}" for k, v in node.kwargs.items()]
        if node.target is operator.getitem:
            return f"{args[0]}[{args[1]}]"
        if not isinstance(node.target, torch._ops.OpOverload):
            raise _Missing(f"{node.name} is computed by {node.target}, which is no ATen operator")
        if torch.Tag.nondeterministic_seeded in node.target.tags and _argument(node, "dropout_p") != 0.0:
            raise _Missing(f"{node.target} draws random numbers")
        return f"torch.ops.{node.target}({', '.join(args)})"


def _content(node: Node) -> Node:
    """The node whose elements, in row-major order, are those of `node`: reshapes and copies taken off."""
    while (node.kind == "view" and node.view[0] == "reshape") or (
        node.kind == "pointwise" and node.fn == "copy"
    ):
        if node.args[0].dtype != node.dtype:
            break
        node = node.args[0]
    return node


def _argument(node: fx.Node, name: str) -> Any:
    """An argument of an ATen call by name; its default where it is not given, None where there is no such."""
    for number, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name == name:
            given = node.args[number] if number < len(node.args) else None
            return node.kwargs.get(name, argument.default_value if given is None else given)
    return None


def literal(value: Any) -> str:
    """Python text of an argument of an ATen call."""
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, (list, tuple)):
        inside = ", ".join(literal(v) for v in value)
        if isinstance(value, list):
            return f"[{inside}]"
        return f"({inside}{',' if len(value) == 1 else ''})"
    if isinstance(value, torch.device):
        return "DEVICE"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if isinstance(value, torch.SymInt):
        return str(int(value))
    return repr(value)


def reads(expr: Any) -> Iterable[Any]:
    """Every access of an expression, loads first."""
    return (*expr.loads, *(w.access for w in expr.writes))
