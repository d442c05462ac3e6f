"""Small whole models with random weights, and what each is called with."""

from __future__ import annotations

import torch
from torch import nn

TOKENS, VOCABULARY = 19, 97


class Block(nn.Module):
    """A transformer encoder block written out: attention, residuals, norms, a feed-forward network."""

    def __init__(self, width: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.first(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT * (width // self.heads) ** -0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


class Encoder(nn.Module):
    """Embeddings, blocks and a classifier: what a training step needs."""

    def __init__(self, width: int = 32, layers: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width)
        self.places = nn.Parameter(torch.randn(TOKENS, width) * 0.1)
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 11)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.places[: tokens.shape[1]])).mean(1))


class Mixed(nn.Module):
    """Kernels that the others lack: fused causal attention, reductions over rows and columns, a product of views."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(VOCABULARY, 64), nn.LayerNorm(64)
        self.qkv, self.up, self.down = nn.Linear(64, 192), nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.norm(self.table(ids))
        q, k, v = (t.unflatten(-1, (4, 16)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        a = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        y = x + self.down(nn.functional.gelu(self.up(a)))
        scores = (y @ y.mT).softmax(-1)
        return y.mean(1), y.sum(0).amax(), scores, y[:, 0] @ self.up.weight.mT, y.tanh().argmax(-1)


class Cell(nn.Module):
    """An LSTM cell, stepped over a sequence."""

    def __init__(self, inputs: int = 13, width: int = 24) -> None:
        super().__init__()
        self.cell, self.width = nn.LSTMCell(inputs, width), width

    def forward(self, sequence: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = c = sequence.new_zeros(sequence.shape[1], self.width)
        for x in sequence:
            h, c = self.cell(x, (h, c))
        return h, c


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        wide = 2 * width
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide),
        )  # fmt: skip
        self.skip = nn.Sequential(nn.Conv2d(inputs, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def resnet() -> nn.Module:
    """Residual bottlenecks between a stem and a head, as in ResNet-50, with few channels."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        Bottleneck(8, 8, 1), Bottleneck(16, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def mobilenet() -> nn.Module:
    """Inverted residuals: pointwise and depthwise convolutions, squeeze and excitation, a few channels."""

    class Inverted(nn.Module):
        def __init__(self, width: int, wide: int, window: int) -> None:
            super().__init__()
            self.up = nn.Sequential(
                nn.Conv2d(width, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.Hardswish()
            )
            self.each = nn.Sequential(
                nn.Conv2d(wide, wide, window, padding=window // 2, groups=wide, bias=False),
                nn.BatchNorm2d(wide),
                nn.ReLU6(),
            )
            self.gate = nn.Sequential(
                nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, 8, 1), nn.SiLU(), nn.Conv2d(8, wide, 1)
            )
            self.down = nn.Sequential(nn.Conv2d(wide, width, 1, bias=False), nn.BatchNorm2d(width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.each(self.up(x))
            return x + self.down(y * torch.sigmoid(self.gate(y)))

    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6(), Inverted(16, 48, 3), Inverted(16, 40, 5),
        nn.AvgPool2d(3, 2, 1), nn.AdaptiveAvgPool2d((3, 3)), nn.Flatten(), nn.Linear(144, 10),
    )  # fmt: skip


def tokens(batch: int = 2, length: int = TOKENS) -> torch.Tensor:
    return torch.randint(
        0, VOCABULARY, (batch, length), generator=torch.Generator(torch.get_default_device()).manual_seed(1)
    )


def image(batch: int = 2, size: int = 32) -> torch.Tensor:
    return torch.randn(
        batch, 3, size, size, generator=torch.Generator(torch.get_default_device()).manual_seed(1)
    )


def bert() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    import transformers

    config = transformers.BertConfig(vocab_size=VOCABULARY, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
                                     intermediate_size=80, max_position_embeddings=64)  # fmt: skip
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, 10:] = 0
    return transformers.BertModel(config), (tokens(), mask)


def gpt2() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    import transformers

    config = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=4, n_positions=64,
                                     use_cache=False)  # fmt: skip
    return transformers.GPT2LMHeadModel(config), (tokens(),)


def vit() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    import transformers

    config = transformers.ViTConfig(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=80,
                                    image_size=32, patch_size=8)  # fmt: skip
    return transformers.ViTModel(config), (image(),)


def llama() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    import transformers

    config = transformers.LlamaConfig(vocab_size=VOCABULARY, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
                                      num_attention_heads=4, num_key_value_heads=2, use_cache=False,
                                      max_position_embeddings=64)  # fmt: skip
    return transformers.LlamaForCausalLM(config), (tokens(),)


def block() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return Block(), (torch.randn(2, 17, 48),)


MODELS = {
    "bert": bert, "gpt2": gpt2, "vit": vit, "llama": llama, "block": block,
    "mixed": lambda: (Mixed(), (tokens(),)),
    "encoder": lambda: (Encoder(), (tokens(),)),
    "lstm": lambda: (Cell(), (torch.randn(3, 5, 13),)),
    "resnet": lambda: (resnet(), (image(),)),
    "mobilenet": lambda: (mobilenet(), (image(),)),
}  # fmt: skip


def make(name: str) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """(model in evaluation mode, inputs), the same at every call."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    return model.eval(), inputs
