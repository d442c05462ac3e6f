"""Inline SVG for the report page: rooflines, time bars, tiles per memory level. Pure functions to text.

Colours are CSS classes and variables of the page (`page.STYLE`), so that light and dark both work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from torchroller.cost import Estimate, time_text
from torchroller.space import Space
from torchroller.spec import DeviceSpec, rate_text, size_text
from torchroller.tile import RProgram, RTile, ceil_div

_MOST_LINES = 32  # of a tile grid: finer ones are drawn as hatching


@dataclass(frozen=True)
class Point:
    """A kernel in a roofline plot: FLOP per byte, FLOP/s, CSS class, label, weight of its area (0 to 1), its number."""

    intensity: float
    rate: float
    kind: str
    label: str
    weight: float = 0.2
    number: int | None = None


class _LogPlot:
    """A log-log plot area: data to pixels, axes with powers of ten."""

    def __init__(self, width: int, height: int, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.width, self.height = width, height
        self.left, self.right, self.top, self.bottom = 58, 14, 12, 38
        self.x0, self.x1 = math.floor(math.log10(x[0])), math.ceil(math.log10(x[1]))
        self.y0, self.y1 = math.floor(math.log10(y[0])), math.log10(y[1]) + 0.25
        self.x1 = max(self.x1, self.x0 + 1)

    def px(self, x: float) -> float:
        share = (math.log10(x) - self.x0) / (self.x1 - self.x0)
        return self.left + share * (self.width - self.left - self.right)

    def py(self, y: float) -> float:
        share = (math.log10(y) - self.y0) / (self.y1 - self.y0)
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)

    def axes(self) -> list[str]:
        out = []
        for p in range(self.x0, self.x1 + 1):
            x = self.px(10.0**p)
            out.append(
                f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{self.top}" y2="{self.height - self.bottom}"/>'
            )
            out.append(f'<text class="tick" x="{x:.1f}" y="{self.height - self.bottom + 16}" text-anchor="middle">{10.0**p:g}</text>')  # noqa: E501  # fmt: skip
        for p in range(self.y0, math.floor(self.y1) + 1):
            y = self.py(10.0**p)
            out.append(
                f'<line class="grid" x1="{self.left}" x2="{self.width - self.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            )
            label = rate_text(10.0**p)[:-1].replace(" ", "")
            out.append(
                f'<text class="tick" x="{self.left - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
            )
        middle = (self.left + self.width - self.right) / 2
        out.append(
            f'<text class="axis" x="{middle:.0f}" y="{self.height - 4}" text-anchor="middle">FLOP per byte moved</text>'
        )
        out.append(f'<text class="axis" x="4" y="{self.top}" text-anchor="start">FLOP/s</text>')
        return out

    def roof(self, bandwidth: float, peak: float, kind: str, name: str) -> str:
        """The bandwidth line of one memory level up to the compute peak."""
        x_low, x_knee = 10.0**self.x0, peak / bandwidth
        low_y = max(bandwidth * x_low, 10.0**self.y0)
        start = low_y / bandwidth
        end = min(x_knee, 10.0**self.x1)
        if start >= end:
            return ""
        tip = f"<title>{escape(name)}: {rate_text(bandwidth)}/s</title>"
        return (
            f'<line class="roof {kind}" x1="{self.px(start):.1f}" y1="{self.py(low_y):.1f}" '
            f'x2="{self.px(end):.1f}" y2="{self.py(bandwidth * end):.1f}">{tip}</line>'
        )

    def ceiling(self, peak: float, knee: float, label: str) -> str:
        x = max(10.0**self.x0, min(knee, 10.0**self.x1))
        y = self.py(peak)
        return (
            f'<line class="roof peak" x1="{self.px(x):.1f}" x2="{self.width - self.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="tick" x="{self.width - self.right}" y="{y - 5:.1f}" text-anchor="end">{escape(label)}</text>'
        )


def _svg(width: int, height: int, body: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" style="max-width:{round(1.15 * width)}px" role="img" '
        f'aria-label="{escape(title, quote=True)}">'
        f"{''.join(body)}</svg>"
    )


def level_kind(device: DeviceSpec, name: str) -> str:
    """CSS class of a memory level by its depth: lv0 is DRAM."""
    names = [lv.name for lv in device.levels]
    return f"lv{names.index(name)}" if name in names else "compute" if name == "compute" else "launch"


def roofline(
    device: DeviceSpec, peak: float, points: Sequence[Point], size: tuple[int, int], title: str, labels: bool
) -> str:
    """Points under the roofs of every memory level and the compute peak."""
    xs = [p.intensity for p in points] or [1.0]
    ys = [p.rate for p in points] or [peak]
    knee = peak / device.dram.bandwidth_bytes_per_s
    plot = _LogPlot(*size, (min(xs) / 1.5, max(knee * 3, *xs) * 1.5), (min([*ys, peak / 30]) / 2, peak))
    body = plot.axes()
    aggregate = {
        lv.name: lv.bandwidth_bytes_per_s * (device.units if lv.private else 1) for lv in device.levels
    }
    for lv in device.levels:
        body.append(plot.roof(aggregate[lv.name], peak, level_kind(device, lv.name), lv.name))
    widest = max(aggregate.values())
    body.append(plot.ceiling(peak, peak / widest, f"peak {rate_text(peak)[:-1]}FLOP/s"))
    discs = []
    for p in sorted(points, key=lambda p: -p.weight):
        x, y, r = plot.px(p.intensity), plot.py(p.rate), 5 + 7 * math.sqrt(p.weight)
        tip = f"{p.label}: {p.intensity:.3g} FLOP/byte, {rate_text(p.rate)[:-1]}FLOP/s"
        circle = f'<circle class="point {p.kind}" cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"><title>{escape(tip)}</title></circle>'
        if p.number is not None:
            circle = f'<a href="#k{p.number - 1}">{circle}</a>'
        body.append(circle)
        discs.append((x, y, r, p))
    if labels:
        body += _numbers(discs, size)
    return _svg(*size, body, title)


def _numbers(discs: Sequence[tuple[float, float, float, Point]], size: tuple[int, int]) -> list[str]:
    """The discs' numbers: inside where a disc stands clear and is large enough, else below it with a line, side by side."""
    out: list[str] = []
    columns: list[float] = []  # x of the numbers that stand below
    for x, y, r, p in sorted(discs, key=lambda d: d[0]):
        clear = all(math.hypot(x - a, y - b) > r + c for a, b, c, q in discs if q is not p)
        if clear and r > 7.5:
            out.append(
                f'<text class="number" x="{x:.1f}" y="{y + 3.5:.1f}" text-anchor="middle">{p.number}</text>'
            )
            continue
        at = x
        while any(abs(at - taken) < 15 for taken in columns):
            at += 5
        at = min(at, size[0] - 16)
        columns.append(at)
        below = y + r + 18
        out.append(f'<line class="grid" x1="{x:.1f}" y1="{y + r:.1f}" x2="{at:.1f}" y2="{below - 10:.1f}"/>')
        out.append(f'<text class="name" x="{at:.1f}" y="{below:.1f}" text-anchor="middle">{p.number}</text>')
    return out


