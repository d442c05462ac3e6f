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
    Case("bert_b1_s128", "model", bert(1), 22.4e9, 0, "0.40x eager's time; OpenVINO's time", turn_s=0.4),
    Case("bert_b8_s128", "model", bert(8), 179e9, 0, "0.40x eager's time; OpenVINO's time", turn_s=1.0),
    Case("gpt2_prefill_s256", "model", gpt2, 45e9, 0, "0.45x eager's time", turn_s=0.5),
)
