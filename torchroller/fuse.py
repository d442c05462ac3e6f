"""Which values share a kernel.

Nodes are taken in order. Each joins the group (future kernel) of one of its operands when it can be computed
at the same points of the same iteration space, and otherwise starts a group of its own. A group is
`pointwise`, `reduce` (rows are reduced; values of whole rows and of single elements live side by side) or
`dot` (a matrix product with its epilogue). Cheap values that depend only on stored tensors are `inline`:
each reader computes them again rather than loading them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from .graph import Builder, Node, base_of, contiguous_strides
from .lower import ExternCall, Lowered
from .ops.pointwise import TABLE
from .views import ZERO, Index, Ix, NeedSplit, NotAffine, axis, backward, forward, reshaped_strides, substitute

MAX_MEMBERS = 48
MAX_TENSORS = 20
INLINE_COST = 8
INLINE_LOADS = 3
SMALL_GRID = 64  # a reduction to fewer rows than this over long rows is a kernel without parallelism
LONG_ROW = 1 << 16


@dataclass(eq=False)
class Group:
    """One future kernel. `index[node]` is where in the iteration space a member lives."""

    number: int
    kind: str
    extents: dict[str, int]
    reduced: tuple[str, ...] = ()
    index: dict[Node, Index] = field(default_factory=dict)
    operands: dict[Node, tuple[Index, ...]] = field(default_factory=dict)  # of reduce and dot members
    root: tuple[tuple[int, ...], tuple[int, ...], Index] | None = None  # shape, dims, index of a reduction's operand
    depends: set[Any] = field(default_factory=set)  # groups and extern calls that must run before
    tensors: set[Node] = field(default_factory=set)

    def cut(self, name: str, inner: int) -> None:
        """Splits an axis into an outer and an inner one."""
        hi, lo = f"{name}h", f"{name}l"
        items = []
        for key, extent in self.extents.items():
            items += [(hi, extent // inner), (lo, inner)] if key == name else [(key, extent)]
        self.extents = dict(items)
        if name in self.reduced:
            self.reduced = tuple(x for r in self.reduced for x in ((hi, lo) if r == name else (r,)))
        swap: Callable[[Index], Index] = lambda ix: substitute(ix, name, hi, lo, inner)  # noqa: E731
        self.index = {n: swap(ix) for n, ix in self.index.items()}
        self.operands = {n: tuple(swap(ix) for ix in many) for n, many in self.operands.items()}
        if self.root is not None:
            self.root = (*self.root[:2], swap(self.root[2]))


@dataclass(frozen=True, eq=False)
class Storage:
    """Where a stored value lives: strides and offset in elements within buffer `buffer`."""

    buffer: str
    strides: tuple[int, ...]
    offset: int = 0


@dataclass(frozen=True, eq=False)
class Fused:
    """The cut graph: steps in execution order, storage of every stored node."""

    steps: tuple[Group | ExternCall, ...]
    storage: dict[Node, Storage]
    buffers: dict[str, tuple[int, str]]  # buffer -> elements, dtype, of what kernels and extern calls write
    writers: dict[Node, Group]
    outputs: tuple[Node | Any, ...]


def fuse(lowered: Lowered, enabled: bool = True) -> Fused:
    """Groups the values that the outputs and extern calls need into kernels."""
    return _Fuser(lowered, enabled).run()


class _Fuser:
    def __init__(self, lowered: Lowered, enabled: bool) -> None:
        self.lowered, self.enabled = lowered, enabled
        self.b: Builder = lowered.builder
        self.groups: list[Group] = []
        self.home: dict[Node, Group] = {}
        self.inline: dict[Node, tuple[int, frozenset[Node]]] = {}  # cost, tensors loaded
        self.users: dict[Node, int] = {}
        self.forced: set[Node] = set()
        self.needed: set[Node] = set()
        self.storage: dict[Node, Storage] = {}
        self.buffers: dict[str, tuple[int, str]] = {}
        self.call_of: dict[Node, ExternCall] = {}
        self.depends: dict[ExternCall, set[Any]] = {}
        self.readers: dict[Node, list[Group]] = {}
        self.parts: dict[Node, list[Node]] = {}
        self.cat_deps: dict[Node, set[Any]] = {}
        self.after: Any = None

    # ---- driver ----
    def run(self) -> Fused:
        for name, node in self.inputs():
            self.storage[node] = Storage(name, node.strides, node.offset)
        for call in self.lowered.externs:
            for r in call.results:
                if r is not None:
                    self.call_of[r] = call
        outputs = [self.output(o) for o in self.lowered.outputs]
        order = self.reachable(outputs)
        for node in order:
            self.process(node)
        for node in [base_of(o) for o in outputs if isinstance(o, Node)]:
            self.store(node)
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
            if strides is None or (out.strides and not _same_layout(value.shape, strides[0], out.strides)):
                value = self.b.copy(value)
        elif base.kind not in ("input", "extern") and out.strides and not _same_layout(
            value.shape, self.guess(base)[0], out.strides
        ):
            value = self.b.copy(value)
        if value.kind == "pointwise" and value.fn == "copy" and out.strides and _dense(value.shape, out.strides):
            self.place(value, out.strides)
        self.forced.add(base_of(value))
        return value

    def guess(self, base: Node) -> tuple[tuple[int, ...], int]:
        if base in self.storage:
            return self.storage[base].strides, self.storage[base].offset
        if base.kind == "extern" or base.strides:
            return base.strides, 0
        return contiguous_strides(base.shape), 0

    def place(self, node: Node, strides: tuple[int, ...], buffer: str | None = None, offset: int = 0) -> None:
        if buffer is None:
            buffer = f"buf{len(self.buffers)}"
            self.buffers[buffer] = (max(node.numel, 1), node.dtype)
        self.storage[node] = Storage(buffer, strides, offset)

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
        for o in outputs:
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
        elif item.kind == "attention":
            self.attention(item)
        elif item.kind == "lse":
            group = self.home[item.args[0]]
            group.index[item] = group.index[item.args[0]][:-1]
            self.home[item] = group

    def extern(self, call: ExternCall) -> None:
        deps: set[Any] = set()
        new = {}
        for o in call.operands:
            self.store(base_of(o))
            have, want = self.view_strides(o, self.guess(base_of(o))), call.strides.get(o)
            if have is None or (want and not _same_layout(o.shape, have[0], want)):
                # some ATen kernels rely on the layout that ATen itself would have given them
                new[o] = self.stored_copy(o, want)
            deps |= self.source_deps(base_of(new.get(o, o)))
        if new:
            swap = lambda v: new.get(v, v) if isinstance(v, Node) else v  # noqa: E731
            object.__setattr__(call, "args", torch.fx.node.map_aggregate(call.args, swap))
            object.__setattr__(call, "kwargs", torch.fx.node.map_aggregate(call.kwargs, swap))
        if _has_effects(call):
            if self.after is not None:
                deps.add(self.after)
            self.after = call
        self.depends[call] = deps

    def stored_copy(self, value: Node, strides: tuple[int, ...] | None = None) -> Node:
        copy = self.b.copy(value)
        if strides and _dense(value.shape, strides):
            self.place(copy, strides)
        self.forced.add(copy)
        self.users[copy] = 1
        self.pointwise(copy)
        return copy

    def cat(self, node: Node) -> None:
        """Each part is written by its own producer into its slice of the joined buffer."""
        strides = contiguous_strides(node.shape)
        self.place(node, strides)
        dim, at = node.dims[0], 0
        deps: set[Any] = set()
        for part in node.args:
            copy = self.b.copy(part)
            self.forced.add(copy)
            self.place(copy, strides, self.storage[node].buffer, at * strides[dim])
            self.pointwise(copy)
            self.needed.add(copy)
            deps.add(self.home[copy])
            at += part.shape[dim]
        self.cat_deps[node] = deps

    def pointwise(self, node: Node) -> None:
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
            elif base.kind in ("input", "extern", "cat"):
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

    def candidates(self, node: Node) -> list[Group]:
        if not self.enabled:
            return []
        found = {self.home[b]: None for o in _pointwise_operands(node) if (b := base_of(o)) in self.home}
        rank = {"dot": 0, "reduce": 1, "pointwise": 2}
        return sorted((g for g in found if g.kind in rank), key=lambda g: (rank[g.kind], -g.number))

    def new_group(self, kind: str, shape: tuple[int, ...]) -> tuple[Group, Index]:
        group = Group(len(self.groups), kind, {})
        index = []
        for d, size in enumerate(shape):
            if size == 1:
                index.append(ZERO)
            else:
                group.extents[f"i{d}"] = size
                index.append(axis(f"i{d}"))
        self.groups.append(group)
        return group, tuple(index)

    def alone(self, node: Node) -> None:
        group, index = self.new_group("pointwise", node.shape)
        self.inline.pop(node, None)
        for attempt in (0, 1):
            if self.enter(group, node, index):
                return
            if attempt == 0:
                self.make_operands_plain(node)
                index = self.fresh_index(group, node.shape)
        raise AssertionError(f"{node!r} cannot start a kernel")

    def fresh_index(self, group: Group, shape: tuple[int, ...]) -> Index:
        group.extents = {f"i{d}": s for d, s in enumerate(shape) if s != 1}
        return tuple(axis(f"i{d}") if s != 1 else ZERO for d, s in enumerate(shape))

    def make_operands_plain(self, node: Node) -> None:
        """Stores what cannot be read through affine indices; its contiguous copy can be."""
        new = tuple(self.plain(a) for a in node.args)
        object.__setattr__(node, "args", new)
        if node.index:
            object.__setattr__(node, "index", tuple(self.plain(i) if isinstance(i, Node) else i for i in node.index))

    def plain(self, value: Node) -> Node:
        """`value` with every reshape in its chain of views made from a stored, contiguous value."""
        if value.kind != "view":
            if value in self.inline and value not in self.home:
                return self.stored_copy(value) if value.args else value
            return value
        source = value.args[0]
        if value.view[0] == "reshape":
            if source.kind == "view" or base_of(source).kind in ("input", "extern") or base_of(source) in self.inline:
                source = self.stored_copy(self.plain(source))
            else:
                self.store(source)
        else:
            source = self.plain(source)
        if source is value.args[0]:
            return value
        return self.b._view(source, value.shape, value.view)

    # ---- joining ----
    def join(self, group: Group, node: Node) -> bool:
        """Puts a pointwise node into the group of one of its operands, if it lives at the same points."""
        if len(group.index) >= MAX_MEMBERS or len(group.tensors) >= MAX_TENSORS:
            return False
        for operand in _pointwise_operands(node):
            if self.home.get(base_of(operand)) is not group:
                continue
            saved = self.snapshot(group)
            for _ in range(8):
                try:
                    index = self.lift(group, operand)
                    if self.enter(group, node, index, joining=True):
                        return True
                    break
                except NeedSplit as cut:
                    group.cut(cut.axis, cut.inner)
                except NotAffine:
                    break
            self.restore(group, saved)
        return False

    def lift(self, group: Group, operand: Node) -> Index:
        """Where the element of `operand` (a view of a member) that holds the member's element lives."""
        chain = []
        node = operand
        while node.kind == "view":
            chain.append(node)
            node = node.args[0]
        index = group.index[node]
        for view in reversed(chain):
            free = self.free_dims(group, view, index) if view.view[0] == "expand" else None
            index = forward(view.view, view.args[0].shape, view.shape, index, group.extents, free)
        return index

    def free_dims(self, group: Group, view: Node, index: Index) -> dict[int, Ix] | None:
        """A row value that is expanded along the reduced dimensions is read at every element of its row."""
        if group.root is None or any(a in group.reduced for ix in index for a, _ in ix.terms):
            return None
        shape, dims, at = group.root
        waiting = [(shape[d], at[d]) for d in dims if shape[d] != 1]
        free: dict[int, Ix] = {}
        for d, (s, t) in enumerate(zip(view.args[0].shape, view.shape)):
            if s == 1 and t != 1:
                if not waiting or waiting[0][0] != t:
                    return None
                free[d] = waiting.pop(0)[1]
        return None if waiting else free

    def enter(self, group: Group, node: Node, index: Index, joining: bool = False) -> bool:
        """Adds `node` at `index` if all it reads can be read there; NotAffine and foreign views refuse it."""
        for _ in range(32):
            try:
                if joining and not self.covers(group, node, index):
                    return False
                reads: set[Node] = set()
                if node.kind == "gather":
                    for i in node.index:
                        if isinstance(i, Node):
                            self.readable(group, i, index, reads)
                    reads.add(base_of(node.args[0]))
                else:
                    for operand in node.args:
                        self.readable(group, operand, index, reads)
                break
            except NeedSplit as cut:
                group.cut(cut.axis, cut.inner)
                index = substitute(index, cut.axis, f"{cut.axis}h", f"{cut.axis}l", cut.inner)
            except NotAffine:
                return False
        else:
            return False
        return self.admit(group, node, index, reads)

    def admit(self, group: Group, node: Node, index: Index, reads: set[Node]) -> bool:
        deps = set().union(*(self.source_deps(r) for r in reads)) if reads else set()
        if group in deps or any(self.reaches(d, group) for d in deps):
            return False
        if len(group.tensors | reads) > MAX_TENSORS and group.index:
            return False
        for r in reads:
            self.store(r)
            self.readers.setdefault(r, []).append(group)
        group.index[node] = index
        group.depends |= deps
        group.tensors |= reads
        self.home[node] = group
        if node in self.forced:
            self.store(node)
        return True

    def covers(self, group: Group, node: Node, index: Index) -> bool:
        """Does `index` run over the whole iteration space, or (in a reduction) over exactly its rows?"""
        used = {a for ix in index for a, _ in ix.terms}
        reduced = set(group.reduced)
        if group.kind == "dot":
            wanted = set(group.extents) - reduced
        elif reduced and not used & reduced:
            wanted = set(group.extents) - reduced
        else:
            wanted = set(group.extents)
            rows = math.prod(e for a, e in group.extents.items() if a not in reduced)
            if reduced and rows < SMALL_GRID and math.prod(group.extents[a] for a in reduced) > LONG_ROW:
                return False
        return used == wanted and node.numel == math.prod(group.extents[a] for a in wanted)

    def readable(self, group: Group, value: Node, index: Index, reads: set[Node]) -> None:
        """Raises NotAffine unless `value` can be had at `index` inside `group`; collects stored tensors read."""
        base = base_of(value)
        if base not in group.index and (base not in self.inline or base in self.home):
            if value is base or strided_view(value, *self.guess(base)) is not None:
                reads.add(base)
                return
        while value.kind == "view":
            index = backward(value.view, value.args[0].shape, value.shape, index, group.extents)
            value = value.args[0]
        if value in group.index:
            if group.index[value] != index:
                raise NotAffine("a value of the same kernel is read at another point")
            return
        if value in self.inline and value not in self.home:
            if value.kind == "gather":
                for i in value.index:
                    if isinstance(i, Node):
                        self.readable(group, i, index, reads)
                reads.add(base_of(value.args[0]))
                return
            for operand in value.args:
                self.readable(group, operand, index, reads)
            return
        reads.add(value)

    def source_deps(self, node: Node) -> set[Any]:
        if node in self.home:
            return {self.home[node]}
        if node.kind == "extern":
            return {self.call_of[node]}
        return self.cat_deps.get(node, set())

    def reaches(self, start: Any, goal: Any) -> bool:
        """Must `goal` run before `start`?"""
        seen, stack = {start}, [start]
        while stack:
            item = stack.pop()
            if item is goal:
                return True
            for d in self.depends_of(item):
                if d not in seen:
                    seen.add(d)
                    stack.append(d)
        return False

    def depends_of(self, item: Any) -> set[Any]:
        return self.depends.get(item, set()) if isinstance(item, ExternCall) else item.depends

    def snapshot(self, group: Group) -> tuple[Any, ...]:
        return (dict(group.extents), group.reduced, dict(group.index), dict(group.operands), group.root)

    def restore(self, group: Group, saved: tuple[Any, ...]) -> None:
        group.extents, group.reduced, group.index, group.operands, group.root = saved

    # ---- reductions ----
    def reduce(self, node: Node) -> None:
        operand = node.args[0]
        if self.enabled:
            for group in self.reduce_candidates(node):
                saved = self.snapshot(group)
                if self.join_reduce(group, node):
                    return
                self.restore(group, saved)
        for attempt in (0, 1):
            operand = node.args[0]
            group, index = self.new_group("reduce", operand.shape)
            group.reduced = tuple(f"i{d}" for d in node.dims if operand.shape[d] != 1)
            group.root = (operand.shape, node.dims, index)
            if self.enter_reduce(group, node, index):
                return
            self.groups.pop()
            if attempt == 0:
                self.make_operands_plain(node)
        raise AssertionError(f"{node!r} cannot start a kernel")

    def reduce_candidates(self, node: Node) -> list[Group]:
        base = base_of(node.args[0])
        found: dict[Group, None] = {}
        if base in self.home:
            found[self.home[base]] = None
            stored = {base}
        else:
            stored = set(self.inline[base][1]) if base in self.inline else {base}
        for s in stored:
            for g in self.readers.get(s, []):
                if g.kind == "reduce" and g.root and g.root[:2] == (node.args[0].shape, node.dims):
                    found[g] = None
        return [g for g in found if g.kind in ("pointwise", "reduce") and len(g.index) < MAX_MEMBERS]

    def join_reduce(self, group: Group, node: Node) -> bool:
        operand = node.args[0]
        for _ in range(8):
            try:
                if self.home.get(base_of(operand)) is group:
                    index = self.lift(group, operand)
                elif group.root is not None:
                    index = group.root[2]
                else:
                    return False
                over = {a for d in node.dims for a, _ in index[d].terms}
                kept = {a for d, ix in enumerate(index) if d not in node.dims for a, _ in ix.terms}
                if over & kept or (over | kept) != set(group.extents):
                    return False
                if group.kind == "pointwise":
                    if self.poor(group, over):
                        return False
                    group.reduced = tuple(a for a in group.extents if a in over)
                    group.root = (operand.shape, node.dims, index)
                elif over != set(group.reduced):
                    return False
                if self.enter_reduce(group, node, index):
                    group.kind = "reduce"
                    return True
                return False
            except NeedSplit as cut:
                group.cut(cut.axis, cut.inner)
            except NotAffine:
                return False
        return False

    def poor(self, group: Group, over: set[str]) -> bool:
        """Would a kernel over few long rows waste the parallelism of the pointwise work before it?"""
        rows = math.prod(e for a, e in group.extents.items() if a not in over)
        heavy = any(n.kind == "gather" or n in self.needed for n in group.index)
        return heavy and rows < SMALL_GRID and math.prod(group.extents[a] for a in over) > LONG_ROW

    def enter_reduce(self, group: Group, node: Node, index: Index) -> bool:
        operand = node.args[0]
        for _ in range(32):
            try:
                reads: set[Node] = set()
                self.readable(group, operand, index, reads)
                break
            except NeedSplit as cut:
                group.cut(cut.axis, cut.inner)
                index = substitute(index, cut.axis, f"{cut.axis}h", f"{cut.axis}l", cut.inner)
            except NotAffine:
                return False
        else:
            return False
        kept = tuple(ix for d, ix in enumerate(index) if d not in node.dims)
        if not self.admit(group, node, kept, reads):
            return False
        group.operands[node] = (index,)
        return True

    # ---- matrix products ----
    def dot(self, node: Node) -> None:
        a, b = (self.dot_operand(x) for x in node.args)
        for attempt in (0, 1):
            object.__setattr__(node, "args", (a, b))
            *batch, m, k = a.shape
            n = b.shape[-1]
            group, index = self.new_group("dot", (*batch, m, n))
            group.extents["k"] = k
            group.reduced = ("k",)
            if self.enter_dot(group, node, index):
                return
            self.groups.pop()
            if attempt == 0:
                a, b = self.stored_copy(a), self.stored_copy(b)
        raise AssertionError(f"{node!r} cannot start a kernel")

    def dot_operand(self, value: Node) -> Node:
        """Operands are read again for every tile of the other side, so only trivial work is done on the way."""
        base = base_of(value)
        if base in self.inline and base not in self.home:
            cost, tensors = self.inline[base]
            if cost > 1 or len(tensors) != 1 or base.kind == "gather":
                return self.stored_copy(value)
        return value

    def enter_dot(self, group: Group, node: Node, index: Index) -> bool:
        for _ in range(32):
            *batch, m, n = index
            kx = axis("k")
            ia, ib = (*batch, m, kx), (*batch, kx, n)
            try:
                reads: set[Node] = set()
                self.readable(group, node.args[0], ia, reads)
                self.readable(group, node.args[1], ib, reads)
                break
            except NeedSplit as cut:
                rank = len(node.shape)
                if cut.axis in ("k", f"i{rank - 1}", f"i{rank - 2}"):
                    return False
                group.cut(cut.axis, cut.inner)
                index = substitute(index, cut.axis, f"{cut.axis}h", f"{cut.axis}l", cut.inner)
            except NotAffine:
                return False
        else:
            return False
        if not self.admit(group, node, index, reads):
            return False
        group.operands[node] = (ia, ib)
        return True

    def attention(self, node: Node) -> None:
        """A kernel of its own: the scores never reach memory. The mask may be computed in place."""
        args = [self.dot_operand(x) for x in node.args[:3]] + list(node.args[3:])
        for attempt in (0, 1):
            object.__setattr__(node, "args", tuple(args))
            group, index = self.new_group("attention", node.shape)
            group.extents |= {"n": args[1].shape[-2], "d": args[0].shape[-1]}
            group.reduced = ("n", "d")
            *batch, m, e = index
            n, d = axis("n"), axis("d")
            places = [(*batch, m, d), (*batch, n, d), (*batch, n, e), (*batch, m, n)][: len(args)]
            reads: set[Node] = set()
            try:
                for value, at in zip(args, places):
                    self.readable(group, value, at, reads)
                admitted = self.admit(group, node, index, reads)
            except (NotAffine, NeedSplit):
                admitted = False
            if admitted:
                group.operands[node] = tuple(places)
                return
            self.groups.pop()
            if attempt == 0:
                args = [self.stored_copy(x) for x in args]
        raise AssertionError(f"{node!r} cannot start a kernel")

    # ---- storage ----
    def store(self, node: Node) -> None:
        """Marks a value as read from memory."""
        if node in self.inline and node not in self.home:
            self.alone(node)
        if node in self.home:
            self.needed.add(node)
            if node not in self.storage:
                self.place(node, node.strides or contiguous_strides(node.shape))

    def view_strides(self, value: Node, at: tuple[tuple[int, ...], int]) -> tuple[tuple[int, ...], int] | None:
        return strided_view(value, *at)

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
                stack += [(d, False) for d in sorted(self.depends_of(x), key=self.age, reverse=True) if d not in done]

        for item in sorted(items, key=self.age):
            visit(item)
        return out

    def age(self, item: Any) -> tuple[int, int]:
        if isinstance(item, ExternCall):
            serials = [r.serial for r in item.results if r is not None]
            return (min(serials, default=0), 0)
        return (max(n.serial for n in item.index), 1)


