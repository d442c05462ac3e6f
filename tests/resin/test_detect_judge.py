"""Level 2: verdict, class, start, slope and reasons of single series."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resin.detect import DEFAULT, judge, judge_many
from resin.detect.rule import _quiet_enough
from resin.model import Entity, Series
from resin.simulate import labelled_series
from resin.simulate.families import families

MIB = 1048576.0


PROCESS = Entity("h", "job", 7, 0.0)
CONTAINER = Entity("h", "container")  # its processes may be started again


def series(
    values,
    *,
    step_s=60.0,
    limit=8192 * MIB,
    metric="anon_bytes",
    work=None,
    times=None,
    entity=PROCESS,
) -> Series:
    times = np.arange(len(values)) * step_s if times is None else times
    return Series(
        entity,
        metric,
        tuple(float(t) for t in times),
        tuple(float(v) for v in values),
        limit_bytes=limit,
        work=None if work is None else tuple(float(w) for w in work),
    )


def noise(n, scale=1.0, seed=0):
    return np.random.default_rng(seed).normal(0.0, scale * MIB, n)


def test_leak_has_start_slope_and_time_to_limit():
    y = 1000 * MIB + noise(600) + np.clip(np.arange(600) - 200, 0, None) * MIB
    finding = judge(series(y, limit=2000 * MIB))
    assert (finding.verdict, finding.growth_class) == ("leak", "steady")
    assert finding.start_s == pytest.approx(200 * 60, abs=40 * 60)
    assert finding.slope_bytes_per_hour == pytest.approx(60 * MIB, rel=0.05)
    assert finding.hours_to_limit == pytest.approx(600 / 60, rel=0.1)
    assert 0.5 < finding.confidence <= 1.0
    assert any("none of it was given back" in line for line in finding.why)


def test_nothing_grows():
    finding = judge(series(1000 * MIB + noise(600)))
    assert (finding.verdict, finding.growth_class, finding.severity) == ("bounded", "flat", 0.0)


def test_plateau_is_bounded():
    y = 200 * MIB + 800 * MIB * np.minimum(1.0, np.arange(600) / 150) + noise(600)
    assert judge(series(y)).growth_class == "plateau"
    assert judge(series(y)).verdict == "bounded"


def test_leak_behind_a_warm_up_is_found():
    i = np.arange(720)
    y = 200 * MIB + 500 * MIB * np.minimum(1.0, i / 40) + np.clip(i - 360, 0, None) * MIB + noise(720)
    finding = judge(series(y))
    assert finding.verdict == "leak"
    assert finding.start_s == pytest.approx(360 * 60, abs=72 * 60)


def test_leak_of_a_program_that_loads_a_lot_first():
    i = np.arange(120)
    loading = 180 * MIB * np.minimum(1.0, i / 12) + 40 * MIB * np.minimum(1.0, i / 25)
    finding = judge(series(10 * MIB + loading + 0.6 * MIB * i + noise(120, 0.2), step_s=0.5))
    assert finding.verdict == "leak"


def test_growth_that_slows_down_is_unclear_and_says_what_settles_it():
    finding = judge(series(500 * MIB + 400 * MIB * np.sqrt(np.arange(600) / 600) + noise(600, 0.3)))
    assert (finding.verdict, finding.growth_class) == ("unclear", "sublinear")
    assert finding.would_settle and "cap" in finding.would_settle


def test_regular_stairs_are_a_leak_and_one_step_is_not():
    i = np.arange(720)
    stairs = judge(series(500 * MIB + 64 * MIB * np.floor(i / 80) + noise(720, 0.2)))
    assert (stairs.verdict, stairs.growth_class) == ("leak", "stair")
    one = judge(series(500 * MIB + 300 * MIB * (i > 500) + noise(720, 0.2)))
    assert one.verdict != "leak"


def test_switching_load_does_not_hide_a_leak():
    rng = np.random.default_rng(3)
    busy = np.repeat(rng.random(72) < 0.5, 10) * 200 * MIB
    y = 1000 * MIB + busy + np.clip(np.arange(720) - 300, 0, None) * 0.8 * MIB
    finding = judge(series(y))
    assert finding.verdict == "leak"
    assert finding.slope_bytes_per_hour == pytest.approx(48 * MIB, rel=0.2)


def test_switching_load_alone_is_no_leak():
    rng = np.random.default_rng(4)
    findings = judge_many(
        series(1000 * MIB + np.repeat(rng.random(72) < 0.5, 10) * 200 * MIB + noise(720, seed=k))
        for k in range(40)
    )
    assert [f.verdict for f in findings].count("leak") == 0


def test_restart_ends_one_run_and_begins_another():
    leaking = 300 * MIB + np.arange(400) * 2 * MIB
    y = np.concatenate([leaking, 200 * MIB + noise(300)])
    finding = judge(series(y, entity=CONTAINER))
    assert finding.verdict == "leak"
    assert finding.end_s == pytest.approx(399 * 60)


def test_a_process_that_outlived_a_leak_of_the_one_before_does_not_leak():
    leaking = 300 * MIB + np.arange(400) * 2 * MIB
    short, long = (np.concatenate([leaking, 200 * MIB + noise(n)]) for n in (200, 420))
    assert judge(series(short, entity=CONTAINER)).verdict == "leak"
    assert judge(series(long, entity=CONTAINER)).verdict == "bounded"


def test_a_fall_of_one_known_process_is_no_restart():
    """The same numbers: of a container a leak and its restart, of a process memory that was given back."""
    leaking = 300 * MIB + np.arange(400) * 2 * MIB
    y = np.concatenate([leaking, 200 * MIB + noise(200)])
    assert judge(series(y, entity=CONTAINER)).verdict == "leak"
    without_start_time = Entity("h", "job", 7)
    assert judge(series(y, entity=without_start_time)).verdict == "leak"
    assert judge(series(y)).verdict == "bounded"


def test_deep_teeth_of_one_process_are_its_collector():
    y = 100 * MIB + (np.arange(720) % 120) * 3 * MIB + noise(720, 0.3)
    of_process, of_container = judge(series(y)), judge(series(y, entity=CONTAINER))
    assert (of_process.verdict, of_process.growth_class) == ("bounded", "saw-tooth")
    assert (of_container.verdict, of_container.growth_class) == ("leak", "saw-tooth")


def test_a_leak_goes_on_after_one_process_gave_most_of_its_memory_back():
    """A model is unloaded, caches are dropped: what leaks beside them is followed over the fall."""
    at = np.arange(720)
    y = 300 * MIB + at * 2 * MIB + np.where(at < 200, 4000 * MIB, 0) + noise(720)
    finding = judge(series(y))
    assert finding.verdict == "leak"
    assert finding.slope_bytes_per_hour == pytest.approx(120 * MIB, rel=0.1)


def test_a_saw_is_told_from_96_samples_on():
    def found(points):
        finding = judge(series(300 * MIB + (np.arange(points) % 24) * 8 * MIB + noise(points, 0.3)))
        return finding.verdict, finding.growth_class

    assert found(96) == ("bounded", "saw-tooth")
    verdict, growth_class = found(90)
    assert verdict != "leak" and growth_class != "saw-tooth"


def test_restarts_that_leak_are_a_saw_from_96_samples_on():
    def found(length):
        run = 200 * MIB + np.arange(length) * 20 * MIB
        return judge(series(np.concatenate([run, run]), entity=CONTAINER))

    assert (found(40).verdict, found(40).growth_class) == ("leak", "steady")
    assert (found(48).verdict, found(48).growth_class) == ("leak", "saw-tooth")


def test_growth_that_has_all_but_stopped_in_its_last_quarter_is_no_leak():
    at = np.arange(720)
    slowed = series(800 * MIB + 0.5 * MIB * np.minimum(at, 500 + 0.15 * (at - 500).clip(0)) + noise(720))
    assert judge(slowed).verdict == "unclear"
    assert judge(slowed, replace(DEFAULT, min_last_quarter=0.0)).verdict == "leak"


def test_many_jumps_ask_for_an_evener_drift_between_them():
    def holds(jump_share, drift_t):
        return _quiet_enough(SimpleNamespace(jump_share=jump_share, drift_t=drift_t), DEFAULT)

    assert holds(0.3, 4.5) and holds(0.4, 6.0)
    assert not holds(0.35, 5.9) and not holds(0.41, 20.0)


def test_two_leaking_runs_are_a_saw_tooth():
    run = 200 * MIB + np.arange(300) * 3 * MIB
    finding = judge(series(np.concatenate([run, run]), entity=CONTAINER))
    assert (finding.verdict, finding.growth_class) == ("leak", "saw-tooth")


def test_garbage_collected_in_steps_is_bounded():
    y = 300 * MIB + (np.arange(720) % 90) * 2 * MIB + noise(720, 0.3)
    assert (judge(series(y)).verdict, judge(series(y)).growth_class) == ("bounded", "saw-tooth")


def test_memory_that_follows_the_load_is_bounded_where_the_job_counts_its_work():
    rate = np.clip(np.linspace(1, 5, 600) + noise(600, 0.1 / MIB), 0, None)
    y = 300 * MIB + 100 * MIB * rate
    assert judge(series(y)).verdict == "leak"  # without the counter it cannot be told from a leak
    counted = judge(series(y, work=np.cumsum(rate * 60)))
    assert counted.verdict == "bounded"
    assert any("load, not a leak" in line for line in counted.why)


def test_bytes_per_step():
    rate = np.where(np.arange(600) // 60 % 2 == 0, 4.0, 0.0)
    work = np.cumsum(rate * 10)
    finding = judge(series(300 * MIB + work * 20_000, work=work, step_s=10.0))
    assert finding.verdict == "leak"
    assert finding.bytes_per_step == pytest.approx(20_000, rel=0.05)


def test_too_few_samples_are_unclear():
    finding = judge(series(np.arange(10) * 100 * MIB))
    assert finding.verdict == "unclear"
    assert finding.would_settle and "24 samples" in finding.would_settle


@pytest.mark.parametrize("values", [[], [1.0], [5.0] * 30, [0.0] * 100, [float("nan")] * 50])
def test_odd_input_does_not_raise(values):
    assert judge(series(values)).verdict in {"unclear", "bounded"}


def test_times_out_of_order_and_twice_are_put_right():
    y = 1000 * MIB + np.clip(np.arange(600) - 200, 0, None) * MIB
    shuffled = np.random.default_rng(1).permutation(600)
    times = np.concatenate([np.arange(600)[shuffled] * 60.0, [600.0]])
    values = np.concatenate([y[shuffled], [9999 * MIB]])
    assert judge(series(values, times=times)).start_s == judge(series(y)).start_s


def test_scale_of_time_does_not_matter():
    y = 100 * MIB + np.clip(np.arange(300) - 60, 0, None) * 0.5 * MIB + noise(300, 0.2)
    slow, fast = judge(series(y, step_s=60.0)), judge(series(y, step_s=0.5))
    assert slow.verdict == fast.verdict == "leak"
    assert slow.start_s / 60.0 == pytest.approx(fast.start_s / 0.5)


def test_counters_have_a_floor_in_whole_numbers():
    i = np.arange(300)
    assert judge(series(20 + i // 4, metric="fds", limit=None)).verdict == "leak"
    assert judge(series(20 + (i // 100), metric="fds", limit=None)).verdict != "leak"


def test_one_by_one_and_together_agree():
    found = [one.series for one in labelled_series(42, seed=5)]
    for together, alone in zip(judge_many(found), [judge(one) for one in found]):
        assert (together.id, together.verdict, together.growth_class) == (
            alone.id,
            alone.verdict,
            alone.growth_class,
        )
        assert together.start_s == alone.start_s
        assert together.confidence == pytest.approx(alone.confidence)


def test_simulated_series_meet_the_promise():
    labelled = labelled_series(210, seed=11)
    findings = judge_many([one.series for one in labelled])
    flagged = [one.leaks for one, f in zip(labelled, findings) if f.verdict == "leak"]
    assert sum(flagged) / len(flagged) >= 0.95
    assert sum(flagged) / sum(one.leaks for one in labelled) >= 0.95
    right = sum(one.growth_class == f.growth_class for one, f in zip(labelled, findings))
    assert right / len(labelled) >= 0.85
    for one, f in zip(labelled, findings):
        if one.leaks and f.verdict == "leak":
            assert abs(f.start_s - one.start_s) <= 0.1 * one.series.times_s[-1]


@given(
    st.lists(st.floats(-1e15, 1e15, allow_nan=False), min_size=0, max_size=150),
    st.sampled_from([None, 0.0, 1.0, 1e12]),
    st.sampled_from(["anon_bytes", "fds", "memory_utilisation"]),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_whatever_comes_in_a_finding_comes_out(values, limit, metric, with_work):
    finding = judge(series(values, limit=limit, metric=metric, work=np.abs(values) if with_work else None))
    assert finding.verdict in {"leak", "bounded", "unclear"}
    assert 0.0 <= finding.severity <= 1.0
    assert 0.0 <= finding.confidence <= 1.0
    assert all(np.isfinite(v) for v in finding.evidence.values())


def switching(n, level, seed=0):
    """Load of `level` that switches on and off at random, every 100 samples or so."""
    rng = np.random.default_rng(seed)
    return level * (np.cumsum(rng.random(n) < 0.01) % 2)


def test_a_leak_far_below_the_jumps_of_the_load_is_seen_between_them():
    i = np.arange(1200)
    y = 1000 * MIB + switching(1200, 200 * MIB) + noise(1200, 0.05)
    assert judge(series(y)).verdict == "bounded"
    leaking = judge(series(y + np.clip(i - 600, 0, None) * 0.1 * MIB, limit=2048 * MIB))
    assert leaking.verdict == "leak"
    assert leaking.start_s == pytest.approx(600 * 60, abs=120 * 60)
    assert leaking.slope_bytes_per_hour == pytest.approx(6 * MIB, rel=0.25)


def test_a_leak_goes_on_over_a_restart_and_began_before_it():
    i = np.arange(900)
    y = 1000 * MIB + np.clip(i - 200, 0, None) * MIB + noise(900)
    y[600:] -= 350 * MIB  # the new process has less to begin with, and leaks as the old one did
    finding = judge(series(y))
    assert finding.verdict == "leak"
    assert finding.start_s == pytest.approx(200 * 60, abs=90 * 60)


def test_a_glitch_is_no_restart():
    i = np.arange(600)
    y = 1000 * MIB + np.clip(i - 200, 0, None) * MIB + noise(600)
    y[[300, 450, 451]] *= 0.2
    finding = judge(series(y))
    assert finding.verdict == "leak"
    assert finding.start_s == pytest.approx(200 * 60, abs=60 * 60)
    assert judge(series(np.where(i == 300, 100 * MIB, 1000 * MIB + noise(600)))).verdict == "bounded"


def test_a_curve_towards_a_cap_is_no_leak_at_its_end():
    filled = 1 - np.exp(-np.clip(np.arange(720) - 300, 0, None) / 120)
    for scale in (200, 800):
        assert judge(series(1000 * MIB + scale * MIB * filled + noise(720, 0.3))).verdict != "leak"


def test_a_ramp_that_stopped_is_bounded():
    y = 500 * MIB + MIB * np.clip(np.arange(1000) - 100, 0, 640) + noise(1000, 0.5)
    assert judge(series(y)).verdict == "bounded"


def test_the_next_rise_of_a_daily_cycle_is_no_leak():
    t = np.arange(0, 2.4 * 1440)
    y = 1000 * MIB + 200 * MIB * np.cos(2 * np.pi * t / 1440 + np.pi) + noise(t.size)
    for end in range(1800, t.size, 120):
        assert judge(series(y[:end])).verdict != "leak", end


def test_families_that_the_detector_was_not_shaped_on():
    members = families(6, seed=404)
    found = judge_many([m.series for m in members])
    leaking = [m.start_s is not None for m in members]
    flagged = [f.verdict == "leak" for f in found]
    right = sum(a and b for a, b in zip(leaking, flagged))
    assert right / sum(flagged) >= 0.95
    assert right / sum(leaking) >= 0.9


def test_many_at_once_are_judged_as_each_alone():
    made = [m.series for m in families(2, seed=5)]
    quiet = [series(1000 * MIB + noise(600, seed=s)) for s in range(5)]
    gaps = [series(1000 * MIB + noise(600, seed=s), times=np.arange(600) ** 1.1) for s in range(3)]
    together = judge_many([*made, *quiet, *gaps])
    alone = [judge(one) for one in (*made, *quiet, *gaps)]
    assert [(f.id, f.verdict, f.growth_class) for f in together] == [
        (f.id, f.verdict, f.growth_class) for f in alone
    ]
    for one, other in zip(together, alone):
        assert one.severity == pytest.approx(other.severity, abs=0.01)
