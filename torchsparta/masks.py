"""Readers: what other tools call masks, as a `ModelTeSA`.

`from_nni` takes NNI 3.0's mask dictionaries, quantizer configs, both, or files of them; `from_torch_prune`
reads torch.nn.utils.prune, `from_torch_ao` torch.ao.pruning, `from_zeros` the zeros of a dense model. None of
them needs the tool itself to be installed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import MaskError
from .masked import ModelTeSA, validate
from .tesa import Quant, TeSA

_QUANT_KEYS = {"scale", "zero_point"}


def from_nni(
    masks: Any = None, quantizer: Any = None, *, model: nn.Module | None = None, bits: int = 32
) -> ModelTeSA:
    """Masks and quantizer configs of NNI 3.0.

    masks: `{module: {target: 0/1 tensor}}` as `pruner.compress()` returns it, a quantizer config
    `{module: {target: {"scale", "zero_point", "quant_bits", …}}}` as `quantizer.compress()` returns it, or
    the path of a file of either (.pth, .pt, .safetensors with "module::target" or "module.target" keys).
    quantizer: a second such object, for pruned and quantized models. model: checks names and shapes at once
    (otherwise `propagate` and `sparsify` do). bits: width of unquantized elements.

    Raises MaskError for values other than 0 and 1, NaN, shapes or entries that make no sense.
    """
    if masks is None and quantizer is None:
        raise MaskError("from_nni() got neither masks nor a quantizer config")
    out: ModelTeSA | None = None
    for source in (masks, quantizer):
        if source is not None:
            read = _read_nested(load_masks(source) if isinstance(source, (str, Path)) else source, bits)
            out = read if out is None else _prune_and_quantize(out, read)
    assert out is not None
    return out if model is None else validate(model, out)


def load_masks(path: str | Path) -> dict[str, dict[str, Any]]:
    """The nested dictionary in a mask file: torch.save'd (dict or defaultdict) or safetensors."""
    path = Path(path)
    if not path.exists():
        raise MaskError(f"no mask file at {path}")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        nested: dict[str, dict[str, Any]] = {}
        for key, tensor in load_file(str(path)).items():
            module, _, target = key.rpartition("::" if "::" in key else ".")
            nested.setdefault(module, {})[target] = tensor
        return nested
    try:  # NNI saves a defaultdict, which torch's safe loader cannot fill: read it as an OrderedDict
        with torch.serialization.safe_globals([(_plain_dict, "collections.defaultdict"), dict]):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MaskError(
            f"{path} could not be read as masks ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "save them with torch.save({m: dict(t) for m, t in masks.items()}, path)"
        ) from error
    if not isinstance(loaded, Mapping):
        raise MaskError(
            f"{path} holds a {type(loaded).__name__}, not a dictionary {{module: {{target: mask}}}}"
        )
    return {m: dict(t) if isinstance(t, Mapping) else t for m, t in loaded.items()}


def _plain_dict(*_: Any) -> OrderedDict[str, Any]:
    return OrderedDict()


def from_torch_prune(model: nn.Module) -> ModelTeSA:
    """The masks of `torch.nn.utils.prune`: for each "x_mask" buffer beside "x_orig", the TeSA of "x".

    The model may still be parametrized by prune: `prune_free(model)` gives the plain one that torchsparta
    works on.
    """
    found = {}
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            base = name[: -len("_mask")]
            if name.endswith("_mask") and f"{base}_orig" in dict(module.named_parameters(recurse=False)):
                found[_join(path, base)] = _binary(buffer, _join(path, base), 32)
    if not found:
        raise MaskError(
            "the model carries no torch.nn.utils.prune masks (no '<name>_mask' beside '<name>_orig'); after "
            "prune.remove() the zeros are in the weights: use torchsparta.from_zeros(model)"
        )
    return ModelTeSA(found)


