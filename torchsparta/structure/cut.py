"""Cutting tensors down to the slices that stay."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..propagation.facts import Facts
from .keep import Axis


def cut(tensor: Tensor, axes: list[Axis]) -> Tensor:
    """tensor[axes[0]][:, axes[1]] …"""
    for d, axis in enumerate(axes):
        if not axis.all():
            tensor = tensor.index_select(d, torch.from_numpy(np.flatnonzero(axis)).to(tensor.device))
    return tensor


def varying(facts: Facts) -> list[int]:
    return [d for d, s in enumerate(facts.value.shape) if s > 1]
