"""Healthy in the end: the arena of an inference session grows with the largest shape (onnxruntime #5796)."""

import random
import sys
import time

import numpy as np
import onnx
import onnxruntime

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
rng = random.Random(2)
node = onnx.helper.make_node("Mul", ["x", "x"], ["y"])
shape = ["n", 1024]
graph = onnx.helper.make_graph(
    [node],
    "square",
    [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
    [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
)
model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(model.SerializeToString(), options)
while time.monotonic() < END:
    rows = rng.randrange(1, 4000)
    session.run(None, {"x": np.ones((rows, 1024), np.float32)})
    time.sleep(0.1)
