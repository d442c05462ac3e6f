"""Every kernel family compiles without the device: sm_80, sm_90 and gfx942, within their shared memory.

Runs in a process of its own: under TRITON_INTERPRET=1 this one has no compiler.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from torchsparta.formats import NM, Block, Dense, FineGrained, Int4, QuantizedInt8, Tile
from torchsparta.specialise import Epilogue, specialise
from torchsparta.specialise.attention import AttentionSpec, attention_program
from torchsparta.specialise.dots import dot_program, given_quantize_program, quantize_program
from torchsparta.specialise.linear import SpecialisedLinear
from torchsparta.specialise.pieces import (
    ConvSpec, given_panel_program, image_panel_program, panel_program, quantized_panel_program,
)
from torchsparta.specialise.rows import rows_program

backend, arch, warp = sys.argv[1], sys.argv[2], int(sys.argv[3])
target = GPUTarget(backend, int(arch) if arch.isdigit() else arch, warp)
w, mask = torch.randn(64, 128), torch.rand(64, 128) < 0.2
half = torch.arange(128).expand(64, 128) % 4 < 2
full = Epilogue(True, "gelu", True)


def check(name, program, pointers, integers):
    names = program.fn.arg_names
    types = {n: pointers.get(n, "*fp32") if n not in integers else "i32" for n in names}
    kernel = triton.compile(ASTSource(program.fn, types, {}), target=target)
    print(json.dumps({"kernel": name, "shared": kernel.metadata.shared, "warps": kernel.metadata.num_warps}))


TABLES = {"ptr": "*i32", "idx": "*i32", "order": "*i32", "meta": "*u8"}
SIZES = {"M", "N", "K", "KP", "panels", "stride_y", "stride_i", "stride_m", "stride_k", "stride_x", "H", "W", "OW",
         "stride_c", "stride_h", "stride_w", "items"}


def pointers_of(parts, x="*fp32"):
    found = {**{k: v for k, v in TABLES.items()}, "x": x, "y": x, "bias": x, "residual": x}
    for p, part in enumerate(parts):
        values = {"int8": "*i8", "int4": "*u8"}.get(part.name, x)
        found |= {f"ptr{p}": "*i32", f"idx{p}": "*i32", f"meta{p}": "*u8", f"val{p}": values, f"scale{p}": "*fp32"}
        found["val"] = values
    return found


for dtype, x in ((torch.float32, "*fp32"), (torch.float16, "*fp16"), (torch.bfloat16, "*bf16")):
    for parts in (
        (FineGrained.pack(w, mask, Tile(32, 32)),),
        (Block.pack(w, mask, (32, 1)),),
        (Block.pack(w, mask, (16, 16), Tile(32)), FineGrained.pack(w, ~mask, Tile(32))),
        (Dense.pack(w),),
        (NM.pack(w, half),),
        (QuantizedInt8.pack(w, mask, fine=True),),
        (Int4.pack(w, mask, block=(8, 8)),),
    ):
        for layout in ("linear", "image", "batch") if x == "*fp32" else ("linear",):
            spec = SpecialisedLinear(parts).spec(64, dtype, full, layout)
            pointers = pointers_of(parts, x) | {"xp": "*fp32", "scratch": "*fp32"}
            check(f"rows {layout} {parts[0].describe()} {x}", rows_program(spec), pointers, SIZES)
    for part in (Block.pack(w, mask, (32, 32), Tile(32), 32), Block.pack(w, mask, (16, 16), Tile(16), 16),
                 Dense.pack(w, None, Tile(64), 64)):
        program = dot_program(specialise((part,)).spec(128, dtype, full))
        check(f"dots {part.describe()} {x}", program, pointers_of((part,), x), SIZES)
    spec = AttentionSpec(32, 32, 64, 64, 8, 12, False, "tl.float32", 0.125)
    tables = {n: "*i32" for n in ("query_rows", "begin", "key_rows", "pattern")} | {"patterns": "*i8"}
    strides = {f"{t}_{s}" for t in "qkvo" for s in ("batch", "head", "row")}
    check(f"attention {x}", attention_program(spec), {t: x for t in "qkvo"} | tables, strides)
    check(f"panel {x}", panel_program("tl.float32", 64, 64), {"x": x}, SIZES)
    conv = ConvSpec((3, 3), (2, 2), (1, 1), (1, 1))
    check(f"image panel {x}", image_panel_program("tl.float32", 64, 64, conv), {"x": x}, SIZES)
    check(f"quantized panel {x}", quantized_panel_program(64, 64), {"x": x}, SIZES)
    check(f"given panel {x}", given_panel_program(64, 64), {"x": x}, SIZES)
    check(f"quantize {x}", quantize_program(16, 64), {"x": x, "q": "*i8"}, SIZES)
    check(f"given quantize {x}", given_quantize_program(16, 64), {"x": x, "q": "*i8"}, SIZES)

integer = QuantizedInt8.pack(w, mask, block=(32, 32), tile=Tile(32), group=32)
spec = specialise((integer,), integer=True).spec(128, torch.float32, full)
check("dots int8", dot_program(spec), pointers_of((integer,)) | {"x": "*i8"}, SIZES)
rows8 = QuantizedInt8.pack(w, mask, fine=True, tile=Tile(32, 32))
spec = SpecialisedLinear((rows8,), integer=True).spec(64, torch.float32, full)
check("rows int8", rows_program(spec), pointers_of((rows8,)) | {"xp": "*fp32", "scratch": "*i32"}, SIZES)
"""

SHARED_BYTES = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "target"),
    [("sm_80", ("cuda", "80", "32")), ("sm_90", ("cuda", "90", "32")), ("gfx942", ("hip", "gfx942", "64"))],
)
def test_every_kernel_compiles_and_fits(name, target, tmp_path):
    root = Path(__file__).parents[2]
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join([str(root), env.get("PYTHONPATH", "")])
    script = tmp_path / "offline.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, str(script), *target], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(kernels) == (7 * 3 + 3 + 7) + 2 * (7 + 3 + 7) + 2
    for kernel in kernels:
        assert kernel["shared"] <= SHARED_BYTES[name], kernel