def _pointwise_operands(node: Node) -> tuple[Node, ...]:
    """Operands that are read at the node's own index (the source of a gather is not)."""
    return tuple(i for i in node.index if isinstance(i, Node)) if node.kind == "gather" else node.args


def strided_view(value: Node, strides: tuple[int, ...], offset: int) -> tuple[tuple[int, ...], int] | None:
    """(strides, offset) of a chain of views over a base stored with `strides`; None where none exist."""
    chain = []
    while value.kind == "view":
        chain.append(value)
        value = value.args[0]
    for view in reversed(chain):
        kind, old = view.view[0], view.args[0].shape
        if kind == "permute":
            strides = tuple(strides[d] for d in view.view[1])
        elif kind == "expand":
            strides = tuple(0 if s == 1 and t != 1 else st for s, t, st in zip(old, view.shape, strides))
        elif kind == "slice":
            _, dim, start, step = view.view
            if step < 0:
                return None
            offset += start * strides[dim]
            strides = tuple(st * step if d == dim else st for d, st in enumerate(strides))
        else:
            found = reshaped_strides(old, strides, view.shape)
            if found is None:
                return None
            strides = found
    return tuple(strides), offset


def _same_layout(shape: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(x == y for s, x, y in zip(shape, a, b) if s > 1)


def _dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Do these strides fill a block of memory exactly once?"""
    step = 1
    for st, size in sorted((st, s) for s, st in zip(shape, strides) if s > 1):
        if st != step:
            return False
        step *= size
    return True


def _trivial(node: Node) -> bool:
    return node.kind == "pointwise" and node.fn == "cast"


def _has_effects(call: ExternCall) -> bool:
    target = call.target
    return isinstance(target, torch._ops.OpOverload) and (
        target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags
    )
