"""The functions that users call: sparsify and its options, saving, reports, the command line,
torch.compile."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

import torchsparta
from torchsparta import TeSA
from torchsparta.__main__ import main
from torchsparta.api import difference

pytestmark = pytest.mark.filterwarnings("ignore")


def mlp():
    return nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Dropout(0.1), nn.Linear(24, 6)).eval()


def half_rows():
    mask = torch.ones(24, 12)
    mask[::2] = 0
    return {"0": {"weight": mask, "bias": mask[:, 0]}}


@pytest.fixture
def x():
    return torch.randn(5, 12)


def test_same_signature_and_smaller(x):
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    fast = torchsparta.sparsify(model, half_rows(), (x,), verify=True)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    torch.testing.assert_close(fast(x), torchsparta.masked_model(model, torchsparta.from_nni(half_rows()))(x))
    assert fast.get_submodule("0").weight.shape == (12, 12)
    assert fast.get_submodule("3").weight.shape == (6, 12)


def test_in_place(x):
    model = mlp()
    want = torchsparta.masked_model(model, torchsparta.from_nni(half_rows()))(x)
    assert torchsparta.sparsify_(model, half_rows(), (x,)) is model
    torch.testing.assert_close(model(x), want)
    assert sum(p.numel() for p in model.parameters()) == 12 * 12 + 12 + 6 * 12 + 6
    assert "0" in str(torchsparta.report(model))


def test_keyword_inputs(x):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 4)

        def forward(self, a, *, scale=None):
            return {"out": self.fc(a) * scale}

    model, scale = Net(), torch.tensor(2.0)
    tesa = torchsparta.from_nni({"fc": {"weight": torch.eye(4, 12)}})
    fast = torchsparta.sparsify(model, tesa, (x,), {"scale": scale})
    got = fast(x, scale=scale)
    assert difference(torchsparta.masked_model(model, tesa)(x, scale=scale), got) < 1e-6
    assert list(got) == ["out"]


def test_other_shapes_are_refused_with_the_way_out(x):
    fast = torchsparta.sparsify(mlp(), half_rows(), (x,))
    with pytest.raises(
        torchsparta.SpartaError, match=r"shape \[\(5, 12\)\], got \[\(7, 12\)\].*dynamic_shapes"
    ):
        fast(torch.randn(7, 12))


def test_open_sizes(x):
    model = mlp()
    fast = torchsparta.sparsify(model, half_rows(), (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    more = torch.randn(9, 12)
    torch.testing.assert_close(
        fast(more), torchsparta.masked_model(model, torchsparta.from_nni(half_rows()))(more)
    )


def test_example_inputs_must_be_a_tuple(x):
    with pytest.raises(torchsparta.CaptureError, match="must be a tuple.*Tensor"):
        torchsparta.sparsify(mlp(), half_rows(), x)


def test_data_dependent_control_flow_is_refused(x):
    class Branch(nn.Module):
        def forward(self, a):
            return a if a.sum() > 0 else -a

    with pytest.raises(torchsparta.CaptureError, match="could not capture Branch as one graph"):
        torchsparta.sparsify(Branch(), {}, (x,))


def test_training_keeps_masks_and_gradients_only_where_alive(x):
    torch.manual_seed(1)
    model = mlp()
    mask = (torch.rand(24, 12) < 0.5).float()
    mask[:4] = 0
    tesa = torchsparta.from_nni({"0": {"weight": mask}})
    fast = torchsparta.sparsify(model, tesa, (x,), trainable=True, verify=True)
    torch.testing.assert_close(fast(x), torchsparta.masked_model(model, tesa)(x))
    site = fast.get_submodule("0")
    optimizer = torch.optim.AdamW(fast.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        fast(x).square().sum().backward()
        assert bool((site.weight.grad[mask == 0] == 0).all())
        assert bool((site.weight.grad != 0).any())
        optimizer.step()
    assert bool((site.effective_weight()[mask == 0] == 0).all())
    assert not torch.allclose(fast(x), torchsparta.masked_model(model, tesa)(x))


@pytest.mark.parametrize("kind", ["rows", "fine", "dense"])
def test_save_and_load_without_nni(kind, x, tmp_path):
    mask = {
        "rows": half_rows()["0"]["weight"],
        "fine": (torch.rand(24, 12) < 0.2).float(),
        "dense": torch.ones(24, 12),
    }
    model = mlp()
    fast = torchsparta.sparsify(model, {"0": {"weight": mask[kind]}}, (x,))
    torchsparta.save(fast, tmp_path / "m.safetensors")
    code = (
        "import sys, torch, torchsparta\n"
        f"fast = torchsparta.load({str(tmp_path / 'm.safetensors')!r})\n"
        f"x = torch.load({str(tmp_path / 'x.pt')!r})\n"
        f"torch.save(fast(x), {str(tmp_path / 'y.pt')!r})\n"
        "assert 'nni' not in sys.modules\n"
    )
    torch.save(x, tmp_path / "x.pt")
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), fast(x))
    again = torchsparta.load(tmp_path / "m.safetensors")
    assert again.meta["sparta"] == fast.meta["sparta"]
    assert str(torchsparta.report(again, False)) == str(torchsparta.report(fast, False))


def test_saved_sizes_shrink_with_the_mask(x, tmp_path):
    sizes = {}
    for density in (1.0, 0.1):
        model = nn.Linear(256, 256)
        mask = (torch.rand(256, 256) < density).float()
        fast = torchsparta.sparsify(model, {"": {"weight": mask}}, (torch.randn(2, 256),))
        torchsparta.save(fast, tmp_path / "m.safetensors")
        sizes[density] = (tmp_path / "m.safetensors").stat().st_size
    assert sizes[0.1] < 0.2 * sizes[1.0]


def test_save_refuses_other_models(tmp_path):
    with pytest.raises(torchsparta.SpartaError, match="what sparsify\\(\\) returns, got a Linear"):
        torchsparta.save(nn.Linear(2, 2), tmp_path / "m")


def test_report_has_the_numbers(x):
    report = torchsparta.report(torchsparta.sparsify(mlp(), half_rows(), (x,)))
    first = report.rows[0]
    assert (first.shape_before, first.shape, first.format) == ((24, 12), (12, 12), "dense")
    assert (first.bytes_before, first.bytes) == (4 * (24 * 12 + 24), 4 * (12 * 12 + 12))
    assert (first.macs_before, first.macs) == (5 * 24 * 12, 5 * 12 * 12)
    assert "462 parameters, 234 of them alive" in str(report)
    page = report.html(torchsparta.propagate(mlp(), torchsparta.from_nni(half_rows()), (x,)))
    assert "<table>" in page and "0.weight" in page


def test_command_line(x, tmp_path, capsys):
    model = mlp()
    torch.export.save(torch.export.export(model, (x,)), tmp_path / "m.pt2")
    torch.save(half_rows(), tmp_path / "masks.pth")
    out = tmp_path / "sparse.safetensors"
    assert main(["convert", str(tmp_path / "m.pt2"), str(tmp_path / "masks.pth"), str(out), "--verify"]) == 0
    assert main(["report", str(out)]) == 0
    assert "12x12" in capsys.readouterr().out
    want = torchsparta.masked_model(model, torchsparta.from_nni(half_rows()))(x)
    torch.testing.assert_close(torchsparta.load(out)(x), want)
    assert main(["report", str(tmp_path / "masks.pth")]) == 1


def test_compile_backend(x):
    from torchsparta.backend import sparta

    torch._dynamo.reset()
    model = mlp()
    torchsparta.attach(model, torchsparta.from_nni(half_rows()))
    want = model(x).detach()
    compiled = torch.compile(model, backend=sparta, options={"inner": "eager"})
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), want)
        model[3].bias.add_(1.0)  # a changed parameter is not missed
        torch.testing.assert_close(compiled(x), want + 1.0)
    compiled(x).sum().backward()
    assert model[0].weight.grad is not None
    torch._dynamo.reset()


def test_compile_backend_with_specialised_layers():
    from torchsparta.backend import sparta
    from torchsparta.specialise.program import interpreting

    torch._dynamo.reset()
    side = 16 if interpreting() else 512
    model = nn.Sequential(nn.Linear(side, side), nn.GELU(), nn.Linear(side, side)).eval()
    x = torch.randn(64, side)
    tesa = torchsparta.from_nni({n: {"weight": (torch.rand(side, side) < 0.05).float()} for n in "02"})
    want = torchsparta.masked_model(model, tesa)(x).detach()
    compiled = torch.compile(torchsparta.attach(model, tesa), backend=sparta)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(compiled(x), want, rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_a_chooser_gets_the_site(x):
    from torchsparta.transform import DenseSite, register_chooser, unregister_chooser

    seen = []

    def chooser(site):
        seen.append(site)
        return DenseSite(site) if site.name == "0" else None

    register_chooser(chooser, priority=10)
    try:
        torchsparta.sparsify(mlp(), half_rows(), (x,))
    finally:
        unregister_chooser(chooser)
    assert [s.name for s in seen] == ["0", "3"]
    assert [e.kind for e in seen[0].epilogue] == ["gelu"]
    assert seen[0].input_shape == (5, 12) and seen[0].weight.shape == (12, 12)
    assert seen[0].tesa.density() == 1.0


def test_import_brings_nothing_heavy():
    code = "import sys, torchsparta; assert not {'torch', 'triton', 'nni', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_constant_given_by_the_user(x):
    model = mlp()
    code = torch.full((24, 12), 32)
    code[0] = -32
    tesa = {"0.weight": TeSA.from_codes((24, 12), code, torch.full((24, 12), 0.25))}
    fast = torchsparta.sparsify(model, tesa, (x,), verify=True)
    torch.testing.assert_close(fast(x), torchsparta.masked_model(model, tesa)(x))


def test_report_predicts_and_measures_each_layer():
    model, x = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32)).eval(), torch.randn(16, 64)
    masks = {"0": {"weight": (torch.rand(96, 64) < 0.1).float()}}
    fast = torchsparta.sparsify(model, masks, (x,))
    from torchsparta.specialise.program import interpreting

    for row in torchsparta.report(fast).rows:
        assert row.measured_s is None if interpreting() else 0 < row.measured_s < 10
        assert row.predicted_s is None or row.predicted_s > 0
    assert all(row.measured_s is None for row in torchsparta.report(fast, measure=False).rows)
    assert torchsparta.report(fast, measure=False).rows[0].reason


def test_report_as_a_rich_table(x):
    from rich.console import Console

    console = Console(width=240, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(torchsparta.report(torchsparta.sparsify(mlp(), half_rows(), (x,)), measure=False))
    text = console.export_text()
    assert "24x12" in text and "12x12" in text and "of them alive" in text


def test_report_page_draws_the_graph(x):
    tesa = torchsparta.from_nni(half_rows())
    plan = torchsparta.propagate(mlp(), tesa, (x,))
    page = torchsparta.report(torchsparta.sparsify(mlp(), tesa, (x,)), measure=False).html(plan)
    drawn = page.count('class="box')
    # input, linear, gelu, dropout, linear; PyTorch 2.14 leaves out a dropout that does nothing
    assert drawn in (4, 5) and page.count('class="edge"') == drawn - 1
    assert f"+{plan.gained()['3.weight']:,} by propagation" in page
    assert page.count("data:image/png;base64,") >= 8


def test_pictures_show_where_a_tensor_is_alive():
    import base64
    import zlib

    from torchsparta.pictures import ALIVE, PAPER, tesa_picture

    mask = torch.zeros(8, 8)
    mask[:4] = 1
    data = base64.b64decode(tesa_picture(TeSA.from_mask(mask)).split(",")[1])
    begin = data.index(b"IDAT") + 4
    rows = zlib.decompress(data[begin : data.index(b"IEND") - 8])
    assert tuple(rows[1:4]) == ALIVE and tuple(rows[-3:]) == PAPER


def test_bench_command(x, tmp_path, capsys):
    fast = torchsparta.sparsify(mlp(), {"0": {"weight": (torch.rand(24, 12) < 0.2).float()}}, (x,))
    torchsparta.save(fast, tmp_path / "m.safetensors")
    assert main(["bench", str(tmp_path / "m.safetensors"), "--rounds", "3"]) == 0
    printed = capsys.readouterr().out
    assert "dense" in printed and "sparse" in printed and "inputs 5x12" in printed
    assert main(["bench", str(tmp_path / "m.safetensors"), "--rounds", "1"]) == 1


def test_bench_takes_token_numbers(tmp_path):
    from torchsparta.race import race

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(7, 8), nn.Linear(8, 3)

        def forward(self, words):
            return self.out(self.table(words))

    fast = torchsparta.sparsify(Words(), {"out": {"weight": torch.eye(3, 8)}}, (torch.tensor([[1, 2, 3]]),))
    torchsparta.save(fast, tmp_path / "m.safetensors")
    found = race(tmp_path / "m.safetensors", rounds=2)
    assert found.worst_difference < 1e-6 and len(found.sparse_s) == 2


def test_packed_weights_count_as_parameters():
    # a packed weight lives in buffers: counting parameters alone would call a model smaller than it is
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 128)).eval()
    masks = {str(i): {"weight": (torch.rand_like(model[i].weight) < 0.1).float()} for i in (0, 2)}
    masks["0"]["weight"][:, 0] = masks["2"]["weight"][:, 0] = masks["2"]["weight"][0] = (
        1  # nothing disappears
    )
    masks["0"]["weight"][0] = masks["0"]["weight"][:, 0] = 1
    alive = int(sum(m["weight"].sum() for m in masks.values())) + 256 + 128
    fast = torchsparta.sparsify(model, torchsparta.from_nni(masks), (torch.randn(32, 256),))
    packed = [site for site in torchsparta.report(fast, measure=False).rows if site.format != "dense"]
    assert packed and fast.meta["sparta"].parameters == alive
