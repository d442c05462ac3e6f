"""What is measured: each case builds a module and its inputs, and knows its arithmetic and its bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Case:
    """`make()` gives (module in eval mode, inputs); `flops` and `bytes` of one call for the rates; `bar` is the goal.

    `peers` names the contenders that make sense here; `turn_s` is how long a turn lasts.
    """

    name: str
    group: str
    make: Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]
    flops: float = 0.0
    bytes: float = 0.0
    bar: str = ""
    dtype: torch.dtype = torch.float32
    turn_s: float = 0.05


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

    def make() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        torch.manual_seed(0)
        return _Matmul(k, n, dtype).eval(), (torch.randn(m, k).to(dtype),)

    group = "matmul" if dtype == torch.float32 else "matmul bf16"
    return Case(
        f"{prefix}_{m}x{k}x{n}", group, make, 2.0 * m * k * n, size * (m * k + k * n + m * n), bar, dtype
    )


def function(
    name: str, fn: Callable[..., torch.Tensor], shapes: list[tuple[int, ...]], bytes_: float
) -> Case:
    def make() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        torch.manual_seed(0)
        return _Function(fn).eval(), tuple(torch.randn(*s) for s in shapes)

    return Case(name, "memory", make, 0.0, bytes_, "fastest peer")


class _LayerNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(768)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


def _layer_norm() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    return _LayerNorm().eval(), (torch.randn(8192, 768),)


class _Output(nn.Module):
    """A transformers model reduced to one tensor, so that every contender returns the same thing."""

    def __init__(self, model: nn.Module, field: str) -> None:
        super().__init__()
        self.model, self.field = model, field

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self.model(x), self.field)


def bert(batch: int) -> Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]:
    def make() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        from transformers import BertConfig, BertModel

        torch.manual_seed(0)
        return _Output(BertModel(BertConfig()), "last_hidden_state").eval(), (
            torch.randint(0, 30000, (batch, 128)),
        )

    return make


def gpt2() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(use_cache=False))
    return _Output(model, "last_hidden_state").eval(), (torch.randint(0, 50000, (1, 256)),)


def convolution(name: str, channels: int, size: int, filters: int, window: int, **arguments: int) -> Case:
    """One image through one convolution without bias, in the layout that a PyTorch user has by default."""

    def make() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        torch.manual_seed(0)
        module = nn.Conv2d(channels, filters, window, bias=False, **arguments)
        return module.eval(), (torch.randn(1, channels, size, size),)

    out = size // arguments.get("stride", 1)
    taps = window * window * channels // arguments.get("groups", 1)
    flops = 2.0 * out * out * filters * taps
    moved = 4.0 * (channels * size * size + filters * out * out + filters * taps)
    return Case(name, "convolution", make, flops, moved, "fastest peer")


def vision(name: str, batch: int) -> Callable[[], tuple[nn.Module, tuple[torch.Tensor, ...]]]:
    """A transformers vision model with its default configuration and random weights; statistics as after training."""

    def make() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        import transformers

        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")()
        model = getattr(transformers, f"{name}Model")(config)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        return _Output(model, "last_hidden_state").eval(), (torch.randn(batch, 3, 224, 224),)

    return make


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
    Case("resnet50_b1", "model", vision("ResNet", 1), 8.2e9, 0, "fastest peer", turn_s=0.3),
    Case("resnet50_b8", "model", vision("ResNet", 8), 65.6e9, 0, "fastest peer", turn_s=1.0),
    Case("mobilenetv2_b1", "model", vision("MobileNetV2", 1), 0.6e9, 0, "fastest peer", turn_s=0.1),
    Case("vit_b16_b1", "model", vision("ViT", 1), 35.1e9, 0, "fastest peer", turn_s=0.5),
    Case("bert_b1_s128", "model", bert(1), 22.4e9, 0, "0.40x eager's time; OpenVINO's time", turn_s=0.4),
    Case("bert_b8_s128", "model", bert(8), 179e9, 0, "0.40x eager's time; OpenVINO's time", turn_s=1.0),
    Case("gpt2_prefill_s256", "model", gpt2, 45e9, 0, "0.45x eager's time", turn_s=0.5),
)
