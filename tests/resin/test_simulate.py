"""Simulation: the programs run, their marks are right, labelled series are what their labels say."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from resin.cli import main
from resin.simulate import CASES, culprit_lines, inject_ramp, labelled_series
from resin.simulate.corpus import PROGRAMS, by_name
from resin.simulate.run import Result
from resin.simulate.series import noise_slope


def test_every_program_is_a_case_and_has_its_marks():
    assert {c.name for c in CASES} == {p.stem for p in PROGRAMS.glob("*.py")}
    for case in CASES:
        assert bool(culprit_lines(case)) == case.leaks, case.name
    with pytest.raises(KeyError, match="there are: list_growth"):
        by_name("none")


@pytest.mark.parametrize("case", [c for c in CASES if c.needs is None], ids=lambda c: c.name)
def test_programs_end_by_themselves(case):
    if case.name in ("warm_up", "mapped_file", "copy_on_write", "page_cache"):
        pytest.skip("takes seconds before its loop begins; the slow test runs it")
    done = subprocess.run([sys.executable, str(case.path), "0.2"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_series_are_the_same_for_a_seed_and_what_the_label_says():
    a, b = labelled_series(14, seed=3), labelled_series(14, seed=3)
    assert a == b
    assert a != labelled_series(14, seed=4)
    for one in a:
        y = np.asarray(one.series.values)
        if one.leaks:
            before = np.asarray(one.series.times_s) < one.start_s
            assert y[-30:].min() > np.median(y[before]) if before.any() else True
        assert (one.start_s is not None) == one.leaks


def test_injected_ramp():
    series = labelled_series(2, seed=0)[1].series
    leaking = inject_ramp(series, start_s=series.times_s[360], slope_per_hour=1e6)
    added = np.asarray(leaking.values) - np.asarray(series.values)
    assert added[:360] == pytest.approx(0.0)
    assert added[-1] == pytest.approx((series.times_s[-1] - series.times_s[360]) / 3600.0 * 1e6)
    assert noise_slope(series) > 0
    assert noise_slope(inject_ramp(series, start_s=0.0, slope_per_hour=1e12), window_s=1e9) is None


def test_trace_for_detect(tmp_path, capsys):
    path = tmp_path / "t.csv.gz"
    assert main(["simulate", "trace", str(path), "--series", "7", "--seed", "2"]) == 0
    labels = json.loads((tmp_path / "t.csv.gz.labels.json").read_text())
    capsys.readouterr()
    assert main(["detect", str(path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["entities"] == 7
    assert {f["entity"] for f in found["findings"] if f["verdict"] == "leak"} == {
        name for name, label in labels.items() if label["leaks"]
    }


def test_list_and_unknown_names(capsys):
    assert main(["simulate", "list"]) == 0
    assert "list_growth" in capsys.readouterr().out
    assert main(["simulate", "run", "none"]) == 2
    assert main(["simulate", "judge", "none"]) == 2


def bench():
    path = Path(__file__).parents[2] / "benchmarks" / "resin_bench.py"
    spec = importlib.util.spec_from_file_location("benchmarks_resin_bench", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_culprit_figure_counts_every_leak_of_its_table():
    """Also leaks whose processes others own, leaks of C code, and leaks that were not found."""
    said = {
        "list_growth": ("leak", 1),
        "helper_processes": ("leak", 3),
        "native_malloc": ("leak", None),
        "leaking_child": ("leak", 4),
        "method_cache": ("bounded", None),
        "flat_trainer": ("bounded", None),
    }
    results = [
        Result(by_name(name), verdict, "steady", None, rank, None, 60.0, (), ())
        for name, (verdict, rank) in said.items()
    ]
    figures = bench().corpus_figures(results, 60.0)
    assert figures["line_in_top_three"] == 2 / 5
    assert figures["recall"] == 4 / 5
    assert [row["line_rank"] for row in figures["results"]] == [rank for _, rank in said.values()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["list_growth", "fragmentation", "lru_plateau", "flat_trainer"])
def test_programs_under_resin(name):
    from resin.simulate.run import run_case

    result = run_case(by_name(name), seconds=40.0)
    assert result.right_verdict, result
    if result.case.leaks:
        assert result.line_rank is not None
        assert result.line_rank <= 3
