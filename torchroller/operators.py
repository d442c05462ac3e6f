"""The operators of the ROLLER evaluation as tensor expressions and as PyTorch calls.

benchmarks/data/roller_operators.csv lists 119 operators (OSDI 2022, Figure 10; source per row): convolutions,
depthwise convolutions, ReLU, average pooling, row sums and matrix products, float32, batch 128. `read` gives
them as `Operator`s; `Operator.expr` is what the search takes, `Operator.call` what PyTorch runs.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torchroller.expr import Access, Affine, Axis, TensorExpr, Value, Write

CSV = Path(__file__).resolve().parent.parent / "benchmarks" / "data" / "roller_operators.csv"
F32 = "float32"


@dataclass(frozen=True)
class Operator:
    """One row: `dims` as in the file, e.g. M, N, K of a matmul; `batch` is its leading dimension."""

    id: str
    op: str
    dims: tuple[tuple[str, int], ...]
    dtype: str
    source: str

    def __getitem__(self, name: str) -> int:
        return dict(self.dims)[name]

    def __str__(self) -> str:
        shown = [f"{k}={v}" for k, v in self.dims if k not in ("H_label", "W_label", "count_include_pad")]
        return f"{self.id} {self.op} {' '.join(shown)}"

    def scaled(self, divisor: int) -> Operator:
        """The same operator with its leading dimension (batch, rows or M) divided, at least 1."""
        first = {"reduce_sum": "rows", "matmul": "M"}.get(self.op, "N")
        dims = tuple((k, max(1, v // divisor) if k == first else v) for k, v in self.dims)
        if self.op == "relu":
            numel = self["numel"] // self["N"] * max(1, self["N"] // divisor)
            dims = tuple((k, numel if k == "numel" else v) for k, v in dims)
        return replace(self, dims=dims)

    @property
    def tiled(self) -> tuple[str, ...] | None:
        """Axes for construct(tiled=…): a direct convolution may tile several axes of its rows."""
        return tuple(a.name for a in self.expr().axes) if self.op == "conv2d" else None

    def expr(self) -> TensorExpr:
        return _EXPRESSIONS[self.op](self)

    def call(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """A PyTorch function and the inputs to call it with (random, on the CPU)."""
        return _calls(self)


def read(path: Path = CSV) -> tuple[Operator, ...]:
    """All operators of the file. Raises FileNotFoundError with what to do when it is not there."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there: the operator list is part of the source repository, not of the wheel. "
            "Run from a clone, or name the file."
        )
    found = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            pairs = (part.split("=", 1) for part in row["dims"].split(";"))
            dims = tuple((k, int(v)) for k, v in pairs if v.isdigit())
            found.append(Operator(row["id"], row["op"], dims, row["dtype"], row["source_file"]))
    return tuple(found)


def _access(tensor: str, shape: tuple[int, ...], *index: Affine | str, bounded: bool = False) -> Access:
    """A row-major access; a string stands for the axis of that name."""
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= length
    at = tuple(Affine(((i, 1),)) if isinstance(i, str) else i for i in index)
    return Access(tensor, F32, shape, tuple(reversed(strides)), at, bounded=bounded)


def _window(out: str, kernel: str, stride: int, dilation: int, pad: int) -> Affine:
    return Affine(((out, stride), (kernel, dilation)), -pad)


def _matmul(o: Operator) -> TensorExpr:
    m, n, k = o["M"], o["N"], o["K"]
    return TensorExpr(
        o.id,
        (Axis("m", m), Axis("n", n), Axis("k", k, "reduce")),
        (
            Value("load", F32, access=_access("A", (m, k), "m", "k")),
            Value("load", F32, access=_access("B", (k, n), "k", "n")),
            Value("dot", F32, (0, 1), over=("k",)),
        ),
        (Write(_access("C", (m, n), "m", "n"), 2),),
    )


def _reduce_sum(o: Operator) -> TensorExpr:
    rows, cols = o["rows"], o["cols"]
    return TensorExpr(
        o.id,
        (Axis("m", rows), Axis("n", cols, "reduce")),
        (
            Value("load", F32, access=_access("X", (rows, cols), "m", "n")),
            Value("reduce", F32, (0,), fn="sum", over=("n",)),
        ),
        (Write(_access("Y", (rows,), "m"), 1),),
    )


