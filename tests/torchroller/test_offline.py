"""Kernels for GPUs that are not there: tiles from the search for each device, compiled by stock Triton, measured
by what the compiled kernel says of itself. Nothing here needs a GPU.
"""

from __future__ import annotations

import copy
import functools
import re
from dataclasses import dataclass, replace
from typing import Any

import model_cases
import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as triton_compile

from torchroller.backend import last_plans, roller
from torchroller.choose import emit, given_tiling, ranked, tiling_of
from torchroller.device import A100, B200, H100, MI250X, MI300X, DeviceSpec
from torchroller.emit.common import TritonSource
from torchroller.expr import TensorExpr
from torchroller.kernel import cache_dir, load_module
from torchroller.plan import ExecutionPlan
from torchroller.ptxas import miscompiled

DEVICES: dict[str, tuple[DeviceSpec, GPUTarget]] = {
    "sm_80": (A100, GPUTarget("cuda", 80, 32)),
    "sm_90": (H100, GPUTarget("cuda", 90, 32)),
    "sm_100": (B200, GPUTarget("cuda", 100, 32)),
    "gfx90a": (MI250X, GPUTarget("hip", "gfx90a", 64)),
    "gfx942": (MI300X, GPUTarget("hip", "gfx942", 64)),
}
# One of each vendor quickly, the others with the slow tests; the models' kernels go to three in the quick ones.
SOME_DEVICES = [d if d in ("sm_90", "gfx942") else pytest.param(d, marks=pytest.mark.slow) for d in DEVICES]


@dataclass(frozen=True)
class Footprint:
    """What one program of a compiled kernel takes. `spilled` counts registers, or None where none is reported."""

    shared_bytes: int
    threads: int
    registers: int | None
    spilled_bytes: int


def source_for(expr: TensorExpr, spec: DeviceSpec) -> TritonSource:
    """The kernel that a machine with this device would get."""
    plain = replace(expr, source=())
    construction = ranked(plain, spec, 10)
    if construction is None:
        return emit(plain, given_tiling(plain, spec))
    return emit(plain, tiling_of(construction.best, spec))


@functools.cache
def offline(source: TritonSource, name: str) -> Footprint:
    fn = getattr(load_module(source, cache_dir()), source.name)
    signature = dict(zip(fn.arg_names, source.signature))
    attrs = {(i,): [["tt.divisibility", 16]] for i in range(len(signature))}
    target = DEVICES[name][1]
    built = triton_compile(ASTSource(fn=fn, signature=signature, constexprs={}, attrs=attrs), target=target,
                           options={"num_warps": source.num_warps, "num_stages": source.num_stages})  # fmt: skip
    metadata = built.metadata
    threads = metadata.num_warps * target.warp_size
    if target.backend == "hip":
        text = built.asm["amdgcn"]
        counted = re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count|agpr_count): +(\d+)", text)
        number = {k: int(v) for k, v in counted}
        return Footprint(metadata.shared, threads, number["vgpr_count"],
                         4 * (number["vgpr_spill_count"] + number["sgpr_spill_count"]))  # fmt: skip
    assert not miscompiled(built.asm["ptx"]), f"ptxas would get this kernel wrong:\n{source.text}"
    registers, spilled = cubin_registers(built.asm["cubin"])
    return Footprint(metadata.shared, threads, registers, spilled)


def cubin_registers(cubin: bytes) -> tuple[int, int]:
    """(registers per thread, bytes of the stack frame) of the one kernel in an ELF image made by ptxas.

    The section `.nv.info.<kernel>` is a list of attributes; EIATTR_REGCOUNT and EIATTR_FRAME_SIZE stand in `.nv.info`
    as (symbol, value) pairs.
    """
    info = section(cubin, ".nv.info")
    registers = frame = None
    at = 0
    while at + 4 <= len(info):
        form, attribute = info[at], info[at + 1]
        size = int.from_bytes(info[at + 2 : at + 4], "little")
        if form == 4:  # EIFMT_SVAL: `size` bytes follow
            value = info[at + 4 : at + 4 + size]
            if attribute == 0x2F:
                registers = int.from_bytes(value[4:8], "little")
            elif attribute == 0x11:
                frame = int.from_bytes(value[4:8], "little")
            at += 4 + size
        else:
            at += 4
    assert registers is not None and frame is not None, "the cubin does not say how many registers it uses"
    return registers, frame


