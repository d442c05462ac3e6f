"""The block-dot kernel: alive blocks of the weight through `tl.dot`, straight from the input's rows.

A program owns one row block of the weight (16 rows or more) and a tile of tokens; it walks the alive blocks of
that row block and multiplies each with the columns of the input that it meets. Nothing is transposed, so the
only other launch is the quantisation of the input when the arithmetic is int8. On GPUs this is the form that
uses matrix units; on CPUs the one for int8 (VNNI) and for blocks as large as the micro-kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..formats import Dense, RowGroups, SparseFormat
from ..formats.quantized import Quantized
from ..input_quant import LEVELS, MAGIC, InputQuant, level
from .pieces import Epilogue, indented
from .plan import Open, Plan, Repeats, Space, Step
from .program import Launch, Program, interpreting

MOST_PLANS = 64
LEAST_ROWS = 16
"""`tl.dot` wants at least 16 on every axis."""


@dataclass(frozen=True)
class DotSpec:
    """What is hard-coded: rows x width blocks of a weight with `columns` columns; `step` columns per dot."""

    rows: int
    width: int
    columns: int
    tokens: int
    row_blocks: int
    listed: bool
    values: str
    compute: str
    integer: bool
    widen: bool
    epilogue: Epilogue


def dot_program(spec: DotSpec) -> Program:
    """Grid: (row blocks, token tiles). Unlisted weights (dense) walk all columns in steps of `width`."""
    s = spec
    ragged = s.columns % s.width != 0
    inside_k = f" & (offs_k < {s.columns})[None, :]" if ragged else ""
    acc = "tl.int32" if s.integer else s.compute
    flat = f"(lane_k[:, None] * {s.rows} + lane_n[None, :])"
    start = f"j * {s.width * s.rows}" if s.listed else f"(nb * {s.columns} + k0) * {s.rows}"
    inside_b = "" if s.listed or not ragged else ", mask=(offs_k < " + str(s.columns) + ")[:, None], other=0"
    load_b = f"tl.load(val + {start} + {flat}{inside_b})"
    if s.values == "int8" and not s.integer:
        load_b = f"{load_b}.to({s.compute})"
    if s.values == "int4":
        at = f"({start} + {flat})"
        target = "tl.int8" if s.integer else s.compute
        guard = "" if s.listed or not ragged else f", mask=(offs_k < {s.columns})[:, None], other=136"
        load_b = (
            f"(((tl.load(val + {at} // 2{guard}).to(tl.int32) >> (({at} % 2) * 4)) & 15) - 8).to({target})"
        )
    widen = f".to({s.compute})" if s.widen or (s.values != "real" and not s.integer) else ""
    precision = "" if s.integer else ', input_precision="ieee"'
    body = [
        "nb = tl.load(order + tl.program_id(0))" if s.listed else "nb = tl.program_id(0)",
        f"offs_m = tl.program_id(1) * {s.tokens} + tl.arange(0, {s.tokens})",
        f"lane_n = tl.arange(0, {s.rows})",
        f"lane_k = tl.arange(0, {s.width})",
        "inside_m = (offs_m < M)[:, None]",
        f"total = tl.zeros([{s.tokens}, {s.rows}], dtype={acc})",
    ]
    if s.listed:
        body += [
            "for j in range(tl.load(ptr + nb * 2), tl.load(ptr + nb * 2 + 1)):",
            "    k0 = tl.load(idx + j)",
        ]
    else:
        body += [f"for k0 in range(0, {s.columns}, {s.width}):"]
    body += [
        "    offs_k = k0 + lane_k",
        f"    a = tl.load(x + offs_m[:, None] * stride_x + offs_k[None, :], mask=inside_m{inside_k}, other=0){widen}",
        f"    b = {load_b}{f'.to({s.compute})' if s.widen and s.values == 'real' else ''}",
        f"    total = tl.dot(a, b, total, out_dtype={acc}{precision})",
        f"offs_n = nb * {s.rows} + lane_n",
        "alive = inside_m & (offs_n < N)[None, :]",
        "out = offs_m[:, None] * N + offs_n[None, :]",
    ]
    if s.values != "real":
        body.append("row_scale = tl.load(scale + offs_n, mask=offs_n < N, other=0.0)[None, :]")
        if s.integer:
            body += [
                "token = tl.load(token_scale + offs_m, mask=offs_m < M, other=0.0)[:, None]",
                "total = total.to(tl.float32) * (token * row_scale)",
            ]
        else:
            body.append("total *= row_scale")
    body += s.epilogue.lines("total", "[None, :]")
    body.append("tl.store(y + out, total.to(y.dtype.element_ty), mask=alive)")
    names = "x, y, order, ptr, idx, val, scale, token_scale, bias, residual, M, N, stride_x"
    source = f"@triton.jit\ndef dots({names}):\n" + "".join(f"    {line}\n" for line in body)
    return Program("dots", source)


def quantize_program(tokens: int, columns: int) -> Program:
    """x [M, K] to q [M, K] int8 and scale[m] = max |x[m]| / 127, half to even. Grid: (token tiles,).

    Adding 1.5 * 2**23 rounds to an integer that then stands in the low bits: no conversion, which CPUs lack for
    vectors with the saturation that a cast promises.
    """
    source = f"""@triton.jit
