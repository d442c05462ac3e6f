"""What the tests of the compiler share: compile, run, judge against float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from torchroller.backend import last_plans, roller
from torchroller.plan import ExecutionPlan


def compiled(fn: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`fn` through our backend, from an empty Dynamo cache."""
    torch._dynamo.reset()
    return torch.compile(fn, backend=roller, fullgraph=True, options=options)


def last_plan() -> ExecutionPlan:
    plan = last_plans()[-1]
    assert isinstance(plan, ExecutionPlan), str(plan)
    return plan


def double(value: Any) -> Any:
    def up(x: Any) -> Any:
        return x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x

    return tree_map(up, value)


def judge(fn: Callable[..., Any], *args: Any, slack: float = 4.0, **options: Any) -> ExecutionPlan:
    """Runs `fn` compiled, eager and in float64: our error must stay within `slack` times eager's (plus one ulp).

    Shapes, dtypes and strides must be eager's. Returns the plan.
    """
    with torch.no_grad():
        want = fn(*args)
        exact = (copy.deepcopy(fn).double() if isinstance(fn, torch.nn.Module) else fn)(*double(args))
        got = compiled(fn, **options)(*args)
    pairs = list(zip(tree_leaves(got), tree_leaves(want), tree_leaves(exact)))
    assert pairs
    for g, w, e in pairs:
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        assert all(s <= 1 or a == b for s, a, b in zip(w.shape, g.stride(), w.stride())), (
            g.stride(),
            w.stride(),
        )
        if not w.is_floating_point():
            assert torch.equal(g, w)
            continue
        known = torch.isfinite(w)
        assert torch.equal(known, torch.isfinite(g))
        assert torch.equal(torch.isnan(w), torch.isnan(g))
        if not known.any():
            continue
        scale = float(e[known].abs().max())
        theirs = float((w.double() - e)[known].abs().max())
        ours = float((g.double() - e)[known].abs().max())
        assert ours <= slack * theirs + 8 * torch.finfo(w.dtype).eps * max(scale, 1e-30), (
            ours,
            theirs,
            scale,
        )
    return last_plan()
