"""Whole models for the sparse benchmark: pruned, put through `sparsify`, beside the masked model run dense."""

from __future__ import annotations

from collections.abc import Callable

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


WORK: dict[str, tuple[Callable, Callable[[nn.Module], dict], float]] = {
    "BERT-base coarse: half of heads and FFN": (bert, coarse_masks, 1.8),
    "BERT-base unstructured 90%": (bert, lambda m: pattern_masks(m, "unstructured 90%"), 2.5),
    "BERT-base block 32x32 90%": (bert, lambda m: pattern_masks(m, "block 32x32 90%"), 3.0),
    "MobileNetV2 channels 50%": (mobilenet_v2, channel_masks, 0.0),
    "ResNet-50 channels 50%": (resnet50, channel_masks, 0.0),
}
"""Name: model, masks, ratio to reach over the best dense f32 (0: the FLOP ratio is what to compare with)."""


def build(name: str) -> tuple[dict[str, Run | str], float, float]:
    """Contenders of one case by name, the largest relative error, and the target."""
    make, masks_of, target = WORK[name]
    model, inputs = make()
    masks = masks_of(model)
    with torch.no_grad():
        fast = torchsparta.sparsify(model, torchsparta.from_nni(masks), inputs)
        for module_name, by_target in masks.items():
            for parameter, mask in by_target.items():
                tensor = getattr(model.get_submodule(module_name), parameter)
                if tensor is not None:
                    tensor.mul_(mask)
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
    return runs, error, target


def _without_grad(run: Run) -> Run:
    def quiet() -> None:
        with torch.no_grad():
            run()

    return quiet
