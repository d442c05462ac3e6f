"""Times in which nothing was sampled: left out of the clock by which growth is judged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .thresholds import DEFAULT, Thresholds

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Silences:
    """Long times without a sample. `after_s` are the times of the first samples after each, `left_out_s` its length.

    A suspended machine, a clock that was set ahead, an agent that was away: beside such a time all that was seen
    would shrink to nothing, and a line over it would be drawn from two ends alone. So the seen parts are put
    together: `seen` gives times of that shorter clock, `real` those of the wall again.
    """

    after_s: Array
    left_out_s: Array

    @property
    def total_s(self) -> float:
        return float(self.left_out_s.sum())

    def seen(self, times_s: ArrayLike) -> Array:
        """Wall times as times of the clock that stands still in silences."""
        t = np.asarray(times_s, dtype=np.float64)
        return t - self._shift(np.searchsorted(self.after_s, t, side="right"))

    def real(self, times_s: ArrayLike) -> Array:
        """The wall times of `seen` ones."""
        t = np.asarray(times_s, dtype=np.float64)
        begins = self.after_s - np.cumsum(self.left_out_s)
        return t + self._shift(np.searchsorted(begins, t, side="right"))

    def _shift(self, passed: NDArray[np.intp]) -> Array:
        return np.concatenate(([0.0], np.cumsum(self.left_out_s)))[passed]


NONE = Silences(np.empty(0), np.empty(0))


def silences(t: Array, thresholds: Thresholds = DEFAULT) -> Silences:
    """Those of a series: ten usual intervals or more, and long beside all that was seen."""
    steps = np.diff(t)
    if steps.size < 2:
        return NONE
    usual = float(np.median(steps))
    silent = steps > thresholds.silent_steps * usual
    if not silent.any():
        return NONE
    found = silent & (steps > thresholds.silent_share * float(steps[~silent].sum()))
    return Silences(t[1:][found], steps[found] - usual)
