"""Whole models for the sparse benchmark: pruned, put through `sparsify`, beside the masked model run dense."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import contenders
import torch
from torch import Tensor, nn

import torchsparta
from torchsparta.specialised import pattern_mask

Run = Callable[[], object]


class Field(nn.Module):
    """A transformers model as a module with one tensor out."""

    def __init__(self, model: nn.Module, field: str) -> None:
        super().__init__()
        self.model, self.field = model, field

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self.model(x), self.field)


def bert() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """BERT-base with random weights, 128 tokens."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    model = Field(BertModel(BertConfig(), add_pooling_layer=False), "last_hidden_state").eval()
    return model, (torch.randint(0, 30000, (1, 128)),)


def mobilenet_v2() -> tuple[nn.Module, tuple[Tensor, ...]]:
    from transformers import MobileNetV2Config, MobileNetV2Model

    torch.manual_seed(0)
    return Field(MobileNetV2Model(MobileNetV2Config()), "pooler_output").eval(), (
        torch.randn(1, 3, 224, 224),
    )


def resnet50() -> tuple[nn.Module, tuple[Tensor, ...]]:
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    return Field(ResNetModel(ResNetConfig()), "pooler_output").eval(), (torch.randn(1, 3, 224, 224),)


def pattern_masks(model: nn.Module, pattern: str) -> dict[str, dict[str, Tensor]]:
    """A mask of this pattern on every linear layer, in NNI's format."""
    linears = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    return {
        n: {"weight": pattern_mask(pattern, (m.out_features, m.in_features), seed).float()}
        for seed, (n, m) in enumerate(linears)
    }


