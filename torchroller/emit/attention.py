"""Attention kernels: softmax(q k^T * scale + mask) v, one pass over the keys.

A program owns BLOCK_M queries of one head. It walks the keys in steps of BLOCK_N and keeps for each query the
running maximum, the running sum of exponentials and the weighted sum of values, rescaled when the maximum grows
(Milakov and Gimelshein, Online normalizer calculation for softmax, 2018; Dao et al., FlashAttention, 2022).
"""

from __future__ import annotations

import math

from ..expr import Axis, TensorExpr
from .common import Body, Tiling, TritonSource, convert_store, dependences, finish, next_power, wide_index

HALF = ("float16", "bfloat16")
TAIL = "tail"  # in a tiling: the width of a last step of its own; 0: none


def is_attention(expr: TensorExpr) -> bool:
    return len(expr.dots) == 2


LONE = Axis("m", 1)  # stands for the queries where there is one alone, whose axis an expression does not have


def roles(expr: TensorExpr) -> tuple[list[Axis], Axis, Axis, Axis, Axis]:
    """(batch axes, m, e, n, d) of an attention expression.

    Heads that share keys are rows as much as queries are; the longer of the two axes is m, so that one query of
    grouped-query attention reads each key once for its whole group.
    """
    depends = dependences(expr)
    first, second = expr.dots
    q, k, v = depends[first.args[0]], depends[first.args[1]], depends[second.args[1]]
    by_name = {a.name: a for a in expr.axes}
    d, n = by_name[first.over[0]], by_name[second.over[0]]
    (e,) = [a for a in expr.spatial if a.name in v and a.name not in q]
    rows = [a for a in expr.spatial if a.name in q and a.name not in k and a.name not in v]
    m = max(rows, key=lambda a: a.extent, default=LONE)
    batch = [a for a in expr.spatial if a not in (m, e)]
    return batch, m, e, n, d


def attention_tiling(expr: TensorExpr, units: int) -> Tiling:
    """Queries x keys of one step; whole heads. `units` 0: a GPU.

    On a CPU the tiles of least `_cost`; keys that fill no whole step are a step of their own, as narrow as they allow.
    """
    batch, m, e, n, d = roles(expr)
    if not units:
        sizes = {m: min(next_power(m.extent), 64), n: min(next_power(n.extent), 64)}
        sizes |= {e: next_power(e.extent), d: next_power(d.extent)}
        return Tiling(tuple((a.name, max(size, 16)) for a, size in sizes.items()), num_warps=4, num_stages=2)
    causal = _causal(expr, _score(expr), m, n)
    heads = math.prod(a.extent for a in batch)
    bm, bn = min(
        ((a, b) for a in _sizes(m.extent, 128) for b in _sizes(n.extent, 256)),
        key=lambda tile: _cost(tile, m.extent, n.extent, heads, units, causal),
    )
    blocks = {m.name: bm, n.name: bn, e.name: next_power(e.extent), d.name: next_power(d.extent)}
    left = n.extent % bn
    return Tiling((*blocks.items(), (TAIL, next_power(left) if left else 0)), num_warps=4, num_stages=1)


def _sizes(extent: int, most: int) -> list[int]:
    """Powers of two up to the first that covers `extent`, from 16."""
    top = next_power(min(extent, most))
    return [size for size in (16, 32, 64, 128, 256) if size < top] + [top]


# Beside its share of both products a query costs so many keys' worth at each step (its maximum, its sum, the rescaled
# row), and a key, packed anew for each tile of queries, so many queries' worth. Fitted to 55 timings on a Zen 4 core.
_QUERY_KEYS, _KEY_QUERIES = 4, 2


