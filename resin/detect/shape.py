"""The growth class of a run, from its evidence and its teeth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..model import GrowthClass
from .evidence import Evidence
from .segments import big_falls, is_saw, quantiles
from .thresholds import Thresholds

Array = NDArray[np.float64]


def growth_class(evidence: Evidence, y: Array, material: float, thresholds: Thresholds) -> GrowthClass:
    """Class of the whole run `y`, whose evidence (share 1.0) is given; `material` is the least growth that counts.

    Without kept growth: saw-tooth, spike or flat. With it: plateau once the growth has ended, stair when a few
    jumps hold it, sublinear when it slows down, else steady.
    """
    e, x = evidence, thresholds
    if e.total <= max(material, 5.0 * e.noise):
        return without_growth(y, material, x)
    low, upper = quantiles(y, 0.05, 0.95)
    span = upper - low
    if e.total < span and _teeth(y, span, x):
        return "saw-tooth"  # the last tooth is not complete: its foot is not yet the floor
    if e.slows_down and e.whole_quarters[3] > 0.05 * e.total:
        return "sublinear"
    width = e.windows - 1 - max(1, round(e.windows * x.tail_share)) + 1
    rest = (width - 1 - e.best_to) / max(width - 1, 1)
    if e.ended or e.best_r2 > e.r2 + 0.01 and rest >= 0.2 and e.last_third <= 1.0:
        return "plateau"
    if e.stairs >= 4 or e.one_step >= x.max_one_step or e.steps < x.min_steps:
        return "stair"
    if e.last_third <= x.plateau_rest:
        return "plateau"
    return "steady"


def _teeth(y: Array, span: float, thresholds: Thresholds) -> bool:
    """Three falls or more by half of `span`, each after a slow rise, in a history long enough to tell."""
    return y.size >= thresholds.min_saw_points and big_falls(y) >= 3 and is_saw(y, 0.5 * span)


def without_growth(y: Array, material: float, thresholds: Thresholds) -> GrowthClass:
    """Class of a run whose floor does not rise: flat, spike or saw-tooth."""
    low, median, upper, high = quantiles(y, 0.05, 0.5, 0.95, 1.0)
    if high - median <= max(material, 0.02 * abs(median)):
        return "flat"
    if _teeth(y, upper - low, thresholds):
        return "saw-tooth"
    above = float(np.mean(y > median + 0.5 * (high - median)))
    if high - median > max(0.1 * abs(median), 3.0 * (upper - low)) or above < 0.1:
        return "spike"
    return "flat"
