"""Random operators draw from torch's own generator: a seed gives the numbers of eager, in training too."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from roller_helpers import compiled, last_plan
from torch import nn

DRAWS = {
    "dropout": lambda x: F.dropout(x, 0.3), "two dropouts": lambda x: F.dropout(x, 0.3) + F.dropout(x * 2, 0.5),
    "all dropped": lambda x: F.dropout(x, 1.0), "none dropped": lambda x: F.dropout(x, 0.0),
    "channels": lambda x: F.dropout2d(x.view(4, 10, 10, 5), 0.4),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()) + x,
    "rand": lambda x: x + torch.rand(50) * torch.rand_like(x), "randn": lambda x: torch.randn(40, 50).relu() * x,
    "randint": lambda x: x[torch.randint(0, 40, (7,))], "permutation": lambda x: x[torch.randperm(40)],
    "uniform": lambda x: torch.empty_like(x).uniform_(-1, 1) + x, "normal": lambda x: torch.empty_like(x).normal_() + x,
    "exponential": lambda x: torch.empty_like(x).exponential_() * x,
    "multinomial": lambda x: x[torch.multinomial(x.abs().sum(1), 5)], "alpha": lambda x: F.alpha_dropout(x, 0.2, True),
}  # fmt: skip


@pytest.mark.parametrize("name", DRAWS)
def test_a_seed_gives_the_numbers_of_eager(name):
    x = torch.randn(40, 50, generator=torch.Generator(torch.get_default_device()).manual_seed(1))
    fast = compiled(DRAWS[name])
    for seed in range(3):
        torch.manual_seed(seed)
        want, after = DRAWS[name](x), torch.rand(4)
        torch.manual_seed(seed)
        got = fast(x)
        assert torch.allclose(got, want, atol=1e-6), seed
        assert torch.equal(torch.rand(4), after)  # the generator has moved as far as in eager
    assert all("own generator" in e.reason for e in last_plan().externs)


def test_dropout_is_fused_around_its_mask():
    fast = compiled(lambda x, y: F.dropout(F.gelu(x + y), 0.1) + y)
    fast(torch.randn(40, 50), torch.randn(40, 50))
    plan = last_plan()
    assert len(plan.launches) == 1 and len(plan.externs) == 1


def test_training_with_dropout_follows_eager():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 64), nn.GELU(), nn.Dropout(0.2), nn.Linear(64, 64), nn.Dropout(0.5), nn.Linear(64, 3)
    )
    x, y = torch.randn(16, 20), torch.randint(0, 3, (16,))
    runs = []
    for wrap in (lambda m: m, compiled):
        m = copy.deepcopy(model)
        call, optimizer, losses = wrap(m), torch.optim.AdamW(m.parameters(), lr=1e-2), []
        torch.manual_seed(5)
        for _ in range(10):
            optimizer.zero_grad()
            loss = F.cross_entropy(call(x), y)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        runs.append(losses)
    assert torch.allclose(*map(torch.tensor, runs), rtol=1e-4)
