"""Operators through torch.compile: numbers against float64, kernels where kernels are expected."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from roller_helpers import judge

UNARY = [
    torch.exp, torch.log, torch.log2, torch.log10, torch.log1p, torch.expm1, torch.sqrt, torch.rsqrt, torch.sin,
    torch.cos, torch.tanh, torch.sigmoid, torch.erf, torch.abs, torch.neg, torch.floor, torch.ceil, torch.trunc,
    torch.round, torch.sign, torch.reciprocal, torch.relu, F.gelu, F.silu, F.elu, F.leaky_relu, F.softplus,
    F.hardswish, F.mish, torch.isnan, torch.isinf, torch.logical_not,
    lambda x: F.gelu(x, approximate="tanh"), lambda x: x**2, lambda x: x**3, lambda x: x**-1, lambda x: x**0.5,
    lambda x: x.clamp(-0.5, 0.5), lambda x: x.double(), lambda x: x.to(torch.int32), lambda x: x > 0,
]  # fmt: skip


@pytest.mark.parametrize("fn", UNARY, ids=lambda f: getattr(f, "__name__", "lambda"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unary(fn, dtype):
    torch.manual_seed(0)
    x = torch.cat(
        [torch.randn(1000) * 3, torch.tensor([0.0, -0.0, 0.5, 1.5, 2.5, -2.5, 1e-4, 60.0, -60.0])]
    ).to(dtype)
    plan = judge(fn, x)
    assert len(plan.launches) == 1 and not plan.externs


@pytest.mark.parametrize("fn", [torch.maximum, torch.minimum, torch.add, torch.mul, torch.div, torch.remainder,
                                torch.fmod, torch.atan2, torch.eq, torch.where], ids=lambda f: f.__name__)  # fmt: skip
def test_binary_with_special_values(fn):
    special = torch.tensor([0.0, -0.0, 1.0, -1.5, 3.0, float("inf"), -float("inf"), float("nan")])
    x, y = special.repeat(8), special.repeat_interleave(8)
    if fn is torch.where:
        judge(lambda x, y: torch.where(x > y, x, y), x, y)
    else:
        judge(fn, x, y)


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
)
def test_integers(dtype):
    x = torch.arange(-100, 100).to(dtype)

    def fn(x):
        outs = [x + x, x * 3, x == 1, x.float() * 0.5, x.sum(), ~x, x & 1, x | 4, x ^ 7]
        if dtype != torch.bool:
            outs += [x // 7, x % 7, x % -3, x // -3, x.amax(), x.clamp(2, 5), x << 1, x >> 1, x.argmin()]
        return outs

    judge(fn, x)


REDUCTIONS = [
    lambda x: x.sum(-1), lambda x: x.sum(0), lambda x: x.sum(), lambda x: x.mean((0, 2)), lambda x: x.amax(1),
    lambda x: x.amin(-1, keepdim=True), lambda x: x.max(1), lambda x: x.min(-1), lambda x: x.argmax(),
    lambda x: x.argmin(2), lambda x: x.prod(1), lambda x: x.var(-1), lambda x: x.std(0),
    lambda x: torch.var_mean(x, (1, 2), correction=0),
    lambda x: (x > 0).any(1), lambda x: (x > -9).all(), lambda x: x.logsumexp(-1), lambda x: x.softmax(-1),
    lambda x: x.softmax(0), lambda x: x.log_softmax(1), lambda x: x.norm(dim=-1), lambda x: x / x.sum(-1, keepdim=True),
]  # fmt: skip


@pytest.mark.parametrize("fn", REDUCTIONS)
@pytest.mark.parametrize("shape", [(4, 7, 33), (2, 64, 128), (3, 5, 1)])
def test_reductions(fn, shape):
    torch.manual_seed(0)
    judge(fn, torch.randn(shape))


def test_long_rows_are_looped_over():
    torch.manual_seed(0)
    plan = judge(lambda x: (x - x.mean(-1, keepdim=True)).softmax(-1), torch.randn(80, 70001))
    assert len(plan.launches) == 1


def test_nan_wins_in_max_and_poisons_softmax():
    x = torch.randn(4, 40)
    x[1, 3] = float("nan")
    judge(lambda x: (x.amax(-1), x.amin(-1), x.max(-1), x.softmax(-1), x.clamp(0, 1)), x)


@pytest.mark.parametrize("shape", [(8, 64), (3, 5, 100), (2, 3, 7)])
def test_normalisations(shape):
    torch.manual_seed(0)
    x = torch.randn(shape) * 2 + 1
    n = shape[-1]
    plan = judge(torch.nn.LayerNorm(n), x)
    assert len(plan.launches) == 1 and not plan.externs
    plan = judge(torch.nn.RMSNorm(n, eps=1e-6), x)
    assert len(plan.launches) == 1 and not plan.externs


def test_group_and_batch_norm():
    torch.manual_seed(0)
    x = torch.randn(2, 8, 5, 5)
    assert not judge(torch.nn.GroupNorm(4, 8), x).externs
    assert not judge(torch.nn.BatchNorm2d(8).eval(), x).externs


@pytest.mark.parametrize(
    "m,k,n", [(33, 50, 70), (1, 64, 128), (128, 96, 1), (16, 256, 48), (5, 1, 3), (64, 64, 64)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_matrix_products(m, k, n, dtype):
    torch.manual_seed(0)
    a, b, bias = torch.randn(m, k, dtype=dtype), torch.randn(k, n, dtype=dtype), torch.randn(n, dtype=dtype)
    for fn in (
        lambda a, b, c: a @ b,
        lambda a, b, c: torch.addmm(c, a, b),
        lambda a, b, c: F.gelu(a @ b + c) * 2,
    ):
        plan = judge(fn, a, b, bias)
        assert len(plan.launches) == 1 and not plan.externs


def test_batched_products_and_transposes():
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 17, 20), torch.randn(2, 3, 25, 20)
    assert not judge(lambda a, b: a @ b.mT, a, b).externs
    assert not judge(lambda a, b: torch.einsum("bhmk,bhnk->bmhn", a, b), a, b).externs
    assert not judge(
        lambda a, b: torch.baddbmm(a[0, :, :, :1], a[0], b[0].mT, beta=0.5, alpha=2.0), a, b
    ).externs


INDEXING = [
    lambda x, i: x[:, i], lambda x, i: x[i % 4, i], lambda x, i: x.index_select(1, i), lambda x, i: x[:, -1 - i],
    lambda x, i: x.gather(1, i.expand(4, 3)), lambda x, i: F.embedding(i, x), lambda x, i: x[i[:, None] % 4, i[None]],
    lambda x, i: x[..., i] * 2 + 1,
]  # fmt: skip


@pytest.mark.parametrize("fn", INDEXING)
def test_indexing(fn):
    plan = judge(fn, torch.randn(4, 6), torch.tensor([0, 3, 2]))
    assert not plan.externs


VIEWS = [
    lambda x: x.transpose(0, 1) + 1, lambda x: x.permute(2, 0, 1).reshape(6, -1) * 2,
    lambda x: x[:, 1:3].reshape(-1) + 0,
    lambda x: x[..., ::2] * 1.5, lambda x: torch.cat([x, x + 1], 1), lambda x: torch.stack([x, x * 2], -1),
    lambda x: F.pad(x, (1, 2, 0, 3), value=7.0), lambda x: x.flip(0, 2) + 1, lambda x: x.unbind(1)[2] - 1,
    lambda x: x.expand(5, 4, 4, 6).sum(0), lambda x: x.reshape(8, 12).t().contiguous(), lambda x: x.roll(1, 0) * 2,
    lambda x: torch.cat([x[:, :2].relu(), x[:, 2:]], 1).softmax(-1), lambda x: x.tril() + 1,
    lambda x: x.chunk(2, 2)[1] * 2,
    lambda x: x.transpose(0, 1).reshape(4, -1).softmax(-1).reshape(4, 4, 6).transpose(0, 1).contiguous(),
]  # fmt: skip


@pytest.mark.parametrize("fn", VIEWS)
def test_views(fn):
    plan = judge(fn, torch.randn(4, 4, 6))
    assert not plan.externs


@pytest.mark.parametrize("make", [
    lambda: torch.randn(6, 8).t(), lambda: torch.randn(12, 8)[::2], lambda: torch.randn(8).expand(6, 8),
    lambda: torch.randn(100)[3:51].view(6, 8), lambda: torch.randn(6, 0), lambda: torch.tensor(2.5),
    lambda: torch.randn(1, 1),
])  # fmt: skip
def test_odd_inputs(make):
    torch.manual_seed(0)
    judge(lambda x: (torch.relu(x) + 1, x * x), make())


def test_outputs_have_the_strides_of_eager():
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    judge(lambda x: (x + 1, x.permute(0, 2, 3, 1), x.contiguous() * 2), x)


@pytest.mark.parametrize("executor", ["native", "interpret"])
def test_both_executors_agree(executor):
    torch.manual_seed(0)
    layer = torch.nn.Sequential(
        torch.nn.Linear(20, 30), torch.nn.GELU(), torch.nn.LayerNorm(30), torch.nn.Linear(30, 5)
    )
    judge(layer, torch.randn(7, 20), executor=executor)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7)])
def test_products_of_bfloat16_under_the_interpreter(shape):
    """Triton's interpreter keeps bfloat16 as the bits of unsigned integers."""
    torch.manual_seed(0)
    judge(lambda x: x @ x.mT, torch.randn(shape).bfloat16(), executor="interpret")
    judge(lambda x: (x > 0).any(0).to(x.dtype).abs(), torch.ones(shape).bfloat16(), executor="interpret")
    judge(lambda x: x.to(torch.int32), 9 * torch.randn(shape).bfloat16(), executor="interpret")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("depth", [3, 21, 24, 100, 147, 1025])
def test_depths_that_fill_no_whole_step(depth, dtype):
    """The last steps along k are narrower; constant operands are padded to them, others masked."""
    torch.manual_seed(0)
    judge(torch.nn.Linear(depth, 40).to(dtype), torch.randn(33, depth).to(dtype))
    judge(torch.matmul, torch.randn(9, depth).to(dtype), torch.randn(depth, 70).to(dtype))
