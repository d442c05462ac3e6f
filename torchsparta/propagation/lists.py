"""_foreach_*: one pointwise operator on each of a list of tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map

from .facts import Call, Facts
from .rule import Needs, Rule, unknown

if TYPE_CHECKING:
    from ..structure.keep import CallAxes

_WITH_NUMBER = {"maximum": "clamp_min", "minimum": "clamp_max"}


class Foreach(Rule):
    """_foreach_add([a, b], [c, d]) is [add(a, c), add(b, d)]: the rule of `add`, position by position."""

    def _calls(self, call: Call) -> list[tuple[Call, list[int]]] | None:
        """The single calls, each with the inputs of the whole that are its inputs; None if there is no such
        single operator (a tensor of factors for addcmul)."""
        graph, stand_ins = fx.Graph(), {}  # stand-ins: nodes of the real graph would gain users
        for source in call.sources:
            if source not in stand_ins:
                stand_ins[source] = graph.placeholder(source.name)
                stand_ins[source].meta = dict(source.meta)
        offsets, position = {}, 0  # where the tensors of each argument start among the inputs
        for key, value in (*enumerate(call.node.args), *call.node.kwargs.items()):
            offsets[key] = position
            nodes = value if isinstance(value, (tuple, list)) else (value,)
            position += sum(isinstance(n, fx.Node) for n in nodes)
        found = []
        for i, like in enumerate(call.out):
            used: list[int] = []

            def item(key: Any, value: Any, i: int = i, used: list[int] = used) -> Any:
                nested = isinstance(value, (tuple, list))
                value = value[i] if nested else value
                if isinstance(value, fx.Node):
                    used.append(offsets[key] + (i if nested else 0))
                return tree_map(lambda n: stand_ins[n] if isinstance(n, fx.Node) else n, value)

            args: tuple[Any, ...] = tuple(item(k, a) for k, a in enumerate(call.node.args))
            kwargs = {k: item(k, a) for k, a in call.node.kwargs.items()}
            if len(args) == 4 and call.op in ("_foreach_addcmul", "_foreach_addcdiv"):
                *rest, factor = args
                args, kwargs = tuple(rest), {"value": factor}
            target = _single(call.op, args)
            if target is None:
                return None
            node = graph.call_function(target, args, kwargs)
            node.meta["val"] = like
            inputs = tuple(call.inputs[k] for k in used)
            found.append((Call(node, inputs, tuple(stand_ins[call.sources[k]] for k in used), like), used))
        return found

    def forward(self, call: Call) -> Any:
        calls = self._calls(call)
        if calls is None:
            return super().forward(call)
        return tuple(_rule(one).forward(one) for one, _ in calls)

    def backward(self, call: Call, out: Any, need: Any) -> Needs:
        result: Needs = [None] * len(call.inputs)
        calls = self._calls(call)
        if calls is None:
            return super().backward(call, out, need)
        for (one, used), facts, wanted in zip(calls, out, need or ()):
            if wanted is None or not bool(wanted.any()):
                continue
            for k, more in zip(used, _rule(one).backward(one, facts, wanted)):
                if more is not None:
                    more = more.reshape((1,) * (len(call.inputs[k].shape) - more.dim()) + tuple(more.shape))
                    old = result[k]
                    result[k] = more if old is None else old | more
        return result

    def keep(self, axes: CallAxes) -> None:
        calls = self._calls(axes.call)
        if calls is None:
            axes.lock_all()
            return
        for i, (_, used) in enumerate(calls):
            out = axes.out(i)
            for k in used:
                x = axes.inp(k)
                for back in range(1, len(x) + 1):
                    if back <= len(out) and len(x[-back]) == len(out[-back]):
                        axes.tie(x[-back], out[-back])


def _single(name: str, args: tuple[Any, ...]) -> Any:
    """The overload of the pointwise operator behind `_foreach_…` that takes these arguments; None if none
    does."""
    base = name.removeprefix("_foreach_")
    if len(args) > 1 and not isinstance(args[1], fx.Node):
        base = _WITH_NUMBER.get(base, base)
    packet = getattr(torch.ops.aten, base)
    trial = tree_map(lambda n: torch.zeros(()) if isinstance(n, fx.Node) else n, args)
    for overload in packet.overloads():
        found = getattr(packet, overload)
        if any(a.is_out for a in found._schema.arguments):
            continue
        try:
            if isinstance(found(*trial), Tensor):
                return found
        except (RuntimeError, TypeError, NotImplementedError):
            continue
    return None


class _Unknown(Rule):
    def forward(self, call: Call) -> Facts:
        found = unknown(call.out, call.confidence)
        assert isinstance(found, Facts)
        return found


def _rule(call: Call) -> Rule:
    from .table import rule_for

    return rule_for(call.node.target) or _Unknown()
