"""Recurrent layers: one product for the inputs of all steps, then a product and a few gates per step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import NotLowered
from ..graph import Node
from .contraction import DOT_TYPES
from .registry import Context, rule

LONGEST = 512  # steps that are written out one after the other
LSTM = 2  # the number of the mode in ATen


@rule("aten._thnn_fused_lstm_cell", given=2)
def _lstm_cell(cx: Context, from_input: Node, from_hidden: Node, cell: Node, b_input: Node | None = None,
               b_hidden: Node | None = None) -> Any:  # fmt: skip
    """What nn.LSTMCell calls on a GPU: (hidden, cell) of gates[batch, 4 * width] that are two products already."""
    b, f32 = cx.b, "float32"
    if cell.dtype not in DOT_TYPES:
        raise NotLowered(f"an LSTM cell of {cell.dtype}")
    gates = b.call("add", f32, b.cast(from_input, f32), b.cast(from_hidden, f32))
    for bias in (b_input, b_hidden):
        if bias is not None:
            gates = b.call("add", f32, gates, b.expand(b.cast(bias, f32), gates.shape))
    hidden, after = _gated(cx, gates, b.cast(cell, f32))
    return b.cast(hidden, cell.dtype), b.cast(after, cell.dtype)


def _gated(cx: Context, gates: Node, cell: Node) -> tuple[Node, Node]:
    """(hidden, cell) in float32 after the gates input, forget, cell and output of one step."""
    b, f32, width = cx.b, "float32", cell.shape[-1]
    i, f, g, o = (b.slice(gates, 1, n * width, width) for n in range(4))
    i, f, o = (b.call("sigmoid", f32, v) for v in (i, f, o))
    after = b.call("add", f32, b.call("mul", f32, f, cell), b.call("mul", f32, i, b.call("tanh", f32, g)))
    return b.call("mul", f32, o, b.call("tanh", f32, after)), after


@rule("aten.mkldnn_rnn_layer")
def _lstm(cx: Context, x: Node, w_input: Node, w_hidden: Node, b_input: Node, b_hidden: Node, h: Node, c: Node,
          reverse: bool, batch_sizes: Sequence[int], mode: int, width: int, layers: int, has_biases: bool,
          bidirectional: bool, batch_first: bool, train: bool) -> Any:  # fmt: skip
    """x[steps, batch, inputs] -> (output[steps, batch, width], h, c); gates: input, forget, cell, output."""
    b, f32 = cx.b, "float32"
    if mode != LSTM or batch_sizes or layers != 1 or bidirectional or batch_first or train or 3 in cx.used:
        raise NotLowered("a recurrent layer that is not one direction of an LSTM for inference")
    if x.dtype not in DOT_TYPES or x.shape[0] > LONGEST:
        raise NotLowered(f"an LSTM of {x.shape[0]} steps of {x.dtype}")
    steps, batch, inputs = x.shape
    gates = b.dot(b.reshape(x, (steps * batch, inputs)), b.permute(w_input, (1, 0)), f32)
    if has_biases:
        for bias in (b_input, b_hidden):
            gates = b.call("add", f32, gates, b.cast(bias, f32))
    gates = b.reshape(gates, (steps, batch, 4 * width))
    hidden, cell = (b.reshape(v, (batch, width)) for v in (h, c))
    cell, turned = b.cast(cell, f32), b.permute(w_hidden, (1, 0))
    found: list[Node] = [hidden] * steps
    for t in reversed(range(steps)) if reverse else range(steps):
        now = b.call("add", f32, b.dot(hidden, turned, f32), b.select(gates, 0, t))
        hidden, cell = _gated(cx, now, cell)
        hidden = b.cast(hidden, x.dtype)
        found[t] = hidden
    out = (
        b.cat([b.reshape(v, (1, batch, width)) for v in found], 0)
        if steps > 1
        else b.reshape(hidden, (1, batch, width))
    )
    last = tuple(tuple(int(s) for s in cx.out(n).shape) for n in (1, 2))
    return out, b.reshape(hidden, last[0]), b.reshape(b.cast(cell, x.dtype), last[1]), None
