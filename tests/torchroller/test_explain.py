"""explain() on real models, through torch.compile."""

import json

import pytest
import torch

import torchroller
from torchroller.__main__ import main
from torchroller.backend import roller


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.norm = torch.nn.Linear(32, 64), torch.nn.LayerNorm(64)

    def forward(self, x):
        hidden = torch.nn.functional.gelu(self.up(x))  # the line that the report must show
        return self.norm(hidden).sort(-1).values


def test_explain_names_kernels_lines_and_extern_calls(tmp_path):
    torch.manual_seed(0)
    net = Net().eval()
    with torch.inference_mode():
        made = torchroller.explain(net, torch.randn(16, 32))
    assert made.name == "Net"
    assert made.graphs == 1 and made.launches >= 2 and made.compile_s > 0
    text = str(made)
    assert "test_explain.py" in text and "torch.nn.functional.gelu(self.up(x))" in text
    assert [e.target for e in made.externs] == ["aten.sort.default"]
    assert "test_explain.py" in made.externs[0].where[0]
    assert made.predicted_s > 0
    assert all(k.source.count("@triton.jit") == 1 for k in made.kernels)
    assert made.flops[0] >= 2 * 16 * 32 * 64
    page = made.save(tmp_path / "net.html").read_text()
    assert "aten.sort.default" in page and "@triton.jit" in page


def test_explain_measures_where_asked():
    with torch.inference_mode():  # weights made in here have no version counter: the plan is made twice
        made = torchroller.explain(Net().eval(), torch.randn(16, 32), measure=True, name="net")
    assert made.graphs == 1
    assert made.call_s > 0 and made.eager_s > 0
    assert "x eager" in str(made)


def test_mode_and_options_exclude_each_other():
    with pytest.raises(ValueError, match=r"mode 'max-autotune' and options \['topk'\] exclude"):
        torchroller.explain(torch.relu, torch.randn(4), mode="max-autotune", topk=2)


def test_the_last_report_covers_what_was_compiled_before():
    torch._dynamo.reset()
    net = torch.compile(lambda x: torch.tanh(x) * 3 + 1, backend=roller)
    net(torch.randn(8, 8))
    assert any("tanh" in str(k.expr) for k in torchroller.last_report().kernels)


def test_training_shows_forward_and_backward():
    torch._dynamo.reset()
    net = Net()
    made = torchroller.explain(lambda x: net.norm(net.up(x)).sum().backward(), torch.randn(4, 32))
    assert made.graphs >= 2


def test_the_command_explains_a_file(tmp_path, capsys):
    script = tmp_path / "net.py"
    script.write_text(
        "import torch\n\n\ndef model(x):\n    return torch.softmax(x * 2, -1)\n\n\ninputs = (torch.randn(64, 128),)\n"
    )
    page = tmp_path / "net.html"
    assert main(["explain", str(script), "--html", str(page), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["name"] == "net" and made["kernels"][0]["program"]["bound_by"]
    assert page.read_text().startswith("<!doctype html>")
    bad = tmp_path / "bad.py"
    bad.write_text("x = 1\n")
    assert main(["explain", str(bad)]) == 2
    assert "defines neither make() nor model and inputs" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2", "vit", "llama"])
def test_built_in_models_run_mostly_in_our_kernels(name, capsys):
    pytest.importorskip("transformers")
    assert main(["explain", name, "--layers", "1", "--tokens", "32", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["flops"]["ours"] > 0.5 * made["flops"]["known"]
