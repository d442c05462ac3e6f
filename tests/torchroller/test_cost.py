"""The performance model must rank: orderings that are known, on a CPU and on GPUs."""

import csv
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from roller_devices import zen5_spec
from roller_expressions import F32, access, column_sum, embedding, matmul, pointwise, row_sum, softmax, total

from torchroller import operators
from torchroller.capacity import Launch, launches, occupancy, scratch_bytes, thread_registers, violation
from torchroller.cost import estimate, time_text
from torchroller.device import A100, B200, H100, MI300X, V100, KiB
from torchroller.expr import Axis, TensorExpr, Value, Write
from torchroller.search import construct
from torchroller.space import Space
from torchroller.tiled import Tiled, register_block, row_group, wave_tile
from torchroller.traffic import cache_bytes, runs, scratch_traffic, shared_bytes

PAPER = Path(__file__).parents[2] / "benchmarks" / "data" / "roller_v100_paper_ms.csv"


@pytest.fixture
def zen5():
    return zen5_spec()


def predict(expr, device, launch=None, **extents):
    space = Space(expr)
    t = Tiled(space, device, space.order(extents))
    return estimate(t, launch or launches(t)[0])


def seconds(*args, **kwargs):
    return predict(*args, **kwargs).time_s


# -- orderings on a CPU ---------------------------------------------------------------------------


def test_small_tiles_lose_in_a_large_product(zen5):
    order = [
        seconds(matmul(1024, 1024, 1024), zen5, m=s, n=max(s, 16), k=min(4 * s, 128)) for s in (64, 32, 16, 8)
    ]
    assert order == sorted(order)


def test_a_deeper_step_saves_accumulator_traffic(zen5):
    product = matmul(1024, 1024, 1024)
    assert seconds(product, zen5, m=64, n=64, k=64) < seconds(product, zen5, m=64, n=64, k=16)


def test_three_programs_on_two_cores_take_two_rounds(zen5):
    three = predict(matmul(192, 64, 512), zen5, m=64, n=64, k=128)
    four = predict(matmul(256, 64, 512), zen5, m=64, n=64, k=128)
    assert three.rounds == four.rounds == 2
    assert three.compute_s == four.compute_s


def test_one_program_leaves_a_core_idle(zen5):
    product = matmul(128, 128, 1024)
    assert seconds(product, zen5, m=64, n=128, k=128) < seconds(product, zen5, m=128, n=128, k=128)


def test_accumulators_that_leave_l1_cost(zen5):
    """128 x 128 accumulators are 64 KiB: they go out to L2 and come back once per step."""
    space = Space(matmul(256, 256, 512))
    small, large = Tiled(space, zen5, [64, 64, 32]), Tiled(space, zen5, [128, 128, 32])
    operands = [t.steps * (t.a + t.b) + 4 * t.block for t in (small, large)]
    assert cache_bytes(small)[0] == operands[0]
    assert cache_bytes(large)[0] == operands[1] + 2 * 4 * 128 * 128 * large.steps


def test_columns_narrower_than_a_vector_waste_lanes(zen5):
    narrow, wide = (
        predict(matmul(512, 2, 512), zen5, m=64, n=2, k=128),
        predict(matmul(512, 64, 512), zen5, m=64, n=64, k=128),
    )
    assert narrow.compute_s / narrow.flops > 4 * wide.compute_s / wide.flops


@pytest.mark.parametrize(
    ("expr", "tile"),
    [
        (pointwise(1 << 22), {"i0": 32768}),
        (row_sum(4096, 4096), {"m": 8, "n": 4096}),
        (softmax(8192, 1024), {"m": 8, "n": 1024}),
        (matmul(1, 4096, 4096), {"m": 1, "n": 512, "k": 128}),
    ],
    ids=["relu", "sum", "softmax", "matvec"],
)
def test_streaming_operators_are_bound_by_dram(zen5, expr, tile):
    found = predict(expr, zen5, **tile)
    assert found.bound_by in ("DRAM", "L3")
    assert found.time_s > expr.bytes() / zen5.dram.bandwidth_bytes_per_s


def test_a_large_product_is_bound_by_compute(zen5):
    found = predict(matmul(1024, 1024, 1024), zen5, m=128, n=128, k=128)
    assert found.bound_by == "compute"
    assert (
        0.5 * zen5.peak("float32").vector_flops
        < found.flops / found.time_s
        < zen5.peak("float32").vector_flops
    )


def test_a_tiny_operator_is_bound_by_its_launch(zen5):
    assert predict(pointwise(64), zen5, i0=64).bound_by == "launch"
    assert predict(pointwise(64), H100, i0=64).bound_by == "launch"