def section(elf: bytes, name: str) -> bytes:
    """The bytes of a section of a 64-bit little-endian ELF image."""
    assert elf[:6] == b"\x7fELF\x02\x01"
    number = functools.partial(int.from_bytes, byteorder="little")
    start, size, count, names = number(elf[40:48]), number(elf[58:60]), number(elf[60:62]), number(elf[62:64])
    headers = [elf[start + i * size : start + (i + 1) * size] for i in range(count)]
    span = lambda h: elf[number(h[24:32]) : number(h[24:32]) + number(h[32:40])]  # noqa: E731
    table = span(headers[names])
    for h in headers:
        at = number(h[:4])
        if table[at : table.index(b"\0", at)].decode() == name:
            return span(h)
    raise LookupError(f"the cubin has no section {name}")


def expressions(name: str, training: bool) -> list[TensorExpr]:
    """The tensor expressions of a model's kernels, each once."""
    model, inputs = model_cases.make(name)
    torch._dynamo.reset()
    before = list(last_plans())
    fast = torch.compile(copy.deepcopy(model), backend=roller, fullgraph=True)
    if training:
        out: Any = fast(*inputs)
        values = out.to_tuple() if hasattr(out, "to_tuple") else out if isinstance(out, tuple) else (out,)
        sum((v * v).sum() for v in values if isinstance(v, torch.Tensor)).backward()
    else:
        with torch.no_grad():
            fast(*inputs)
    plans = [p for p in last_plans() if not any(p is b for b in before)]
    assert plans and all(isinstance(p, ExecutionPlan) for p in plans)
    return list(dict.fromkeys(replace(x.expr, source=()) for p in plans for x in p.launches))


def check(name: str, device: str, training: bool) -> None:
    fits(expressions(name, training), device)


def fits(found: list[TensorExpr], device: str) -> None:
    """Fails with every expression whose kernel does not compile for the device, or takes more than it has."""
    spec, _ = DEVICES[device]
    assert found
    problems = []
    for expr in found:
        source = source_for(expr, spec)
        try:
            took = offline(source, device)
        except Exception as error:
            what = f"{type(error).__name__}: {str(error)[:500]}"
            problems.append(f"{source.name} does not compile: {what}\n{source.text}")
            continue
        at = f"{source.name} with {source.num_warps} warps, {source.num_stages} stages: {took}"
        if took.shared_bytes > spec.program_scratch_bytes:
            problems.append(f"{at}: a program has {spec.program_scratch_bytes} bytes of shared memory")
        if took.registers is not None and took.registers > spec.thread_registers * (
            2 if spec.kind == "hip" else 1
        ):
            problems.append(f"{at}: a thread has {spec.thread_registers} registers")
        if took.registers is not None and took.registers * took.threads > spec.unit_registers:
            problems.append(f"{at}: a unit has {spec.unit_registers} registers")
        if took.spilled_bytes:
            problems.append(f"{at}: registers are spilled")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    "device",
    [d if d in ("sm_80", "sm_90", "gfx942") else pytest.param(d, marks=pytest.mark.slow) for d in DEVICES],
)
def test_a_transformer_block_fits(device):
    check("block", device, training=False)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", model_cases.MODELS)
def test_every_kernel_of_every_model_fits(name, device):
    check(name, device, training=False)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["encoder", "lstm", "llama"])
def test_every_kernel_of_a_training_step_fits(name, device):
    check(name, device, training=True)


LARGE = {
    "product 4096x4096x4096 f16": (torch.float16, lambda x: x @ x, (4096, 4096)),
    "product 4096x4096x4096 f32": (torch.float32, lambda x: x @ x, (4096, 4096)),
    "skinny product": (torch.float16, lambda x: x[:3] @ x, (4096, 4096)),
    "softmax of long rows": (torch.float32, lambda x: x.softmax(-1), (512, 50257)),
    "sum over the rows": (torch.float32, lambda x: x.sum(0), (8192, 4096)),
    "pointwise with a transpose": (torch.float32, lambda x: x.t().contiguous() + x, (4096, 4096)),
}


