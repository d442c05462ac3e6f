"""CUDA graphs of plans, with a graph that computes again on the addresses it was recorded with: no GPU is here."""

from __future__ import annotations

import contextlib

import pytest
import torch

from torchroller import cuda_graphs
from torchroller.cuda_graphs import Replayed
from torchroller.options import parse_options


class Program:
    """A run of a plan: y = x * w, written to one place; `recorded` counts the graphs that were made of it."""

    def __init__(self):
        self.recorded, self.plain, self.fails = 0, 0, False

    def __call__(self, args):
        x, w = args
        out = x * w
        if Graph.open is None:
            self.plain += 1
        elif self.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        else:
            self.recorded += 1
            Graph.open.steps.append(lambda: torch.mul(x, w, out=out))
        args.clear()
        return [out, 7]


class Graph:
    open: Graph | None = None

    def __init__(self):
        self.steps = []

    def replay(self):
        for step in self.steps:
            step()


@contextlib.contextmanager
def record(graph):
    Graph.open = graph
    try:
        yield
    finally:
        Graph.open = None


@pytest.fixture
def program(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return Program()


def warm(run, w):
    for _ in range(cuda_graphs._WARM):
        run([torch.ones(3), w])


def test_results_follow_the_inputs_and_belong_to_the_caller(program):
    w = torch.full((3,), 2.0)
    run = Replayed(program, frozenset({1}), lambda args: True)
    warm(run, w)
    first, number = run([torch.full((3,), 1.0), w])
    second, _ = run([torch.full((3,), 5.0), w])
    assert first.tolist() == [2.0] * 3 and second.tolist() == [10.0] * 3 and number == 7
    assert (program.recorded, program.plain) == (1, cuda_graphs._WARM)
    w.mul_(10)  # written in place: read where it is
    assert run([torch.ones(3), w])[0].tolist() == [20.0] * 3


def test_a_parameter_that_moves_or_changes_its_packed_form_is_recorded_again(program):
    steady = [True]
    run = Replayed(program, frozenset({1}), lambda args: steady[0])
    warm(run, torch.ones(3))
    keep = torch.full((3,), 3.0)
    assert run([torch.ones(3), keep])[0].tolist() == [3.0] * 3
    other = torch.full((3,), 4.0)
    assert run([torch.ones(3), other])[0].tolist() == [4.0] * 3
    assert program.recorded == 2
    steady[0] = False
    run([torch.ones(3), other])
    assert program.recorded == 3


def test_what_cannot_be_recorded_runs_as_before(program, caplog):
    program.fails = True
    run = Replayed(program, frozenset({1}), lambda args: True)
    w = torch.full((3,), 2.0)
    warm(run, w)
    for _ in range(2):
        assert run([torch.ones(3), w])[0].tolist() == [2.0] * 3
    assert program.plain == cuda_graphs._WARM + 2
    assert caplog.text.count("no CUDA graph of a plan") == 1 and "stream is capturing" in caplog.text


def test_the_mode_sets_the_option():
    assert parse_options("reduce-overhead", None).cuda_graphs
    assert not parse_options("reduce-overhead", {"cuda_graphs": False}).cuda_graphs
    assert not parse_options(None, None).cuda_graphs
