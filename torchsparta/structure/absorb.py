"""The fake quantisation of an input, found in the graph: the site behind it takes it over."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from ..capture import packet_name
from ..input_quant import InputQuant


def quantised_input(x: fx.Node, tensors: Mapping[str, Tensor]) -> tuple[fx.Node, InputQuant] | None:
    """(x before, how) where x is (clamp(round(x / scale + zero), qmin, qmax) - zero) * scale, with one scale and one
    zero point out of `tensors`; else None.

    The chain stays for whoever else reads it; without readers it is dead code.
    """
    back, scale = _by_number(x, "mul", tensors)
    back, zero = _by_number(back, "sub", tensors)
    if back is None or packet_name(back.target) != "clamp" or len(back.args) != 3:
        return None
    rounded, low, high = back.args
    if not (
        isinstance(rounded, fx.Node) and isinstance(low, (int, float)) and isinstance(high, (int, float))
    ):
        return None
    if packet_name(rounded.target) != "round" or len(rounded.args) != 1:
        return None
    source = rounded.args[0]
    back, added = _by_number(source if isinstance(source, fx.Node) else None, "add", tensors)
    back, divisor = _by_number(back, "div", tensors)
    if back is None or scale is None or zero is None or scale != divisor or zero != added:
        return None
    return back, InputQuant(scale, zero, int(low), int(high))


def _by_number(
    node: fx.Node | None, name: str, tensors: Mapping[str, Tensor]
) -> tuple[fx.Node | None, float | None]:
    """(a, b) of `name(a, b)` with b a stored float32 number; (None, None) for anything else."""
    if node is None or node.op != "call_function" or packet_name(node.target) != name or len(node.args) != 2:
        return None, None
    a, b = node.args
    if node.kwargs or not isinstance(a, fx.Node) or not isinstance(b, fx.Node) or b.op != "get_attr":
        return None, None
    number = tensors.get(str(b.target))
    if number is None or number.numel() != 1 or number.dtype != torch.float32:
        return None, None
    return a, float(number)
