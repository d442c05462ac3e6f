"""Tiles follow the processor's registers; calls that are like an earlier one, and only those, skip the settling."""

import platform
import re
from dataclasses import replace

import pytest
import torch

from torchsparta.formats import Block, FineGrained, Tile
from torchsparta.specialise import SpecialisedLinear, can_execute
from torchsparta.specialise.linear import turns
from torchsparta.specialise.program import interpreting
from torchsparta.vector_unit import WIDE, VectorUnit, vector_unit

NARROW = VectorUnit(lanes=8, registers=16, l1_bytes=32 * 1024)
native = pytest.mark.skipif(
    interpreting() or can_execute(torch.device("cpu")) is not None, reason="needs the native CPU backend"
)


@pytest.mark.parametrize("unit", [NARROW, WIDE], ids=["16 registers of 8", "32 registers of 16"])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_sums_fill_no_more_than_half_of_the_registers(unit, group):
    tokens = unit.tokens(1000, group)
    unroll = unit.fine_unroll if group == 1 else 1
    vectors = group * tokens * unroll // unit.lanes
    assert 8 <= vectors <= unit.registers // 2


def test_few_tokens_get_small_panels():
    assert [WIDE.tokens(m, 1) for m in (1, 16, 17, 64, 128)] == [16, 16, 32, 64, 64]
    assert [NARROW.tokens(m, 4) for m in (1, 16, 128)] == [16, 16, 16]
    assert NARROW.tokens(128, 8) == 8


def test_gpus_are_not_given_the_hosts_registers():
    assert vector_unit("cuda") is WIDE
    assert (NARROW.max_group, WIDE.max_group) == (4, 8)


@pytest.mark.parametrize("kib, columns", [(16, 64), (32, 128), (48, 128), (64, 256)])
def test_a_panel_fills_the_first_level_cache(kib, columns):
    unit = replace(NARROW, l1_bytes=kib * 1024)
    assert unit.panel_columns() == columns
    assert columns * unit.tokens(128, 1) * 4 <= unit.l1_bytes


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_turns_share_all_items(threads):
    for items in (1, 2, 5, 24, 25, 384, 1000):
        count = turns(items, threads)
        assert 1 <= count <= items
        assert items <= 2 * threads or count % threads == 0


@native
@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86 assembly")
@pytest.mark.parametrize("kind", ["fine-grained", "block"])
def test_hot_loops_do_not_touch_the_stack(kind):
    w, mask = torch.randn(64, 256), torch.rand(64, 256) < 0.2
    part = (
        FineGrained.pack(w, mask, Tile(64, 64))
        if kind == "fine-grained"
        else Block.pack(w, mask, (4, 1), Tile(32))
    )
    kernel = SpecialisedLinear((part,))
    kernel(torch.randn(128, 256))
    compiled = next(iter(kernel._plans.values()))._compiled
    text = next(str(k.asm["asm"]) for k in compiled if k.metadata.name == "rows")
    loops = [body for body in re.split(r"^\.LBB\w+:", text, flags=re.M) if body.count("vfmadd") >= 4]
    assert loops
    for body in loops:
        multiplied = [line for line in body.splitlines() if re.search(r"[xyz]mm\d", line)]
        assert not [line for line in multiplied if "(%rsp" in line or "(%rbp" in line], body


@native
def test_a_repeated_call_is_the_same_call_only_if_everything_is():
    w, mask = torch.randn(40, 24), torch.rand(40, 24) < 0.3
    kernel = SpecialisedLinear((FineGrained.pack(w, mask, Tile(32)),))
    dense, bias = (w * mask).double(), torch.randn(40)

    def check(x, residual=None, with_bias=True):
        want = x.double() @ dense.T + (bias.double() if with_bias else 0)
        want = want if residual is None else want + residual.double()
        got = kernel(x, bias if with_bias else None, residual)
        torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-5)

    for _ in range(2):
        check(torch.randn(6, 24))
        check(torch.randn(2, 3, 24))
        check(torch.randn(24, 6).T)
        check(torch.randn(12, 24)[::2])
        check(torch.randn(6, 25)[:, 1:])  # not aligned as Triton specialised it
        check(torch.randn(6, 24), with_bias=False)
        check(torch.randn(6, 24), torch.randn(6, 40))
        check(torch.randn(6, 24), torch.randn(40, 6).T)
        check(torch.randn(6, 24), torch.randn(6, 40).double())
        check(torch.randn(6, 24), torch.randn(40).expand(6, 40))
