"""Simulation: small programs that leak or do not (`corpus`), labelled series (`series`), injected leaks (`inject`)."""

from __future__ import annotations

from .corpus import CASES, Case, culprit_lines
from .series import Labelled, inject_ramp, labelled_series

__all__ = ["CASES", "Case", "Labelled", "culprit_lines", "inject_ramp", "labelled_series"]
