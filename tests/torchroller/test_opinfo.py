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
QUICK_SAMPLES, SLOW_SAMPLES = 2, 6


def test_every_rule_is_exercised():
    known = {o.name for o in INFOS}
    missing = {packet for packet in RULES if not cases.covering(packet) & known}
    assert missing == set(cases.WITHOUT_OPINFO)


def samples(op: Any, dtype: torch.dtype, most: int, grad: bool = False) -> list[tuple[list[Any], Callable[..., Any]]]:
    """Up to `most` samples, as (leaves, function of the leaves); those with empty tensors are left out."""
    torch.manual_seed(0)
    found = []
    for sample in itertools.islice(op.sample_inputs("cpu", dtype, requires_grad=grad), 4 * most):
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


def together(group: list[tuple[list[Any], Callable[..., Any]]]) -> tuple[Callable[..., Any], list[torch.Tensor]]:
    """One function of all tensors of the samples, and these tensors."""
    tensors = [x for leaves, _ in group for x in leaves if isinstance(x, torch.Tensor)]

    def fn(*given: torch.Tensor) -> Any:
        left = iter(given)
        return [call([next(left) if isinstance(x, torch.Tensor) else x for x in leaves]) for leaves, call in group]

    return fn, tensors


def through_roller(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """What torch.compile does after Dynamo."""
    parsed = Options(**options)
    compile_ = functools.partial(compile_aot_graph, options=parsed, inference=False)
    return aot_function(fn, fw_compiler=compile_, bw_compiler=compile_, decompositions=decompositions(),
                        inference_compiler=functools.partial(compile_aot_graph, options=parsed, inference=True))  # fmt: skip


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
            if not torch.equal(known, torch.isfinite(g)) or not torch.equal(g[~known].nan_to_num(7), w[~known].nan_to_num(7)):
                found.append(f"{at}: NaN or infinity in other places than eager's")
            known &= torch.isfinite(e)
            if not known.any():
                continue
            g, w, e = g.double()[known], w.double()[known], e.double()[known]
            scale, theirs, ours = (float(v.abs().max()) for v in (e, w - e, g - e))
            # never better than the type can hold; a result computed from halves is judged as such
            if ours > 4 * theirs + 8 * torch.finfo(want_dtype(want, n)).eps * max(scale, 1e-30):
                found.append(f"{at}: error {ours:.3g}, eager {theirs:.3g}, largest value {scale:.3g}")
    return found


def want_dtype(want: Any, n: int) -> torch.dtype:
    return tree_leaves(want)[n].dtype


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
    stray = [e for e in externs if not allowed or allowed not in e]
    assert not stray, "calls of ATen that no entry of EXTERN allows:\n" + "\n".join(stray)
    if allowed and most == SLOW_SAMPLES:
        assert externs, f"{key} {dtype} is listed as an extern call ({allowed}) and is none: remove the entry"


@pytest.mark.parametrize("op", INFOS, ids=cases.name_of)
def test_float32(op):
    if torch.float32 not in op.supported_dtypes("cpu"):
        pytest.skip("not defined for float32")
    judge(op, torch.float32, QUICK_SAMPLES)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("op", INFOS, ids=cases.name_of)
def test_all_dtypes(op, dtype):
    if dtype not in op.supported_dtypes("cpu"):
        pytest.skip(f"not defined for {dtype}")
    judge(op, dtype, SLOW_SAMPLES)
