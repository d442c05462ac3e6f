"""Reports: text, JSON and the page, from made-up plans and from the command line."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from roller_devices import zen5_spec
from roller_expressions import embedding, matmul, pointwise, softmax

from torchroller.__main__ import main
from torchroller.collect import collect, extern_flops, user_line
from torchroller.device import H100
from torchroller.expr import TensorExpr
from torchroller.report import ExternReport, KernelReport, Report
from torchroller.search import construct

ZEN5 = zen5_spec()


def named(expr, name, *source):
    return TensorExpr(name, expr.axes, expr.values, expr.writes, source)


def launch(expr, device=ZEN5, measured=None, chosen=0, text="@triton.jit\ndef kernel(): pass\n"):
    kernel = SimpleNamespace(source=SimpleNamespace(name=expr.name, text=text), cached=False)
    return SimpleNamespace(
        kernel=kernel, expr=expr, construction=construct(expr, device), chosen=chosen, measured_s=measured
    )


def tensor(*shape):
    return SimpleNamespace(shape=shape)


def extern(
    target="aten.sort.default", reason="no rule for aten.sort", where="model.py:7", args=(), results=()
):
    return SimpleNamespace(target=target, reason=reason, where=where, args=args, kwargs={}, results=results)


@pytest.fixture
def made():
    gelu = named(
        matmul(128, 3072, 768, bias=True), "linear_gelu", "linear at model.py:3", "gelu at model.py:4"
    )
    rows = named(softmax(1536, 128), "softmax", "softmax at model.py:5")
    look = named(embedding(128, 768, 30522), "embedding", "embedding at model.py:1")
    plan = SimpleNamespace(
        launches=[launch(gelu), launch(gelu), launch(rows), launch(look)],
        externs=[
            extern(),
            extern(where="model.py:9"),
            extern("aten.topk.default", "no rule for aten.topk", ""),
        ],
    )
    return collect([plan], ZEN5, "Model", compile_s=1.5, versions=(("torch", "2.13.0"),))


def test_equal_kernels_and_calls_are_counted(made):
    assert [(k.name, k.calls) for k in made.kernels] == [("linear_gelu", 2), ("softmax", 1), ("embedding", 1)]
    assert [(e.target, e.calls, e.where) for e in made.externs] == [
        ("aten.sort.default", 2, ("model.py:7", "model.py:9")),
        ("aten.topk.default", 1, ()),
    ]
    assert (made.launches, made.extern_calls) == (4, 3)
    assert made.nodes == (2 * 2 + 1 + 1, 6 + 3)


def test_flops_are_shares_of_what_is_known(made):
    ours, known = made.flops
    assert ours == known == sum(k.flops for k in made.kernels)
    counted = Report("m", ZEN5, made.kernels, (ExternReport("aten.convolution", "later", (), 1, ours),))
    assert counted.flops == (ours, 2 * ours)
    assert "50.0% of FLOPs" in str(counted)


def test_the_text_names_everything(made):
    text = str(made)
    for part in (
        "Model on Zen 5",
        "4 launches of 3 kernels, 3 extern calls",
        "3 extern calls whose FLOPs are not known are left out",
        "linear_gelu x 2",
        "from gelu at model.py:4",
        "registers",
        "bound by compute",
        "aten.sort.default x 2: no rule for aten.sort at model.py:7",
    ):
        assert part in text
    assert text.index("linear_gelu x 2") < text.index("\nsoftmax\n")  # most time first


def test_rejected_tiles_are_shown_and_the_rest_is_counted():
    big = launch(named(matmul(4096, 4096, 4096, "float16"), "big"), H100)
    kernel = collect([SimpleNamespace(launches=[big], externs=[])], H100).kernels[0]
    text = str(kernel)
    shown = text.count("rejected ")
    more = int(re.search(r"and (\d+) more rejected tiles", text)[1])
    assert shown - 1 + more == len(kernel.construction.rejected)


def test_measured_times_belong_to_their_candidate():
    expr = named(matmul(512, 512, 512), "mm")
    seconds = tuple(1e-3 + 1e-5 * i for i in range(len(construct(expr, ZEN5).ranked)))
    kernel = collect(
        [SimpleNamespace(launches=[launch(expr, measured=seconds, chosen=2)], externs=[])], ZEN5
    ).kernels[0]
    assert kernel.chosen == 2
    assert "measured 1.02 ms, the fastest of 10 candidates" in str(kernel)


def test_json_is_complete_and_plain(made):
    data = json.loads(json.dumps(made.to_dict()))
    assert data["nodes"] == {"ours": 6, "all": 9}
    assert data["externs"][1]["flops"] is None
    first = data["kernels"][0]
    assert first["calls"] == 2 and first["from"] == ["linear at model.py:3", "gelu at model.py:4"]
    assert first["program"]["levels"]["DRAM"] == {"m": 128, "n": 3072, "k": 768}
    assert first["candidates"][0]["predicted_s"] == first["program"]["predicted_s"]
    assert first["source"].startswith("@triton.jit")


class Page(HTMLParser):
    """Collects tags, and checks that they nest."""

    VOID = {"meta", "input"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.ids = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        self.links += [v for k, v in attrs if k in ("href", "src")]
        if "id" in found:
            self.ids.append(found["id"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()


@pytest.mark.parametrize("device", [ZEN5, H100], ids=lambda d: d.name)
def test_the_page_is_self_contained_and_well_formed(made, device):
    plans = [SimpleNamespace(launches=[launch(k.expr, device) for k in made.kernels], externs=[extern()])]
    text = collect(plans, device, "Net <b>").html()
    page = Page(text)
    assert page.tags.count("script") == page.tags.count("style") == 1
    assert all(link.startswith("#") for link in page.links)
    assert {link[1:] for link in page.links} <= set(page.ids)
    assert "http" not in text
    assert page.tags.count("svg") == 1 + 3 * len(made.kernels)
    assert "Net &lt;b&gt;" in text and "Net <b>" not in text
    assert "nan" not in re.sub(r"[A-Za-z]{4,}", "", text)
    assert "prefers-color-scheme: dark" in text
    for k in made.kernels:
        assert k.name in text
    assert "no rule for aten.sort" in text


def test_the_page_sorts_by_time_and_counts_what_it_elides(made):
    places = tuple(f"model.py:{n}" for n in range(7))
    big = collect([SimpleNamespace(launches=[launch(named(matmul(4096, 4096, 4096, "float16"), "big"), H100)],
                                   externs=[])], H100).kernels[0]  # fmt: skip
    report = Report("m", H100, (made.kernels[2], big), (ExternReport("aten.sort", "no rule", places, 7),))
    text = report.html()
    assert text.index('id="k0"') < text.index("<b>big</b>") < text.index('id="k1"')
    assert "and 4 more places" in text and "ATen calls (7)" in text
    rejected = len(big.construction.rejected)
    assert f"{rejected} tiles turned down, and why" in text
    if rejected > 12:
        assert f"and {rejected - 12} more</li>" in text


def test_every_disc_has_its_number_from_the_table(made):
    text = made.html()
    overview = re.search(r'aria-label="roofline of all kernels">(.*?)</svg>', text, re.S)[1]
    rated = [k for k in made.kernels if k.program is not None and k.program.estimate.flops > 0]
    discs = re.findall(r'<a href="#k(\d+)"><circle', overview)
    numbers = re.findall(r'class="(?:number|name)"[^>]*>(\d+)<', overview)
    assert len(discs) == len(numbers) == len(rated)
    assert {int(n) for n in numbers} == {int(d) + 1 for d in discs}


def test_coordinates_stay_inside_their_figures(made):
    for figure in re.findall(r"<svg viewBox=\"0 0 (\d+) (\d+)\".*?</svg>", made.html(), re.S):
        assert int(figure[0]) > 0 and int(figure[1]) > 0
    for width, body in re.findall(r'<svg viewBox="0 0 (\d+) \d+"(.*?)</svg>', made.html(), re.S):
        assert all(
            -30 <= float(x) <= int(width) + 30 for x in re.findall(r'[^a-z](?:cx|x1|x2|x)="(-?[\d.]+)"', body)
        )


def test_a_report_without_kernels_still_has_a_page():
    empty = Report("nothing", ZEN5, (), (ExternReport("aten.sort.default", "no rule"),))
    Page(empty.html())
    assert "0 launches of 0 kernels" in str(empty)


def test_kernels_that_were_not_searched_are_shown():
    plain = KernelReport("copy", pointwise(64), None, None, "text")
    made = Report("m", ZEN5, (plain,), ())
    assert "nothing was searched" in str(made)
    Page(made.html())
    assert made.predicted_s == 0


@pytest.mark.parametrize(
    ("suffix", "start"), [(".html", "<!doctype html>"), (".json", "{"), (".txt", "Model on")]
)
def test_save_goes_by_the_suffix(made, tmp_path, suffix, start):
    path = made.save(tmp_path / f"report{suffix}")
    assert path.read_text().startswith(start)


def test_flops_of_extern_calls_follow_pytorchs_formulas():
    torch = pytest.importorskip("torch")
    mm = extern(torch.ops.aten.mm.default, args=(tensor(4, 5), tensor(5, 6)), results=(tensor(4, 6),))
    assert extern_flops(mm) == 2 * 4 * 5 * 6
    q = tensor(1, 12, 128, 64)
    attention = extern(
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        args=(q, q, q),
        results=(q, tensor(1, 12, 128)),
    )
    assert extern_flops(attention) == 2 * 2 * 12 * 128 * 128 * 64
    assert extern_flops(extern(torch.ops.aten.sort.default, args=(tensor(4),))) is None
    assert extern_flops(extern(torch.ops.aten.mm.default, args=(tensor(4),))) is None


def test_user_lines_are_short():
    trace = 'File "/home/me/env/lib/site-packages/net/model.py", line 7, in forward\n    x = self.fc(x)\n'
    outer = 'File "train.py", line 99, in main\n    net(x)\n'
    assert user_line(outer + trace) == "net/model.py:7 in forward: x = self.fc(x)"
    assert user_line('File "a.py", line 3, in f: y = x + 1') == "a.py:3 in f: y = x + 1"
    assert user_line("model.py:7") == "model.py:7"
    assert user_line("") == ""


def test_traces_and_searches_on_demand():
    expr = named(pointwise(64), "relu", "relu_1", "view")
    made = launch(expr)
    found = made.construction
    made.construction = lambda: found
    plan = SimpleNamespace(launches=[made], externs=[])
    traces = {"relu_1": 'File "a.py", line 3, in f\n    y = x.relu()'}
    kernel = collect([plan], ZEN5, traces=lambda p: traces).kernels[0]
    assert kernel.origins == ("relu_1 at a.py:3 in f: y = x.relu()", "view")
    assert kernel.program == found.best


# -- the command line -----------------------------------------------------------------------------


def test_devices_command(capsys):
    assert main(["devices", "a100", "mi300x"]) == 0
    out = capsys.readouterr().out
    assert "A100" in out and "MI300X" in out and "V100" not in out


def test_bench_lists_and_predicts(capsys):
    assert main(["bench", "--list"]) == 0
    assert len(capsys.readouterr().out.strip().split("\n")) == 119
    assert main(["bench", "m3", "--device", "H100"]) == 0
    out = capsys.readouterr().out
    assert "M3 matmul M=65536 N=4096 K=1024" in out and "predicted" in out and "10 rPrograms" in out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["bench", "Z9"], "no operator 'Z9'"),
        (["devices", "TPU"], "no device named 'TPU'"),
        (["explain", "no_such_model"], "name one of bert, gpt2"),
        (["explain", "no_such_file.py"], "does not exist"),
    ],
)
def test_wrong_arguments_are_explained(capsys, command, message):
    pytest.importorskip("transformers")
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_cache_shows_and_clears(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHROLLER_CACHE_DIR", str(tmp_path / "c"))
    assert main(["cache"]) == 0
    assert "0 files" in capsys.readouterr().out
    (tmp_path / "c" / "sources").mkdir(parents=True)
    (tmp_path / "c" / "sources" / "k.py").write_text("x" * 2048)
    assert main(["cache"]) == 0
    assert "1 files, 2 KiB" in capsys.readouterr().out
    assert main(["cache", "--clear"]) == 0
    assert not (tmp_path / "c").exists()


def test_devices_needs_neither_torch_nor_triton():
    code = (
        "import sys, torchroller.__main__ as m; m.main(['devices', 'A100', 'cpu']); "
        "assert not {'torch', 'triton'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
