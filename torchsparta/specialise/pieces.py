"""Pieces of Triton source shared by the kernel families: activations, epilogues, input panels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..input_quant import LEVELS, MAGIC, level
from .program import Program

ACTIVATIONS: dict[str, str] = {
    "none": "{x}",
    "relu": "tl.maximum({x}, 0.0)",
    "relu6": "tl.minimum(tl.maximum({x}, 0.0), 6.0)",
    "gelu": "0.5 * {x} * (1.0 + tl.erf({x} * 0.7071067811865476))",
    "gelu_tanh": "{x} / (1.0 + tl.exp(-1.5957691216057308 * ({x} + 0.044715 * {x} * {x} * {x})))",
    "silu": "{x} / (1.0 + tl.exp(-{x}))",
    "sigmoid": "1.0 / (1.0 + tl.exp(-{x}))",
    "tanh": "1.0 - 2.0 / (1.0 + tl.exp(2.0 * {x}))",
    "hardswish": "{x} * tl.minimum(tl.maximum({x} + 3.0, 0.0), 6.0) / 6.0",
    "hardsigmoid": "tl.minimum(tl.maximum({x} + 3.0, 0.0), 6.0) / 6.0",
}
"""Activation by name, as an expression of the accumulated tile."""


def apply_activation(name: str, value: Tensor) -> Tensor:
    """The same activation in torch: for the dense fallback and for tests."""
    nf = torch.nn.functional
    table = {
        "none": lambda v: v, "relu": nf.relu, "relu6": nf.relu6, "gelu": nf.gelu,
        "gelu_tanh": lambda v: nf.gelu(v, approximate="tanh"), "silu": nf.silu, "sigmoid": torch.sigmoid,
        "tanh": torch.tanh, "hardswish": nf.hardswish, "hardsigmoid": nf.hardsigmoid,
    }  # fmt: skip
    return table[name](value)


@dataclass(frozen=True)
class Epilogue:
    """What follows the product: `activation(y + bias) + residual`."""

    bias: bool = False
    activation: str = "none"
    residual: bool = False

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"unknown activation {self.activation!r}; known: {', '.join(sorted(ACTIVATIONS))}"
            )

    def lines(self, value: str, n_axis: str) -> list[str]:
        """Source lines that turn the tile `value` into what is stored; need `offs_n`, `alive` and `out`.

        n_axis broadcasts a vector over output rows to the tile: '[None, :]' or '[:, None]'.
        """
        lines = []
        if self.bias:
            lines += [
                "shift = tl.load(bias + offs_n, mask=offs_n < N, other=0.0)",
                f"{value} += shift.to({value}.dtype){n_axis}",
            ]
        if self.activation != "none":
            lines.append(f"{value} = {ACTIVATIONS[self.activation].format(x=value)}")
        if self.residual:
            lines.append(f"{value} += tl.load(residual + out, mask=alive, other=0.0).to({value}.dtype)")
        return lines


def _at(column_index: str) -> str:
    """Address of x at (image, token, column): x [images, M, K] of any strides."""
    return f"x + which * stride_i + offs_m[:, None] * stride_m + {column_index}[None, :] * stride_k"


def panel_program(compute: str, tokens: int, columns: int, strip: int = 0) -> Program:
    """x [images, M, K] (any strides) to panels [images * ceil(M / tokens), K padded, tokens] of `compute`.

    A kernel that keeps tokens contiguous multiplies one weight with a vector of tokens. Tokens past M and
    columns past K are zero. Grid: (panels of all images, column blocks). strip: tokens transposed at a time, 0 for
    all: a CPU reads whole cache lines of few rows of x so.
    """
    strip = strip if 0 < strip < tokens else tokens
    source = f"""@triton.jit
def panel(x, xp, M, K, KP, panels, stride_i, stride_m, stride_k):
    which = tl.program_id(0) // panels
    offs_k = tl.program_id(1) * {columns} + tl.arange(0, {columns})
    base = xp + tl.program_id(0) * KP * {tokens}
    there = (offs_k < KP)[:, None]
    for t0 in range(0, {tokens}, {strip}):
        lane = t0 + tl.arange(0, {strip})
        offs_m = (tl.program_id(0) % panels) * {tokens} + lane
        inside = (offs_m < M)[:, None] & (offs_k < K)[None, :]
        tile = tl.load({_at("offs_k")}, mask=inside, other=0.0)
        tl.store(base + offs_k[:, None] * {tokens} + lane[None, :], tl.trans(tile.to({compute})), mask=there)
"""
    return Program("panel", source)


def quantized_panel_program(tokens: int, columns: int) -> Program:
    """As `panel_program`, quantised per token: integers in float32 panels, scale[m] = max |x[m]| / 127.

    Rounds half to even by adding and subtracting 1.5 * 2**23, exact for |x| < 2**22. Grid: (panels,).
    """
    source = f"""@triton.jit
