"""Which ATen operators AOTAutograd takes apart before the graph reaches us, and which we lower whole."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

KEPT = (
    "_softmax", "_log_softmax", "_safe_softmax", "native_layer_norm", "native_group_norm", "_fused_rms_norm",
    "addmm", "baddbmm", "gelu", "silu", "cat", "stack", "embedding", "index", "index_select", "gather",
    "constant_pad_nd", "split", "split_with_sizes", "unbind", "leaky_relu", "elu", "var", "var_mean", "arange",
    "linear", "mm", "bmm", "full_like", "full", "rsub", "where", "flip", "max", "min", "any", "all", "expand",
    "_scaled_dot_product_flash_attention_for_cpu", "zeros", "ones", "zeros_like", "ones_like", "new_zeros",
    "new_ones", "new_full", "sum", "fill", "transpose", "t", "squeeze",
    "embedding_dense_backward", "index_add", "index_copy", "bernoulli", "native_dropout", "select_scatter",
    "slice_scatter", "_embedding_bag",
    "scaled_dot_product_attention", "adaptive_avg_pool2d", "max_pool2d", "avg_pool2d",
)  # fmt: skip


@functools.lru_cache
def decompositions() -> dict[Any, Callable[..., Any]]:
    """Core ATen decompositions, less what has a lowering rule of its own or a fast ATen kernel."""
    table = _core_aten()
    aten = torch.ops.aten
    for name in KEPT:
        packet = getattr(aten, name, None)
        for overload in packet.overloads() if packet is not None else ():
            table.pop(getattr(packet, overload), None)
    return table


def _core_aten() -> dict[Any, Callable[..., Any]]:
    """torch's core decompositions, without its entries for composite operators where torch can leave them out.

    AOTAutograd takes composite operators apart by itself; listing them resolves every ATen overload, which costs
    a tenth of a second in each process.
    """
    from torch import _decomp

    plain = getattr(_decomp, "_core_aten_decompositions_post_autograd", None)
    return dict(plain() if plain is not None else _decomp.core_aten_decompositions())
