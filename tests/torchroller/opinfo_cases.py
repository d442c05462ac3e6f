"""Which OpInfos cover which lowering rules, and what is known not to hold, each with its reason."""

from __future__ import annotations

import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import OpInfo

import torchroller.lower  # noqa: F401  (registers the rules)
from torchroller.ops.registry import RULES

# Rules of operators that no OpInfo is named after: the OpInfos whose calls reach them.
REACHED_BY: dict[str, tuple[str, ...]] = {
    "aten._scaled_dot_product_flash_attention_for_cpu": ("nn.functional.scaled_dot_product_attention",),
    "aten.__and__": ("bitwise_and",),
    "aten.__or__": ("bitwise_or",),
    "aten.__xor__": ("bitwise_xor",),
    "prims.convert_element_type": ("nn.functional.mish", "to"),
    "aten._to_copy": ("float", "int", "bool", "half", "bfloat16", "long"),
    "aten.__lshift__": ("bitwise_left_shift", "__rlshift__"),
    "aten.__rshift__": ("bitwise_right_shift", "__rrshift__"),
    "aten.linalg_vector_norm": ("linalg.vector_norm", "norm", "nn.functional.normalize"),
    "aten.alias": ("positive",),
    "aten.lift_fresh_copy": ("positive",),
    "aten.detach": ("positive",),
    "aten.lift_fresh": ("positive",),
    "prims.iota": ("arange",),
    "aten.index": ("__getitem__",),
    "aten._unsafe_index": ("nn.functional.upsample_nearest",),
    "aten._fused_rms_norm": ("nn.functional.rms_norm",),
    "aten._native_batch_norm_legit_no_training": ("nn.functional.batch_norm",),
    "aten._native_batch_norm_legit_functional": ("nn.functional.batch_norm",),
    "aten._softmax": ("softmax",),
    "aten._safe_softmax": ("nn.functional.scaled_dot_product_attention",),
    "aten._log_softmax": ("log_softmax",),
    "aten._unsafe_view": ("matmul",),
    "aten._reshape_alias": ("reshape",),
    "aten.numpy_T": ("t",),
    "aten.constant_pad_nd": ("constant_pad_nd", "nn.functional.pad"),
    "aten.native_group_norm": ("native_group_norm", "nn.functional.group_norm"),
    "aten.native_layer_norm": ("native_layer_norm", "nn.functional.layer_norm"),
}

# Rules whose operators no OpInfo of op_db calls, or whose results are not determined: the tests that cover them.
ELSEWHERE: dict[str, str] = {
    **{name: "test_training" for name in RULES if name.startswith("aten._foreach_")},
    "prims.fma": "test_training",
    "aten.mkldnn_rnn_layer": "test_coverage",
    "aten.native_dropout": "test_random",
    **dict.fromkeys(("aten.empty", "aten.empty_permuted", "aten.empty_strided", "aten.empty_like", "aten.new_empty"),
                    "test_random"),
    **dict.fromkeys(("aten.embedding_dense_backward", "aten.copy", "aten._unsafe_index_put"), "test_scatter"),
    **dict.fromkeys(("aten._embedding_bag", "aten._embedding_bag_forward_only"), "test_scan"),
    **dict.fromkeys(("aten._int_mm", "aten._weight_int8pack_mm"), "test_quantised"),
    "aten._scaled_dot_product_flash_attention_for_cpu_backward": "test_attention",
    **dict.fromkeys(("aten._scaled_dot_product_flash_attention", "aten._scaled_dot_product_efficient_attention",
                     "aten._scaled_dot_product_cudnn_attention"), "test_attention"),
    "aten._thnn_fused_lstm_cell": "test_gpu_text",
    **dict.fromkeys(("aten.convolution", "aten._convolution", "aten._adaptive_avg_pool2d", "aten._adaptive_avg_pool3d",
                     "aten.max_pool2d_with_indices", "aten.max_pool3d_with_indices"), "test_convolution"),
}  # fmt: skip