def from_torch_ao(source: nn.Module | Any) -> ModelTeSA:
    """The masks of a `torch.ao.pruning` sparsifier or of the model that one has prepared.

    They live in `module.parametrizations.<name>[0].mask` (FakeSparsity).
    """
    model = source if isinstance(source, nn.Module) else getattr(source, "model", None)
    if model is None:
        raise MaskError(
            f"expected a model or a torch.ao.pruning sparsifier with a .model, got {type(source).__name__}"
        )
    found = {}
    for path, module in model.named_modules():
        for name, chain in getattr(module, "parametrizations", {}).items():
            for parametrization in chain:
                mask = getattr(parametrization, "mask", None)
                if isinstance(mask, Tensor):
                    original = chain.original
                    if tuple(mask.shape) != tuple(original.shape):  # structured: one value per row
                        mask = mask.reshape(-1, *[1] * (original.dim() - 1)).expand(original.shape)
                    found[_join(path, name)] = _binary(mask, _join(path, name), 32)
    if not found:
        raise MaskError("the model carries no torch.ao.pruning masks; squash_mask() removes them: "
                        "use torchsparta.from_zeros(model) after it")  # fmt: skip
    return ModelTeSA(found)


def from_zeros(model: nn.Module, *, min_sparsity: float = 0.0) -> ModelTeSA:
    """Zeros of a dense model as its masks: every parameter with more than `min_sparsity` (0 to 1) of exact
    zeros.

    Parameters of one dimension (biases, norms) are left out: they often are zero only because nobody trained
    them.
    """
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            tesa = TeSA.from_mask(parameter.detach() != 0, bits=parameter.element_size() * 8)
            if tesa.sparsity() > min_sparsity:
                found[name] = tesa
    return ModelTeSA(found)


def prune_free(model: nn.Module) -> nn.Module:
    """A copy of `model` with the re-parametrizations of torch.nn.utils.prune and torch.ao.pruning made
    permanent."""
    import copy

    from torch.nn.utils import parametrize, prune

    # prune leaves the masked weight as a plain attribute with a gradient history, which cannot be copied
    history = [(m, n, t) for m in model.modules() for n, t in vars(m).items() if isinstance(t, Tensor)]
    try:
        for module, name, tensor in history:
            vars(module)[name] = tensor.detach()
        out = copy.deepcopy(model)
    finally:
        for module, name, tensor in history:
            vars(module)[name] = tensor
    for module in out.modules():
        for name in [
            n[: -len("_mask")] for n, _ in module.named_buffers(recurse=False) if n.endswith("_mask")
        ]:
            if hasattr(module, f"{name}_orig"):
                prune.remove(module, name)
        chains: Any = getattr(module, "parametrizations", {})
        if parametrize.is_parametrized(module):
            for name in list(chains):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return out


# -- reading one entry --------------------------------------------------------------------------------------
def _join(module: str, target: str) -> str:
    return f"{module}.{target}" if module else target


def _read_nested(nested: Any, bits: int) -> ModelTeSA:
    if not isinstance(nested, Mapping):
        raise MaskError(
            f"expected NNI's {{module: {{target: mask}}}} dictionary, got {type(nested).__name__}; "
            "pruner.compress() returns (model, masks): pass the second"
        )
    found: dict[str, TeSA] = {}
    notes: list[str] = []
    for module, targets in nested.items():
        if not isinstance(targets, Mapping):
            raise MaskError(
                f"masks[{module!r}] is a {type(targets).__name__}; expected a dictionary of targets, such as "
                "{'weight': mask, 'bias': mask}"
            )
        for target, entry in targets.items():
            name = _join(module, target)
            if entry is None:
                continue
            if isinstance(entry, Mapping):
                tesa = _quantized(entry, name, notes)
            elif isinstance(entry, Tensor):
                tesa = _binary(entry, name, bits)
            else:
                raise MaskError(f"{name}: expected a tensor or a quantizer entry, got {type(entry).__name__}")
            found[name] = tesa
    return ModelTeSA(found, tuple(notes))


def _binary(mask: Tensor, name: str, bits: int) -> TeSA:
    mask = mask.detach().cpu()
    if mask.is_floating_point() and bool(mask.isnan().any()):
        raise MaskError(
            f"{name}: the mask contains {int(mask.isnan().sum())} NaN; a mask is 0 or 1 everywhere"
        )
    if mask.dtype is not torch.bool:
        odd = (mask != 0) & (mask != 1)
        if bool(odd.any()):
            seen = sorted({float(v) for v in mask[odd].flatten()[:1000]})[:5]
            raise MaskError(
                f"{name}: the mask has {int(odd.sum())} of {mask.numel()} values that are neither 0 nor 1, "
                f"such as {seen}; scores must be thresholded before they are masks"
            )
    return TeSA.from_mask(mask, bits)


