"""The report as one HTML page: layers, which format covers which part, and the graph. No scripts, no other files."""

from __future__ import annotations

from html import escape

from torchroller.page import STYLE

from .graph_page import graph_svg
from .pictures import PART_COLOURS, cover_picture, part_kind
from .propagation.analysis import Propagation
from .reporting import Report, Row, time_text

_STYLE = """
main { max-width:1240px; } img.cover { width:112px; height:70px; image-rendering:pixelated; border-radius:4px; display:block; }
.why { color:var(--soft); font-size:13px; max-width:300px; } .scroll { overflow:auto; max-height:1400px; }
svg.graph { max-width:none; } svg.graph image { image-rendering:pixelated; }
svg.graph .box { fill:var(--card); stroke:var(--line); stroke-width:1.2; } svg.graph .sparse { stroke:var(--lv3); }
svg.graph .edge { fill:none; stroke:var(--soft); stroke-width:1.1; opacity:.55; } svg.graph .gain { fill:var(--lv0); font-size:11px; }
.key { display:inline-block; width:11px; height:11px; border-radius:3px; margin:0 5px 0 14px; vertical-align:-1px; }
"""


def page(report: Report, propagation: Propagation | None) -> str:
    """The whole page; the graph is drawn where a propagation is given."""
    before, after = sum(r.macs_before for r in report.rows), sum(r.macs for r in report.rows)
    alive = sum(r.macs * r.density for r in report.rows)
    measured = [r.measured_s for r in report.rows if r.measured_s is not None]
    figures = [
        (f"{report.parameters_before:,}", "parameters before"),
        (f"{report.parameters:,}", "parameters alive"),
        (f"{before / 1e6:,.0f} M", "multiply-adds before"),
        (f"{after / 1e6:,.0f} M", "after structure"),
        (f"{alive / 1e6:,.0f} M", "of them alive"),
        (str(len(report.folded)), "constants folded"),
    ]
    if measured:
        figures.append((f"{sum(measured) * 1e3:,.1f} ms", "layers, measured one by one"))
    cards = "".join(f'<div class="card"><b>{escape(a)}</b><span>{escape(b)}</span></div>' for a, b in figures)
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>torchsparta report</title>",
        f"<style>{STYLE}{_STYLE}</style><main><h1>torchsparta report</h1>",
        f'<p class="soft">{escape(report.summary())}</p><div class="cards">{cards}</div>',
        f"<h2>Layers</h2>{_legend()}<div class=panel><table>{_head()}",
        *map(_layer, report.rows),
        "</table></div>",
    ]
    if propagation is not None:
        gained = propagation.gained()
        total = sum(gained.values())
        parts.append(
            "<h2>Graph</h2><p class=soft>Each box is an operator with its result and the parameters it reads first. "
            "Blue is alive, yellow constant, paper pruned. "
            f"Propagation pruned {total:,} elements of {len(gained)} parameters beyond the masks.</p>"
            f'<div class="panel scroll">{graph_svg(propagation)}</div>'
        )
        if propagation.scrambled:
            parts.append(
                f"<p class=soft>Scrambled, not relied on: {escape(', '.join(propagation.scrambled))}</p>"
            )
    parts += [f"<p>note: {escape(n)}</p>" for n in report.notes]
    return "\n".join([*parts, "</main></html>"])


def _legend() -> str:
    keys = "".join(
        f'<span class=key style="background:rgb{colour}"></span>{escape(kind)}'
        for kind, colour in PART_COLOURS.items()
    )
    return f'<p class="soft">Pictures show which format stores which part of the weight:{keys}</p>'


def _head() -> str:
    names = ("layer", "weight", "cover", "alive", "format", "KiB", "MMAC", "predicted", "measured", "why")
    right = {"alive", "KiB", "MMAC", "predicted", "measured"}
    return "<tr>" + "".join(f"<th{' class=num' if n in right else ''}>{n}" for n in names)


def _layer(r: Row) -> str:
    shape = "×".join(map(str, r.shape_before))
    now = f"<br>→ {'×'.join(map(str, r.shape))}" if r.shape != r.shape_before else ""
    picture = f'<img class=cover src="{cover_picture(r.parts)}" alt="{_kinds(r)}">' if r.parts else ""
    after = "".join(f" → {escape(e)}" for e in r.epilogue)
    bits = f"<br><span class=soft>{'/'.join(map(str, r.bits))} bits</span>" if r.bits else ""
    return (
        f"<tr><td><b>{escape(r.name)}</b><br><span class=soft>{escape(r.op)}{after}</span><td>{shape}{now}<td>{picture}"
        f"<td class=num>{r.density:.1%}<td>{escape(r.format)}{bits}"
        f"<td class=num>{r.bytes_before / 1024:,.0f}<br>→ {r.bytes / 1024:,.0f}"
        f"<td class=num>{r.macs_before / 1e6:,.1f}<br>→ {r.macs / 1e6:,.1f}"
        f"<td class=num>{time_text(r.predicted_s)}<td class=num>{time_text(r.measured_s)}"
        f"<td class=why>{escape(r.reason)}"
    )


def _kinds(r: Row) -> str:
    return escape(" + ".join(dict.fromkeys(map(part_kind, r.parts))))
