"""One group of fused values -> one TensorExpr, with canonical names so that equal kernels are equal text.

Every access is brought to strided-box form: one tensor dimension per axis that moves it. Axes that all
accesses walk as one are merged, so a contiguous pointwise kernel has one axis whatever the tensor's rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .expr import Access, Affine, Axis, TensorExpr, Value, Write
from .graph import Node, base_of, compute_type
from .groups import Fused, Group, padding_below, strided_view
from .views import Index, Ix, backward

FIXED = frozenset(("k", "n", "d"))  # contracted axes of dots: the emitters want each as one axis


@dataclass(frozen=True)
class Kernel:
    """A tensor expression and the buffers that its tensors t0, t1 .. are bound to."""

    expr: TensorExpr
    buffers: tuple[str, ...]
    outputs: tuple[str, ...]  # the tensors of `buffers` that are written
    checks_indices: bool = False


@dataclass
class _Raw:
    """A load or store before its axes are final: a linear offset, and indirect dimensions."""

    buffer: str
    dtype: str
    at: Ix
    indirect: tuple[tuple[int, int, int], ...] = ()  # (value number, stride, size of the dimension)
    bounds: tuple[tuple[Ix, int, int], ...] = ()  # of a padded tensor: (index, stride, size) per dimension
    offset: int = 0  # of a padded tensor: where its element 0, 0 .. lies
    fill: float | int = 0  # what lies outside it


@dataclass
class _Maker:
    group: Group
    fused: Fused
    values: list[Value] = field(default_factory=list)
    raw: dict[int, _Raw] = field(default_factory=dict)
    memo: dict[Any, int] = field(default_factory=dict)
    shared: dict[Any, int] = field(default_factory=dict)
    iotas: dict[int, Ix] = field(default_factory=dict)

    def emit(self, value: Value, key: Any = None) -> int:
        key = value if key is None else key
        if key in self.shared:
            return self.shared[key]
        self.values.append(value)
        self.shared[key] = len(self.values) - 1
        return self.shared[key]

    def value(self, node: Node, index: Index) -> int:
        """Number of the value of `node` at `index`."""
        base = base_of(node)
        if (pad := padding_below(node)) is not None:
            return self.padded(node, pad, index)
        if node is not base and base not in self.group.index and self.stored(base):
            storage = self.fused.storage[base]
            found = strided_view(node, storage.strides, storage.offset, backwards=True)
            if found is not None:
                return self.load(_Raw(storage.buffer, node.dtype, linear(index, *found)))
        while node.kind == "view":
            index = backward(node.view, node.args[0].shape, node.shape, index, self.group.extents)
            node = node.args[0]
        key = (node, index)
        if key not in self.memo:
            self.memo[key] = self.define(node, index)
        return self.memo[key]

    def padded(self, node: Node, pad: Node, index: Index) -> int:
        """A load from a tensor with a border: positions outside give the fill."""
        while node is not pad.args[0]:
            index = backward(node.view, node.args[0].shape, node.shape, index, self.group.extents)
            node = node.args[0]
        storage = self.fused.storage[base_of(node)]
        found = strided_view(node, storage.strides, storage.offset)
        assert found is not None
        bounds = tuple(zip(index, found[0], node.shape))
        return self.load(_Raw(storage.buffer, node.dtype, linear(index, *found), (), bounds, found[1],
                              pad.view[2]))  # fmt: skip

    def define(self, node: Node, index: Index) -> int:
        if node not in self.group.index and self.stored(node):
            storage = self.fused.storage[node]
            return self.load(_Raw(storage.buffer, node.dtype, linear(index, storage.strides, storage.offset)))
        if node.kind == "const":
            return self.emit(
                Value("const", node.dtype, number=node.number), ("const", node.dtype, repr(node.number))
            )
        if node.kind == "iota":
            return self.iota(index[0])
        if node.kind == "gather":
            return self.gather(node, index)
        if node.kind == "pointwise":
            args = tuple(self.cast(self.value(a, index), node.compute) if not (node.fn == "where" and i == 0)
                         else self.value(a, index) for i, a in enumerate(node.args))  # fmt: skip
            if node.fn == "copy":
                return args[0]
            if node.fn == "cast":
                return self.cast(self.value(node.args[0], index), node.dtype, exact=True)
            return self.emit(Value("call", node.dtype, args, fn=node.fn))
        if node.kind == "reduce":
            (at,) = self.group.operands[node]
            arg = self.cast(self.value(node.args[0], at), node.compute)
            over = tuple(a for a in self.group.extents if a in self.group.reduced)
            return self.emit(Value("reduce", node.dtype, (arg,), fn=node.fn, over=over))
        if node.kind == "scan":
            arg = self.cast(self.value(node.args[0], index), node.compute)
            return self.emit(Value("scan", node.dtype, (arg,), fn=node.fn, axis=self.group.reduced[0]))
        if node.kind == "dot":
            left, right = self.group.operands[node]
            return self.emit(Value("dot", node.dtype, (self.value(node.args[0], left), self.value(node.args[1], right)),
                                   over=("k",)))  # fmt: skip
        if node.kind == "conv":
            left, right = self.group.operands[node]
            return self.emit(
                Value("dot", node.dtype, (self.value(node.args[0], left), self.value(node.args[1], right)))
            )
        if node.kind == "attention":
            return self.attention(node)[0]
        if node.kind == "lse":
            return self.attention(node.args[0])[1]
        raise AssertionError(f"{node!r} in a kernel")

    def attention(self, node: Node) -> tuple[int, int]:
        """(output, log of the row sums) of softmax(q k^T * scale + mask) v."""
        key = ("attention", node)
        if key in self.memo:
            return self.memo[key], self.memo["lse", node]
        places = self.group.operands[node]
        scale, causal, safe = node.number
        q, k, v = (self.value(x, at) for x, at in zip(node.args[:3], places))
        emit, f32 = self.emit, "float32"
        score = emit(Value("dot", f32, (q, k), over=("d",)))
        score = emit(Value("call", f32, (score, emit(Value("const", f32, number=float(scale)))), fn="mul"))
        if len(node.args) > 3:
            score = emit(
                Value("call", f32, (score, self.cast(self.value(node.args[3], places[3]), f32)), fn="add")
            )
        if causal:
            m, n = places[0][-2], places[1][-2]
            seen = emit(Value("call", "bool", (self.iota(n), self.iota(m)), fn="le"))
            low = emit(Value("const", f32, number=float("-inf")))
            score = emit(Value("call", f32, (seen, score, low), fn="where"))
        top = emit(Value("reduce", f32, (score,), fn="fmax", over=("n",)))
        p = emit(Value("call", f32, (emit(Value("call", f32, (score, top), fn="sub")),), fn="exp"))
        total = emit(Value("reduce", f32, (p,), fn="sum", over=("n",)))
        mixed = emit(Value("dot", f32, (p, v), over=("n",)))
        if safe:
            none = emit(Value("call", "bool", (total, emit(Value("const", f32, number=0.0))), fn="eq"))
            total = emit(Value("call", f32, (none, emit(Value("const", f32, number=1.0)), total), fn="where"))
        self.memo[key] = emit(Value("call", node.dtype, (mixed, total), fn="div"))
        log = emit(Value("call", f32, (total,), fn="log"))
        self.memo["lse", node] = emit(Value("call", f32, (top, log), fn="add"))
        return self.memo[key], self.memo["lse", node]

    def scatter(self, node: Node) -> list[tuple[int, _Raw, str | None]]:
        """The writes of a scatter: its base, where that is not the same memory, and the updates."""
        base, source = node.args
        to_base, from_source = self.group.operands[node]
        storage = self.fused.storage[node]
        writes: list[tuple[int, _Raw, str | None]] = []
        same = base.kind == "input" and self.fused.storage[base].buffer == storage.buffer
        if not same:
            at = linear(to_base, storage.strides, storage.offset)
            number = self.cast(self.value(base, to_base), node.compute)
            writes.append((number, _Raw(storage.buffer, node.dtype, at), None))
        at, indirect = Ix((), storage.offset), []
        for d, i in enumerate(node.index):
            if isinstance(i, Node):
                indirect.append((self.value(i, from_source), storage.strides[d], node.shape[d]))
            else:
                at = at.plus(from_source[i].scaled(storage.strides[d]))
        number = self.cast(self.value(source, from_source), node.compute)
        writes.append((number, _Raw(storage.buffer, node.dtype, at, tuple(indirect)), node.fn))
        return writes

    def stored(self, node: Node) -> bool:
        return node in self.fused.writers or node.kind in ("input", "extern", "cat")

    def cast(self, number: int, dtype: str, exact: bool = False) -> int:
        """Converts where the register type differs; `exact` also rounds to a half type."""
        have = self.values[number].dtype
        if have == dtype or (not exact and compute_type(have) == compute_type(dtype)):
            return number
        value = self.values[number]
        if value.kind == "const":
            number_ = bool(value.number) if dtype == "bool" else value.number
            if dtype.startswith(("int", "uint")):
                number_ = int(value.number)  # type: ignore[arg-type]
            elif dtype.startswith(("float", "bfloat")):
                number_ = float(value.number)  # type: ignore[arg-type]
            return self.emit(Value("const", dtype, number=number_), ("const", dtype, repr(number_)))
        return self.emit(Value("call", dtype, (number,), fn="cast"))

    def load(self, raw: _Raw) -> int:
        key = ("load", raw.buffer, raw.at, raw.indirect, raw.bounds, raw.fill)
        if key in self.shared:
            return self.shared[key]
        number = self.emit(Value("load", raw.dtype), key)
        self.raw[number] = raw
        return number

    def iota(self, ix: Ix) -> int:
        key = ("iota", ix)
        if key in self.shared:
            return self.shared[key]
        number = self.emit(Value("index", "int64"), key)
        self.iotas[number] = ix
        return number

    def gather(self, node: Node, index: Index) -> int:
        source = node.args[0]
        storage = self.fused.storage[base_of(source)]
        found = strided_view(source, storage.strides, storage.offset)
        assert found is not None
        strides, offset = found
        at, indirect = Ix((), offset), []
        for d, i in enumerate(node.index):
            if isinstance(i, Node):
                indirect.append((self.value(i, index), strides[d], source.shape[d]))
            else:
                at = at.plus(index[i].scaled(strides[d]))
        return self.load(_Raw(storage.buffer, source.dtype, at, tuple(indirect)))


def _renumbered(raw: _Raw, number: dict[int, int]) -> _Raw:
    """`raw` with the final numbers of the values that it is indexed by."""
    return replace(raw, indirect=tuple((number[i], st, sz) for i, st, sz in raw.indirect))


def linear(index: Index, strides: tuple[int, ...], offset: int) -> Ix:
    """Offset in elements of `index`."""
    at = Ix((), offset)
    for ix, stride in zip(index, strides):
        at = at.plus(ix.scaled(stride))
    return at


def build(group: Group, fused: Fused, needed: frozenset[Node], name: str) -> Kernel:
    """The tensor expression of a group; `needed` are its members that must be written."""
    maker = _Maker(group, fused)
    stores: list[tuple[int, _Raw, str | None]] = []
    for node, index in group.index.items():
        if node not in needed:
            continue
        if node.kind == "scatter":
            stores += maker.scatter(node)
            continue
        number = maker.value(node, index)
        storage = fused.storage[node]
        at = linear(index, storage.strides, storage.offset)
        stores.append((number, _Raw(storage.buffer, node.dtype, at), None))
    return _Finish(group, maker, stores, name).run()


@dataclass
class _Finish:
    group: Group
    maker: _Maker
    stores: list[tuple[int, _Raw, str | None]]
    name: str

    def run(self) -> Kernel:
        self.extents = dict(self.group.extents)
        raws = [*self.maker.raw.values(), *(r for _, r, _ in self.stores)]
        self.lines: list[Any] = [*raws]
        self.drop_unused_reductions()
        self.walks = {a: a[0] if self.group.kind == "scatter" else "" for a in self.extents}
        if self.group.kind == "scatter" and len(self.stores) == 1:  # in place: nothing walks the base
            self.extents = {a: e for a, e in self.extents.items() if not a.startswith("t")}
        self.merge()
        names = self.rename()
        return self.finish(names)

    def drop_unused_reductions(self) -> None:
        """An axis of extent 1 cannot appear; nothing else is dropped, since a sum over an unused axis counts."""
        self.extents = {a: e for a, e in self.extents.items() if e != 1 or a in FIXED}

    def strides(self, item: Any) -> dict[str, int]:
        return dict((item if isinstance(item, Ix) else item.at).terms)

    def merge(self) -> None:
        """Joins two axes into one wherever every access walks them as one."""
        bounds = [ix for raw in self.maker.raw.values() for ix, _, _ in raw.bounds]
        items: list[Any] = [*self.lines, *self.maker.iotas.values(), *bounds]
        tables = [self.strides(i) for i in items]
        reduced = set(self.group.reduced)
        changed = True
        while changed:
            changed = False
            for a in list(self.extents):
                for b in list(self.extents):
                    if (
                        a == b
                        or (a in reduced) != (b in reduced)
                        or {a, b} & FIXED
                        or self.walks[a] != self.walks[b]
                    ):
                        continue
                    if all(t.get(a, 0) == t.get(b, 0) * self.extents[b] for t in tables):
                        self.extents[b] *= self.extents.pop(a)
                        for t in tables:
                            t.pop(a, None)
                        changed = True
                        break
                if changed:
                    break
        self.tables = tables

    def rename(self) -> dict[str, str]:
        """Spatial axes by falling stride of the first store, reduce axes by falling stride of the first load."""
        reduced = set(self.group.reduced)
        store = self.tables[len(self.maker.raw)] if self.stores else {}
        loads = self.tables[: len(self.maker.raw)]
        spatial = [a for a in self.extents if a not in reduced]
        over = [a for a in self.extents if a in reduced]
        spatial.sort(key=lambda a: -abs(store.get(a, 0)))
        over.sort(key=lambda a: -max((abs(t.get(a, 0)) for t in loads), default=0))
        names = {a: f"i{n}" for n, a in enumerate(spatial)}
        names |= {a: f"r{n}" for n, a in enumerate(over)}
        self.order = [*spatial, *over]
        return names

    def finish(self, names: dict[str, str]) -> Kernel:
        buffers: dict[str, str] = {}

        def access(raw: _Raw, table: dict[str, int], inside: Sequence[dict[str, int]] = ()) -> Access:
            tensor = buffers.setdefault(raw.buffer, f"t{len(buffers)}")
            if raw.bounds:
                index = tuple(
                    Affine(tuple((names[a], t[a]) for a in self.order if t.get(a, 0)), ix.offset)
                    for t, (ix, _, _) in zip(inside, raw.bounds)
                )
                sizes, steps = tuple(n for _, _, n in raw.bounds), tuple(st for _, st, _ in raw.bounds)
                return Access(tensor, raw.dtype, sizes, steps, index, raw.offset, bounded=True, fill=raw.fill)
            dims = [
                (self.extents[a], table[a], Affine(((names[a], 1),))) for a in self.order if table.get(a, 0)
            ]
            dims += [(size, stride, Affine(indirect=v)) for v, stride, size in raw.indirect]
            shape, strides, index = (tuple(x) for x in zip(*dims)) if dims else ((), (), ())
            return Access(tensor, raw.dtype, shape, strides, index, raw.at.offset, bounded=bool(raw.indirect))

        values: list[Value] = []
        tables = dict(zip(self.maker.raw, self.tables))
        after = len(self.maker.raw)
        after_stores = after + len(self.stores)
        iota_tables = dict(zip(self.maker.iotas, self.tables[after_stores:]))
        bound_tables = iter(self.tables[after_stores + len(self.maker.iotas) :])
        inside = {n: [next(bound_tables) for _ in raw.bounds] for n, raw in self.maker.raw.items()}
        number: dict[int, int] = {}
        for n, v in enumerate(self.maker.values):
            args = tuple(number[a] for a in v.args)
            if n in self.maker.raw:
                moved = _renumbered(self.maker.raw[n], number)
                values.append(Value("load", v.dtype, access=access(moved, tables[n], inside[n])))
            elif n in self.maker.iotas:
                self.spell_iota(values, iota_tables[n], self.maker.iotas[n].offset, names)
            elif v.kind == "scan":
                values.append(Value("scan", v.dtype, args, fn=v.fn, axis=names[v.axis or ""]))
            elif v.kind in ("reduce", "dot"):
                over = tuple(names[a] for a in self.order if a in (v.over if v.over and v.over[0] in names
                                                                   else self.group.reduced))  # fmt: skip
                values.append(Value(v.kind, v.dtype, args, fn=v.fn, over=over))
            else:
                values.append(Value(v.kind, v.dtype, args, number=v.number, fn=v.fn))
            number[n] = len(values) - 1
        writes = tuple(
            Write(access(_renumbered(raw, number), self.tables[after + i]), number[n], combine)
            for i, (n, raw, combine) in enumerate(self.stores)
        )
        reduced = set(self.group.reduced)
        axes = tuple(
            Axis(names[a], self.extents[a], "reduce" if a in reduced else "spatial") for a in self.order
        )
        source = tuple(dict.fromkeys(n.origin for n in self.group.index if n.origin))
        expr = TensorExpr(self.name, axes, tuple(values), writes, source)
        outs = tuple(dict.fromkeys(w.access.tensor for w in writes))
        checked = any(a.gathers for a in (*expr.loads, *(w.access for w in writes)))
        return Kernel(expr, tuple(buffers), outs, checked)

    def spell_iota(
        self, values: list[Value], table: dict[str, int], offset: int, names: dict[str, str]
    ) -> None:
        total: int | None = None

        def add(v: Value) -> int:
            values.append(v)
            return len(values) - 1

        for a in self.order:
            c = table.get(a, 0)
            if not c:
                continue
            term = add(Value("index", "int64", axis=names[a]))
            if c != 1:
                term = add(Value("call", "int64", (term, add(Value("const", "int64", number=c))), fn="mul"))
            total = term if total is None else add(Value("call", "int64", (total, term), fn="add"))
        if offset or total is None:
            number = add(Value("const", "int64", number=offset))
            if total is not None:
                add(Value("call", "int64", (total, number), fn="add"))
