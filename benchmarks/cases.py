"""What is measured: single operators, and the models of models.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from case import Built, Case
from models import MODELS
from torch import nn


class _Function(nn.Module):
    def __init__(self, fn: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.fn(*args)


class _Matmul(nn.Module):
    """x @ w with a constant w, as a layer of a model has it."""

    def __init__(self, k: int, n: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(k, n).to(dtype), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def matmul(m: int, k: int, n: int, bar: str, dtype: torch.dtype = torch.float32) -> Case:
    prefix = "mm" if dtype == torch.float32 else "bf16"
    size = torch.tensor([], dtype=dtype).element_size()

    def make() -> Built:
        torch.manual_seed(0)
        return _Matmul(k, n, dtype).eval(), (torch.randn(m, k).to(dtype),)

    group = "matmul" if dtype == torch.float32 else "matmul bf16"
    return Case(
        f"{prefix}_{m}x{k}x{n}", group, make, 2.0 * m * k * n, size * (m * k + k * n + m * n), bar, dtype
    )


def function(name: str, fn: Callable[..., torch.Tensor], shapes: list[tuple[int, ...]], bytes_: float,
             flops: float = 0.0, group: str = "memory") -> Case:  # fmt: skip
    def make() -> Built:
        torch.manual_seed(0)
        return _Function(fn).eval(), tuple(torch.randn(*s) for s in shapes)

    return Case(name, group, make, flops, bytes_, "fastest peer")


class _LayerNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(768)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


def _layer_norm() -> Built:
    torch.manual_seed(0)
    return _LayerNorm().eval(), (torch.randn(8192, 768),)


def convolution(name: str, channels: int, size: int, filters: int, window: int, **arguments: int) -> Case:
    """One image through one convolution without bias, in the layout that a PyTorch user has by default."""

    def make() -> Built:
        torch.manual_seed(0)
        module = nn.Conv2d(channels, filters, window, bias=False, **arguments)
        return module.eval(), (torch.randn(1, channels, size, size),)

    out = size // arguments.get("stride", 1)
    taps = window * window * channels // arguments.get("groups", 1)
    flops = 2.0 * out * out * filters * taps
    moved = 4.0 * (channels * size * size + filters * out * out + filters * taps)
    return Case(name, "convolution", make, flops, moved, "fastest peer")


_SQUARE = [
    (128, 768, 768),
    (128, 3072, 768),
    (128, 768, 3072),
    (512, 512, 512),
    (1024, 1024, 1024),
    (2048, 2048, 2048),
]
_ODD = [(1, 4096, 4096), (16, 4096, 4096), (7, 4097, 1001), (65536, 2, 1024), (65536, 1024, 2)]

CASES: tuple[Case, ...] = (
    *(matmul(m, k, n, "2.0x eager; 80 % of the FMA peak") for m, k, n in _SQUARE),
    *(matmul(m, k, n, "0.95x eager", torch.bfloat16) for m, k, n in _SQUARE),
    *(matmul(m, k, n, "fastest peer") for m, k, n in _ODD),
    function("softmax_8192x1024", lambda x: torch.softmax(x, -1), [(8192, 1024)], 8.0 * 8192 * 1024),
    Case("layer_norm_8192x768", "memory", _layer_norm, 0.0, 8.0 * 8192 * 768, "fastest peer"),
    function("gelu_4M", nn.functional.gelu, [(4 << 20,)], 8.0 * (4 << 20)),
    function("add_relu_16M", lambda x, y: torch.relu(x + y), [(16 << 20,), (16 << 20,)], 12.0 * (16 << 20)),
    function("sum_rows_4096", lambda x: x.sum(1), [(4096, 4096)], 4.0 * 4096 * 4096),
    function("sum_columns_4096", lambda x: x.sum(0), [(4096, 4096)], 4.0 * 4096 * 4096),
    convolution("conv_64x56x56_k3", 64, 56, 64, 3, padding=1),
    convolution("conv_256x14x14_k3", 256, 14, 256, 3, padding=1),
    convolution("conv_512x7x7_k3", 512, 7, 512, 3, padding=1),
    convolution("conv_stem_3x224x224_k7s2", 3, 224, 64, 7, stride=2, padding=3),
    convolution("depthwise_144x56x56_k3", 144, 56, 144, 3, padding=1, groups=144),
    function(
        "avgpool_64x112x112_k3s2",
        lambda x: nn.functional.avg_pool2d(x, 3, 2, 1),
        [(1, 64, 112, 112)],
        5.0 * 64 * 112 * 112,
    ),
    function(
        "bmm_12x128x64x128",
        torch.bmm,
        [(12, 128, 64), (12, 64, 128)],
        0.0,
        2.0 * 12 * 128 * 64 * 128,
        "matmul",
    ),
    *MODELS,
)
