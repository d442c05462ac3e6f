"""Errors that torchsparta raises. Each says what happened, where, the values seen and what to do."""

from __future__ import annotations


class SpartaError(Exception):
    """Base class of every error that torchsparta raises on purpose."""


class MaskError(SpartaError, ValueError):
    """A mask, quantizer entry or TeSA that cannot be taken as it is."""


class ModelMismatch(SpartaError, LookupError):
    """A mask names a module or parameter that the model does not have."""


class CaptureError(SpartaError, RuntimeError):
    """`torch.export` could not turn the model into one graph."""


class VerificationError(SpartaError, AssertionError):
    """The sparse model and the masked model disagree."""
