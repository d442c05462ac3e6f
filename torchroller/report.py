"""What was decided and why: `Report`, as text, JSON and one HTML page.

A report is made from the execution plans that the backend keeps (collect.py); it holds no tensors and outlives them.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchroller.cost import time_text
from torchroller.expr import TensorExpr
from torchroller.search import Construction
from torchroller.spec import DeviceSpec, rate_text
from torchroller.tile import RProgram

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>[^\s:]+)')
_REASONS_SHOWN = 5  # rejected tiles named in the text form; the rest are counted


@dataclass(frozen=True)
class KernelReport:
    """One kernel of ours. `calls` is how often a run of the model launches it.

    measured_s: seconds of each ranked rProgram in `construction`, where they were measured
    origins: FX nodes of the first such kernel, with the user's line where it is known
    """

    name: str
    expr: TensorExpr
    program: RProgram | None
    construction: Construction | None
    source: str
    calls: int = 1
    measured_s: tuple[float, ...] | None = None
    cached: bool = False
    origins: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        return self.expr.flops() * self.calls

    @property
    def predicted_s(self) -> float | None:
        return None if self.program is None else self.program.estimate.time_s * self.calls

    @property
    def chosen(self) -> int | None:
        """Rank of the program among the constructed ones, from 0."""
        if self.construction is None or self.program is None:
            return None
        keys = [p.key for p in self.construction.ranked]
        return keys.index(self.program.key) if self.program.key in keys else None

    def __str__(self) -> str:
        times = f" x {self.calls}" if self.calls > 1 else ""
        lines = [f"{self.name}{times}"]
        lines += [f"  from {origin}" for origin in self.origins]
        if self.program is None:
            lines.append("  tiles: a plain choice, nothing was searched")
            return "\n".join(lines)
        lines += [f"  {line}" for line in str(self.program).split("\n")[1:]]
        if self.measured_s is not None and self.chosen is not None:
            best = time_text(self.measured_s[self.chosen])
            lines.append(f"  measured {best}, the fastest of {len(self.measured_s)} candidates")
        if self.construction is not None and self.construction.rejected:
            shown = self.construction.rejected[:_REASONS_SHOWN]
            lines += [f"  rejected {tile}: {reason}" for tile, reason in shown]
            more = len(self.construction.rejected) - len(shown)
            if more:
                lines.append(f"  and {more} more rejected tiles")
        return "\n".join(lines)


@dataclass(frozen=True)
class ExternReport:
    """Calls of one ATen operator that we did not lower, and why. `flops` is None where nobody counts them."""

    target: str
    reason: str
    where: tuple[str, ...] = ()
    calls: int = 1
    flops: int | None = None

    def __str__(self) -> str:
        times = f" x {self.calls}" if self.calls > 1 else ""
        place = f" at {self.where[0]}" if self.where else ""
        return f"{self.target}{times}: {self.reason}{place}"


@dataclass(frozen=True)
class Report:
    """Everything that one compiled model runs, and why.

    call_s, eager_s: median seconds of a call, ours and eager PyTorch's, where they were measured
    """

    name: str
    device: DeviceSpec
    kernels: tuple[KernelReport, ...]
    externs: tuple[ExternReport, ...]
    graphs: int = 1
    compile_s: float | None = None
    call_s: float | None = None
    eager_s: float | None = None
    versions: tuple[tuple[str, str], ...] = field(default=())

    @property
    def launches(self) -> int:
        return sum(k.calls for k in self.kernels)

    @property
    def extern_calls(self) -> int:
        return sum(e.calls for e in self.externs)

    @property
    def nodes(self) -> tuple[int, int]:
        """Graph nodes in our kernels, and all nodes that compute something."""
        ours = sum(k.calls * max(1, len(k.expr.source)) for k in self.kernels)
        return ours, ours + self.extern_calls

    @property
    def flops(self) -> tuple[int, int]:
        """Floating-point operations in our kernels, and of everything whose operations are known."""
        ours = sum(k.flops for k in self.kernels)
        return ours, ours + sum(e.flops or 0 for e in self.externs)

    @property
    def predicted_s(self) -> float:
        return sum(k.predicted_s or 0.0 for k in self.kernels)

    def __str__(self) -> str:
        ours, nodes = self.nodes
        in_ours, flops = self.flops
        unknown = sum(e.calls for e in self.externs if e.flops is None)
        lines = [f"{self.name} on {self.device.name}"]
        graphs = f" in {self.graphs} graphs" if self.graphs > 1 else ""
        what = f"{self.launches} launches of {len(self.kernels)} kernels"
        lines.append(f"{what}, {self.extern_calls} extern calls{graphs}")
        lines.append(
            f"in our kernels: {share(ours, nodes)} of {nodes} nodes, {share(in_ours, flops)} of FLOPs"
        )
        if unknown:
            lines.append(f"  ({unknown} extern calls whose FLOPs are not known are left out)")
        lines.append(f"predicted {time_text(self.predicted_s)} in our kernels a call")
        if self.call_s is not None:
            ratio = f", {self.eager_s / self.call_s:.2f} x eager" if self.eager_s else ""
            lines.append(f"measured {time_text(self.call_s)} a call{ratio}")
        lines.append("")
        for kernel in sorted(self.kernels, key=lambda k: -(k.predicted_s or 0.0)):
            lines += [str(kernel), ""]
        if self.externs:
            lines.append("extern calls")
            lines += [f"  {e}" for e in self.externs]
        return "\n".join(lines).rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; seconds, bytes and FLOPs as numbers."""
        ours, nodes = self.nodes
        in_ours, flops = self.flops
        return {
            "name": self.name,
            "device": {"name": self.device.name, "kind": self.device.kind, "arch": self.device.arch},
            "versions": dict(self.versions),
            "graphs": self.graphs,
            "compile_s": self.compile_s,
            "call_s": self.call_s,
            "eager_s": self.eager_s,
            "nodes": {"ours": ours, "all": nodes},
            "flops": {"ours": in_ours, "known": flops},
            "predicted_s": self.predicted_s,
            "kernels": [_kernel_dict(k) for k in self.kernels],
            "externs": [
                {
                    "target": e.target,
                    "reason": e.reason,
                    "where": list(e.where),
                    "calls": e.calls,
                    "flops": e.flops,
                }
                for e in self.externs
            ],
        }

    def html(self) -> str:
        """One self-contained page."""
        from torchroller.page import render

        return render(self)

    def save(self, path: str | Path) -> Path:
        """Write the report; `.html`, `.json`, anything else is text."""
        path = Path(path)
        if path.suffix == ".json":
            text = json.dumps(self.to_dict(), indent=1)
        else:
            text = self.html() if path.suffix in (".html", ".htm") else f"{self}\n"
        path.write_text(text, encoding="utf-8")
        return path


