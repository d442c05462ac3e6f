"""The way to a GPU, with a driver that only writes down what it is asked for: no GPU is here."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import triton
from test_variants import LINEAR, expression, linear, varied
from torch.fx.experimental.proxy_tensor import make_fx
from triton import compiler
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver as drivers

from torchroller import kernel as kernels
from torchroller import pipeline
from torchroller import plan as plans
from torchroller.buffers import OutputPool
from torchroller.choose import emit, ranked, tiling_of
from torchroller.device import H100
from torchroller.errors import KernelError
from torchroller.kernel import NativeExecutor
from torchroller.options import Options
from torchroller.ptxas import SAFE_OPTIONS


class Recorder:
    """What Triton asks of a driver when it loads and launches a compiled kernel."""

    def __init__(self, arch):
        self.target = GPUTarget("cuda", arch, 32)
        self.launched, self.loaded = [], []
        self.utils = SimpleNamespace(
            load_binary=self.load,
            get_device_properties=lambda device: {"max_shared_mem": H100.program_scratch_bytes},
        )

    def load(self, name, code, shared, device):
        self.loaded.append((name, len(code), shared))
        return object(), f"function {name}", 64, 0, 1024

    def launcher_cls(self, source, metadata):
        return lambda *args: self.launched.append(args)

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 7


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """An executor for cuda:0 of compute capability 9.0, its driver, and the devices that were made current."""

    def make(arch=90):
        recorder, entered = Recorder(arch), []

        @contextlib.contextmanager
        def current(device):
            entered.append(device)
            yield

        monkeypatch.setattr(kernels, "_target", lambda device: (recorder.target, recorder))
        monkeypatch.setattr(torch.cuda, "device", current)
        monkeypatch.setattr(drivers, "_active", recorder)
        return NativeExecutor(torch.device("cuda", 0), tmp_path), recorder, entered

    return make


def test_a_kernel_is_compiled_for_the_device_and_launched_with_its_tensors(gpu):
    executor, recorder, entered = gpu()
    assert not executor.native  # no machine code of ours: Triton's launcher runs it
    expr = expression(lambda x: torch.relu(x), (1000,), dtype=torch.float32)
    source = emit(expr, tiling_of(ranked(expr, H100, 10).best, H100))
    tensors = [torch.zeros(1000), torch.zeros(1000)]
    executor.launch(executor.compile(source), tensors)
    assert entered == [torch.device("cuda", 0)] * 2  # when it is loaded, and when it is launched
    ((x, y, z, stream, function, *rest),) = recorder.launched
    assert (x, y, z) == (source.grid, 1, 1) and stream == 7 and function == "function kernel"
    assert all(a is b for a, b in zip(rest[-2:], tensors))
    assert recorder.loaded[0][1] > 0


def test_descriptors_get_memory_on_the_device(gpu, monkeypatch):
    executor, recorder, _ = gpu()
    expr = expression(linear, *LINEAR)
    source = emit(expr, tiling_of(varied(expr, H100)["tma"], H100))
    given = []
    monkeypatch.setattr(triton, "set_allocator", given.append)
    kernel = executor.compile(source)
    executor.launch(kernel, [torch.zeros(1)] * len(source.signature))
    assert len(recorder.launched) == 1
    (allocate,) = given
    asked = []
    monkeypatch.setattr(torch, "empty", lambda size, **how: asked.append((size, how)))
    allocate(kernel.handle.metadata.global_scratch_size, 128, 7)
    assert asked == [
        (kernel.handle.metadata.global_scratch_size, {"dtype": torch.int8, "device": executor.device})
    ]


def test_machine_code_of_a_gpu_is_left_to_triton_s_cache(gpu):
    executor, _, _ = gpu()
    expr = expression(lambda x: torch.relu(x), (64,), dtype=torch.float32)
    source = emit(expr, tiling_of(ranked(expr, H100, 10).best, H100))
    assert executor.code(executor.compile(source)) == (b"", {})
    assert executor.restore(source, b"", {}) is None
    assert "90" in executor.environment[0]


@pytest.mark.parametrize("arch", [70, 75])
def test_gpus_that_triton_does_not_support_are_named(gpu, arch):
    with pytest.raises(KernelError, match=rf"from compute capability 8.0 on, cuda:0 has {arch / 10}.*spill"):
        gpu(arch)


@pytest.mark.parametrize(
    ("hip", "properties", "name"),
    [
        (None, {"major": 9, "minor": 0, "multi_processor_count": 114}, "H100, 114 units"),
        ("6.4", {"gcnArchName": "gfx90a:sramecc+:xnack-", "multi_processor_count": 104}, "MI250X, 104 units"),
    ],
)
def test_the_spec_of_a_gpu_follows_its_properties(monkeypatch, hip, properties, name):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(**properties))
    spec = pipeline.device_spec.__wrapped__(torch.device("cuda", 0))
    assert spec.name == name and spec.units == properties["multi_processor_count"]


def test_a_kernel_that_ptxas_gets_wrong_is_assembled_without_optimisation(gpu, monkeypatch):
    executor, _, _ = gpu()
    asked = []
    compiled = compiler.compile

    def compile_as_told(ast, target, options):
        asked.append(options.get("ptx_options"))
        return compiled(ast, target=target, options=options)

    monkeypatch.setattr(compiler, "compile", compile_as_told)
    monkeypatch.setattr(kernels, "miscompiled", lambda ptx: ".entry" in ptx)
    expr = expression(lambda x: torch.relu(x), (64,), dtype=torch.float32)
    executor.compile(emit(expr, tiling_of(ranked(expr, H100, 10).best, H100)))
    assert asked == [None, SAFE_OPTIONS]


def test_a_plan_launches_with_addresses(gpu, monkeypatch):
    """Inputs, the arena's temporaries and outputs, as they are at each call; the arena is taken anew each time."""
    executor, recorder, _ = gpu()
    monkeypatch.setattr(pipeline, "executor_for", lambda *_: executor)
    monkeypatch.setattr(pipeline, "device_spec", lambda device: H100)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    taken = []

    def allocate(nbytes, device):
        taken.append(torch.empty(max(nbytes, 1), dtype=torch.uint8).untyped_storage())
        return taken[-1]

    gm = make_fx(lambda x, w: [torch.relu(x @ w).softmax(-1) @ w])(torch.zeros(48, 48), torch.zeros(48, 48))
    x, w = torch.randn(48, 48), torch.randn(48, 48)
    made = pipeline.compile_graph(gm, [x, w], Options())
    assert not made.externs and len(made.launches) >= 2 and made.arena_bytes
    monkeypatch.setattr(plans, "allocate", allocate)
    here = torch.empty_strided
    monkeypatch.setattr(torch, "empty_strided", lambda *a, dtype, device: here(*a, dtype=dtype))
    pools = tuple(OutputPool(48 * 48, torch.float32, torch.device("cpu"), 0) for _ in made.pools)
    plan = replace(made, device=torch.device("cuda", 0), pools=pools)
    for _ in range(2):
        recorder.launched.clear()
        (out,) = plan([x, w])
        assert len(recorder.launched) == len(made.launches)
        first, *_, last = recorder.launched
        assert first[:4] == (made.launches[0].kernel.source.grid, 1, 1, 7)
        assert {x.data_ptr(), w.data_ptr()} <= set(first[-3:])
        assert out.data_ptr() in last and w.data_ptr() in last
        arena = next(s for s in reversed(taken) if s.nbytes() == made.arena_bytes)
        inside = [a for args in recorder.launched for a in args if isinstance(a, int)
                  and arena.data_ptr() <= a < arena.data_ptr() + arena.nbytes()]  # fmt: skip
        assert inside
    # the machine code reads 16 bytes at a time: a view that starts in between is copied first
    recorder.launched.clear()
    odd = torch.randn(48 * 48 + 1)[1:].view(48, 48)
    assert odd.data_ptr() % 16
    plan([odd, w])
    assert odd.data_ptr() not in recorder.launched[0] and all(a % 16 == 0 for a in recorder.launched[0][-3:])
