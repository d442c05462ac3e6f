"""Quantization of what goes into a site: the integers that int8 x int8 kernels multiply, and the same in torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

INT8 = (-128, 127)
MAGIC = 12582912.0
"""1.5 * 2**23: added to |x| < 2**22 it leaves the nearest integer (half to even) in the low bits of a float32."""


@dataclass(frozen=True)
class InputQuant:
    """real = scale * (q - zero_point), q an integer from qmin to qmax; one scale for the whole tensor.

    A zero point need not be an integer (LSQ+). q is stored as int8 less `offset`, so that 0..255 fits. Integers know
    no NaN: where x has one, kernels give some number.
    """

    scale: float
    zero_point: float
    qmin: int
    qmax: int

    def __call__(self, x: Tensor) -> Tensor:
        """x as its quantizer leaves it, in the operations and the order of the masked model."""
        return (self._levels(x) - self.zero_point) * self.scale

    def _levels(self, x: Tensor) -> Tensor:
        """q, of x's dtype. By a tensor: some devices divide by a Python number through its reciprocal."""
        levels = torch.round(x / x.new_full((), self.scale) + self.zero_point)
        return torch.clamp(levels, self.qmin, self.qmax)

    @property
    def offset(self) -> int:
        """What is taken off q so that it fits int8."""
        return 128 if self.qmin == 0 and self.qmax > INT8[1] else 0

    @property
    def fits_int8(self) -> bool:
        return INT8[0] <= self.qmin - self.offset and self.qmax - self.offset <= INT8[1]

    @property
    def has_zero(self) -> bool:
        """Whether 0 is one of the values: only then zeros around an image are integers as well."""
        return self.zero_point == int(self.zero_point) and self.qmin <= self.zero_point <= self.qmax

    def integers(self, x: Tensor) -> Tensor:
        """q less `offset`, int8: the reference of the kernels."""
        return (self._levels(x.float()) - self.offset).to(torch.int8)

    def shift(self, weight: Tensor, row_scale: Tensor) -> Tensor:
        """[N] float64: what the products of `integers` with an integer weight [N, K] lack of the real ones.

        x w = sum scale (q - zero_point) row_scale w = scale row_scale (sum (q - offset) w + (offset - zero_point)
        sum w): the second term does not depend on x.
        """
        sums = weight.double().sum(1)
        return self.scale * row_scale.double() * (self.offset - self.zero_point) * sums

    def parameters(self, device: torch.device) -> Tensor:
        """float32 [5] as `LEVELS` reads it: one kernel serves all scales."""
        values = (self.scale, self.zero_point, self.qmin, self.qmax, self.offset)
        return torch.tensor(values, dtype=torch.float32, device=device)


LEVELS = (
    "s = tl.load(levels)",
    "zero = tl.load(levels + 1)",
    "low = tl.load(levels + 2)",
    "high = tl.load(levels + 3)",
    "offset = tl.load(levels + 4)",
)
"""Triton source that reads `InputQuant.parameters`."""


def level(value: str) -> str:
    """Triton source that turns a float32 tile into `InputQuant.integers`, still float32.

    Clamping before rounding gives what clamping afterwards gives, for the bounds are integers; the offset goes off
    last, where nothing is rounded any more.
    """
    clamped = f"tl.minimum(tl.maximum(tl.div_rn({value}, s) + zero, low), high)"
    return f"((({clamped} + {MAGIC}) - {MAGIC}) - offset)"
