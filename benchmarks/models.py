"""Whole models for the benchmarks: transformers configurations with random weights, reduced to one output tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from case import Built, Case
from torch import nn


class Output(nn.Module):
    """A transformers model reduced to one tensor, so that every contender returns the same thing."""

    def __init__(self, model: nn.Module, field: str) -> None:
        super().__init__()
        self.model, self.field = model, field

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return getattr(self.model(x), self.field)


class Decode(nn.Module):
    """One token after `past` others, whose keys and values lie in a static cache that the step writes to."""

    def __init__(self, model: nn.Module, past: int) -> None:
        super().__init__()
        from transformers import StaticCache

        self.model, self.past = model.eval(), past
        self.cache = StaticCache(model.config, max_cache_len=past + 1)
        with torch.no_grad():
            self.model(tokens(past), past_key_values=self.cache, use_cache=True)
        for n, layer in enumerate(self.cache.layers):
            self.register_buffer(f"keys{n}", layer.keys)
            self.register_buffer(f"values{n}", layer.values)

    def forward(self, token: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        for n, layer in enumerate(self.cache.layers):
            layer.keys, layer.values = getattr(self, f"keys{n}"), getattr(self, f"values{n}")
            layer.cumulative_length.fill_(self.past)
        return self.model(token, past_key_values=self.cache, position_ids=positions, use_cache=True).logits


def tokens(count: int, batch: int = 1) -> torch.Tensor:
    return torch.randint(0, 30000, (batch, count), generator=torch.Generator().manual_seed(0))


def bert(batch: int) -> Built:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return Output(BertModel(BertConfig()), "last_hidden_state").eval(), (tokens(128, batch),)


def gpt2(decode: bool) -> Built:
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

    torch.manual_seed(0)
    if decode:
        return Decode(GPT2LMHeadModel(GPT2Config()), 256).eval(), (tokens(1), torch.full((1, 1), 256))
    return Output(GPT2Model(GPT2Config(use_cache=False)), "last_hidden_state").eval(), (tokens(256),)


def llama(dtype: torch.dtype, decode: bool) -> Built:
    """220 million parameters, a vocabulary of 32,000, four query heads to each key head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(hidden_size=1024, intermediate_size=2816, num_hidden_layers=12, num_attention_heads=16,
                         num_key_value_heads=4, use_cache=decode)  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype)
    if decode:
        return Decode(model, 256).eval(), (tokens(1), torch.full((1, 1), 256))
    return Output(model, "logits").eval(), (tokens(128),)


def vision(name: str, batch: int) -> Built:
    """A vision model in its default configuration; statistics of batch norm as after training."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")()
    model = getattr(transformers, f"{name}Model")(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return Output(model, "last_hidden_state").eval(), (torch.randn(batch, 3, 224, 224),)


class _Loss(nn.Module):
    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, layers), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(self.head(self.encoder(x)), y)


def encoder_step() -> Built:
    """A loss of four encoder layers of width 512 over 4 sequences of 128 tokens."""
    torch.manual_seed(0)
    return _Loss(4, 512, 8).train(), (torch.randn(4, 128, 512), torch.randn(4, 128, 512))


_BERT_BAR = "0.40x eager's time; OpenVINO's time"
_BF16 = torch.bfloat16
_LLAMA = 12 * (2 * 1024 * 1024 + 2 * 1024 * 256 + 3 * 1024 * 2816) + 1024 * 32000  # weights in products


def _model(name: str, make: Callable[[], Built], flops: float = 0.0, *, bar: str = "fastest peer", turn_s: float = 0.5,
           **kw: Any) -> Case:  # fmt: skip
    return Case(name, "model", make, flops, bar=bar, turn_s=turn_s, **kw)


MODELS: tuple[Case, ...] = (
    _model("resnet50_b1", lambda: vision("ResNet", 1), 8.2e9, turn_s=0.3),
    _model("resnet50_b8", lambda: vision("ResNet", 8), 65.6e9, turn_s=1.0),
    _model("mobilenetv2_b1", lambda: vision("MobileNetV2", 1), 0.6e9, turn_s=0.1),
    _model("vit_b16_b1", lambda: vision("ViT", 1), 35.1e9),
    _model("bert_b1_s128", lambda: bert(1), 22.4e9, bar=_BERT_BAR, turn_s=0.4),
    _model("bert_b8_s128", lambda: bert(8), 179e9, bar=_BERT_BAR, turn_s=1.0),
    _model("gpt2_prefill_s256", lambda: gpt2(False), 45e9, bar="0.45x eager's time"),
    _model("gpt2_decode_kv256", lambda: gpt2(True), bytes=4.0 * 124e6, turn_s=0.2),
    _model("llama_prefill_s128", lambda: llama(torch.float32, False), 2.0 * 128 * _LLAMA),
    _model("llama_prefill_s128_bf16", lambda: llama(_BF16, False), 2.0 * 128 * _LLAMA, dtype=_BF16),
    _model("llama_decode_kv256", lambda: llama(torch.float32, True), bytes=4.0 * _LLAMA, turn_s=0.2),
    _model("llama_decode_kv256_bf16", lambda: llama(_BF16, True), bytes=2.0 * _LLAMA, dtype=_BF16, turn_s=0.2),
    _model("encoder_step", encoder_step, 3 * 2.0 * 512 * (4 * 12 + 1) * 512 * 512, training=True),
)  # fmt: skip
