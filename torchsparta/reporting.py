"""What became of a model, per layer: sparsity, format, bytes, multiply-adds, and why."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from .api import SparsityInfo
from .errors import SpartaError
from .propagation.analysis import Propagation


@dataclass(frozen=True)
class Row:
    """One layer. bytes: of its tensors as the chosen format stores them; macs: multiply-adds of one call."""

    name: str
    op: str
    shape_before: tuple[int, ...]
    shape: tuple[int, ...]
    density: float
    bits: tuple[int, ...]
    format: str
    reason: str
    bytes_before: int
    bytes: int
    macs_before: int
    macs: int
    epilogue: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """Prints as a table; `html()` is a page; `rows` are the numbers."""

    rows: tuple[Row, ...]
    parameters_before: int
    parameters: int
    folded: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        head = ("layer", "op", "weight", "now", "alive", "bits", "format", "KiB", "now", "MMAC", "now", "why")
        body = [_cells(r) for r in self.rows]
        widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in [head, *body]]
        return "\n".join([*lines, self.summary()] + [f"note: {n}" for n in self.notes])

    def summary(self) -> str:
        before, after = sum(r.macs_before for r in self.rows), sum(r.macs for r in self.rows)
        alive = sum(r.macs * r.density for r in self.rows)
        return (
            f"{self.parameters_before:,} parameters became {self.parameters:,}; {before / 1e6:,.1f} M "
            "multiply-adds "
            f"became {after / 1e6:,.1f} M dense, {alive / 1e6:,.1f} M of them alive; "
            f"constants folded at {len(self.folded)} places"
        )

    def html(self, propagation: Propagation | None = None) -> str:
        """A page of its own; with `propagation`, every tensor with a picture of its mask."""
        head = ("layer", "op", "weight", "now", "alive", "bits", "format", "KiB", "now", "MMAC", "now", "why")
        parts = [
            "<!doctype html><meta charset=utf-8><title>torchsparta report</title>",
            "<style>body{font:14px system-ui;margin:2em}td,th{padding:.2em "
            ".8em;text-align:left;vertical-align:top}"
            "tr:nth-child(even){background:#f4f4f4}pre{font-size:6px;line-height:6px;margin:0}</style>",
            f"<p>{html.escape(self.summary())}</p>",
            _table(head, [[html.escape(c) for c in _cells(r)] for r in self.rows]),
        ]
        if propagation is not None:
            gained = propagation.gained()
            rows = [
                [
                    html.escape(propagation.kinds[name]),
                    html.escape(name),
                    html.escape(str(tesa)),
                    f"+{gained[name]:,}" if name in gained else "",
                    f"<pre>{html.escape(tesa.heatmap(16, 96))}</pre>",
                ]
                for name, tesa in propagation.tensors.items()
            ]
            parts.append(_table(("kind", "tensor", "sparsity", "gained", "picture"), rows))
        parts += [f"<p>note: {html.escape(n)}</p>" for n in self.notes]
        return "\n".join(parts)


def _cells(r: Row) -> tuple[str, ...]:
    return (
        r.name,
        " ".join((r.op, *r.epilogue)),
        "x".join(map(str, r.shape_before)),
        "x".join(map(str, r.shape)) if r.shape != r.shape_before else "same",
        f"{r.density:.1%}",
        "/".join(map(str, r.bits)) or "-",
        r.format,
        f"{r.bytes_before / 1024:,.1f}",
        f"{r.bytes / 1024:,.1f}",
        f"{r.macs_before / 1e6:,.2f}",
        f"{r.macs / 1e6:,.2f}",
        r.reason,
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["<table><tr>" + "".join(f"<th>{c}" for c in head)]
    lines += ["<tr>" + "".join(f"<td>{c}" for c in row) for row in rows]
    return "\n".join([*lines, "</table>"])


def report(fast: fx.GraphModule) -> Report:
    """The report of a model that `sparsify` or `load` returned."""
    info = getattr(fast, "meta", {}).get("sparta")
    if info is None and hasattr(fast, "sparse"):  # sparsified in place
        return report(fast.sparse)  # type: ignore[arg-type]
    if not isinstance(info, SparsityInfo):
        raise SpartaError(f"report() takes what sparsify() returns, got a {type(fast).__name__}")
    rows = []
    for site in info.sites:
        module = fast.get_submodule(site.module)
        held = [*module.parameters(), *module.buffers()]
        stored = sum(t.numel() * t.element_size() for t in held)
        width = next((t.element_size() for t in held if t.is_floating_point()), 4)
        before = width
        for size in site.shape_before:
            before *= size
        if getattr(module, "bias", None) is not None:
            before += width * site.shape_before[0]
        rows.append(
            Row(
                site.name,
                site.op,
                site.shape_before,
                site.shape,
                site.density,
                site.bits,
                str(getattr(module, "sparta_format", type(module).__name__)),
                str(getattr(module, "sparta_reason", "")),
                before,
                stored,
                site.macs_before,
                site.macs,
                site.epilogue,
            )
        )
    return Report(tuple(rows), info.parameters_before, info.parameters, info.folded, info.notes)
