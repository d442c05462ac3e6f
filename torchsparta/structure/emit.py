"""One call of the smaller graph: what `Rule.emit` works with.

Weights are cut here, what is known about slices that went away is folded into the bias that follows (or added
as a constant where it differs from position to position), and each linear and convolution becomes a
`SparseSite` whose module `transform.choose` gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ..capture import packet_name, symbolic_dims
from ..errors import CaptureError
from ..input_quant import InputQuant
from ..propagation.contraction import Contraction, Convolution, Linear
from ..propagation.facts import Call, is_tensor
from ..tesa import TeSA, compact
from ..transform import Epilogue, SparseSite
from .absorb import quantised_input
from .cut import cut, varying
from .keep import Axis, CallAxes

if TYPE_CHECKING:
    from .build import Builder

aten = torch.ops.aten

# Multiply-adds that must be saved for each element that a gather or scatter moves, before one is worth
# inserting: a core does some 50 multiply-adds in the time in which it moves one float through memory.
MACS_PER_MOVED_ELEMENT = 64


class Emitter:
    """What `Rule.emit` works with: the call, its axes, and the graph under construction."""

    def __init__(self, builder: Builder, node: fx.Node):
        self.builder, self.node = builder, node
        self.node_call: Call = builder.analysis.call(node)
        self.axes = CallAxes(builder.keeps, self.node_call)
        self._target: Any = node.target

    # -- plain calls ---------------------------------------------------------------------------------------
    def arg(self, i: int) -> fx.Node:
        """Tensor input i, cut."""
        source = self.node_call.sources[i]
        if source in self.builder.keeps.static:
            return self.builder.literal(source, self.axes.inp(i))
        return self.builder.env[source]

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.builder.graph.call_function(target, args, kwargs)

    def same(self, **override: Any) -> fx.Node:
        """The same operator on the cut inputs."""
        position = iter(range(len(self.node_call.sources)))

        def mapped(n: fx.Node) -> Any:
            return self.arg(next(position)) if is_tensor(n) else self.builder.env[n]

        args = fx.map_arg(self.node.args, mapped)
        kwargs = fx.map_arg(self.node.kwargs, mapped)
        return self.builder.graph.call_function(self._target, args, {**kwargs, **override})

    def whole(self) -> fx.Node:
        """The same operator with nothing cut."""
        args, kwargs = fx.map_arg((self.node.args, dict(self.node.kwargs)), self.builder.plain)
        return self.builder.graph.call_function(self._target, args, kwargs)

    def sizes(self) -> list[Any]:
        """The shape of the output: counts of what stays, symbolic sizes as they were computed."""
        symbolic = symbolic_dims(self.node_call.out)
        shape = self.node_call.out.shape
        sizes: list[Any] = [int(axis.sum()) for axis in self.axes.out()]
        for d in symbolic:
            found = self.builder.size(shape[d])
            if found is None and -1 in sizes:
                raise CaptureError(
                    f"{self.node.name}: sizes {[str(s) for s in shape]} cannot be rebuilt; fix one in "
                    "example_inputs instead of leaving it open in dynamic_shapes"
                )
            sizes[d] = -1 if found is None else found
        return sizes

    # -- contractions --------------------------------------------------------------------------------------
    def absent(self, i: int, dim: int) -> Tensor | None:
        """Known nonzero values of input i on the indices of `dim` that went away (0 on the others); None if
        none."""
        facts, axis = self.node_call.inputs[i], self.axes.inp(i)[dim]
        if bool(axis.all()) or facts.all_zero_values:
            return None
        shape = [1] * len(facts.shape)
        shape[dim] = -1
        gone = torch.from_numpy(~axis).reshape(shape)
        value = torch.where(gone, facts.value.double(), 0.0)
        return value if bool((value != 0).any()) else None

    def contribution(self, rule: Contraction, node: fx.Node) -> fx.Node:
        """Add what the absent slices of the contracted dimension of a matmul contribute, both operands
        known."""
        found = rule.operands(self.node_call)
        if found is None or isinstance(rule, Convolution):
            return node
        ia, ib, _ = found
        rank_b = len(self.node_call.inputs[ib].shape)
        dim_b = (1 if isinstance(rule, Linear) and not rule.transposed else rank_b - 2) if rank_b > 1 else 0
        value = self.absent(ia, len(self.node_call.inputs[ia].shape) - 1)
        if value is None or self.absent(ib, dim_b) is None:
            return node
        sa, sb = rule._sized(self.node_call, None)
        extra = rule.product(self.node_call)(sa(value), sb(self.node_call.inputs[ib].value).double())
        extra = rule.coefficients(self.node_call)[0] * extra
        return self._add_constant(node, extra)

    def _add_constant(self, node: fx.Node, extra: Tensor) -> fx.Node:
        """node + extra, extra compact at the full output shape."""
        if not bool((extra != 0).any()):
            return node
        value = self._cut_compact(compact(extra)[0]).to(self.node_call.out.dtype)
        constant = self.builder.constant(f"{self.node.name}_absent", value)
        return self.call(aten.add.Tensor, node, constant)

    def _cut_compact(self, value: Tensor, axes: list[Axis] | None = None) -> Tensor:
        axes = axes or self.axes.out()
        return cut(value, [a if value.shape[d] > 1 else np.ones(1, bool) for d, a in enumerate(axes)])

    def linear_site(self, rule: Linear, ix: int, iw: int, ibias: int | None) -> fx.Node:
        """A linear with a weight of its own: cut both sides, fold constants, hand it to the chooser."""
        builder, call = self.builder, self.node_call
        weight, live = self._weight(iw, rule.transposed)
        wanted = self.axes.out()[-1]
        rows, columns = wanted, self.axes.inp(ix)[-1]
        extra = self.absent(ix, len(call.inputs[ix].shape) - 1)
        bias = None if ibias is None else builder.value(call.sources[ibias])
        if bias is not None and bias.dim() == 0:
            bias = bias.expand(len(rows))
        lead = int(np.prod([a.sum() for a in self.axes.out()[:-1]], dtype=np.int64))

        used = columns & live[torch.from_numpy(rows)].any(0).numpy()
        x, quant = self._input(ix)
        saved, moved = lead * int(rows.sum()) * int((columns & ~used).sum()), lead * int(used.sum())
        if used.any() and saved > MACS_PER_MOVED_ELEMENT * moved:
            x = self.call(aten.index_select.default, x, -1, self._positions(columns, used))
            columns = used
        fewer = builder.keeps.minimal[self.node][-1] & wanted
        saved, moved = lead * int((wanted & ~fewer).sum()) * int(columns.sum()), lead * int(wanted.sum())
        if fewer.any() and saved > MACS_PER_MOVED_ELEMENT * moved and not symbolic_dims(call.out):
            rows = fewer
        full = torch.zeros(()) if extra is None else F.linear(extra, weight.cpu().double())
        value = call.inputs[ix].known.new_zeros((1,) * len(call.out.shape), dtype=torch.float64) + full
        bias, rest = self._fold(bias, value, rows, weight)
        fusible = rest is None and rows is wanted
        node = self._site(
            "linear", x, quant, iw, weight, live, rows, columns, bias, ix, {}, rule.transposed, fusible
        )
        if rest is not None:
            axes = self.axes.out()[:-1] + [rows]
            value = self._cut_compact(rest, axes).to(call.out.dtype)
            node = self.call(aten.add.Tensor, node, builder.constant(f"{self.node.name}_absent", value))
        return node if rows is wanted else self._expand(node, len(call.out.shape) - 1, rows)

    def conv_site(self, rule: Convolution) -> fx.Node:
        """A convolution with a weight of its own."""
        builder, call = self.builder, self.node_call
        weight, live = self._weight(1, False)
        groups, per_group = rule.groups(call), weight.shape[1]
        wanted, channels = self.axes.out()[1], self.axes.inp(0)[1]
        rows: Axis = wanted
        columns: Axis = channels
        kept_groups = groups
        if groups > 1:
            grid = channels.reshape(groups, per_group)
            columns, kept_groups = np.asarray(grid.any(axis=0)), int(grid.any(axis=1).sum())
        bias = None if call.index_of(call.at(2)) is None else builder.value(call.sources[2])
        x, quant = self._input(0)
        positions = int(np.prod(call.out.shape[2:], dtype=np.int64)) * int(call.inputs[0].shape[0])
        taps = int(np.prod(weight.shape[2:], dtype=np.int64))
        if groups == 1:
            used = columns & live[torch.from_numpy(rows)].flatten(2).any(2).any(0).numpy()
            saved = positions * int(rows.sum()) * int((columns & ~used).sum()) * taps
            moved = int(np.prod(call.inputs[0].shape[2:], dtype=np.int64)) * int(used.sum())
            if used.any() and saved > MACS_PER_MOVED_ELEMENT * moved * int(call.inputs[0].shape[0]):
                x = self.call(aten.index_select.default, x, 1, self._positions(columns, used))
                columns = used
            fewer = builder.keeps.minimal[self.node][1] & wanted
            saved = positions * int((wanted & ~fewer).sum()) * int(columns.sum()) * taps
            if (
                fewer.any()
                and saved > MACS_PER_MOVED_ELEMENT * positions * int(wanted.sum())
                and not symbolic_dims(call.out)
            ):
                rows = fewer
        extra = self.absent(0, 1)
        value = torch.zeros((1,) * len(call.out.shape), dtype=torch.float64)
        if extra is not None:
            sa, _ = rule._sized(call, None)
            value = rule.product(call)(sa(extra), weight.cpu().double())
        bias, rest = self._fold(bias, compact(value)[0], rows, weight, channel=1)
        names = ("stride", "padding", "dilation")
        attributes = {name: _plain(call.at(p, name)) for p, name in zip((3, 4, 5), names)}
        attributes["groups"] = kept_groups
        fusible = rest is None and rows is wanted
        op = packet_name(self.node.target)
        node = self._site(op, x, quant, 1, weight, live, rows, columns, bias, 0, attributes, False, fusible)
        if rest is not None:
            axes = [self.axes.out()[0], rows, *self.axes.out()[2:]]
            value = self._cut_compact(rest, axes).to(call.out.dtype)
            node = self.call(aten.add.Tensor, node, builder.constant(f"{self.node.name}_absent", value))
        return node if rows is wanted else self._expand(node, 1, rows)

    def attention_site(self, mask: Tensor, scale: float) -> fx.Node:
        """Attention under a mask that is known: only what it leaves visible has to be computed."""
        visible = mask if mask.dtype == torch.bool else mask != float("-inf")
        axes = self.axes.inp(3)
        visible = self._cut_compact(visible, axes)
        kept = [int(a.sum()) if visible.shape[d] > 1 else visible.shape[d] for d, a in enumerate(axes)]
        bias = None if mask.dtype == torch.bool else self._cut_compact(mask, axes)
        tesa = TeSA.from_mask(visible.expand(kept), bits=1)
        queries = tuple(int(a.sum()) for a in self.axes.inp(0))
        site = SparseSite(
            self.node.name, "attention", visible.contiguous(), bias, tesa, queries, (), {"scale": scale},
            trainable=self.builder.trainable,
        )  # fmt: skip
        target = self.builder.module(self.node.name, self.builder.chooser(site))
        self.builder.sites.append((target, site))
        return self.builder.graph.call_module(target, tuple(self.arg(i) for i in range(3)))

    def _input(self, ix: int) -> tuple[fx.Node, InputQuant | None]:
        """Input ix of a site, and how the site has to quantise it: what a fake quantisation in front of it did."""
        x, dtype = self.arg(ix), self.node_call.sources[ix].meta["val"].dtype
        found = quantised_input(x, self.builder.tensors) if dtype == torch.float32 else None
        return (x, None) if found is None else found

    def _weight(self, iw: int, transposed: bool) -> tuple[Tensor, Tensor]:
        """(weight, live) as [N, K, …]: elements that are not needed are zero; live is where a mask leaves
        something."""
        builder, source = self.builder, self.node_call.sources[iw]
        weight = builder.value(source)
        need = builder.analysis.need[source]
        live = torch.ones(weight.shape, dtype=torch.bool)
        if need is not None:
            live = need.expand(weight.shape).clone()
        name = str(source.target)
        if source.op == "get_attr" and name in builder.given:
            live &= (builder.given[name].code != 0).expand(weight.shape)
        if not builder.trainable:
            live &= (weight != 0).cpu()
        weight = torch.where(
            live.to(weight.device), weight, torch.zeros((), dtype=weight.dtype, device=weight.device)
        )
        return (weight.t(), live.t()) if transposed else (weight, live)

    def _fold(
        self, bias: Tensor | None, value: Tensor, rows: Axis, weight: Tensor, channel: int = -1
    ) -> tuple[Tensor | None, Tensor | None]:
        """(bias cut to rows with constants in it, what differs from position to position and must be
        added)."""
        keep = torch.from_numpy(np.flatnonzero(rows))
        cut_bias = None if bias is None else bias.index_select(0, keep.to(bias.device))
        if not bool((value != 0).any()):
            return cut_bias, None
        self.builder.folded.append(self.node.name)
        channel %= value.dim()
        if any(s > 1 for d, s in enumerate(value.shape) if d != channel):
            return cut_bias, value
        flat = value.reshape(-1).expand(len(rows)).index_select(0, keep)
        total = flat if cut_bias is None else cut_bias.cpu().double() + flat
        return total.to(device=weight.device, dtype=weight.dtype), None

    def _positions(self, whole: Axis, kept: Axis) -> fx.Node:
        index = torch.from_numpy(np.flatnonzero(kept[whole]))
        return self.builder.constant(f"{self.node.name}_index", index)

    def _expand(self, node: fx.Node, dim: int, rows: Axis) -> fx.Node:
        """Put the computed rows where they belong among all that the consumers expect; the others are
        known."""
        out, facts = self.axes.out(), self.builder.analysis.facts[self.node]
        wanted, shape = out[dim], [int(a.sum()) for a in out]
        fill = facts.value.expand(
            [s if d in varying(facts) or d == dim else 1 for d, s in enumerate(facts.shape)]
        )
        fill = self._cut_compact(fill).to(self.node_call.out.dtype)
        base = self.call(aten.expand.default, self.builder.constant(f"{self.node.name}_rest", fill), shape)
        return self.call(aten.index_copy.default, base, dim, self._positions(wanted, rows), node)

    def _site(
        self,
        op: str,
        x: fx.Node,
        quantised: InputQuant | None,
        iw: int,
        weight: Tensor,
        live: Tensor,
        rows: Axis,
        columns: Axis,
        bias: Tensor | None,
        ix: int,
        attributes: dict[str, Any],
        transposed: bool,
        fusible: bool,
    ) -> fx.Node:
        builder, source = self.builder, self.node_call.sources[iw]
        before = tuple(weight.shape)
        keep = [rows, columns] + [np.ones(s, bool) for s in weight.shape[2:]]
        small = cut(weight, keep).contiguous()
        name = str(source.target) if source.op == "get_attr" else source.name
        given = builder.given.get(name)
        code = torch.full((1,) * weight.dim(), weight.element_size() * 8)
        value = quant = None
        if given is not None:
            code, value = given.code, given.value
            quant = None if transposed or given.quant is None else given.quant.settled()
            if transposed:
                code, value = code.t(), None if value is None else value.t()
        code = torch.where(live, code, 0)
        tesa = TeSA.from_codes(before, code, None if value is None else value.expand(before), quant)
        for dim, axis in ((0, rows), (1, columns)):
            tesa = tesa.index_select(dim, torch.from_numpy(np.flatnonzero(axis)))
        if before != tuple(small.shape):
            builder.removed[name] = (before, tuple(small.shape))
        shape = [int(a.sum()) for a in self.axes.inp(ix)]
        shape[1 if op.startswith("conv") else -1] = int(columns.sum()) * int(attributes.get("groups", 1))
        epilogue, residual, last = self._epilogue() if fusible else ((), None, self.node)
        path = name.rpartition(".")[0] or self.node.name
        site = SparseSite(
            path, op, small, bias, tesa, tuple(shape), epilogue, attributes, builder.trainable, quantised
        )
        target = builder.module(path, builder.chooser(site))
        builder.sites.append((target, site))
        found = builder.graph.call_module(target, (x,) if residual is None else (x, residual))
        skipped = last
        while skipped is not self.node:
            builder.env[skipped] = found
            skipped = self._absorbed[skipped]
        return found

    def _epilogue(self) -> tuple[tuple[Epilogue, ...], fx.Node | None, fx.Node]:
        """Activations and a residual that follow and that nobody else reads."""
        steps: list[Epilogue] = []
        node, residual = self.node, None
        self._absorbed: dict[fx.Node, fx.Node] = {}
        while len(node.users) == 1 and residual is None:
            (user,) = node.users
            kind = _activation(user)
            if user in self.builder.keeps.static:
                break
            if kind is not None:
                steps.append(Epilogue(kind))
            elif packet_name(user.target) == "clone" and is_tensor(user):
                pass  # what dropout leaves in eval mode
            elif packet_name(user.target) == "add" and self._other(user, node) in self.builder.env:
                other = self._other(user, node)
                if tuple(other.meta["val"].shape) != tuple(user.meta["val"].shape) or other.meta[
                    "val"
                ].dtype != user.meta["val"].dtype:  # fmt: skip
                    break
                residual = self.builder.env[other]
                steps.append(Epilogue("add"))
            else:
                break
            self._absorbed[user] = node
            node = user
        return tuple(steps), residual, node

    @staticmethod
    def _other(user: fx.Node, node: fx.Node) -> Any:
        if len(user.args) != 2 or user.kwargs or not all(isinstance(a, fx.Node) for a in user.args):
            return None
        others: list[Any] = [a for a in user.args if a is not node]
        return others[0] if len(others) == 1 and is_tensor(others[0]) else None


def _activation(node: fx.Node) -> str | None:
    if node.op != "call_function":
        return None
    name = packet_name(node.target)
    if name == "gelu":
        approximate = node.kwargs.get("approximate", node.args[1] if len(node.args) > 1 else "none")
        return "gelu_tanh" if approximate == "tanh" else "gelu"
    if name in ("relu", "silu", "tanh", "sigmoid", "relu6"):
        return name
    if name == "hardtanh" and tuple(node.args[1:]) == (0.0, 6.0):
        return "relu6"
    return None


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value
