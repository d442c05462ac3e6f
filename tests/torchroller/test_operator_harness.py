"""benchmarks/operators.py: the scaled list, random rivals, a small run that is continued, what is refused."""

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from roller_devices import zen5_spec
from roller_expressions import matmul, pointwise

from torchroller.operators import read
from torchroller.search import construct, sample

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def harness():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import operators

        yield operators
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def quick(harness, monkeypatch):
    """Few rivals, and the tests' own caches."""
    monkeypatch.setattr(harness, "cold_caches", lambda: SimpleNamespace(cleanup=lambda: None))
    monkeypatch.setattr(harness.ranking, "TOP", 2)
    monkeypatch.setattr(harness.ranking, "RANDOM", 2)
    threads = torch.get_num_threads()
    yield harness
    torch.set_num_threads(threads)


def test_the_batch_is_divided_until_a_call_is_short(harness):
    sizes = {o.id: harness.divisor(o, 2) for o in read()}
    assert sizes["E1"] == 1 and sizes["M1"] == 1 and sizes["C0"] == 8
    for op in read():
        scale, expr = sizes[op.id], op.scaled(sizes[op.id]).expr()
        assert scale & (scale - 1) == 0
        assert expr.flops() <= 4e9 or op.scaled(2 * scale) == op.scaled(scale)
    assert harness.divisor(read()[0], 1) == 2 * harness.divisor(read()[0], 2)


def test_a_run_that_ends_early_has_seen_all_classes(harness):
    order = harness.in_turn(list(read()))
    assert sorted(o.id for o in order) == sorted(o.id for o in read())
    half = Counter(o.op for o in order[:60])
    whole = Counter(o.op for o in order)
    assert all(abs(half[k] - n / 2) <= 1 for k, n in whole.items())


def test_random_rivals_are_feasible_distinct_and_the_same_again():
    expr, device = matmul(512, 512, 512), zen5_spec()
    drawn = sample(expr, device, 40, seed=7)
    assert len({p.key for p in drawn}) == 40
    assert drawn == sample(expr, device, 40, seed=7) != sample(expr, device, 40, seed=8)
    for p in drawn:
        again = construct(expr, device, candidates=[{**p.block, **p.step}])
        assert again.best == p and not again.rejected
    few = sample(pointwise(100), device, 40)
    assert 1 <= len(few) < 40 and len({p.key for p in few}) == len(few)


def test_a_run_is_continued_where_it_stopped(quick, tmp_path, capsys):
    path = tmp_path / "operators.json"
    command = [
        "--only",
        "E19",
        "R3",
        "--parts",
        "ranking",
        "--rounds",
        "1",
        "--threads",
        "1",
        "--json",
        str(path),
    ]
    assert quick.main([*command, "--budget", "-1"]) == 0
    assert "2 operators are left" in capsys.readouterr().err and not path.exists()
    assert quick.main(["--only", "E19", *command[3:]]) == 0
    said = capsys.readouterr().out
    assert "[1/1" in said and "batch / 1" in said and "of the best of 4" in said
    (first,) = json.loads(path.read_text())["results"]
    found = first["ranking"]
    assert [p["kind"] for p in found["programs"]] == ["top", "top", "random", "random"]
    best = min(p["measured_s"] for p in found["programs"])
    assert found["ratio"] == pytest.approx(best / found["programs"][0]["measured_s"]) and found["failed"] == 0
    assert quick.main(command) == 0
    assert capsys.readouterr().out.count("of the best of") == 1  # R3 alone
    data = json.loads(path.read_text())
    assert [r["operator"] for r in data["results"]] == ["E19", "R3"] and data["results"][0] == first
    assert quick.main([*command, "--clock", "thread"]) == 2
    assert "clock" in capsys.readouterr().err


def test_what_is_refused(quick, capsys):
    for command, told in ((["--parts", "all"], "unknown: ['all']"), (["--only", "X1"], "no operator matches"),
                          (["--clock", "thread", "--threads", "2"], "needs --threads 1")):  # fmt: skip
        with pytest.raises(SystemExit):
            quick.main(command)
        assert told in capsys.readouterr().err
