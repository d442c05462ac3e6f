"""The picture of a run: speed-up over eager PyTorch, a bar a contender, as SVG text that follows light and dark.

`speedups` is a pure function of the figures, so the same figures give the same file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

_COLOURS = {  # light, dark
    "inductor": ("#9aa5b1", "#8593a3"), "inductor-max": ("#6b7a8c", "#b3bfcc"), "onnxruntime": ("#c9a96a", "#c9a96a"),
    "openvino": ("#7fb3a0", "#7fb3a0"), "eager-graphs": ("#c9a96a", "#c9a96a"), "roller": ("#d64545", "#f06a6a"),
    "roller-max": ("#a83232", "#f59b9b"), "roller-graphs": ("#7d2ba8", "#c08ae0"),
}  # fmt: skip
_BAR, _GAP, _LEFT, _RIGHT, _WIDTH = 9, 9, 210, 70, 900
_MOST_ROWS = 40  # of a picture; the document has all of them


def speedups(data: Mapping, title: str, names: Mapping[str, str]) -> str:
    """One group of bars a case, sorted by group as measured; the line is eager. Longer bars are faster."""
    results = [r for r in data["results"] if "eager" in r["rows"] and len(r["rows"]) > 1]
    groups = {r["group"]: n for n, r in reversed(list(enumerate(results)))}
    results.sort(key=lambda r: groups[r["group"]])
    shown, left_out = results[:_MOST_ROWS], max(0, len(results) - _MOST_ROWS)
    present = [n for n in _COLOURS if any(n in r["rows"] for r in shown)]
    speeds = [
        {n: r["rows"]["eager"]["median_s"] / r["rows"][n]["median_s"] for n in present if n in r["rows"]}
        for r in shown
    ]
    longest = min(8.0, max([1.25, *(s for row in speeds for s in row.values())]))
    scale = (_WIDTH - _LEFT - _RIGHT) / longest
    body: list[str] = []
    y = 66.0
    group = ""
    for r, row in zip(shown, speeds):
        if r["group"] != group:
            group = r["group"]
            y += 8
            body.append(f'<text class="group" x="8" y="{y + 10:.0f}">{escape(group)}</text>')
            y += 21
        height = _BAR * max(1, len(row))
        body.append(
            f'<text x="{_LEFT - 8}" y="{y + height / 2 + 4:.1f}" text-anchor="end">{escape(r["case"])}</text>'
        )
        for k, (name, speed) in enumerate(row.items()):
            at, width = y + k * _BAR, min(speed, longest) * scale
            tip = f"{names.get(name, name)}: {speed:.2f} x eager"
            body.append(
                f'<rect class="{name}" x="{_LEFT}" y="{at:.1f}" width="{width:.1f}" height="{_BAR - 1}">'
                f"<title>{escape(tip)}</title></rect>"
            )
            if name.startswith("roller") or speed > longest:
                body.append(
                    f'<text class="figure" x="{_LEFT + width + 4:.1f}" y="{at + 8:.1f}">{speed:.2f}×</text>'
                )
        y += height + _GAP
    height = y + 34
    axis = []
    for tick in range(math.floor(longest) + 1):
        x = _LEFT + tick * scale
        kind = "one" if tick == 1 else "grid"
        axis.append(f'<line class="{kind}" x1="{x:.1f}" x2="{x:.1f}" y1="62" y2="{y:.0f}"/>')
        axis.append(f'<text class="soft" x="{x:.1f}" y="{y + 14:.0f}" text-anchor="middle">{tick}×</text>')
    note = f"; {left_out} more rows in docs/benchmarks.md" if left_out else ""
    axis.append(
        f'<text class="soft" x="8" y="{y + 30:.0f}">speed-up over eager PyTorch, medians{note}</text>'
    )
    legend, x = [], 8.0
    for name in present:
        label = names.get(name, name)
        legend.append(f'<rect class="{name}" x="{x:.0f}" y="38" width="11" height="11"/>')
        legend.append(f'<text x="{x + 16:.0f}" y="48">{escape(label)}</text>')
        x += 30 + 6.9 * len(label)
    about = data["machine"]
    head = f"{title}, torch {about['versions'].get('torch', '?')}, {about['when']}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" '
        f'height="{height:.0f}" role="img" aria-label="{escape(head, quote=True)}"><style>{_style()}</style>'
        f'<rect class="paper" width="100%" height="100%"/><text class="head" x="8" y="22">{escape(head)}</text>'
        f"{''.join(legend)}{''.join(axis)}{''.join(body)}</svg>\n"
    )


def shares(data: Mapping, title: str, curves: Mapping[str, list[float]]) -> str:
    """How many of the operators reach which ratio: a falling curve for each name, a dot for each operator.

    Ratios are drawn from a quarter to four, doublings equally far apart; dots beyond stand at the edge.
    """
    width, top, bottom, left, right = _WIDTH, 66, 330, 60, 30
    colours = {name: c for name, c in zip(curves, ("roller", "openvino"))}

    def x(ratio: float) -> float:
        return left + (min(2.0, max(-2.0, math.log2(ratio))) + 2.0) / 4.0 * (width - left - right)

    def y(part: float) -> float:
        return bottom - part * (bottom - top)

    body = []
    for tick in (0.25, 0.5, 0.75, 0.9, 1.0, 1.5, 2.0, 4.0):
        kind = "one" if tick == 1 else "grid"
        body.append(f'<line class="{kind}" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{bottom}"/>')
        body.append(
            f'<text class="soft" x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>'
        )
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        body.append(
            f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        )
        body.append(
            f'<text class="soft" x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.0%}</text>'
        )
    legend, at = [], 8.0
    for name, values in curves.items():
        ordered = sorted(values, reverse=True)
        dots = [(x(v), y((n + 1) / len(ordered))) for n, v in enumerate(ordered)]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in dots)
        body.append(f'<polyline fill="none" stroke="{_COLOURS[colours[name]][0]}" points="{line}"/>')
        body += [
            f'<circle class="{colours[name]}" cx="{a:.1f}" cy="{b:.1f}" r="2.5"><title>{v:.2f}</title></circle>'
            for (a, b), v in zip(dots, ordered)
        ]
        legend.append(f'<rect class="{colours[name]}" x="{at:.0f}" y="38" width="11" height="11"/>')
        legend.append(f'<text x="{at + 16:.0f}" y="48">{escape(name)}</text>')
        at += 30 + 6.9 * len(name)
    about = data["machine"]
    head = f"{title}, torch {about['versions'].get('torch', '?')}, {about['when']}"
    note = "share of the operators that reach a ratio; right of the line is faster"
    body.append(f'<text class="soft" x="{left}" y="{bottom + 34}">{note}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} 380" width="{width}" height="380" role="img" '
        f'aria-label="{escape(head, quote=True)}"><style>{_style()}</style>'
        f'<rect class="paper" width="100%" height="100%"/><text class="head" x="8" y="22">{escape(head)}</text>'
        f"{''.join(legend)}{''.join(body)}</svg>\n"
    )


def _style() -> str:
    light = "".join(f".{n}{{fill:{a}}}" for n, (a, _) in _COLOURS.items())
    dark = "".join(f".{n}{{fill:{b}}}" for n, (_, b) in _COLOURS.items())
    return (
        "text{font:12px system-ui,sans-serif;fill:#1f2430}.head{font-size:14px;font-weight:600}"
        ".group{font-weight:600}.soft{fill:#667085;font-size:11px}.figure{font-size:10px;paint-order:stroke;stroke:#fff;stroke-width:3px}.paper{fill:#fff}"
        ".grid{stroke:#e4e1da}.one{stroke:#1f2430}"
        f"{light}@media(prefers-color-scheme:dark){{text{{fill:#e7e9ee}}.soft{{fill:#98a2b3}}.paper{{fill:#0d1117}}.figure{{stroke:#0d1117}}"
        f".grid{{stroke:#2d323c}}.one{{stroke:#e7e9ee}}{dark}}}"
    )
