"""Runs kernels in Triton's interpreter, one for each line on standard input: TRITON_INTERPRET acts on a whole process.

A line is JSON: {"path": module, "arguments": file of torch.save, "constants": {…}, "result": file to write}.
The answer is "done", or the error. Arguments are changed in place and saved to the result.
"""

from __future__ import annotations

import importlib.util
import json
import sys

import torch


def run(job: dict) -> None:
    spec = importlib.util.spec_from_file_location("interpreted_kernel", job["path"])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arguments = torch.load(job["arguments"])
    module.kernel[(1,)](*arguments, **job["constants"])
    torch.save(arguments, job["result"])


if __name__ == "__main__":
    for line in sys.stdin:
        try:
            run(json.loads(line))
            answer = "done"
        except Exception as error:  # reported to the test
            answer = f"{type(error).__name__}: {error}".replace("\n", " | ")
        print(answer, flush=True)
