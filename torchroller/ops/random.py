"""Dropout: the mask is drawn by torch's own generator, so that a seed gives eager's numbers; the rest is fused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from ..errors import NotLowered
from ..graph import Node
from .registry import Context, rule

REASON = "random numbers come from torch's own generator, so that a seed gives those of eager"


@dataclass(frozen=True)
class KeepMask:
    """Draws the mask of dropout as ATen does: True with probability `keep`. Draws happen in the order of the graph."""

    shape: tuple[int, ...]
    keep: float
    device: torch.device
    draws: bool = True

    def __call__(self) -> torch.Tensor:
        return torch.empty(self.shape, dtype=torch.bool, device=self.device).bernoulli_(self.keep)

    def __str__(self) -> str:
        return "aten.bernoulli_.float"


@dataclass(frozen=True)
class Flat:
    """An operator that runs another one under a saved state of the generator, with its results in one flat tuple."""

    target: Any
    draws: bool = True

    def __call__(self, *args: Any, **kw: Any) -> tuple[Any, ...]:
        return tuple(tree_leaves(self.target(*args, **kw)))

    def __str__(self) -> str:
        return str(self.target)


def is_replay(target: Any) -> bool:
    """Is it one of the operators by which a recomputed random operator draws the same numbers again?"""
    return str(target) in ("run_and_save_rng_state", "run_with_rng_state")


@rule("aten.native_dropout")
def _native_dropout(cx: Context, x: Node, p: float, train: bool | None) -> Any:
    b, dtype = cx.b, cx.out(0).dtype
    if train is False or p == 0:
        return x, b.const(True, "bool", x.shape)
    if cx.out(0).device.type != "cpu":
        raise NotLowered(f"{REASON}: on a GPU its kernel of dropout draws others than bernoulli_")
    if p == 1:  # torch.nn.functional.dropout draws nothing then
        return b.call("mul", x.dtype, x, b.const(0, x.dtype)), b.const(False, "bool", x.shape)
    keep = 1.0 - p
    meta = torch.empty(x.shape, dtype=torch.bool, device="meta")
    mask = cx.extern(KeepMask(x.shape, keep, cx.out(0).device), meta, REASON)
    kind = "float32" if x.dtype in ("float16", "bfloat16") else x.dtype
    kept = b.cast(b.call("mul", kind, b.cast(x, kind), b.cast(mask, kind)), x.dtype)
    scaled = b.call("mul", kind, b.cast(kept, kind), b.const(1 / keep, kind))
    return b.cast(scaled, str(dtype).removeprefix("torch.")), mask
