"""Reductions, softmax, norms and pooling: operators that mix elements along some dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .facts import Call, Facts, any_over
from .rule import Needs, Rule, everything, unknown

if TYPE_CHECKING:
    from ..structure.emit import Emitter
    from ..structure.keep import CallAxes


class Reduction(Rule):
    """sum, mean, amax, var, cumsum, argmax, …: each output element depends on the dimensions in `dims`.

    kind "reduce": they disappear or become 1; "scan": they stay (cumsum, softmax, sort).
    """

    def __init__(self, dim: int | None = 1, kind: str = "reduce"):
        self.dim, self.kind = dim, kind

    def dims(self, call: Call) -> list[int]:
        rank = len(call.inputs[0].shape)
        given = None if self.dim is None else call.at(self.dim, "dim")
        if isinstance(given, bool) or given is None or (isinstance(given, (list, tuple)) and not given):
            return list(range(rank))
        return [d % rank for d in (given if isinstance(given, (list, tuple)) else [given])]

    def forward(self, call: Call) -> Any:
        x = call.inputs[0]
        if len(call.inputs) > 1 or x.none_known:
            return unknown(call.out, call.confidence)
        dims = self.dims(call)
        sized = [x.shape[d] if d in dims else x.known.shape[d] for d in range(len(x.shape))]
        rows = x.known
        for d in dims:
            rows = rows.all(d, keepdim=True)
        if not bool(rows.any()):
            return unknown(call.out, call.confidence)
        value = x.as_input().expand(sized)
        if isinstance(call.out, (tuple, list)):
            if not bool(rows.all()):
                return unknown(call.out, call.confidence)
            results = call.invoke([value])
            return tuple(
                Facts.of(torch.ones((), dtype=torch.bool), r, v, call.confidence)
                for r, v in zip(results, call.out)
            )
        result = call.invoke([value])
        if result.is_complex():
            return Facts.unknown(call.out, call.confidence)
        known = rows if result.dim() == rows.dim() else rows.squeeze(dims)
        return Facts.of(known, result.double(), call.out, call.confidence)

    def backward(self, call: Call, out: Any, need: Any) -> Needs:
        if len(call.inputs) > 1 or isinstance(need, (tuple, list)):
            return super().backward(call, out, need)
        if not bool(need.any()):
            return [None]
        x, dims = call.inputs[0], self.dims(call)
        wanted = need
        if need.dim() != len(x.shape):
            for d in sorted(dims):
                wanted = wanted.unsqueeze(d)
        for d in dims:
            wanted = wanted.any(d, keepdim=True)
        return [wanted]

    def keep(self, axes: CallAxes) -> None:
        if len(axes.call.inputs) > 1 or isinstance(axes.call.out, (tuple, list)):
            axes.lock_all()
            return
        dims, x, out = self.dims(axes.call), axes.inp(0), axes.out()
        position = 0
        for d in range(len(x)):
            kept = len(out) == len(x)
            if d in dims:
                axes.lock(x[d])
                if kept:
                    axes.lock(out[d])
            else:
                axes.tie(x[d], out[d if kept else position])
                position += 1


class Softmax(Reduction):
    """softmax along one dimension: -inf gives 0 (a row that is -inf throughout is not assumed), 0 gives not
    0."""

    def __init__(self) -> None:
        super().__init__(1, "scan")

    def forward(self, call: Call) -> Any:
        found = super().forward(call)
        x = call.inputs[0]
        hidden = x.known & (x.value == float("-inf"))
        if call.op not in ("softmax", "_softmax", "_safe_softmax") or not bool(hidden.any()):
            return found
        known = found.known | hidden
        return Facts.of(known, torch.where(hidden, 0.0, found.value), call.out, call.confidence)

    def backward(self, call: Call, out: Any, need: Any) -> Needs:
        (wanted,) = super().backward(call, out, need)
        if wanted is not None and call.op != "_log_softmax":
            # rows whose needed results are all known zeros still need their -inf: only whole rows drop out
            return [wanted]
        return [wanted]


class ChannelAffine(Rule):
    """batch_norm in eval mode: per channel, out = (x - mean) / sqrt(var + eps) * w + b; channel dimension 1.

    x is argument 0, w and b are 1 and 2, mean and var 3 and 4; one output, or a tuple whose first is it.
    """

    def forward(self, call: Call) -> Any:
        x = call.inputs[0]
        like = call.out[0] if isinstance(call.out, (tuple, list)) else call.out
        result = self._first(call, x, like)
        if isinstance(call.out, (tuple, list)):
            return (result,) + tuple(unknown(v, call.confidence) for v in call.out[1:])
        return result

    def training(self, call: Call) -> bool:
        return bool(call.at(5)) if call.op == "batch_norm" else False

    def _first(self, call: Call, x: Facts, like: Any) -> Facts:
        if self.training(call):
            return Facts.unknown(like, call.confidence)
        rank = len(x.shape)
        one = torch.ones((), dtype=torch.float64)

        def per_channel(position: int, default: float) -> tuple[Tensor, Tensor]:
            f = call.facts_at(position)
            if f is None:
                return torch.ones((), dtype=torch.bool), one * default
            shape = (1, -1) + (1,) * (rank - 2)
            return f.full(f.known).reshape(shape), f.full(f.value).double().reshape(shape)

        (kw, w), (kb, b), (km, m), (kv, v) = (
            per_channel(p, d) for p, d in ((1, 1.0), (2, 0.0), (3, 0.0), (4, 1.0))
        )
        eps = float(call.at(7 if call.op == "batch_norm" else 6))
        scaled = (x.value - m) / torch.sqrt(v + eps) * w
        known = (x.known & km & kv & kw) | (kw & (w == 0))
        scaled = torch.where(kw & (w == 0), 0.0, scaled)
        return Facts.of(known & kb, scaled + b, like, call.confidence)

    def backward(self, call: Call, out: Any, need: Any) -> Needs:
        needed = need[0] if isinstance(need, (tuple, list)) else need
        if self.training(call):
            return super().backward(call, out, need)
        if needed is None or not bool(needed.any()):
            return [None] * len(call.inputs)
        x, w = call.inputs[0], call.facts_at(1)
        shape = (1, -1) + (1,) * (len(x.shape) - 2)
        scale_matters = torch.ones((), dtype=torch.bool) if w is None else w.full(w.maybe).reshape(shape)
        channels = any_over(needed, (1, x.shape[1]) + (1,) * (len(x.shape) - 2)).reshape(-1)
        channels = channels.expand(x.shape[1])
        result: Needs = [None] * len(call.inputs)
        for i, source in enumerate(call.sources):
            if i == 0:
                result[i] = needed & scale_matters
            elif call.at(2) is source:
                result[i] = channels
            else:
                result[i] = channels & scale_matters.reshape(-1) if call.at(1) is not source else channels
        return result

    def keep(self, axes: CallAxes) -> None:
        out = axes.out(0) if isinstance(axes.call.out, (tuple, list)) else axes.out()
        x = axes.inp(0)
        if self.training(axes.call):
            axes.lock_all()
            return
        for a, b in zip(x, out):
            axes.tie(a, b)
        for i in range(1, len(axes.call.inputs)):
            axes.tie(axes.inp(i)[0], x[1])
        if isinstance(axes.call.out, (tuple, list)):
            for i in range(1, len(axes.call.out)):
                if isinstance(axes.call.out[i], Tensor):
                    for a in axes.out(i):
                        axes.lock(a) if len(a) != len(x[1]) else axes.tie(a, x[1])


class LayerNorm(Rule):
    """layer_norm, rms_norm, group_norm: out = normalised(x) * w + b. Known where w is 0, else where all of x
    is."""

    def forward(self, call: Call) -> Any:
        result = super().forward(call)
        like = call.out[0] if isinstance(call.out, (tuple, list)) else call.out
        first = result[0] if isinstance(result, tuple) else result
        w, b = self._affine(call)
        if first.all_known or w is None:
            return result
        shape = self._shape(call, w)
        known = w.full(w.zero).reshape(shape)
        value = torch.zeros((), dtype=torch.float64)
        if b is not None:
            known = known & b.full(b.known).reshape(shape)
            value = b.full(b.value).reshape(shape)
        facts = Facts.of(known, value, like, call.confidence)
        return (facts,) + tuple(result[1:]) if isinstance(result, tuple) else facts

    def _affine(self, call: Call) -> tuple[Facts | None, Facts | None]:
        positions = {"layer_norm": (2, 3), "native_layer_norm": (2, 3), "group_norm": (2, 3)}
        if call.op in positions:
            return call.facts_at(positions[call.op][0]), call.facts_at(positions[call.op][1])
        if call.op == "native_group_norm":
            return call.facts_at(1), call.facts_at(2)
        return call.facts_at(2), None  # rms_norm

    def _channels_first(self, call: Call) -> bool:
        return "group_norm" in call.op

    def _shape(self, call: Call, w: Facts) -> tuple[int, ...]:
        rank = len(call.inputs[0].shape)
        if self._channels_first(call):
            return (1, -1) + (1,) * (rank - 2)
        return (1,) * (rank - len(w.shape)) + w.shape

    def backward(self, call: Call, out: Any, need: Any) -> Needs:
        needed = need[0] if isinstance(need, (tuple, list)) else need
        if isinstance(need, (tuple, list)) and any(n is not None and bool(n.any()) for n in need[1:]):
            return super().backward(call, out, need)
        if needed is None or not bool(needed.any()):
            return [None] * len(call.inputs)
        x = call.inputs[0]
        w, _ = self._affine(call)
        rank = len(x.shape)
        matters = needed
        if w is not None:
            matters = needed & w.full(w.maybe).reshape(self._shape(call, w))
        mixed = range(1, rank) if self._channels_first(call) else range(rank - self._normalised(call), rank)
        wanted = matters
        for d in mixed:
            wanted = wanted.any(d, keepdim=True)
        result: Needs = [None] * len(call.inputs)
        for i, f in enumerate(call.inputs):
            if i == 0:
                result[i] = wanted
                continue
            if self._channels_first(call):
                flat = any_over(needed, (1, x.shape[1]) + (1,) * (rank - 2)).reshape(-1)
            else:
                flat = any_over(needed, f.shape)
            result[i] = flat.expand(f.shape)
        return result

    def _normalised(self, call: Call) -> int:
        return len(call.at(1))

    def keep(self, axes: CallAxes) -> None:
        outs = len(axes.call.out) if isinstance(axes.call.out, (tuple, list)) else 1
        if outs > 1 or self._channels_first(axes.call):
            axes.lock_all()
            return
        x, out, mixed = axes.inp(0), axes.out(), self._normalised(axes.call)
        for d in range(len(x)):
            if d < len(x) - mixed:
                axes.tie(x[d], out[d])
            else:
                axes.lock(x[d])
                axes.lock(out[d])
        for i in range(1, len(axes.call.inputs)):
            for a in axes.inp(i):
                axes.lock(a)


class Window(Rule):
    """Pooling, interpolation: mixes positions, never channels; the last `spatial` dimensions are
    positions."""

    def __init__(self, spatial: int):
        self.spatial = spatial

    def forward(self, call: Call) -> Any:
        x = call.inputs[0]
        if len(call.inputs) > 1 or x.none_known:
            return unknown(call.out, call.confidence)
        rank = len(x.shape)
        sized = [x.shape[d] if d >= rank - self.spatial else x.known.shape[d] for d in range(rank)]
        known = x.known
        for d in range(rank - self.spatial, rank):
            known = known.all(d, keepdim=True)
        if not bool(known.any()):
            return unknown(call.out, call.confidence)
        result = call.invoke([x.as_input().expand(sized)])
        if isinstance(call.out, (tuple, list)):
            rest = tuple(unknown(v, call.confidence) for v in call.out[1:])
            return (Facts.of(known, result[0], call.out[0], call.confidence), *rest)
        return Facts.of(known, result, call.out, call.confidence)

    def backward(self, call: Call, out: Any, need: Any) -> Needs:
        if len(call.inputs) > 1:
            return super().backward(call, out, need)
        wanted = None
        for n in need if isinstance(need, (tuple, list)) else [need]:
            if n is not None and bool(n.any()):
                for d in range(n.dim() - self.spatial, n.dim()):
                    n = n.any(d, keepdim=True)
                wanted = n if wanted is None else wanted | n
        return [wanted]

    def keep(self, axes: CallAxes) -> None:
        if len(axes.call.inputs) > 1:
            axes.lock_all()
            return
        count = len(axes.call.out) if isinstance(axes.call.out, (tuple, list)) else 1
        x = axes.inp(0)
        for i in range(count):
            out = axes.out(i) if isinstance(axes.call.out, (tuple, list)) else axes.out()
            for d in range(len(x)):
                if d < len(x) - self.spatial:
                    axes.tie(x[d], out[d])
                else:
                    axes.lock(x[d])
                    axes.lock(out[d])

    def emit(self, em: Emitter) -> Any:
        return em.same()


def needs_nothing(call: Call) -> Needs:
    return [None] * len(call.inputs)


def needs_everything(call: Call) -> Needs:
    return [everything(f) for f in call.inputs]