# Operators that ATen's decompositions build from ours: they must run in our kernels too.
COMPOSED = (
    "nn.functional.hardswish", "nn.functional.mish", "nn.functional.softplus", "nn.functional.celu",
    "nn.functional.selu", "nn.functional.logsigmoid", "nn.functional.softsign", "nn.functional.tanhshrink",
    "nn.functional.threshold", "nn.functional.hardsigmoid", "nn.functional.relu6", "nn.functional.mse_loss",
    "nn.functional.l1_loss", "nn.functional.smooth_l1_loss", "nn.functional.huber_loss", "nn.functional.glu",
    "nn.functional.normalize", "nn.functional.cosine_similarity", "nn.functional.cross_entropy", "std", "std_mean",
    "tril", "triu", "roll", "hstack", "vstack", "addcmul", "addcdiv", "lerp", "logsumexp",
    "masked_fill", "matmul", "einsum", "outer", "logaddexp", "xlogy", "square", "frac", "deg2rad",
    "movedim", "chunk", "rot90", "take_along_dim", "sinc", "nan_to_num",
    "heaviside", "logit", "isfinite", "count_nonzero", "aminmax",
)  # fmt: skip


def infos() -> list[OpInfo]:
    """The OpInfos of our rules and of what is composed of them, each once, by name."""
    wanted = set(COMPOSED)
    for packet in RULES:
        wanted |= covering(packet)
    return sorted((o for o in op_db if o.name in wanted), key=name_of)


def covering(packet: str) -> set[str]:
    """Names of the OpInfos that exercise a rule."""
    if packet in REACHED_BY:
        return set(REACHED_BY[packet])
    name = packet.split(".", 1)[1]
    same = (name, f"nn.functional.{name}")
    found = {o.name for o in op_db if o.name in same or name in (o.aten_name, *(a.name for a in o.aliases))}
    return found & set(same) or found


def name_of(op: OpInfo) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name


DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.bool)

# (operator, dtype or None for all) -> why its numbers are not judged equal. Empty: nothing is known to be wrong.
WRONG: dict[tuple[str, torch.dtype | None], str] = {}

# (operator, dtype or None for all) -> words of the reason that its extern calls record.
EXTERN: dict[tuple[str, torch.dtype | None], str] = {
    ("div.floor_rounding", torch.bfloat16): "rounds between its steps",
    ("div.floor_rounding", torch.float16): "rounds between its steps",
    ("nn.functional.pad.circular", None): "no rule for aten.",  # it fills an empty tensor slice by slice
    ("as_strided", None): "a view by strides",
    ("as_strided.partial_views", None): "a view by strides",
    ("norm.nuc", None): "no rule for aten._linalg_svd",
    ("nn.functional.embedding", None): "aten.embedding_renorm",  # max_norm writes into the table
    ("round.decimals_3", torch.bfloat16): "rounds between its steps",
    ("round.decimals_3", torch.float16): "rounds between its steps",
    ("round.decimals_neg_3", torch.bfloat16): "rounds between its steps",
    ("round.decimals_neg_3", torch.float16): "rounds between its steps",
    ("nn.functional.cosine_similarity", None): "no rule for aten.linalg_vector_norm",
    ("nn.functional.normalize", None): "no rule for aten.linalg_vector_norm",
    ("index_put", None): "which value goes where depends on values",
    **{("scatter_reduce.mean", dtype): "a mean of integers" for dtype in (torch.int32, torch.int64, torch.bool)},
    ("nn.functional.scaled_dot_product_attention", torch.float64): "float64",
}  # fmt: skip

# Types that Triton's dot does not take: every product of theirs is ATen's.
NO_DOT = (torch.float64, torch.int32, torch.int64)
DOT_REASON = "a matrix product of"


def expected(table: dict[tuple[str, torch.dtype | None], str], name: str, dtype: torch.dtype) -> str | None:
    return table.get((name, dtype)) or table.get((name, None))
