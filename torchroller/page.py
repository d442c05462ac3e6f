"""The report as one HTML page: no scripts, no external files, light and dark."""

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
from torchroller.report import ExternReport, KernelReport, Report, share, summary
from torchroller.space import Space
from torchroller.spec import DeviceSpec, rate_text, size_text

_REJECTED_SHOWN = 12

STYLE = """
:root { color-scheme: light dark; --bg:#fbfaf8; --card:#fff; --ink:#1f2430; --soft:#667085; --line:#e4e1da;
  --lv0:#d1495b; --lv1:#edae49; --lv2:#66a182; --lv3:#2e86ab; --compute:#5b4b8a; --launch:#9aa0a6; --accent:#2e86ab;
  --code:#f4f2ee; }
@media (prefers-color-scheme: dark) { :root { --bg:#14161b; --card:#1c1f26; --ink:#e7e9ee; --soft:#98a2b3;
  --line:#2d323c; --lv0:#ef6f80; --lv1:#f2c166; --lv2:#85c6a3; --lv3:#5fb3d6; --compute:#a996e0; --launch:#7b828c;
  --accent:#5fb3d6; --code:#12141a; } }
* { box-sizing: border-box; }
body { margin:0; background:var(--bg); color:var(--ink); font:15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width:1040px; margin:0 auto; padding:36px 20px 80px; }
h1 { font-size:30px; margin:0; letter-spacing:-.02em; } h2 { font-size:20px; margin:44px 0 12px; }
h3 { font-size:14px; margin:0 0 6px; color:var(--soft); font-weight:600; }
p { margin:6px 0; } .soft { color:var(--soft); } .right { text-align:right; } code, pre, .mono { font:12.5px/1.5 ui-monospace,
  "SF Mono", Menlo, Consolas, monospace; }
.cards { display:grid; grid-template-columns:repeat(auto-fit, minmax(118px, 1fr)); gap:10px; margin:22px 0 8px; }
.card { background:var(--card); border:1px solid var(--line); border-radius:12px; padding:12px 14px; }
.card b { display:block; font-size:22px; font-weight:650; letter-spacing:-.01em; } .card span { color:var(--soft); font-size:13px; }
.panel { background:var(--card); border:1px solid var(--line); border-radius:12px; padding:16px 18px; overflow-x:auto; }
.two { display:grid; grid-template-columns:repeat(auto-fit, minmax(340px, 1fr)); gap:18px; align-items:start; }
table { border-collapse:collapse; width:100%; } th { text-align:left; font-weight:600; color:var(--soft); font-size:13px; }
td, th { padding:7px 10px 7px 0; border-bottom:1px solid var(--line); vertical-align:top; } tr:last-child td { border-bottom:0; }
td.num, th.num { text-align:right; font-variant-numeric:tabular-nums; white-space:nowrap; }
a { color:inherit; text-decoration-color:var(--line); text-underline-offset:3px; }
.meter { background:var(--line); border-radius:4px; height:9px; width:180px; margin-top:7px; overflow:hidden; }
.meter i { display:block; height:100%; border-radius:4px; }
.pill { display:inline-block; border-radius:99px; padding:0 9px; font-size:12px; color:#fff; white-space:nowrap; }
details { background:var(--card); border:1px solid var(--line); border-radius:12px; margin:10px 0; }
details > summary { cursor:pointer; padding:12px 18px; display:flex; gap:12px; align-items:baseline; list-style:none; flex-wrap:wrap; }
details > summary::-webkit-details-marker { display:none; } details > summary::before { content:"▸"; color:var(--soft); }
details[open] > summary::before { content:"▾"; } .inside { padding:2px 18px 18px; } .grow { flex:1; min-width:200px; overflow-wrap:anywhere; }
details.plain { border:0; background:none; margin:8px 0 0; } details.plain > summary { padding:4px 0; color:var(--soft); }
pre { background:var(--code); border-radius:8px; padding:12px 14px; overflow-x:auto; margin:6px 0; }
section { margin:14px 0; } svg { width:100%; height:auto; display:block; } svg.wide { min-width:640px; }
svg text { font:12px system-ui, sans-serif; fill:var(--ink); } svg .tick { fill:var(--soft); font-size:11px; }
svg .axis { fill:var(--soft); font-size:11px; font-style:italic; } svg .name { font-size:11.5px; } svg .strong { font-weight:650; }
svg .grid { stroke:var(--line); } svg .roof { stroke-width:1.8; fill:none; } svg .peak { stroke:var(--ink); }
svg .point { fill-opacity:.75; stroke:var(--card); stroke-width:1.2; } svg .cut { stroke:var(--card); stroke-width:1; opacity:.75; }
svg .fine { stroke-dasharray:1.5 1.5; opacity:.6; } svg .tile { fill-opacity:.38; } svg .lit { fill:var(--ink); fill-opacity:.8; }
svg .regs { fill:var(--compute); }
svg .lv0 { fill:var(--lv0); stroke:var(--lv0); } svg .lv1 { fill:var(--lv1); stroke:var(--lv1); }
svg .lv2 { fill:var(--lv2); stroke:var(--lv2); } svg .lv3 { fill:var(--lv3); stroke:var(--lv3); }
svg .compute { fill:var(--compute); stroke:var(--compute); } svg .launch { fill:var(--launch); stroke:var(--launch); }
svg .bar, svg .tile, svg .point { stroke:none; }
.lv0 { --c:var(--lv0); } .lv1 { --c:var(--lv1); } .lv2 { --c:var(--lv2); } .lv3 { --c:var(--lv3); }
.compute { --c:var(--compute); } .launch { --c:var(--launch); } .pill, .meter i, .dot { background:var(--c); }
.dot { display:inline-block; width:10px; height:10px; border-radius:3px; margin:0 5px 0 14px; }
.best td { font-weight:650; }
"""


