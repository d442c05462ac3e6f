"""Running sums: a program owns some rows and walks them in chunks, each an associative scan that starts where the last
one ended."""

from __future__ import annotations

from ..expr import Axis, TensorExpr
from .common import TL, Body, Tiling, TritonSource, dependences, finish, next_power, wide_index

COMBINE = {"add": "plus", "mul": "multiply", "logaddexp": "log_add_exp"}
START = {"add": "0", "mul": "1", "logaddexp": "-float('inf')"}


def is_scan(expr: TensorExpr) -> bool:
    return any(v.kind == "scan" for v in expr.values)


def scan_tiling(expr: TensorExpr, cpu: bool) -> Tiling:
    """Rows of the axis with the smallest steps side by side; chunks of the running axis."""
    (run,) = expr.reduce
    lane = min(
        expr.spatial, key=lambda a: (abs(expr.writes[0].access.stride_of(a.name)), -a.extent), default=None
    )
    blocks = {run.name: min(next_power(run.extent), 256 if cpu else 128)}  # float64 fills a GPU's registers
    if lane is not None:
        blocks[lane.name] = min(next_power(lane.extent), 16 if cpu else 2)
    return Tiling(tuple(blocks.items()), num_warps=4, num_stages=1)


def emit_scan(expr: TensorExpr, tiling: Tiling, name: str, check: bool = False) -> TritonSource:
    """Triton text of a kernel with scans along its one reduce axis; `check` flags indices outside their tensor."""
    body, depends = Body(expr, check=check), dependences(expr)
    (run,) = expr.reduce
    wide = [a for a in expr.spatial if tiling.of(a.name) > 1]
    lane = wide[0] if wide else None
    grid = _programs(body, expr, tiling, lane)
    rows, chunk = tiling.of(lane.name) if lane else 1, tiling.of(run.name)
    scans = [n for n, v in enumerate(expr.values) if v.kind == "scan"]
    looped = chunk < run.extent
    shape = "[None, :]"
    if looped:
        for n in scans:
            v = expr.values[n]
            body.line(f"carry{n} = tl.full(({rows}, 1), {START[v.fn or '']}, {TL[v.dtype]})")
        body.line(f"for n_{run.name} in range(0, {run.extent}, {chunk}):")
        body.indent += 1
    start = f"n_{run.name} + " if looped else ""
    body.line(f"{run.name} = ({start}tl.arange(0, {chunk})){shape}")
    body.position[run.name] = run.name
    if run.extent % chunk:
        body.masks[run.name] = f"({run.name} < {run.extent})"
    for n in scans:
        v = expr.values[n]
        fn, dtype = COMBINE[v.fn or ""], TL[v.dtype]
        body.need(fn)
        body.compute([v.args[0]], depends)
        body.line(f"x{n} = tl.broadcast_to(({body.have[v.args[0]]}).to({dtype}), ({rows}, {chunk}))")
        body.line(f"v{n} = tl.associative_scan(x{n}, 1, {fn})")
        if looped:
            body.line(f"v{n} = {fn}(carry{n}, v{n})")
            last = f"tl.arange(0, {chunk})[None, :] == {chunk - 1}"
            body.line(f"carry{n} = tl.sum(tl.where({last}, v{n}, 0), axis=1, keep_dims=True)")
        body.have[n] = f"v{n}"
    for w in expr.writes:
        body.compute([w.value], depends)
        axes = frozenset(a for ix in w.access.index for a, _ in ix.terms)
        body.store(w.access, body.have[w.value], w.access.dtype, axes)
    return finish(body, tiling, name, grid)


def _programs(body: Body, expr: TensorExpr, tiling: Tiling, lane: Axis | None) -> int:
    counts = [(a, -(-a.extent // tiling.of(a.name))) for a in expr.spatial]
    left = [(a, n) for a, n in counts if n > 1]
    if left:
        body.line("pid = tl.program_id(0)" + (".to(tl.int64)" if wide_index(expr) else ""))
    tile = {a.name: "0" for a, n in counts if n == 1}
    grid, rest = 1, "pid"
    for i, (a, n) in enumerate(reversed(left)):
        last = i == len(left) - 1
        body.line(f"p_{a.name} = {rest}" + ("" if last else f" % {n}"))
        if not last:
            body.line(f"q_{a.name} = {rest} // {n}")
            rest = f"q_{a.name}"
        tile[a.name] = f"p_{a.name}"
        grid *= n
    for a, _ in counts:
        if a is not lane:
            body.position[a.name] = tile[a.name]
            continue
        block = tiling.of(a.name)
        start = f"{tile[a.name]} * {block} + " if tile[a.name] != "0" else ""
        body.line(f"{a.name} = ({start}tl.arange(0, {block}))[:, None]")
        body.position[a.name] = a.name
        if a.extent % block:
            body.masks[a.name] = f"({a.name} < {a.extent})"
    return grid