def test_many_tiny_programs_cost_their_starts(zen5):
    relu = pointwise(1 << 22)
    assert seconds(relu, zen5, i0=32768) < seconds(relu, zen5, i0=64)


def test_one_program_for_everything_uses_one_core(zen5):
    relu = pointwise(1 << 20)
    assert seconds(relu, zen5, i0=1 << 16) < seconds(relu, zen5, i0=1 << 20)


def test_column_sums_want_wide_runs(zen5):
    sums = column_sum(4096, 4096)
    assert seconds(sums, zen5, n=1024, m=64) < seconds(sums, zen5, n=16, m=64)


def test_a_transposing_copy_wants_both_runs_long(zen5):
    copy = pointwise(2048, 2048, transposed=True)
    square = seconds(copy, zen5, i0=128, i1=128)
    assert square < seconds(copy, zen5, i0=4, i1=2048)
    assert square < seconds(copy, zen5, i0=2048, i1=4)


def test_rows_that_fit_l1_beat_rows_that_do_not(zen5):
    held = predict(softmax(8192, 1024), zen5, m=2, n=1024)  # 16 KiB, and 8 KiB of exponentials
    spilled = predict(softmax(8192, 1024), zen5, m=64, n=1024)
    assert dict(held.level_bytes)["L2"] < dict(spilled.level_bytes)["L2"]


def test_rows_that_are_walked_again_are_few_at_a_time(zen5):
    """Arithmetic on four rows of 3 KB in L1 leaves the memory idle; of one row, prefetchers fetch the next."""
    rows = softmax(16384, 768)
    assert seconds(rows, zen5, m=1, n=1024) < seconds(rows, zen5, m=8, n=1024)


def test_a_loop_computes_again_what_a_whole_row_keeps(zen5):
    rows = softmax(512, 3000)
    whole, looped = predict(rows, zen5, m=1, n=4096), predict(rows, zen5, m=1, n=64)
    assert looped.compute_s > 1.2 * whole.compute_s


def test_what_all_rows_share_is_fetched_once(zen5):
    """A bias of 512 columns that each program of one row adds."""
    x, bias = access("X", (4096, 512), "mn"), access("B", (512,), "n")
    values = (
        Value("load", F32, access=x),
        Value("load", F32, access=bias),
        Value("call", F32, (0, 1), fn="add"),
    )
    write = Write(access("Y", (4096, 512), "mn"), 2)
    biased = TensorExpr("biased", (Axis("m", 4096), Axis("n", 512)), values, (write,))
    space = Space(biased)
    shared, _ = shared_bytes(Tiled(space, zen5, space.order({"m": 1, "n": 512})), 1)
    rows = 2 * 4 * 4096 * 512
    assert rows <= shared < 1.2 * rows


def test_rows_side_by_side_are_runs_of_their_own(zen5):
    """Eight rows in steps of 16 columns: each is read to its end, and the next eight lie elsewhere."""
    space = Space(softmax(4096, 768))
    apart = Tiled(space, zen5, space.order({"m": 8, "n": 16}))
    together = Tiled(space, zen5, space.order({"m": 8, "n": 1024}))
    assert runs(apart, 0) == [(1.0, 768 * 4)]
    assert runs(together, 0) == [(1.0, 4096 * 768 * 4)]


def test_packed_operands_need_no_long_rows(zen5):
    space, packed = Space(matmul(16, 4096, 4096)), Space(matmul(16, 4096, 4096), packed={"B"})
    tile = [16, 32, 128]
    assert shared_bytes(Tiled(packed, zen5, tile), 1)[1] < 0.7 * shared_bytes(Tiled(space, zen5, tile), 1)[1]


# -- counting -------------------------------------------------------------------------------------


def test_register_blocks_follow_the_tile(zen5):
    def block(m, n):
        space = Space(matmul(max(m, 1), n, 64))
        return register_block(Tiled(space, zen5, [m, n, 64]))

    assert block(64, 64) == (4, 64)
    assert block(64, 32) == (8, 32)
    assert block(4, 64) == (4, 64)
    assert block(1, 256) == (1, 128)
    assert block(8, 2) == (8, 16)


def test_l1_traffic_of_one_tile_by_hand(zen5):
    """64 x 64 x 64 in register blocks of 4 x 64: A once, B per 4 rows, accumulators in and out."""
    t = Tiled(Space(matmul(64, 64, 64)), zen5, [64, 64, 64])
    a = b = acc = 4 * 64 * 64
    from_l2, from_l1 = cache_bytes(t)
    assert from_l1 == a + b * 16 + 2 * acc + acc  # the last one is the result
    assert from_l2 == a + b + acc  # 48 KiB of tiles just fill L1, so accumulators do not spill


