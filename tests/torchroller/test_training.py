"""Training loops: losses of ten steps follow eager, with each form of AdamW, under autocast, with activation
checkpointing, with the optimizer compiled too, and over two processes."""

from __future__ import annotations

import copy
import socket
from collections.abc import Callable
from typing import Any

import coverage_cases
import pytest
import torch
import torch.nn.functional as F
from roller_helpers import compiled
from torch import nn
from torch.utils.checkpoint import checkpoint

from torchroller.backend import last_plans, roller
from torchroller.plan import ExecutionPlan


def losses(model: nn.Module, wrap: Callable[[Any], Any], inputs: Any, steps: int = 10, compile_step: bool = False,
           autocast: bool = False, **kw: Any) -> list[float]:  # fmt: skip
    """The loss of each of `steps` steps of AdamW on a copy of the model."""
    model = copy.deepcopy(model).train()
    call = wrap(model)
    optimizer, found = torch.optim.AdamW(model.parameters(), lr=3e-3, **kw), []
    step = torch.compile(optimizer.step, backend=roller) if compile_step else optimizer.step
    torch.manual_seed(3)
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast(torch.get_default_device().type, torch.bfloat16, enabled=autocast):
            loss = call(*inputs)
        loss.backward()
        step()
        found.append(float(loss.detach()))
    return found


def follow(model: nn.Module, inputs: Any, rtol: float = 2e-4, **kw: Any) -> None:
    want = losses(model, lambda m: m, inputs, **{k: v for k, v in kw.items() if k != "compile_step"})
    got = losses(model, compiled, inputs, **kw)
    assert want[-1] < want[0]
    assert torch.allclose(torch.tensor(got), torch.tensor(want), rtol=rtol), (got, want)


@pytest.fixture(autouse=True)
def no_whole_graph_in_aten():
    """Every plan that a test of this file makes is one of kernels."""
    before = {id(p) for p in last_plans()}
    yield
    plans = [p for p in last_plans() if id(p) not in before]
    assert all(isinstance(p, ExecutionPlan) for p in plans), [str(p) for p in plans]


@pytest.mark.slow
@pytest.mark.parametrize("foreach", [True, False])
@pytest.mark.parametrize(
    "name", ["bert_training_sdpa", "bert_training_eager", "gpt2_training_sdpa", "gpt2_training_eager"]
)
def test_ten_steps_follow_eager(name, foreach):
    torch.manual_seed(0)
    model, inputs = coverage_cases.CASES[name].make()
    follow(model, inputs, foreach=foreach)


class Net(nn.Module):
    """An embedding, two blocks with dropout that may be checkpointed, a loss."""

    def __init__(self, save_memory: bool = False, dropout: float = 0.1) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(50, 32), nn.Linear(32, 50)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Dropout(dropout), nn.Linear(64, 32)
            )
            for _ in range(2)
        )
        self.save_memory = save_memory

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=False) if self.save_memory else block(x))
        return F.cross_entropy(self.head(x).flatten(0, 1), ids.flatten())


IDS = torch.randint(0, 50, (4, 9), generator=torch.Generator(torch.get_default_device()).manual_seed(0))


@pytest.mark.parametrize("foreach", [True, False])
def test_adamw_of_either_form(foreach):
    follow(Net(), (IDS,), foreach=foreach)


def test_activation_checkpointing():
    follow(Net(save_memory=True, dropout=0.0), (IDS,))


def test_activation_checkpointing_with_dropout():
    """The masks are drawn a second time in the backward pass, from the state that the forward pass began with."""
    follow(Net(save_memory=True), (IDS,))


def test_autocast():
    follow(Net(dropout=0.0), (IDS,), autocast=True, rtol=2e-2)


@pytest.mark.parametrize("foreach", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_compiled_optimizer_step(foreach):
    follow(Net(), (IDS,), steps=5, foreach=foreach, compile_step=True)


def _rank(rank: int, port: int, results: Any) -> None:
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        torch.manual_seed(0)
        model = Net(dropout=0.0)
        mine = IDS[2 * rank : 2 * rank + 2]
        for kind, wrap in (("eager", lambda m: m), ("roller", lambda m: torch.compile(m, backend=roller))):
            spread = DistributedDataParallel(copy.deepcopy(model))
            call, optimizer, found = wrap(spread), torch.optim.AdamW(spread.parameters(), lr=3e-3), []
            for _ in range(5):
                optimizer.zero_grad()
                loss = call(mine)
                loss.backward()
                optimizer.step()
                found.append(float(loss.detach()))
            results[rank, kind] = (found, [p.detach().sum().item() for p in spread.parameters()])
        results[rank, "plans"] = len(last_plans())
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_gloo_processes():
    """DistributedDataParallel: Dynamo cuts graphs at its buckets; both processes end with the same weights."""
    import torch.multiprocessing as mp

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = mp.get_context("spawn")
    with context.Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, (port, results), nprocs=2)
        found = dict(results)
    for rank in (0, 1):
        (mine, ours), (want, theirs) = found[rank, "roller"], found[rank, "eager"]
        assert torch.allclose(torch.tensor(mine), torch.tensor(want), rtol=1e-4)
        assert torch.allclose(torch.tensor(ours), torch.tensor(theirs), rtol=1e-3, atol=1e-3)
        assert found[rank, "plans"] > 0
    assert found[0, "roller"][1] == found[1, "roller"][1]
