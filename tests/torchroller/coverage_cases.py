"""Model classes at small sizes with random weights: how much of each runs in our kernels, and what does not.

`python tests/torchroller/coverage_cases.py [NAME ...]` prints a table: error against float64 beside eager's, shares
of FLOPs and of graph nodes in our kernels, and every extern call with its reason. Attention of the transformers
models is built both ways that users meet it: "sdpa" (one operator) and "eager" (products and a softmax).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

VOCABULARY, TOKENS = 113, 24


@dataclass(frozen=True)
class Case:
    """`make()` gives (module, inputs). `train`: loss, backward and an AdamW step, else one call without gradients.

    `bars`: least shares of FLOPs and of nodes in our kernels.
    """

    make: Callable[[], tuple[nn.Module, tuple[Any, ...]]]
    train: bool = False
    dtype: torch.dtype = torch.float32
    bars: tuple[float, float] = (0.98, 0.90)


class Wrapped(nn.Module):
    """A transformers model whose call is `call(model, *inputs)` and gives plain tensors."""

    def __init__(self, model: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, *inputs: Any) -> Any:
        return self.call(self.model, *inputs)


def ids(batch: int = 2, length: int = TOKENS, seed: int = 1) -> torch.Tensor:
    return torch.randint(
        0,
        VOCABULARY,
        (batch, length),
        generator=torch.Generator(torch.get_default_device()).manual_seed(seed),
    )


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator(torch.get_default_device()).manual_seed(seed))


def _t5() -> tuple[nn.Module, tuple[Any, ...]]:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
                      use_cache=False, feed_forward_proj="gated-gelu")  # fmt: skip
    model = T5ForConditionalGeneration(config)
    return Wrapped(model, lambda m, a, b: m(input_ids=a, decoder_input_ids=b).logits), (ids(), ids(2, 11, 2))


def _swin(attention: str) -> tuple[nn.Module, tuple[Any, ...]]:
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(image_size=64, patch_size=4, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4,
                        attn_implementation=attention)  # fmt: skip
    return Wrapped(SwinModel(config), lambda m, x: m(x).last_hidden_state), (noise(2, 3, 64, 64),)


def gpt2_model(attention: str = "sdpa", **kw: Any) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=64,
                        attn_implementation=attention, **kw)  # fmt: skip
    return GPT2LMHeadModel(config)


def _gpt2_prefill(attention: str) -> tuple[nn.Module, tuple[Any, ...]]:
    return Wrapped(gpt2_model(attention, use_cache=False), lambda m, x: m(x).logits), (ids(),)


def llama_model(attention: str = "sdpa", **kw: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
                         attn_implementation=attention, **kw)  # fmt: skip
    return LlamaForCausalLM(config)


def _llama(attention: str) -> tuple[nn.Module, tuple[Any, ...]]:
    return Wrapped(llama_model(attention, use_cache=False), lambda m, x: m(x).logits), (ids(),)


class Decode(nn.Module):
    """One token against a static cache of keys and values, which the step updates in place."""

    def __init__(self, model: nn.Module, length: int = 48, at: int = 20) -> None:
        super().__init__()
        from transformers import StaticCache

        self.model, self.length, self.at = model.eval(), length, at
        self.cache = StaticCache(model.config, max_cache_len=length)
        with torch.no_grad():
            self.model(ids(2, at), past_key_values=self.cache, use_cache=True)
        for n, layer in enumerate(self.cache.layers):
            self.register_buffer(f"keys{n}", layer.keys)
            self.register_buffer(f"values{n}", layer.values)

    def forward(self, token: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        for n, layer in enumerate(self.cache.layers):
            layer.keys, layer.values = getattr(self, f"keys{n}"), getattr(self, f"values{n}")
            if hasattr(layer, "cumulative_length") and isinstance(layer.cumulative_length, torch.Tensor):
                layer.cumulative_length.fill_(self.at)
        out = self.model(token, past_key_values=self.cache, position_ids=positions, use_cache=True)
        return out.logits


def _decode(model: nn.Module) -> tuple[nn.Module, tuple[Any, ...]]:
    return Decode(model), (ids(2, 1, 3), torch.full((2, 1), 20))


def _whisper(attention: str) -> tuple[nn.Module, tuple[Any, ...]]:
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    config = WhisperConfig(num_mel_bins=16, d_model=64, encoder_layers=2, encoder_attention_heads=4,
                           encoder_ffn_dim=128, max_source_positions=50, attn_implementation=attention)  # fmt: skip
    return Wrapped(WhisperEncoder(config), lambda m, x: m(x).last_hidden_state), (noise(2, 16, 100),)


class UNetBlock(nn.Module):
    """A stage of a diffusion UNet: residual convolutions with a time embedding, attention, down, up, a skip."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(width, 64), nn.SiLU(), nn.Linear(64, width))
        self.inner = nn.ModuleList(
            nn.Conv2d(c, width, 3, padding=1) for c in (width, width, 2 * width, width)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, c) for c in (width, width, width, 2 * width, width))
        self.narrow = nn.Conv2d(2 * width, width, 1)
        self.down, self.up = nn.Conv2d(width, width, 3, 2, 1), nn.Conv2d(width, width, 3, padding=1)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def residual(self, x: torch.Tensor, emb: torch.Tensor, at: int) -> torch.Tensor:
        h = self.inner[at](nn.functional.silu(self.norms[at if at < 2 else 3](x))) + emb[:, :, None, None]
        h = self.inner[at + 1](nn.functional.silu(self.norms[at + 1 if at < 2 else 4](h)))
        return h + (x if at == 0 else self.narrow(x))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        width = x.shape[1]
        rate = torch.exp(torch.arange(width // 2) * (-9.21 / (width // 2)))
        angle = t[:, None] * rate
        emb = self.time(torch.cat([angle.sin(), angle.cos()], -1))
        skip = self.residual(x, emb, 0)
        h = self.down(skip)
        n, c, height, wide = h.shape
        q, k, v = self.qkv(self.norms[2](h).flatten(2).mT).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        a = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = h + self.out(a).mT.unflatten(2, (height, wide))
        h = self.up(nn.functional.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.residual(torch.cat([h, skip], 1), emb, 2)


class Sequence(nn.Module):
    """Two layers of nn.LSTM, the second one in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.LSTM(24, 32, batch_first=True)
        self.second = nn.LSTM(32, 16, batch_first=True, bidirectional=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x)[0])[0])


class DLRM(nn.Module):
    """Sparse features through embedding bags, dense ones through an MLP, pairwise products of both."""

    def __init__(self, tables: int = 4, width: int = 16) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(50 + 7 * n, width, mode="sum") for n in range(tables))
        self.bottom = nn.Sequential(nn.Linear(13, 64), nn.ReLU(), nn.Linear(64, width), nn.ReLU())
        count = tables + 1
        rows, columns = torch.tril_indices(count, count, -1)
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        self.top = nn.Sequential(nn.Linear(width + count * (count - 1) // 2, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, dense: torch.Tensor, *sparse: torch.Tensor) -> torch.Tensor:
        x = self.bottom(dense)
        features = torch.stack([x, *(bag(s) for bag, s in zip(self.bags, sparse))], 1)
        pairs = (features @ features.mT)[:, self.rows, self.columns]
        return self.top(torch.cat([x, pairs], 1)).sigmoid()


def _dlrm() -> tuple[nn.Module, tuple[Any, ...]]:
    g = torch.Generator(torch.get_default_device()).manual_seed(1)
    sparse = tuple(torch.randint(0, 50 + 7 * n, (8, 3), generator=g) for n in range(4))
    return DLRM(), (noise(8, 13), *sparse)


class Graph(nn.Module):
    """Message passing: gather over edges, a mean by index_add, attention weights by scatter_reduce and scatter_add."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(2 * width, width), nn.Linear(2 * width, width)
        self.score, self.norm = nn.Linear(width, 1), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        source, target = edges
        message = torch.relu(self.message(torch.cat([x[source], x[target]], -1)))
        score = nn.functional.leaky_relu(self.score(message)).squeeze(-1)
        top = torch.full((len(x),), -1e9, dtype=x.dtype).scatter_reduce(0, target, score, "amax")
        weight = torch.exp(score - top[target])
        total = torch.zeros(len(x), dtype=x.dtype).scatter_add(0, target, weight)
        pooled = torch.zeros_like(x).index_add(0, target, message * (weight / total[target])[:, None])
        return self.norm(x + self.update(torch.cat([x, pooled], -1)))


def _graph() -> tuple[nn.Module, tuple[Any, ...]]:
    return Graph(), (
        noise(40, 32),
        torch.randint(0, 40, (2, 130), generator=torch.Generator(torch.get_default_device()).manual_seed(1)),
    )


class Experts(nn.Module):
    """A mixture of experts as Mixtral's: the two best of a softmax over experts, every expert on its rows."""

    def __init__(self, width: int = 32, experts: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, width, 2 * width) * 0.2)
        self.down = nn.Parameter(torch.randn(experts, 2 * width, width) * 0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(0, 1)
        weights, chosen = self.gate(flat).softmax(-1).topk(2, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        share = torch.zeros(len(flat), self.gate.out_features, dtype=x.dtype).scatter(1, chosen, weights)
        hidden = nn.functional.silu(torch.einsum("td,edf->etf", flat, self.up))
        return torch.einsum("etf,efd,te->td", hidden, self.down, share).view_as(x)


def _mixtral() -> tuple[nn.Module, tuple[Any, ...]]:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                           num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, use_cache=False,
                           max_position_embeddings=64, experts_implementation="batched_mm")  # fmt: skip
    return Wrapped(MixtralForCausalLM(config), lambda m, x: m(x).logits), (ids(),)


def bert_model(**kw: Any) -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                        intermediate_size=128, max_position_embeddings=64, **kw)  # fmt: skip
    return BertForMaskedLM(config)


def _bert_training(**kw: Any) -> tuple[nn.Module, tuple[Any, ...]]:
    model = bert_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **kw)
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, 15:] = 0
    return Wrapped(model, lambda m, x, mask, y: m(x, attention_mask=mask, labels=y).loss), (
        ids(),
        mask,
        ids(seed=2),
    )


