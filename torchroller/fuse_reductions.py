"""Fusion of reductions: rows and the values of whole rows share a kernel."""

from __future__ import annotations

import math

from .graph import Node, base_of
from .groups import Group
from .joining import LONG_ROW, MAX_MEMBERS, SMALL_GRID, Joining
from .views import Index, NeedSplit, NotAffine, substitute


class Reductions(Joining):
    """Groups with reduced axes."""

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

    def scan(self, node: Node) -> None:
        """A kernel of its own; what follows element by element may join it."""
        for attempt in (0, 1):
            group, index = self.new_group("scan", node.shape)
            group.reduced = (f"i{node.dims[0]}",)
            if self.enter(group, node, index) and group.reduced == (f"i{node.dims[0]}",):
                return
            self.groups.pop()
            self.home.pop(node, None)
            if attempt == 0:
                object.__setattr__(node, "args", (self.stored_copy(node.args[0]),))
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
