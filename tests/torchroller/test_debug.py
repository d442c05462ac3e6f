"""The debugging switches: stages on disk, decisions in the log, a runnable script per kernel."""

import os
import re
import subprocess
import sys

import pytest
import torch

import torchroller
from torchroller import backend, debug
from torchroller.reference import literal, references

STAGES = [
    "0_graph.txt",
    "1_lowered.txt",
    "2_fused.txt",
    "3_expressions.txt",
    "4_ranked",
    "5_triton",
    "6_plan.txt",
]

PROGRAM = """
import torch

def net(x, w):
    return torch.nn.functional.gelu(x @ w).sort(-1).values

print(tuple(torch.compile(net, backend="roller")(torch.randn(32, 48), torch.randn(48, 64)).shape))
"""


def compiled(fn, *inputs, **options):
    """The plans that compiling and calling `fn` made."""
    torch._dynamo.reset()
    before = [id(p) for p in backend.last_plans()]
    with torch.no_grad():
        torch.compile(fn, backend=backend.roller, options=options)(*inputs)
    return [p for p in backend.last_plans() if id(p) not in before]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A program run with both of PyTorch's switches: (its folder, what it printed)."""
    folder = tmp_path_factory.mktemp("debug")
    (folder / "program.py").write_text(PROGRAM)
    switches = {
        "TORCH_COMPILE_DEBUG": "1",
        "TORCH_COMPILE_DEBUG_DIR": str(folder),
        "TORCH_LOGS": "+torchroller",
    }
    ran = subprocess.run([sys.executable, folder / "program.py"], env={**os.environ, **switches}, check=True,
                         capture_output=True, text=True)  # fmt: skip
    assert ran.stdout.strip() == "(32, 64)"
    return folder, ran.stderr


def test_every_stage_is_written_in_order(told):
    (graph,) = told[0].glob("torch_compile_debug/run_*/torchroller/graph_0")
    assert sorted(p.name for p in graph.iterdir()) == STAGES
    text = {p.name: p.read_text() for p in graph.glob("*.txt")}
    assert "torch.ops.aten.mm.default" in text["0_graph.txt"] and "-> float32[32, 64]" in text["0_graph.txt"]
    assert "program.py:5 in net: return torch.nn" in text["0_graph.txt"]
    assert "2 of 3 graph nodes lowered, 1 extern calls" in text["1_lowered.txt"]
    assert re.search(
        r"extern aten.sort.default \(sort\) of %\d+: ATen's selection is faster", text["1_lowered.txt"]
    )
    assert "kernel 0 (dot)  axes i0:32 i1:64 k:48r" in text["2_fused.txt"]
    assert "dot v0 v1 over r0" in text["3_expressions.txt"] and "t0=arg0" in text["3_expressions.txt"]
    assert "plan: 1 launches, 1 extern calls" in text["6_plan.txt"]
    (ranked,) = (graph / "4_ranked").iterdir()
    found = ranked.read_text()
    assert found.count("<- chosen") == 1 and found.count("# rank ") == 10 and "predicted" in found
    (source,) = (graph / "5_triton").iterdir()
    assert ranked.stem == source.stem and "@triton.jit" in source.read_text()


def test_decisions_are_told(told):
    lines = [line for line in told[1].splitlines() if "torchroller/debug.py" in line]
    text = "\n".join(lines)
    for part in (
        "1 launches of 1 kernels, 1 extern calls; 2 of 3 nodes lowered",
        "fused_mm_gelu x 1: from mm, gelu",
        "bound by compute; rank 1 of 10",
        "extern aten.sort.default (sort): ATen's selection is faster",
    ):
        assert part in text


def test_nothing_is_written_or_searched_unless_asked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TORCH_COMPILE_DEBUG", raising=False)
    compiled(lambda x: x.relu(), torch.randn(64))
    assert not list(tmp_path.iterdir())
    with debug.graph(torch.fx.symbolic_trace(torch.nn.ReLU())):
        debug.stage("lowered", lambda: pytest.fail("made a text that nobody wants"))


