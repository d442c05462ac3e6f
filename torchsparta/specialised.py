"""From a site to a module: the chooser that `transform.choose` asks last, and the researcher's `predict`."""

from __future__ import annotations

import re
from dataclasses import replace

import torch
from torch import Tensor, nn

from .attention import SparseAttention
from .cost import PATCH_FACTOR, Rates
from .cover import Cover, cover
from .modules import SparseConv2d, SparseLinear
from .rates import rates_for
from .specialise.pieces import ACTIVATIONS, ConvSpec
from .specialise.program import can_execute, interpreting
from .transform import DenseAttention, DenseSite, SparseSite

INTERPRETED_MACS = 1_000_000
"""Under TRITON_INTERPRET=1 larger sites stay dense: the interpreter is for testing kernels."""

FAKE_QUANT = 1.8
"""Times that a fake quantisation in PyTorch takes longer than one in a kernel: 1.5 to 2.3 on a core of Zen 4."""

DENSE_ATTENTION_SHARE = 0.35
"""Above this share of computed pairs dense attention is faster: gathered keys and the online softmax cost time."""


def specialised(site: SparseSite, rates: Rates | None = None) -> nn.Module:
    """The fastest predicted module for a site; `sparta_reason` says why it is what it is."""
    if site.op == "attention":
        return _attention(site)
    refused = _refusal(site)
    if refused is not None:
        return DenseSite(site, refused)
    weight = site.weight.detach()
    flat = weight.reshape(weight.shape[0], -1)
    mask = site.tesa.mask.reshape(flat.shape).to(flat.device)
    kinds = [e.kind for e in site.epilogue]
    activation = kinds[0] if kinds and kinds[0] != "add" else "none"
    tokens, images = _tokens(site)
    scale = _row_scale(site, flat)
    bits = site.tesa.quant.bits if scale is not None and site.tesa.quant is not None else 32
    patches = site.op == "conv2d" and not _conv(site).pointwise
    dots, factor = site.op == "linear", PATCH_FACTOR if patches else 1.0
    found = cover(flat, mask, tokens, images, rates, bits, scale, dots=dots, panel_factor=factor)
    integer = False
    if bits == 8 and _takes_integers(site):
        whole = cover(
            flat, mask, tokens, images, rates, bits, scale, dots=dots, integer=True, panel_factor=factor
        )
        # The other way quantises the input in passes of PyTorch.
        outside = FAKE_QUANT * (rates or rates_for(flat.device)).quantise_s * tokens * images * flat.shape[1]
        if whole.predicted_s < found.predicted_s + outside:
            found, integer = whole, True
    if found.parts is None:
        return _with(DenseSite(site, found.why), "dense", found)
    rest = (site.bias, activation, integer, found.why, site.input_quant)
    if site.op == "linear":
        layer: SparseLinear | SparseConv2d = SparseLinear(found.parts, *rest)
    else:
        layer = SparseConv2d(found.parts, weight.shape[1], _conv(site), *rest)
    layer.rest = replace(site, weight=site.weight.new_empty(0), bias=None)
    layer.weight_shape = tuple(site.weight.shape)
    if site.trainable:
        layer.make_trainable(found.packer, mask)
    return _with(layer, layer.format_name(), found)


