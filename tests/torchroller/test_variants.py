"""Tensor descriptors, warp specialisation and persistent grids: known to the search, emitted, compiled offline."""

from __future__ import annotations

import re

import pytest
import torch
from test_offline import cubin_registers
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as triton_compile

from torchroller.build import build
from torchroller.choose import emit, ranked, tiling_of
from torchroller.decompose import decompositions
from torchroller.device import A100, B200, H100, MI300X
from torchroller.emit.common import Tiling
from torchroller.emit.descriptors import VARIANTS, describable, emit_descriptors
from torchroller.fuse import Group, fuse
from torchroller.kernel import cache_dir, load_module
from torchroller.lower import lower
from torchroller.options import Options


def expression(fn, *shapes, dtype=torch.bfloat16):
    """The tensor expression of the one kernel that `fn` becomes; nothing runs."""
    with FakeTensorMode():
        inputs = [torch.empty(s, dtype=dtype) for s in shapes]
        graph = make_fx(lambda *x: (fn(*x),), decomposition_table=decompositions())(*inputs)
    fused = fuse(lower(graph, Options()))
    (group,) = [s for s in fused.steps if isinstance(s, Group)]
    stored = frozenset(n for n in group.index if n in fused.writers and n in fused.storage)
    return build(group, fused, stored, "kernel").expr


def linear(x, w):
    return torch.relu(x @ w.t())


LINEAR = ((4096, 1024), (4096, 1024))


def compiled(source, arch):
    fn = getattr(load_module(source, cache_dir()), source.name)
    ast = ASTSource(fn=fn, signature=dict(zip(fn.arg_names, source.signature)), constexprs={},
                    attrs={(i,): [["tt.divisibility", 16]] for i in range(len(fn.arg_names))})  # fmt: skip
    options = {"num_warps": source.num_warps, "num_stages": source.num_stages}
    return triton_compile(ast, target=GPUTarget("cuda", arch, 32), options=options)


def varied(expr, spec):
    """One ranked program of each variant."""
    return {p.variant: p for p in reversed(ranked(expr, spec, 10).ranked)}


def test_the_search_knows_the_variants_and_puts_them_last():
    expr = expression(linear, *LINEAR)
    found = ranked(expr, H100, 10)
    kinds = [p.variant for p in found.ranked]
    assert not found.best.variant and kinds[:10] == [""] * 10
    assert set(kinds[10:]) == set(VARIANTS)
    assert len({p.key for p in found.ranked}) == len(found.ranked)
    persistent = next(p for p in found.ranked if p.variant == "tma-persist")
    assert persistent.grid == H100.units and "tma-persist" in str(persistent)
    ranked.cache_clear()
    assert ranked(expr, H100, 10).ranked == found.ranked


@pytest.mark.parametrize("spec", [A100, MI300X], ids=lambda d: d.name)
def test_devices_without_descriptors_have_no_variants(spec):
    assert {p.variant for p in ranked(expression(linear, *LINEAR), spec, 10).ranked} == {""}


@pytest.mark.parametrize(
    ("fn", "shapes", "dtype", "why"),
    [
        (lambda x, y: x @ y, ((256, 256), (256, 256)), torch.float32, "float32"),
        (lambda x, y: torch.relu(x) @ y, ((256, 256), (256, 256)), torch.float16, "a computed operand"),
        (
            lambda x, y: x @ y,
            ((256, 251), (251, 256)),
            torch.float16,
            "rows that are not aligned to 16 bytes",
        ),
        (lambda x, y: x @ y, ((4, 64, 64), (4, 64, 64)), torch.float16, "a batch"),
    ],
)
def test_what_cannot_be_described_is_read_through_pointers(fn, shapes, dtype, why):
    expr = expression(fn, *shapes, dtype=dtype)
    assert not describable(expr), why
    assert {p.variant for p in ranked(expr, H100, 10).ranked} == {""}
    with pytest.raises(ValueError, match="cannot be read through tensor descriptors"):
        emit_descriptors(expr, Tiling(()), "kernel", "tma")


def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match="variant 'tmb' of kernel is none of"):
        emit_descriptors(expression(linear, *LINEAR), Tiling(()), "kernel", "tmb")


@pytest.mark.parametrize(
    ("variant", "spec"),
    [
        ("tma", H100), ("tma-ws", H100), ("tma-persist", B200),
        pytest.param("tma", B200, marks=pytest.mark.slow), pytest.param("tma-ws", B200, marks=pytest.mark.slow),
        pytest.param("tma-persist", H100, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_instructions_are_emitted_and_fit(variant, spec):
    program = varied(expression(linear, *LINEAR), spec)[variant]
    source = emit(expression(linear, *LINEAR), tiling_of(program, spec))
    built = compiled(source, int(spec.arch))
    ptx = built.asm["ptx"]
    assert "cp.async.bulk.tensor" in ptx and "mbarrier" in ptx
    assert ("wgmma.mma_async" if spec is H100 else "tcgen05.mma") in ptx
    assert ("setmaxnreg" in ptx) == (variant == "tma-ws")
    assert built.metadata.shared <= spec.program_scratch_bytes
    registers, frame = cubin_registers(built.asm["cubin"])
    assert registers <= spec.thread_registers and frame == 0
    assert registers * built.metadata.num_warps * 32 <= spec.unit_registers
    assert built.metadata.global_scratch_size > 0  # what gpu_launch.allow_scratch is for


@pytest.mark.parametrize("transposed", [True, False])
def test_tiles_are_described_as_they_lie_in_memory(transposed):
    fn = (lambda x, w: x @ w.t()) if transposed else (lambda x, w: x @ w)
    shapes = ((512, 256), (384, 256)) if transposed else ((512, 256), (256, 384))
    expr = expression(fn, *shapes)
    tiling = Tiling(tuple((a.name, 64) for a in expr.axes), 4, 3)
    text = emit_descriptors(expr, tiling, "kernel", "tma").text
    assert "tl.make_tensor_descriptor(t0, [512, 256], [256, 1], [64, 64])" in text
    want = "t1, [384, 256], [256, 1]" if transposed else "t1, [256, 384], [384, 1]"
    assert want in text
    assert bool(re.search(r"b = b_tile\.load\(.*\)\.T", text)) == transposed
    assert "other=0" not in text  # outside of the tensor the hardware gives zeros