def kernel_roofline(device: DeviceSpec, space: Space, estimate: Estimate) -> str:
    """One kernel against every memory level: how many FLOPs it gets out of each byte that leaves the level."""
    rate = estimate.flops / estimate.time_s
    points = [
        Point(estimate.flops / moved, rate, level_kind(device, name), f"{name} ({size_text(moved)})", 0.1)
        for name, moved in estimate.level_bytes
        if moved > 0 and estimate.flops > 0
    ]
    return roofline(device, compute_peak(device, space), points, (430, 250), "roofline", labels=False)


def compute_peak(device: DeviceSpec, space: Space) -> float:
    peak = space.peak(device)
    return (peak.matrix_flops or peak.vector_flops) if space.has_dot else peak.vector_flops


def time_bars(device: DeviceSpec, estimate: Estimate) -> str:
    """Where the predicted time goes: arithmetic, each memory level, overhead. They overlap in time."""
    rows = [("compute", estimate.compute_s), *estimate.level_s, ("overhead", estimate.overhead_s)]
    longest = max(s for _, s in rows) or 1.0
    width, step, left = 430, 24, 74
    body = []
    for i, (name, seconds) in enumerate(rows):
        kind = "launch" if name == "overhead" else level_kind(device, name)
        y, length = i * step + 4, max(1.0, (width - left - 128) * seconds / longest)
        bound = name == estimate.bound_by or (name == "overhead" and estimate.bound_by == "launch")
        strong = ' class="strong"' if bound else ' class="tick"'
        body.append(f'<text{strong} x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(name)}</text>')
        body.append(f'<rect class="bar {kind}" x="{left}" y="{y}" width="{length:.1f}" height="16" rx="3"/>')
        mark = " ◂ bound" if bound else ""
        body.append(
            f'<text{strong} x="{left + length + 6:.1f}" y="{y + 13}">{time_text(seconds)}{mark}</text>'
        )
    return _svg(width, len(rows) * step + 4, body, "predicted time by resource")


