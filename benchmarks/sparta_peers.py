"""The contenders of the sparse benchmarks: each is built once and then called in turn, in one process.

A builder returns a callable, or a string that says why the contender is absent. DeepSparse needs Python <= 3.11
and numpy < 2, so it runs in its own interpreter (DEEPSPARSE_PYTHON) and reports the seconds of each call.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Contender = Callable[[], float | None]
"""Runs once. Returns its own seconds where it measures itself (other processes), else None."""


def linear_onnx(weight: Tensor, m: int, path: Path) -> Path:
    """y = x W^T as an ONNX file with a fixed input [m, K]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    n, k = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [m, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [m, n])],
        [numpy_helper.from_array(np.ascontiguousarray(weight.T.numpy()), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, str(path))
    return path


def eager(x: Tensor, weight: Tensor) -> Contender:
    return _quiet(lambda: nn.functional.linear(x, weight))


def bf16(x: Tensor, weight: Tensor) -> Contender:
    xb, wb = x.bfloat16(), weight.bfloat16()
    return _quiet(lambda: nn.functional.linear(xb, wb))


def torch_int8(x: Tensor, weight: Tensor) -> Contender | str:
    try:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight.data = weight.clone()
        quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(layer), {nn.Linear}, torch.qint8)
        quantised(x)
    except (RuntimeError, AttributeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return _quiet(lambda: quantised(x))


def torch_csr(x: Tensor, weight: Tensor) -> Contender:
    csr, xt = weight.to_sparse_csr(), x.T.contiguous()
    return _quiet(lambda: csr @ xt)


def torch_bsr(x: Tensor, weight: Tensor, block: tuple[int, int]) -> Contender | str:
    try:
        bsr, xt = weight.to_sparse_bsr(block), x.T.contiguous()
        bsr @ xt
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return _quiet(lambda: bsr @ xt)


def onnxruntime(x: Tensor, weight: Tensor, int8: bool = False) -> Contender | str:
    try:
        import onnxruntime as ort
    except ImportError as error:
        return f"not installed ({error})"
    with tempfile.TemporaryDirectory() as folder:
        path = linear_onnx(weight, x.shape[0], Path(folder) / "linear.onnx")
        if int8:
            from onnxruntime.quantization import QuantType, quantize_dynamic

            small = Path(folder) / "int8.onnx"
            quantize_dynamic(
                str(path), str(small), weight_type=QuantType.QInt8, per_channel=True,
                reduce_range=not _sums_whole(),
            )  # fmt: skip
            path = small
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    binding, out = session.io_binding(), np.empty((x.shape[0], weight.shape[0]), np.float32)
    given = x.numpy()
    binding.bind_input("x", "cpu", 0, np.float32, given.shape, given.ctypes.data)
    binding.bind_output("y", "cpu", 0, np.float32, out.shape, out.ctypes.data)
    held = (given, out)

    def run() -> tuple[object, ...]:
        session.run_with_iobinding(binding)
        return held

    return _quiet(run)


def openvino(x: Tensor, weight: Tensor, int8: bool = False) -> Contender | str:
    """int8: weights by channel and inputs by tensor, quantised ahead of time on `x` itself (the peer's best
    case); absent if OpenVINO does not multiply integers then."""
    try:
        import openvino as ov
    except ImportError as error:
        return f"not installed ({error})"
    core = ov.Core()
    with tempfile.TemporaryDirectory() as folder:
        path = linear_onnx(weight, x.shape[0], Path(folder) / "linear.onnx")
        if int8:
            path = _quantised(path, x)
        model = core.read_model(str(path))
        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(model, "CPU", settings)
    if int8:
        products = [n for n in compiled.get_runtime_model().get_ops()
                    if n.get_rt_info()["layerType"].astype(str) in ("MatMul", "FullyConnected")]  # fmt: skip
        types = [n.get_rt_info()["runtimePrecision"].astype(str) for n in products]
        if not types or any(t not in ("i8", "u8") for t in types):
            return f"OpenVINO runs the quantised product in {', '.join(types) or 'no layer of its own'}"
    request = compiled.create_infer_request()
    tensor = ov.Tensor(x.numpy(), shared_memory=True)
    request.set_input_tensor(tensor)
    request.infer()
    held = (core, model, compiled, tensor, x)  # a request does not keep what it was made from

    def run() -> tuple[object, ...]:
        request.infer()
        return held

    return _quiet(run)


def _sums_whole() -> bool:
    """Whether the CPU adds products of u8 and s8 without saturating (VNNI). Without, pairs are added in 16 bits,
    and a peer that is given 8 bits of weight is wrong by a tenth of the largest output: it gets 7, as ONNX
    Runtime's manual says."""
    return any(
        "vnni" in flag
        for flag in Path("/proc/cpuinfo").read_text().partition("flags")[2].split("\n")[0].split()
    )


def _quantised(path: Path, x: Tensor) -> Path:
    """The model with quantise and dequantise nodes around its product (QDQ), calibrated on `x`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Once(CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter([{"x": x.numpy()}])

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rest, None)

    small = path.with_name("qdq.onnx")
    quantize_static(
        str(path), str(small), Once(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, reduce_range=not _sums_whole(),
    )  # fmt: skip
    return small


def roller(x: Tensor, weight: Tensor) -> Contender | str:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    try:
        compiled = torch.compile(layer, backend="roller")
        with torch.no_grad():
            compiled(x)
    except Exception as error:  # whatever a missing or broken compiler raises: the row says so
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"

    def run() -> None:
        with torch.no_grad():
            compiled(x)

    return _quiet(run)


class DeepSparse:
    """A child process that compiles ONNX files and times single calls when it is asked to."""

    def __init__(self, python: str) -> None:
        script = Path(__file__).with_name("deepsparse_server.py")
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH",)}
        self.child = subprocess.Popen(
            [python, str(script), str(torch.get_num_threads())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env,
        )  # fmt: skip
        self.folder = tempfile.TemporaryDirectory()
        self.count = 0

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.child.stdin is not None and self.child.stdout is not None
        self.child.stdin.write(json.dumps(request) + "\n")
        self.child.stdin.flush()
        line = self.child.stdout.readline()
        if not line:
            raise RuntimeError(f"the DeepSparse process ended with status {self.child.wait()}")
        return dict(json.loads(line))

    def contender(self, x: Tensor, weight: Tensor) -> Contender | str:
        self.count += 1
        path = linear_onnx(weight, x.shape[0], Path(self.folder.name) / f"{self.count}.onnx")
        ready = self.ask(op="load", path=str(path), shape=list(x.shape))
        if "error" in ready:
            return str(ready["error"])
        return lambda: float(self.ask(op="run")["seconds"])

    def close(self) -> None:
        self.child.terminate()
        self.folder.cleanup()


def _quiet(run: Callable[[], object]) -> Contender:
    def contender() -> None:
        run()

    return contender
