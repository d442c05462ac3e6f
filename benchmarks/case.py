"""What a benchmark measures: a module with its inputs, its arithmetic and its bar."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

Built = tuple[nn.Module, tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """`make()` gives (module in eval mode, inputs); `flops` and `bytes` of one call for the rates; `bar` is the goal.

    `turn_s` is how long a turn lasts. With `training` the module returns a loss, and a call is its forward and
    backward pass and a step of AdamW.
    """

    name: str
    group: str
    make: Callable[[], Built]
    flops: float = 0.0
    bytes: float = 0.0
    bar: str = ""
    dtype: torch.dtype = torch.float32
    turn_s: float = 0.05
    training: bool = False
