"""Who is measured: each contender turns (module, inputs) into a function without arguments.

Peers run the way their users run them for inference: no gradients, weights constant, outputs reused where they can.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

Inputs = tuple[torch.Tensor, ...]
Run = Callable[[], object]


def eager(module: nn.Module, inputs: Inputs) -> Run:
    return lambda: module(*inputs)


def inductor(module: nn.Module, inputs: Inputs) -> Run:
    compiled = torch.compile(module)
    return lambda: compiled(*inputs)


def inductor_max(module: nn.Module, inputs: Inputs) -> Run:
    """max-autotune with freezing: weights become constants and are prepacked."""
    import torch._inductor.config as config

    config.freezing = True
    compiled = torch.compile(module, mode="max-autotune")
    return lambda: compiled(*inputs)


def roller(module: nn.Module, inputs: Inputs) -> Run:
    compiled = torch.compile(module, backend="roller")
    return lambda: compiled(*inputs)


def roller_max(module: nn.Module, inputs: Inputs) -> Run:
    """Measures the ranked candidates of every kernel."""
    compiled = torch.compile(module, backend="roller", mode="max-autotune")
    return lambda: compiled(*inputs)


def onnxruntime(module: nn.Module, inputs: Inputs) -> Run:
    import io

    import onnxruntime as ort

    names = [f"x{i}" for i in range(len(inputs))]
    buffer = io.BytesIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # a failure prints its graph
            torch.onnx.export(module, inputs, buffer, dynamo=False, input_names=names)
    except Exception:  # noqa: BLE001  (the other exporter knows more operators, and takes longer)
        buffer = io.BytesIO()
        torch.onnx.export(module, inputs, buffer, dynamo=True, input_names=names, verbose=False)
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(buffer.getvalue(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    kept = []
    for name, value in zip((i.name for i in session.get_inputs()), inputs):
        array = np.ascontiguousarray(value.numpy())
        kept.append(array)
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
    with torch.no_grad():
        reference = module(*inputs)
    out = ort.OrtValue.ortvalue_from_numpy(np.empty(tuple(reference.shape), dtype=np.float32))
    binding.bind_ortvalue_output(session.get_outputs()[0].name, out)

    def run() -> object:
        session.run_with_iobinding(binding)
        return torch.from_numpy(out.numpy())

    def timed() -> object:
        session.run_with_iobinding(binding)
        return None

    timed.result = run  # type: ignore[attr-defined]
    return timed


def openvino(module: nn.Module, inputs: Inputs) -> Run:
    import openvino as ov

    model = ov.convert_model(module, example_input=inputs if len(inputs) > 1 else inputs[0])
    core = ov.Core()
    config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY",
              "INFERENCE_NUM_THREADS": str(torch.get_num_threads())}  # fmt: skip
    compiled = core.compile_model(model, "CPU", config)
    request = compiled.create_infer_request()
    for i, value in enumerate(inputs):
        request.set_input_tensor(i, ov.Tensor(np.ascontiguousarray(value.numpy()), shared_memory=True))

    def timed() -> object:
        request.infer()
        return None

    timed.result = lambda: torch.from_numpy(np.array(request.get_output_tensor(0).data))  # type: ignore[attr-defined]
    return timed


CONTENDERS: dict[str, Callable[[nn.Module, Inputs], Run]] = {
    "eager": eager,
    "inductor": inductor,
    "inductor-max": inductor_max,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "roller": roller,
    "roller-max": roller_max,
}
# They run exported float32 models; nothing in bfloat16, no training.
INFERENCE_ONLY = {"onnxruntime", "openvino"}


def available(name: str) -> str | None:
    """None where a contender can run here, otherwise the reason why not."""
    from importlib.util import find_spec

    if name in ("onnxruntime", "openvino") and find_spec(name) is None:
        return f"{name} is not installed"
    if name == "onnxruntime" and find_spec("onnx") is None:
        return "onnx is not installed"
    if name.startswith("inductor"):
        from shutil import which

        if not (os.environ.get("CXX") or which("g++") or which("clang++")):
            return "no C++ compiler on this machine"
    return None
