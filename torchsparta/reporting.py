"""What became of a model, per layer: sparsity, format, bytes, multiply-adds, predicted and measured time, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from .api import SiteRecord, SparsityInfo
from .calibration import measure as seconds_of
from .errors import SpartaError
from .formats import SparseFormat
from .propagation.analysis import Propagation
from .specialise.program import interpreting

HEAD = (
    "layer", "op", "weight", "now", "alive", "bits", "format", "KiB", "now", "MMAC", "now", "predicted", "measured",
    "why",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One layer. bytes: of its tensors as the chosen format stores them; macs: multiply-adds of one call.

    predicted_s: by the cost model, None where nothing was chosen by it. measured_s: the layer alone with random
    input, None where it was not measured. parts: the packed formats that cover the weight.
    """

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
    predicted_s: float | None = None
    measured_s: float | None = None
    parts: tuple[SparseFormat, ...] = ()


@dataclass(frozen=True)
class Report:
    """Prints as a table (in colour with rich); `html()` is a page; `rows` are the numbers."""

    rows: tuple[Row, ...]
    parameters_before: int
    parameters: int
    folded: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        body = [cells(r) for r in self.rows]
        widths = [max(len(row[i]) for row in [HEAD, *body]) for i in range(len(HEAD))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in [HEAD, *body]]
        return "\n".join([*lines, self.summary()] + [f"note: {n}" for n in self.notes])

    def __rich__(self) -> Any:
        """The table for `rich.print(report)`."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold", pad_edge=False)
        for i, name in enumerate(HEAD):
            table.add_column(
                name, justify="right" if 7 <= i < 13 else "left", overflow="fold", no_wrap=i < 13
            )
        for row in self.rows:
            style = "dim" if row.format == "dense" else "cyan"
            table.add_row(*(Text(c, style=style if i == 6 else "") for i, c in enumerate(cells(row))))
        notes = [Text(f"note: {n}", style="yellow") for n in self.notes]
        return Group(table, Text(self.summary(), style="bold"), *notes)

    def summary(self) -> str:
        before, after = sum(r.macs_before for r in self.rows), sum(r.macs for r in self.rows)
        alive = sum(r.macs * r.density for r in self.rows)
        return (
            f"{self.parameters_before:,} parameters, {self.parameters:,} of them alive; {before / 1e6:,.1f} M "
            "multiply-adds "
            f"became {after / 1e6:,.1f} M dense, {alive / 1e6:,.1f} M of them alive; "
            f"constants folded at {len(self.folded)} places"
        )

    def html(self, propagation: Propagation | None = None) -> str:
        """A page of its own; with `propagation`, the graph with a picture of every tensor's mask."""
        from .report_page import page

        return page(self, propagation)


def time_text(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e6:,.0f} us"


def cells(r: Row) -> tuple[str, ...]:
    """A row as text, in the order of `HEAD`."""
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
        time_text(r.predicted_s),
        time_text(r.measured_s),
        r.reason,
    )


def report(fast: nn.Module, measure: bool = True) -> Report:
    """The report of a model that `sparsify` or `load` returned.

    measure: run each layer alone for some milliseconds, on random input of the example's shape. Under
    TRITON_INTERPRET=1 nothing is measured. Raises SpartaError for any other model.
    """
    info = getattr(fast, "meta", {}).get("sparta")
    if info is None and hasattr(fast, "sparse"):  # sparsified in place
        return report(fast.sparse, measure)  # type: ignore[arg-type]
    if not isinstance(info, SparsityInfo):
        raise SpartaError(f"report() takes what sparsify() returns, got a {type(fast).__name__}")
    assert isinstance(fast, fx.GraphModule)
    rows = tuple(_row(site, fast.get_submodule(site.module), measure) for site in info.sites)
    return Report(rows, info.parameters_before, info.parameters, info.folded, info.notes)


def _row(site: SiteRecord, module: nn.Module, measure: bool) -> Row:
    held = [*module.parameters(), *module.buffers()]
    width = next((t.element_size() for t in held if t.is_floating_point()), 4)
    before = width * torch.Size(site.shape_before).numel()
    if getattr(module, "bias", None) is not None:
        before += width * site.shape_before[0]
    return Row(
        site.name,
        site.op,
        site.shape_before,
        site.shape,
        site.density,
        site.bits,
        str(getattr(module, "sparta_format", type(module).__name__)),
        str(getattr(module, "sparta_reason", "")),
        before,
        sum(t.numel() * t.element_size() for t in held),
        site.macs_before,
        site.macs,
        site.epilogue,
        getattr(module, "sparta_predicted_s", None),
        measured_time(module) if measure else None,
        tuple(getattr(module, "parts", ())),
    )


def measured_time(module: nn.Module) -> float | None:
    """Seconds of one call of a site's module on random input; None where it cannot be asked for its site."""
    if interpreting() or not hasattr(module, "sparta_site"):
        return None
    site = module.sparta_site()  # type: ignore[operator]
    dtype = site.weight.dtype if site.weight.is_floating_point() else torch.float32
    like: dict[str, Any] = {"dtype": dtype, "device": site.weight.device}
    x = torch.randn(site.input_shape, **like)
    with torch.no_grad():
        if site.op == "attention":
            keys = torch.randn(*site.input_shape[:-2], site.tesa.shape[-1], site.input_shape[-1], **like)
            inputs: tuple[torch.Tensor, ...] = (x, keys, torch.randn_like(keys))
        elif site.has_residual:
            channels = (*x.shape[:-1], site.weight.shape[0])
            shape = (
                channels
                if site.op == "linear"
                else (x.shape[0], site.weight.shape[0], *site.output_positions())
            )
            inputs = (x, torch.randn(shape, **like))
        else:
            inputs = (x,)

        def run() -> None:
            module(*inputs)
            if x.device.type != "cpu":
                torch.accelerator.synchronize()

        return seconds_of(run, least_s=0.005, least=5, most_s=0.1)