def quantized_panel(x, xp, scale, M, K, KP, panels, stride_i, stride_m, stride_k):
    which = tl.program_id(0) // panels
    lane = tl.arange(0, {tokens})
    offs_m = (tl.program_id(0) % panels) * {tokens} + lane
    peak = tl.zeros([{tokens}], dtype=tl.float32)
    for k0 in range(0, K, {columns}):
        offs_k = k0 + tl.arange(0, {columns})
        inside = (offs_m < M)[:, None] & (offs_k < K)[None, :]
        tile = tl.load({_at("offs_k")}, mask=inside, other=0.0)
        peak = tl.maximum(peak, tl.max(tl.abs(tile.to(tl.float32)), axis=1))
    s = tl.where(peak > 0.0, peak / 127.0, 1.0)
    tl.store(scale + tl.program_id(0) * {tokens} + lane, s)
    base = xp + tl.program_id(0) * KP * {tokens}
    for k0 in range(0, KP, {columns}):
        offs_k = k0 + tl.arange(0, {columns})
        inside = (offs_m < M)[:, None] & (offs_k < K)[None, :]
        tile = tl.load({_at("offs_k")}, mask=inside, other=0.0)
        q = tile.to(tl.float32) / s[:, None]
        q = (q + {MAGIC}) - {MAGIC}
        q = tl.minimum(tl.maximum(q, -127.0), 127.0)
        tl.store(base + offs_k[:, None] * {tokens} + lane[None, :], tl.trans(q), mask=(offs_k < KP)[:, None])
"""
    return Program("quantized_panel", source)


def given_panel_program(tokens: int, columns: int) -> Program:
    """As `quantized_panel_program` with the levels of an `InputQuant`, the same for all tokens."""
    source = f"""@triton.jit
def given_panel(x, xp, scale, levels, M, K, KP, panels, stride_i, stride_m, stride_k):
    which = tl.program_id(0) // panels
    lane = tl.arange(0, {tokens})
    offs_m = (tl.program_id(0) % panels) * {tokens} + lane
{indented(LEVELS)}    tl.store(scale + tl.program_id(0) * {tokens} + lane, tl.zeros([{tokens}], dtype=tl.float32) + s)
    base = xp + tl.program_id(0) * KP * {tokens}
    for k0 in range(0, KP, {columns}):
        offs_k = k0 + tl.arange(0, {columns})
        inside = (offs_m < M)[:, None] & (offs_k < K)[None, :]
        tile = tl.load({_at("offs_k")}, mask=inside, other=0.0).to(tl.float32)
        q = tl.where(inside, {level("tile")}, 0.0)
        tl.store(base + offs_k[:, None] * {tokens} + lane[None, :], tl.trans(q), mask=(offs_k < KP)[:, None])
"""
    return Program("given_panel", source)


def indented(lines: Iterable[str]) -> str:
    return "".join(f"    {line}\n" for line in lines)


@dataclass(frozen=True)
class ConvSpec:
    """Geometry of a convolution, (height, width) each: what an image panel hard-codes."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        h, w = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip((height, width), self.kernel, self.stride, self.padding, self.dilation)
        )
        return h, w

    @property
    def pointwise(self) -> bool:
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)


def image_panel_program(compute: str, tokens: int, columns: int, conv: ConvSpec) -> Program:
    """x [images, C, H, W] to panels of patches: column (c, r, s) of pixel p, zero outside the image.

    Padding happens in the load; no padded copy is made. Grid: (panels of all images, column blocks).
    """
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = conv.kernel, conv.stride, conv.padding, conv.dilation
    source = f"""@triton.jit
def image_panel(x, xp, M, K, KP, panels, H, W, OW, stride_i, stride_c, stride_h, stride_w):
    which = tl.program_id(0) // panels
    lane = tl.arange(0, {tokens})
    offs_m = (tl.program_id(0) % panels) * {tokens} + lane
    offs_k = tl.program_id(1) * {columns} + tl.arange(0, {columns})
    row = (offs_m // OW) * {sh} - {ph}
    col = (offs_m % OW) * {sw} - {pw}
    c = offs_k // {kh * kw}
    h = ((offs_k // {kw}) % {kh} * {dh})[:, None] + row[None, :]
    w = (offs_k % {kw} * {dw})[:, None] + col[None, :]
    inside = (offs_m < M)[None, :] & (offs_k < K)[:, None] & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    tile = tl.load(x + which * stride_i + c[:, None] * stride_c + h * stride_h + w * stride_w, mask=inside, other=0.0)
    base = xp + tl.program_id(0) * KP * {tokens}
    there = (offs_k < KP)[:, None]
    tl.store(base + offs_k[:, None] * {tokens} + lane[None, :], tile.to({compute}), mask=there)
"""
    return Program("image_panel", source)


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """The integer reference of `quantized_panel_program`: (q [M, K] int8, scale [M] float32)."""
    peak = x.float().abs().amax(dim=1)
    scale = torch.where(peak > 0, peak / 127.0, torch.ones_like(peak))
    return torch.round(x.float() / scale[:, None]).clamp(-127, 127).to(torch.int8), scale