def _relu(o: Operator) -> TensorExpr:
    n = o["numel"]
    return TensorExpr(
        o.id,
        (Axis("i", n),),
        (
            Value("load", F32, access=_access("X", (n,), "i")),
            Value("call", F32, (0,), fn="relu"),
        ),
        (Write(_access("Y", (n,), "i"), 1),),
    )


def _conv2d(o: Operator) -> TensorExpr:
    n, c, h, w, f, kh, kw = (o[k] for k in ("N", "C", "H", "W", "F", "KH", "KW"))
    s, d, p = o["stride"], o["dilation"], o["pad"]
    spatial = (Axis("n", n), Axis("f", f), Axis("ho", o["HO"]), Axis("wo", o["WO"]))
    reduce = (Axis("c", c, "reduce"), Axis("kh", kh, "reduce"), Axis("kw", kw, "reduce"))
    y, x = _window("ho", "kh", s, d, p), _window("wo", "kw", s, d, p)
    return TensorExpr(
        o.id,
        (*spatial, *reduce),
        (
            Value("load", F32, access=_access("X", (n, c, h, w), "n", "c", y, x, bounded=p > 0)),
            Value("load", F32, access=_access("W", (f, c, kh, kw), "f", "c", "kh", "kw")),
            Value("dot", F32, (0, 1), over=("c", "kh", "kw")),
        ),
        (Write(_access("Y", (n, f, o["HO"], o["WO"]), "n", "f", "ho", "wo"), 2),),
    )


def _pooled(o: Operator, depthwise: bool) -> TensorExpr:
    """Sliding windows over one channel: average pooling, or a depthwise convolution."""
    n, c, h, w, kh, kw = (o[k] for k in ("N", "C", "H", "W", "KH", "KW"))
    s, p = o["stride"], o["pad"]
    y, x = _window("ho", "kh", s, 1, p), _window("wo", "kw", s, 1, p)
    load = Value("load", F32, access=_access("X", (n, c, h, w), "n", "c", y, x, bounded=p > 0))
    over = ("kh", "kw")
    if depthwise:
        values = (
            load,
            Value("load", F32, access=_access("W", (c, kh, kw), "c", "kh", "kw")),
            Value("call", F32, (0, 1), fn="mul"),
            Value("reduce", F32, (2,), fn="sum", over=over),
        )
    else:
        values = (
            load,
            Value("reduce", F32, (0,), fn="sum", over=over),
            Value("const", F32, number=1.0 / (kh * kw)),
            Value("call", F32, (1, 2), fn="mul"),
        )
    return TensorExpr(
        o.id,
        (Axis("n", n), Axis("c", c), Axis("ho", o["HO"]), Axis("wo", o["WO"]))
        + (Axis("kh", kh, "reduce"), Axis("kw", kw, "reduce")),
        values,
        (Write(_access("Y", (n, c, o["HO"], o["WO"]), "n", "c", "ho", "wo"), 3),),
    )


_EXPRESSIONS: dict[str, Callable[[Operator], TensorExpr]] = {
    "matmul": _matmul,
    "reduce_sum": _reduce_sum,
    "relu": _relu,
    "conv2d": _conv2d,
    "depthwise_conv2d": lambda o: _pooled(o, depthwise=True),
    "avg_pool2d": lambda o: _pooled(o, depthwise=False),
}


def _calls(o: Operator) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    import torch
    from torch.nn import functional

    if o.op == "matmul":
        return torch.mm, (torch.randn(o["M"], o["K"]), torch.randn(o["K"], o["N"]))
    if o.op == "reduce_sum":
        return (lambda x: x.sum(1)), (torch.randn(o["rows"], o["cols"]),)
    if o.op == "relu":
        return torch.relu, (torch.randn(o["numel"]),)
    x = torch.randn(o["N"], o["C"], o["H"], o["W"])
    s, p = o["stride"], o["pad"]
    if o.op == "avg_pool2d":
        return (lambda x: functional.avg_pool2d(x, (o["KH"], o["KW"]), s, p)), (x,)
    if o.op == "depthwise_conv2d":
        weight = torch.randn(o["C"], 1, o["KH"], o["KW"])
        return (lambda x, w: functional.conv2d(x, w, None, s, p, 1, o["C"])), (x, weight)
    weight = torch.randn(o["F"], o["C"], o["KH"], o["KW"])
    return (lambda x, w: functional.conv2d(x, w, None, s, p, o["dilation"])), (x, weight)
