"""Runs inside DeepSparse's own environment: loads ONNX files and times single calls, one JSON line each way."""

import json
import os
import sys
import time


def main() -> None:
    protocol = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the engine prints its banner to standard output
    import numpy as np

    os.environ.setdefault("NM_BIND_THREADS_TO_CORES", "0")
    from deepsparse import compile_model

    threads, engine, inputs = int(sys.argv[1]), None, []
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict = {}
        try:
            if request["op"] == "load":
                engine = compile_model(request["path"], batch_size=request["shape"][0], num_cores=threads)
                inputs = [np.random.default_rng(0).standard_normal(request["shape"]).astype(np.float32)]
                engine.run(inputs)
            else:
                start = time.perf_counter()
                engine.run(inputs)
                answer["seconds"] = time.perf_counter() - start
        except Exception as error:  # handed to the benchmark, which reports it
            answer["error"] = f"{type(error).__name__}: {error}"
        protocol.write(json.dumps(answer) + "\n")
        protocol.flush()


if __name__ == "__main__":
    main()
