"""Every kernel of a model also compiles for GPUs that are not here, within their shared memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import triton
from roller_helpers import judge
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from torchroller import kernel
from torchroller.choose import emit, tiling_of
from torchroller.device import DeviceSpec
from torchroller.emit.attention import attention_tiling, is_attention
from torchroller.search import construct

TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_90": (GPUTarget("cuda", 90, 32), 227 * 1024),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 64 * 1024),
}


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(50, 64)
        self.norm = torch.nn.LayerNorm(64)
        self.qkv, self.up, self.down = (
            torch.nn.Linear(64, 192),
            torch.nn.Linear(64, 256),
            torch.nn.Linear(256, 64),
        )

    def forward(self, ids):
        x = self.norm(self.table(ids))
        q, k, v = (t.unflatten(-1, (4, 16)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        y = x + self.down(F.gelu(self.up(a)))
        return (
            y.mean(1),
            y.sum(0).amax(),
            (y @ y.mT).softmax(-1),
            y[:, 0] @ self.up.weight.mT,
            y.tanh().argmax(-1),
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_every_kernel_compiles_and_fits(name):
    torch.manual_seed(0)
    target, limit = TARGETS[name]
    spec = DeviceSpec.for_target(target.backend, target.arch)
    plan = judge(Model().eval(), torch.randint(0, 50, (2, 24)))
    assert not plan.externs
    for expr in {launch.expr for launch in plan.launches}:
        tiling = (
            attention_tiling(expr, False)
            if is_attention(expr)
            else tiling_of(construct(expr, spec).best, False)
        )
        source = emit(expr, tiling)
        fn = getattr(kernel.load_module(source, kernel.cache_dir()), source.name)
        built = triton.compile(
            ASTSource(fn=fn, signature=dict(zip(fn.arg_names, source.signature)), constexprs={}, attrs={}),
            target=target,
            options={"num_warps": source.num_warps, "num_stages": source.num_stages},
        )
        assert built.metadata.shared <= limit, source.text
