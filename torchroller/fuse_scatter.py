"""Kernels of indirect writes: their operands, and results that are kept in the memory of a graph input."""

from __future__ import annotations

from .graph import Node, base_of
from .groups import Group
from .joining import Joining
from .views import ZERO, Index, NeedSplit, NotAffine, axis, substitute


class Scatters(Joining):
    """Groups around one scatter. Axes i* are shared by source and base, s* walk the source, t* the base."""

    def scatter(self, node: Node) -> None:
        """A kernel of its own: no two programs write to the same place."""
        where = self.in_place.get(node)
        if where is not None:
            self.place(
                node, self.storage[where].strides, self.storage[where].buffer, self.storage[where].offset
            )
        for attempt in (0, 1):
            group = Group(len(self.groups), "scatter", {})
            self.groups.append(group)
            if self.enter_scatter(group, node):
                return
            self.groups.pop()
            if attempt == 0:
                base, source = node.args
                swap = tuple(self.stored_copy(i) if isinstance(i, Node) else i for i in node.index)
                kept = base if where is not None or base_of(base).kind == "const" else self.stored_copy(base)
                object.__setattr__(node, "args", (kept, self.stored_copy(source)))
                object.__setattr__(node, "index", swap)
        raise AssertionError(f"{node!r} cannot start a kernel")

    def enter_scatter(self, group: Group, node: Node) -> bool:
        base, source = node.args
        shared = {i: d for d, i in enumerate(node.index) if isinstance(i, int)}

        def name(prefix: str, d: int, size: int) -> Index:
            if size == 1:
                return (ZERO,)
            group.extents[f"{prefix}{d}"] = size
            return (axis(f"{prefix}{d}"),)

        from_source: Index = ()
        for d, size in enumerate(source.shape):
            from_source += name("i" if d in shared else "s", d, size)
        to_base: Index = ()
        for d, (i, size) in enumerate(zip(node.index, base.shape)):
            to_base += (from_source[i],) if isinstance(i, int) else name("t", d, size)
        group.reduced = tuple(a for a in group.extents if not a.startswith("i"))
        positions = [i for i in node.index if isinstance(i, Node)]
        for _ in range(32):
            reads: set[Node] = set()
            try:
                self.readable(group, base, to_base, reads)
                for value in (source, *positions):
                    self.readable(group, value, from_source, reads)
                break
            except NeedSplit as cut:
                group.cut(cut.axis, cut.inner)
                names = (cut.axis, f"{cut.axis}h", f"{cut.axis}l", cut.inner)
                to_base, from_source = substitute(to_base, *names), substitute(from_source, *names)
            except NotAffine:
                return False
        else:
            return False
        if not self.admit(group, node, to_base, reads):
            return False
        group.operands[node] = (to_base, from_source)
        return True

    # ---- graph inputs that the graph writes to ----
    def mutate(self) -> None:
        """Kernels that copy new values into graph inputs, after everything that reads the old ones."""
        written = {target for target, _ in self.lowered.mutations}
        copies: list[tuple[Node, Group]] = []
        for target, value in self.lowered.mutations:
            if value in self.in_place:
                self.needed.add(value)
                continue
            if not self.stable(value, target, written):
                value = self.stored_copy(value)
                self.store(value)
            copy = self.b.copy(value)
            storage = self.storage[target]
            self.place(copy, storage.strides, storage.buffer, storage.offset)
            self.users[copy] = 1
            self.alone(copy)
            self.needed.add(copy)
            copies.append((target, self.home[copy]))
        for target, group in copies:
            group.depends |= {g for g in self.readers.get(target, []) if g is not group}
            group.depends |= {c for c in self.depends if any(base_of(o) is target for o in c.operands)}

    def stable(self, value: Node, target: Node, written: set[Node]) -> bool:
        """May `value` be computed while `target` is overwritten: it reads no written input but at its own place."""
        stack = [(value, False)]
        while stack:
            node, moved = stack.pop()
            if node.kind == "input" and node in written and (moved or node is not target):
                return False
            if node in self.home or node.kind in ("input", "extern", "cat"):
                continue
            moved = moved or node.kind in ("view", "gather")
            stack += [(a, moved) for a in (*node.args, *(i for i in node.index if isinstance(i, Node)))]
        return True
