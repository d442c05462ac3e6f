"""`torch.compile(model, backend="sparta")`: sparsify, then compile with torchroller if it is there.

Masks come with the model: `torchsparta.attach(model, tesa)` writes them on its parameters. Parameters without
a mask count as dense. The backend is for inference: the values of parameters at compile time are built in,
and a change of one (an optimizer step, load_state_dict) makes it build again at the next call.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from .errors import SpartaError
from .masked import ModelTeSA
from .tesa import TeSA


class _Lifted(nn.Module):
    """A Dynamo graph whose parameter inputs are parameters again."""

    def __init__(self, graph_module: fx.GraphModule, static: dict[int, Tensor]):
        super().__init__()
        self.graph_module = graph_module
        self.positions = {i: f"p{i}" for i in static}
        self.count = sum(n.op == "placeholder" for n in graph_module.graph.nodes)
        for i, tensor in static.items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(f"p{i}", tensor)
            else:
                self.register_buffer(f"p{i}", tensor)

    def forward(self, *dynamic: Any) -> Any:
        rest = iter(dynamic)
        args = [
            getattr(self, self.positions[i]) if i in self.positions else next(rest) for i in range(self.count)
        ]
        return self.graph_module(*args)


def sparta(
    graph_module: fx.GraphModule, example_inputs: Sequence[Any], options: dict[str, Any] | None = None
) -> Callable[..., Any]:
    """The torch.compile backend. options: {"inner": "roller" | "eager"}; default roller if torchroller has
    it. A model with specialised layers is not compiled again: they are kernels already."""
    options = dict(options or {})
    inner = options.pop("inner", None)
    if options or inner not in (None, "roller", "eager"):
        raise SpartaError(
            f"unknown options for backend 'sparta': {options or {'inner': inner}}; it takes inner='roller' "
            "or 'eager'"
        )
    static = {
        i: x
        for i, x in enumerate(example_inputs)
        if isinstance(x, Tensor) and (isinstance(x, nn.Parameter) or hasattr(x, "sparta_tesa"))
    }
    dynamic = tuple(x for i, x in enumerate(example_inputs) if i not in static)
    if any(not isinstance(x, Tensor) for x in dynamic):
        warnings.warn(
            "backend 'sparta' leaves this graph as it is: it has symbolic sizes. "
            "torch.compile(..., dynamic=False) specialises it",
            stacklevel=2,
        )
        return graph_module.forward
    return _Compiled(graph_module, static, dynamic, inner)


class _Compiled:
    """Callable with the graph's inputs, parameters included; rebuilds when a parameter was written to."""

    def __init__(
        self,
        graph_module: fx.GraphModule,
        static: dict[int, Tensor],
        dynamic: tuple[Tensor, ...],
        inner: str | None,
    ):
        self.graph_module, self.static, self.inner = graph_module, static, inner
        self.state: list[tuple[int, int]] = []
        self.fast: Callable[..., Any] = graph_module.forward
        self._build(dynamic)

    def _build(self, dynamic: tuple[Tensor, ...]) -> None:
        from .api import sparsify

        lifted = _Lifted(self.graph_module, self.static)
        found: dict[str, TeSA] = {}
        for i, tensor in self.static.items():
            tesa = getattr(tensor, "sparta_tesa", None)
            if isinstance(tesa, TeSA):
                found[f"p{i}"] = tesa
        self.state = [(t.data_ptr(), t._version) for t in self.static.values()]
        with torch._guards.tracing(None):
            fast = sparsify(lifted, ModelTeSA(found), tuple(x.detach() for x in dynamic))
        self.fast = _compile_inner(fast, dynamic, self.inner)

    def __call__(self, *args: Any) -> Any:
        dynamic = tuple(x for i, x in enumerate(args) if i not in self.static)
        if torch.is_grad_enabled() and any(t.requires_grad for t in self.static.values()):
            return self.graph_module(*args)  # gradients are asked for: the masked model itself has them
        if self.state != [(t.data_ptr(), t._version) for t in self.static.values()]:
            self._build(dynamic)
        return self.fast(*dynamic)


def _compile_inner(
    fast: fx.GraphModule, dynamic: tuple[Tensor, ...], inner: str | None
) -> Callable[..., Any]:
    from .attention import SparseAttention
    from .modules import SparseLayer

    # Specialised layers launch kernels on addresses, which AOTAutograd cannot trace: such a model runs as it is.
    if inner == "eager" or any(isinstance(m, (SparseLayer, SparseAttention)) for m in fast.modules()):
        return fast
    try:
        from torchroller.backend import roller
    except ImportError:
        if inner == "roller":
            raise
        return fast
    return roller(fast, list(dynamic))