def _attention(site: SparseSite) -> nn.Module:
    """Block-sparse attention where the mask leaves few enough pairs, else dense attention."""
    mask = site.weight
    while mask.dim() > 3 and mask.shape[0] == 1:
        mask = mask[0]
    why = can_execute(mask.device)
    if why is None and interpreting() and site.macs > INTERPRETED_MACS:
        why = "TRITON_INTERPRET=1 would take minutes"
    if why is None and (site.bias is not None or len(site.input_shape) != 4):
        why = "only boolean masks over [batch, heads, tokens, dim] have a kernel"
    if why is None and (
        mask.dim() not in (2, 3) or (mask.dim() == 3 and mask.shape[0] not in (1, site.input_shape[1]))
    ):
        why = f"a mask of shape {tuple(site.weight.shape)} differs from sample to sample"
    if why is None and mask.shape[-2] != site.input_shape[2]:
        why = f"a mask of shape {tuple(site.weight.shape)} is the same for every query"
    if why is not None:
        return DenseAttention(site, f"stays dense: {why}")
    layer = SparseAttention(mask, float(site.attributes["scale"]))
    share = layer.pattern.computed_share
    if share > DENSE_ATTENTION_SHARE:
        return DenseAttention(site, f"stays dense: blocks of the mask cover {share:.0%} of all pairs")
    layer.rest = replace(site, weight=site.weight.new_empty(0), bias=None)
    layer.mask_shape = tuple(site.weight.shape)
    alive = layer.pattern.alive / max(1, mask.numel())
    layer.sparta_format = "block-sparse attention"  # type: ignore[assignment]
    layer.sparta_reason = f"{alive:.1%} of pairs alive, {share:.1%} computed"  # type: ignore[assignment]
    return layer


def _with(module: nn.Module, name: str, found: Cover) -> nn.Module:
    module.sparta_format, module.sparta_reason = name, found.why  # type: ignore[assignment]
    module.sparta_predicted_s = found.table[0].time_s  # type: ignore[assignment]
    module.sparta_table = tuple((p.format, p.time_s, p.flops, p.nbytes) for p in found.table)  # type: ignore[assignment]
    return module


def _refusal(site: SparseSite) -> str | None:
    """Why no specialised kernel can stand here, or None."""
    kinds = [e.kind for e in site.epilogue]
    plain = [k for k in kinds if k != "add"]
    if site.op not in ("linear", "conv2d"):
        return f"no specialised kernel for {site.op}"
    if len(plain) > 1 or any(k not in ACTIVATIONS for k in plain) or (plain and kinds[0] == "add"):
        return f"no specialised kernel for the epilogue {' -> '.join(kinds)}"
    if site.op == "conv2d" and int(site.attributes.get("groups", 1)) != 1:
        return f"grouped convolution (groups={site.attributes['groups']}) stays dense"
    if site.op == "conv2d" and isinstance(site.attributes.get("padding", 0), str):
        return "padding given by name stays dense"
    if site.trainable and bool((site.tesa.code < 0).any()):
        return "a trainable weight with constant elements stays dense"
    if not site.weight.is_floating_point() or 0 in site.weight.shape:
        return f"no specialised kernel for a weight of {tuple(site.weight.shape)}, {site.weight.dtype}"
    why = can_execute(site.weight.device)
    if why is None and interpreting() and site.macs > INTERPRETED_MACS:
        why = f"{site.macs / 1e6:.0f} million multiply-adds would take minutes in Triton's interpreter"
    return None if why is None else f"stays dense: {why}"


def _tokens(site: SparseSite) -> tuple[int, int]:
    if site.op == "linear":
        return max(1, int(torch.Size(site.input_shape[:-1]).numel())), 1
    return max(1, int(torch.Size(site.output_positions()).numel())), max(1, site.input_shape[0])


def _pair(value: object) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    sizes = [int(v) for v in value]  # type: ignore[attr-defined]
    return (sizes[0], sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])


def _conv(site: SparseSite) -> ConvSpec:
    a = site.attributes
    kernel = (site.weight.shape[2], site.weight.shape[3])
    return ConvSpec(
        kernel, _pair(a.get("stride", 1)), _pair(a.get("padding", 0)), _pair(a.get("dilation", 1))
    )


def _takes_integers(site: SparseSite) -> bool:
    """Whether int8 products equal those of the quantised input and weight."""
    quant = site.input_quant
    if quant is None or not quant.fits_int8 or site.weight.dtype != torch.float32:
        return False
    bordered = site.op == "conv2d" and any(_conv(site).padding)
    return quant.has_zero or not bordered


