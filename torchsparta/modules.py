"""Layers with specialised weights: SparseLinear, SparseConv2d, SparseBmm.

A layer whose input is quantised (`input_quant`) takes the real input: int8 kernels quantise it on the way in, any other
way of running the layer quantises it first, so that all compute the same.

A layer holds its weight in packed formats (buffers, so that `state_dict` carries them) or, when trainable, as
a dense parameter with a fixed mask whose values are packed again after every change. Where Triton cannot run
on the input's device the dense weight is used, and `reason` says so.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from .formats import FORMATS, Quantized, SparseFormat, Tile
from .input_quant import InputQuant
from .specialise import BlockDotLinear, SpecialisedLinear, can_execute, specialise
from .specialise.pieces import ConvSpec, apply_activation
from .transform import SparseSite

Packer = Any  # callable (dense, mask) -> tuple of SparseFormat: how a trainable layer packs its weight again


def describe_parts(parts: tuple[SparseFormat, ...]) -> list[dict[str, Any]]:
    """JSON-friendly header from which `rebuild_parts` and the tensors make the parts again."""
    header = []
    for part in parts:
        inner = part.inner if isinstance(part, Quantized) else None
        settings = _plain((inner or part).settings())
        item: dict[str, Any] = {"format": (inner or part).name, "settings": settings}
        if inner is not None:
            extra = {"val_shape": list(getattr(part, "val_shape", ()))} if part.name == "int4" else {}
            item = {"format": part.name, "settings": extra, "inner": item}
        header.append(item)
    return header


def rebuild_parts(header: list[dict[str, Any]], tensors: list[dict[str, Tensor]]) -> tuple[SparseFormat, ...]:
    """The inverse of `describe_parts`; raises ValueError for a format this version does not know."""
    return tuple(_rebuild(item, dict(named)) for item, named in zip(header, tensors))


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        k: {"rows": v.rows, "columns": v.columns}
        if isinstance(v, Tile)
        else list(v)
        if isinstance(v, tuple)
        else v
        for k, v in settings.items()
    }


def _rebuild(item: dict[str, Any], tensors: dict[str, Tensor]) -> SparseFormat:
    name = item["format"]
    if name not in FORMATS:
        raise ValueError(f"the saved layer uses the format {name!r}; this version knows {', '.join(FORMATS)}")
    settings = {
        k: Tile(**v) if isinstance(v, dict) else tuple(v) if isinstance(v, list) else v
        for k, v in item["settings"].items()
    }
    if "inner" in item:
        scale = tensors.pop("scale")
        return FORMATS[name](inner=_rebuild(item["inner"], tensors), scale=scale, **settings)  # type: ignore[call-arg]
    return FORMATS[name](**settings, **tensors)


class _Apply(torch.autograd.Function):
    """Specialised forward; gradients through the dense masked weight, kept only where the mask is alive."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        layer: SparseLayer,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, residual)
        ctx.layer = layer
        return layer._fast(x, bias, residual)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:4]
        with torch.enable_grad():
            inputs = [None if t is None else t.detach().requires_grad_(w) for t, w in zip(saved, wanted)]
            quant = ctx.layer._kernel_quant()
            x = inputs[0] if quant is None else quant(inputs[0])
            out = ctx.layer._dense(x, *inputs[1:])
        targets = [t for t, w in zip(inputs, wanted) if w]
        found = iter(torch.autograd.grad(out, targets, grads[0], allow_unused=True))  # type: ignore[arg-type]
        return (*(next(found) if w else None for w in wanted), None)


