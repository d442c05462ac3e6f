"""Sparse models in one safetensors file: no pickles, no NNI, no code to trust.

The graph is JSON in the file's metadata. A weight with pruned elements is stored as the elements that are
left and one bit per element, so a file shrinks with its model. Kernels are not stored: `load` lets
`transform.choose` pick them again for the machine that loads.
"""

from __future__ import annotations

import importlib
import json
import operator
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from .api import SiteRecord, SparsityInfo, _check_shapes
from .errors import SpartaError
from .input_quant import InputQuant
from .structure.build import place
from .tesa import Quant, TeSA
from .transform import Epilogue, SparseSite, choose

FORMAT = 1
_OPERATORS = {
    name: getattr(operator, name)
    for name in ("getitem", "add", "sub", "mul", "floordiv", "mod", "neg", "truediv", "pow")
}


def save(fast: fx.GraphModule, path: str | Path) -> None:
    """Write a model that `sparsify` made. Raises SpartaError for a model that it did not make."""
    from safetensors.torch import save_file

    info = getattr(fast, "meta", {}).get("sparta")
    if not isinstance(info, SparsityInfo):
        raise SpartaError(f"save() takes what sparsify() returns, got a {type(fast).__name__}")
    tensors: dict[str, Tensor] = {}
    sites, nodes = {}, []
    for node in fast.graph.nodes:
        nodes.append(_node_spec(node))
        if node.op == "get_attr" and f"t:{node.target}" not in tensors:
            value = _attribute(fast, str(node.target))
            tensors[f"t:{node.target}"] = value.detach()
            nodes[-1]["parameter"] = isinstance(value, nn.Parameter) and value.requires_grad
        elif node.op == "call_module" and node.target not in sites:
            module: Any = fast.get_submodule(str(node.target))
            if not hasattr(module, "sparta_site"):
                raise SpartaError(
                    f"{node.target}: a {type(module).__name__} has no sparta_site() to save it by"
                )
            sites[str(node.target)] = _site_spec(str(node.target), module.sparta_site(), tensors)
    codegen = fast.graph._codegen
    spec: dict[str, Any] = {
        "format": FORMAT,
        "nodes": nodes,
        "sites": sites,
        "info": asdict(info),
        "trees": None,
    }
    if isinstance(codegen, _PyTreeCodeGen):
        trees = codegen.pytree_info
        spec["trees"] = {
            "args": trees.orig_args,
            "in": pytree.treespec_dumps(trees.in_spec),
            "out": None if trees.out_spec is None else pytree.treespec_dumps(trees.out_spec),
        }
    kept = {k: v.cpu().contiguous().clone() for k, v in tensors.items()}
    save_file(kept, str(path), metadata={"torchsparta": json.dumps(spec)})


def load(
    path: str | Path,
    *,
    device: torch.device | str | None = None,
    chooser: Callable[[SparseSite], nn.Module] | None = None,
) -> fx.GraphModule:
    """Read what `save` wrote. chooser: replaces `torchsparta.transform.choose` for the kernels."""
    from safetensors import SafetensorError, safe_open

    foreign = f"{path} was not written by torchsparta.save (a mask file? torchsparta.load_masks)"
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = (file.metadata() or {}).get("torchsparta")
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise SpartaError(f"{foreign}: {error}") from error
    if metadata is None:
        raise SpartaError(foreign)
    spec = json.loads(metadata)
    if spec["format"] != FORMAT:
        raise SpartaError(f"{path} has format {spec['format']}; this version of torchsparta reads {FORMAT}")
    root, graph = nn.Module(), fx.Graph()
    for target, entry in spec["sites"].items():
        place(root, target, (chooser or choose)(_read_site(target, entry, tensors)))
    trainable = {n["target"] for n in spec["nodes"] if n.get("parameter")}
    for key, tensor in tensors.items():
        if key.startswith("t:"):
            name = key[2:]
            place(root, name, nn.Parameter(tensor) if name in trainable else tensor)
    env: dict[str, fx.Node] = {}
    for node in spec["nodes"]:
        env[node["name"]] = graph.create_node(
            node["op"],
            _target(node["op"], node["target"]),
            tuple(_decode(a, env) for a in node["args"]),
            {k: _decode(a, env) for k, a in node["kwargs"].items()},
            name=node["name"],
        )
    if spec["trees"] is not None:
        trees = spec["trees"]
        out = None if trees["out"] is None else _tree(trees["out"])
        graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(trees["args"], _tree(trees["in"]), out)))
    fast = fx.GraphModule(root, graph, "SparseModel")
    info = spec["info"]
    info["sites"] = tuple(SiteRecord(**{k: _tuples(v) for k, v in s.items()}) for s in info["sites"])
    fast.meta["sparta"] = SparsityInfo(**{k: _tuples(v) if k != "sites" else v for k, v in info.items()})
    fast.register_forward_pre_hook(_check_shapes, with_kwargs=True)
    fast.eval()
    return fast if device is None else fast.to(device)


