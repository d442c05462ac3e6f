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
            assert r["rows"] or r["skipped"], (name, r["case"])
