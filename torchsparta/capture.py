"""One ATen graph of a model: `capture`.

`torch.export` is used, without decompositions but functionalised: it keeps the names of parameters (masks are
by name), knows pytrees in and out (transformers' outputs), is what transformers itself is tested with,
refuses what it cannot trace instead of guessing, and leaves linear, convolution, layer_norm and attention
whole, which is the level at which sparsity has rules. `make_fx` loses names and pytrees; a joint (AOT) graph
is lower than needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .errors import CaptureError

aten = torch.ops.aten
_CHECKS = {"_assert_tensor_metadata", "_assert_async", "_assert_scalar", "sym_constrain_range_for_size"}


@dataclass(frozen=True, eq=False)
class Captured:
    """A functional ATen graph. `graph_module` owns the parameters under their names in the model."""

    graph_module: fx.GraphModule
    example_inputs: tuple[Any, ...]
    example_kwargs: Mapping[str, Any]

    @property
    def graph(self) -> fx.Graph:
        return self.graph_module.graph

    def tensor(self, name: str) -> Tensor:
        """The parameter, buffer or lifted constant that a get_attr node names."""
        found: Any = self.graph_module
        for part in name.split("."):
            found = getattr(found, part)
        return found


def capture(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> Captured:
    """The model in eval mode as one graph. Raises CaptureError with the exporter's reason.

    A GraphModule that `capture` or Dynamo made is taken too; `model` itself is left in the mode that it had.
    """
    if not isinstance(example_inputs, tuple):
        raise CaptureError(
            "example_inputs must be a tuple of the positional arguments, got "
            f"{type(example_inputs).__name__}; "
            "for one tensor pass (x,)"
        )
    modes = {m: m.training for m in model.modules()}
    model.eval()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                model, example_inputs, dict(example_kwargs or {}), dynamic_shapes=dynamic_shapes, strict=False
            )
            program = program.run_decompositions({})
            module = program.module(check_guards=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        advice = "Rewrite data-dependent control flow (torch.cond, torch.where) or keep it outside the model."
        if "Cache" in str(error):
            advice = "The model returns a cache of keys and values: set model.config.use_cache = False."
        raise CaptureError(
            f"torch.export could not capture {type(model).__name__} as one graph: "
            f"{type(error).__name__}: {reason}\n{advice}"
        ) from error
    finally:
        for m, training in modes.items():
            m.training = training
    _loosen(module)
    return Captured(module, example_inputs, dict(example_kwargs or {}))


def _loosen(module: fx.GraphModule) -> None:
    """Drop assertions about metadata, and let views copy: shapes and strides are about to change."""
    for node in list(module.graph.nodes):
        if node.op == "call_function" and packet_name(node.target) in _CHECKS:
            module.graph.erase_node(node)
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        elif node.op == "call_module" and node.target == "_guards_fn":
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()


def packet_name(target: Any) -> str:
    """ "add" for torch.ops.aten.add.Tensor; the function's name for anything else."""
    schema = getattr(target, "_schema", None)
    if schema is not None:
        namespace, _, name = schema.name.partition("::")
        return name if namespace == "aten" else schema.name
    return getattr(target, "__name__", str(target))


def concrete(size: Any) -> int:
    """A size as an int: the value it had for the example inputs where it is symbolic."""
    if isinstance(size, torch.SymInt):
        hint = size.node.hint
        if hint is None:
            raise CaptureError(
                f"size {size} depends on data; torchsparta needs shapes that follow from the inputs"
            )
        return int(hint)
    return int(size)


def shape_of(value: Any) -> tuple[int, ...]:
    """The concrete shape of a fake tensor in a node's metadata."""
    return tuple(concrete(s) for s in value.shape)


def symbolic_dims(value: Any) -> tuple[int, ...]:
    """Dimensions of a fake tensor that may change from call to call."""
    return tuple(d for d, s in enumerate(value.shape) if isinstance(s, torch.SymInt))
