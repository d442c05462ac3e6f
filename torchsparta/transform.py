"""Sites: the places where a sparse kernel may stand in for a dense operator, and the choice among them.

Structure (structure/) leaves one `SparseSite` for each linear or convolution with a weight of its own, and
for each attention whose mask is known. `choose` asks the registered choosers, highest priority first, for a
module that computes the site; the first that does not answer None wins. `specialised` (specialised.py), the cover
by formats at the least predicted time, is asked last. A chooser is `f(site) -> nn.Module | None`.

The module is called as `module(x)` (attention: `module(q, k, v)`) or, if the site's epilogue ends in "add",
`module(x, residual)`. It may carry `sparta_format` (str) and `sparta_reason` (str), which the report shows,
and must have `sparta_site() -> SparseSite`, the site with its present tensors, from which `torchsparta.load`
chooses again on the machine that loads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .input_quant import InputQuant
from .tesa import TeSA


@dataclass(frozen=True)
class Epilogue:
    """A pointwise operation after the site, fused if the kernel can: relu, gelu, gelu_tanh, silu, tanh,
    sigmoid, relu6, or "add" (the residual that the module gets as its second argument; always last)."""

    kind: str

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.kind == "add":
            assert residual is not None
            return x + residual
        return _ACTIVATIONS[self.kind](x)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


@dataclass(frozen=True, eq=False)
class SparseSite:
    """One operator with a weight, after structure: what a kernel is made from.

    name: module path in the model. op: "linear", "conv1d", "conv2d", "conv3d" or "attention".
    weight: [N, K] for linear (out = x weight^T), [N, C/groups, taps…] for convolutions; already masked (and
    fake-quantized). bias: [N] or None. tesa: of the weight.
    For "attention" the weight is the bool mask that broadcasts to the scores [..., T, S] (True is visible),
    bias a float mask to add to them or None, tesa that of the mask.
    input_shape: of x (or q) for the example inputs. epilogue: in order. attributes: stride, padding,
    dilation, groups of a convolution; scale of an attention. trainable: the weight is a parameter and its
    mask must hold in training. input_quant: the module gets the real x and has to quantise it.
    """

    name: str
    op: str
    weight: Tensor
    bias: Tensor | None
    tesa: TeSA
    input_shape: tuple[int, ...]
    epilogue: tuple[Epilogue, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    trainable: bool = False
    input_quant: InputQuant | None = None

    @property
    def has_residual(self) -> bool:
        return bool(self.epilogue) and self.epilogue[-1].kind == "add"

    @property
    def macs(self) -> int:
        """Multiply-adds of the dense operator for `input_shape`."""
        if self.op == "linear":
            return int(torch.Size(self.input_shape[:-1]).numel()) * self.weight.numel()
        if self.op == "attention":  # q k^T and p v, with as many values as keys and queries have
            return 2 * int(torch.Size(self.input_shape).numel()) * self.tesa.shape[-1]
        return int(torch.Size(self.output_positions()).numel()) * self.input_shape[0] * self.weight.numel()

    def output_positions(self) -> tuple[int, ...]:
        """Spatial shape of a convolution's output."""
        with torch.device("meta"):
            x, w = torch.empty(self.input_shape), torch.empty(self.weight.shape)
        return tuple(_CONV[self.op](x, w, None, **self.attributes).shape[2:])


_CONV: dict[str, Callable[..., Tensor]] = {"conv1d": F.conv1d, "conv2d": F.conv2d, "conv3d": F.conv3d}

Chooser = Callable[[SparseSite], "nn.Module | None"]
_choosers: list[tuple[int, Chooser]] = []


def register_chooser(chooser: Chooser, priority: int = 0) -> Chooser:
    """Add a chooser; higher priorities are asked first, equal ones in the order of registration."""
    _choosers.append((priority, chooser))
    _choosers.sort(key=lambda entry: -entry[0])
    return chooser


def unregister_chooser(chooser: Chooser) -> None:
    """Remove a chooser that `register_chooser` added."""
    _choosers[:] = [entry for entry in _choosers if entry[1] is not chooser]


def choose(site: SparseSite) -> nn.Module:
    """The module for a site: the first chooser's that has one, the cover by formats, else the dense masked weight."""
    from .specialised import specialised

    for _, chooser in _choosers:
        module = chooser(site)
        if module is not None:
            return module
    return specialised(site)


class DenseSite(nn.Module):
    """The site as dense PyTorch. Trainable: gradients reach only elements that the mask leaves alive."""

    sparta_format = "dense"
    alive: Tensor | None
    fixed: Tensor | None

    def __init__(self, site: SparseSite, reason: str = "no sparse kernel was chosen"):
        super().__init__()
        self.op, self.epilogue, self.attributes = site.op, site.epilogue, dict(site.attributes)
        self.sparta_reason = reason
        self.rest = replace(site, weight=site.weight.new_empty(0), bias=None)  # all but the tensors
        self.weight = nn.Parameter(site.weight.detach().clone(), requires_grad=site.trainable)
        bias = None if site.bias is None else site.bias.detach().clone()
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=site.trainable)
        masked = site.trainable and site.tesa.density() < 1.0
        alive = (
            (site.tesa.code > 0).to(site.weight).expand(site.weight.shape).contiguous() if masked else None
        )
        self.register_buffer("alive", alive)
        if masked and site.tesa.value is not None:
            fixed = torch.where(site.tesa.code < 0, site.tesa.value, 0.0).expand(site.weight.shape)
            self.register_buffer("fixed", fixed.to(site.weight).contiguous())
        else:
            self.register_buffer("fixed", None)

    def sparta_site(self) -> SparseSite:
        """The site with the present weights, for `torchsparta.save` and for choosing again."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self.rest, weight=self.effective_weight().detach(), bias=bias)

    def effective_weight(self) -> Tensor:
        if self.alive is None:
            return self.weight
        weight = self.weight * self.alive
        return weight if self.fixed is None else weight + self.fixed

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if self.rest.input_quant is not None:
            x = self.rest.input_quant(x)
        if self.op == "linear":
            out = F.linear(x, self.effective_weight(), self.bias)
        else:
            out = _CONV[self.op](x, self.effective_weight(), self.bias, **self.attributes)
        for step in self.epilogue:
            out = step(out, residual)
        return out

    def extra_repr(self) -> str:
        after = "".join(f" -> {e.kind}" for e in self.epilogue)
        return f"{self.op} {'x'.join(map(str, self.weight.shape))}{after}"


class DenseAttention(nn.Module):
    """Attention with a fixed mask as dense PyTorch."""

    sparta_format = "dense"
    visible: Tensor
    added: Tensor | None

    def __init__(self, site: SparseSite, reason: str = "no sparse kernel was chosen"):
        super().__init__()
        self.sparta_reason, self.scale = reason, float(site.attributes["scale"])
        self.rest = replace(site, weight=site.weight.new_empty(0), bias=None)
        self.register_buffer("visible", site.weight)
        self.register_buffer("added", site.bias)

    def sparta_site(self) -> SparseSite:
        """The site, for `torchsparta.save` and for choosing again."""
        return replace(self.rest, weight=self.visible, bias=self.added)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = self.visible if self.added is None else self.added
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
