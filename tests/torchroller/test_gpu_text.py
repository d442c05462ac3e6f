"""The text that a GPU would get, run on the CPU: the same kernels with the tiles, masks and splits of an H100.

Most of what is particular to a GPU stands in the text: dots of at least 16 x 16, steps along k that are masked instead
of shortened, products of float32 from parts of bfloat16. TORCHROLLER_TEST_SPEC=H100 runs every other test this way.
"""

from __future__ import annotations

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from roller_helpers import judge
from torch import nn

from torchroller import pipeline
from torchroller.device import H100
from torchroller.emit.split import PARTS
from torchroller.options import Options
from torchroller.ptxas import miscompiled


@pytest.fixture(autouse=True)
def h100(monkeypatch):
    monkeypatch.setattr(pipeline, "device_spec", lambda device: H100)
    torch.manual_seed(0)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def parts(plan) -> list[int]:
    """Of each packed operand: how many numbers an element is split into."""
    return [p.parts for launch in plan.launches for p in launch.kernel.source.packs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 3, 15, 16, 17, 40, 300])
def test_depths_of_products(k, dtype):
    """Elements behind the end of k must not be read: a depth below one step was, until it ran on a GPU."""
    a, b = torch.randn(19, k).to(dtype), torch.randn(k, 33).to(dtype)
    judge(torch.mm, a, b)
    judge(nn.Linear(k, 21).to(dtype), a)


@pytest.mark.parametrize("rows", [3, 100])
def test_weights_come_split(rows):
    plan = judge(nn.Linear(200, 70), torch.randn(rows, 200), slack=1.0)  # no worse than eager
    assert parts(plan) == [PARTS]


def test_many_rows_split_their_right_operand_at_every_call(monkeypatch):
    monkeypatch.setattr(pipeline, "_LEAST_FLOPS", 1e6)
    a, b = torch.randn(2100, 48), torch.randn(48, 20)
    plan = judge(torch.mm, a, b, slack=1.0)
    assert parts(plan) == [PARTS] and [p.fresh for p in plan.packed] == [True]
    b.mul_(3)  # not a constant: packed anew
    (got,) = plan([a, b])
    assert torch.allclose(got, a @ b, rtol=1e-5, atol=1e-5)


def test_infinities_and_nan_come_out_as_in_eager():
    x, layer = torch.randn(5, 64), nn.Linear(64, 20)
    x[1, 3], x[2, 5], x[3, 7] = float("inf"), float("nan"), float("-inf")
    with torch.no_grad():
        layer.weight[3, 9], layer.weight[4] = (
            float("inf"),
            0.5,
        )  # exact in bfloat16: its lower parts are zeros
    judge(layer, x)


CONVOLUTIONS = {
    "3x3": (nn.Conv2d(32, 48, 3, padding=1), (2, 32, 14, 13)),
    "stride and dilation": (nn.Conv2d(24, 17, (5, 3), 2, (2, 1), (2, 1)), (2, 24, 14, 14)),
    "1x1": (nn.Conv2d(40, 24, 1), (3, 40, 7, 7)),
    "1x1 stride 2": (nn.Conv2d(40, 24, 1, 2), (3, 40, 15, 14)),
    "grouped": (nn.Conv2d(32, 48, 3, padding=1, groups=4), (2, 32, 9, 8)),
    "depthwise": (nn.Conv2d(20, 20, 3, padding=1, groups=20), (2, 20, 9, 11)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name):
    layer, shape = CONVOLUTIONS[name]
    judge(copy.deepcopy(layer), torch.randn(shape))


PROGRAMS = {
    "softmax": lambda x: x.softmax(-1),
    "layer norm": lambda x: F.layer_norm(x, x.shape[-1:]),
    "exp": lambda x: (9 * x).exp(),
    "fmod": lambda x: torch.fmod(x, 0.7) + x.remainder(-0.3),
    "pool": lambda x: F.avg_pool2d(x[None, None], 3, 2, 1),
    "attention": lambda x: F.scaled_dot_product_attention(*(x.view(3, 2, 10, 32),) * 3, is_causal=True),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name):
    judge(PROGRAMS[name], torch.randn(60, 32))


def test_an_lstm_cell_as_pytorch_calls_it_on_a_gpu():
    batch, width = 3, 24
    gates = [torch.randn(batch, 4 * width) for _ in range(2)]
    inputs = [*gates, torch.randn(batch, width), torch.randn(4 * width), torch.randn(4 * width)]
    graph = torch.fx.Graph()
    places = [graph.placeholder(f"x{n}") for n in range(5)]
    call = graph.call_function(torch.ops.aten._thnn_fused_lstm_cell.default, tuple(places))
    results = [graph.call_function(operator.getitem, (call, n)) for n in range(2)]
    graph.output(results)
    for node, value in zip((*places, *results), (*inputs, inputs[2], inputs[2])):
        node.meta["val"] = value
    call.meta["val"] = (inputs[2], inputs[2], gates[0])
    plan = pipeline.compile_graph(torch.fx.GraphModule(nn.Module(), graph), inputs, Options())
    assert not plan.externs
    hidden, cell = plan(list(inputs))
    i, f, g, o = (gates[0] + gates[1] + inputs[3] + inputs[4]).double().chunk(4, 1)
    after = f.sigmoid() * inputs[2].double() + i.sigmoid() * g.tanh()
    assert torch.allclose(cell.double(), after, atol=1e-6)
    assert torch.allclose(hidden.double(), o.sigmoid() * after.tanh(), atol=1e-6)


FAULTY = """
    mov.b32 %r1, {%rs1, %rs2};
    mov.b32 %r2, 255;
    add.s16x2 %r3, %r1, %r2;
"""


def test_a_packed_addition_with_an_undefined_half_is_told():
    assert miscompiled("cvt.u16.u32 %rs1, %r9;" + FAULTY)
    assert not miscompiled("cvt.u16.u32 %rs1, %r9;\n mov.b32 {%rs2, _}, %r8;" + FAULTY)
    assert not miscompiled("cvt.u16.u32 %rs1, %r9;" + FAULTY.replace("add.s16x2", "add.s32"))