# -- weights ------------------------------------------------------------------------------------------------
def _site_spec(target: str, site: SparseSite, tensors: dict[str, Tensor]) -> dict[str, Any]:
    code = site.tesa.code
    tensors[f"s:{target}.code"] = code
    alive = (code != 0).expand(site.weight.shape)
    packed = site.tesa.density() < 0.95 and code.numel() == site.weight.numel()
    weight = site.weight.detach().cpu()
    tensors[f"s:{target}.weight"] = weight[alive] if packed else weight
    if packed:
        # the codes of a fine-grained mask compress to a bit each when one width is left
        widths = code[code != 0].unique()
        if widths.numel() == 1 and int(widths) > 0:
            tensors[f"s:{target}.code"] = torch.from_numpy(np.packbits((code != 0).numpy().reshape(-1)))
    for name, tensor in (("bias", site.bias), ("value", site.tesa.value)):
        if tensor is not None:
            tensors[f"s:{target}.{name}"] = tensor.detach()
    quant = site.tesa.quant
    if quant is not None:
        tensors[f"s:{target}.scale"], tensors[f"s:{target}.zero_point"] = quant.scale, quant.zero_point
    bits = tensors[f"s:{target}.code"].dtype == torch.uint8
    return {
        "name": site.name,
        "op": site.op,
        "shape": list(site.weight.shape),
        "packed": packed,
        "bits": int(code.max()) if bits else None,
        "input_shape": list(site.input_shape),
        "epilogue": [e.kind for e in site.epilogue],
        "attributes": {k: list(v) if isinstance(v, tuple) else v for k, v in site.attributes.items()},
        "trainable": site.trainable,
        "confidence": site.tesa.confidence,
        "quant": None if quant is None else [quant.bits, quant.qmin, quant.qmax],
        "input_quant": None if site.input_quant is None else asdict(site.input_quant),
    }


def _read_site(target: str, entry: dict[str, Any], tensors: dict[str, Tensor]) -> SparseSite:
    def get(name: str) -> Tensor | None:
        return tensors.get(f"s:{target}.{name}")

    shape, code, weight = tuple(entry["shape"]), get("code"), get("weight")
    assert code is not None and weight is not None
    if entry["bits"] is not None:
        count = torch.Size(shape).numel()
        code = (
            torch.from_numpy(np.unpackbits(code.numpy(), count=count).astype(np.int8)).reshape(shape)
            * entry["bits"]
        )
    if entry["packed"]:
        full = weight.new_zeros(shape)
        full[(code != 0).expand(shape)] = weight
        weight = full
    scale, zero = get("scale"), get("zero_point")
    quant = None
    if entry["quant"] is not None and scale is not None and zero is not None:
        quant = Quant(scale, zero, *entry["quant"])
    tesa = TeSA.from_codes(shape, code, get("value"), quant, entry["confidence"])
    attributes = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["attributes"].items()}
    epilogue = tuple(Epilogue(k) for k in entry["epilogue"])
    return SparseSite(
        entry["name"],
        entry["op"],
        weight,
        get("bias"),
        tesa,
        tuple(entry["input_shape"]),
        epilogue,
        attributes,
        entry["trainable"],
        None if entry.get("input_quant") is None else InputQuant(**entry["input_quant"]),
    )


# -- graph --------------------------------------------------------------------------------------------------
def _attribute(root: nn.Module, name: str) -> Any:
    found: Any = root
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _node_spec(node: fx.Node) -> dict[str, Any]:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        target = str(target)
    elif callable(target):
        name = getattr(target, "__name__", "")
        if _OPERATORS.get(name) is not target:
            raise SpartaError(
                f"{node.name} calls {target}, which is neither an ATen operator nor arithmetic on sizes"
            )
        target = f"operator.{name}"
    return {
        "name": node.name,
        "op": node.op,
        "target": target,
        "args": [_encode(a) for a in node.args],
        "kwargs": {k: _encode(a) for k, a in node.kwargs.items()},
    }


def _target(op: str, name: str) -> Any:
    if op != "call_function":
        return name
    space, _, rest = name.partition(".")
    if space == "operator":
        return _OPERATORS[rest]
    packet, _, overload = rest.rpartition(".")
    try:
        return getattr(getattr(getattr(torch.ops, space), packet), overload)
    except AttributeError as error:
        raise SpartaError(
            f"the file uses the operator {name}, which is not registered in this process"
        ) from error


_PLAIN = (torch.dtype, torch.memory_format, torch.layout)


def _encode(x: Any) -> Any:
    if x is None or isinstance(x, (bool, int, float, str)):
        return x
    if isinstance(x, fx.Node):
        return {"node": x.name}
    if isinstance(x, _PLAIN):
        return {"torch": str(x).removeprefix("torch.")}
    if isinstance(x, torch.device):
        return {"device": str(x)}
    if isinstance(x, (list, tuple)):
        return {"list" if isinstance(x, list) else "tuple": [_encode(v) for v in x]}
    if isinstance(x, dict):
        return {"dict": {k: _encode(v) for k, v in x.items()}}
    raise SpartaError(f"cannot save an argument of type {type(x).__name__}: {x!r}")


def _decode(x: Any, env: dict[str, fx.Node]) -> Any:
    if not isinstance(x, dict):
        return x
    ((kind, value),) = x.items()
    if kind == "node":
        return env[value]
    if kind == "torch":
        return getattr(torch, value)
    if kind == "device":
        return torch.device(value)
    if kind == "dict":
        return {k: _decode(v, env) for k, v in value.items()}
    return (list if kind == "list" else tuple)(_decode(v, env) for v in value)


def _tree(text: str) -> pytree.TreeSpec:
    """A pytree; containers of libraries (transformers' outputs) are registered by importing where they
    live."""
    for name in _types(json.loads(text)[1]):
        module = name.rpartition(".")[0]
        if module and not module.startswith(("builtins", "collections", "torch")):
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise SpartaError(
                    f"the model returns a {name}; install {module.split('.')[0]} to load it"
                ) from error
    return pytree.treespec_loads(text)


def _types(spec: dict[str, Any]) -> list[str]:
    own = [spec["type"]] if spec["type"] else []
    return own + [t for child in spec["children_spec"] for t in _types(child)]


def _tuples(x: Any) -> Any:
    return tuple(_tuples(v) for v in x) if isinstance(x, list) else x