def _row_scale(site: SparseSite, flat: Tensor) -> Tensor | None:
    """The quantizer's scale per row [N] where the weight is exactly scale * int8 or int4, else None."""
    quant = site.tesa.quant
    if quant is None or quant.bits not in (4, 8) or site.trainable or bool((quant.zero_point != 0).any()):
        return None
    scale = quant.scale.reshape(-1)
    if scale.numel() not in (1, flat.shape[0]):
        return None
    scale = scale.expand(flat.shape[0]).float().contiguous().to(flat.device)
    q = torch.round(flat.double() / scale.double()[:, None])
    if float(q.abs().max()) > {8: 127, 4: 7}[quant.bits] or not torch.allclose(
        (q * scale.double()[:, None]).float(), flat.float(), rtol=1e-6, atol=0.0
    ):
        return None
    return scale


def pattern_mask(text: str, shape: tuple[int, int], seed: int = 0) -> Tensor:
    """bool [N, K] for a named pattern, random where the name leaves it open.

    'unstructured 90%', 'block 32x1 95%', 'rows 50%' and 'columns 50%' give the share that is pruned; 'N:M' keeps N
    of every M columns; 'dense' keeps all.
    """
    n, k = shape
    g = torch.Generator().manual_seed(seed)
    text = text.strip().lower()
    if text == "dense":
        return torch.ones(n, k, dtype=torch.bool)
    if found := re.fullmatch(r"(\d+):(\d+)", text):
        keep, of = int(found[1]), int(found[2])
        rank = torch.rand(n, -(-k // of), of, generator=g).argsort(-1).argsort(-1)
        return (rank < keep).view(n, -1)[:, :k].contiguous()
    found = re.fullmatch(r"(unstructured|rows|columns|block (\d+)x(\d+)) (\d+(?:\.\d+)?)%", text)
    if not found:
        raise ValueError(
            f"unknown pattern {text!r}; give a mask, or 'dense', '2:4', 'unstructured 90%', 'block 16x16 90%', "
            "'rows 50%' or 'columns 50%'"
        )
    share = float(found[4]) / 100
    kind = found[1].split()[0]
    bm, bk = {"unstructured": (1, 1), "rows": (1, k), "columns": (n, 1)}.get(kind) or (
        int(found[2]),
        int(found[3]),
    )
    grid = (-(-n // bm), -(-k // bk))
    total = grid[0] * grid[1]
    alive = torch.zeros(total, dtype=torch.bool)
    alive[torch.randperm(total, generator=g)[: total - round(share * total)]] = True
    return alive.view(grid).repeat_interleave(bm, 0).repeat_interleave(bk, 1)[:n, :k].contiguous()


def predict(
    layer: nn.Module | tuple[int, int],
    pattern: Tensor | str | None = None,
    tokens: int = 128,
    images: int = 1,
    rates: Rates | None = None,
) -> Cover:
    """How fast would this pattern be? Time, FLOPs and bytes by format, without training or running anything.

    layer: nn.Linear, nn.Conv2d (tokens: output pixels of an image), or a shape (out, in). pattern: a 0/1 mask of
    the weight's shape, a name for `pattern_mask`, or None for what is not zero in the weight. Print the result.
    """
    if isinstance(layer, tuple):
        weight = torch.ones(layer)
    elif isinstance(layer, (nn.Linear, nn.Conv2d)):
        weight = layer.weight.detach().flatten(1)
    else:
        raise TypeError(
            f"predict: layer must be nn.Linear, nn.Conv2d or (out, in), got {type(layer).__name__}"
        )
    if pattern is None:
        mask = weight != 0
    elif isinstance(pattern, str):
        mask = pattern_mask(pattern, (weight.shape[0], weight.shape[1]))
    else:
        if pattern.numel() != weight.numel() or pattern.shape[0] != weight.shape[0]:
            raise ValueError(
                f"predict: the mask has shape {tuple(pattern.shape)}, the weight {tuple(weight.shape)}"
            )
        mask = pattern.reshape(weight.shape).bool()
    return cover(weight, mask, tokens, images, rates or rates_for(weight.device))
