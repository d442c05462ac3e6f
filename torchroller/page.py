"""The report as one HTML page: nothing outside it, light and dark, usable from the keyboard."""

from __future__ import annotations

from html import escape

from torchroller.cost import time_text
from torchroller.figures import (
    Point,
    compute_peak,
    kernel_roofline,
    level_kind,
    roofline,
    tile_panels,
    time_bars,
)
from torchroller.page_assets import SCRIPT, STYLE
from torchroller.report import ExternReport, KernelReport, Report, share, summary
from torchroller.space import Space
from torchroller.spec import DeviceSpec, rate_text, size_text
from torchroller.tile import RProgram

_REJECTED_SHOWN = 12  # tiles, per kernel; the rest are counted


def render(report: Report) -> str:
    """The whole page."""
    kernels = sorted(report.kernels, key=lambda k: -(k.predicted_s or 0.0))
    body = [
        _summary(report, kernels),
        '<div class="top">',
        _table(report, kernels),
        _overview(report, kernels),
        "</div>",
    ]
    body.append('<h2 id="kernels">Kernel by kernel</h2>')
    body += [_kernel(report, k, number) for number, k in enumerate(kernels)]
    body += [_externs(report.externs), _device(report.device)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.name)} · torchroller</title><style>{STYLE}</style></head>"
        f"<body>{_head(report)}<main>{''.join(body)}</main><script>{SCRIPT}</script></body></html>\n"
    )


def _head(report: Report) -> str:
    externs = f'<a href="#aten">ATen calls ({report.extern_calls})</a>'
    return (
        f'<header><div><h1>{escape(report.name)}</h1><nav><a href="#kernels">kernels</a>{externs}'
        '<a href="#device">device</a></nav><span id="found" class="soft" role="status"></span>'
        '<input id="find" type="search" placeholder="find in names, lines, tiles, source   ( / )" '
        'aria-label="find kernels"></div></header>'
    )


def _summary(report: Report, kernels: list[KernelReport]) -> str:
    cards = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for label, value in summary(report)
    )
    versions = ", ".join(f"{name} {version}" for name, version in report.versions)
    compiled = f" · compiled in {time_text(report.compile_s)}" if report.compile_s is not None else ""
    graphs = f" · {report.graphs} graphs" if report.graphs > 1 else ""
    return (
        f'<p class="soft">on {escape(report.device.name)}, {report.device.units} units{compiled}{graphs}'
        f'{" · " if versions else ""}{escape(versions)}</p><div class="cards">{cards}</div>{_strip(report, kernels)}'
    )


def _strip(report: Report, kernels: list[KernelReport]) -> str:
    """One bar: every kernel's part of the predicted time, in the colour of what bounds it."""
    total = report.predicted_s
    if not total:
        return ""
    parts = []
    for number, k in enumerate(kernels):
        part = (k.predicted_s or 0.0) / total
        if k.program is None or part <= 0:
            continue
        kind = level_kind(report.device, k.program.estimate.bound_by)
        label = f"{number + 1}" if part > 0.02 else ""
        tip = escape(f"{number + 1}. {k.name}: {part:.1%}", quote=True)
        parts.append(
            f'<a class="{kind}" href="#k{number}" style="width:{100 * part:.2f}%" title="{tip}">{label}</a>'
        )
    return (
        f'<div class="strip" role="img" aria-label="share of predicted time by kernel">{"".join(parts)}</div>'
    )


def _space(kernel: KernelReport) -> Space:
    return Space(kernel.expr)


def _overview(report: Report, kernels: list[KernelReport]) -> str:
    rated = [(n, k) for n, k in enumerate(kernels) if k.program is not None and k.program.estimate.flops > 0]
    if not rated:
        return ""
    longest = max(k.predicted_s or 0.0 for _, k in rated) or 1.0
    points = []
    for n, k in rated:
        assert k.program is not None
        e = k.program.estimate
        moved = dict(e.level_bytes)[report.device.dram.name]
        kind = level_kind(report.device, e.bound_by)
        points.append(
            Point(e.flops / moved, e.flops / e.time_s, kind, k.name, (k.predicted_s or 0) / longest, n + 1)
        )
    peak = max(compute_peak(report.device, _space(k)) for _, k in rated)
    figure = roofline(report.device, peak, points, (600, 360), "roofline of all kernels", labels=True)
    left_out = len(kernels) - len(rated)
    moving = (
        "kernel that only moves data or was not searched is"
        if left_out == 1
        else "kernels that only move data or were not searched are"
    )
    note = f" {left_out} {moving} not shown." if left_out else ""
    return (
        f'<div class="panel"><h3>Roofline: where the kernels stand</h3>{figure}<p class="soft">{_legend(report.device)}</p>'
        '<p class="soft">A disc is a kernel of the table at its predicted rate, its area the share of time. On a line it gets '
        f"faster only by moving fewer bytes, at the top only by computing less.{note}</p></div>"
    )