CONVOLVED = {
    "3x3, 256 channels": ((1, 256, 14, 14), (256, 256, 3, 3), dict(padding=1)),
    "depthwise": ((1, 144, 56, 56), (144, 1, 3, 3), dict(padding=1, groups=144)),
    "stem": ((1, 3, 224, 224), (64, 3, 7, 7), dict(stride=2, padding=3)),
    "3x3, 64 channels, batch 8": ((8, 64, 56, 56), (64, 64, 3, 3), dict(padding=1)),
    "3x3, 512 channels": ((1, 512, 7, 7), (512, 512, 3, 3), dict(padding=1)),
    "1x1 in strides": ((1, 1024, 14, 14), (2048, 1024, 1, 1), dict(stride=2)),
    "grouped": ((1, 128, 28, 28), (128, 4, 3, 3), dict(padding=1, groups=32)),
    "patches": ((1, 3, 224, 224), (768, 3, 16, 16), dict(stride=16)),
}


@pytest.mark.parametrize("device", SOME_DEVICES)
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize(
    "case", [c if i < 2 else pytest.param(c, marks=pytest.mark.slow) for i, c in enumerate(CONVOLVED)]
)
def test_convolutions_of_real_size_fit(case, dtype, device):
    shape, weight, arguments = CONVOLVED[case]

    def layer(x, w, b):
        return torch.relu(torch.nn.functional.conv2d(x, w, b, **arguments))

    sizes = (shape, weight, weight[:1])  # the bias has one number per filter
    _fit(layer, [torch.empty(s, dtype=dtype, device="meta") for s in sizes], device)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["ResNet", "MobileNetV2"])
def test_every_kernel_of_a_vision_model_of_real_size_fits(name, device):
    import transformers

    with torch.device("meta"):
        model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")()).eval()
    names = [n for n, _ in (*model.named_parameters(), *model.named_buffers())]
    values = [v for _, v in (*model.named_parameters(), *model.named_buffers())]

    def run(x, *values):
        return torch.func.functional_call(model, dict(zip(names, values)), (x,)).last_hidden_state

    with torch.no_grad():
        _fit(run, [torch.empty(1, 3, 224, 224, device="meta"), *(v.detach() for v in values)], device)


@pytest.mark.parametrize("device", SOME_DEVICES)
@pytest.mark.parametrize(
    "case", [c if i < 2 else pytest.param(c, marks=pytest.mark.slow) for i, c in enumerate(LARGE)]
)
def test_large_tiles_fit(case, device):
    """At real sizes the search takes as much shared memory as it may; lowered on meta tensors, so nothing runs."""
    dtype, fn, shape = LARGE[case]
    _fit(fn, [torch.empty(shape, dtype=dtype, device="meta")], device)


def _fit(fn: Any, inputs: list[torch.Tensor], device: str) -> None:
    """All of `fn` becomes kernels, and each of them compiles for the device and fits."""
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    from torchroller.build import build
    from torchroller.decompose import decompositions
    from torchroller.fuse import Group, fuse
    from torchroller.lower import lower
    from torchroller.options import Options

    with FakeTensorMode():
        fakes = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype) for x in inputs]
        graph = make_fx(lambda *xs: (fn(*xs),), decomposition_table=decompositions())(*fakes)
    fused = fuse(lower(graph, Options()))
    spec, _ = DEVICES[device]
    groups = [s for s in fused.steps if isinstance(s, Group)]
    assert groups and len(groups) == len(fused.steps), [
        str(s) for s in fused.steps if not isinstance(s, Group)
    ]
    for group in groups:
        stored = frozenset(n for n in group.index if n in fused.writers and n in fused.storage)
        source = source_for(build(group, fused, stored, "kernel").expr, spec)
        took = offline(source, device)
        assert took.shared_bytes <= spec.program_scratch_bytes
        assert took.registers is None or took.registers * took.threads <= spec.unit_registers
        assert took.spilled_bytes == 0, (source.text, took)
