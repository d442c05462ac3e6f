"""Which tensors of a model are sparse (`ModelTeSA`) and the model that this defines (`masked_model`).

The masked model is the reference of the whole package: pruned elements are zero, constants have their value,
quantized tensors are fake-quantized. Whatever torchsparta builds computes the same.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .errors import MaskError, ModelMismatch
from .tesa import TeSA

_ACTIVATIONS = ("_input_", "_output_")


@dataclass(frozen=True, eq=False)
class ModelTeSA(Mapping[str, TeSA]):
    """TeSA by name. "encoder.fc1.weight" is a parameter or buffer; "encoder.fc1._input_0" and
    "encoder.fc1._output_0" are the module's first tensor argument and result (NNI's names for them).
    `notes` are things a reader mended, in words.
    """

    tensors: Mapping[str, TeSA]
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> TeSA:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def merge(self, other: ModelTeSA) -> ModelTeSA:
        """Both hold: where both know a tensor, their `TeSA.meet`."""
        out = dict(self.tensors)
        for name, tesa in other.items():
            out[name] = out[name].meet(tesa) if name in out else tesa
        return ModelTeSA(out, self.notes + other.notes)

    def __str__(self) -> str:
        width = max((len(n) for n in self), default=0)
        lines = [f"{name:{width}}  {tesa}" for name, tesa in self.items()]
        return "\n".join(lines + [f"note: {n}" for n in self.notes])


def split_activation(name: str) -> tuple[str, str, int] | None:
    """("fc1", "_input_", 0) for "fc1._input_0"; None for the name of a parameter."""
    module, _, last = name.rpartition(".")
    for kind in _ACTIVATIONS:
        if last.startswith(kind) and last[len(kind) :].isdigit():
            return module, kind, int(last[len(kind) :])
    return None


def closest(name: str, known: list[str]) -> str:
    """A hint for a name that was not found."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else ""


def validate(model: nn.Module, tesa: Mapping[str, TeSA]) -> ModelTeSA:
    """`tesa` against `model`: every name exists, every shape fits, tied parameters get one merged TeSA.

    Raises ModelMismatch for an unknown name and MaskError for a shape that does not fit.
    """
    if not isinstance(tesa, Mapping) or not all(isinstance(t, TeSA) for t in tesa.values()):
        raise MaskError(
            f"expected a mapping of parameter names to TeSA, got {type(tesa).__name__}; masks of NNI become "
            "one "
            "with torchsparta.from_nni(masks), those of torch.nn.utils.prune with "
            "torchsparta.from_torch_prune(model)"
        )
    stored = dict(model.named_parameters(remove_duplicate=False)) | dict(
        model.named_buffers(remove_duplicate=False)
    )
    modules = dict(model.named_modules(remove_duplicate=False))
    notes = list(getattr(tesa, "notes", ()))
    merged: dict[str, TeSA] = {}
    by_storage: dict[int, list[str]] = {}
    for name in stored:
        by_storage.setdefault(id(stored[name]), []).append(name)
    for name, t in tesa.items():
        activation = split_activation(name)
        if activation is not None:
            if activation[0] not in modules:
                raise ModelMismatch(
                    f"{name!r}: the model has no module "
                    f"{activation[0]!r}{closest(activation[0], list(modules))}"
                )
            merged[name] = t
            continue
        if name not in stored:
            module, _, target = name.rpartition(".")
            if module not in modules:
                raise ModelMismatch(
                    f"{name!r}: the model has no module {module!r}{closest(module, list(modules))}"
                )
            if target == "bias" and getattr(modules[module], "bias", 0) is None:
                notes.append(f"{name}: masked, but the module has no bias; ignored")
                continue
            raise ModelMismatch(
                f"the model has no parameter or buffer {name!r}{closest(name, list(stored))}; "
                f"{module!r} has {sorted(n for n in stored if n.rpartition('.')[0] == module)}"
            )
        if t.quant is not None and not t.shape:  # a quantizer config knows no shapes
            t.quant.check_fits(stored[name].shape)
            t = TeSA.from_codes(stored[name].shape, t.code.reshape((1,) * stored[name].dim()), quant=t.quant)
        if tuple(stored[name].shape) != t.shape:
            raise MaskError(
                f"{name}: the mask has shape {t.shape}, the parameter {tuple(stored[name].shape)}; "
                "a mask has one element for each element of its parameter"
            )
        aliases = by_storage[id(stored[name])]
        if len(aliases) > 1:
            known = [merged[a] for a in aliases if a in merged]
            if known and not known[0].same_as(t):
                notes.append(
                    f"{name}: tied to {', '.join(a for a in aliases if a != name)}; masks were merged"
                )
            t = known[0].meet(t) if known else t
            merged.update({a: t for a in aliases})
        else:
            merged[name] = t
    return ModelTeSA(merged, tuple(dict.fromkeys(notes)))


