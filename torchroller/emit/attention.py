"""Attention kernels: softmax(q k^T * scale + mask) v, one pass over the keys.

A program owns BLOCK_M queries of one head. It walks the keys in steps of BLOCK_N and keeps for each query the
running maximum, the running sum of exponentials and the weighted sum of values, rescaled when the maximum grows
(Milakov and Gimelshein, Online normalizer calculation for softmax, 2018; Dao et al., FlashAttention, 2022).
"""

from __future__ import annotations

from ..expr import Axis, TensorExpr
from .common import Body, Tiling, TritonSource, convert_store, dependences, finish, next_power, wide_index

HALF = ("float16", "bfloat16")


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


def attention_tiling(expr: TensorExpr, cpu: bool) -> Tiling:
    """Queries x keys of one step; whole heads."""
    _, m, e, n, d = roles(expr)
    least = 1 if cpu else 16
    blocks = {
        m.name: max(min(next_power(m.extent), 64), least),
        n.name: max(min(next_power(n.extent), 128 if cpu else 64), least),
        e.name: max(next_power(e.extent), least),
        d.name: max(next_power(d.extent), least),
    }
    return Tiling(tuple(blocks.items()), num_warps=4, num_stages=1 if cpu else 2)


def emit_attention(expr: TensorExpr, tiling: Tiling, name: str, check: bool = False) -> TritonSource:
    """Triton text of an attention kernel."""
    batch, m, e, n, d = roles(expr)
    depends = dependences(expr)
    first, second = expr.dots
    bm, bn, be, bd = (tiling.of(a.name) for a in (m, n, e, d))
    top = next(i for i, v in enumerate(expr.values) if v.kind == "reduce" and v.fn == "fmax")
    total = next(i for i, v in enumerate(expr.values) if v.kind == "reduce" and v.fn == "sum")
    lone = m is LONE and bm > 1  # a tile of rows for one query: tl.dot of a GPU takes no less
    score = expr.values[top].args[0]
    body = Body(expr, check=check)
    body.raw_half = frozenset(
        i
        for i in (*first.args, second.args[1])
        if expr.values[i].kind == "load" and expr.values[i].dtype in HALF
    )
    grid = _programs(body, expr, batch, m, bm)

    def masked(axis: Axis, block: int, text: str) -> None:
        if axis.extent % block:
            body.masks[axis.name] = f"({text} < {axis.extent})"

    def operand(index: int, places: dict[str, str], into: str) -> None:
        saved, kept = dict(body.position), dict(body.masks)
        body.have = {}
        for axis, block in ((m, bm), (n, bn), (e, be), (d, bd)):
            if axis.name in places:
                body.position[axis.name] = places[axis.name]
                masked(axis, block, places[axis.name])
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
    masked(m, bm, "m")
    operand(first.args[0], {m.name: "m", d.name: "d[None, :]"}, "q")
    if lone:
        body.line(f"q = tl.broadcast_to(q, ({bm}, {bd}))")
    body.line(f"acc = tl.zeros(({bm}, {be}), tl.float32)")
    body.line(f"total = tl.zeros(({bm}, 1), tl.float32)")
    body.line(f"top = tl.full(({bm}, 1), -float('inf'), tl.float32)")
    end = str(n.extent)
    if _causal(expr, score, m, n):  # keys beyond the last query of the tile are not seen
        end = f"tl.minimum({n.extent}, ({tile} + 1) * {bm})" if tile != "0" else str(min(n.extent, bm))
    body.line(f"for n0 in range(0, {end}, {bn}):")
    body.indent += 1
    body.line(f"n = n0 + tl.arange(0, {bn})")
    operand(first.args[1], {n.name: "n[None, :]", d.name: "d[:, None]"}, "k")
    body.line('s = tl.dot(q, k, input_precision="ieee")')
    body.have = {expr.values.index(first): "s"}
    body.position[n.name] = "n[None, :]"
    masked(n, bn, "n[None, :]")
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
    body.line(f'acc = tl.dot({weights}, v, acc, input_precision="ieee")')
    body.line("top = higher")
    body.indent -= 1
    body.position[e.name] = "e"
    masked(e, be, "e")
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
