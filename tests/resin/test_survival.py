"""A suspended machine, a clock that is set, ten thousand processes: nothing false is said and nothing is lost."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
from recorded import Host

from resin.agent.agent import Sampler
from resin.agent.identity import is_running
from resin.config import Config
from resin.detect import DEFAULT, judge_many
from resin.detect.silence import NONE, silences
from resin.model import Entity, Series
from resin.store.memory import MemoryStore

HOUR = 3600.0
MIB = 1 << 20
N = 720  # two hours at a sample each ten seconds
T = np.arange(N) * 10.0 + 1.7e9


def noise(seed, size):
    return np.random.default_rng(seed).normal(0, size, N)


STILL = {
    "flat": 1e9 + noise(1, 2e6),
    "load": 1e9 + 2e8 * (noise(2, 1.0) > 0.5) + noise(3, 1e6),
    "cycle": 1e9 + 1e8 * np.sin((T - T[0]) / 7200 * 2 * np.pi) + noise(4, 1e6),
    "saw": 1e9 + 1e6 * (np.arange(N) % 90) + noise(5, 1e5),
    "cache": 1e9 + 3e8 * (1 - np.exp((T[0] - T) / 1500)) + noise(6, 5e5),
    "walk": 1e9 + np.cumsum(noise(7, 6e5)),
}
LEAK = 1e9 + 1e8 * (T - T[0]) / HOUR + noise(8, 1e6)
LATE = 1e9 + 2e8 * np.maximum(0, T - T[0] - HOUR) / HOUR + noise(9, 1e6)


def away(at, by_s):
    """Times of a machine whose clock leaps by `by_s` between samples at-1 and at; also back."""
    t = T.copy()
    t[at:] += by_s
    return t


def judge(t, y, **more):
    series = Series(Entity("h", "p", 5, 0.0), "anon_bytes", tuple(t), tuple(y), 64e9, **more)
    (found,) = judge_many([series])
    return found


@pytest.mark.parametrize("by_s", [HOUR, 8 * HOUR, 72 * HOUR, -HOUR])
@pytest.mark.parametrize("at", [200, 400, 600])
@pytest.mark.parametrize("kind", STILL)
def test_no_leak_comes_of_a_suspended_machine_or_a_set_clock(kind, at, by_s):
    assert judge(away(at, by_s), STILL[kind]).verdict != "leak"


@pytest.mark.parametrize("by_s", [HOUR, 8 * HOUR, 72 * HOUR])
@pytest.mark.parametrize("at", [200, 400, 600])
def test_a_leak_keeps_its_slope_and_start_over_a_suspension(at, by_s):
    """Growth per hour is that of hours in which the process ran."""
    found = judge(away(at, by_s), LEAK)
    assert found.verdict == "leak"
    assert found.slope_bytes_per_hour == pytest.approx(1e8, rel=0.03)
    assert found.start_s == pytest.approx(T[0], abs=300)
    assert found.end_s == pytest.approx(T[-1] + by_s, abs=60)
    late = judge(away(at, by_s), LATE)
    assert late.verdict == "leak"
    began = T[360] + (by_s if at <= 360 else 0.0)
    assert late.slope_bytes_per_hour == pytest.approx(2e8, rel=0.03)
    assert late.start_s == pytest.approx(began, abs=300)


def test_what_is_left_out_is_said():
    lines = judge(away(400, 8 * HOUR), LEAK).why
    assert lines[-1] == "8.0 h without a sample are left out: suspended, or not watched"
    assert not any("left out" in line for line in judge(T, LEAK).why)


@pytest.mark.parametrize("at", [200, 400, 600])
def test_a_leak_is_found_over_a_clock_that_was_set_back(at):
    found = judge(away(at, -HOUR), LEAK)
    assert found.verdict == "leak"
    assert found.slope_bytes_per_hour == pytest.approx(1e8, rel=0.15)


def test_a_leak_that_went_on_while_the_agent_was_away():
    """Nothing was suspended: the process grew for eight hours that nobody saw."""
    y = LEAK.copy()
    y[400:] += 8e8
    found = judge(away(400, 8 * HOUR), y)
    assert found.verdict == "leak"
    assert found.slope_bytes_per_hour == pytest.approx(1e8, rel=0.1)


def test_work_is_counted_by_the_same_clock():
    t = away(400, 8 * HOUR)
    found = judge(t, LEAK, work=tuple(float(n) for n in range(N)))
    assert found.verdict == "leak"
    assert found.bytes_per_step == pytest.approx(1e8 / 360, rel=0.05)


def test_a_few_missed_scrapes_are_no_silence():
    t = np.delete(T, slice(300, 320))
    assert silences(t).total_s == 0.0
    assert silences(away(400, HOUR + 10.0)).total_s == pytest.approx(HOUR + 10.0)
    assert silences(T[:2]) is silences(T) is NONE


def test_the_two_clocks_agree():
    t = away(200, 9 * HOUR)
    t[500:] += 20 * HOUR
    found = silences(t)
    assert found.total_s == 29 * HOUR
    assert found.seen(t) == pytest.approx(T)
    assert found.real(found.seen(t)) == pytest.approx(t)


def test_judged_together_or_alone_is_the_same():
    """Series of one length share a pass over matrices; one with a silence leaves it."""
    whole = [
        Series(Entity("h", f"p{i}", i, 0.0), "anon_bytes", tuple(t), tuple(LEAK), 64e9)
        for i, t in enumerate((T, away(400, 8 * HOUR), T))
    ]
    together = judge_many(whole)
    assert together == [judge_many([one])[0] for one in whole]
    assert {f.verdict for f in together} == {"leak"}


class Clock:
    """A wall clock that can be set, beside recorded processes."""

    def __init__(self):
        self.now_s = 1_700_000_500.0

    def __call__(self):
        return self.now_s


@pytest.mark.parametrize("jump_s", [HOUR, -HOUR])
def test_an_agent_lives_through_a_set_clock(tmp_path, jump_s):
    """A process leaks, its neighbour does not; in the middle the clock is set and the kernel's boot time with it."""
    host, clock, store = Host(tmp_path), Clock(), MemoryStore()
    state = tmp_path / "state"
    sampler = Sampler(
        Config(host="h", slow_tick_s=1e-9), roots=host.roots, state_dir=str(state / "agent"), clock=clock
    )
    sampler.table.held_files = 0
    for tick in range(400):
        host.process(100, ["python3", "train.py"], anon=100_000 + 100 * tick)
        host.process(101, ["python3", "serve.py"], anon=200_000 + tick % 7)
        if tick == 200:
            clock.now_s += jump_s
            (host.proc / "stat").write_text(f"btime {1700000000 + jump_s:.0f}\n")
        store.append(sampler.sample())
        clock.now_s += 10.0
    series = list(store.series("anon_bytes"))
    assert len(series) == 2  # start times, and so identities, are what they were
    found = {f.entity.component: f for f in judge_many(series)}
    assert found["serve.py"].verdict == "bounded"
    assert found["train.py"].verdict == "leak"
    assert found["train.py"].slope_bytes_per_hour == pytest.approx(100 * 1024 * 360, rel=0.2)
    # What acts on a process still knows it: in this process, and in another by the agent's directory.
    entity = found["train.py"].entity
    assert is_running(entity, host.roots)
    restarted = tmp_path / "restarted"
    restarted.mkdir()
    (restarted / "proc").symlink_to(host.proc)
    elsewhere = dataclasses.replace(host.roots, proc=str(restarted / "proc"))
    assert not is_running(entity, elsewhere)
    assert is_running(entity, elsewhere, state_dir=str(state))
    host.process(100, ["python3", "train.py"], start=90_000)
    assert not is_running(entity, host.roots, state_dir=str(state))