def _legend(device: DeviceSpec) -> str:
    names = [(lv.name, level_kind(device, lv.name)) for lv in device.levels]
    names += [("compute", "compute"), ("launch", "launch")]
    return "".join(f'<span class="dot {kind}"></span>{escape(name)}' for name, kind in names)


def _pill(device: DeviceSpec, bound_by: str) -> str:
    return f'<span class="pill {level_kind(device, bound_by)}">{escape(bound_by)}</span>'


def _table(report: Report, kernels: list[KernelReport]) -> str:
    total = report.predicted_s or 1.0
    rows = []
    for number, k in enumerate(kernels):
        found = escape(f"{k.name} {' '.join(k.origins)}", quote=True)
        start = f'<tr data-kernel="k{number}" data-text="{found}"><td class="num" data-v="{number}">{number + 1}</td>'
        start += f'<td class="name"><a href="#k{number}">{escape(_short(k.name))}</a></td><td class="num">{k.calls}</td>'
        if k.program is None:
            rows.append(
                f'{start}<td colspan="5" class="soft">tiles given, not searched: no prediction</td></tr>'
            )
            continue
        e = k.program.estimate
        part = (k.predicted_s or 0.0) / total
        kind = level_kind(report.device, e.bound_by)
        rate = f"{rate_text(e.flops / e.time_s)[:-1]}FLOP/s" if e.flops else ""
        rows.append(
            f'{start}<td class="num" data-v="{e.time_s}">{time_text(e.time_s)}</td>'
            f'<td class="num" data-v="{k.predicted_s or 0.0}">{time_text(k.predicted_s or 0.0)}</td>'
            f'<td class="num" data-v="{e.flops / e.time_s}">{rate}</td><td>{_pill(report.device, e.bound_by)}</td>'
            f'<td class="num" data-v="{part}">{part:.1%}<div class="meter"><i class="{kind}" style="width:{100 * part:.1f}%"></i></div></td></tr>'
        )
    return (
        '<div class="panel"><h3>Time by kernel</h3><table><thead><tr><th class="num" data-sort>#</th><th data-sort>kernel</th>'
        '<th class="num" data-sort>calls</th><th class="num" data-sort>each</th><th class="num" data-sort aria-sort="descending">all calls</th>'
        '<th class="num" data-sort>rate</th><th data-sort>bound by</th><th class="num" data-sort>share</th></tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table><p class="soft">Predicted, nothing measured. <kbd>/</kbd> find '
        "<kbd>j</kbd> <kbd>k</kbd> walk <kbd>Enter</kbd> open <kbd>e</kbd> open or close all; headings sort.</p></div>"
    )


def _short(name: str) -> str:
    return name.removeprefix("fused_").lstrip("_")


def _kernel(report: Report, k: KernelReport, number: int) -> str:
    origins = "".join(f"<li><code>{escape(o)}</code></li>" for o in k.origins)
    fused = f"<section><h3>fused from</h3><ul>{origins}</ul></section>" if origins else ""
    expression = f'<details class="plain"><summary>tensor expression</summary><pre>{escape(str(k.expr))}</pre></details>'
    source = f"<section><h3>Triton source</h3><pre>{escape(k.source)}</pre></section>" if k.source else ""
    head = f'<span class="soft">{number + 1}</span><span class="grow"><b>{escape(k.name)}</b></span>'
    if k.program is None:
        plain = "<p>Its tiles are given by its emitter; nothing was searched.</p>"
        return (
            f'<details id="k{number}"><summary>{head}</summary><div class="inside">{plain}<div class="two"><div>{fused}'
            f"{expression}</div>{source}</div></div></details>"
        )
    p, e, space = k.program, k.program.estimate, _space(k)
    head += f'{_pill(report.device, e.bound_by)}<span class="mono">{time_text(e.time_s)}{f" × {k.calls}" if k.calls > 1 else ""}</span>'
    launch = f"{p.grid} programs" + (
        f", {p.num_warps} warps, {p.num_stages} stages" if not report.device.is_cpu else ""
    )
    facts = (
        f"<p>{launch}; {e.waves:.2f} waves, {e.rounds} rounds on the busiest unit; "
        f"{e.padding_waste:.1%} of the computed points are padding."
    )
    if k.measured_s is not None and k.chosen is not None:
        facts += f" Measured: <b>{time_text(k.measured_s[k.chosen])}</b>."
    if k.cached:
        facts += " From the disk cache."
    figures = (
        f"<section><h3>tiles, from the whole problem down to registers; one tile of the next level is lit</h3>"
        f"{tile_panels(report.device, space, p)}</section>"
        f'<div class="two"><section><h3>predicted time by resource</h3>{time_bars(report.device, e)}</section>'
        f"<section><h3>roofline, one mark per memory level</h3>{kernel_roofline(report.device, space, e)}</section></div>"
    )
    opened = " open" if number == 0 else ""
    return (
        f'<details id="k{number}"{opened}><summary>{head}</summary><div class="inside">{facts}</p>{fused}{figures}'
        f'<div class="two">{_candidates(report.device, k)}{source}</div>{expression}</div></details>'
    )


