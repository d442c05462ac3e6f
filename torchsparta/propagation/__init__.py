"""Propagation of TeSA over a model's graph, forward, backward and sideways, to a fixpoint.

Forward: which elements have the same value for every input. Backward and sideways (from the output and one
operand to the other): which elements no output depends on. Both are monotone, so a worklist that re-queues
the neighbours of whatever changed ends. The result is one TeSA per tensor: pruned where it is zero or not
needed, constant where the value is known, otherwise alive in some width.

Law (tests/sparta/test_law.py): zeroing the pruned elements of every tensor while the graph runs leaves the
outputs as those of the masked model, and every constant has the value that it claims.
"""

from __future__ import annotations

from .analysis import Analysis, Propagation, analyse, propagate
from .facts import Call, Facts
from .rule import Pointwise, Rule
from .scramble import Scramble
from .table import RULES, register, rule_for

__all__ = [
    "RULES",
    "Analysis",
    "Call",
    "Facts",
    "Pointwise",
    "Propagation",
    "Rule",
    "Scramble",
    "analyse",
    "propagate",
    "register",
    "rule_for",
]
