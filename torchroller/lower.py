"""ATen FX graph -> lazy values (graph.Node): every operator by its rule, the rest as extern ATen calls."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from .errors import NotLowered, RollerError, StrictError
from .graph import DTYPE_NAMES, FLOATS, Builder, Node
from .ops import (  # noqa: F401  (they register their rules)
    attention,
    contraction,
    conv,
    elementwise,
    foreach,
    indexing,
    pool,
    random,
    recurrent,
    reduction,
    scan,
    scatter,
    views,
)
from .ops.registry import GIVEN, RULES, Context
from .ops.written_attention import attention_of, weighted_sums
from .options import Options

VIEW_PACKETS = frozenset(
    f"aten.{name}" for name in (
        "view", "reshape", "_unsafe_view", "_reshape_alias", "unsqueeze", "squeeze", "permute", "t", "transpose",
        "expand", "slice", "select", "split", "split_with_sizes", "unbind", "alias", "detach", "flatten", "diagonal",
    )
)  # fmt: skip


# Operators that stay ATen calls, and why.
NEVER = {
    **dict.fromkeys(("aten.topk", "aten.sort", "aten.kthvalue", "aten.median", "aten.mode"),
                    "ATen's selection is faster than a sorting network of Triton"),
    **dict.fromkeys(("aten.nonzero", "aten.unique", "aten._unique2", "aten.masked_select", "aten.unique_consecutive"),
                    "the size of the result depends on values"),
    "aten.masked_scatter": "which value goes where depends on values",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class ExternCall:
    """One call of an ATen operator as it stands. `args`/`kwargs` hold Nodes where tensors go."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[Any, ...]  # per result: a Node, or None; single results have one entry
    is_tuple: bool
    reason: str
    name: str
    where: str
    strides: dict[Node, tuple[int, ...]] = field(
        default_factory=dict
    )  # that ATen would pass its operands with

    @property
    def operands(self) -> tuple[Node, ...]:
        found: list[Node] = []
        fx.node.map_aggregate(
            (self.args, self.kwargs), lambda v: found.append(v) if isinstance(v, Node) else None
        )
        return tuple(found)

    def __str__(self) -> str:
        args = ", ".join(f"%{n.serial}" for n in self.operands)
        place = f" at {self.where}" if self.where else ""
        return f"{self.target} ({self.name}){f' of {args}' if args else ''}: {self.reason}{place}"


@dataclass(frozen=True, eq=False)
class Output:
    """One graph output: a Node (or a plain value), the strides that the caller expects, and whether it must
    not share memory with inputs or other outputs."""

    value: Any
    strides: tuple[int, ...] = ()
    fresh: bool = False


@dataclass(frozen=True, eq=False)
class Lowered:
    """The graph as lazy values. `inputs[i]` is None where input i is not a tensor that we read."""

    builder: Builder
    inputs: tuple[Node | None, ...]
    constants: dict[str, torch.Tensor]
    externs: tuple[ExternCall, ...]
    outputs: tuple[Output, ...]
    lowered_nodes: int
    total_nodes: int
    device: torch.device
    mutations: tuple[tuple[Node, Node], ...] = ()  # graph inputs and what is written over each, at the end
    in_place: dict[Node, Node] = field(
        default_factory=dict
    )  # values that may share memory with the input they update
    values: dict[str, Any] = field(default_factory=dict)  # FX node name -> what it became

    def __str__(self) -> str:
        lines = [
            f"{self.lowered_nodes} of {self.total_nodes} graph nodes lowered, {len(self.externs)} extern calls"
        ]
        for node in self.builder.nodes:
            args = ", ".join(f"%{a.serial}" for a in node.args)
            lines.append(f"  {node!r}{f'  of {args}' if args else ''}")
        lines += [f"  extern {call}" for call in self.externs]
        found = ", ".join(
            f"%{o.value.serial}" if isinstance(o.value, Node) else str(o.value) for o in self.outputs
        )
        return "\n".join([*lines, f"  return {found}"])


