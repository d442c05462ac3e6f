"""When may a value live in a group? The index maps that decide it.

A value enters a group at an index (one `Ix` per dimension over the group's axes). All it reads must be readable
there: members at exactly the index where they live, inline values by their own operands, stored tensors by
strides or an affine index. An axis that a reshape cuts is split in the whole group.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from .graph import Builder, Node, base_of, contiguous_strides
from .groups import (
    Group,
    Storage,
    apart,
    channels_last,
    is_channels_last,
    padding_below,
    strided_view,
    walked_strides,
)  # fmt: skip
from .lower import ExternCall, Lowered
from .views import ZERO, Index, Ix, NeedSplit, NotAffine, axis, backward, forward, substitute

MAX_MEMBERS = 48
MAX_TENSORS = 20
SMALL_GRID = 64  # a reduction to fewer rows than this over long rows is a kernel without parallelism
LONG_ROW = 1 << 16


class Joining:
    """The state of a fusion, and the rules of membership. `fuse.py` drives it."""

    def __init__(self, lowered: Lowered, enabled: bool, constant: Collection[str] = ()) -> None:
        self.lowered, self.enabled, self.constant = lowered, enabled, frozenset(constant)
        self.b: Builder = lowered.builder
        self.groups: list[Group] = []
        self.home: dict[Node, Group] = {}
        self.inline: dict[Node, tuple[int, frozenset[Node]]] = {}  # cost, tensors loaded
        self.copies: dict[tuple[Node, tuple[Any, ...]], Node] = {}  # by what they are copies of
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
        self.layouts: dict[Node, tuple[int, ...]] = {}
        self.together: dict[Node, Node] = {}  # copies whose last dimension is one run of memory
        self.after: Any = None
        self.in_place: dict[
            Node, Node
        ] = {}  # values that are written over the graph input that they come from

    def pointwise(self, node: Node) -> None:
        """Finds a home for a pointwise value."""
        raise NotImplementedError

    def guess(self, base: Node) -> tuple[tuple[int, ...], int]:
        if base in self.storage:
            return self.storage[base].strides, self.storage[base].offset
        if base.kind == "extern" or base.strides:
            return base.strides, 0
        return self.layout(base), 0

    def layout(self, node: Node) -> tuple[int, ...]:
        """Strides that a value gets when it is stored: channels last where an operand of its shape has them.

        Vectors then run along the channels from one convolution to the next, and nothing is transposed between.
        """
        if node not in self.layouts:
            found = contiguous_strides(node.shape)
            if node.kind in ("pointwise", "cat", "gather") and len(node.shape) >= 3:
                for arg in node.args:
                    if (
                        len(arg.shape) != len(node.shape)
                        or arg.shape[1] != node.shape[1]
                        and node.kind != "cat"
                    ):
                        continue
                    strides = walked_strides(arg, self.guess(base_of(arg))[0])
                    if strides is not None and is_channels_last(arg.shape, strides):
                        found = channels_last(node.shape)
                        break
            self.layouts[node] = found
        return self.layouts[node]

    def place(self, node: Node, strides: tuple[int, ...], buffer: str | None = None, offset: int = 0) -> None:
        if buffer is None:
            buffer = f"buf{len(self.buffers)}"
            extent = 1 + sum((size - 1) * max(stride, 0) for size, stride in zip(node.shape, strides))
            self.buffers[buffer] = (max(node.numel, extent), node.dtype)
        self.storage[node] = Storage(buffer, strides, offset)

    def stored_copy(self, value: Node, strides: tuple[int, ...] | None = None) -> Node:
        copy = self.b.copy(value)
        if strides and apart(value.shape, strides):
            self.place(copy, strides)
        self.forced.add(copy)
        self.users[copy] = 1
        self.pointwise(copy)
        return copy

    def shared_copy(self, value: Node) -> Node:
        """The stored copy of a value that nobody writes to: one for all who read it through the same views."""
        views, base = [], value
        while base.kind == "view":
            views.append((base.view, base.shape))
            base = base.args[0]
        key = (base, tuple(views))
        if key in self.copies:
            self.users[self.copies[key]] += 1
        else:
            self.copies[key] = self.stored_copy(value)
        return self.copies[key]

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
            object.__setattr__(
                node, "index", tuple(self.plain(i) if isinstance(i, Node) else i for i in node.index)
            )

    def plain(self, value: Node) -> Node:
        """`value` with every reshape in its chain of views made from a stored, contiguous value."""
        if value.kind != "view":
            if value in self.inline and value not in self.home:
                return self.stored_copy(value) if value.args else value
            return value
        source = value.args[0]
        if value.view[0] == "reshape":
            if (
                source.kind == "view"
                or base_of(source).kind in ("input", "extern")
                or base_of(source) in self.inline
            ):
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
        for operand in self.reached(node):
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

    def reached(self, node: Node) -> list[Node]:
        """Operands of a pointwise node, and through inline values, which live where it does, theirs."""
        found: dict[Node, None] = {}
        stack = [node]
        while stack:
            for operand in pointwise_operands(stack.pop()):
                if operand not in found:
                    found[operand] = None
                    if operand in self.inline and operand not in self.home and operand.kind == "pointwise":
                        stack.append(operand)
        return list(found)

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
        if group.kind == "dot" or reduced and not used & reduced:
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
        if (pad := padding_below(value)) is not None:
            if base in group.index:
                raise NotAffine("a padded value of the same kernel")
            while value is not pad:
                index = backward(value.view, value.args[0].shape, value.shape, index, group.extents)
                value = value.args[0]
            reads.add(base)
            return
        stored = base not in group.index and (base not in self.inline or base in self.home)
        if stored and (value is base or strided_view(value, *self.guess(base), backwards=True) is not None):
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

    # ---- storage ----
    def store(self, node: Node) -> None:
        """Marks a value as read from memory."""
        if node in self.inline and node not in self.home:
            self.alone(node)
        if node in self.home:
            self.needed.add(node)
            if node not in self.storage:
                self.place(node, node.strides or self.layout(node))

    def view_strides(
        self, value: Node, at: tuple[tuple[int, ...], int]
    ) -> tuple[tuple[int, ...], int] | None:
        return strided_view(value, *at)


def pointwise_operands(node: Node) -> tuple[Node, ...]:
    """Operands that are read at the node's own index (the source of a gather is not)."""
    return tuple(i for i in node.index if isinstance(i, Node)) if node.kind == "gather" else node.args
