"""Judgements are kept while a series stays as it is, and never told of one that changed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from resin.column import Column
from resin.detect import Judgements, detectors, judge_many, scan
from resin.detect.remember import digest
from resin.model import Entity, Series

MIB = 1048576.0
T = np.arange(200) * 60.0


def one(pid=1, growth=2 * MIB, **changes):
    y = 300 * MIB + np.arange(200) * growth
    made = Series(Entity("h", "job", pid, 5.0), "anon_bytes", Column(T), Column(y), 8192 * MIB)
    return replace(made, **changes)


class Counting:
    """The built-in rule, and how many series it was asked for each time."""

    name = "counting"
    metrics = ("anon_bytes",)

    def __init__(self):
        self.asked = []

    def judge_many(self, series):
        self.asked.append(len(series))
        return judge_many(series)


def outline(finding):
    """Without the last digits: NumPy adds a matrix of one row in another order than one of three."""
    f = finding
    return (
        f.id,
        f.entity,
        f.verdict,
        f.growth_class,
        f.end_s,
        round(f.slope_bytes_per_hour),
        round(f.severity, 9),
    )


class Held:
    """A store of these series."""

    def __init__(self, *series):
        self.held = list(series)

    def metrics(self):
        return ("anon_bytes",)

    def series(self, metric, *, since=None, component=None):
        yield from self.held

    def pivot(self, metric="anon_bytes", *, window_s=300.0, since=None):
        from resin.detect import pivot_of

        return pivot_of(self.held, window_s=window_s)

    def sample(self, index):
        old = self.held[index]
        self.held[index] = replace(
            old,
            times_s=Column([*old.times_s, old.times_s[-1] + 60.0]),
            values=Column([*old.values, old.values[-1] + 2 * MIB]),
        )


def test_only_what_changed_is_judged_again_and_the_findings_are_the_same():
    store, judgements, detector = Held(one(1), one(2), one(3, growth=0.0)), Judgements(), Counting()
    told = []
    for _ in range(4):
        store.sample(0)
        with judgements.one_pass([detector]) as using:
            found = scan(store, now_s=1e4, lookback_s=1e4, using=using)
        fresh = scan(store, now_s=1e4, lookback_s=1e4, using=[Counting()])
        assert [outline(f) for f in found] == [outline(f) for f in fresh]
        told.append((judgements.judged, judgements.reused))
    # Seen once, seen again and from then on kept; the one that lives is judged each time.
    assert told == [(3, 0), (3, 0), (1, 2), (1, 2)]
    assert detector.asked == [3, 3, 1, 1]


def test_a_series_that_is_gone_is_forgotten():
    judgements, detector = Judgements(), Counting()
    for held in ([one()], [one()], [], [one()]):
        with judgements.one_pass([detector]) as (remembering,):
            remembering.judge_many(held)
    assert judgements.reused == 0
    assert detector.asked == [1, 1, 1]


def test_a_pass_that_fails_leaves_what_was_known():
    judgements, detector = Judgements(), Counting()
    for _ in range(2):
        with judgements.one_pass([detector]) as (remembering,):
            remembering.judge_many([one()])
    with pytest.raises(OSError, match="away"), judgements.one_pass([detector]):
        raise OSError("the store is away")
    with judgements.one_pass([detector]) as (remembering,):
        remembering.judge_many([one()])
    assert (judgements.judged, judgements.reused) == (0, 1)


def test_what_is_remembered_is_bounded():
    judgements, detector = Judgements(most=2), Counting()
    for _ in range(3):
        with judgements.one_pass([detector]) as (remembering,):
            remembering.judge_many([one(pid) for pid in range(5)])
    assert (judgements.judged, judgements.reused) == (3, 2)


def test_all_that_a_judgement_depends_on_is_in_the_digest():
    work = Column(np.arange(200.0))
    values = np.asarray(one().values).copy()
    values[57] += 1.0
    different = [
        one(),
        one(pid=2),
        one(metric="uss_bytes"),
        one(limit_bytes=None),
        one(values=Column(values)),
        one(times_s=Column(T + 1.0)),
        one(work=work),
        one(entity=Entity("h", "job", 1, 5.4)),  # the same key, another start
    ]
    assert len({digest("floor", s) for s in different} | {digest("other", one())}) == 9
    as_tuples = one(times_s=tuple(T.tolist()), values=tuple(np.asarray(one().values).tolist()))
    assert digest("floor", one()) == digest("floor", as_tuples)


def test_a_detector_that_leaves_a_series_out_is_named():
    class Short(Counting):
        def judge_many(self, series):
            return judge_many(series)[1:]

    with (
        pytest.raises(ValueError, match="counting: 1 findings on 2 series; it must give one for each"),
        Judgements().one_pass([Short()]) as (remembering,),
    ):
        remembering.judge_many([one(1), one(2)])


def test_the_built_in_detectors_are_wrapped_under_their_names():
    with Judgements().one_pass(detectors()) as using:
        assert [d.name for d in using] == [d.name for d in detectors()]
