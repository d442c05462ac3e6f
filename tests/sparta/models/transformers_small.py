"""Small models of transformers with random weights, and masks for them."""

from __future__ import annotations

import torch
from torch import nn

from torchsparta import ModelTeSA, TeSA


def bert():
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, vocab_size=64
    )
    return with_biases(BertModel(config)), (torch.randint(0, 64, (2, 10)),)


def vit():
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=24,
        patch_size=8,
    )
    return with_biases(ViTModel(config)), (torch.randn(2, 3, 24, 24),)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=48, n_layer=2, n_head=4, vocab_size=64, n_positions=32, use_cache=False)
    return with_biases(GPT2LMHeadModel(config)), (torch.randint(0, 64, (2, 10)),)


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96,
        vocab_size=64, max_position_embeddings=32, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config), (torch.randint(0, 64, (2, 10)),)


def resnet():
    from .resnet import ResNet

    return settle(ResNet((1, 2), 8, 10)), (torch.randn(2, 3, 32, 32),)


def mobilenet():
    from .mobilenet import MobileNetV2

    stages = ((1, 8, 1, 1), (6, 12, 2, 2), (6, 16, 2, 2))
    return settle(MobileNetV2(stages, 8, 32, 10)), (torch.randn(2, 3, 32, 32),)


ALL = {"bert": bert, "vit": vit, "gpt2": gpt2, "llama": llama, "resnet": resnet, "mobilenet": mobilenet}


def with_biases(model: nn.Module) -> nn.Module:
    """Biases that are not the zeros of a fresh model."""
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(p, std=0.3)
    return model


def settle(model: nn.Module) -> nn.Module:
    """Batch norms with statistics and scales that are not the neutral ones."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            with torch.no_grad():
                module.running_mean.uniform_(-0.5, 0.5)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    return model


def prunable(model: nn.Module) -> dict[str, nn.Module]:
    kinds = ("Linear", "Conv2d", "Conv1D")
    return {n: m for n, m in model.named_modules() if type(m).__name__ in kinds and "classifier" not in n}


def unstructured(model: nn.Module, sparsity: float) -> ModelTeSA:
    """The smallest weights by magnitude, as LevelPruner does."""
    found = {}
    for name, module in prunable(model).items():
        w = module.weight.detach().abs()
        found[f"{name}.weight"] = TeSA.from_mask(
            w > w.flatten().kthvalue(max(1, int(sparsity * w.numel())))[0]
        )
    return ModelTeSA(found)


def rows(model: nn.Module, sparsity: float, mask_bias: bool = True) -> ModelTeSA:
    """Output rows or channels with the smallest L1 norm, as L1NormPruner does."""
    found = {}
    for name, module in prunable(model).items():
        w = module.weight.detach()
        dim = 1 if type(module).__name__ == "Conv1D" else 0  # transformers' Conv1D holds [in, out]
        norm = w.abs().sum([d for d in range(w.dim()) if d != dim])
        alive = norm > norm.kthvalue(max(1, int(sparsity * norm.numel())))[0]
        shape = [-1 if d == dim else 1 for d in range(w.dim())]
        found[f"{name}.weight"] = TeSA.from_mask(alive.reshape(shape).expand(w.shape))
        if mask_bias and getattr(module, "bias", None) is not None:
            found[f"{name}.bias"] = TeSA.from_mask(alive)
    return ModelTeSA(found)


def coarse(model: nn.Module) -> ModelTeSA:
    """Half of the heads and half of the FFN of a transformer; 12 columns are a head."""
    found = {}
    for name, p in model.named_parameters():
        leaf = name.split(".")
        mask = torch.ones(p.shape)
        if any(k in leaf for k in ("value", "v_proj")):
            mask[: p.shape[0] // 2] = 0
        elif any(k in leaf for k in ("intermediate", "up_proj", "fc1")):
            mask[::2] = 0
        elif "c_fc" in leaf:
            mask[..., ::2] = 0
        elif "c_attn" in leaf:
            mask[..., 96:120] = 0
        else:
            continue
        found[name] = TeSA.from_mask(mask)
    return ModelTeSA(found)
