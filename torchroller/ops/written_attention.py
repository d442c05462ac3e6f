"""Attention that a model writes out: a product, a scale, masks, a softmax, a product.

Where nothing else reads the weights between softmax and second product, both products and all between share one
attention kernel, so the scores never reach memory. Training keeps the weights for the backward pass and stays as
written. A row in which every key is hidden by -inf is NaN here, as it is for the operators one by one.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..expr import ITEMSIZE
from ..graph import FLOATS, Builder, Node
from .attention import reason_against

_PASSING = ("view", "reshape", "_unsafe_view", "expand", "clone", "_to_copy", "contiguous", "alias", "detach")
HIDDEN = -1e30  # a fill below this absorbs any score that it is added to
PRODUCTS = ("bmm", "mm")


def weighted_sums(gm: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """Second products of attention -> the softmax whose result they alone read (through views and casts)."""
    found: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        if _name(node) not in PRODUCTS or not isinstance(node.args[0], fx.Node):
            continue
        at: Any = node.args[0]
        while len(at.users) == 1 and (
            _name(at) in _PASSING or at.target is torch.ops.prims.convert_element_type.default
        ):
            at = at.args[0]
        if (
            _name(at) in ("_softmax", "_safe_softmax")
            and len(at.users) == 1
            and node.args[1] is not node.args[0]
        ):
            rank = at.args[0].meta["val"].dim()
            if int(at.args[1]) % max(rank, 1) == rank - 1:
                found[node] = at
    return found


def _name(node: fx.Node) -> str:
    target = node.target
    if (
        target is operator.getitem
        or not isinstance(target, torch._ops.OpOverload)
        or target.namespace != "aten"
    ):
        return ""
    return str(target._schema.name).split("::")[1]


@dataclass
class _Score:
    q: Node
    k: Node  # [..., n, d]
    scale: float
    mask: Node | None


def attention_of(
    b: Builder, scores: Node, values: Node, dtype: str, shape: tuple[int, ...], safe: bool
) -> Node | None:
    """softmax(scores) values of `shape` [..., m, e] as an attention value; None where that is not what it is."""
    rows, keys = scores.shape[-2:] if len(scores.shape) >= 2 else (0, 0)
    if values.shape[-2] != keys or shape[-2] != rows:
        return None
    found = _peel(b, scores, 1.0)
    if found is None:
        return None
    q, k = (b.reshape(x, (*shape[:-2], *x.shape[-2:])) for x in (found.q, found.k))
    if q.dtype != dtype or reason_against(q, k, values) is not None:
        return None
    mask = (
        None
        if found.mask is None
        else b.reshape(b.expand(found.mask, scores.shape), (*shape[:-2], rows, keys))
    )
    return b.attention(q, k, values, mask, found.scale, False, safe)[0]


def _peel(b: Builder, x: Node, factor: float) -> _Score | None:
    """Takes scores apart: `factor` is what lies between them and the softmax."""
    if x.kind == "view":
        source = x.args[0]
        kept = x.view[0] == "reshape" and len(source.shape) >= 2 and source.shape[-2:] == x.shape[-2:]
        return _reshaped(b, _peel(b, source, factor), source, x) if kept else None
    if x.kind == "dot":
        q, other = x.args
        rank = len(other.shape)
        k = b.permute(other, (*range(rank - 2), rank - 1, rank - 2))
        return _Score(q, k, factor, None)
    if x.kind != "pointwise":
        return None
    if x.fn in ("cast", "copy"):
        if x.args[0].dtype not in FLOATS or x.dtype not in FLOATS or ITEMSIZE[x.dtype] == 8:
            return None
        return _peel(b, x.args[0], factor)
    if x.fn in ("mul", "div") and (number := _number(x.args[1])) is not None:
        return _peel(b, x.args[0], factor * number if x.fn == "mul" else factor / number) if number else None
    if x.fn == "mul" and (number := _number(x.args[0])) is not None:
        return _peel(b, x.args[1], factor * number) if number else None
    if factor != 1.0:  # what is added below a scale is scaled too: left as it is written
        return None
    if x.fn == "add":
        for score, mask in (x.args, x.args[::-1]):
            if _leads_to_dot(score) and not _leads_to_dot(mask):
                return _masked(b, _peel(b, score, factor), b.cast(mask, "float32"))
    if x.fn == "where":
        seen, first, second = x.args
        zero = b.const(0.0, "float32")
        for score, fill, hides in ((first, second, False), (second, first, True)):
            number = _number(fill)
            if number is not None and number < HIDDEN and _leads_to_dot(score):
                low = b.const(number, "float32")
                mask = b.call("where", "float32", seen, *((low, zero) if hides else (zero, low)))
                return _masked(b, _peel(b, score, factor), mask)
    return None


def _masked(b: Builder, found: _Score | None, mask: Node) -> _Score | None:
    if found is None:
        return None
    if found.mask is not None:
        mask = b.call("add", "float32", found.mask, mask)
    return _Score(found.q, found.k, found.scale, mask)


def _reshaped(b: Builder, found: _Score | None, source: Node, x: Node) -> _Score | None:
    """The parts of scores [*batch, m, n] for another grouping of the batch."""
    if found is None:
        return None
    batch = x.shape[:-2]
    mask = None if found.mask is None else b.reshape(b.expand(found.mask, source.shape), x.shape)
    q, k = (b.reshape(y, (*batch, *y.shape[-2:])) for y in (found.q, found.k))
    return _Score(q, k, found.scale, mask)


def _leads_to_dot(x: Node) -> bool:
    while x.kind in ("view", "pointwise") and x.args:
        if x.kind == "view" and x.view[0] != "reshape":
            return False
        if x.kind == "pointwise" and x.fn not in ("cast", "copy", "mul", "div", "add", "where"):
            return False
        if x.kind == "pointwise" and len(x.args) > 1:
            return any(_leads_to_dot(a) for a in x.args)
        x = x.args[0]
    return x.kind == "dot"


def _number(x: Node) -> float | None:
    """The value of a constant, through views."""
    while x.kind == "view" or (x.kind == "pointwise" and x.fn == "cast"):
        x = x.args[0]
    return float(x.number) if x.kind == "const" else None