def user_line(trace: str) -> str:
    """The innermost frame of a stack trace in one line: file:line in function: code. Other text as it is."""
    lines = [line.strip() for line in trace.strip().splitlines()]
    frames = [(i, found) for i, line in enumerate(lines) if (found := _FRAME.search(line))]
    if not frames:
        return lines[0] if lines else ""
    at, frame = frames[-1]
    path = Path(frame["file"])
    parts = path.parts
    if "site-packages" in parts:
        path = Path(*parts[parts.index("site-packages") + 1 :])
    elif path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    rest = lines[at][frame.end() :].removeprefix(":").strip()
    code = rest or (lines[at + 1] if at + 1 < len(lines) else "")
    return f"{path}:{frame['line']} in {frame['function']}" + (f": {code}" if code else "")


def share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _kernel_dict(k: KernelReport) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": k.name,
        "calls": k.calls,
        "from": list(k.origins),
        "expression": str(k.expr),
        "flops": k.flops,
        "cached": k.cached,
        "source": k.source,
        "measured_s": None if k.measured_s is None else list(k.measured_s),
    }
    if k.program is not None:
        p, e = k.program, k.program.estimate
        found["program"] = {
            "block": dict(p.block),
            "step": dict(p.step),
            "grid": p.grid,
            "num_warps": p.num_warps,
            "num_stages": p.num_stages,
            "levels": {name: tile.as_dict() for name, tile in p.levels},
            "predicted_s": e.time_s,
            "bound_by": e.bound_by,
            "compute_s": e.compute_s,
            "level_s": dict(e.level_s),
            "level_bytes": dict(e.level_bytes),
            "overhead_s": e.overhead_s,
            "padding_waste": e.padding_waste,
        }
    if k.construction is not None:
        found["candidates"] = [
            {"key": p.key, "predicted_s": p.estimate.time_s, "bound_by": p.estimate.bound_by}
            for p in k.construction.ranked
        ]
        found["rejected"] = [{"tile": t.as_dict(), "reason": why} for t, why in k.construction.rejected]
        found["search_s"] = k.construction.seconds
    return found


def summary(report: Report) -> list[tuple[str, str]]:
    """Headline figures, as (label, value)."""
    ours, nodes = report.nodes
    in_ours, flops = report.flops
    figures = [
        ("kernels", str(len(report.kernels))),
        ("launches a call", str(report.launches)),
        ("FLOPs in our kernels", share(in_ours, flops)),
        ("nodes in our kernels", share(ours, nodes)),
        ("predicted, our kernels", time_text(report.predicted_s)),
    ]
    if report.call_s is not None:
        figures.append(("measured a call", time_text(report.call_s)))
        if report.eager_s:
            figures.append(("against eager", f"{report.eager_s / report.call_s:.2f} x"))
    elif report.predicted_s > 0 and math.isfinite(report.predicted_s):
        figures.append(("predicted rate", f"{rate_text(in_ours / report.predicted_s)[:-1]}FLOP/s"))
    return figures