def tile_panels(device: DeviceSpec, space: Space, program: RProgram) -> str:
    """One panel per memory level: the tile there, cut into the tiles of the next level, one of them lit."""
    cell, gap, top = 150, 26, 34
    levels = list(program.levels)
    body = []
    rows, cols = _shown_axes(space, program)
    for i, (name, tile) in enumerate(levels):
        x = i * (cell + gap)
        kind = level_kind(device, name) if name != "registers" else "regs"
        body.append(f'<text class="strong" x="{x}" y="13">{escape(name)}</text>')
        body.append(f'<text class="tick" x="{x}" y="27">{escape(_caption(device, space, name, tile))}</text>')
        inner = levels[i + 1][1] if i + 1 < len(levels) else None
        body += _panel(x, top, cell, tile, inner, (rows, cols), kind)
        if i + 1 < len(levels):
            ax = x + cell + gap / 2
            body.append(
                f'<text class="tick" x="{ax:.0f}" y="{top + cell / 2:.0f}" text-anchor="middle">▸</text>'
            )
        words = [f"{a}:{e}" for a, e in zip(tile.axes, tile.extents) if e > 1 or len(tile.axes) < 3]
        body.append(
            f'<text class="tick" x="{x}" y="{top + cell + 16}">{escape(" × ".join(words) or "1")}</text>'
        )
    width = len(levels) * (cell + gap) - gap
    return _svg(width, top + cell + 24, body, "tiles by memory level")


def _shown_axes(space: Space, program: RProgram) -> tuple[str | None, str]:
    """Which axes become rows and columns of the drawing: the tiled ones, spatial before reduce."""
    block = program.levels[-2][1]
    order = sorted(
        range(len(space.names)),
        key=lambda i: (space.is_reduce[i], -min(block.extents[i], 2), -space.extents[i]),
    )
    chosen = sorted(order[:2])
    names = [space.names[i] for i in chosen]
    if not names:
        return None, ""
    return (names[0], names[1]) if len(names) == 2 else (None, names[0])


def _caption(device: DeviceSpec, space: Space, name: str, tile: RTile) -> str:
    """Footprint of the tile, against what the level holds."""
    held = size_text(space.footprint(tile.extents))
    capacity = {lv.name: lv.capacity_bytes for lv in device.levels}.get(name)
    return held if capacity is None else f"{held} of {size_text(capacity)}"


def _panel(
    x: float, y: float, size: float, tile: RTile, inner: RTile | None, axes: tuple[str | None, str], kind: str
) -> list[str]:
    extents = tile.as_dict()
    height_axis, width_axis = axes
    w, h = extents.get(width_axis, 1), extents.get(height_axis, 1) if height_axis else 1
    # Shapes stay recognisable: the drawn ratio is the square root of the real one, at most 5 : 1.
    ratio = max(0.2, min(5.0, math.sqrt(w / h)))
    pw, ph = (size, size / ratio) if ratio >= 1 else (size * ratio, size)
    oy = y + (size - ph) / 2
    out = [f'<rect class="tile {kind}" x="{x:.1f}" y="{oy:.1f}" width="{pw:.1f}" height="{ph:.1f}" rx="2"/>']
    if inner is None:
        return out
    part = inner.as_dict()
    nx = ceil_div(w, max(1, part.get(width_axis, 1)))
    ny = ceil_div(h, max(1, part.get(height_axis, 1))) if height_axis else 1
    for count, horizontal in ((nx, True), (ny, False)):
        drawn = min(count, _MOST_LINES)
        for k in range(1, drawn):
            at = k / drawn
            cls = "cut" if count <= _MOST_LINES else "cut fine"
            if horizontal:
                out.append(
                    f'<line class="{cls}" x1="{x + pw * at:.1f}" x2="{x + pw * at:.1f}" y1="{oy:.1f}" y2="{oy + ph:.1f}"/>'
                )
            else:
                out.append(
                    f'<line class="{cls}" x1="{x:.1f}" x2="{x + pw:.1f}" y1="{oy + ph * at:.1f}" y2="{oy + ph * at:.1f}"/>'
                )
    if nx * ny == 1:
        return out
    lit_w, lit_h = pw / min(nx, _MOST_LINES), ph / min(ny, _MOST_LINES)
    tip = f"{nx * ny} of the next level's tiles"
    out.append(
        f'<rect class="lit" x="{x:.1f}" y="{oy:.1f}" width="{lit_w:.1f}" height="{lit_h:.1f}"><title>{tip}</title></rect>'
    )
    return out
