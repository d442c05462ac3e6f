"""Bit widths over the graph: quantized tensors keep their width through whatever only moves elements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from ..tesa import TeSA, compact
from .facts import is_tensor, tensor_sources
from .movement import Movement

if TYPE_CHECKING:
    from .analysis import Analysis

_SELECTORS = {"relu", "clone", "contiguous", "alias", "detach", "lift_fresh_copy"}


def propagate_widths(analysis: Analysis, given: Mapping[str, TeSA]) -> dict[fx.Node, Tensor]:
    """Compact int8 width of every tensor: the dtype's, or the mask's or quantizer's where elements are only
    moved.

    Moving commutes with quantization, so widths go forward through views, permutations, slices and
    concatenation (relu too: zero and the unchanged value are both representable). Any arithmetic gives the
    dtype's width back.
    """
    from .analysis import make_call

    widths: dict[fx.Node, Tensor] = {}
    for node in analysis.captured.graph.nodes:
        if not is_tensor(node):
            continue
        like = node.meta["val"]
        plain = torch.full(
            (1,) * like.dim(), min(64, like.element_size() * 8 if like.dtype != torch.bool else 1)
        )
        width = plain.to(torch.int8)
        rule = analysis.rules.get(node)
        if node.op == "get_attr" and str(node.target) in given:
            code = given[str(node.target)].code
            width = torch.where(code == 0, width, code.abs())
        elif rule is not None and tensor_sources(node):
            width = _through(make_call(node, analysis.facts), rule, widths, width)
        widths[node] = compact(width)[0]
    return widths


def _through(call, rule, widths: dict[fx.Node, Tensor], plain: Tensor) -> Tensor:
    sources = call.sources
    if any(bool((widths[s] == widths[s].flatten()[0]).all()) is False for s in sources if s in widths):
        if isinstance(rule, Movement) and not rule.fills and isinstance(call.out, Tensor):
            try:
                moved = call.invoke([widths[s].expand(f.shape).int() for s, f in zip(sources, call.inputs)])
            except (RuntimeError, TypeError, IndexError):
                return plain
            return moved.to(torch.int8)
        return widths[sources[0]] if call.op in _SELECTORS else plain
    if (
        isinstance(rule, Movement) and not rule.fills and isinstance(call.out, Tensor)
    ) or call.op in _SELECTORS:
        known = [int(widths[s].flatten()[0]) for s in sources if s in widths]
        return torch.full_like(plain, max(known)) if known else plain
    return plain
