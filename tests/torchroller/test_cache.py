"""The disk cache: warm processes compile nothing; damage and missing directories do no harm."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from roller_helpers import compiled, last_plan

from torchroller import kernel, store

PROGRAM = """
import torch
import torchroller.kernel as kernel
from torchroller.backend import roller, last_plans
built = []
real = kernel.NativeExecutor.compile
kernel.NativeExecutor.compile = lambda self, source: (built.append(source.name), real(self, source))[1]
torch.manual_seed(0)
x, w = torch.randn(20, 30), torch.randn(30, 40)
with torch.no_grad():
    y = torch.compile(lambda x, w: (x @ w).softmax(-1), backend=roller)(x, w)
torch.testing.assert_close(y, (x @ w).softmax(-1))
assert not last_plans()[-1].externs
print("compiled", len(built))
"""


def run(directory, **env):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "TORCHROLLER_CACHE_DIR": str(directory), **env}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done


def test_a_damaged_entry_is_replaced_and_the_next_process_compiles_nothing(tmp_path):
    assert "compiled 2" in run(tmp_path).stdout
    files = sorted(tmp_path.rglob("*.kernel"))
    assert len(files) == 2
    files[0].write_bytes(files[0].read_bytes()[:-7])
    files[1].write_bytes(b"not ours")
    for source in tmp_path.rglob("*.py"):
        source.write_text("broken = (")
    assert "compiled 2" in run(tmp_path).stdout
    assert "compiled 0" in run(tmp_path).stdout


def test_a_directory_that_cannot_be_made_costs_the_cache_only(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = run(blocked / "cache")
    assert "compiled 2" in done.stdout
    assert "cannot be written" in done.stderr and "TORCHROLLER_CACHE_DIR" in done.stderr


@pytest.mark.slow
def test_two_processes_at_once(tmp_path):
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    env = {**os.environ, "TORCHROLLER_CACHE_DIR": str(tmp_path),
           "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}  # fmt: skip
    both = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], env=env, stderr=subprocess.PIPE) for _ in range(2)
    ]
    for process in both:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
    assert "compiled 0" in run(tmp_path).stdout


def test_an_entry_survives_the_round_trip(tmp_path):
    compiled(torch.nn.Linear(33, 17))(torch.randn(3, 33))
    with torch.no_grad():
        compiled(torch.nn.Linear(33, 17))(torch.randn(3, 33))
    source = last_plan().launches[0].kernel.source
    assert source.packs
    entry = store.Entry(source, b"\x00code", {"name": "k", "scratch_bytes": 64}, 2, (0.5, 0.25))
    store.write(tmp_path, "key", entry)
    assert store.read(tmp_path, "key") == entry
    assert store.read(tmp_path, "other") is None


def test_a_kernel_that_triton_refuses_is_named():
    executor = kernel.executor_for("native", torch.device("cpu"), kernel.cache_dir())
    bad = kernel.TritonSource("oops", "import triton\nimport triton.language as tl\n\n\n@triton.jit\ndef oops(t0):\n"
                              "    tl.store(t0, undefined_name)\n", ("*fp32",), 1)  # fmt: skip
    with pytest.raises(kernel.KernelError, match="could not compile kernel oops for (?s:.*)undefined_name"):
        executor.compile(bad)


def test_kernels_that_differ_in_strides_alone_have_different_entries():
    from torchroller.expr import Access, Affine, Axis, TensorExpr, Value, Write

    def copy(strides):
        index = (Affine((("i0", 1),)), Affine((("i1", 1),)))
        return TensorExpr("copy", (Axis("i0", 4), Axis("i1", 4)),
                          (Value("load", "float32", access=Access("t0", "float32", (4, 4), strides, index)),),
                          (Write(Access("t1", "float32", (4, 4), (4, 1), index), 0),))  # fmt: skip

    assert store.key_of(copy((4, 1))) != store.key_of(copy((1, 4)))
    assert store.key_of(copy((4, 1))) == store.key_of(copy((4, 1)))
