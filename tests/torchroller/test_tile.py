"""Tiles: footprints and traffic follow from the index expressions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roller_expressions import embedding, matmul, pointwise, softmax

from torchroller.expr import Access, Affine, Axis, TensorExpr, Value, Write
from torchroller.space import Space
from torchroller.tile import RTile, next_pow2, padded, rest_widths, storage_padding

sizes = st.integers(1, 200)


def by_tensor(space):
    return {o.tensor: o for o in space.operands}


def test_an_rtile_prints_and_checks_itself():
    tile = RTile(("m", "k"), (64, 32), (("A", 8),))
    assert str(tile) == "m:64 k:32 +8 on A"
    assert tile["k"] == 32
    assert tile.as_dict() == {"m": 64, "k": 32}
    with pytest.raises(ValueError, match="extent of axis 'm' is 0"):
        RTile(("m",), (0,))
    with pytest.raises(ValueError, match="needs as many extents"):
        RTile(("m", "k"), (1,))


@given(st.integers(1, 1 << 20))
def test_next_pow2_is_the_smallest_that_holds(n):
    p = next_pow2(n)
    assert p >= n and p & (p - 1) == 0 and (p == 1 or p // 2 < n)


def test_matmul_footprint_and_traffic_by_hand():
    space = Space(matmul(256, 128, 512))
    assert space.footprint([64, 32, 16]) == 4 * (64 * 16 + 16 * 32 + 64 * 32)
    tiles = (256 // 64) * (128 // 32)
    assert space.traffic([64, 32, 16]) == 4 * tiles * (64 * 512 + 512 * 32 + 64 * 32)


def test_sides_and_passes():
    space = Space(matmul(8, 8, 8, bias=True))
    assert (space.m_axes, space.n_axes, space.reduce) == ((0,), (1,), (2,))
    operands = by_tensor(space)
    assert (operands["A"].side, operands["B"].side, operands["bias"].side) == ("a", "b", "")
    assert (operands["A"].passes, operands["bias"].passes, operands["C"].passes) == (1, 0, 0)


def test_softmax_walks_its_row_three_times():
    operands = by_tensor(Space(softmax(8, 100)))
    assert operands["X"].passes == 3  # maximum, sum of exponentials, result
    assert operands["Y"].passes == 1
    assert Space(softmax(8, 100)).passes == 2


@given(sizes, sizes, sizes, st.data())
def test_footprint_grows_and_traffic_falls_along_every_axis(m, n, k, data):
    space = Space(matmul(m, n, k))
    tile = [data.draw(st.integers(1, d)) for d in (m, n, k)]
    axis = data.draw(st.integers(0, 2))
    larger = list(tile)
    larger[axis] = min(space.extents[axis], 2 * tile[axis])
    assert space.footprint(larger) >= space.footprint(tile)
    # Traffic of tiles that divide the axis only falls when a tile grows; ragged tiles may pad.
    divides = all(d % t == 0 for d, t in zip(space.extents, tile))
    if divides and space.extents[axis] % larger[axis] == 0:
        assert space.traffic(larger) <= space.traffic(tile)


@given(sizes, sizes)
def test_the_whole_problem_moves_each_tensor_once(m, n):
    space = Space(pointwise(m, n))
    assert space.traffic([m, n]) == space.expr.bytes()


def test_data_tiles_are_clipped_to_the_tensor():
    assert Space(matmul(7, 5, 3)).footprint([8, 8, 4]) == 4 * (7 * 3 + 3 * 5 + 7 * 5)


def test_windows_overlap():
    """A 3-wide window over 8 outputs touches 10 inputs; with stride 2, 17."""
    for stride, touched in ((1, 10), (2, 17)):
        index = Affine((("o", stride), ("k", 1)))
        load = Value("load", "float32", access=Access("X", "float32", (100,), (1,), (index,)))
        total = Value("reduce", "float32", (0,), fn="sum", over=("k",))
        out = Access("Y", "float32", (40,), (1,), (Affine((("o", 1),)),))
        expr = TensorExpr("w", (Axis("o", 40), Axis("k", 3, "reduce")), (load, total), (Write(out, 1),))
        assert by_tensor(Space(expr))["X"].nbytes([8, 3]) == 4 * touched


def test_a_flattened_index_counts_points_not_its_interval():
    index = Affine((("m", 768), ("n", 1)))
    load = Value("load", "float32", access=Access("X", "float32", (98304,), (1,), (index,)))
    out = Access("Y", "float32", (98304,), (1,), (index,))
    expr = TensorExpr("flat", (Axis("m", 128), Axis("n", 768)), (load,), (Write(out, 0),))
    x = by_tensor(Space(expr))["X"]
    assert x.nbytes([2, 64]) == 4 * 128
    assert x.run([2, 64]) == (4 * 64, 4 * 64)
    assert x.run([2, 768]) == (4 * 1536, 4 * 1536)


def test_runs_of_rows_columns_and_whole_tensors():
    a = by_tensor(Space(matmul(128, 128, 128)))["A"]
    assert a.run([16, 1, 32])[0] == 4 * 32
    assert a.run([16, 1, 128])[0] == 4 * 16 * 128  # whole rows follow each other
    x = by_tensor(Space(pointwise(64, 64, transposed=True)))["X"]
    assert x.run([16, 4])[0] == 4 * 16


def test_expanded_dimensions_take_no_memory():
    load = Value(
        "load",
        "float32",
        access=Access("X", "float32", (64, 32), (0, 1), (Affine((("m", 1),)), Affine((("n", 1),)))),
    )
    out = Access("Y", "float32", (64, 32), (32, 1), (Affine((("m", 1),)), Affine((("n", 1),))))
    space = Space(TensorExpr("expand", (Axis("m", 64), Axis("n", 32)), (load,), (Write(out, 0),)))
    assert by_tensor(space)["X"].nbytes([8, 32]) == 4 * 32


def test_strided_runs_are_charged_for_what_they_skip():
    index = Affine((("o", 2),))
    load = Value("load", "float32", access=Access("X", "float32", (200,), (1,), (index,)))
    out = Access("Y", "float32", (100,), (1,), (Affine((("o", 1),)),))
    x = by_tensor(Space(TensorExpr("every_other", (Axis("o", 100),), (load,), (Write(out, 0),))))["X"]
    assert x.run([16], gap_bytes=32) == (4 * 16, 4 * 31)
    assert x.charge([16], 32) == 128 / 64
    assert x.run([16]) == (4, 4)


def test_short_runs_pay_for_whole_transactions():
    a = by_tensor(Space(matmul(128, 128, 128)))["A"]
    assert a.charge([16, 1, 2], 32) == 4.0
    assert a.charge([16, 1, 8], 32) == 1.0
    assert a.charge([16, 1, 8], 32, overhead_bytes=32) == 2.0


def test_packed_tensors_are_one_run():
    packed = by_tensor(Space(matmul(128, 128, 128), packed={"B"}))["B"]
    assert packed.run([1, 16, 32])[0] == packed.nbytes([1, 16, 32]) == 4 * 16 * 32


def test_gathered_rows_move_with_the_index():
    table = by_tensor(Space(embedding(128, 768, 30522)))["table"]
    assert table.indirect
    assert table.nbytes([4, 768]) == 4 * 4 * 768


def test_unknown_axes_are_named():
    with pytest.raises(ValueError, match=r"no axis \['q'\]; its axes are \['m', 'n', 'k'\]"):
        Space(matmul(2, 2, 2)).order({"q": 1})


@given(st.integers(1, 512), st.integers(1, 64), st.sampled_from([1, 2, 4, 8]))
def test_storage_padding_starts_rows_in_different_banks(row, read, itemsize):
    """The padded row lies `read`, rounded up to a bank, past a multiple of all 32 banks."""
    pad = storage_padding(row, read, itemsize, banks=32, bank_bytes=4)
    per_bank = max(1, 4 // itemsize)
    everything = 32 * per_bank
    assert 0 <= pad < everything
    assert (row + pad) % everything == padded(read, per_bank) % everything


@given(st.integers(1, 5000))
def test_the_last_steps_of_a_product_cover_its_rest(rest):
    widths = rest_widths(rest)
    assert sum(widths[:-1]) < rest <= sum(widths) <= max(4, next_pow2(rest))
    assert all(w == next_pow2(w) and w >= 4 for w in widths)


def test_a_step_more_must_save_more_than_it_costs():
    assert [rest_widths(n) for n in (3, 13, 21, 24, 448)] == [(4,), (16,), (16, 8), (16, 8), (256, 128, 64)]