def test_l1_traffic_of_a_taller_tile_packs_b(zen5):
    t = Tiled(Space(matmul(128, 64, 64)), zen5, [128, 64, 64])
    b, a = 4 * 64 * 64, 4 * 128 * 64
    assert cache_bytes(t)[-1] == a + b * 32 + 2 * a + 3 * b + a  # accumulators and result are as large as A


def test_dram_traffic_is_compulsory_when_the_cache_holds_the_reused_operand(zen5):
    t = Tiled(Space(matmul(512, 512, 512)), zen5, [64, 64, 64])
    _, dram = shared_bytes(t, 1)
    assert 3 * 4 * 512**2 <= dram <= 3 * 4 * 512**2 * 2.5


def test_dram_traffic_repeats_when_it_does_not(zen5):
    space = Space(matmul(8192, 8192, 8192))  # each operand has 256 MiB, the cache 32
    few = shared_bytes(Tiled(space, zen5, [256, 128, 64]), 1)[1]
    many = shared_bytes(Tiled(space, zen5, [64, 128, 64]), 1)[1]
    assert many > 2 * few > 10 * 3 * 4 * 8192**2


def test_rows_in_groups_read_a_less_often(zen5):
    """A of 16 MiB does not stay in two cores' share of the cache, a quarter of its rows does."""
    grouped, all_rows = (Tiled(Space(matmul(2048, 2048, 2048)), zen5, [64, 64, 256]) for _ in range(2))
    assert row_group(grouped) == 8
    all_rows._row_group = 0
    assert shared_bytes(grouped, 1)[1] < 0.3 * shared_bytes(all_rows, 1)[1]
    assert row_group(Tiled(Space(matmul(512, 512, 512)), zen5, [64, 64, 256])) == 0  # A of 1 MiB stays whole


def test_a_wave_follows_the_order_of_programs(zen5):
    t = Tiled(Space(matmul(1024, 1024, 1024)), zen5, [64, 64, 64])
    assert wave_tile(t, 1) == [128, 64, 1024]  # rows first
    gpu = Tiled(Space(matmul(8192, 8192, 512)), A100, [128, 128, 32])
    assert wave_tile(gpu, 1)[:2] == [8 * 128, 13 * 128]


def test_warps_share_rows_and_columns():
    t = Tiled(Space(matmul(1024, 1024, 1024, "float16")), A100, [128, 128, 32])
    one, eight = scratch_traffic(t, 1), scratch_traffic(t, 8)
    assert one < eight
    hopper = Tiled(Space(matmul(1024, 1024, 1024, "float16")), H100, [128, 128, 32])
    assert scratch_traffic(hopper, 8) == (hopper.a * 2 + hopper.b * 3) * hopper.steps


# -- capacity -------------------------------------------------------------------------------------


def test_shared_memory_of_a_pipeline_by_hand():
    half = Space(matmul(4096, 4096, 4096, "float16"))
    t = Tiled(half, A100, [128, 128, 64])
    assert scratch_bytes(t, 3) == 3 * 2 * (128 * 64 + 64 * 128)
    assert scratch_bytes(Tiled(half, MI300X, [128, 128, 64]), 2) == 2 * (128 * 64 + 64 * 128)
    assert violation(t, Launch(8, 3)) is None
    deep = Tiled(half, A100, [256, 256, 128])
    assert violation(deep, Launch(8, 5)) == "5 stages take 640 KiB of shared memory, a program has 163 KiB"


def test_blocks_are_whole_also_where_they_overhang():
    t = Tiled(Space(matmul(5, 5, 5, "float16")), A100, [16, 16, 16])
    assert scratch_bytes(t, 1) == 2 * (16 * 16 + 16 * 16)


def test_too_many_registers_are_refused():
    t = Tiled(Space(matmul(4096, 4096, 64, "float16")), A100, [256, 256, 32])
    assert "registers per thread with 4 warps" in violation(t, Launch(4, 2))
    assert thread_registers(t, 8) < thread_registers(t, 4)


def test_occupancy_falls_with_shared_memory():
    half = Space(matmul(4096, 4096, 4096, "float16"))
    small, large = Tiled(half, A100, [64, 64, 32]), Tiled(half, A100, [128, 128, 64])
    assert occupancy(small, Launch(4, 3)) > occupancy(large, Launch(8, 4)) >= 1


def test_triton_block_size_limit_holds_on_every_device(zen5):
    t = Tiled(Space(pointwise(1 << 22)), zen5, [1 << 21])
    assert "Triton takes 1048576" in violation(t, Launch())


def test_a_cpu_keeps_tiles_inside_l2(zen5):
    t = Tiled(Space(matmul(4096, 4096, 4096)), zen5, [1024, 512, 512])
    assert "L2 holds 1 MiB" in violation(t, Launch())
    assert zen5.private_levels[0].capacity_bytes == 1024 * KiB


