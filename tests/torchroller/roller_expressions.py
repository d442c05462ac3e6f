"""Tensor expressions that the tests of the search share."""

from torchroller.expr import Access, Affine, Axis, TensorExpr, Value, Write

F32 = "float32"


def access(tensor, shape, axes, strides=None, dtype=F32):
    """A tensor indexed by one axis per dimension, row-major unless strides are given."""
    if strides is None:
        strides = [1] * len(shape)
        for i in reversed(range(len(shape) - 1)):
            strides[i] = strides[i + 1] * shape[i + 1]
    return Access(tensor, dtype, tuple(shape), tuple(strides), tuple(Affine(((a, 1),)) for a in axes))


def matmul(m, n, k, dtype=F32, transposed_b=False, bias=False):
    b = access("B", (k, n), "kn", (1, k) if transposed_b else None, dtype)
    values = [
        Value("load", dtype, access=access("A", (m, k), "mk", dtype=dtype)),
        Value("load", dtype, access=b),
        Value("dot", F32, (0, 1), over=("k",)),
    ]
    if bias:
        values.append(Value("load", dtype, access=access("bias", (n,), "n", dtype=dtype)))
        values.append(Value("call", F32, (2, 3), fn="add"))
    out = access("C", (m, n), "mn", dtype=dtype)
    axes = (Axis("m", m), Axis("n", n), Axis("k", k, "reduce"))
    return TensorExpr("matmul", axes, tuple(values), (Write(out, len(values) - 1),))


def batched_matmul(b, m, n, k):
    values = (
        Value("load", F32, access=access("A", (b, m, k), "bmk")),
        Value("load", F32, access=access("B", (b, k, n), "bkn")),
        Value("dot", F32, (0, 1), over=("k",)),
    )
    axes = (Axis("b", b), Axis("m", m), Axis("n", n), Axis("k", k, "reduce"))
    return TensorExpr("bmm", axes, values, (Write(access("C", (b, m, n), "bmn"), 2),))


def softmax(m, n):
    values = (
        Value("load", F32, access=access("X", (m, n), "mn")),
        Value("reduce", F32, (0,), fn="max", over=("n",)),
        Value("call", F32, (0, 1), fn="sub"),
        Value("call", F32, (2,), fn="exp"),
        Value("reduce", F32, (3,), fn="sum", over=("n",)),
        Value("call", F32, (3, 4), fn="div"),
    )
    axes = (Axis("m", m), Axis("n", n, "reduce"))
    return TensorExpr("softmax", axes, values, (Write(access("Y", (m, n), "mn"), 5),))


def row_sum(m, n):
    values = (
        Value("load", F32, access=access("X", (m, n), "mn")),
        Value("reduce", F32, (0,), fn="sum", over=("n",)),
    )
    axes = (Axis("m", m), Axis("n", n, "reduce"))
    return TensorExpr("row_sum", axes, values, (Write(access("Y", (m,), "m"), 1),))


def column_sum(m, n):
    values = (
        Value("load", F32, access=access("X", (m, n), "mn")),
        Value("reduce", F32, (0,), fn="sum", over=("m",)),
    )
    axes = (Axis("n", n), Axis("m", m, "reduce"))
    return TensorExpr("column_sum", axes, values, (Write(access("Y", (n,), "n"), 1),))


def total(n):
    values = (
        Value("load", F32, access=access("X", (n,), "n")),
        Value("reduce", F32, (0,), fn="sum", over=("n",)),
    )
    out = Access("Y", F32, (), (), ())
    return TensorExpr("total", (Axis("n", n, "reduce"),), values, (Write(out, 1),))


def pointwise(*shape, fn="relu", transposed=False):
    """Y = fn(X); `transposed` reads X along its columns."""
    axes = [f"i{d}" for d in range(len(shape))]
    read = None
    if transposed:
        read, step = [], 1
        for length in shape:
            read.append(step)
            step *= length
    values = (
        Value("load", F32, access=access("X", shape, axes, read)),
        Value("call", F32, (0,), fn=fn),
    )
    named = tuple(Axis(a, length) for a, length in zip(axes, shape))
    return TensorExpr("pointwise", named, values, (Write(access("Y", shape, axes), 1),))


def embedding(rows, width, vocabulary):
    """Y[r, w] = table[ids[r], w]."""
    ids = access("ids", (rows,), ["r"], dtype="int64")
    table = Access("table", F32, (vocabulary, width), (width, 1), (Affine(indirect=0), Affine((("w", 1),))))
    values = (Value("load", "int64", access=ids), Value("load", F32, access=table))
    axes = (Axis("r", rows), Axis("w", width))
    return TensorExpr("embedding", axes, values, (Write(access("Y", (rows, width), ["r", "w"]), 1),))
