"""Pieces of detection against definitions and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resin.detect.floor import block_minima, kept, largest_fall, onset
from resin.detect.ramps import fit_ramps
from resin.detect.segments import clean, restarts
from resin.detect.trend import mann_kendall, theil_sen

values = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=5, max_size=60)


@given(values)
@settings(max_examples=60, deadline=None)
def test_kept_is_the_largest_rising_sequence_below_the_floor(floor):
    floor = np.array(floor)
    held = kept(floor, 1)
    assert (np.diff(held) >= 0).all()
    assert (held <= floor).all()
    assert held[-1] == floor[-1]
    assert all(held[i] == floor[i:].min() for i in range(len(floor)))


def test_tail_only_confirms():
    floor = np.array([1.0, 1, 1, 1, 5, 6])
    assert kept(floor, 3).tolist() == [1, 1, 1, 1]
    assert kept(floor, 1).tolist() == [1, 1, 1, 1, 5, 6]


@given(values, st.integers(2, 12))
@settings(max_examples=60, deadline=None)
def test_block_minima_are_minima(y, windows):
    y = np.array(y)
    t = np.arange(len(y), dtype=float)
    found = block_minima(t, y, 0.0, t[-1], windows)
    assert found.min() == y.min()
    index = np.minimum((t * windows / t[-1]).astype(int), windows - 1)
    for block in range(windows):
        if (index == block).any():
            assert found[block] == y[index == block].min()


def test_fit_ramps_finds_the_ramp_that_was_put_in():
    at = np.arange(40.0)
    rows = np.stack(
        [7 + 3 * np.clip((at - c) / (d - c), 0, 1) for c, d in ((0, 39), (10, 39), (5, 20), (12, 13))]
    )
    fit = fit_ramps(rows)
    assert fit.best_from.tolist() == [0, 10, 5, 12]
    assert fit.best_to.tolist() == [39, 39, 20, 13]
    assert fit.best_r2 == pytest.approx(1.0)
    assert fit.hinge_from[:2].tolist() == [0, 10]
    assert fit_ramps(np.full((1, 40), 5.0)).best_r2.tolist() == [0.0]
    assert fit_ramps(-rows[:1]).hinge_r2[0] < 0.5  # a fall is no ramp


def test_fit_ramps_equals_least_squares():
    rng = np.random.default_rng(0)
    row = np.cumsum(rng.normal(0.3, 1.0, 20))
    fit = fit_ramps(row[None])
    best = 0.0
    for c in range(19):
        for d in range(c + 1, 20):
            x = np.clip((np.arange(20.0) - c) / (d - c), 0, 1)
            slope, level = np.polyfit(x, row, 1)
            if slope > 0:
                best = max(best, 1 - ((row - level - slope * x) ** 2).sum() / ((row - row.mean()) ** 2).sum())
    assert fit.best_r2[0] == pytest.approx(best)


def test_theil_sen_survives_outliers():
    x = np.arange(50.0)
    y = 2.0 * x
    y[::7] += 500.0
    assert theil_sen(x, y) == pytest.approx(2.0, abs=0.2)
    with pytest.raises(ValueError, match="two distinct x"):
        theil_sen(np.ones(4), np.arange(4.0))


def test_mann_kendall_knows_trend_from_noise():
    rng = np.random.default_rng(2)
    assert mann_kendall(np.arange(30.0)) == (1.0, pytest.approx(0.0, abs=1e-6))
    assert mann_kendall(np.ones(30)) == (0.0, 1.0)
    white = [mann_kendall(rng.normal(size=40))[1] for _ in range(200)]
    assert np.mean(np.array(white) < 0.05) < 0.12


def test_mann_kendall_takes_autocorrelation_into_account():
    rng = np.random.default_rng(3)
    plain = corrected = 0
    for _ in range(100):
        y = np.zeros(60)
        for i in range(1, 60):
            y[i] = 0.8 * y[i - 1] + rng.normal()
        s = np.sign(y[None, :] - y[:, None])[np.triu_indices(60, 1)].sum()
        z = (s - np.sign(s)) / np.sqrt(60 * 59 * 125 / 18)
        plain += z > 1.645
        corrected += mann_kendall(y)[1] < 0.05
    assert corrected < 0.75 * plain  # an AR(1) without trend looks like one to the plain test far too often


def test_restarts():
    assert restarts(np.array([10.0, 11, 12, 3, 4, 5])) == [(0, 3), (3, 6)]
    assert restarts(np.array([10.0, 11, 12, 7, 8, 9])) == [(0, 6)]
    assert restarts(np.zeros(0)) == []


def test_clean_keeps_the_lowest_of_equal_times():
    t, y = clean([2.0, 1.0, 2.0, np.nan, 3.0], [5.0, 1.0, 4.0, 9.0, np.inf])
    assert t.tolist() == [1.0, 2.0]
    assert y.tolist() == [1.0, 4.0]
    with pytest.raises(ValueError, match="one length"):
        clean([1.0], [1.0, 2.0])


def test_largest_fall_and_onset():
    t = np.arange(400.0)
    y = np.where(t < 200, 10.0, 4.0)
    assert largest_fall(t, y, 0.0, 399.0, 50.0) == pytest.approx(6.0)
    assert largest_fall(t, np.full(400, 3.0), 0.0, 399.0, 50.0) == 0.0
    assert largest_fall(t[:10], y[:10], 0.0, 9.0, 5.0) is None


def test_onset_is_followed_back():
    t = np.arange(400.0)
    line = 0.5 * np.clip(t - 120, 0, None)
    view = {"slope_per_s": 0.5, "from_s": 250.0, "to_s": 399.0, "tolerance_s": 8.0}
    assert onset(t, 5.0 + line, **view) == pytest.approx(120, abs=12)
    assert onset(t, 5.0 + 0.5 * t, **view) == 0.0
    stepped = np.where(t < 180, 1.0, 90.0) + line  # something else moved the level at 180
    assert onset(t, stepped, **view) == pytest.approx(180, abs=12)