def _gpt2_training(attention: str) -> tuple[nn.Module, tuple[Any, ...]]:
    model = gpt2_model(attention, use_cache=False, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model.loss_type = "ForCausalLM"  # without it the model logs a warning, which Dynamo does not trace
    return Wrapped(model, lambda m, x: m(x, labels=x).loss), (ids(),)


BF16 = torch.bfloat16
CASES: dict[str, Case] = {
    "t5": Case(_t5),
    "swin_sdpa": Case(lambda: _swin("sdpa")),
    "swin_eager": Case(lambda: _swin("eager")),
    "gpt2_prefill_sdpa": Case(lambda: _gpt2_prefill("sdpa")),
    "gpt2_prefill_eager": Case(lambda: _gpt2_prefill("eager")),
    "gpt2_decode": Case(lambda: _decode(gpt2_model())),
    "llama_sdpa": Case(lambda: _llama("sdpa")),
    "llama_eager": Case(lambda: _llama("eager")),
    "llama_bf16": Case(lambda: _llama("sdpa"), dtype=BF16),
    "llama_decode": Case(lambda: _decode(llama_model())),
    "llama_decode_bf16": Case(lambda: _decode(llama_model()), dtype=BF16),
    "whisper_encoder_sdpa": Case(lambda: _whisper("sdpa")),
    "whisper_encoder_eager": Case(lambda: _whisper("eager")),
    "unet_block": Case(lambda: (UNetBlock(), (noise(2, 32, 16, 16), torch.tensor([3.0, 250.0])))),
    "lstm": Case(lambda: (Sequence(), (noise(3, 9, 24),))),
    "dlrm": Case(_dlrm),
    "graph": Case(_graph),
    "experts": Case(lambda: (Experts(), (noise(2, 12, 32),))),
    "mixtral": Case(_mixtral),
    "bert_training_sdpa": Case(lambda: _bert_training(attn_implementation="sdpa"), train=True),
    "bert_training_eager": Case(lambda: _bert_training(attn_implementation="eager"), train=True),
    "gpt2_training_sdpa": Case(lambda: _gpt2_training("sdpa"), train=True),
    "gpt2_training_eager": Case(lambda: _gpt2_training("eager"), train=True),
}


@dataclass(frozen=True)
class Outcome:
    """`ours` and `eager` are largest distances from float64 over the largest exact value, of any tensor."""

    report: Any
    ours: float
    eager: float
    failed: tuple[str, ...]  # graphs that run in ATen as a whole, and why

    @property
    def shares(self) -> tuple[float, float]:
        """Of FLOPs and of nodes."""
        (a, b), (c, d) = self.report.flops, self.report.nodes
        return a / max(b, 1), c / max(d, 1)


def cast(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors of `value` as `dtype`."""
    return tree_map(
        lambda x: x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x, value
    )


def evaluate(name: str) -> Outcome:
    """Runs a case eager, in float64 and compiled, and collects what the backend decided."""
    from torchroller import backend
    from torchroller.collect import collect
    from torchroller.explaining import device_of

    case = CASES[name]
    torch.manual_seed(0)
    model, inputs = case.make()
    model = model.to(case.dtype).train(case.train)
    inputs = cast(inputs, case.dtype)
    exact = _call(copy.deepcopy(model).double(), cast(inputs, torch.float64), case.train)
    want = _call(copy.deepcopy(model), inputs, case.train)
    torch._dynamo.reset()
    torch._dynamo.config.allow_rnn = True  # Dynamo leaves nn.LSTM to eager otherwise
    before = {id(p) for p in backend.last_plans()}
    got = _call(copy.deepcopy(model), inputs, case.train, lambda m: torch.compile(m, backend=backend.roller))
    plans = [p for p in backend.last_plans() if id(p) not in before]
    report = collect(plans, device_of(plans), name, backend.traces_of)
    failed = tuple(p.reason for p in plans if hasattr(p, "reason"))
    ours, theirs = (max(_distance(a, e) for a, e in zip(x, exact, strict=True)) for x in (got, want))
    return Outcome(report, ours, theirs, failed)


def _call(
    model: nn.Module, inputs: Any, train: bool, wrap: Callable[[Any], Any] = lambda m: m
) -> list[torch.Tensor]:
    if not train:
        with torch.no_grad():
            return tree_leaves(wrap(model)(*inputs))
    loss = wrap(model)(*inputs)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def _distance(value: torch.Tensor, exact: torch.Tensor) -> float:
    scale = max(float(exact.abs().max()), 1e-3)
    return float((value.double() - exact).abs().max()) / scale


def main(names: list[str]) -> None:
    for name in names or CASES:
        try:
            found = evaluate(name)
        except Exception as error:
            print(f"{name:24s} FAILS: {type(error).__name__}: {str(error)[:300]}", flush=True)
            continue
        flops, nodes = found.shares
        print(f"{name:24s} error {found.ours:.1e} (eager {found.eager:.1e})  FLOPs {flops:6.1%}  nodes {nodes:6.1%} of "
              f"{found.report.nodes[1]}", flush=True)  # fmt: skip
        for reason in found.failed:
            print(f"    WHOLE GRAPH: {reason}")
        for e in found.report.externs:
            print(
                f"    {e.calls} x {e.target}: {e.reason}" + (f" ({e.flops} FLOPs)" if e.flops else ""),
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
