"""TeSA-specialised Triton kernels, as generated source text."""

from ..formats import SparseFormat
from ..input_quant import InputQuant
from .dots import BlockDotLinear, takes_dots
from .linear import SpecialisedLinear
from .pieces import ACTIVATIONS, Epilogue
from .program import Launch, Program, can_execute

__all__ = [
    "ACTIVATIONS",
    "Epilogue",
    "BlockDotLinear",
    "Launch",
    "Program",
    "SpecialisedLinear",
    "can_execute",
    "specialise",
]


def specialise(
    parts: tuple[SparseFormat, ...],
    activation: str = "none",
    integer: bool = False,
    quant: InputQuant | None = None,
) -> SpecialisedLinear | BlockDotLinear:
    """The kernel for these parts: block-dot where one part's blocks are large enough, else the row-group kernel."""
    if len(parts) == 1 and takes_dots(parts[0]):
        return BlockDotLinear(parts[0], activation, integer, quant)
    return SpecialisedLinear(parts, activation, integer, quant=quant)
