"""Structure first: dead rows, columns, channels and heads disappear, and what is left is a smaller dense
model.

`keep` decides which slices of which tensors stay; `emit` rebuilds the graph on the smaller tensors, folding
the constants of what went away into the bias that follows.
"""

from __future__ import annotations

from .build import Structured, structure_first
from .keep import Keeps, keep_slices

__all__ = ["Keeps", "Structured", "keep_slices", "structure_first"]