def coarse_masks(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Half of the heads and half of the FFN of every BERT layer, weights and biases."""
    masks: dict[str, dict[str, Tensor]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        kept = None
        if name.endswith(("query", "key", "value")):
            kept = (torch.arange(module.out_features) // 64) % 2 == 0
        elif name.endswith("intermediate.dense"):
            kept = torch.arange(module.out_features) % 2 == 0
        if kept is not None:
            column = kept.float()
            masks[name] = {"weight": column[:, None].expand_as(module.weight).clone(), "bias": column}
    return masks


def channel_masks(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Every other output channel of every ungrouped convolution, with what follows it in the batch norm."""
    masks: dict[str, dict[str, Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1 and module.out_channels >= 16:
            kept = (torch.arange(module.out_channels) % 2 == 0).float()
            masks[name] = {"weight": kept[:, None, None, None].expand_as(module.weight).clone()}
        elif isinstance(module, nn.BatchNorm2d) and module.num_features >= 16:
            kept = (torch.arange(module.num_features) % 2 == 0).float()
            masks[name] = {"weight": kept, "bias": kept}
    return masks


def int8_masks(model: nn.Module) -> tuple[dict[str, dict[str, Tensor]], dict]:
    """Half of heads and FFN; int8 weights with a scale per output channel and int8 inputs with one scale each, from the
    largest values that the masked layers see: in NNI's two formats."""
    masks, config = coarse_masks(model), {}
    peaks = input_peaks(torchsparta.masked_model(model, torchsparta.from_nni(masks)), bert()[1])
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            scale = module.weight.detach().abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
            config[name] = {"weight": symmetric_int8(scale), "_input_0": symmetric_int8(peaks[name] / 127)}
    return masks, config


def symmetric_int8(scale: Tensor) -> dict[str, object]:
    return {"scale": scale, "zero_point": torch.zeros_like(scale), "quant_dtype": "int8",
            "quant_scheme": "symmetric", "quant_bits": 8}  # fmt: skip


def input_peaks(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """The largest absolute value of the input of each linear layer."""
    peaks: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(
                lambda _, args, name=name: peaks.update({name: args[0].abs().amax()})
            )
    with torch.no_grad():
        model(*inputs)
    return peaks


def mixed_masks(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Heads gone in the first third of the layers, 90 % blocks in the second, 95 % unstructured in the last."""
    coarse = coarse_masks(model)
    blocks, fine = pattern_masks(model, "block 32x32 90%"), pattern_masks(model, "unstructured 95%")
    masks = {}
    for name in blocks:
        found = [int(part) for part in name.split(".") if part.isdigit()]
        third = found[0] * 3 // model.model.config.num_hidden_layers if found else 2
        chosen = (coarse, blocks, fine)[third].get(name)
        if chosen is not None:
            masks[name] = chosen
    return masks


class CsrLinear(nn.Module):
    """A linear layer whose weight is torch's CSR: what PyTorch itself offers for unstructured zeros."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight.detach().to_sparse_csr(), linear.bias
        self.out_features = linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        y = (self.weight @ x.reshape(-1, x.shape[-1]).t()).t()
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], self.out_features)


def with_csr(model: nn.Module) -> nn.Module:
    """A copy with every linear layer of which half or more is zero in CSR."""
    out = copy.deepcopy(model)
    for name, module in list(out.named_modules()):
        if isinstance(module, nn.Linear) and float((module.weight == 0).float().mean()) >= 0.5:
            parent, _, child = name.rpartition(".")
            setattr(out.get_submodule(parent), child, CsrLinear(module))
    return out


def build_times() -> tuple[float, float]:
    """Seconds of sparsify and the first call of BERT-base at 90 %: without and with kernels in the cache."""
    code = (
        "import time, torch, torchsparta, sparta_models as m\n"
        "model, inputs = m.bert()\n"
        "tesa = torchsparta.from_nni(m.pattern_masks(model, 'unstructured 90%'))\n"
        "start = time.perf_counter()\n"
        "fast = torchsparta.sparsify(model, tesa, inputs)\n"
        "with torch.no_grad(): fast(*inputs)\n"
        "print(time.perf_counter() - start)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "TRITON_CACHE_DIR": folder, "TORCHROLLER_CACHE_DIR": folder}
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        run = [
            subprocess.run([sys.executable, "-W", "ignore", "-c", code], env={**env, "PYTHONPATH": path},
                           check=True, capture_output=True, text=True).stdout.split()[-1]
            for _ in range(2)
        ]  # fmt: skip
    return float(run[0]), float(run[1])


WORK: dict[str, tuple[Callable, Callable[[nn.Module], dict], float]] = {
    "BERT-base coarse: half of heads and FFN": (bert, coarse_masks, 1.8),
    "BERT-base unstructured 90%": (bert, lambda m: pattern_masks(m, "unstructured 90%"), 2.5),
    "BERT-base block 32x32 90%": (bert, lambda m: pattern_masks(m, "block 32x32 90%"), 3.0),
    "BERT-base coarse + int8": (bert, int8_masks, 4.0),
    "BERT-base mixed: coarse, blocks 90%, unstructured 95%": (bert, mixed_masks, 3.0),
    "MobileNetV2 channels 50%": (mobilenet_v2, channel_masks, 0.0),
    "ResNet-50 channels 50%": (resnet50, channel_masks, 0.0),
}
"""Name: model, masks, ratio to reach over the best dense f32 (0: the FLOP ratio is what to compare with)."""


def build(name: str) -> tuple[dict[str, Run | str], float, float]:
    """Contenders of one case by name, the largest relative error, and the ratio to reach: of WORK, else 0.9 of the
    ratio of multiply-adds before and after structure."""
    make, masks_of, target = WORK[name]
    model, inputs = make()
    found = masks_of(model)
    tesa = torchsparta.from_nni(*found) if isinstance(found, tuple) else torchsparta.from_nni(found)
    with torch.no_grad():
        fast = torchsparta.sparsify(model, tesa, inputs)
        before = sum(s.macs_before for s in fast.meta["sparta"].sites)
        left = sum(s.macs for s in fast.meta["sparta"].sites)
        model = torchsparta.masked_model(model, tesa).eval()
        want, got = model(*inputs).double(), fast(*inputs).double()
    error = float((got - want).abs().max() / want.abs().max())
    runs: dict[str, Run | str] = {"torchsparta": _without_grad(lambda: fast(*inputs))}
    dense = {
        "eager f32": "eager",
        "onnxruntime f32": "onnxruntime",
        "openvino f32": "openvino",
        "roller f32": "roller",
    }
    for shown, known in dense.items():
        why = contenders.available(known)
        if why is None:
            try:
                with torch.no_grad():
                    runs[shown] = _without_grad(contenders.CONTENDERS[known](model, inputs))
                    runs[shown]()  # type: ignore[operator]
            except Exception as failure:  # whatever a peer raises on this model: its row says so
                why = f"{type(failure).__name__}: {str(failure).splitlines()[0][:100]}"
        if why is not None:
            runs[shown] = why
    if any(isinstance(m, nn.Linear) for m in model.modules()):
        sparse = with_csr(model)
        runs["torch CSR layers"] = _without_grad(lambda: sparse(*inputs))
    try:
        compiled = torch.compile(fast, backend="roller")
        with torch.no_grad():
            compiled(*inputs)
        runs["torchsparta + roller"] = _without_grad(lambda: compiled(*inputs))
    except Exception as failure:  # the row says what stood in the way
        runs["torchsparta + roller"] = f"{type(failure).__name__}: {str(failure).splitlines()[0][:100]}"
    return runs, error, target or 0.9 * before / max(1, left)


def _without_grad(run: Run) -> Run:
    def quiet() -> None:
        with torch.no_grad():
            run()

    return quiet
