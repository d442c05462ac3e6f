"""Compiled functions in forked processes: DataLoader workers, and servers that fork after loading a model.

libgomp's threads do not survive fork(), and a child that waits for them never ends: every child here gets a limit.
"""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
from roller_helpers import compiled
from torch import nn

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork() here")


def in_child(work) -> int:
    """Exit status of `work` (True: 0) in a forked child with a minute to live."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(60)
            os._exit(0 if work() else 3)
        except BaseException:
            os._exit(4)
    return os.waitpid(pid, 0)[1]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 160), nn.GELU(), nn.Linear(160, 64)).eval()


def test_a_compiled_model_runs_in_a_forked_child(two_threads):
    fast, x = compiled(network()), torch.randn(512, 96)
    with torch.no_grad():
        want = fast(x).numpy()  # on two threads: the parent's pool has started
        assert in_child(lambda: np.array_equal(fast(x).numpy(), want)) == 0
        assert np.array_equal(fast(x).numpy(), want)


def test_the_number_of_threads_may_change_between_calls(two_threads):
    fast, x = compiled(network()), torch.randn(512, 96)
    with torch.no_grad():
        want = fast(x)
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            assert torch.equal(fast(x), want)


class Squares(torch.utils.data.Dataset):
    """Items made by a compiled function, compiled before the workers start or in them."""

    def __init__(self, fast) -> None:
        self.fast = fast

    def __len__(self) -> int:
        return 6

    def __getitem__(self, n: int) -> torch.Tensor:
        return self.fast(torch.full((300, 200), float(n)))


@pytest.mark.parametrize("when", ["compiled before", "compiled in the worker"])
def test_in_workers_of_a_data_loader(two_threads, when):
    fast = compiled(lambda x: (x * x + 1).sum(1))
    if when == "compiled before":
        fast(torch.ones(300, 200))
    loader = torch.utils.data.DataLoader(
        Squares(fast), num_workers=1, timeout=60, multiprocessing_context="fork"
    )
    got = torch.cat(list(loader))
    want = torch.arange(6.0)[:, None].square() * 200 + 200
    assert torch.equal(got, want.expand(6, 300))
