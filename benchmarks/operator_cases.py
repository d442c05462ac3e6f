"""The 119 operators of the ROLLER evaluation as cases, their batch scaled to the machine.

A case is a layer as a model has it: the second operand of a product and the filters of a convolution are parameters,
so that everybody may lay them out in advance. Its name says by how much the batch was divided: C0/32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from cases import CASES, Case
from torch import nn

from torchroller import operators
from torchroller.operators import Operator
from torchroller.spec import MiB

FLOPS_PER_CORE = 2e9  # of one case; a core does 50 to 250 of these a second
BYTES_PER_CORE = (
    96 * MiB
)  # that the batch accounts for: beyond the share of the last-level cache that a core has
_TURN_S = 0.02
_ALL = 1 << 30  # divides any batch down to 1


class _Layer(nn.Module):
    """A function whose further arguments are parameters."""

    def __init__(self, fn: Callable[..., torch.Tensor], *parameters: torch.Tensor) -> None:
        super().__init__()
        self.fn = fn
        self.held = nn.ParameterList([nn.Parameter(p, requires_grad=False) for p in parameters])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fn(x, *self.held)


def divisor(op: Operator, cores: int) -> int:
    """The smallest power of two by which the batch is divided so that a call takes some 10 ms."""
    fixed_bytes = op.scaled(_ALL).expr().bytes()  # weights, mostly
    found = 1
    while op.scaled(2 * found) != op.scaled(found):
        expr = op.scaled(found).expr()
        if expr.flops() <= FLOPS_PER_CORE * cores and expr.bytes() - fixed_bytes <= BYTES_PER_CORE * cores:
            break
        found *= 2
    return found


def case(op: Operator, scale: int) -> Case:
    scaled = op.scaled(scale)
    expr = scaled.expr()

    def make() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        torch.manual_seed(0)
        fn, (x, *held) = scaled.call()
        return _Layer(fn, *held).eval(), (x,)

    flops = float(expr.flops()) if op.op in ("matmul", "conv2d", "depthwise_conv2d") else 0.0
    return Case(
        f"{op.id}/{scale}", op.op, make, flops, float(expr.bytes()), "the fastest peer", turn_s=_TURN_S
    )


def find(name: str) -> Case:
    """The case of a name: one of bench.py, or an operator such as C0/32. Raises LookupError for any other."""
    known = next((c for c in CASES if c.name == name), None)
    if known is not None:
        return known
    number, _, scale = name.partition("/")
    op = next((o for o in operators.read() if o.id == number), None)
    if op is None or not scale.isdigit():
        raise LookupError(f"{name!r} is no case: an operator's id, a slash and the divisor of its batch are")
    return case(op, int(scale))
