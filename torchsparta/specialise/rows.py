"""The row-group kernel: every format that lists alive columns per group of rows, parts summed in registers.

One program owns `tile.rows` output rows and `tokens` tokens. A group of rows keeps one accumulator vector of
tokens per row; each alive column loads one vector of tokens from the input panel and feeds every row of the
group with it. Parts of a mixed cover run one after the other on the same accumulators, so their partial
results are summed before anything is stored. Loop bounds, group sizes, run widths and strides are literal.

With several column blocks the accumulators of a row block rest in a scratch tile between blocks, so that the
live part of the input panel fits the first-level cache. The scratch tile is transposed by the epilogue. A program
walks several row blocks with one scratch tile, which so stays in cache: tiles of their own would push the panel out.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..input_quant import MAGIC
from .pieces import Epilogue
from .program import Program

EXACT_COLUMNS = 1032
"""128 * 127 * 1032 < 2**24: so many int8 products add up exactly in float32."""


@dataclass(frozen=True)
class PartSpec:
    """What the source of one part depends on. kind: 'groups', 'dense' or 'nm'; values: 'real', 'int8', 'int4'."""

    kind: str
    group: int
    width: int = 1
    values: str = "real"
    scaled: bool = False
    runs: int = 0
    n_alive: int = 0
    n_of: int = 0
    unroll: int = 1


@dataclass(frozen=True)
class RowsSpec:
    """Everything that is hard-coded in one row-group kernel.

    layout: 'linear' y [M, N]; 'image' y [images, N, M pixels], one weight; 'batch' y [batches, M, N], one
    weight per batch, their row blocks stacked. Panels are numbered image (batch) by image.
    strip: tokens that the epilogue transposes and stores at a time, 0 for all. A CPU writes whole cache lines of
    few rows of y so; lines of all rows at once fall into few sets of the cache where N is a multiple of 256.
    """

    parts: tuple[PartSpec, ...]
    rows: int
    tokens: int
    row_blocks: int
    column_blocks: int
    columns: int
    k: int
    panel_rows: int
    compute: str
    integer: bool
    epilogue: Epilogue
    layout: str = "linear"
    strip: int = 0

    @property
    def sums_integers(self) -> bool:
        """Whether the scratch tile holds int32: exact float32 sums of column blocks add up beyond 2**24."""
        return self.integer and self.column_blocks > 1


def _value(part: PartSpec, p: int, index: str, compute: str) -> str:
    """Expression of one weight value at flat position `index`."""
    if part.values == "int4":
        return f"(((tl.load(val{p} + ({index}) // 2).to(tl.int32) >> ((({index}) % 2) * 4)) & 15) - 8).to({compute})"
    return f"tl.load(val{p} + {index}).to({compute})"


def _accumulate(part: PartSpec, p: int, spec: RowsSpec, lead: int) -> list[str]:
    """Lines (at group level) that add part `p` to the accumulators a0 … a{lead-1}."""
    t = spec.tokens
    target = "b" if part.scaled and not spec.integer else "a"
    lines = [f"b{r} = tl.zeros([{t}], dtype={spec.compute})" for r in range(lead)] if target == "b" else []
    per_lead = lead // part.group
    for sub in range(per_lead):
        rows = [f"{target}{sub * part.group + r}" for r in range(part.group)]
        if part.kind == "groups":
            start, fresh = len(lines), []
            lists = spec.rows // part.group
            lines += [
                f"at = (nb * {spec.column_blocks} + kb) * {lists + 1} + g * {per_lead} + {sub}",
                f"begin = tl.load(ptr{p} + at)",
                f"end = tl.load(ptr{p} + at + 1)",
                f"for j in range(begin, end, {part.unroll}):"
                if part.unroll > 1
                else "for j in range(begin, end):",
            ]
            for u in range(part.unroll):
                # Every unrolled entry has sums of its own: independent chains of multiply-adds.
                sums = rows if u == 0 else [f"{a}_{u}" for a in rows]
                fresh += [] if u == 0 else sums
                lines.append(f"    col{u} = xb + tl.load(idx{p} + j + {u}) * {t}")
                for w in range(part.width):
                    lines.append(f"    x{u} = tl.load(col{u} + {w * t} + lane)")
                    flat = f"(j + {u}) * {part.width * part.group} + {w * part.group}"
                    lines += [
                        f"    {a} += {_value(part, p, f'{flat} + {r}', spec.compute)} * x{u}"
                        for r, a in enumerate(sums)
                    ]
            lines[start:start] = [f"{a} = tl.zeros([{t}], dtype={spec.compute})" for a in fresh]
            lines += [f"{a.rsplit('_', 1)[0]} += {a}" for a in fresh]
        elif part.kind == "dense":
            lists = spec.rows // part.group
            lines += [
                f"base = (nb * {lists} + g * {per_lead} + {sub}) * {spec.k * part.group}",
                f"for j in range({_column_range(spec, spec.k, 1)}):",
                f"    x = tl.load(xb + j * {t} + lane)",
            ]
            flat = f"base + j * {part.group}"
            lines += [
                f"    {a} += {_value(part, p, f'{flat} + {r}', spec.compute)} * x" for r, a in enumerate(rows)
            ]
        elif part.kind == "nm":
            row = f"(nb * {spec.rows} + g * {lead} + {sub})"
            lines += [
                f"base = {row} * {part.runs * part.n_alive}",
                # Rows past N have no values; an empty range keeps the kernel in bounds.
                f"stop = tl.where({row} < N, {_column_stop(spec, part.runs, part.n_of)}, 0)",
                f"for j in range({_column_start(spec, part.n_of)}, stop):",
            ]
            for i in range(part.n_alive):
                flat = f"base + j * {part.n_alive} + {i}"
                lines += [
                    f"    col = j * {part.n_of} + tl.load(meta{p} + {flat}).to(tl.int32)",
                    f"    {rows[0]} += {_value(part, p, flat, spec.compute)} * tl.load(xb + col * {t} + lane)",
                ]
        else:
            raise ValueError(f"unknown part kind {part.kind!r}")
    if target == "b":
        for r in range(lead):
            row = f"nb * {spec.rows} + g * {lead} + {r}"
            lines.append(
                f"a{r} += b{r} * tl.load(scale{p} + {row}, mask={row} < N, other=0.0).to({spec.compute})"
            )
    return lines


def _as_integer(value: str, columns: int) -> str:
    """An integer-valued float32 sum of `columns` int8 products as int32: by its bits where it is small enough."""
    if columns * 128 * 127 < 2**22:
        return f"(({value} + {MAGIC}).to(tl.int32, bitcast=True) - 0x4B400000)"
    return f"{value}.to(tl.int32)"


def _column_start(spec: RowsSpec, step: int) -> str:
    return f"kb * {spec.columns // step}" if spec.column_blocks > 1 else "0"


def _column_stop(spec: RowsSpec, count: int, step: int) -> str:
    if spec.column_blocks == 1:
        return str(count)
    return f"tl.minimum(kb * {spec.columns // step} + {spec.columns // step}, {count})"


def _column_range(spec: RowsSpec, count: int, step: int) -> str:
    return f"{_column_start(spec, step)}, {_column_stop(spec, count, step)}"


def part_arguments(part: PartSpec, p: int) -> list[str]:
    """Names of the tensors of part `p`, in the order in which a launch passes them."""
    names = {"groups": ["ptr", "idx", "val"], "dense": ["val"], "nm": ["val", "meta"]}[part.kind]
    return [f"{n}{p}" for n in [*names, *(["scale"] if part.scaled else [])]]


def rows_program(spec: RowsSpec) -> Program:
    """The kernel of this spec. Grid: any number of programs, which share the `items` (row blocks * panels) by turns;
    scratch holds rows * tokens values per program."""
    lead = max(part.group for part in spec.parts)
    if spec.integer:
        columns = spec.columns if spec.column_blocks > 1 else spec.k
        if columns > EXACT_COLUMNS:
            raise ValueError(
                f"{columns} int8 products do not add up exactly in float32; block at {EXACT_COLUMNS}"
            )
        if not all(part.scaled for part in spec.parts):
            raise ValueError("integer accumulation needs quantised parts only")
    t, n_rows = spec.tokens, spec.rows
    arguments = [a for p, part in enumerate(spec.parts) for a in part_arguments(part, p)]
    image = spec.layout == "image"
    body = [
        f"panel = item // {spec.row_blocks}",
        f"xb = xp + panel * {spec.panel_rows * t}",
    ]
    if spec.layout == "linear":
        body += [f"nr = tl.load(order + item % {spec.row_blocks})", "nb = nr", "mb = panel"]
    else:
        body += ["which = panel // panels", "mb = panel % panels"]
        if image:
            body += [f"nr = tl.load(order + item % {spec.row_blocks})", "nb = nr"]
        else:
            body += [f"nr = item % {spec.row_blocks}", f"nb = which * {spec.row_blocks} + nr"]
    blocked = spec.column_blocks > 1
    group: list[str] = []
    for r in range(lead):
        fresh = f"a{r} = tl.zeros([{t}], dtype={spec.compute})"
        group.append(fresh if not blocked or spec.integer else f"a{r} = tl.load(row + {r * t} + lane)")
    for p, part in enumerate(spec.parts):
        group += _accumulate(part, p, spec, lead)
    for r in range(lead):
        value = f"a{r}"
        if blocked and spec.integer:
            value = f"{_as_integer(value, spec.columns)} + tl.load(row + {r * t} + lane)"
        group.append(f"tl.store(row + {r * t} + lane, {value})")
    group = [f"row = tile + g * {lead * t}", *group]
    zero = "tl.int32" if spec.sums_integers else spec.compute
    if blocked:
        body += [
            f"for r in range({n_rows}):",
            f"    tl.store(tile + r * {t} + lane, tl.zeros([{t}], dtype={zero}))",
        ]
        body.append(f"for kb in range({spec.column_blocks}):")
    else:
        body.append("kb = 0")
    loop = [f"for g in range({n_rows // lead}):", *("    " + line for line in group)]
    body += [("    " if blocked else "") + line for line in loop]
    body += ["tl.debug_barrier()", f"offs_n = nr * {n_rows} + tl.arange(0, {n_rows})"]
    strips = spec.strip if spec.layout != "image" and 0 < spec.strip < t else 0
    main, body = body, []
    body += [
        f"some = t0 + tl.arange(0, {strips})" if strips else "some = lane",
        f"offs_m = mb * {t} + some",
        f"total = tl.load(tile + tl.arange(0, {n_rows})[:, None] * {t} + some[None, :])",
    ]
    m_axis, n_axis = ("[None, :]", "[:, None]") if image else ("[:, None]", "[None, :]")
    body.append(f"alive = (offs_m < M){m_axis} & (offs_n < N){n_axis}")
    if image:
        body.append("out = which * N * M + offs_n[:, None] * M + offs_m[None, :]")
    else:
        start = "which * M * N + " if spec.layout == "batch" else ""
        body += [f"out = {start}offs_m[:, None] * stride_y + offs_n[None, :]", "total = tl.trans(total)"]
    if spec.integer:
        weight_row = f"nb * {n_rows} + tl.arange(0, {n_rows})" if spec.layout == "batch" else "offs_n"
        body += [
            f"row_scale = tl.load(scale0 + {weight_row}, mask=offs_n < N, other=0.0)",
            f"token = tl.load(token_scale + panel * {t} + some)",
            f"total = total.to(tl.float32) * (token{m_axis} * row_scale{n_axis})",
        ]
    body += spec.epilogue.lines("total", n_axis)
    body.append("tl.store(y + out, total.to(y.dtype.element_ty), mask=alive)")
    if strips:
        body = [f"for t0 in range(0, {t}, {strips}):", *("    " + line for line in body)]
    body = [*main, *body, "tl.debug_barrier()"]
    body = [
        f"lane = tl.arange(0, {t})",
        f"tile = scratch + tl.program_id(0) * {n_rows * t}",
        "for item in range(tl.program_id(0), items, tl.num_programs(0)):",
        *("    " + line for line in body),
    ]
    signature = ", ".join(
        [
            "xp",
            "y",
            "scratch",
            "order",
            "bias",
            "residual",
            "token_scale",
            *arguments,
            "M",
            "N",
            "stride_y",
            "panels",
            "items",
        ]
    )
    source = f"@triton.jit\ndef rows({signature}):\n" + "".join(f"    {line}\n" for line in body)
    return Program("rows", source)