def lower(gm: fx.GraphModule, options: Options, denied: Mapping[str, str] | None = None) -> Lowered:
    """Reads an ATen graph with fake values in `node.meta["val"]` and static shapes.

    `denied` names FX nodes that must be extern calls, with the reason. Raises StrictError under `strict` for
    the first node that has no rule.
    """
    return _Reader(gm, options, denied or {}).run()


class _Reader:
    def __init__(self, gm: fx.GraphModule, options: Options, denied: Mapping[str, str]) -> None:
        self.gm, self.options, self.denied = gm, options, denied
        self.b = Builder()
        self.env: dict[fx.Node, Any] = {}
        self.externs: list[ExternCall] = []
        self.constants: dict[str, torch.Tensor] = {}
        self.inputs: list[Node | None] = []
        self.done = self.total = 0
        self.device = _device_of(gm)
        self.mutations: list[tuple[Node, Node]] = []
        self.in_place: dict[Node, Node] = {}
        self.updates = _updates(gm)
        self.weighted = weighted_sums(gm) if options.fuse else {}

    def run(self) -> Lowered:
        outputs: tuple[Output, ...] = ()
        for node in self.gm.graph.nodes:
            self.b.origin = node.name
            if node.op == "placeholder":
                self.env[node] = self.placeholder(node)
            elif node.op == "get_attr":
                self.env[node] = self.attribute(node)
            elif node.op == "call_function":
                self.env[node] = self.call(node)
            elif node.op == "output":
                outputs = self.outputs(node)
            else:
                raise NotLowered(f"an FX node of kind {node.op}")
        return Lowered(self.b, tuple(self.inputs), self.constants, tuple(self.externs), outputs, self.done,
                       self.total, self.device, tuple(self.mutations), self.in_place,
                       {n.name: v for n, v in self.env.items()})  # fmt: skip

    def placeholder(self, node: fx.Node) -> Any:
        meta = node.meta.get("val")
        number = len(self.inputs)
        if not isinstance(meta, torch.Tensor):
            self.inputs.append(None)
            return meta
        value = self.leaf(f"arg{number}", meta)
        self.inputs.append(value)
        return value

    def leaf(self, name: str, meta: torch.Tensor) -> Node:
        strides = tuple(int(s) for s in meta.stride()) if meta.layout == torch.strided else ()
        return self.b.input(name, [int(s) for s in meta.shape], _dtype(meta), strides)

    def attribute(self, node: fx.Node) -> Any:
        value: Any = self.gm
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if not isinstance(value, torch.Tensor):
            return value
        name = f"const{len(self.constants)}"
        self.constants[name] = value
        return self.leaf(name, value)

    def call(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            source = self.env[node.args[0]]  # type: ignore[index]
            return source[node.args[1]]
        args = fx.node.map_arg(node.args, lambda n: self.env[n])
        kwargs = fx.node.map_arg(node.kwargs, lambda n: self.env[n])
        meta = node.meta.get("val")
        if node.target is torch.ops.aten.copy_.default and node.args[0].op == "placeholder":  # type: ignore[union-attr]
            return self.mutation(node, args)
        if random.is_replay(node.target):
            self.total += 1
            return self.replay(node, meta, args, kwargs)
        if not isinstance(node.target, torch._ops.OpOverload):
            target: Any = node.target
            return target(*args, **kwargs)  # arithmetic on sizes
        self.total += 1
        try:
            value = self.by_rule(node, meta, args, kwargs)
            self.done += 1
            target = self.env[self.updates[node]] if node in self.updates else None
            if target is not None and value.kind in ("scatter", "cat"):
                self.in_place[value] = target
            return value
        except NotLowered as error:
            reason = error.reason
        except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            reason = f"the lowering rule failed: {type(error).__name__}: {error}"
        if self.options.strict:
            raise StrictError(
                f"{node.target} ({node.name}) cannot be lowered: {reason}.{_where(node, ' At ')}\n"
                "Remove options={'strict': True} to run it as an ATen call."
            )
        return self.extern(node, meta, args, kwargs, reason)

    def attention(self, node: fx.Node, values: Node) -> Node | None:
        """The second product of an attention that the model writes out, with all that leads to it."""
        softmax = self.weighted[node]
        if softmax.name in self.denied:
            return None
        scores, meta = self.env[softmax.args[0]], node.meta["val"]  # type: ignore[index]
        if not isinstance(scores, Node) or scores.dtype not in FLOATS:
            return None
        safe = "_safe_softmax" in str(softmax.target)
        return attention_of(self.b, scores, values, _dtype(meta), tuple(int(s) for s in meta.shape), safe)

    def mutation(self, node: fx.Node, args: Any) -> Node:
        """A graph input gets a new value at the end of the graph (AOTAutograd moves all its writes there)."""
        target, value = args[0], args[1]
        if not isinstance(target, Node) or target.dtype not in DTYPE_NAMES.values():
            raise RollerError(f"{node.name} writes into an input that kernels cannot write to")
        if value is target:
            return value
        if not isinstance(value, Node):
            value = self.b.const(value, target.dtype)
        value = self.b.expand(self.b.cast(value, target.dtype), target.shape)
        if target.numel:
            self.mutations.append((target, value))
        return value

    def by_rule(self, node: fx.Node, meta: Any, args: Any, kwargs: Any) -> Any:
        target: Any = node.target
        if node.name in self.denied:
            raise NotLowered(self.denied[node.name])
        packet = str(target._schema.name).replace("::", ".")
        lowering = RULES.get(packet)
        if lowering is None:
            if torch.Tag.nondeterministic_seeded in target.tags:
                raise NotLowered(random.REASON)
            raise NotLowered(NEVER.get(packet, f"no rule for {packet}"))
        if target._schema.overload_name in ("out", "dtype_out", "names") or target._schema.is_mutable:
            raise NotLowered("it writes into an argument")
        given = GIVEN.get(packet)
        read = [int(u.args[1]) for u in node.users if u.target is operator.getitem and u.users]  # type: ignore[call-overload, arg-type]
        if given and any(number >= given for number in read):
            raise NotLowered("a gradient needs results of ATen's own kernel")
        self.admissible(meta[:given] if given else meta, args, kwargs)
        if node in self.weighted:
            fused = self.attention(node, args[1])
            if fused is not None:
                return fused
        used: Any = frozenset(u.args[1] for u in node.users if u.target is operator.getitem)
        operands = tuple(n.meta.get("val") for n in node.all_input_nodes)
        value = lowering(Context(self.b, meta, used, self.called(node), operands, node), *args, **kwargs)
        return self.conforming(packet, value, meta)

    def admissible(self, meta: Any, args: Any, kwargs: Any) -> None:
        metas = meta if isinstance(meta, (tuple, list)) else (meta,)
        for m in metas:
            if isinstance(m, torch.Tensor):
                if m.dtype not in DTYPE_NAMES or m.layout != torch.strided:
                    raise NotLowered(f"a result of {m.dtype}, {m.layout}")
                if m.numel() == 0 and m is metas[0]:
                    raise NotLowered("a tensor without elements")
                if m.device != self.device:
                    raise NotLowered(f"a result on {m.device} in a graph on {self.device}")
        operands: list[Node] = []
        fx.node.map_aggregate((args, kwargs), lambda v: operands.append(v) if isinstance(v, Node) else None)
        for x in operands:
            if x.dtype not in DTYPE_NAMES.values():
                raise NotLowered(f"an operand of {x.dtype}")
            if x.numel == 0:
                raise NotLowered("an operand without elements")

    def conforming(self, packet: str, value: Any, meta: Any) -> Any:
        """A rule's result must have ATen's shape and dtype: a wrong rule becomes an extern call, not a wrong number."""
        pairs = zip(value, meta) if isinstance(meta, (tuple, list)) else ((value, meta),)
        for got, want in pairs:
            if not isinstance(got, Node):
                continue
            shape, dtype = tuple(int(s) for s in want.shape), DTYPE_NAMES[want.dtype]
            if got.shape != shape or got.dtype != dtype:
                raise NotLowered(
                    f"the rule of {packet} gave {got.dtype}{list(got.shape)}, ATen {dtype}{list(shape)}"
                )
        return value

    def replay(self, node: fx.Node, meta: Any, args: Any, kwargs: Any) -> Any:
        """A random operator whose numbers activation checkpointing draws twice: run by torch in both passes."""
        if meta is None and self.device.type == "cpu":  # the partitioner leaves it out
            op, operands = node.args[0], fx.node.map_arg(node.args[1:], lambda n: n.meta["val"])
            state = torch.empty(torch.default_generator.get_state().shape, dtype=torch.uint8, device="meta")
            meta = (state, op(*operands, **fx.node.map_arg(node.kwargs, lambda n: n.meta["val"])))  # type: ignore[operator, misc]
        leaves, spec = tree_flatten(meta)
        if not all(isinstance(m, torch.Tensor) for m in leaves):
            raise RollerError(f"{node.name} gives {meta!r}, not tensors alone")
        results = self.extern(node, tuple(leaves), args, kwargs, random.REASON)
        last = self.externs.pop()
        self.externs.append(replace(last, target=random.Flat(last.target)))
        return tree_unflatten(list(results), spec)

    def extern(self, node: fx.Node, meta: Any, args: Any, kwargs: Any, reason: str) -> Any:
        metas = meta if isinstance(meta, (tuple, list)) else (meta,)
        single = not isinstance(meta, (tuple, list))
        for m in metas:
            symbolic = isinstance(m, torch.Tensor) and any(isinstance(s, torch.SymInt) for s in m.shape)
            depends = (torch.SymInt, torch.SymFloat, torch.SymBool, *((int, float, bool) if single else ()))
            if symbolic or isinstance(m, depends):
                raise RollerError(
                    f"{node.target} ({node.name}) gives sizes or numbers that depend on tensor values"
                )
        results = tuple(
            self.b.extern(None, i, [int(s) for s in m.shape], _dtype(m), [int(s) for s in m.stride()])
            if isinstance(m, torch.Tensor) else None
            for i, m in enumerate(metas)
        )  # fmt: skip
        strides = {
            value: tuple(int(s) for s in n.meta["val"].stride())
            for n in node.all_input_nodes
            if isinstance(value := self.env[n], Node) and n.meta["val"].layout == torch.strided
        }
        self.externs.append(ExternCall(node.target, args, dict(kwargs), results, isinstance(meta, (tuple, list)),
                                       reason, node.name, _where(node), strides))  # fmt: skip
        if isinstance(
            meta, (tuple, list)
        ):  # numbers among several results follow from shapes: those of the trace
            return tuple(
                m if isinstance(m, (int, float, bool)) else r for r, m in zip(results, metas, strict=True)
            )
        return results[0] if results[0] is not None else None

    def called(self, node: fx.Node) -> Any:
        """Lets a rule have a part of its operator done by a call without operands."""

        def call(target: Any, meta: torch.Tensor, reason: str) -> Node:
            strides = [int(s) for s in meta.stride()]
            result = self.b.extern(None, 0, [int(s) for s in meta.shape], _dtype(meta), strides)
            self.externs.append(ExternCall(target, (), {}, (result,), False, reason, node.name, _where(node)))
            return result

        return call

    def outputs(self, node: fx.Node) -> tuple[Output, ...]:
        found: list[Output] = []
        roots: dict[Node, fx.Node] = {}
        values: Sequence[Any] = node.args[0]  # type: ignore[assignment]
        for out in values:
            value = self.env[out] if isinstance(out, fx.Node) else out
            if not isinstance(value, Node):
                found.append(Output(value))
                continue
            meta = out.meta["val"]
            root = _root(out)
            base = value
            while base.kind == "view":
                base = base.args[0]
            fresh = base.kind == "input" and root.op not in ("placeholder", "get_attr")
            fresh |= roots.setdefault(base, root) is not root
            strides = tuple(int(s) for s in meta.stride()) if meta.layout == torch.strided else ()
            found.append(Output(value, strides, fresh))
        return tuple(found)


_UPDATES = ("index_put", "index_copy", "index_add", "index_fill", "scatter", "scatter_add", "slice_scatter",
            "select_scatter", "_unsafe_index_put")  # fmt: skip


def _updates(gm: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """Updates of a few places of a graph input that nothing else reads, and which end up in that input."""
    found: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        if node.target is not torch.ops.aten.copy_.default:
            continue
        target, value = node.args[:2]
        if not isinstance(target, fx.Node) or target.op != "placeholder":
            continue
        if not isinstance(value, fx.Node) or value.op != "call_function":
            continue
        if getattr(value.target, "overloadpacket", None) not in [
            getattr(torch.ops.aten, n) for n in _UPDATES
        ]:
            continue
        reads = [a for a in value.all_input_nodes if a is target]
        meta = target.meta["val"]
        readers = {u for u in target.users if not _unread(u)}
        if (value.args[0] is target and len(reads) == 1 and readers == {value, node} and not _returned(value)
                and sum(a is target for a in _flat((value.args, value.kwargs))) == 1
                and meta.dtype == value.meta["val"].dtype and meta.is_contiguous()):  # fmt: skip
            found[value] = target
    return found


def _returned(node: fx.Node) -> bool:
    """Does the caller get this value or a view of it? Then it needs memory of its own."""
    return any(
        u.op == "output" or u.target is operator.getitem and _returned(u)
        or str(getattr(u.target, "_schema", u).name).replace("::", ".") in VIEW_PACKETS and _returned(u)
        for u in node.users
    )  # fmt: skip


def _unread(node: fx.Node) -> bool:
    """A view that only says where aten.copy writes: its values are not read."""
    packet = str(getattr(node.target, "_schema", node).name).replace("::", ".")  # type: ignore[union-attr]
    return packet in VIEW_PACKETS and all(
        u.target is torch.ops.aten.copy.default and u.args[0] is node or _unread(u) for u in node.users
    )


def _flat(value: Any) -> list[Any]:
    found: list[Any] = []
    fx.node.map_arg(value, found.append)
    return found


def _root(node: fx.Node) -> fx.Node:
    """The FX node whose memory an output shares when views are views."""
    while node.op == "call_function":
        if node.target is operator.getitem or (
            isinstance(node.target, torch._ops.OpOverload)
            and str(node.target._schema.name).replace("::", ".") in VIEW_PACKETS
        ):
            node = node.args[0]  # type: ignore[assignment]
        else:
            break
    return node


def _dtype(meta: torch.Tensor) -> str:
    return DTYPE_NAMES.get(meta.dtype, str(meta.dtype).removeprefix("torch."))


def _device_of(gm: fx.GraphModule) -> torch.device:
    for node in gm.graph.nodes:
        meta = node.meta.get("val")
        if isinstance(meta, torch.Tensor) and (node.op != "placeholder" or meta.dim() > 0):
            return meta.device
    return torch.device("cpu")


def _where(node: fx.Node, prefix: str = "") -> str:
    trace = node.stack_trace or ""
    lines = [line.strip() for line in trace.strip().splitlines()]
    files = [i for i, line in enumerate(lines) if line.startswith("File ")]
    if not files:
        return ""
    at = files[-1]
    return f"{prefix}{lines[at]}" + (f": {lines[at + 1]}" if at + 1 < len(lines) else "")
