"""Each mechanism of the construction earns its place: without it the predicted time of the best rProgram is worse."""

from dataclasses import replace

import pytest
import torch
from roller_devices import zen5_spec
from roller_expressions import matmul, pointwise
from roller_helpers import judge

from torchroller import operators, pipeline, search, split_k
from torchroller.device import A100, H100, MI300X, V100
from torchroller.search import _Search, construct

ZEN5 = zen5_spec(8)
by_name = pytest.mark.parametrize("device", [V100, A100, H100, MI300X, ZEN5], ids=lambda d: d.name)


def best_s(expr, device, **more):
    return construct(expr, device, **more).best.estimate.time_s


@by_name
def test_padding_is_tolerated_where_no_tile_divides_the_axis(device, monkeypatch):
    """1009 is prime: without padding only the smallest tiles are left. Rows of a product pad at will on a CPU: there
    100 columns are one tile of 128, or four of 32."""
    product = matmul(1009, 100 if device.is_cpu else 1009, 1009)
    padded = [best_s(expr, device) for expr in (product, pointwise(1009, 1009))]
    monkeypatch.setattr(search, "_EPSILON_START", 0.0)
    monkeypatch.setattr(search, "_EPSILON_MAX", 0.0)
    exact = [best_s(expr, device) for expr in (product, pointwise(1009, 1009))]
    assert padded[0] < 0.9 * exact[0] and padded[1] < exact[1]


def test_rows_of_a_product_pad_at_will_on_a_cpu(monkeypatch):
    """42 rows may be one tile of 64, which reads B once: the register blocks behind them are skipped."""
    monkeypatch.setattr(search, "_EPSILON_START", 0.0)
    monkeypatch.setattr(search, "_EPSILON_MAX", 0.0)
    assert any(p.block["m"] == 64 for p in construct(matmul(42, 4096, 96), ZEN5, top_k=1000).ranked)


@by_name
def test_small_operators_shrink_until_all_units_work(device, monkeypatch):
    """Growing tiles alone leaves units idle; halving them, or looking around the best ones, gives everyone a part."""
    expr = matmul(256, 256, 1024)
    shrunk = construct(expr, device).best
    monkeypatch.setattr(_Search, "scale_out", lambda self: None)
    monkeypatch.setattr(_Search, "refine", lambda self: None)
    grown = construct(expr, device).best
    assert shrunk.estimate.time_s < 0.99 * grown.estimate.time_s


def test_either_way_to_shrink_suffices(monkeypatch):
    expr = matmul(128, 128, 4096)
    expected = best_s(expr, MI300X)
    with monkeypatch.context() as patch:
        patch.setattr(_Search, "scale_out", lambda self: None)
        assert best_s(expr, MI300X) == expected


def test_growth_starts_from_aligned_tiles(monkeypatch):
    """From single points the search spends its tiles on what no vector and no register block fills."""
    expr = matmul(4096, 4096, 4096, "float16")
    aligned = best_s(expr, zen5_spec())
    monkeypatch.setattr(_Search, "_smallest", lambda self: (1,) * len(self.space.extents))
    assert aligned < best_s(expr, zen5_spec())


@by_name
def test_long_reductions_of_small_products_are_cut(device):
    """16 x 16 results are one tile or two: parts of k give the other units work, at the price of a second kernel."""
    m, n, k = 16, 16, 65536
    count = split_k.parts(m, n, k, "float32", device)
    assert count > 1 and k % count == 0
    whole = best_s(split_k._products(1, m, n, k, "float32"), device)
    cut = best_s(split_k._products(count, m, n, k // count, "float32"), device)
    assert cut + best_s(split_k._sum(count, m * n), device) < 0.9 * whole


def test_what_is_not_cut():
    assert split_k.parts(16, 16, 65536, "float32", zen5_spec(1)) == 1
    assert split_k.parts(16, 16, 65536, "float32", zen5_spec(2)) == 1  # two tiles for two cores
    assert split_k.parts(16, 16, 65535, "float32", H100) == 1  # no equal parts
    assert split_k.parts(16, 16, 1024, "float32", H100) == 1
    assert split_k.parts(4096, 4096, 65536, "float32", H100) == 1


@pytest.mark.parametrize("bias", [False, True])
def test_a_cut_product_is_right(bias, monkeypatch):
    monkeypatch.setattr(pipeline, "device_spec", lambda device: zen5_spec(16))
    torch.manual_seed(0)
    a, b, c = torch.randn(16, 8192), torch.randn(24, 8192), torch.randn(24)

    def product(a, b, c):
        return torch.relu(torch.addmm(c, a, b.t())) if bias else a @ b.t()

    plan = judge(product, a, b, c)
    assert [len(x.expr.dots) for x in plan.launches] == [1, 0]
    assert not plan.externs


@by_name
@pytest.mark.parametrize("number", ["C9", "C12", "C13"])
def test_irregular_convolutions_fuse_the_axes_of_their_rows(device, number):
    """A row of 83 or 165 positions pads its tiles; all positions of an image counted as one axis pad little."""
    op = next(o for o in operators.read() if o.id == number).scaled(8)
    positions = matmul(op["N"] * op["HO"] * op["WO"], op["F"], op["C"])
    apart, together = (construct(expr, device).best.estimate for expr in (op.expr(), positions))
    assert together.padding_waste < apart.padding_waste
    if device is not MI300X:  # whose narrow matrix instructions lose less to padding than to small tiles
        assert together.time_s < apart.time_s


@pytest.mark.parametrize("device", [V100, A100, H100], ids=lambda d: d.name)
def test_programs_in_groups_of_rows_share_the_second_level_cache(device):
    expr = matmul(8192, 8192, 8192, "float16")
    assert best_s(expr, device) < best_s(expr, replace(device, raster_group=1))
