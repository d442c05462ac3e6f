"""benchmarks/gpu.py as far as it runs without a GPU: the plan, a dry run, its figures, wrong results."""

import json
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def gpu():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import gpu

        yield gpu
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def kept_caches(gpu, monkeypatch):
    """A run starts from empty caches; the tests' own stay as they are."""
    monkeypatch.setattr(gpu, "cold_caches", lambda: SimpleNamespace(cleanup=lambda: None))


def test_the_plan_is_the_paper_s_operators_the_product_and_the_models(gpu):
    full = gpu.jobs(tiny=False)
    assert Counter(j.part for j in full) == {"operators": 119, "matmul": 1, "model": 4}
    product = next(j for j in full if j.part == "matmul")
    assert (
        product.name == "bf16_8192x8192x8192"
        and product.flops == 2 * 8192**3
        and product.dtype == torch.bfloat16
    )
    m3 = next(j for j in full if j.name == "M3")
    assert m3.flops == 2 * 65536 * 4096 * 1024
    assert [j.name for j in gpu.jobs(tiny=True)][:119] == [j.name for j in full][:119]


def test_without_a_gpu_it_says_what_to_do(gpu, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main([]) == 2
    assert "--dry-run checks the command" in capsys.readouterr().err


def test_a_dry_run_writes_figures_that_the_documents_take(gpu, tmp_path, capsys, kept_caches):
    path = tmp_path / "gpu.json"
    assert gpu.main(["--dry-run", "--only", "E0", "M0", "matmul", "--json", str(path)]) == 0
    said = capsys.readouterr().out
    assert "[1/3" in said and "[3/3" in said and "compile" in said
    data = json.loads(path.read_text())
    assert "dry run" in data["machine"]["device"] and data["machine"]["versions"]["torch"]
    for result in data["results"]:
        assert set(result["rows"]) == {"eager", "roller"} and not result["skipped"]
        assert len(result["rows"]["roller"]["samples_s"]) == 2
        assert result["rows"]["roller"]["error"] < 3e-2
    import report

    name, read = report.read(tmp_path)[0]
    assert "dry run" in report.section(name, read)


def test_a_wrong_result_is_not_timed_and_fails_the_run(gpu, tmp_path, capsys, kept_caches, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda fn, **how: lambda *x: fn(*x) * 1.1)
    assert gpu.main(["--dry-run", "--only", "E0", "--json", str(tmp_path / "x.json")]) == 1
    said = capsys.readouterr().out
    assert "WRONG RESULT E0 by roller: WRONG: error 1.0e-01" in said
    (result,) = json.loads((tmp_path / "x.json").read_text())["results"]
    assert set(result["rows"]) == {"eager"}


def test_errors_see_infinities_and_shapes(gpu):
    exact = torch.tensor([1.0, float("inf"), -4.0], dtype=torch.float64)
    assert gpu.error_of(torch.tensor([1.0, float("inf"), -4.0]), exact) == 0
    assert gpu.error_of(torch.tensor([1.0, 2.0, -4.0]), exact) == float("inf")
    assert gpu.error_of(torch.tensor([1.0, float("inf")]), exact) == float("inf")
    assert gpu.error_of(torch.tensor([1.4, float("inf"), -4.0]), exact) == pytest.approx(0.1)


@pytest.mark.slow
def test_the_models_of_a_dry_run(gpu, tmp_path, kept_caches):
    pytest.importorskip("transformers")
    path = tmp_path / "gpu.json"
    assert gpu.main(["--dry-run", "--only", "model", "--json", str(path)]) == 0
    for result in json.loads(path.read_text())["results"]:
        assert set(result["rows"]) == {"eager", "roller"}, result["skipped"]
