"""Which ramp explains a floor: flat, then a line from window c to window d, then flat."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_ROWS_AT_ONCE = 2048  # bounds the correlation matrix to about 30 MB


@lru_cache(maxsize=128)
def ramp_shapes(windows: int) -> tuple[NDArray[np.int64], Array]:
    """All ramps over `windows` points: bounds (P, 2) as (c, d), and centred unit vectors (P, windows).

    (c, c + 1) is a single step, (0, windows - 1) a straight line, (c, windows - 1) the hinge of a leak that
    starts at c. Least squares of `a + b * ramp` on a floor is then one inner product.
    """
    pairs = np.array([(c, d) for c in range(windows - 1) for d in range(c + 1, windows)], dtype=np.int64)
    at = np.arange(windows, dtype=np.float64)
    shapes = np.clip((at - pairs[:, :1]) / (pairs[:, 1:] - pairs[:, :1]), 0.0, 1.0)
    shapes -= shapes.mean(axis=1, keepdims=True)
    shapes /= np.linalg.norm(shapes, axis=1, keepdims=True)
    return pairs, shapes


@lru_cache(maxsize=128)
def concave_shapes(windows: int) -> Array:
    """Growth that slows down, from several onsets: square root, logarithm, saturation; as unit vectors."""
    at = np.arange(windows, dtype=np.float64)
    shapes = []
    for onset in range(0, int(0.7 * windows), max(1, windows // 16)):
        x = np.clip((at - onset) / (windows - 1 - onset), 0.0, None)
        shapes += [np.sqrt(x), np.log1p(9.0 * x), np.log1p(30.0 * x)]
        shapes += [1.0 - np.exp(-rate * x) for rate in (1.5, 2.5, 4.0)]
    matrix = np.array(shapes)
    matrix -= matrix.mean(axis=1, keepdims=True)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


@dataclass(frozen=True)
class RampFit:
    """Best ramp of any kind and best hinge to the end, for N floors of W points. r2 = 0 where nothing rises."""

    best_r2: Array  # (N,)
    best_from: NDArray[np.int64]  # (N,) window where the best ramp starts
    best_to: NDArray[np.int64]  # (N,) window where it ends
    hinge_r2: Array  # (N,)
    hinge_from: NDArray[np.int64]  # (N,)
    concave_r2: Array  # (N,) of the best curve that slows down


def fit_ramps(floors: Array) -> RampFit:
    """Least-squares fit of every rising ramp to each row of `floors`, shape (N, W), W >= 3."""
    if floors.ndim != 2 or floors.shape[1] < 3:
        raise ValueError(f"fit_ramps needs floors of shape (N, W) with W >= 3, got {floors.shape}")
    pairs, shapes = ramp_shapes(floors.shape[1])
    concave = concave_shapes(floors.shape[1])
    hinges = np.flatnonzero(pairs[:, 1] == floors.shape[1] - 1)
    parts = []
    for first in range(0, floors.shape[0], _ROWS_AT_ONCE):
        rows = floors[first : first + _ROWS_AT_ONCE]
        centred = rows - rows.mean(axis=1, keepdims=True)
        norm = np.linalg.norm(centred, axis=1, keepdims=True)
        scale = np.abs(rows).max(axis=1, keepdims=True)
        flat = norm <= 1e-12 * scale
        unit = np.where(flat, 0.0, centred / np.where(flat, 1.0, norm))
        correlation = np.maximum(unit @ shapes.T, 0.0)
        best = correlation.argmax(axis=1)
        hinge = hinges[correlation[:, hinges].argmax(axis=1)]
        row = np.arange(rows.shape[0])
        parts.append(
            (
                correlation[row, best] ** 2,
                pairs[best, 0],
                pairs[best, 1],
                correlation[row, hinge] ** 2,
                pairs[hinge, 0],
                np.maximum(unit @ concave.T, 0.0).max(axis=1) ** 2,
            )
        )
    if not parts:
        none = np.zeros(0)
        return RampFit(none, none.astype(np.int64), none.astype(np.int64), none, none.astype(np.int64), none)
    return RampFit(*(np.concatenate(column) for column in zip(*parts)))
