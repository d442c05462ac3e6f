"""What is known about the elements of one tensor of the graph, and about one call: `Facts`, `Call`.

Forward knowledge: an element is *known* if it has the same value for every input (zero is the case that
matters most). Backward knowledge is one bool per element: *needed* or not. Both are kept compact
(`tesa.compact`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..capture import concrete, packet_name, shape_of, symbolic_dims
from ..tesa import compact


@dataclass(frozen=True, eq=False)
class Facts:
    """known: bool, value: float (0 where not known); one layout, each dimension 1 or full.

    dtype: of the tensor in the graph. confidence: 1.0 if every step was a rule, less after scrambling.
    """

    shape: tuple[int, ...]
    known: Tensor
    value: Tensor
    dtype: torch.dtype
    confidence: float = 1.0

    @staticmethod
    def of(known: Tensor, value: Tensor, like: Any, confidence: float = 1.0) -> Facts:
        """Facts about the tensor whose metadata is `like`, stored compact.

        Along symbolic dimensions only what is the same at every position is kept, so that it holds for every
        size.
        """
        shape = shape_of(like)
        known = known.bool()
        value = torch.where(known, value.double(), 0.0)
        known, value = torch.broadcast_tensors(known, value)
        if known.dim() < len(shape):
            lead = (1,) * (len(shape) - known.dim())
            known, value = known.reshape(lead + known.shape), value.reshape(lead + value.shape)
        known, value = compact(known, value)
        for dim in symbolic_dims(like):
            if known.shape[dim] > 1:
                first = value.narrow(dim, 0, 1)
                known = known.all(dim, keepdim=True) & (value == first).all(dim, keepdim=True)
                value = torch.where(known, first, 0.0)
        if like.dtype in (torch.int64, torch.uint64) and bool((value.abs() >= 2**53).any()):
            known = known & (value.abs() < 2**53)  # beyond what float64 holds exactly
            value = torch.where(known, value, 0.0)
        return Facts(shape, known, value, like.dtype, confidence)

    @staticmethod
    def unknown(like: Any, confidence: float = 1.0) -> Facts:
        one = (1,) * len(like.shape)
        return Facts(
            shape_of(like),
            torch.zeros(one, dtype=torch.bool),
            torch.zeros(one, dtype=torch.float64),
            like.dtype,
            confidence,
        )

    @staticmethod
    def literal(value: Tensor, like: Any) -> Facts:
        """A parameter or buffer. Its values are not copied (and so keep their dtype)."""
        if value.is_complex():
            return Facts.unknown(like)
        value = value.detach().cpu()
        if not value.is_floating_point():
            return Facts.of(torch.ones((), dtype=torch.bool), value.double(), like)
        return Facts(shape_of(like), torch.ones((), dtype=torch.bool).expand(value.shape), value, like.dtype)

    @cached_property
    def zero(self) -> Tensor:
        """bool, compact: known to be zero."""
        return self.known & (self.value == 0)

    @cached_property
    def maybe(self) -> Tensor:
        """bool, compact: may be something other than zero."""
        return ~self.zero

    @cached_property
    def all_known(self) -> bool:
        return bool(self.known.all())

    @cached_property
    def none_known(self) -> bool:
        return not bool(self.known.any())

    @cached_property
    def all_zero_values(self) -> bool:
        """Whether no nonzero value is known."""
        return not bool((self.value != 0).any())

    def full(self, what: Tensor) -> Tensor:
        """A compact tensor at the logical shape (no copy)."""
        return what.expand(self.shape)

    def as_input(self, full: bool = False) -> Tensor:
        """The known values (0 elsewhere) as an argument for the operator: float64, or the integer/bool
        dtype."""
        value = self.value.expand(self.shape) if full else self.value
        return (
            value.double() if self.dtype.is_floating_point or self.dtype.is_complex else value.to(self.dtype)
        )

    def weaken(self, confidence: float) -> Facts:
        return self if confidence >= self.confidence else replace(self, confidence=confidence)


@dataclass(frozen=True, eq=False)
class Call:
    """One node with the facts of its tensor inputs, in the order in which they appear in args and kwargs.

    inputs[i] are facts of sources[i]; out is the metadata of the result (a fake tensor, or a tuple of them).
    """

    node: fx.Node
    inputs: tuple[Facts, ...]
    sources: tuple[fx.Node, ...]
    out: Any

    @property
    def op(self) -> str:
        return packet_name(self.node.target)

    @property
    def confidence(self) -> float:
        return min((f.confidence for f in self.inputs), default=1.0)

    def at(self, position: int, name: str | None = None) -> Any:
        """The argument at `position` (or called `name`): a Python value, a Node, or the schema's default."""
        node = self.node
        if position < len(node.args):
            return node.args[position]
        schema = getattr(node.target, "_schema", None)
        argument = schema.arguments[position] if schema and position < len(schema.arguments) else None
        name = name or (argument.name if argument is not None else None)
        if name in node.kwargs:
            return node.kwargs[name]
        return argument.default_value if argument is not None and argument.has_default_value() else None

    def index_of(self, argument: Any) -> int | None:
        """Which of `inputs` the Node `argument` is; None if it is not a tensor of this call."""
        for i, source in enumerate(self.sources):
            if source is argument:
                return i
        return None

    def facts_at(self, position: int, name: str | None = None) -> Facts | None:
        index = self.index_of(self.at(position, name))
        return None if index is None else self.inputs[index]

    def invoke(self, tensors: Sequence[Tensor], target: Callable | None = None) -> Any:
        """Run the operator with `tensors` in place of the tensor inputs."""
        return invoke(self.node, tensors, target)


def tensor_sources(node: fx.Node) -> tuple[fx.Node, ...]:
    """The tensor-valued nodes among args and kwargs, in order, repeats included."""
    leaves, _ = tree_flatten((tuple(node.args), dict(node.kwargs)), is_leaf=lambda x: isinstance(x, fx.Node))
    return tuple(x for x in leaves if isinstance(x, fx.Node) and is_tensor(x))


def is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def invoke(node: fx.Node, tensors: Sequence[Tensor], target: Callable | None = None) -> Any:
    leaves, spec = tree_flatten(
        (tuple(node.args), dict(node.kwargs)), is_leaf=lambda x: isinstance(x, fx.Node)
    )
    rest = iter(tensors)
    filled = []
    for leaf in leaves:
        if isinstance(leaf, fx.Node):
            if is_tensor(leaf):
                leaf = next(rest)
            else:
                value = leaf.meta.get("val")
                leaf = concrete(value) if isinstance(value, (torch.SymInt, int)) else value
        elif isinstance(leaf, torch.device):
            leaf = torch.device("cpu")
        filled.append(leaf)
    args, kwargs = tree_unflatten(filled, spec)
    function: Any = target or node.target
    with torch.no_grad():
        return function(*args, **kwargs)


def any_over(needed: Tensor, shape: Sequence[int]) -> Tensor:
    """Reduce a compact bool over the dimensions that a tensor of `shape` was broadcast along."""
    extra = needed.dim() - len(shape)
    if extra > 0:
        needed = needed.flatten(0, extra - 1).any(0) if extra > 1 else needed.any(0)
    for dim, size in enumerate(shape):
        if size == 1 and needed.shape[dim] > 1:
            needed = needed.any(dim, keepdim=True)
    return needed
