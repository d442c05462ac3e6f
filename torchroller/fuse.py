"""Which values share a kernel.

Nodes are taken in order. Each joins the group (future kernel) of one of its operands when it can be computed
at the same points of the same iteration space, and otherwise starts a group of its own. A group is
`pointwise`, `reduce` (rows are reduced; values of whole rows and of single elements live side by side) or
`dot` (a matrix product with its epilogue). Cheap values that depend only on stored tensors are `inline`:
each reader computes them again rather than loading them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch

from .fuse_dots import FEW_CHANNELS, Contractions
from .fuse_reductions import Reductions
from .fuse_scatter import Scatters
from .graph import SETTLED, Node, base_of
from .groups import Fused, Group, Storage, dense, padding_below, same_layout, strided_view, walked_strides
from .joining import MAX_TENSORS
from .lower import ExternCall, Lowered
from .ops.pointwise import TABLE

INLINE_COST = 8
INLINE_LOADS = 3


def fuse(lowered: Lowered, enabled: bool = True, constant: Collection[str] = ()) -> Fused:
    """Groups the values that the outputs and extern calls need into kernels.

    `constant` names inputs that will be packed for the kernels that read them.
    """
    return _Fuser(lowered, enabled, constant).run()


class _Fuser(Reductions, Contractions, Scatters):
    # ---- driver ----
    def run(self) -> Fused:
        for name, node in self.inputs():
            self.storage[node] = Storage(name, node.strides, node.offset)
        self.in_place = dict(self.lowered.in_place)
        for call in self.lowered.externs:
            for r in call.results:
                if r is not None:
                    self.call_of[r] = call
        outputs = [self.output(o) for o in self.lowered.outputs]
        order = self.reachable(outputs)
        for item in order:
            self.process(item)
        for node in [base_of(o) for o in outputs if isinstance(o, Node)]:
            self.store(node)
        self.mutate()
        return Fused(tuple(self.schedule()), self.storage, self.buffers, dict(self.home), tuple(outputs))

    def inputs(self) -> Iterator[tuple[str, Node]]:
        for node in self.b.nodes:
            if node.kind == "input":
                yield node.name, node

    def output(self, out: Any) -> Any:
        """The node to store for a graph output; a copy where its memory must be its own or differ in layout."""
        value = out.value
        if not isinstance(value, Node):
            return value
        base = base_of(value)
        if base.kind in ("const", "iota") or out.fresh:
            value = self.b.copy(value)
        elif value.kind == "view":
            strides = self.view_strides(value, self.guess(base))
            if strides is None or (out.strides and not same_layout(value.shape, strides[0], out.strides)):
                value = self.b.copy(value)
        elif (
            base.kind not in ("input", "extern")
            and out.strides
            and not same_layout(value.shape, self.guess(base)[0], out.strides)
        ):
            value = self.b.copy(value)
        if (
            value.kind == "pointwise"
            and value.fn == "copy"
            and out.strides
            and dense(value.shape, out.strides)
        ):
            self.place(value, out.strides)
        self.forced.add(base_of(value))
        return value

    def reachable(self, outputs: list[Any]) -> list[Node | ExternCall]:
        """Values and calls in creation order, each after its operands; counts users."""
        seen: set[Any] = set()
        found: list[Any] = []

        def visit(root: Any) -> None:
            stack = [(root, False)]
            while stack:
                item, done = stack.pop()
                if done:
                    found.append(item)
                    continue
                if item in seen:
                    continue
                seen.add(item)
                stack.append((item, True))
                for o in reversed(self.operands(item)):
                    if isinstance(o, Node):
                        self.users[o] = self.users.get(o, 0) + 1
                    if o not in seen:
                        stack.append((o, False))

        for call in self.lowered.externs:
            if _has_effects(call):
                visit(call)
        for o in (*outputs, *(value for _, value in self.lowered.mutations)):
            if isinstance(o, Node):
                self.users[o] = self.users.get(o, 0) + 1
                visit(o)
        return found

    def operands(self, item: Any) -> list[Any]:
        if isinstance(item, ExternCall):
            for o in item.operands:
                self.forced.add(base_of(o))
            return list(item.operands)
        if item.kind == "extern":
            return [self.call_of[item]]
        return [*item.args, *(i for i in item.index if isinstance(i, Node))]

    # ---- one item ----
    def process(self, item: Any) -> None:
        if isinstance(item, Node):
            self.settle_padded(item)
        if isinstance(item, ExternCall):
            self.extern(item)
        elif item.kind in ("input", "view", "extern"):
            if item.kind == "extern":
                buffer = f"ext{item.serial}"
                self.buffers.setdefault(buffer, (max(item.numel, 1), item.dtype))
                self.storage[item] = Storage(buffer, item.strides)
        elif item.kind in ("const", "iota"):
            self.inline[item] = (0, frozenset())
            if item in self.forced:
                self.alone(item)
        elif item.kind == "cat":
            self.cat(item)
        elif item.kind in ("pointwise", "gather"):
            self.pointwise(item)
        elif item.kind == "reduce":
            self.reduce(item)
        elif item.kind == "dot":
            self.dot(item)
        elif item.kind == "conv":
            self.conv(item)
        elif item.kind == "scan":
            self.scan(item)
        elif item.kind == "scatter":
            self.scatter(item)
        elif item.kind == "attention":
            self.attention(item)
        elif item.kind == "lse":
            group = self.home[item.args[0]]
            group.index[item] = group.index[item.args[0]][:-1]
            self.home[item] = group

    def settle_padded(self, item: Node) -> None:
        """What is read with a border around it is read from memory, by strides."""
        self.layout(item)  # operands are known by now: the recursion stays shallow
        if item.kind == "view":
            return
        for operand in self.operands(item):
            pad = padding_below(operand) if isinstance(operand, Node) else None
            if pad is None:
                continue
            base = base_of(pad)
            self.store(base)
            source, (strides, offset) = pad.args[0], self.guess(base)
            walked = walked_strides(source, strides)
            gaps = pad.view[3] and source.shape[-1] >= FEW_CHANNELS and walked is not None and walked[-1] != 1
            if gaps or strided_view(source, strides, offset) is None:
                # channels are brought together once, not by every tap
                if source not in self.together:
                    self.together[source] = self.stored_copy(source)
                object.__setattr__(pad, "args", (self.together[source],))

    def extern(self, call: ExternCall) -> None:
        deps: set[Any] = set()
        new = {}
        for o in call.operands:
            self.store(base_of(o))
            have, want = self.view_strides(o, self.guess(base_of(o))), call.strides.get(o)
            if have is None or (want and not same_layout(o.shape, have[0], want)):
                # some ATen kernels rely on the layout that ATen itself would have given them
                new[o] = self.laid_out(o, want)
            deps |= self.source_deps(base_of(new.get(o, o)))
        if new:
            swap: Any = lambda v: new.get(v, v) if isinstance(v, Node) else v  # noqa: E731
            object.__setattr__(call, "args", torch.fx.node.map_aggregate(call.args, swap))
            object.__setattr__(call, "kwargs", torch.fx.node.map_aggregate(call.kwargs, swap))
        if _has_effects(call):
            if self.after is not None:
                deps.add(self.after)
            self.after = call
        self.depends[call] = deps

    def laid_out(self, value: Node, strides: tuple[int, ...] | None) -> Node:
        """A stored copy with these strides; what repeats (a stride of 0) is stored once."""
        repeated = [d for d, (size, st) in enumerate(zip(value.shape, strides or ())) if size > 1 and st == 0]
        once = value
        for d in repeated:
            once = self.b.slice(once, d, 0, 1)
        copy = self.stored_copy(once, strides)
        return self.b.expand(copy, value.shape) if repeated else copy

    def cat(self, node: Node) -> None:
        """Each part is written by its own producer into its slice of the joined buffer."""
        where = self.in_place.get(node)
        strides = self.layout(node) if where is None else where.strides
        dim, at, deps = node.dims[0], 0, set[Any]()
        if where is None:
            self.place(node, strides)
        else:
            self.place(node, strides, self.storage[where].buffer)
        for part in node.args:
            if where is not None and base_of(part) is where:  # it is there already
                at += part.shape[dim]
                continue
            copy = self.b.copy(part)
            self.forced.add(copy)
            self.place(copy, strides, self.storage[node].buffer, at * strides[dim])
            self.pointwise(copy)
            self.needed.add(copy)
            deps.add(self.home[copy])
            at += part.shape[dim]
        self.cat_deps[node] = deps

    def pointwise(self, node: Node) -> None:
        if node.number == SETTLED:
            self.forced.add(node)
        if node.kind == "gather":
            node = self.prepare_gather(node)
        if self.try_inline(node):
            return
        for group in self.candidates(node):
            if self.join(group, node):
                return
        self.alone(node)

    def prepare_gather(self, node: Node) -> Node:
        source = node.args[0]
        base = base_of(source)
        if base in self.inline and base not in self.home:
            copy = self.stored_copy(source)
        else:
            self.store(base)
            if self.view_strides(source, self.guess(base)) is not None:
                return node
            copy = self.stored_copy(source)
        object.__setattr__(node, "args", (copy,))
        return node

    def try_inline(self, node: Node) -> bool:
        cost = TABLE[node.fn].cost if node.kind == "pointwise" else 4
        tensors: set[Node] = set()
        for operand in self.operands(node):
            base = base_of(operand)
            if base in self.inline:
                cost += self.inline[base][0]
                tensors |= self.inline[base][1]
            elif base.kind in ("input", "extern", "cat") or self.settled(operand, base):
                tensors.add(base)
            else:
                return False
        expensive = cost > INLINE_COST or len(tensors) > INLINE_LOADS
        if expensive and (self.users.get(node, 0) != 1 or len(tensors) > MAX_TENSORS // 2 or cost > 200):
            return False
        if not self.enabled and not _trivial(node):
            return False
        self.inline[node] = (cost, frozenset(tensors))
        if node in self.forced:
            del self.inline[node]
            return False
        return True

    def settled(self, operand: Node, base: Node) -> bool:
        """Is an operand read from memory anyway, as the readers of a window and small factors do?"""
        return base.number == SETTLED or padding_below(operand) is not None

    def candidates(self, node: Node) -> list[Group]:
        if not self.enabled:
            return []
        found = {self.home[b]: None for o in self.reached(node) if (b := base_of(o)) in self.home}
        rank = {"dot": 0, "reduce": 1, "scan": 1, "pointwise": 2}
        return sorted((g for g in found if g.kind in rank), key=lambda g: (rank[g.kind], -g.number))

    def schedule(self) -> list[Any]:
        """Groups and calls, each after what it depends on; ties by age."""
        live = [g for g in self.groups if any(n in self.needed for n in g.index)]
        items: list[Any] = [*live, *self.depends]
        done: set[Any] = set()
        out: list[Any] = []

        def visit(item: Any) -> None:
            stack = [(item, False)]
            while stack:
                x, ready = stack.pop()
                if ready:
                    if x not in done:
                        done.add(x)
                        out.append(x)
                    continue
                if x in done:
                    continue
                stack.append((x, True))
                stack += [
                    (d, False)
                    for d in sorted(self.depends_of(x), key=self.age, reverse=True)
                    if d not in done
                ]

        for item in sorted(items, key=self.age):
            visit(item)
        return out

    def age(self, item: Any) -> tuple[int, int]:
        if isinstance(item, ExternCall):
            serials = [r.serial for r in item.results if r is not None]
            return (min(serials, default=0), 0)
        return (max(n.serial for n in item.index), 1)


def _trivial(node: Node) -> bool:
    return node.kind == "pointwise" and node.fn == "cast"


def _has_effects(call: ExternCall) -> bool:
    target = call.target
    return (
        getattr(target, "draws", False)
        or isinstance(target, torch._ops.OpOverload)
        and (target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags)
    )