class _Masks(nn.Module):
    """Holds the constants of one masked activation, so that they move with the model and export by name."""

    alive: Tensor | None
    value: Tensor | None
    scale: Tensor
    zero_point: Tensor

    def __init__(self, tesa: TeSA, dtype: torch.dtype):
        super().__init__()
        self.register_buffer("alive", (tesa.code > 0).to(dtype) if bool((tesa.code <= 0).any()) else None)
        self.register_buffer("value", None if tesa.value is None else tesa.value.to(dtype))
        quant = tesa.quant
        self.quant = quant
        if quant is not None:
            self.register_buffer("scale", quant.scale.to(dtype))
            self.register_buffer("zero_point", quant.zero_point.to(dtype))
        self.shape = tesa.shape

    def forward(self, x: Tensor) -> Tensor:
        if self.shape and x.dim() != len(self.shape):
            raise MaskError(
                f"an activation mask of shape {self.shape} met a tensor of shape {tuple(x.shape)}"
            )
        if self.alive is not None:
            x = x * self.alive
        if self.quant is not None:
            scale = self.scale.reshape(()) if self.scale.numel() == 1 else self.scale
            zero = self.zero_point.reshape(()) if self.zero_point.numel() == 1 else self.zero_point
            q = torch.clamp(torch.round(x / scale + zero), self.quant.qmin, self.quant.qmax)
            x = (q - zero) * scale
        return x if self.value is None else x + self.value


def _hook_activations(model: nn.Module, tesa: Mapping[str, TeSA], dtype: torch.dtype) -> None:
    for name, t in tesa.items():
        activation = split_activation(name)
        if activation is None:
            continue
        path, kind, index = activation
        module = model.get_submodule(path)
        masks = _Masks(t, dtype)
        holder = "sparta" + kind + str(index)
        module.add_module(holder, masks)
        if kind == "_input_":

            def pre(mod: nn.Module, args: tuple, holder: str = holder, index: int = index) -> tuple:
                return args[:index] + (getattr(mod, holder)(args[index]),) + args[index + 1 :]

            module.register_forward_pre_hook(pre)
        else:

            def post(mod: nn.Module, args: tuple, out: object, holder: str = holder, index: int = index):
                if isinstance(out, Tensor):
                    return getattr(mod, holder)(out)
                parts = list(out)  # type: ignore[call-overload]
                parts[index] = getattr(mod, holder)(parts[index])
                return tuple(parts)

            module.register_forward_hook(post)


def masked_model(model: nn.Module, tesa: Mapping[str, TeSA], *, inplace: bool = False) -> nn.Module:
    """`model` with its masks applied: the reference that every sparse model equals.

    Weights are masked (and fake-quantized) where they are; masked activations get a hook. A copy unless
    `inplace`.
    """
    tesa = validate(model, tesa)
    out = model if inplace else copy.deepcopy(model)
    stored = dict(out.named_parameters(remove_duplicate=False)) | dict(
        out.named_buffers(remove_duplicate=False)
    )
    floating = [t.dtype for t in stored.values() if t.is_floating_point()]
    with torch.no_grad():
        done: set[int] = set()
        for name, t in tesa.items():
            if name in stored and id(stored[name]) not in done:
                done.add(id(stored[name]))
                stored[name].copy_(t.apply(stored[name].detach()))
    _hook_activations(out, tesa, floating[0] if floating else torch.float32)
    return out


def with_default_bits(tesa: ModelTeSA, model: nn.Module) -> ModelTeSA:
    """Alive elements of unquantized tensors take the bit width of the parameter's dtype."""
    stored = dict(model.named_parameters(remove_duplicate=False))
    out = {}
    for name, t in tesa.items():
        width = stored[name].element_size() * 8 if name in stored else 32
        if width != 32 and t.quant is None and bool((t.code.abs() == 32).any()):
            t = replace(t, code=torch.where(t.code.abs() == 32, t.code.sign() * width, t.code).to(torch.int8))
        out[name] = t
    return ModelTeSA(out, tesa.notes)
