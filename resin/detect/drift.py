"""Growth between the jumps: what is left of a floor when steps of load, deploys and restarts are taken out.

Load moves the memory of a server in jumps; between them its level is still. A leak goes on between the jumps, so
the drift of the quiet parts shows it long before it exceeds what the load moves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_QUIET_SHARE = 0.7  # of the increments are taken for quiet: their mean size is the scale
_JUMP = 5.0  # an increment beyond this many scales is a jump
_LEAST_SHARE = 0.02  # of the largest increment: below, an increment is never a jump


def between_jumps(floors: Array) -> tuple[Array, NDArray[np.bool_]]:
    """(floors without their jumps, where the jumps were): shapes (N, W) and (N, W - 1).

    An increment far larger than the quiet ones of its row is a jump. In its place stands the mean of the nearest
    quiet increments on either side: what grew before and after grew meanwhile.
    """
    increments = np.diff(floors, axis=1)
    size = np.abs(increments)
    ordered = np.sort(size, axis=1)
    quiet = ordered[:, : max(1, int(_QUIET_SHARE * ordered.shape[1]))].mean(axis=1, keepdims=True)
    jumps = size > np.maximum(_JUMP * quiet, _LEAST_SHARE * ordered[:, -1:])
    filled = np.where(jumps, np.nan, increments)
    at = np.broadcast_to(np.arange(increments.shape[1]), increments.shape)
    row = np.arange(increments.shape[0])[:, None]
    before = np.maximum.accumulate(np.where(jumps, -1, at), axis=1)
    after = np.minimum.accumulate(np.where(jumps, increments.shape[1], at)[:, ::-1], axis=1)[:, ::-1]
    left = np.where(before >= 0, filled[row, np.maximum(before, 0)], np.nan)
    right = np.where(
        after < increments.shape[1], filled[row, np.minimum(after, increments.shape[1] - 1)], np.nan
    )
    left, right = np.where(np.isnan(left), right, left), np.where(np.isnan(right), left, right)
    smooth = np.where(jumps, np.nan_to_num(0.5 * (left + right)), increments)
    drift = np.concatenate([floors[:, :1], floors[:, :1] + np.cumsum(smooth, axis=1)], axis=1)
    return drift, jumps


def gives_back(floor: Array) -> bool:
    """Whether what drifts up between the jumps is taken away by them: the teeth of a saw, collected in steps.

    Load jumps up as often as down; a collector only jumps down. One such fall is a restart.
    """
    smooth, jumps = between_jumps(floor[None, :])
    moved = np.diff(floor)[jumps[0]]
    down, up = -float(moved[moved < 0].sum()), float(moved[moved > 0].sum())
    grown = float(smooth[0, -1] - smooth[0, 0])
    return int((moved < 0).sum()) >= 2 and up < 0.5 * down and down > 0.4 * max(grown, 0.0)