def test_a_dump_that_fails_is_told_and_harmless(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TORCH_COMPILE_DEBUG", "1")
    monkeypatch.setattr(torch._dynamo.utils, "get_debug_dir", lambda: str(tmp_path))
    with debug.graph(torch.fx.symbolic_trace(torch.nn.ReLU())):
        debug.stage("plan", lambda: 1 / 0)
    assert "stage 'plan' was not written: ZeroDivisionError" in caplog.text
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(torch._dynamo.utils, "get_debug_dir", lambda: str(tmp_path / "file"))
    with debug.graph(torch.fx.symbolic_trace(torch.nn.ReLU())):
        debug.stage("plan", lambda: pytest.fail("there is no folder to write to"))
    assert "TORCH_COMPILE_DEBUG writes nothing" in caplog.text


# -- scripts --------------------------------------------------------------------------------------


class Net(torch.nn.Module):
    """A packed product with an epilogue, a softmax, an embedding."""

    def __init__(self):
        super().__init__()
        self.table, self.linear = torch.nn.Embedding(50, 24), torch.nn.Linear(24, 40)

    def forward(self, ids):
        return torch.nn.functional.gelu(self.linear(self.table(ids))).softmax(-1)


def run(script, **environment):
    return subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_scripts_run_and_find_a_wrong_kernel(tmp_path):
    torch.manual_seed(0)
    plans = compiled(Net().eval(), torch.randint(0, 50, (3, 7)))
    scripts = torchroller.reproducer(tmp_path / "kernels", plans)
    assert len(scripts) == len({x.kernel.source.text for x in plans[0].launches}) >= 2
    texts = {s: s.read_text() for s in scripts}
    assert not any("No ATen reference" in t for t in texts.values())
    assert any("packed(t" in t for t in texts.values()) and any("aten.embedding" in t for t in texts.values())
    for script in scripts:
        ran = run(script)
        assert ran.returncode == 0, ran.stderr + ran.stdout
        assert re.search(r"largest error [\d.e+-]+ of the largest magnitude, allowed", ran.stdout)
    softmax, text = next((s, t) for s, t in texts.items() if "aten._softmax" in t)
    broken = re.sub(r"( +)tl\.store\((.*), (v\d+)([,)])", r"\1tl.store(\2, \3 * 1.01\4", text)
    assert broken != text
    softmax.write_text(broken)
    ran = run(softmax)
    assert ran.returncode == 1 and "largest error 1.0" in ran.stdout, ran.stderr


def test_a_kernel_without_a_counterpart_is_compared_with_the_interpreter(tmp_path, monkeypatch):
    (plan,) = compiled(lambda x: (x * 2).softmax(-1), torch.randn(4, 33))
    monkeypatch.setattr(backend, "graph_of", lambda plan: None)
    (script,) = torchroller.reproducer(tmp_path, [plan])
    assert "No ATen reference: the graph of this plan is not kept" in script.read_text()
    ran = run(script)
    assert ran.returncode == 0 and "largest error" in ran.stdout, ran.stderr


def test_references_start_where_the_kernel_reads():
    (plan,) = compiled(lambda x, y: (x.t() + y).relu().sum(0), torch.randn(5, 6), torch.randn(6, 5))
    ((_, reference),) = references(*backend.graph_of(plan))
    text = "\n".join(reference.lines)
    assert not reference.missing
    assert "torch.as_strided(t0, " in text and "torch.ops.aten.relu.default(add)" in text
    assert [name for name, _ in reference.results] == ["sum_1"]


def test_a_reference_uses_everything_that_the_kernel_reads():
    """argmax reads its operand and where that is NaN: the second is no value of the user's graph."""
    (plan,) = compiled(lambda x: (x @ x).tanh().argmax(-1), torch.randn(8, 8))
    for kernel, reference in references(*backend.graph_of(plan)):
        used = [t for t in kernel.outputs] + re.findall(r"as_strided\((t\d+)", "\n".join(reference.lines))
        assert reference.missing or set(used) == {f"t{i}" for i in range(len(kernel.buffers))}


def test_random_numbers_have_no_reference():
    def dropped(x):
        return torch.nn.functional.dropout(x, 0.5) * 2

    for plan in compiled(dropped, torch.randn(64, 64)):
        for _, reference in references(*backend.graph_of(plan)):
            assert "torch.ops.aten.rand" not in "\n".join(reference.lines)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float("inf"), "float('inf')"),
        ((1,), "(1,)"),
        ([1, None], "[1, None]"),
        (torch.float16, "torch.float16"),
        (torch.device("cpu"), "DEVICE"),
        (torch.contiguous_format, "torch.contiguous_format"),
    ],
)
def test_arguments_are_python(value, text):
    assert literal(value) == text


def test_without_kernels_it_says_why(tmp_path):
    with pytest.raises(ValueError, match=r"compile and call a model.*0 plans"):
        torchroller.reproducer(tmp_path, [])
