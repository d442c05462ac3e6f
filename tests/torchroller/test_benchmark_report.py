"""The documents made from figures: everything measured is shown, losing rows too; nothing is made up."""

import importlib.util
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def load(name):
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


report = load("report")


def row(ms, spread=0.05, **more):
    s = ms * 1e-3
    return {"median_s": s, "low_s": s * (1 - spread / 2), "high_s": s * (1 + spread / 2), "rounds": 3,
            "samples_s": [s, s, s], "compile_s": 1.5, "error": 1e-6, "notes": "", **more}  # fmt: skip


def case(name, group, skipped=None, **rows):
    return {"case": name, "group": group, "bar": "", "flops": 1e9, "bytes": 0, "load": 0.1,
            "compiled_alone": group == "model", "rows": {k.replace("_", "-"): v for k, v in rows.items()},
            "skipped": skipped or {}}  # fmt: skip


def machine(processor="Test CPU", when="2026-01-02", **more):
    return {"processor": processor, "isa": "znver3", "cores": 2, "threads": 2, "system": "Linux", "python": "3.11",
            "versions": {"torch": "2.13.0"}, "when": when, "load": 0.1, "commit": "abc", **more}  # fmt: skip


@pytest.fixture
def made(tmp_path):
    results = tmp_path / "results"
    results.mkdir()
    figures = {
        "machine": machine(),
        "results": [
            case("mm_a", "matmul", eager=row(2.0), inductor_max=row(1.0), roller=row(0.5)),
            case("bert", "model", eager=row(100), openvino=row(50), roller=row(80, spread=0.5)),
            case("mm_b", "matmul", {"openvino": "no | operator"}, eager=row(1.0), roller=row(3.0)),
        ],
    }
    (results / "new.json").write_text(json.dumps(figures))
    older = {"machine": machine("Old GPU host", "2025-01-01", device="H100"),
             "results": [case("M0", "matmul", eager=row(2.0), roller=row(1.0))]}  # fmt: skip
    (results / "old.json").write_text(json.dumps(older))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.START}\nstale\n{report.END}\nafter\n")
    return results, tmp_path / "docs", readme


def run(made, *more):
    return report.main(["--results", str(made[0]), "--docs", str(made[1]), "--readme", str(made[2]), *more])


def test_every_row_is_shown_and_groups_stay_together(made):
    assert run(made) == 0
    text = (made[1] / "benchmarks.md").read_text()
    assert text.index("Test CPU (znver3), 2 cores") < text.index(
        "H100 (Old GPU host, 2 cores)"
    )  # newest first
    assert text.index("| mm_a") < text.index("| mm_b") < text.index("| bert")
    assert "| mm_a | 2.00 | 1.00 | **0.500** | 2.00 | 1e-06 |" in text
    assert "| mm_b | **1.00** | – | 3.00 | 0.33 | 1e-06 |" in text
    assert "| bert | 100 | **50.0** | 80.0 ~ | 0.62 | 1e-06 |" in text
    assert "ahead in 1 of 3 cases, within 10 % in 0 more and behind by more in 2; geometric mean 0.75" in text
    assert "OpenVINO, mm_b: no ¦ operator" in text
    assert "from empty caches" in text and "| bert | 1.5 | 1.5 | 1.5 |" in text
    for part in ("2026-01-02", "2 threads", "torch 2.13.0", "Load average before the run: 0.1", "Commit abc"):
        assert part in text


def test_the_readme_gets_the_newest_cpu_run_and_keeps_the_rest(made):
    run(made)
    text = made[2].read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "stale" not in text
    assert "Measured on Test CPU (znver3), 2 cores" in text and "| bert |" in text and "| mm_a" not in text


def test_a_second_run_changes_nothing(made, capsys):
    assert run(made, "--check") == 1
    assert "not what the figures give" in capsys.readouterr().err
    run(made)
    capsys.readouterr()
    assert run(made) == 0 and run(made, "--check") == 0
    assert capsys.readouterr().out == ""


