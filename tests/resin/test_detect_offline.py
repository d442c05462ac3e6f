"""`resin detect FILE`: formats, JSON, exit codes, errors, and the real traces where they are."""

from __future__ import annotations

import csv
import gzip
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from resin.cli import main
from resin.detect import judge_many
from resin.detect.files import TraceError, read_trace
from resin.simulate import inject_ramp

KEYS = {"entity", "verdict", "growth_class", "start", "end", "slope_per_hour", "severity", "confidence"}


def rows(iso: bool = False):
    for k in range(400):
        time = f"2026-01-01T{k // 60:02d}:{k % 60:02d}:00Z" if iso else str(k * 60)
        yield ("a", "train", time, str(10**9 + max(0, k - 150) * 2_000_000 + k % 3 * 1000))
        yield ("b", "train", time, str(10**9 + k % 7 * 1000))


def write(path: Path, found, header=("host", "process", "time", "bytes")) -> Path:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="") as file:
        csv.writer(file).writerows([header, *found])
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_leak_in_a_file_gives_exit_code_1_and_the_promised_json(tmp_path, capsys, name):
    assert main(["detect", str(write(tmp_path / name, rows())), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["entities"] == 2
    assert set(report) == {"entities", "findings"}
    [finding] = report["findings"]
    assert set(finding) == KEYS
    assert (finding["entity"], finding["verdict"], finding["growth_class"]) == ("a/train", "leak", "steady")
    assert finding["start"] == pytest.approx(150 * 60, abs=2400)
    assert finding["end"] == 399 * 60
    assert finding["slope_per_hour"] == pytest.approx(120e6, rel=0.05)


def test_iso_times_come_back_as_iso(tmp_path, capsys):
    assert main(["detect", str(write(tmp_path / "t.csv", rows(iso=True))), "--json"]) == 1
    [finding] = json.loads(capsys.readouterr().out)["findings"]
    assert finding["start"].startswith("2026-01-01T0")
    assert finding["end"] == "2026-01-01T06:39:00Z"


def test_no_leak_is_exit_code_0_and_text_says_so(tmp_path, capsys):
    path = write(tmp_path / "t.csv", [r for r in rows() if r[0] == "b"])
    assert main(["detect", str(path)]) == 0
    assert "1 entities: 1 bounded" in capsys.readouterr().out


def test_text_gives_reasons(tmp_path, capsys):
    assert main(["detect", str(write(tmp_path / "t.csv", rows()))]) == 1
    out = capsys.readouterr().out
    assert "a/train: leak (steady) since" in out
    assert "none of it was given back" in out


def test_parquet(tmp_path, capsys):
    duckdb = pytest.importorskip("duckdb")
    source = write(tmp_path / "t.csv", rows())
    target = tmp_path / "t.parquet"
    with duckdb.connect() as connection:
        connection.execute(f"COPY (SELECT * FROM read_csv('{source}')) TO '{target}' (FORMAT parquet)")
    assert main(["detect", str(target), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["entity"] == "a/train"


def test_pods_layout_counts_in_minutes(tmp_path, capsys):
    found = [("p1", str(k), str(0.2 + max(0, k - 200) * 0.001)) for k in range(500)]
    path = write(tmp_path / "t.csv", found, header=("pod", "minute", "memory_utilisation"))
    assert main(["detect", str(path), "--json"]) == 1
    [finding] = json.loads(capsys.readouterr().out)["findings"]
    assert finding["start"] == pytest.approx(200, abs=25)
    assert finding["end"] == 499
    assert finding["slope_per_hour"] == pytest.approx(0.06, rel=0.05)


def lines(change=lambda row: row, header="host,process,time,bytes", comma=","):
    return "\n".join([header.replace(",", comma), *(comma.join(change(row)) for row in rows())]) + "\n"


def absent(row):
    names = ["NaN", "NA", "null", "", "None", "-", "inf", "-1"]
    return (*row[:3], names[int(row[2]) // 60 % 8] if int(row[2]) // 60 % 9 == 4 else row[3])


FORMS = {
    "other columns in another order": lines(lambda r: (r[3], "x", *r[2::-1]), "bytes,note,time,process,host"),
    "names in any case, blanks": lines(
        lambda r: (r[0], f" {r[1]} ", *r[2:]), "Host, Process, Timestamp , BYTES"
    ),
    "tabs": lines(comma="\t"),
    "semicolons": lines(comma=";"),
    "windows": "\ufeff" + lines().replace("\n", "\r\n"),
    "rows in any order": "\n".join([lines().splitlines()[0], *sorted(lines().splitlines()[1:], key=hash)]),
    "rows twice": lines() + "\n".join(lines().splitlines()[1:300]),
    "absent values": lines(absent),
    "powers of ten": lines(lambda r: (*r[:2], f"{float(r[2]):e}", f"{float(r[3]):e}")),
}


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS)
def test_traces_as_they_come(tmp_path, capsys, text):
    path = tmp_path / "trace.txt"
    path.write_text(text, encoding="utf-8")
    assert main(["detect", str(path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["entities"] == 2
    [finding] = report["findings"]
    assert (finding["entity"], finding["verdict"]) == ("a/train", "leak")
    assert finding["start"] == pytest.approx(150 * 60, abs=2400)
    assert finding["slope_per_hour"] == pytest.approx(120e6, rel=0.05)


@pytest.mark.parametrize("unit", [1e3, 1e6, 1e9])
def test_finer_clocks_come_back_in_their_unit(tmp_path, capsys, unit):
    since = 1_700_000_000
    path = tmp_path / "t.csv"
    path.write_text(lines(lambda r: (*r[:2], str(int((since + int(r[2])) * unit)), r[3])))
    assert main(["detect", str(path), "--json"]) == 1
    [finding] = json.loads(capsys.readouterr().out)["findings"]
    assert finding["start"] / unit == pytest.approx(since + 150 * 60, abs=2400)
    assert finding["slope_per_hour"] == pytest.approx(120e6, rel=0.05)


def test_content_tells_gzip_and_parquet_not_the_name(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    source = write(tmp_path / "t.csv", rows())
    (tmp_path / "t.data").write_bytes(gzip.compress(source.read_bytes()))
    with duckdb.connect() as connection:
        connection.execute(
            f"COPY (SELECT * FROM read_csv('{source}')) TO '{tmp_path}/t.bin' (FORMAT parquet)"
        )
    first, *others = (judge_many(read_trace(tmp_path / n).series) for n in ("t.csv", "t.data", "t.bin"))
    assert all(other == first for other in others)


def test_utilisation_in_per_cent_is_the_same_leak(tmp_path):
    shares = [("p1", str(k), 0.2 + max(0, k - 200) * 0.001) for k in range(500)]
    header = ("pod", "minute", "memory_utilization")
    one = write(tmp_path / "share.csv", shares, header)
    cents = write(tmp_path / "cent.csv", [(p, m, round(100 * v, 1)) for p, m, v in shares], header)
    [share], [cent] = (judge_many(read_trace(path).series) for path in (one, cents))
    assert cent.verdict == share.verdict == "leak"
    assert cent.slope_bytes_per_hour == pytest.approx(100 * share.slope_bytes_per_hour, rel=0.05)
    assert cent.hours_to_limit == pytest.approx(share.hours_to_limit, rel=0.05)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "found columns a, b; columns must hold host, process, time, bytes or pod"),
        ("", "empty file"),
        ("host,process,time,bytes\nh,p,noon,5\n", "line 2: time 'noon', value '5'"),
        ("host,process,time,bytes\nh,p\n", "line 2: 2 columns where the header has 4"),
    ],
)
def test_unusable_files_are_told(tmp_path, capsys, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(TraceError, match="t.csv"):
        read_trace(path)
    assert main(["detect", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_missing_and_broken_files_are_told(tmp_path, capsys):
    assert main(["detect", str(tmp_path / "no.csv")]) == 2
    (tmp_path / "bad.csv.gz").write_bytes(b"no gzip")
    assert main(["detect", str(tmp_path / "bad.csv.gz")]) == 2
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    assert main(["detect", str(tmp_path / "bad.parquet")]) == 2
    assert capsys.readouterr().err.count("resin detect:") == 3


def traces() -> Path | None:
    named = os.environ.get("RESIN_TRACES")
    above = Path(__file__).resolve().parents[3:5]
    candidates = [Path(named)] if named else [d / "shared/data/genai_pods_dev.csv.gz" for d in above]
    return next((p for p in candidates if p.exists()), None)


@pytest.mark.skipif(traces() is None, reason="the real traces are not here (RESIN_TRACES)")
def test_real_traces(capsys):
    """102 containers of a real service: at most two are called leaks, and leaks put into them are found."""
    series = read_trace(traces()).series
    findings = judge_many(series)
    assert len(findings) == 102
    assert sum(f.verdict == "leak" for f in findings) <= 2
    long = [s for s, f in zip(series, findings) if len(s.times_s) > 1000 and f.verdict != "leak"]
    leaking = [inject_ramp(s, start_s=s.times_s[-1] - 4 * 3600.0, slope_per_hour=0.05) for s in long]
    found = judge_many(leaking)
    hits = [f for f in found if f.verdict == "leak"]
    assert len(hits) / len(leaking) >= 0.95
    slow = [inject_ramp(s, start_s=s.times_s[-1] - 4 * 3600.0, slope_per_hour=0.005) for s in long]
    assert sum(f.verdict == "leak" for f in judge_many(slow)) / len(slow) >= 0.9
    for s, f in zip(leaking, found):
        if f.verdict == "leak":
            assert f.slope_bytes_per_hour > 0
            assert f.start_s > s.times_s[0] + 0.5 * (s.times_s[-1] - s.times_s[0])
    assert main(["detect", str(traces()), "--json"]) == int(any(f.verdict == "leak" for f in findings))
    assert json.loads(capsys.readouterr().out)["entities"] == 102


def test_series_cut_short_do_not_raise():
    rng = np.random.default_rng(0)
    base = read_trace_series(rng)
    judge_many(replace(base, times_s=base.times_s[:n], values=base.values[:n]) for n in range(80))


def read_trace_series(rng):
    from resin.model import Entity, Series

    t = np.cumsum(rng.exponential(1.0, 80))
    return Series(Entity("h", "c"), "bytes", tuple(t.tolist()), tuple((1e9 * rng.random(80)).tolist()))
