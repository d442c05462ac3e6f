"""`sparsify`: a pruned or quantized model in, a faster one with the same numbers out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_map

from . import masks as _masks
from .capture import capture
from .errors import SpartaError, VerificationError
from .masked import ModelTeSA, masked_model, validate, with_default_bits
from .propagation import analyse
from .structure import structure_first
from .transform import SparseSite, choose


@dataclass(frozen=True)
class SiteRecord:
    """What became of one operator with a weight. Bytes and multiply-adds before and after, for one call."""

    name: str
    module: str
    op: str
    shape_before: tuple[int, ...]
    shape: tuple[int, ...]
    density: float
    bits: tuple[int, ...]
    epilogue: tuple[str, ...]
    macs_before: int
    macs: int
    macs_alive: int


@dataclass(frozen=True)
class SparsityInfo:
    """Kept in `model.meta["sparta"]` of a sparsified model; `torchsparta.report` prints it."""

    input_shapes: tuple[tuple[int | None, ...], ...]
    sites: tuple[SiteRecord, ...]
    folded: tuple[str, ...]
    parameters_before: int
    parameters: int
    trainable: bool
    notes: tuple[str, ...]
    input_dtypes: tuple[str, ...] = ()


def sparsify(
    model: nn.Module,
    tesa: Mapping[str, Any],
    example_inputs: tuple[Any, ...],
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    trainable: bool = False,
    device: torch.device | str | None = None,
    dynamic_shapes: Any = None,
    shrink: bool = True,
    verify: bool = False,
    chooser: Callable[[SparseSite], nn.Module] | None = None,
) -> fx.GraphModule:
    """A model that computes what the masked model computes, without what the masks made superfluous.

    model: left as it is. tesa: from `from_nni` and the other readers (their raw dictionaries are taken too).
    example_inputs: a tuple; the result takes inputs of these shapes, or of the sizes that `dynamic_shapes`
    (as in torch.export) leaves open. trainable: masks stay fixed while weights are fine-tuned; constants of
    parameters are then not folded. device: where the result goes. shrink=False: only masks, no smaller
    shapes. verify: build it in float64 as well and compare with the masked model there. chooser: replaces
    `torchsparta.transform.choose`.

    The graph is that of eval mode: dropout is gone and batch norms use their running statistics, with
    trainable too.

    Raises MaskError, ModelMismatch, CaptureError; VerificationError if verify finds a difference.
    """
    given = as_tesa(tesa)
    if verify:
        verify_exact(model, given, example_inputs, example_kwargs, trainable=trainable, shrink=shrink)
    given = with_default_bits(validate(model, given), model)
    masked = masked_model(model, given)
    captured = capture(masked, example_inputs, example_kwargs, dynamic_shapes)
    analysis = analyse(captured, given, parameters_fixed=not trainable)
    built = structure_first(analysis, given, trainable=trainable, shrink=shrink, chooser=chooser or choose)
    fast = built.module
    fast.meta["sparta"] = _describe(model, fast, built, given, captured.graph, trainable)
    fast.register_forward_pre_hook(_check_shapes, with_kwargs=True)
    return fast if device is None else fast.to(device)


def sparsify_(
    model: nn.Module,
    tesa: Mapping[str, Any],
    example_inputs: tuple[Any, ...],
    example_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """`sparsify` in place: `model` itself becomes the sparse model and is returned; its dense weights are
    freed."""
    fast = sparsify(model, tesa, example_inputs, example_kwargs, **options)
    for name in list(model._modules):
        del model._modules[name]
    model._parameters.clear()
    model._buffers.clear()
    model.add_module("sparse", fast)
    model.forward = _Forward(fast)
    model.train(False)
    return model


class _Forward:
    """`forward` of a model that was sparsified in place; picklable, unlike a closure."""

    def __init__(self, fast: nn.Module):
        self.fast = fast

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fast(*args, **kwargs)


def as_tesa(tesa: Any) -> ModelTeSA:
    """A ModelTeSA as it is; nested NNI dictionaries and mask files through `from_nni`."""
    if isinstance(tesa, ModelTeSA):
        return tesa
    from .tesa import TeSA

    if isinstance(tesa, Mapping) and all(isinstance(t, TeSA) for t in tesa.values()):
        return ModelTeSA(dict(tesa))
    return _masks.from_nni(tesa)


def attach(model: nn.Module, tesa: Mapping[str, Any]) -> nn.Module:
    """Fix masks to `model` (in place): it becomes the masked model and `torch.compile(backend="sparta")`
    finds them.

    Zeros are written into the weights; the TeSA is kept in `model.sparta_tesa`.
    """
    given = with_default_bits(validate(model, as_tesa(tesa)), model)
    masked_model(model, given, inplace=True)
    model.sparta_tesa = given  # type: ignore[assignment]
    stored: dict[str, Any] = dict(model.named_parameters(remove_duplicate=False))
    stored.update(model.named_buffers(remove_duplicate=False))
    for name, t in given.items():
        if name in stored:
            stored[name].sparta_tesa = t
    return model


def verify_exact(
    model: nn.Module,
    tesa: ModelTeSA,
    example_inputs: tuple[Any, ...],
    example_kwargs: Mapping[str, Any] | None = None,
    *,
    trainable: bool = False,
    shrink: bool = True,
    tolerance: float = 1e-9,
) -> float:
    """Largest difference between masked and sparse model, both in float64, relative to the largest output.

    Raises VerificationError above `tolerance`. Models that cast to float32 inside are held to 1e-5.
    """
    double = copy.deepcopy(model).double().cpu()
    inputs, kwargs = tree_map(_to_double, (example_inputs, dict(example_kwargs or {})))
    fast = sparsify(double, tesa, inputs, kwargs, trainable=trainable, shrink=shrink)
    if any(n.kwargs.get("dtype") is torch.float32 for n in fast.graph.nodes):
        tolerance = max(tolerance, 1e-5)
    masked = masked_model(double, tesa).eval()
    with torch.no_grad():
        worst = difference(masked(*inputs, **kwargs), fast(*inputs, **kwargs))
    if not worst <= tolerance:
        raise VerificationError(
            f"in float64 the sparse {type(model).__name__} differs from the masked one by {worst:.3g} of "
            "its largest "
            f"output (allowed: {tolerance:.0e}). This is a fault of torchsparta: please report it with the "
            "model "
            "and masks; sparsify(..., shrink=False) avoids the smaller shapes"
        )
    return worst


def difference(expected: Any, found: Any) -> float:
    """Largest absolute difference over all output tensors, relative to the largest expected value (or 1)."""
    a = [t for t in tree_flatten(expected)[0] if isinstance(t, Tensor)]
    b = [t for t in tree_flatten(found)[0] if isinstance(t, Tensor)]
    if len(a) != len(b) or any(x.shape != y.shape for x, y in zip(a, b)):
        raise VerificationError(
            f"outputs differ in number or shape: {[tuple(t.shape) for t in a]} and "
            f"{[tuple(t.shape) for t in b]}"
        )
    worst = 0.0
    for x, y in zip(a, b):
        if x.numel():
            scale = max(1.0, float(x.abs().max()))
            gap = float((x.double() - y.double()).abs().max()) / scale
            worst = max(worst, gap) if gap == gap else float("inf")
    return worst


def _to_double(x: Any) -> Any:
    return x.detach().cpu().double() if isinstance(x, Tensor) and x.is_floating_point() else x


def _check_shapes(module: nn.Module, args: tuple, kwargs: dict) -> None:
    if torch.compiler.is_compiling():
        return
    expected = module.meta["sparta"].input_shapes  # type: ignore[union-attr, index]
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    shapes = [tuple(t.shape) for t in tensors]
    fits = len(shapes) == len(expected) and all(
        len(s) == len(e) and all(w is None or w == h for h, w in zip(s, e)) for s, e in zip(shapes, expected)
    )
    if not fits:
        shown = [tuple("any" if w is None else w for w in e) for e in expected]
        raise SpartaError(
            f"this model was specialised for inputs of shape {shown}, got {shapes}; sparsify it with such "
            "example_inputs, or pass dynamic_shapes (as for torch.export) to leave sizes open"
        )


def _describe(
    model: nn.Module,
    fast: fx.GraphModule,
    built: Any,
    given: ModelTeSA,
    graph: fx.Graph,
    trainable: bool,
) -> SparsityInfo:
    records = []
    for target, site in built.sites:
        weight_name = f"{site.name}.weight"
        before = built.removed.get(weight_name, (tuple(site.weight.shape),))[0]
        macs_before = int(site.macs * torch.Size(before).numel() / max(1, site.weight.numel()))
        records.append(
            SiteRecord(
                site.name,
                target,
                site.op,
                before,
                tuple(site.weight.shape),
                site.tesa.density(),
                tuple(b for b in site.tesa.bit_histogram() if b),
                tuple(e.kind for e in site.epilogue),
                macs_before,
                site.macs,
                int(site.macs * site.tesa.density()),
            )
        )
    shapes, dtypes = [], []
    for node in graph.nodes:
        if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor):
            value = node.meta["val"]
            shapes.append(tuple(None if isinstance(s, torch.SymInt) else int(s) for s in value.shape))
            dtypes.append(str(value.dtype).removeprefix("torch."))
    return SparsityInfo(
        tuple(shapes),
        tuple(records),
        built.folded,
        sum(p.numel() for p in model.parameters()),
        _alive_parameters(fast, built.sites),
        trainable,
        given.notes,
        tuple(dtypes),
    )


def _alive_parameters(fast: nn.Module, sites: Any) -> int:
    """Parameters that still count: alive weights of the layers, in whatever format, and all others whole.

    A packed weight is held in buffers, so that the parameters of `fast` alone would leave it out.
    """
    layers = {target: site for target, site in sites}
    alive = sum(round(s.tesa.density() * s.weight.numel()) for s in layers.values() if s.op != "attention")
    held: dict[int, int] = {}
    for name, parameter in fast.named_parameters():
        module, _, own = name.rpartition(".")
        if not (module in layers and own == "weight"):
            held[id(parameter)] = parameter.numel()
    return alive + sum(held.values())