def _cost(tile: tuple[int, int], queries: int, keys: int, heads: int, units: int, causal: bool) -> float:
    """Work of the unit that has most to do, in scores."""
    bm, bn = tile
    whole, left = divmod(keys, bn)
    widths = [bn] * whole + ([next_power(left)] if left else [])
    tiles = -(-queries // bm)
    one = [sum((bm + _KEY_QUERIES) * (w + _QUERY_KEYS) for w in widths[: _steps(t, bm, bn, len(widths), causal)])
           for t in range(tiles)]  # fmt: skip
    programs = heads * tiles
    return sum(one) / tiles * -(-programs // units)


def _steps(tile: int, bm: int, bn: int, steps: int, causal: bool) -> int:
    return min(steps, -(-(tile + 1) * bm // bn)) if causal else steps


def emit_attention(expr: TensorExpr, tiling: Tiling, name: str, check: bool = False) -> TritonSource:
    """Triton text of an attention kernel."""
    batch, m, e, n, d = roles(expr)
    depends = dependences(expr)
    first, second = expr.dots
    bm, bn, be, bd = (tiling.of(a.name) for a in (m, n, e, d))
    tail = dict(tiling.blocks).get(TAIL)  # None: all keys in steps of one width
    whole = n.extent if tail is None else n.extent // bn * bn
    top = next(i for i, v in enumerate(expr.values) if v.kind == "reduce" and v.fn == "fmax")
    total = next(i for i, v in enumerate(expr.values) if v.kind == "reduce" and v.fn == "sum")
    lone = m is LONE and bm > 1  # a tile of rows for one query: tl.dot of a GPU takes no less
    score = _score(expr)
    body = Body(expr, check=check)
    body.raw_half = frozenset(
        i
        for i in (*first.args, second.args[1])
        if expr.values[i].kind == "load" and expr.values[i].dtype in HALF
    )
    grid = _programs(body, expr, batch, m, bm)

    precision = "ieee" if expr.values[first.args[0]].dtype in HALF else tiling.precision
    width, count = bn, whole  # of the step that is being written: keys in it, keys that such steps cover

    def masked(axis: Axis, text: str) -> None:
        block, extent = (width, count) if axis is n else (tiling.of(axis.name), axis.extent)
        if extent % block:
            body.masks[axis.name] = f"({text} < {axis.extent})"

    def operand(index: int, places: dict[str, str], into: str) -> None:
        saved, kept = dict(body.position), dict(body.masks)
        body.have = {}
        for axis in (m, n, e, d):
            if axis.name in places:
                body.position[axis.name] = places[axis.name]
                masked(axis, places[axis.name])
        body.compute([index], depends)
        text, value = body.have[index], expr.values[index]
        if value.kind != "load":
            bounds = [body.masks[a] for a in places if a in body.masks]
            text = f"tl.where({' & '.join(bounds)}, {text}, 0.0)" if bounds else text
            text = f"({text}).to(tl.{value.dtype})" if value.dtype in HALF else text
        body.line(f"{into} = {text}")
        body.position, body.masks = saved, kept

    tile = body.position[m.name]
    body.line(f"m = ({tile} * {bm} + tl.arange(0, {bm}))[:, None]")
    body.line(f"d = tl.arange(0, {bd})")
    body.line(f"e = tl.arange(0, {be})[None, :]")
    body.position[m.name] = "m"
    masked(m, "m")
    operand(first.args[0], {m.name: "m", d.name: "d[None, :]"}, "q")
    if lone:
        body.line(f"q = tl.broadcast_to(q, ({bm}, {bd}))")
    body.line(f"acc = tl.zeros(({bm}, {be}), tl.float32)")
    body.line(f"total = tl.zeros(({bm}, 1), tl.float32)")
    body.line(f"top = tl.full(({bm}, 1), -float('inf'), tl.float32)")

    def step(start: str) -> None:
        body.line(f"n = {start} + tl.arange(0, {width})")
        operand(first.args[1], {n.name: "n[None, :]", d.name: "d[:, None]"}, "k")
        body.line(f's = tl.dot(q, k, input_precision="{precision}")')
        body.have = {expr.values.index(first): "s"}
        body.position[n.name] = "n[None, :]"
        masked(n, "n[None, :]")
        body.compute([score], depends)
        row = body.have[score]
        if n.name in body.masks:
            body.line(f"row = tl.where({body.masks[n.name]}, {row}, -float('inf'))")
            row = "row"
        body.line(f"higher = tl.maximum(top, tl.max({row}, axis=1, keep_dims=True))")
        # a row in which nothing is visible yet has maximum -inf; subtracting that would give NaN
        body.line("level = tl.where(higher == -float('inf'), 0.0, higher)")
        body.line(f"p = tl.exp({row} - level)")
        body.line("shrink = tl.exp(top - level)")
        body.line("total = total * shrink + tl.sum(p, axis=1, keep_dims=True)")
        body.line("acc = acc * shrink")
        body.masks.pop(n.name, None)
        operand(second.args[1], {n.name: "n[:, None]", e.name: "e"}, "v")
        dtype = expr.values[second.args[1]].dtype
        weights = f"p.to(tl.{dtype})" if dtype in HALF else "p"
        body.line(f'acc = tl.dot({weights}, v, acc, input_precision="{precision}")')
        body.line("top = higher")

    if whole:
        end = str(whole)
        if _causal(expr, score, m, n):  # keys beyond the last query of the tile are not seen
            end = f"tl.minimum({whole}, ({tile} + 1) * {bm})" if tile != "0" else str(min(whole, bm))
        body.line(f"for n0 in range(0, {end}, {bn}):")
        body.indent += 1
        step("n0")
        body.indent -= 1
    if tail:
        width, count = tail, n.extent - whole
        step(str(whole))
    body.position[e.name] = "e"
    masked(e, "e")
    body.have = {expr.values.index(second): "acc", top: "top", total: "total"}
    for w in expr.writes:
        body.compute([w.value], depends)
        axes = frozenset(a for ix in w.access.index for a, _ in ix.terms)
        if not lone:
            body.store(w.access, body.have[w.value], w.access.dtype, axes)
            continue
        mask = body.mask(w.access, axes | {m.name})
        text = convert_store(body.have[w.value], w.access.dtype)
        body.line(f"tl.store({w.access.tensor} + ({body.offset(w.access)} + m * 0), {text}, mask={mask})")
    return finish(body, tiling, name, grid)


def _score(expr: TensorExpr) -> int:
    """The value of which the softmax is taken."""
    return next(v.args[0] for v in expr.values if v.kind == "reduce" and v.fn == "fmax")


def _causal(expr: TensorExpr, score: int, m: Axis, n: Axis) -> bool:
    """Is the score where(n <= m, .., -inf)?"""
    v = expr.values[score]
    if v.fn != "where" or expr.values[v.args[2]].number != float("-inf"):
        return False
    seen = expr.values[v.args[0]]
    axes = [expr.values[a].axis for a in seen.args]
    return seen.fn == "le" and axes == [n.name, m.name]


def _programs(body: Body, expr: TensorExpr, batch: list[Axis], m: Axis, bm: int) -> int:
    """Decodes the program number: heads outermost, so that neighbours share keys and values."""
    body.line("pid = tl.program_id(0)" + (".to(tl.int64)" if wide_index(expr) else ""))
    order = [(a.name, a.extent) for a in batch] + [(m.name, -(-m.extent // bm))]
    left = [(key, count) for key, count in order if count > 1]
    body.position.update({key: "0" for key, count in order if count == 1})
    grid, rest = 1, "pid"
    for i, (key, count) in enumerate(reversed(left)):
        grid *= count
        last = i == len(left) - 1
        body.line(f"p_{key} = {rest}" + ("" if last else f" % {count}"))
        if not last:
            body.line(f"q_{key} = {rest} // {count}")
            rest = f"q_{key}"
        body.position[key] = f"p_{key}"
    return grid