def test_ten_thousand_processes(tmp_path):
    """All are seen, with their limits, those beyond `max_processes` are counted; ticks do not add up to a leak."""
    host = Host(tmp_path)
    for pid in range(10_000_000, 10_010_000):
        host.process(pid, ["worker", str(pid % 50)], anon=5_000 + pid % 977)
    sampler = host.sampler(max_processes=20_000, slow_tick_s=60.0)
    first = sampler.sample()
    assert len([s for s in first if s.entity.pid]) >= 10_000
    assert len({s.entity for s in first}) == len(first)
    started = time.thread_time()
    again = sampler.sample(slow=False)
    cost_s = time.thread_time() - started
    print(f"10,000 processes: a tick takes {cost_s:.2f} s of CPU time")
    assert len([s for s in again if s.entity.pid]) >= 10_000
    for pid in range(10_000_000, 10_010_000, 2):
        host.end(pid)
    assert len([s for s in sampler.sample() if s.entity.pid and ":job" not in s.entity.component]) == 5_000
    assert len(sampler.table.processes) == 5_000
    few = host.sampler(max_processes=400).sample()
    elided = [s.values["elided_processes"] for s in few if s.entity.component == "agent"]
    assert elided == [4_600]


def test_silence_is_a_threshold_like_others():
    strict = dataclasses.replace(DEFAULT, silent_share=0.01)
    assert silences(away(400, 120.0), strict).total_s == 120.0
    assert silences(away(400, 120.0)).total_s == 0.0