# -- orderings on GPUs ----------------------------------------------------------------------------


@pytest.mark.parametrize("device", [V100, A100, H100, B200, MI300X], ids=lambda d: d.name)
def test_half_precision_products_want_large_tiles(device):
    product = matmul(4096, 4096, 4096, "float16")
    order = [seconds(product, device, m=s, n=s, k=32) for s in (128, 64, 32, 16)]
    assert order == sorted(order)


@pytest.mark.parametrize("device", [A100, H100, MI300X], ids=lambda d: d.name)
def test_matrix_units_make_half_precision_faster(device):
    half, single = (
        construct(matmul(4096, 4096, 4096, "float16"), device),
        construct(matmul(4096, 4096, 4096), device),
    )
    assert half.best.estimate.time_s < 0.5 * single.best.estimate.time_s


def test_deeper_pipelines_hide_latency():
    product = matmul(1024, 1024, 4096, "float16")
    times = [seconds(product, A100, Launch(8, s), m=128, n=128, k=32) for s in (4, 2, 1)]
    assert times == sorted(times)


def test_newer_devices_are_faster():
    for expr in (matmul(4096, 4096, 4096, "float16"), softmax(65536, 1024), pointwise(1 << 26)):
        times = [construct(expr, d).best.estimate.time_s for d in (B200, H100, A100, V100)]
        assert times == sorted(times)


def test_coalesced_rows_beat_strided_ones():
    copy = pointwise(4096, 4096)
    assert seconds(copy, A100, i0=1, i1=1024) < seconds(copy, A100, i0=1024, i1=1)


def test_whole_rows_save_passes():
    rows = softmax(65536, 1024)
    held, looped = predict(rows, A100, m=1, n=1024), predict(rows, A100, m=1, n=128)
    assert held.time_s < looped.time_s


# -- laws -----------------------------------------------------------------------------------------

tiles = st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128])


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300), tiles, tiles, tiles)
def test_an_estimate_is_finite_positive_and_never_beats_the_peak(m, n, k, bm, bn, bk):
    for device in (zen5_spec(), A100):
        found = predict(matmul(m, n, k), device, m=bm, n=bn, k=bk)
        assert math.isfinite(found.time_s) and found.time_s > 0
        assert found.flops / found.time_s <= device.peak("float32").vector_flops
        assert 0 <= found.padding_waste < 1
        assert found.time_s >= found.compute_s
        assert all(found.time_s >= s >= 0 for _, s in found.level_s)


@pytest.mark.parametrize(
    "expr", [total(1 << 20), embedding(512, 768, 30522), pointwise(), pointwise(1, 1)], ids=str
)
def test_odd_shapes_have_estimates(zen5, expr):
    for device in (zen5, A100):
        assert construct(expr, device).best.estimate.time_s > 0


def test_an_estimate_reads_well(zen5):
    text = str(predict(matmul(1024, 1024, 1024), zen5, m=128, n=128, k=128))
    assert text.startswith("predicted ") and "FLOP/s, bound by compute" in text and "waves 32.00" in text
    assert [time_text(s) for s in (2.5, 1e-3, 4.2e-6, 5e-10)] == ["2.5 s", "1 ms", "4.2 us", "0.5 ns"]


# -- against measurements -------------------------------------------------------------------------


def spearman(pairs):
    """Rank correlation of (predicted, measured)."""

    def ranks(values):
        order = sorted(range(len(values)), key=lambda i: values[i])
        return {i: rank for rank, i in enumerate(order)}

    a, b = ranks([p for p, _ in pairs]), ranks([m for _, m in pairs])
    n = len(pairs)
    return 1 - 6 * sum((a[i] - b[i]) ** 2 for i in range(n)) / (n * (n * n - 1))


def test_predictions_rank_like_the_published_v100_times():
    """The paper's own measurements of Roller's programs (Figure 10, V100), all 119 operators."""
    with PAPER.open(newline="") as file:
        measured = {row["id"]: float(row["roller_top10_ms"]) for row in csv.DictReader(file)}
    pairs, by_kind = [], {}
    for op in operators.read():
        best = construct(op.expr(), V100, tiled=op.tiled).best
        pair = (best.estimate.time_s * 1e3, measured[op.id])
        pairs.append(pair)
        by_kind.setdefault(op.op, []).append(pair)
    assert len(pairs) == 119
    assert spearman(pairs) > 0.9
    assert spearman(by_kind["conv2d"]) > 0.9
    assert spearman(by_kind["relu"]) > 0.9
    ratio = math.exp(sum(math.log(p / m) for p, m in pairs) / len(pairs))
    assert 0.7 < ratio < 1.4
