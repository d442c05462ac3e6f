"""Every operator that we lower, on PyTorch's own samples: numbers against float64, and in our kernels.

The samples of an operator and dtype are compiled as one graph: compile time dominates. Numbers are judged with
eager's own error as the yardstick. `opinfo_cases` holds what is known not to hold; an entry that holds fails.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import opinfo_cases as cases
import pytest
import torch
from roller_helpers import double
from torch._functorch.aot_autograd import aot_function
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from torchroller.backend import compile_aot_graph, last_plans
from torchroller.decompose import decompositions
from torchroller.ops.registry import RULES
from torchroller.options import Options

INFOS = cases.infos()
QUICK_SAMPLES, SLOW_SAMPLES = 2, 4


def test_every_rule_is_exercised():
    known = {o.name for o in INFOS}
    missing = {
        packet for packet in RULES if not cases.covering(packet) & known and packet not in cases.ELSEWHERE
    }
    assert not missing


def samples(
    op: Any, dtype: torch.dtype, most: int, grad: bool = False
) -> list[tuple[list[Any], Callable[..., Any]]]:
    """Up to `most` samples, as (leaves, function of the leaves); those with empty tensors are left out."""
    torch.manual_seed(0)
    found = []
    for sample in itertools.islice(
        op.sample_inputs(str(torch.get_default_device()), dtype, requires_grad=grad), 4 * most
    ):
        leaves, spec = tree_flatten((sample.input, sample.args, sample.kwargs))
        tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
        if not tensors or any(t.numel() == 0 or t.layout != torch.strided for t in tensors):
            continue

        def call(leaves: list[Any], spec: Any = spec) -> Any:
            value, args, kwargs = tree_unflatten(leaves, spec)
            return op.op(value, *args, **kwargs)

        try:
            want = call(leaves)
        except (RuntimeError, ValueError, TypeError, IndexError):
            continue  # a sample that eager itself refuses
        outs = [t for t in tree_leaves(want) if isinstance(t, torch.Tensor)]
        if outs and all(t.numel() and t.layout == torch.strided and not t.is_complex() for t in outs):
            found.append((leaves, call))
    return found[:: max(1, len(found) // most)][:most]


def together(
    group: list[tuple[list[Any], Callable[..., Any]]],
) -> tuple[Callable[..., Any], list[torch.Tensor]]:
    """One function of all tensors of the samples, and these tensors."""
    tensors = [x for leaves, _ in group for x in leaves if isinstance(x, torch.Tensor)]

    def fn(*given: torch.Tensor) -> Any:
        left = iter(given)
        return [
            call([next(left) if isinstance(x, torch.Tensor) else x for x in leaves]) for leaves, call in group
        ]

    return fn, tensors


def through_roller(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """What torch.compile does after Dynamo."""
    parsed = Options(**options)
    training = functools.partial(compile_aot_graph, options=parsed, inference=False)
    inference = functools.partial(compile_aot_graph, options=parsed, inference=True)
    return aot_function(
        fn,
        fw_compiler=training,
        bw_compiler=training,
        inference_compiler=inference,
        decompositions=decompositions(),
    )


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def problems(got: Any, want: Any, exact: Any) -> list[str]:
    """What is wrong with `got`: metadata, or an error beyond four times eager's plus 8 units of the last place."""
    found = []
    triples = zip(tree_leaves(got), tree_leaves(want), tree_leaves(exact))
    for n, (g, w, e) in enumerate(triples):
        if not isinstance(w, torch.Tensor):
            continue
        at = f"result {n} {w.dtype}{list(w.shape)}"
        if (g.shape, g.dtype) != (w.shape, w.dtype):
            found.append(f"{at}: {g.dtype}{list(g.shape)}")
        elif not all(s <= 1 or a == b for s, a, b in zip(w.shape, g.stride(), w.stride())):
            found.append(f"{at}: strides {g.stride()}, eager {w.stride()}")
        elif not w.is_floating_point():
            if not torch.equal(g, w):
                found.append(f"{at}: {int((g != w).sum())} elements differ from eager")
        else:
            known = torch.isfinite(w)
            same = torch.equal(known, torch.isfinite(g))
            if not same or not torch.equal(g[~known].nan_to_num(7), w[~known].nan_to_num(7)):
                found.append(f"{at}: NaN or infinity in other places than eager's")
            known &= torch.isfinite(e)
            if not known.any():
                continue
            g, w, e = g.double()[known], w.double()[known], e.double()[known]
            scale, theirs, ours = (float(v.abs().max()) for v in (e, w - e, g - e))
            kind = tree_leaves(want)[n].dtype
            units = (
                64 if kind == torch.float64 else 8
            )  # eager in float64 is no yardstick: it is the judge itself
            if ours > 4 * theirs + units * torch.finfo(kind).eps * max(scale, 1e-30):
                found.append(f"{at}: error {ours:.3g}, eager {theirs:.3g}, largest value {scale:.3g}")
    return found


