"""LSTM: hidden units that never leave zero, and units that nobody reads.

With gates i, f, g, o: c' = f c + i g, h = o tanh(c'). A unit whose g-row (both weights and both biases) is
zero has g = tanh(0) = 0, so c and h stay 0 if they start at 0. That is zero; the other gates of the unit do
not matter then. A unit is not needed if its output is not and every column that reads it, recurrent ones
included, is zero.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..capture import symbolic_dims
from .facts import Call, Facts
from .rule import Needs, Rule, everything, unknown

if TYPE_CHECKING:
    from ..structure.emit import Emitter
    from ..structure.keep import CallAxes


class Lstm(Rule):
    """aten.lstm.input(x, [h0, c0], params, has_biases, layers, dropout, train, bidirectional,
    batch_first)."""

    def _layout(self, call: Call) -> tuple[bool, int, bool, int] | None:
        """(biases, layers, bidirectional, hidden); None for what this rule does not cover (projections,
        dropout)."""
        if call.op != "lstm" or not isinstance(call.at(3), bool):
            return None
        biases, layers, dropout, train, both = (call.at(p) for p in (3, 4, 5, 6, 7))
        per = 4 if biases else 2
        directions = 2 if both else 1
        if (dropout and train) or len(call.inputs) != 3 + per * layers * directions:
            return None
        return biases, layers, both, call.inputs[4].shape[1]

    def _weights(self, call: Call, layer: int, direction: int) -> list[int]:
        biases, _, both, _ = self._layout(call)  # type: ignore[misc]
        per = 4 if biases else 2
        start = 3 + per * (layer * (2 if both else 1) + direction)
        return list(range(start, start + per))

    def zero_units(self, call: Call) -> list[list[Tensor]] | None:
        """[layer][direction] -> bool [hidden]: units whose output is always 0."""
        found = self._layout(call)
        if found is None:
            return None
        biases, layers, both, hidden = found
        directions = 2 if both else 1
        x, h0, c0 = call.inputs[:3]
        incoming = x.zero.flatten(0, -2).all(0).expand(x.shape[-1])
        result = []
        for layer in range(layers):
            units = []
            for direction in range(directions):
                index = self._weights(call, layer, direction)
                k = layer * directions + direction
                start = _state_zero(h0, k, hidden) & _state_zero(c0, k, hidden)
                ih, hh = (
                    call.inputs[i].full(call.inputs[i].zero)[2 * hidden : 3 * hidden] for i in index[:2]
                )
                still = start.clone()
                for i in index[2:]:
                    still &= call.inputs[i].full(call.inputs[i].zero)[2 * hidden : 3 * hidden]
                still &= (ih | incoming).all(1)
                while True:  # a recurrent weight may read units that stay zero themselves
                    smaller = still & (hh | still).all(1)
                    if torch.equal(smaller, still):
                        break
                    still = smaller
                units.append(still)
            incoming = torch.cat(units)
            result.append(units)
        return result

    def forward(self, call: Call) -> Any:
        units = self.zero_units(call)
        if units is None:
            return unknown(call.out, call.confidence)
        zero = torch.zeros((), dtype=torch.float64)
        last = torch.cat(units[-1])
        states = torch.stack([u for layer in units for u in layer])
        if call.out[1].dim() == 3:
            states = states.unsqueeze(1)
        outputs = Facts.of(
            last.reshape(*[1] * (call.out[0].dim() - 1), -1), zero, call.out[0], call.confidence
        )
        return (outputs,) + tuple(Facts.of(states, zero, like, call.confidence) for like in call.out[1:3])

    def backward(self, call: Call, out: Any, need: Any) -> Needs:
        found, stuck = self._layout(call), self.zero_units(call)
        if found is None or stuck is None:
            return super().backward(call, out, need)
        if all(n is None or not bool(n.any()) for n in need):
            return [None] * len(call.inputs)
        biases, layers, both, hidden = found
        directions = 2 if both else 1
        result: Needs = [None, everything(call.inputs[1]), everything(call.inputs[2])] + [None] * (
            len(call.inputs) - 3
        )
        above = torch.zeros(directions * hidden, dtype=torch.bool)
        if need[0] is not None:
            above = need[0].flatten(0, -2).any(0).expand(directions * hidden).clone()
        for layer in reversed(range(layers)):
            below = None
            for direction in range(directions):
                index = self._weights(call, layer, direction)
                k = layer * directions + direction
                wanted = above[direction * hidden : (direction + 1) * hidden].clone()
                for state in (need[1], need[2]):
                    if state is not None:
                        rows = state.expand(layers * directions, *state.shape[1:])[k]
                        wanted |= rows.reshape(-1, rows.shape[-1]).any(0)
                wanted &= ~stuck[layer][direction]
                hh = call.inputs[index[1]].full(call.inputs[index[1]].maybe).unflatten(0, (4, hidden))
                while True:  # units that needed units read
                    grown = wanted | ((hh & wanted[None, :, None]).any(0).any(0) & ~stuck[layer][direction])
                    if torch.equal(grown, wanted):
                        break
                    wanted = grown
                rows = wanted.repeat(4)
                # a unit that is stuck at zero stays there only while its g-row is zero, which it is already
                result[index[0]] = rows[:, None] & self._columns(call, layer, stuck)
                result[index[1]] = rows[:, None] & ~stuck[layer][direction][None, :]
                for i in index[2:]:
                    result[i] = rows
                ih = call.inputs[index[0]]
                reads = (ih.full(ih.maybe) & rows[:, None]).any(0)
                below = reads if below is None else below | reads
            above = below  # type: ignore[assignment]
        result[0] = above.reshape(*[1] * (len(call.inputs[0].shape) - 1), -1)
        return result

    def _columns(self, call: Call, layer: int, stuck: list[list[Tensor]]) -> Tensor:
        """bool [1, width]: inputs of `layer` that may be something other than zero."""
        if layer:
            return ~torch.cat(stuck[layer - 1])[None, :]
        x = call.inputs[0]
        return x.maybe.flatten(0, -2).any(0).expand(x.shape[-1])[None, :]

    # -- structure -----------------------------------------------------------------------------------------
    def _shrinkable(self, axes: CallAxes) -> bool:
        """Weights and initial states are static, final states unread, sizes fixed, nothing is trained."""
        call, keeps = axes.call, axes.keeps
        need = keeps.analysis.need[call.node] or ()
        return (
            self._layout(call) is not None
            and keeps.analysis.parameters_fixed
            and all(axes.static(i) for i in range(1, len(call.inputs)))
            and all(n is None for n in need[1:])
            and call.out[1].dim() == 3
            and not symbolic_dims(call.out[0])
        )

    def kept_units(self, axes: CallAxes, layer: int) -> np.ndarray:
        """bool [hidden]: units of a layer that some direction needs; directions of one call have one size."""
        call, analysis = axes.call, axes.keeps.analysis
        _, layers, both, hidden = self._layout(call)  # type: ignore[misc]
        kept = np.zeros(hidden, bool)
        wanted = self.backward(call, analysis.facts[call.node], analysis.need[call.node])
        for direction in range(2 if both else 1):
            rows = wanted[self._weights(call, layer, direction)[1]]
            if rows is not None:
                rows = rows.expand(4 * hidden, hidden).any(1) if rows.dim() == 2 else rows
                kept |= rows.unflatten(0, (4, hidden)).any(0).numpy()
            for i in self._weights(call, layer, direction)[2:]:
                bias = wanted[i]
                if bias is not None:
                    kept |= bias.expand(4 * hidden).unflatten(0, (4, hidden)).any(0).numpy()
            if layer == layers - 1:
                kept |= axes.out(0)[-1][direction * hidden : (direction + 1) * hidden]
        if not kept.any():
            kept[0] = True
        return kept

    def keep(self, axes: CallAxes) -> None:
        if not self._shrinkable(axes):
            axes.lock_all()
            return
        call = axes.call
        x, out = axes.inp(0), axes.out(0)
        _, layers, both, _ = self._layout(call)  # type: ignore[misc]
        for d in range(len(x) - 1):
            axes.lock(x[d])
            axes.lock(out[d])
        value = call.inputs[0].value  # constants on slices that go would be missed by the gates
        axes.lock(x[-1], (value != 0).flatten(0, -2).any(0).expand(len(x[-1])).numpy())
        axes.lock(out[-1], np.concatenate([self.kept_units(axes, layers - 1)] * (2 if both else 1)))
        for part in (1, 2):
            for axis in axes.out(part):
                axes.lock(axis)

    def emit(self, em: Emitter) -> Any:
        axes, call, builder = em.axes, em.node_call, em.builder
        if not self._shrinkable(axes):
            return em.same()
        biases, layers, both, hidden = self._layout(call)  # type: ignore[misc]
        units = [self.kept_units(axes, layer) for layer in range(layers)]
        columns = axes.inp(0)[-1]
        if all(u.all() for u in units) and bool(columns.all()):
            return em.whole()
        directions, x = 2 if both else 1, em.arg(0)
        states = [builder.value(call.sources[i]) for i in (1, 2)]
        for layer in range(layers):
            keep, gates = units[layer], np.tile(units[layer], 4)
            which = slice(layer * directions, (layer + 1) * directions)
            start = [
                builder.constant(f"{em.node.name}_{n}0", s[which][..., torch.from_numpy(keep)])
                for n, s in zip("hc", states)
            ]
            params = []
            for direction in range(directions):
                for k, i in enumerate(self._weights(call, layer, direction)):
                    weight = builder.value(call.sources[i])[torch.from_numpy(gates)]
                    if k < 2:
                        weight = weight[:, torch.from_numpy(columns if k == 0 else keep)]
                    name = str(call.sources[i].target)
                    builder.removed[name] = (call.inputs[i].shape, tuple(weight.shape))
                    held = torch.nn.Parameter(weight.contiguous(), requires_grad=False)
                    params.append(builder.graph.get_attr(builder.hold(name, held)))
            found = em.call(
                call.node.target,
                x,
                start,
                params,
                biases,
                1,
                0.0,
                False,
                both,
                bool(call.at(8, "batch_first")),
            )
            x = em.call(operator.getitem, found, 0)
            columns = np.concatenate([keep] * directions)
        return (x, None, None)


def _state_zero(state: Facts, index: int, hidden: int) -> Tensor:
    zero = state.zero.expand(state.shape[0], *state.zero.shape[1:])[index]
    zero = zero.flatten(0, -2).all(0) if zero.dim() > 1 else zero
    return zero.expand(hidden)
