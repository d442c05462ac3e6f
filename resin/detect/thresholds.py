"""Every constant of level-2 detection in one place, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thresholds:
    """Constants of the leak rule. None comes from a paper; the reasons stand beside them.

    They are shares and counts, not durations: the same rule judges 60 s of a small job sampled each second
    and a day of a service sampled each minute.
    """

    # --- how much has to be seen -------------------------------------------------------------------
    min_points: int = 24  # below, a trend test on block minima has no power: verdict `unclear`
    min_observed_s: float = 30.0  # of a run; below, every program is starting up
    min_segment_share: float = 0.1  # a run shorter than this share of the trace says little about it
    restart_ratio: float = 0.5  # a fall below half of the recent level is a new process, not a free()
    silent_steps: float = 10.0  # usual intervals without a sample: longer is not a missed scrape ...
    silent_share: float = 0.5  # ... and beyond this share of what was seen, the clock stands still in it
    # --- what is material --------------------------------------------------------------------------
    min_relative_growth: float = 0.004  # of the level at the start; below lies allocator jitter
    min_growth_bytes: float = 1048576.0  # for `*_bytes`: four pymalloc arenas, or eight heap top pads
    min_growth_count: float = 16.0  # for counters (fds, threads)
    horizon_hours: float = 720.0  # 30 days: jobs are redeployed sooner, a slower leak harms nobody
    doubling_hours: float = 4320.0  # without a known limit: six months to double; the severity says how slow
    # --- what is steady growth ---------------------------------------------------------------------
    min_r2: float = 0.85  # of the hinge (flat, then a line) on the floor of the series
    max_r2_deficit: float = 0.05  # how much better a ramp that ended may explain the floor
    min_ramp_share: float = 0.3  # of the horizon under test: a shorter ramp may be one burst
    min_trace_share: float = 0.1  # of the whole trace: likewise
    min_ramp_windows: int = 8
    max_one_step: float = 0.4  # share of the growth in one window: above, it is a jump, not a leak
    min_saw_points: int = 96  # of a run: three teeth of 32 samples; in fewer, three falls may be any load
    min_steps: int = 4  # windows that hold 80 % of the growth
    min_quarter: float = 0.05  # each quarter of the ramp holds this share of the growth
    min_drift_t: float = 3.0  # Student t over eight parts of the ramp: p of 0.01 with 7 degrees of freedom
    min_stairs: int = 5  # ... or this many equal steps at equal distances
    min_last_third: float = 0.4  # slope of the last third over the mean slope: below, it levels off
    min_last_quarter: float = 0.1  # of the growth, which is 0.4 of an even share: it still goes on
    max_returned: float = 1.0  # median of what is above the floor, in units of the growth
    slowing_last_third: float = 0.9  # ... or below this, when the time before grew so much faster:
    slowing_before: float = 1.5
    # --- growth between jumps -------------------------------------------------------------------------
    max_jump_share: float = 0.3  # of the blocks: beyond, little is quiet enough to show a drift
    crowded_jump_share: float = 0.4  # ... or up to this many, where the rest is as even as this:
    crowded_drift_t: float = 6.0  # p of 0.0003
    min_quiet_drift_t: float = 4.5  # p of 0.001: without its jumps a leak is smooth
    min_quiet_steps: int = 10
    min_net: float = 0.5  # of the drift must be left in the floor itself
    # --- against the series' own past -----------------------------------------------------------------
    min_over_falls: float = 1.5  # growth over the largest fall of the same length seen before
    # ... or a ramp that is too smooth to be this noise, whose moves are jumps:
    smooth_r2: float = 0.95
    smooth_steps: int = 10
    smooth_over_falls: float = 0.25
    smooth_drift_t: float = 8.0  # no fall matters beside a ramp as even as this
    max_past_jumps: float = (
        0.1  # of the blocks before: with more, only the sizes of the jumps are a yardstick
    )
    min_over_cycle: float = 1.2  # growth over the largest slow fall before: below, it may be the next cycle
    # --- floor -------------------------------------------------------------------------------------
    tail_share: float = 0.1  # the end confirms that memory was not given back; it is not growth itself
    windows: int = 64
    plateau_rest: float = 0.15  # slope after the ramp over slope of the ramp: below, it has levelled off


DEFAULT = Thresholds()