def _tile_text(p: RProgram, device: DeviceSpec) -> str:
    tile = " ".join(f"{a}:{n}" for a, n in (*p.block.items(), *p.step.items()))
    return tile if device.is_cpu else f"{tile}, {p.num_warps} warps, {p.num_stages} stages"


def _candidates(device: DeviceSpec, k: KernelReport) -> str:
    c = k.construction
    if c is None:
        return ""
    timed = k.measured_s is not None
    rows = []
    for rank, p in enumerate(c.ranked):
        measured = ""
        if k.measured_s is not None:
            measured = (
                f'<td class="num">{time_text(k.measured_s[rank]) if rank < len(k.measured_s) else ""}</td>'
            )
        best = ' class="best"' if rank == k.chosen else ""
        rows.append(
            f'<tr{best}><td class="num">{rank + 1}</td><td class="mono">{escape(_tile_text(p, device))}</td>'
            f'<td class="num">{p.grid}</td><td class="num">{time_text(p.estimate.time_s)}</td>'
            f"{measured}<td>{_pill(device, p.estimate.bound_by)}</td></tr>"
        )
    shown = c.rejected[:_REJECTED_SHOWN]
    rejected = "".join(f"<li><code>{escape(str(t))}</code> {escape(why)}</li>" for t, why in shown)
    more = len(c.rejected) - len(shown)
    if more:
        rejected += f"<li>and {more} more</li>"
    turned_down = (
        f'<details class="plain"><summary>{len(c.rejected)} tiles turned down, and why</summary><ul>{rejected}</ul></details>'
        if c.rejected
        else '<p class="soft">No tile was turned down.</p>'
    )
    column = '<th class="num">measured</th>' if timed else ""
    return (
        f"<section><h3>candidates: the best {len(c.ranked)} of {c.visited} tiles, searched in {time_text(c.seconds)}</h3>"
        '<table><tr><th class="num">rank</th><th>block and step</th><th class="num">programs</th><th class="num">predicted</th>'
        f"{column}<th>bound by</th></tr>{''.join(rows)}</table>{turned_down}</section>"
    )


def _externs(externs: tuple[ExternReport, ...]) -> str:
    if not externs:
        return '<h2 id="aten">Calls to ATen</h2><p class="soft">None: everything runs in kernels of ours.</p>'
    rows = "".join(
        f'<tr data-text="{escape(f"{e.target} {e.reason}", quote=True)}"><td class="name"><code>{escape(e.target)}</code>'
        + "".join(f'<div class="soft mono">{escape(w)}</div>' for w in e.where[:3])
        + (f'<div class="soft">and {len(e.where) - 3} more places</div>' if len(e.where) > 3 else "")
        + f'</td><td class="num">{e.calls}</td><td class="num" data-v="{e.flops or 0}">{"" if e.flops is None else f"{e.flops / 1e9:.3g} G"}</td>'
        f"<td>{escape(e.reason)}</td></tr>"
        for e in sorted(externs, key=lambda e: -e.calls)
    )
    return (
        '<h2 id="aten">Calls to ATen</h2><div class="panel"><table><thead><tr><th data-sort>operator</th><th class="num" data-sort>calls</th>'
        f'<th class="num" data-sort>FLOPs</th><th data-sort>because</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _device(device: DeviceSpec) -> str:
    rows = "".join(
        f'<tr><td><span class="dot {level_kind(device, lv.name)}" style="margin-left:0"></span>{escape(lv.name)}</td>'
        f'<td class="num">{size_text(lv.capacity_bytes)}</td><td class="num">{rate_text(lv.bandwidth_bytes_per_s)}/s</td>'
        f'<td class="num">{lv.transaction_bytes} B</td><td>{"per unit" if lv.private else "shared"}</td></tr>'
        for lv in device.levels
    )
    peaks = "; ".join(
        f"{p.dtype} {rate_text(p.vector_flops)[:-1]}FLOP/s"
        + (f" ({rate_text(p.matrix_flops)[:-1]} matrix)" if p.matrix_flops else "")
        for p in device.peaks
    )
    return (
        f'<h2 id="device">The device, as the search sees it</h2><div class="panel"><p><b>{escape(device.name)}</b>, {device.units} units. '
        f'{escape(peaks)}.</p><table><tr><th>level</th><th class="num">capacity</th><th class="num">bandwidth</th>'
        f'<th class="num">transaction</th><th></th></tr>{rows}</table><p class="soft">{escape(device.source)}</p></div>'
    )


__all__ = ["render", "share"]