def render(report: Report) -> str:
    """The whole page."""
    kernels = sorted(report.kernels, key=lambda k: -(k.predicted_s or 0.0))
    body = [_head(report), _overview(report, kernels), _table(report, kernels)]
    body.append("<h2>Kernel by kernel</h2>")
    body += [_kernel(report, k, number) for number, k in enumerate(kernels)]
    body += [_externs(report.externs), _device(report.device)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.name)} · torchroller</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _head(report: Report) -> str:
    cards = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for label, value in summary(report)
    )
    versions = ", ".join(f"{name} {version}" for name, version in report.versions)
    compiled = f" · compiled in {time_text(report.compile_s)}" if report.compile_s is not None else ""
    return (
        f"<h1>{escape(report.name)}</h1>"
        f'<p class="soft">on {escape(report.device.name)}{compiled}{" · " if versions else ""}{escape(versions)}</p>'
        f'<div class="cards">{cards}</div>'
    )


def _space(kernel: KernelReport) -> Space:
    return Space(kernel.expr)


def _overview(report: Report, kernels: list[KernelReport]) -> str:
    rated = [k for k in kernels if k.program is not None and k.program.estimate.flops > 0]
    if not rated:
        return ""
    longest = max(k.predicted_s or 0.0 for k in rated) or 1.0
    points = []
    for k in rated:
        assert k.program is not None
        e = k.program.estimate
        moved = dict(e.level_bytes)[report.device.dram.name]
        kind = level_kind(report.device, e.bound_by)
        points.append(
            Point(e.flops / moved, e.flops / e.time_s, kind, k.name, (k.predicted_s or 0) / longest)
        )
    peak = max(compute_peak(report.device, _space(k)) for k in rated)
    figure = roofline(report.device, peak, points, (960, 380), "roofline of all kernels", labels=True)
    legend = _legend(report.device)
    left_out = len(kernels) - len(rated)
    moving = "kernel that only moves data is" if left_out == 1 else "kernels that only move data are"
    note = f" {left_out} {moving} not shown." if left_out else ""
    return (
        "<h2>Where the kernels stand</h2>"
        f'<div class="panel">{figure}<p class="soft">Each disc is a kernel at its predicted rate, its area the share '
        f"of time, its colour what bounds it. A kernel on a line can only get faster by moving fewer bytes; one at "
        f'the top only by computing less.{note}</p><p class="soft">{legend}</p></div>'
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
        if k.program is None:
            rows.append(
                f'<tr><td><a href="#k{number}">{escape(k.name)}</a></td><td colspan="5">not searched</td></tr>'
            )
            continue
        e = k.program.estimate
        part = (k.predicted_s or 0.0) / total
        kind = level_kind(report.device, e.bound_by)
        rate = f"{rate_text(e.flops / e.time_s)[:-1]}FLOP/s" if e.flops else ""
        rows.append(
            f'<tr><td><a href="#k{number}">{escape(k.name)}</a></td><td class="num">{k.calls}</td>'
            f'<td class="num">{time_text(e.time_s)}</td><td class="num">{rate}</td>'
            f"<td>{_pill(report.device, e.bound_by)}</td>"
            f'<td><div class="meter"><i class="{kind}" style="width:{100 * part:.1f}%"></i></div></td>'
            f'<td class="num">{part:.1%}</td></tr>'
        )
    return (
        '<h2>Time by kernel</h2><div class="panel"><table><tr><th>kernel</th><th class="num">calls</th>'
        '<th class="num">predicted</th><th class="num">rate</th><th>bound by</th><th>share of time</th><th></th></tr>'
        f"{''.join(rows)}</table></div>"
    )


def _kernel(report: Report, k: KernelReport, number: int) -> str:
    origins = "".join(f"<li><code>{escape(o)}</code></li>" for o in k.origins)
    fused = f"<h3>fused from</h3><ul>{origins}</ul>" if origins else ""
    expression = f'<details class="plain"><summary>tensor expression</summary><pre>{escape(str(k.expr))}</pre></details>'
    source = (
        f'<details class="plain"><summary>Triton source</summary><pre>{escape(k.source)}</pre></details>'
        if k.source
        else ""
    )
    head = f'<span class="grow"><b>{escape(k.name)}</b></span>'
    if k.program is None:
        return f'<details id="k{number}"><summary>{head}</summary><div class="inside">{fused}{expression}{source}</div></details>'
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
    figures = (
        f"<section><h3>tiles, from the whole problem down to registers</h3>{tile_panels(report.device, space, p)}</section>"
        f'<div class="two"><section><h3>predicted time by resource</h3>{time_bars(report.device, e)}</section>'
        f"<section><h3>roofline, one mark per memory level</h3>{kernel_roofline(report.device, space, e)}</section></div>"
    )
    opened = " open" if number == 0 else ""
    return (
        f'<details id="k{number}"{opened}><summary>{head}</summary><div class="inside">{facts}</p>{fused}{figures}'
        f"{_candidates(report.device, k)}{expression}{source}</div></details>"
    )


def _candidates(device: DeviceSpec, k: KernelReport) -> str:
    c = k.construction
    if c is None:
        return ""
    rows = []
    for rank, p in enumerate(c.ranked):
        measured = (
            time_text(k.measured_s[rank]) if k.measured_s is not None and rank < len(k.measured_s) else ""
        )
        best = ' class="best"' if rank == k.chosen else ""
        rows.append(
            f'<tr{best}><td class="num">{rank + 1}</td><td class="mono">{escape(p.key)}</td>'
            f'<td class="num">{p.grid}</td><td class="num">{time_text(p.estimate.time_s)}</td>'
            f'<td class="num">{measured}</td><td>{_pill(device, p.estimate.bound_by)}</td></tr>'
        )
    shown = c.rejected[:_REJECTED_SHOWN]
    rejected = "".join(f"<li><code>{escape(str(t))}</code> {escape(why)}</li>" for t, why in shown)
    more = len(c.rejected) - len(shown)
    if more:
        rejected += f"<li>and {more} more</li>"
    turned_down = (
        f'<details class="plain"><summary>{len(c.rejected)} tiles turned down, and why</summary><ul>{rejected}</ul></details>'
        if c.rejected
        else ""
    )
    return (
        f"<section><h3>candidates: {len(c.ranked)} of {c.visited} tiles, searched in {time_text(c.seconds)}</h3>"
        '<table><tr><th class="num">rank</th><th>tile</th><th class="num">programs</th><th class="num">predicted</th>'
        f'<th class="num">measured</th><th>bound by</th></tr>{"".join(rows)}</table>{turned_down}</section>'
    )


def _externs(externs: tuple[ExternReport, ...]) -> str:
    if not externs:
        return '<h2>Calls to ATen</h2><p class="soft">None: everything runs in kernels of ours.</p>'
    rows = "".join(
        f"<tr><td><code>{escape(e.target)}</code>"
        + "".join(f'<div class="soft mono">{escape(w)}</div>' for w in e.where[:3])
        + f'</td><td class="num">{e.calls}</td><td class="num">{"" if e.flops is None else f"{e.flops / 1e9:.3g} G"}</td>'
        f"<td>{escape(e.reason)}</td></tr>"
        for e in sorted(externs, key=lambda e: -e.calls)
    )
    return (
        '<h2>Calls to ATen</h2><div class="panel"><table><tr><th>operator</th><th class="num">calls</th>'
        f'<th class="num">FLOPs</th><th>because</th></tr>{rows}</table></div>'
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
        f'<h2>The device, as the search sees it</h2><div class="panel"><p><b>{escape(device.name)}</b>, {device.units} units. '
        f'{escape(peaks)}.</p><table><tr><th>level</th><th class="num">capacity</th><th class="num">bandwidth</th>'
        f'<th class="num">transaction</th><th></th></tr>{rows}</table><p class="soft">{escape(device.source)}</p></div>'
    )


__all__ = ["STYLE", "render", "share"]