def quantize(x, q, scale, M, K, stride_x):
    offs_m = tl.program_id(0) * {tokens} + tl.arange(0, {tokens})
    lane = tl.arange(0, {columns})
    peak = tl.zeros([{tokens}], dtype=tl.float32)
    for k0 in range(0, K, {columns}):
        inside = (offs_m < M)[:, None] & (k0 + lane < K)[None, :]
        tile = tl.load(x + offs_m[:, None] * stride_x + (k0 + lane)[None, :], mask=inside, other=0.0)
        peak = tl.maximum(peak, tl.max(tl.abs(tile.to(tl.float32)), axis=1))
    s = tl.where(peak > 0.0, peak / 127.0, 1.0)
    tl.store(scale + offs_m, s, mask=offs_m < M)
    for k0 in range(0, K, {columns}):
        inside = (offs_m < M)[:, None] & (k0 + lane < K)[None, :]
        tile = tl.load(x + offs_m[:, None] * stride_x + (k0 + lane)[None, :], mask=inside, other=0.0)
        v = tl.minimum(tl.maximum(tile.to(tl.float32) / s[:, None], -127.0), 127.0)
        bits = (v + {MAGIC}).to(tl.int32, bitcast=True)
        tl.store(q + offs_m[:, None] * K + (k0 + lane)[None, :], bits.to(tl.int8), mask=inside)
"""
    return Program("quantize", source)


def given_quantize_program(tokens: int, columns: int) -> Program:
    """As `quantize_program` with the levels of an `InputQuant`, the same for all tokens."""
    source = f"""@triton.jit
def given_quantize(x, q, scale, levels, M, K, stride_x):
    offs_m = tl.program_id(0) * {tokens} + tl.arange(0, {tokens})
    lane = tl.arange(0, {columns})
{indented(LEVELS)}    tl.store(scale + offs_m, tl.zeros([{tokens}], dtype=tl.float32) + s, mask=offs_m < M)
    for k0 in range(0, K, {columns}):
        inside = (offs_m < M)[:, None] & (k0 + lane < K)[None, :]
        tile = tl.load(x + offs_m[:, None] * stride_x + (k0 + lane)[None, :], mask=inside, other=0.0)
        v = {level("tile.to(tl.float32)")}
        bits = (v + {MAGIC}).to(tl.int32, bitcast=True)
        tl.store(q + offs_m[:, None] * K + (k0 + lane)[None, :], bits.to(tl.int8), mask=inside)
"""
    return Program("given_quantize", source)


@lru_cache(maxsize=1024)
def _dot_launch(spec: DotSpec) -> Launch:
    return Launch(dot_program(spec))


@lru_cache(maxsize=16)
def _quantize_launch(tokens: int, columns: int, given: bool) -> Launch:
    return Launch((given_quantize_program if given else quantize_program)(tokens, columns))


def takes_dots(part: SparseFormat) -> bool:
    """Whether this format's blocks are large enough for `tl.dot`: 16 rows or more, 16 columns or more."""
    inner = part.inner if isinstance(part, Quantized) else part
    if isinstance(inner, Dense):
        return inner.group >= LEAST_ROWS and inner.group == inner.tile.rows
    if not isinstance(inner, RowGroups) or inner.tile.columns or inner.width & (inner.width - 1):
        return False
    return inner.group >= LEAST_ROWS and inner.width >= LEAST_ROWS and inner.group == inner.tile.rows


