"""TeSA: the lattice laws, compactness, what it shows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchsparta import MaskError, Quant, TeSA


@st.composite
def tesas(draw, shape=(3, 4)):
    """Codes and constants; a dimension may be uniform, so that compact and full layouts meet."""
    layout = [draw(st.sampled_from([1, s])) for s in shape]
    count = torch.Size(layout).numel()
    codes = draw(st.lists(st.sampled_from([0, 4, 8, 32, -8, -32]), min_size=count, max_size=count))
    values = draw(st.lists(st.sampled_from([1.0, -2.5]), min_size=count, max_size=count))
    return TeSA.from_codes(shape, torch.tensor(codes).reshape(layout), torch.tensor(values).reshape(layout))


@settings(max_examples=50, deadline=None)
@given(tesas(), tesas(), tesas())
def test_meet_and_join_are_a_lattice(a, b, c):
    for op in (TeSA.meet, TeSA.join):
        assert op(a, b).same_as(op(b, a))
        assert op(op(a, b), c).same_as(op(a, op(b, c)))
        assert op(a, a).same_as(a)
    assert a.meet(a.join(b)).same_as(a)
    assert a.join(a.meet(b)).same_as(a)


@settings(max_examples=40, deadline=None)
@given(tesas(), tesas())
def test_meet_is_union_of_pruned_and_fewer_bits(a, b):
    both = a.meet(b)
    assert bool((both.pruned >= (a.pruned | b.pruned)).all())
    assert bool((both.bits <= torch.minimum(a.bits, b.bits)).all())


def test_zero_and_constant_are_kept_apart():
    tesa = TeSA.from_codes((4,), torch.tensor([0, -32, 32, 8]), torch.tensor([9.0, 0.5, 9.0, 9.0]))
    assert tesa.pruned.tolist() == [True, False, False, False]
    assert tesa.is_constant.tolist() == [False, True, False, False]
    assert tesa.values.tolist() == [0.0, 0.5, 0.0, 0.0]
    assert tesa.apply(torch.full((4,), 7.0)).tolist() == [0.0, 0.5, 7.0, 7.0]


def test_structured_masks_are_stored_by_channel():
    mask = torch.ones(512, 1024)
    mask[::2] = 0
    tesa = TeSA.from_mask(mask)
    assert tesa.nbytes == 512
    assert tesa.sparsity() == 0.5
    assert torch.equal(tesa.mask, mask.bool())
    assert TeSA.dense((64, 64, 64)).nbytes == 1


def test_densities():
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]])
    tesa = TeSA.from_mask(mask)
    assert tesa.density_along(0).tolist() == [0.25, 0.5, 0.0, 0.5]
    assert tesa.density_along(1).tolist() == [0.5, 0.25, 0.25, 0.25]
    assert tesa.density_blocks((2, 2)).tolist() == [[0.75, 0.0], [0.0, 0.5]]
    assert tesa.dead_slices(0).tolist() == [False, False, True, False]
    assert tesa.bit_histogram() == {0: 11, 32: 5}
    ragged = TeSA.from_mask(torch.ones(5, 3))
    assert bool((ragged.density_blocks((2, 2)) == 1).all())


def test_heatmap_shows_dead_and_full_halves():
    mask = torch.zeros(8, 48)
    mask[:, :24] = 1
    lines = TeSA.from_mask(mask).heatmap(rows=4, columns=8).split("\n")
    assert lines == ["@@@@    "] * 4


def test_printed_summary():
    mask = torch.ones(4, 4)
    mask[0] = 0
    assert str(TeSA.from_mask(mask)) == "4x4, 25.0% pruned, 32 bits"


def test_quant_round_trip_per_channel_and_block():
    weight = torch.randn(4, 6)
    scale = weight.abs().amax(1, keepdim=True).double() / 127
    quant = Quant(scale, torch.zeros(4, 1, dtype=torch.float64), 8, -127, 127)
    assert torch.allclose(quant.fake(weight), weight, atol=float(scale.max()) / 2 + 1e-7)
    assert torch.equal(quant.quantize(weight), quant.quantize(weight).round())
    block = Quant(
        torch.rand(2, 3, dtype=torch.float64) + 0.1, torch.zeros(2, 3, dtype=torch.float64), 8, -127, 127
    )
    spread = block.dequantize(torch.ones(4, 6))
    assert torch.equal(spread[:2, :2], block.scale[0, 0].expand(2, 2))
    with pytest.raises(MaskError, match="quantization blocks do not divide"):
        block.dequantize(torch.ones(5, 6))


def test_index_select_keeps_everything_aligned():
    code = torch.tensor([[0, 8, -8], [8, 0, 8]])
    value = torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    picked = TeSA.from_codes((2, 3), code, value).index_select(1, torch.tensor([2, 0]))
    assert picked.shape == (2, 2)
    assert picked.values.tolist() == [[3.0, 0.0], [0.0, 0.0]]
    assert picked.bits.tolist() == [[8, 0], [8, 8]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TeSA.from_codes((2, 3), torch.ones(4)), "do not broadcast"),
        (lambda: TeSA.from_codes((2,), torch.tensor([-8, 8])), "needs their values"),
        (lambda: TeSA.dense((2,)).meet(TeSA.dense((3,))), "different shapes"),
        (lambda: TeSA.dense((2,)).apply(torch.ones(3)), "cannot mask a tensor"),
    ],
)
def test_errors_say_what_does_not_fit(make, message):
    with pytest.raises(MaskError, match=message):
        make()