class SparseLayer(nn.Module):
    """What the layers share: packed parts or a trainable dense weight, save and load, the dense fallback."""

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    mask: Tensor
    header: Tensor
    packer: Packer | None

    def __init__(
        self,
        parts: tuple[SparseFormat, ...],
        bias: Tensor | None,
        activation: str,
        integer: bool,
        why: str = "",
        input_quant: InputQuant | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.integer = integer
        self.input_quant = input_quant
        self._shifted: tuple[tuple[Any, ...], Tensor | None] = ((), None)
        self.why = why
        self.reason: str | None = None
        self._checked: torch.device | None = None
        self._kernel: Any = None
        self._kernel_key: tuple[Any, ...] = ()
        self._dense_weight: Tensor | None = None
        self.packer = None
        self.rest: SparseSite | None = None
        self.weight_shape: tuple[int, ...] = ()
        self.register_parameter("weight", None)
        self.register_buffer("mask", None)
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone(), False))
        self._set_parts(parts)

    # -- packed parts --------------------------------------------------------------------------------------
    def _set_parts(self, parts: tuple[SparseFormat, ...]) -> None:
        for name in [n for n in self._buffers if n.startswith("part")]:
            del self._buffers[name]
        self._part_header = describe_parts(parts)
        for p, part in enumerate(parts):
            for name, tensor in part.tensors().items():
                self.register_buffer(f"part{p}_{name}", tensor)
        header = {
            "parts": self._part_header,
            "activation": self.activation,
            "integer": self.integer,
            "why": self.why,
            "input_quant": None if self.input_quant is None else asdict(self.input_quant),
        }
        blob = json.dumps(header, sort_keys=True).encode()
        self.register_buffer("header", torch.frombuffer(bytearray(blob), dtype=torch.uint8).clone())
        self._kernel, self._kernel_key, self._dense_weight = None, (), None
        self._shifted = ((), None)

    @property
    def parts(self) -> tuple[SparseFormat, ...]:
        """The packed formats; their sum is the weight."""
        tensors = [
            {n.removeprefix(f"part{p}_"): t for n, t in self._buffers.items() if n.startswith(f"part{p}_")}
            for p in range(len(self._part_header))
        ]
        return rebuild_parts(self._part_header, tensors)  # type: ignore[arg-type]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take any saved layer of this class: the packed tensors bring their own sizes with them."""
        blob = state_dict.get(prefix + "header")
        if blob is not None:
            header = json.loads(bytes(blob.cpu().tolist()).decode())
            tensors = [
                {
                    k.removeprefix(f"{prefix}part{p}_"): v.to(self.header.device)
                    for k, v in state_dict.items()
                    if k.startswith(f"{prefix}part{p}_")
                }
                for p in range(len(header["parts"]))
            ]
            self.activation, self.integer, self.why = header["activation"], header["integer"], header["why"]
            quant = header.get("input_quant")
            self.input_quant = None if quant is None else InputQuant(**quant)
            self._set_parts(rebuild_parts(header["parts"], tensors))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._kernel, self._dense_weight = None, None

    def __getstate__(self) -> dict[str, Any]:
        """Without the kernel, whose launch blocks hold addresses: it is made again at the next call."""
        return {**super().__getstate__(), "_kernel": None, "_kernel_key": (), "_checked": None}

    # -- training ------------------------------------------------------------------------------------------
    def make_trainable(self, packer: Packer, mask: Tensor | None = None) -> None:
        """Turn the weight into a dense parameter; its mask stays fixed, gradients flow only where it is alive.

        packer(dense [N, K], mask [N, K]) gives the parts again after every change of the weight. mask: bool
        [N, K]; by default what is not zero now is alive.
        """
        if self.integer or any(isinstance(p, Quantized) for p in self.parts):
            raise ValueError(
                "a layer with quantised weights cannot be trained; fine-tune first, quantise afterwards"
            )
        dense = self._unpacked()
        self.packer = packer
        self.weight = nn.Parameter(dense)
        self.mask = dense != 0 if mask is None else mask.bool().clone()
        if self.bias is not None:
            self.bias.requires_grad_(True)

    def sparta_site(self) -> SparseSite:
        """The site that this layer stands for, with the present weights; RuntimeError if it was made without one."""
        if self.rest is None:
            raise RuntimeError(
                "this layer was packed by hand, not chosen for a site; save its state_dict instead"
            )
        weight = self.current_weight().detach().reshape(self.weight_shape)
        return replace(self.rest, weight=weight, bias=None if self.bias is None else self.bias.detach())

    def _unpacked(self) -> Tensor:
        total = None
        for part in self.parts:
            total = part.unpack() if total is None else total + part.unpack()
        assert total is not None
        return total

    def current_weight(self) -> Tensor:
        """The weight [N, K] that the layer stands for, pruned elements zero."""
        if self.weight is not None:
            return self.weight * self.mask
        if self._dense_weight is None:
            self._dense_weight = self._unpacked()
        return self._dense_weight

    # -- running -------------------------------------------------------------------------------------------
    def kernel(self) -> Any:
        """The specialised kernel of the current values."""
        if self._parameters["weight"] is not None:
            assert self.weight is not None
            key: tuple[Any, ...] = (self.weight.data_ptr(), self.weight._version)
            if key != self._kernel_key or self._kernel is None:
                assert self.packer is not None
                with torch.no_grad():
                    self._set_parts(self.packer(self.weight.detach() * self.mask, self.mask))
                self._kernel, self._kernel_key = self._make_kernel(), key
            return self._kernel
        key = (id(self._buffers.get("part0_val")),)
        if self._kernel is None or key != self._kernel_key:
            self._kernel, self._kernel_key = self._make_kernel(), key
        return self._kernel

    def _make_kernel(self) -> Any:
        return SpecialisedLinear(self.parts, self.activation, self.integer, quant=self._kernel_quant())

    def _kernel_quant(self) -> InputQuant | None:
        return self.input_quant if self.integer else None

    def _kernel_bias(self, bias: Tensor | None) -> Tensor | None:
        """The bias with what integers lack of the real products, computed again where the bias has changed."""
        quant = self._kernel_quant()
        if quant is None or quant.zero_point == quant.offset:
            return bias
        key = (None,) if bias is None else (bias.data_ptr(), bias._version, bias.dtype)
        if key != self._shifted[0]:
            total: Tensor | None = None
            for part in self.parts:
                assert isinstance(part, Quantized)
                more = quant.shift(part.unpack_integers(), part.scale)
                total = more if total is None else total + more
            assert total is not None
            total = total if bias is None else total + bias.double()
            self._shifted = key, total.to(torch.float32 if bias is None else bias.dtype)
        return self._shifted[1]

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x as for the dense layer; `residual` (the output's shape) is added after the activation."""
        device = x.device
        if device != self._checked:
            self.reason, self._checked = can_execute(device), device
        # Attributes of modules are looked up in three dictionaries; a small layer feels that.
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        quant = self.input_quant
        if quant is not None and not (self.integer and self.reason is None):
            x = quant(x)
        if self.reason is not None:
            return self._dense(x, weight, bias, residual)
        if torch.is_grad_enabled():
            tensors = (x, weight, bias, residual)
            if any(t is not None and t.requires_grad for t in tensors):
                return _Apply.apply(x, weight, bias, residual, self)
        return self._fast(x, bias, residual)

    def _masked(self, weight: Tensor | None) -> Tensor:
        return self.current_weight() if weight is None else weight * self.mask

    def _fast(self, x: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _dense(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        raise NotImplementedError

    def _finish(self, y: Tensor, residual: Tensor | None) -> Tensor:
        y = apply_activation(self.activation, y)
        return y if residual is None else y + residual

    def format_name(self) -> str:
        return " + ".join(p.describe() for p in self.parts) + (" (int8 arithmetic)" if self.integer else "")

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight."""
        return sum(p.nbytes for p in self.parts)


class SparseLinear(SparseLayer):
    """activation(x W^T + bias) (+ residual); x [..., K], W [N, K] as a sum of formats."""

    def __init__(
        self,
        parts: tuple[SparseFormat, ...],
        bias: Tensor | None = None,
        activation: str = "none",
        integer: bool = False,
        why: str = "",
        input_quant: InputQuant | None = None,
    ) -> None:
        super().__init__(parts, bias, activation, integer, why, input_quant)
        self.out_features, self.in_features = parts[0].shape

    def _make_kernel(self) -> SpecialisedLinear | BlockDotLinear:
        return specialise(self.parts, self.activation, self.integer, self._kernel_quant())

    def _fast(self, x: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        return self.kernel()(x, self._kernel_bias(bias), residual)

    def _dense(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        w = self._masked(weight).to(x.dtype)
        return self._finish(nn.functional.linear(x, w, bias), residual)

    def extra_repr(self) -> str:
        return (
            f"{self.in_features} -> {self.out_features}, {self.format_name()}, activation={self.activation}"
        )


class SparseConv2d(SparseLayer):
    """Convolution of [images, C, H, W] as an implicit product; the weight's columns are (c, row, column)."""

    def __init__(
        self,
        parts: tuple[SparseFormat, ...],
        in_channels: int,
        conv: ConvSpec,
        bias: Tensor | None = None,
        activation: str = "none",
        integer: bool = False,
        why: str = "",
        input_quant: InputQuant | None = None,
    ) -> None:
        super().__init__(parts, bias, activation, integer, why, input_quant)
        self.in_channels, self.conv = in_channels, conv
        self.out_channels = parts[0].shape[0]

    def _fast(self, x: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        if x.dim() == 3:
            return self._fast(x[None], bias, None if residual is None else residual[None])[0]
        return self.kernel().conv2d(x, self.conv, self._kernel_bias(bias), residual)

    def _dense(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        w = self._masked(weight).to(x.dtype).view(self.out_channels, self.in_channels, *self.conv.kernel)
        y = nn.functional.conv2d(x, w, bias, self.conv.stride, self.conv.padding, self.conv.dilation)
        return self._finish(y, residual)

    def extra_repr(self) -> str:
        c = self.conv
        return f"{self.in_channels} -> {self.out_channels}, kernel={c.kernel}, stride={c.stride}, {self.format_name()}"


class SparseBmm(SparseLayer):
    """Batched product with fixed sparse matrices: x [batches, M, K] to [batches, M, N]."""

    def __init__(self, parts: tuple[SparseFormat, ...], batches: int, rows: int, why: str = "") -> None:
        super().__init__(parts, None, "none", False, why)
        self.batches, self.rows = batches, rows

    @classmethod
    def pack(cls, weight: Tensor, mask: Tensor | None, packer: Packer, rows_per_tile: int = 32) -> SparseBmm:
        """weight [batches, N, K]; packer(dense, mask) packs the stacked weight, each batch padded to whole tiles."""
        b, n, k = weight.shape
        padded = -(-n // rows_per_tile) * rows_per_tile
        stacked = weight.new_zeros(b, padded, k)
        stacked[:, :n] = weight
        alive = torch.zeros(b, padded, k, dtype=torch.bool, device=weight.device)
        alive[:, :n] = (weight != 0) if mask is None else mask.bool()
        return cls(packer(stacked.view(-1, k), alive.view(-1, k)), b, n)

    def _make_kernel(self) -> SpecialisedLinear:
        return SpecialisedLinear(self.parts, "none", False, self.batches, self.rows)

    def _fast(self, x: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        return self._finish(self.kernel().bmm(x), residual)

    def _dense(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        w = self._masked(weight).to(x.dtype)
        w = w.view(self.batches, -1, w.shape[1])[:, : self.rows]
        return self._finish(x @ w.transpose(1, 2), residual)

    def extra_repr(self) -> str:
        return f"{self.batches} x [{self.rows}, {self.parts[0].shape[1]}], {self.format_name()}"