@dataclass(frozen=True, eq=False)
class BlockDotLinear:
    """activation(X W^T + bias) + residual with one packed part whose blocks go through `tl.dot`.

    integer: int8 x int8 into int32; the input is quantised first: as `quant` says, else per token. With `quant`
    the bias must hold `quant.shift`.
    """

    part: SparseFormat
    activation: str = "none"
    integer: bool = False
    quant: InputQuant | None = None
    order: Tensor = field(init=False)
    _plans: dict[tuple[Any, ...], Plan] = field(default_factory=dict, init=False)
    _repeats: Repeats = field(default_factory=Repeats, init=False)

    def __post_init__(self) -> None:
        if not takes_dots(self.part):
            raise ValueError(
                f"BlockDotLinear: {self.part.describe()} has blocks below {LEAST_ROWS} x {LEAST_ROWS}, or a tile "
                "that is not one block high; pack with group = block rows = tile rows"
            )
        if self.integer and not isinstance(self.part, Quantized):
            raise ValueError("BlockDotLinear: integer arithmetic needs a quantised part")
        Epilogue(activation=self.activation)
        order = (
            self._inner.balanced_order()
            if isinstance(self._inner, RowGroups)
            else torch.zeros(1, dtype=torch.int32)
        )
        object.__setattr__(self, "order", order.to(self._val.device))

    @property
    def parts(self) -> tuple[SparseFormat, ...]:
        return (self.part,)

    @property
    def shape(self) -> tuple[int, int]:
        return self.part.shape

    @property
    def _inner(self) -> SparseFormat:
        return self.part.inner if isinstance(self.part, Quantized) else self.part

    @property
    def _val(self) -> Tensor:
        return self._inner.val  # type: ignore[attr-defined]

    def dense_weight(self) -> Tensor:
        """The weight [N, K] that the part stores."""
        return self.part.unpack()

    def describe(self) -> str:
        return self.part.describe() + (" (int8 arithmetic)" if self.integer else "")

    def __call__(self, x: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """x [..., K] to [..., N] of x's dtype. `residual` has the output's shape."""
        repeated = self._repeats.run(x, bias, residual)
        if repeated is not None:
            return repeated
        n, k = self.shape
        if x.shape[-1] != k:
            raise ValueError(f"BlockDotLinear: the input has {x.shape[-1]} features, the weight takes {k}")
        flat = x.reshape(-1, k)
        if flat.stride(1) != 1:
            flat = flat.contiguous()
        y = torch.empty(*x.shape[:-1], n, dtype=x.dtype, device=x.device)
        if not y.numel():
            return y
        opened = {"x": flat, "y": y}
        if bias is not None:
            opened["bias"] = bias
        if residual is not None:
            opened["residual"] = residual.expand_as(y).contiguous()
        kinds = tuple((name, t.dtype) for name, t in opened.items())
        key = (flat.shape, flat.stride(), x.device, kinds)
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= MOST_PLANS:
                self._plans.pop(next(iter(self._plans)), None)
            plan = self._plans[key] = self._plan(flat, opened)
        plan(**opened)
        self._repeats.remember(x, flat, y, bias, residual, plan)
        return y

    def spec(self, m: int, dtype: torch.dtype, epilogue: Epilogue) -> DotSpec:
        """What is hard-coded for m tokens of this dtype."""
        n, k = self.shape
        inner = self._inner
        tokens = LEAST_ROWS
        while tokens < min(m, 128):
            tokens *= 2
        listed = isinstance(inner, RowGroups)
        rows = inner.group  # type: ignore[attr-defined]
        width = inner.width if isinstance(inner, RowGroups) else _dense_step(k)
        compute = "tl.float64" if dtype == torch.float64 and not self.integer else "tl.float32"
        values = f"int{self.part.bits}" if isinstance(self.part, Quantized) else "real"
        # The interpreter has no bfloat16 product, and tl.dot wants both sides of one type.
        mixed = values == "real" and dtype != self._val.dtype
        widen = not self.integer and (mixed or (dtype == torch.bfloat16 and interpreting()))
        return DotSpec(
            rows, width, k, tokens, -(-n // rows), listed, values, compute, self.integer, widen, epilogue
        )

    def _plan(self, x: Tensor, opened: dict[str, Tensor]) -> Plan:
        m, k = x.shape
        n = self.shape[0]
        epilogue = Epilogue("bias" in opened, self.activation, "residual" in opened)
        spec = self.spec(m, x.dtype, epilogue)
        val = self._val
        ptr, idx = val, val
        if isinstance(self._inner, RowGroups):
            ptr, idx = self._inner.ptr, self._inner.idx
        scale = self.part.scale if isinstance(self.part, Quantized) else val
        source: Open | Space = Open("x")
        token_scale: Any = val
        steps: list[Step] = []
        stride = x.stride(0)
        if self.integer:
            tile = 16
            source = Space("q", m * k, torch.int8)
            token_scale = Space("token_scale", m, torch.float32)
            levels = () if self.quant is None else (self.quant.parameters(x.device),)
            first = (Open("x"), source, token_scale, *levels, m, k, stride)
            launch = _quantize_launch(tile, 64, self.quant is not None)
            steps.append(Step(launch, (-(-m // tile),), first))
            stride = k
        bias, residual = (Open(n if n in opened else "x") for n in ("bias", "residual"))
        arguments = (
            source, Open("y"), self.order, ptr, idx, val, scale, token_scale, bias, residual, m, n, stride,
        )  # fmt: skip
        steps.append(Step(_dot_launch(spec), (spec.row_blocks, -(-m // spec.tokens)), arguments))
        return Plan(tuple(steps))


def _dense_step(k: int) -> int:
    """Columns per dot of a dense weight: the widest power of two up to 256 that divides K, at least 64."""
    step = 256
    while step > 64 and k % step:
        step //= 2
    return step
