"""Fusion of matrix products and attention: their operands, and what starts a kernel of its own."""

from __future__ import annotations

from .graph import Node, base_of
from .groups import Group, padding_below, walked_strides
from .joining import Joining
from .views import ZERO, Index, NeedSplit, NotAffine, axis, substitute

FEW_CHANNELS = 16  # fewer are read together with their neighbours in a row, from a copy that holds the border


class Contractions(Joining):
    """Groups around one dot, or around the two of attention."""

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

    def conv(self, node: Node) -> None:
        """A convolution as a contraction over the window and the channels of a group."""
        x, w = (self.dot_operand(a) for a in node.args)
        if not self.walks_channels(x):
            # a copy is due anyway; made of the padded tensor, it also saves the checks at the borders
            x = self.stored_copy(x)
        strides = walked_strides(w, self.guess(base_of(w))[0])
        if base_of(w).name not in self.constant and w.shape[-1] > 1 and (strides is None or strides[-1] != 1):
            w = self.stored_copy(w)  # not packed: the filters are brought together, once for all programs
        for attempt in (0, 1):
            object.__setattr__(node, "args", (x, w))
            group, index = self.new_group("dot", node.shape)
            n, *out, g, m = index
            window, channels = w.shape[:-3], x.shape[-1]
            group.extents |= {f"k{d}": size for d, size in enumerate(window) if size != 1} | {"k": channels}
            group.reduced = (*(f"k{d}" for d, size in enumerate(window) if size != 1), "k")
            taps = [axis(f"k{d}") if size != 1 else ZERO for d, size in enumerate(window)]
            at = [o.scaled(s).plus(t.scaled(dil)) for o, t, s, dil in zip(out, taps, *node.number)]
            ia, ib = (n, *at, g, axis("k")), (*taps, g, axis("k"), m)
            reads: set[Node] = set()
            try:
                self.readable(group, x, ia, reads)
                self.readable(group, w, ib, reads)
                admitted = self.admit(group, node, index, reads)
            except (NotAffine, NeedSplit):
                admitted = False
            if admitted:
                group.operands[node] = (ia, ib)
                return
            self.groups.pop()
            if attempt == 0:
                x, w = self.stored_copy(x), self.stored_copy(w)
        raise AssertionError(f"{node!r} cannot start a kernel")

    def walks_channels(self, x: Node) -> bool:
        """Are the channels of x[n, *in, g, c] next to each other in memory, and enough of them?"""
        strides = walked_strides(x, self.guess(base_of(x))[0])
        groups, channels = x.shape[-2:]
        if strides is None or (channels > 1 and strides[-1] != 1) or (groups > 1 and strides[-2] != channels):
            return False
        return groups > 1 or channels >= FEW_CHANNELS or padding_below(x) is None

    def dot_operand(self, value: Node) -> Node:
        """Operands are read again for every tile of the other side, so only trivial work is done on the way."""
        base = base_of(value)
        if base in self.inline and base not in self.home:
            cost, tensors = self.inline[base]
            if cost > 1 or len(tensors) != 1 or base.kind == "gather":
                return self.shared_copy(value)
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

    def enter_attention(self, group: Group, node: Node, index: Index) -> bool:
        rank = len(node.shape)
        for _ in range(32):
            *batch, m, e = index
            n, d = axis("n"), axis("d")
            places = [(*batch, m, d), (*batch, n, d), (*batch, n, e), (*batch, m, n)][: len(node.args)]
            reads: set[Node] = set()
            try:
                for value, at in zip(node.args, places):
                    self.readable(group, value, at, reads)
                break
            except NeedSplit as cut:
                if cut.axis in ("n", "d", f"i{rank - 1}", f"i{rank - 2}"):
                    return False
                group.cut(cut.axis, cut.inner)
                index = substitute(index, cut.axis, f"{cut.axis}h", f"{cut.axis}l", cut.inner)
            except NotAffine:
                return False
        else:
            return False
        if not self.admit(group, node, index, reads):
            return False
        group.operands[node] = tuple(places)
        return True

    def attention(self, node: Node) -> None:
        """A kernel of its own: the scores never reach memory. The mask may be computed in place."""
        args = [self.dot_operand(x) for x in node.args[:3]] + list(node.args[3:])
        for attempt in (0, 1):
            object.__setattr__(node, "args", tuple(args))
            group, index = self.new_group("attention", node.shape)
            group.extents |= {"n": args[1].shape[-2], "d": args[0].shape[-1]}
            group.reduced = ("n", "d")
            if self.enter_attention(group, node, index):
                return
            self.groups.pop()
            if attempt == 0:
                args = [self.stored_copy(x) for x in args]
        raise AssertionError(f"{node!r} cannot start a kernel")
