"""A backend named `cpu` makes PyTorch's has_triton() true; Inductor must go on as if we were not there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("triton")
torch = pytest.importorskip("torch")

COMPILE = """
import glob, hashlib, json, os, sys, warnings
warnings.simplefilter("ignore")
import torch
import torch._inductor.config as inductor
from torch.utils._triton import has_triton

MODE, MODEL = os.environ["MODE"], os.environ["MODEL"]
torch.manual_seed(0)
if MODEL == "bert":
    from transformers import BertConfig, BertModel
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = BertModel(BertConfig(num_hidden_layers=1, hidden_size=64, num_attention_heads=4,
                                             intermediate_size=128, vocab_size=100))
        def forward(self, ids):
            return self.bert(ids).last_hidden_state
    model, inputs = Model().eval(), (torch.randint(0, 100, (2, 16)),)
else:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(),
                                torch.nn.Flatten(), torch.nn.Linear(8 * 14 * 14, 33), torch.nn.GELU()).eval()
    inputs = (torch.randn(5, 3, 16, 16),)

with torch.no_grad():
    want = model(*inputs)
    if MODE == "aoti":
        package = torch._inductor.aoti_compile_and_package(torch.export.export(model, inputs))
        got = torch._inductor.aoti_load_package(package)(*inputs)
    else:
        inductor.cpp_wrapper = MODE == "cpp_wrapper"
        got = torch.compile(model)(*inputs)
torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)

cache = os.environ["TORCHINDUCTOR_CACHE_DIR"]
sources = [f for f in glob.glob(cache + "/**/*", recursive=True) if f.endswith((".cpp", ".h", ".py"))]
digest = sorted((os.path.basename(f), hashlib.sha256(open(f, "rb").read()).hexdigest()) for f in sources)
print(json.dumps({"has_triton": has_triton(), "sources": digest}))
"""


def _inductor(run_python: Callable[..., str], tmp_path: Path, installed: bool, mode: str, model: str) -> dict:
    folder = tmp_path / f"inductor-{'with' if installed else 'without'}"
    out = run_python(
        COMPILE, backend=installed, timeout_s=900, MODE=mode, MODEL=model, TORCHINDUCTOR_CACHE_DIR=str(folder)
    )
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler")
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a machine with a GPU has_triton() is true anyway")
@pytest.mark.parametrize("model", ["convolution", "bert"])
@pytest.mark.parametrize("mode", ["default", "cpp_wrapper", "aoti"])
def test_inductor_works_as_without_us(
    run_python: Callable[..., str], tmp_path: Path, mode: str, model: str
) -> None:
    if model == "bert":
        pytest.importorskip("transformers")
    with_us = _inductor(run_python, tmp_path, True, mode, model)
    assert with_us["has_triton"] is True
    without = _inductor(run_python, tmp_path, False, mode, model)
    if without["has_triton"]:
        pytest.skip("torchroller is installed in this environment: there is no 'without'")
    if mode != "aoti":  # with Triton about, AOTInductor names some kernels and comments differently
        assert with_us["sources"] == without["sources"]


@pytest.mark.slow
def test_user_kernels_and_inductor_share_a_process(run_python: Callable[..., str], tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("Inductor needs a C++ compiler")
    out = run_python(
        """
import torch, triton, triton.language as tl

@triton.jit
def double(x, out, n, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n) * 2, mask=i < n)

x, out = torch.randn(1000), torch.empty(1000)
double[(4,)](x, out, 1000, BLOCK=256)
compiled = torch.compile(lambda v: torch.softmax(v * 2, -1))(x)
torch.testing.assert_close(compiled, torch.softmax(out, -1))
double[(4,)](compiled, out, 1000, BLOCK=256)
torch.testing.assert_close(out, compiled * 2)
print("both")
""",
        timeout_s=900,
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "inductor"),
    )
    assert out.strip() == "both"
