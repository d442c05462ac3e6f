"""What each ATen operator means as a tensor expression: importing this package registers every rule."""

from . import contraction, elementwise, indexing, reduction, views  # noqa: F401
from .registry import RULES, Context, rule

__all__ = ["RULES", "Context", "rule"]
