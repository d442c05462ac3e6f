"""What the native code of the hot loops must look like: sums in registers, no gathers, no conversions lane by lane."""

import re

import pytest
import torch

from torchsparta.formats import Block, FineGrained, QuantizedInt8, Tile
from torchsparta.specialise import SpecialisedLinear, can_execute, specialise
from torchsparta.specialise.program import interpreting

pytestmark = pytest.mark.skipif(
    interpreting() or can_execute(torch.device("cpu")) is not None, reason="needs the native CPU backend"
)


def kernels(kernel, features):
    """The compiled kernels of one call, by name."""
    kernel(torch.randn(128, features))
    plan = next(iter(kernel._plans.values()))
    assert plan._compiled is not None
    return {k.metadata.name: str(k.asm["llir"]) for k in plan._compiled}


def program_of(ir):
    """Without the entry's own state, which is the only alloca that may remain."""
    return [line for line in ir.splitlines() if "alloca" in line and "%state" not in line]


@pytest.mark.parametrize("part", [(1, 1), (8, 1)], ids=["fine-grained", "block 8x1"])
def test_sums_live_in_registers(part):
    w, mask = torch.randn(64, 256), torch.rand(64, 256) < 0.1
    packed = FineGrained.pack(w, mask, Tile(64, 128)) if part == (1, 1) else Block.pack(w, mask, part)
    rows = kernels(SpecialisedLinear((packed,)), 256)["rows"]
    assert program_of(rows) == []
    assert "fmul" not in rows or "llvm.fma" in rows or "contract" in rows


def test_transposes_need_no_gathers():
    found = kernels(SpecialisedLinear((FineGrained.pack(torch.randn(64, 256), None, Tile(64)),)), 256)
    for name, ir in found.items():
        assert not re.search(r"call .*@llvm\.masked\.gather", ir), name


def test_quantisation_converts_whole_vectors():
    part = QuantizedInt8.pack(torch.randn(64, 256), None, block=(32, 32), tile=Tile(32), group=32)
    assert "fptosi" not in kernels(specialise((part,), integer=True), 256)["quantize"]