def test_pictures_are_svg_with_a_bar_for_each_contender(made):
    run(made)
    assert {p.name for p in (made[1] / "images").iterdir()} == {"bench.svg", "bench-new.svg", "bench-old.svg"}
    tree = ElementTree.parse(made[1] / "images" / "bench-new.svg")
    tips = [t.text for t in tree.iter("{http://www.w3.org/2000/svg}title")]
    assert sorted(tips) == [
        "Inductor max-autotune: 2.00 x eager", "OpenVINO: 2.00 x eager", "roller: 0.33 x eager",
        "roller: 1.25 x eager", "roller: 4.00 x eager",
    ]  # fmt: skip
    height = float(tree.getroot().get("height"))
    for rect in tree.iter("{http://www.w3.org/2000/svg}rect"):
        if rect.get("width") != "100%":
            assert (
                float(rect.get("width")) >= 0 and float(rect.get("y")) + float(rect.get("height")) <= height
            )
    assert "prefers-color-scheme:dark" in (made[1] / "images" / "bench.svg").read_text()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda r, _: (r / "new.json").write_text("{"), "new.json is no file of figures"),
        (lambda r, _: [f.unlink() for f in r.glob("*.json")], "holds no figures"),
        (lambda _, readme: readme.write_text("no markers"), "the README must hold"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(made, capsys, break_it, message):
    break_it(made[0], made[2])
    assert run(made) == 2
    assert message in capsys.readouterr().err
    assert not (made[1] / "benchmarks.md").exists()


def test_the_repository_s_documents_are_what_its_figures_give():
    assert report.main(["--check"]) == 0


def test_every_file_of_figures_names_its_machine():
    for name, data in report.read(ROOT / "benchmarks" / "results"):
        for key in ("processor", "cores", "threads", "when", "versions"):
            assert data["machine"].get(key), (name, key)
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", data["machine"]["when"])
        for r in data["results"]:
            assert r["rows"] or r["skipped"] or r["ranking"], (name, r["case"])


def operator(number, group, ratio=None, fastest="random", **rows):
    found = {
        **case(f"{number}/8", group, **rows),
        "operator": number,
        "scale": 8,
        "shape": f"{number} {group}",
    }
    if ratio is not None:
        programs = [{"kind": k, "program": p, "predicted_s": 1.0, "measured_s": s}
                    for k, p, s in (("top", "a64", 1.0), (fastest, "b32", ratio))]  # fmt: skip
        found["ranking"] = {
            "kernel": "k",
            "ratio": ratio,
            "fastest": programs[1],
            "programs": programs,
            "failed": 0,
        }
    return found


@pytest.fixture
def operators(made):
    results = [
        operator(
            "C0", "conv2d", 0.80, eager=row(2.0), inductor_max=row(1.0), roller=row(4.0, compile_s=0.25)
        ),
        operator("C1", "conv2d", 0.95, eager=row(2.0), roller=row(1.0, compile_s=0.5)),
        operator("M0", "matmul", 1.0, "top", eager=row(1.0), roller=row(1.05, compile_s=0.25)),
        operator("M1", "matmul"),
    ]
    results[-1]["ranking"] = {"failure": "M1/8: no kernel of ours | at all"}
    data = {
        "machine": machine(first_compile_s={"roller": 3.0}, clock="wall"),
        "kind": "operators",
        "results": results,
    }
    (made[0] / "operators-test.json").write_text(json.dumps(data))
    return made


def test_operators_are_shown_by_class_with_the_losing_ones(operators):
    assert run(operators) == 0
    text = (operators[1] / "benchmarks.md").read_text()
    assert "within 10 % of the fastest of its rivals for 67% of 3 operators (goal 90 %)" in text
    assert "geometric mean 0.913 (goal 0.95), worst 0.80" in text
    assert "ahead for 33% of 3 operators (goal 60 %) and within 10 % or ahead for 67% (goal 90 %)" in text
    assert (
        "compiles 3 operators from an empty cache in 1.0 s (goal 60 s for 119), after 3.0 s for imports"
        in text
    )
    assert "| convolution | 2 | 50% | 0.87 | 50% | 50% | 0.71 | 0.8 |" in text
    assert "| matrix product | 2 | 100% | 1.00 | 0% | 100% | 0.95 | 0.2 |" in text
    assert "| all | 4 | 67% | 0.91 | 33% | 67% | 0.78 | 1.0 |" in text
    assert "| C0 conv2d | 8 | 2.00 | 1.00 | 4.00 | 0.25 | 0.80 | random `b32` |" in text
    assert "| M0 matmul | 8 | 1.00 | – | 1.05 | 0.95 | 1.00 |  |" in text
    assert "| M1 matmul | 8 | – | – | – | – | – |  |" in text
    assert "- M1/8: no kernel of ours ¦ at all" in text


def test_operators_have_a_curve_for_each_claim_and_leave_the_readme_alone(operators):
    run(operators)
    tree = ElementTree.parse(operators[1] / "images" / "bench-operators-test.svg")
    svg = "{http://www.w3.org/2000/svg}"
    assert len(list(tree.iter(f"{svg}polyline"))) == 2
    dots = [float(c.find(f"{svg}title").text) for c in tree.iter(f"{svg}circle")]
    assert dots == [1.0, 0.95, 0.8, 2.0, 0.95, 0.25]  # each curve falls
    assert all(
        0 <= float(c.get("cx")) <= 900 and 0 <= float(c.get("cy")) <= 380 for c in tree.iter(f"{svg}circle")
    )
    assert "bench-operators" not in operators[2].read_text() and "| bert |" in operators[2].read_text()


def test_cases_measured_again_replace_theirs_and_the_others_keep_their_date(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    bench = load("bench")
    first, second = (c.name for c in bench.CASES[:2])
    earlier = {
        "machine": machine(),
        "results": [case(first, "matmul", roller=row(2.0)), case(second, "matmul", roller=row(3.0))],
    }
    found = bench.merged(earlier, [case(second, "matmul", roller=row(1.0))])
    assert [r["case"] for r in found] == [first, second]
    assert found[0]["measured"] == {"when": "2026-01-02", "commit": "abc"} and "measured" not in found[1]
    assert found[1]["rows"]["roller"]["median_s"] == 1e-3
    text = report.section("x", {"machine": machine(when="2026-02-03", commit="def"), "results": found})
    assert f"Measured earlier, on 2026-01-02 with commit abc: {first}." in text
