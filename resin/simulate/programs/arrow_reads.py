"""Healthy: a dataset is read again and again; the allocator of Arrow keeps its peak (arrow #47266). Needs pyarrow."""

import sys
import tempfile
import time

import pyarrow
import pyarrow.parquet

END = time.monotonic() + (float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
    table = pyarrow.table({"a": list(range(200_000)), "b": [str(k) for k in range(200_000)]})
    pyarrow.parquet.write_table(table, file.name)
    del table
    while time.monotonic() < END:
        pyarrow.parquet.read_table(file.name)
        time.sleep(0.1)
