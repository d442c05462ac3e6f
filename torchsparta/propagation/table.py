"""The one table: which rule an ATen operator has.

Operators that PyTorch itself tags pointwise need no entry. `register` adds a rule for an operator of your
own.
"""

from __future__ import annotations

import operator
from typing import Any

import torch

from ..capture import packet_name
from .attention import Attention
from .contraction import AnyConvolution, Convolution, Einsum, IntegerMatmul, Linear, Matmul
from .indexing import Embedding, Gather
from .lists import Foreach
from .movement import (
    Along,
    Concat,
    Expand,
    Movement,
    Pad,
    Permute,
    Reshape,
    Select,
    Slice,
    Split,
    Stack,
    Triangle,
    Unbind,
)
from .opaque import Dropout, EmbeddingBag, EmbeddingGradient, Opaque, Strided, Uninitialised
from .pointwise import Add, And, Divide, MaskedFill, Multiply, Or, Where
from .recurrent import Lstm
from .reduce import ChannelAffine, LayerNorm, Reduction, Softmax, Window
from .rule import Made, Pointwise, Rule
from .writes import Copy, Write

_POINTWISE = Pointwise()
_MADE = Made()

RULES: dict[str, Rule] = {
    # pointwise, one operand may decide
    "mul": Multiply(),
    "logical_and": And(),
    "bitwise_and": And(),
    "__and__": And(),
    "logical_or": Or(),
    "bitwise_or": Or(),
    "__or__": Or(),
    "div": Divide(),
    "add": Add(),
    "sub": Add(),
    "where": Where(),
    "masked_fill": MaskedFill(),
    # pointwise, not tagged so
    **dict.fromkeys(
        ("clone", "contiguous", "alias", "detach", "lift_fresh_copy", "_to_copy", "to", "type_as", "dropout",
         "alpha_dropout", "feature_dropout", "lift_fresh", "relu6", "hardswish", "hardsigmoid", "mish", "rsub"),
        _POINTWISE,
    ),
    # made from a shape; without a tensor among the arguments (zeros, arange, …) they are evaluated like any constant
    **dict.fromkeys(
        ("zero", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "zeros", "ones", "full",
         "arange", "scalar_tensor", "prims::iota"),
        _MADE,
    ),
    **dict.fromkeys(
        ("empty", "empty_permuted", "empty_strided", "empty_like", "new_empty", "new_empty_strided"),
        Uninitialised(),
    ),
    # contractions
    "linear": Linear(0, 1, 2),
    "addmm": Linear(1, 2, 0, transposed=True),
    "mm": Matmul(0, 1),
    "mv": Matmul(0, 1),
    "bmm": Matmul(0, 1),
    "matmul": Matmul(0, 1),
    "baddbmm": Matmul(1, 2, 0),
    "_int_mm": IntegerMatmul(0, 1),
    "einsum": Einsum(),
    **dict.fromkeys(("convolution", "_convolution"), AnyConvolution()),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), Convolution()),
    **dict.fromkeys(
        ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), Convolution(transposed=True)
    ),
    "scaled_dot_product_attention": Attention(),
    "lstm": Lstm(),
    # movement
    **dict.fromkeys(
        ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_copy",
         "_reshape_copy", "_reshape_alias", "squeeze_copy", "unsqueeze_copy"),
        Reshape(),
    ),
    **dict.fromkeys(
        ("permute", "transpose", "t", "numpy_T", "swapaxes", "swapdims", "permute_copy"), Permute()
    ),
    **dict.fromkeys(("expand", "broadcast_to", "expand_copy"), Expand()),
    **dict.fromkeys(("cat", "concat", "concatenate"), Concat()),
    "stack": Stack(),
    **dict.fromkeys(("slice", "slice_copy"), Slice()),
    **dict.fromkeys(("select", "select_copy"), Select()),
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "unsafe_split"), Split()),
    "unbind": Unbind(),
    "constant_pad_nd": Pad(),
    **dict.fromkeys(("tril", "triu"), Triangle()),
    **dict.fromkeys(
        ("flip", "roll", "repeat", "movedim", "pixel_shuffle", "pixel_unshuffle", "rot90"), Along(covers=True)
    ),
    **dict.fromkeys(("diagonal", "unfold", "im2col"), Along()),
    # chosen by integers
    "embedding": Embedding(),
    "index_select": Gather("index_select"),
    "gather": Gather("gather"),
    "index": Gather("index"),
    "_unsafe_index": Gather("index"),
    **dict.fromkeys(("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only"), EmbeddingBag()),
    "embedding_dense_backward": EmbeddingGradient(),
    "as_strided": Strided(),
    # written where integers say
    **dict.fromkeys(("scatter", "scatter_reduce"), Write("scatter")),
    "scatter_add": Write("scatter", adds=True),
    **dict.fromkeys(("index_copy", "index_fill"), Write("along")),
    "index_add": Write("along", adds=True),
    **dict.fromkeys(("index_put", "_unsafe_index_put"), Write("put")),
    "slice_scatter": Write("slice"),
    "select_scatter": Write("select"),
    **dict.fromkeys(("copy", "fill"), Copy()),
    # one pointwise operator on a list of tensors
    **dict.fromkeys(
        ("_foreach_" + name for name in (
            "add", "sub", "mul", "div", "maximum", "minimum", "clamp_min", "clamp_max", "pow", "sqrt", "rsqrt", "neg",
            "abs", "reciprocal", "exp", "log", "sign", "tanh", "sigmoid", "floor", "ceil", "round", "trunc", "erf",
            "expm1", "log1p", "sin", "cos", "addcmul", "addcdiv", "lerp", "copy")),
        Foreach(),
    ),
    "prims::fma": _POINTWISE,
    "native_dropout": Dropout(),
    # taken whole
    **dict.fromkeys(
        ("_weight_int8pack_mm", "_scaled_dot_product_flash_attention_for_cpu",
         "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
         "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu_backward",
         "_native_batch_norm_legit_functional", "_thnn_fused_lstm_cell", "mkldnn_rnn_layer"),
        Opaque(),
    ),
    # along dimensions
    **dict.fromkeys(
        ("sum", "mean", "amax", "amin", "prod", "any", "all", "logsumexp", "argmax", "argmin", "max", "min"),
        Reduction(1),
    ),
    **dict.fromkeys(("var", "std", "var_mean", "nansum"), Reduction(1)),
    "linalg_vector_norm": Reduction(2),
    **dict.fromkeys(("cumsum", "cumprod", "logcumsumexp", "log_softmax", "_log_softmax"), Reduction(1, "scan")),
    **dict.fromkeys(("softmax", "_softmax", "_safe_softmax"), Softmax()),
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training"), ChannelAffine()),
    **dict.fromkeys(
        ("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm", "group_norm", "native_group_norm"),
        LayerNorm(),
    ),
    **dict.fromkeys(("max_pool1d", "avg_pool1d", "adaptive_avg_pool1d", "upsample_nearest1d"), Window(1)),
    **dict.fromkeys(
        ("max_pool2d", "max_pool2d_with_indices", "avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d",
         "adaptive_max_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
         "reflection_pad2d",
         "replication_pad2d"),
        Window(2),
    ),
    **dict.fromkeys(("max_pool3d", "max_pool3d_with_indices", "avg_pool3d", "adaptive_avg_pool3d",
                     "_adaptive_avg_pool3d"), Window(3)),
}  # fmt: skip


def register(target: str | Any, rule: Rule) -> None:
    """Give an operator a rule: `register(torch.ops.mine.scale.default, Pointwise())` or by name,
    "mine::scale"."""
    RULES[target if isinstance(target, str) else packet_name(target)] = rule


def rule_for(target: Any) -> Rule | None:
    """The rule of an operator; None if it has none and only scrambling is left."""
    if target is operator.getitem:
        return None
    found = RULES.get(packet_name(target))
    if found is not None:
        return found
    if torch.Tag.pointwise in getattr(target, "tags", ()):
        return _POINTWISE
    return None


__all__ = ["RULES", "Movement", "register", "rule_for"]
