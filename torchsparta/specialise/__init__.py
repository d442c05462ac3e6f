"""TeSA-specialised Triton kernels, as generated source text."""

from .linear import SpecialisedLinear
from .pieces import ACTIVATIONS, Epilogue
from .program import Launch, Program, can_execute

__all__ = ["ACTIVATIONS", "Epilogue", "Launch", "Program", "SpecialisedLinear", "can_execute"]