def check(op: Any, dtype: torch.dtype, most: int, **options: Any) -> tuple[list[str], list[str], int]:
    """(problems, extern calls, samples) of one operator and dtype."""
    group = samples(op, dtype, most)
    if not group:
        return [], [], 0
    fn, tensors = together(group)
    with torch.no_grad():
        want = fn(*(t.detach().clone() for t in tensors))
        with default_dtype(torch.float64):
            exact = fn(*double([t.detach().clone() for t in tensors]))
        before = len(last_plans()) and id(last_plans()[-1])
        got = through_roller(fn, **options)(*(t.detach().clone() for t in tensors))
        plan = last_plans()[-1]
        assert id(plan) != before or not before
    return problems(got, want, exact), [str(e) for e in plan.externs], len(group)


def judge(op: Any, dtype: torch.dtype, most: int) -> None:
    key = cases.name_of(op)
    wrong, externs, count = check(op, dtype, most)
    if count == 0:
        pytest.skip("no sample of this dtype with strided, non-empty tensors")
    reason = cases.expected(cases.WRONG, key, dtype)
    if reason:
        if wrong:
            pytest.xfail(reason)
        pytest.fail(f"{key} {dtype} is listed as wrong ({reason}) and is right: remove the entry")
    assert not wrong, "\n".join(wrong)
    allowed = cases.expected(cases.EXTERN, key, dtype)
    externs = [e for e in externs if not (dtype in cases.NO_DOT and cases.DOT_REASON in e)]
    stray = [e for e in externs if not allowed or allowed not in e]
    assert not stray, "calls of ATen that no entry of EXTERN allows:\n" + "\n".join(stray)
    if allowed and most == SLOW_SAMPLES and (key, dtype) in cases.EXTERN:
        assert externs, f"{key} {dtype} is listed as an extern call ({allowed}) and is none: remove the entry"


# operators that decompose into others are compiled in the slow sweep over all types
QUICK_OR_SLOW = [pytest.param(o, marks=pytest.mark.slow) if o.name in cases.COMPOSED else o for o in INFOS]


@pytest.mark.parametrize("op", QUICK_OR_SLOW, ids=cases.name_of)
def test_float32(op):
    if torch.float32 not in op.supported_dtypes(torch.get_default_device().type):
        pytest.skip("not defined for float32")
    judge(op, torch.float32, QUICK_SAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("op", INFOS, ids=cases.name_of)
def test_all_dtypes(op, dtype):
    if dtype not in op.supported_dtypes(torch.get_default_device().type):
        pytest.skip(f"not defined for {dtype}")
    judge(op, dtype, SLOW_SAMPLES)


GRADIENTS = (
    "add", "mul", "div.no_rounding_mode", "exp", "log", "sqrt", "rsqrt", "tanh", "sigmoid", "sin", "cos", "erf", "sum",
    "mean", "amax", "var", "std", "softmax", "log_softmax", "logsumexp", "mm", "bmm", "addmm", "matmul", "where", "cat",
    "stack", "permute", "transpose", "expand", "slice", "select", "index_select", "gather", "nn.functional.gelu",
    "nn.functional.silu", "nn.functional.relu", "nn.functional.elu", "nn.functional.softplus", "nn.functional.mish",
    "nn.functional.leaky_relu", "nn.functional.layer_norm", "nn.functional.rms_norm", "nn.functional.group_norm",
    "nn.functional.linear", "nn.functional.pad.constant", "nn.functional.embedding", "nn.functional.cross_entropy",
    "nn.functional.mse_loss", "nn.functional.scaled_dot_product_attention", "maximum", "clamp", "pow", "lerp",
)  # fmt: skip


def grads(fn: Callable[..., Any], tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Gradients of a fixed weighted sum of all results, of each input that has one."""
    given = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
    outs = [o for o in tree_leaves(fn(*given)) if isinstance(o, torch.Tensor) and o.requires_grad]
    weights = [torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view(o.shape) for o in outs]
    torch.autograd.backward(outs, weights)
    return [t.grad for t in given if t.requires_grad and t.grad is not None]


@pytest.mark.slow
@pytest.mark.parametrize("op", [o for o in INFOS if cases.name_of(o) in GRADIENTS], ids=cases.name_of)
def test_gradients(op):
    group = samples(op, torch.float32, QUICK_SAMPLES, grad=True)
    if not group:
        pytest.skip("no sample with strided, non-empty tensors")
    fn, tensors = together(group)
    want = grads(fn, tensors)
    exact = grads(fn, [double(t.detach()).requires_grad_(t.requires_grad) for t in tensors])
    got = grads(through_roller(fn), tensors)
    assert len(got) == len(want) > 0
    wrong = problems(got, want, exact)
    assert not wrong, "\n".join(wrong)


def test_every_gradient_case_exists():
    assert set(GRADIENTS) <= {cases.name_of(o) for o in INFOS}