def _quantized(entry: Mapping[str, Any], name: str, notes: list[str]) -> TeSA:
    missing = sorted(k for k in _QUANT_KEYS if entry.get(k) is None)
    if missing:
        raise MaskError(
            f"{name}: the quantizer entry lacks {missing}; it has {sorted(entry)}. "
            "The quantizer was not calibrated: run compress() with steps or epochs"
        )
    scale, zero = (torch.as_tensor(entry[k]).detach().cpu().double() for k in ("scale", "zero_point"))
    if not bool(torch.isfinite(scale).all()) or not bool((scale > 0).all()):
        raise MaskError(
            f"{name}: quantization scales must be finite and positive, got {scale.flatten()[:4].tolist()}"
        )
    if not bool(torch.isfinite(zero).all()):
        raise MaskError(f"{name}: zero points must be finite, got {zero.flatten()[:4].tolist()}")
    dtype = str(entry.get("quant_dtype") or "int8")
    digits = dtype.lstrip("uint")
    if not digits.isdigit() or dtype.rstrip(digits) not in ("int", "uint"):
        raise MaskError(f"{name}: quant_dtype {dtype!r} is not of the form int8, uint8, int4, …")
    bits = int(entry.get("quant_bits") or digits)
    if not 1 <= bits <= 32:
        raise MaskError(f"{name}: quant_bits {bits} is not between 1 and 32")
    if dtype.startswith("uint"):
        qmin, qmax = 0, 2**bits - 1
    elif bits == 1:
        qmin, qmax = -1, 1
    else:
        qmin, qmax = -(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1
    quant = Quant(scale, zero, bits, qmin, qmax)
    low, high = (entry.get(k) for k in ("tracked_min", "tracked_max"))
    if low is not None and high is not None and scale.numel() == 1:
        low, high = (float(torch.as_tensor(v).detach().double().mean()) for v in (low, high))
        one = float(scale.reshape(-1)[0])
        levels = qmax - qmin
        if (
            name.endswith("weight")
            and (low, high) == (0.0, 1.0)
            and abs(one * levels - 1) < 1e-5
            and bits > 1
        ):
            quant = Quant(
                torch.tensor(2 / levels, dtype=torch.float64), zero * 0, bits, qmin, qmax, warp="tanh"
            )
            notes.append(
                f"{name}: scale {one:.6g} over [0, 1] is what NNI's DoReFa reports whatever the weights "
                "are; it "
                "belongs to tanh(w) / max|tanh(w)|, which is quantized here with the step that DoReFa "
                "means, "
                f"{2 / levels:.6g}"
            )
        elif one == 1.0 and float(zero.reshape(-1)[0]) == 0.0 and high == qmax and bits > 1:
            half = torch.tensor(0.5, dtype=torch.float64)
            quant = Quant(half * 4, half, 1, 0, 1)
            bits = 1
            notes.append(
                f"{name}: scale 1 is what NNI's BNN reports whatever quant_dtype says; taken as 1 bit, -1 "
                "or +1"
            )
    return TeSA((), torch.tensor(bits, dtype=torch.int8), None, quant)


def _prune_and_quantize(first: ModelTeSA, second: ModelTeSA) -> ModelTeSA:
    out = dict(first.tensors)
    for name, tesa in second.items():
        out[name] = _meet_quant(out[name], tesa) if name in out else tesa
    return ModelTeSA(out, first.notes + second.notes)


def _meet_quant(a: TeSA, b: TeSA) -> TeSA:
    if a.quant is not None and not a.shape:
        a, b = b, a
    if b.quant is not None and not b.shape and a.shape:
        b = TeSA.from_codes(a.shape, b.code.reshape((1,) * len(a.shape)), quant=b.quant)
    return a.meet(b)
