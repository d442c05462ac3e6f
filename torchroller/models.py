"""Models for `python -m torchroller explain`: transformers configurations with random weights, or a file.

A file defines `model` and `inputs` (a tuple), or `make()` that returns both; nothing is downloaded.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Loaded:
    """A model, the inputs to call it with, and whether to run it without gradients."""

    name: str
    model: Callable[..., Any]
    inputs: tuple[Any, ...]
    inference: bool = True


def load(name: str, *, batch: int = 1, tokens: int = 128, layers: int | None = None) -> Loaded:
    """A built-in model by name, or the one that a Python file defines.

    Raises ValueError for an unknown name or a file without a model, ImportError without transformers.
    """
    if name in BUILT_IN:
        try:
            import transformers
        except ImportError as error:
            message = f"{name!r} is built from a transformers configuration: pip install 'torchroller[demo]'"
            raise ImportError(message) from error
        return BUILT_IN[name](transformers, batch, tokens, layers)
    path = Path(name)
    if path.suffix != ".py":
        raise ValueError(f"no model {name!r}: name one of {', '.join(BUILT_IN)}, or a Python file")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    found = runpy.run_path(str(path))
    if "make" in found:
        model, inputs = found["make"]()
    elif "model" in found and "inputs" in found:
        model, inputs = found["model"], found["inputs"]
    else:
        raise ValueError(f"{path} defines neither make() nor model and inputs")
    training = bool(getattr(model, "training", False))
    return Loaded(path.stem, model, tuple(inputs), inference=not training)


def _shorter(config: Any, layers: int | None, field: str = "num_hidden_layers") -> Any:
    if layers is not None:
        setattr(config, field, layers)
    return config


def _tokens(vocabulary: int, batch: int, tokens: int) -> tuple[Any, ...]:
    import torch

    return (torch.randint(0, vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(0)),)


def _bert(transformers: Any, batch: int, tokens: int, layers: int | None) -> Loaded:
    config = _shorter(transformers.BertConfig(), layers)
    model = transformers.BertModel(config).eval()
    return Loaded("bert-base", model, _tokens(config.vocab_size, batch, tokens))


def _gpt2(transformers: Any, batch: int, tokens: int, layers: int | None) -> Loaded:
    config = _shorter(transformers.GPT2Config(use_cache=False), layers, "n_layer")
    model = transformers.GPT2LMHeadModel(config).eval()
    return Loaded("gpt2", model, _tokens(config.vocab_size, batch, tokens))


def _vit(transformers: Any, batch: int, tokens: int, layers: int | None) -> Loaded:
    import torch

    config = _shorter(transformers.ViTConfig(), layers)
    model = transformers.ViTModel(config).eval()
    image = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    return Loaded("vit-base", model, (image,))


def _llama(transformers: Any, batch: int, tokens: int, layers: int | None) -> Loaded:
    config = transformers.LlamaConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        use_cache=False,
    )
    model = transformers.LlamaForCausalLM(_shorter(config, layers)).eval()
    return Loaded("llama-small", model, _tokens(config.vocab_size, batch, tokens))


def _resnet(transformers: Any, batch: int, tokens: int, layers: int | None) -> Loaded:
    import torch

    model = transformers.ResNetModel(transformers.ResNetConfig()).eval()
    image = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    return Loaded("resnet-50", model, (image,))


BUILT_IN: dict[str, Callable[..., Loaded]] = {
    "bert": _bert,
    "gpt2": _gpt2,
    "vit": _vit,
    "llama": _llama,
    "resnet50": _resnet,
}
