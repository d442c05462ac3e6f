"""Where rates come from, and what the model makes of them."""

import dataclasses

import pytest
import torch

from torchroller.device import DeviceSpec
from torchroller.host import Calibration
from torchsparta import rates as module
from torchsparta.cost import time_of
from torchsparta.cover import cover
from torchsparta.formats import FineGrained, Tile
from torchsparta.rates import MEASURED, keep, rates_for, shipped_rates
from torchsparta.specialised import pattern_mask, predict
from torchsparta.vector_unit import WIDE

ZEN4 = MEASURED["znver4"]


@pytest.fixture
def zen4(monkeypatch):
    """A spec of that class, without a saved calibration."""
    monkeypatch.setattr(module, "vector_unit", lambda: WIDE)
    monkeypatch.setattr(module, "load_calibration", lambda: None)
    spec = DeviceSpec.for_target("cpu")
    return dataclasses.replace(spec, arch="znver4", units=8, fork_s=1e-6)


def test_a_class_of_cpus_has_rates_of_its_own(zen4):
    found = shipped_rates(zen4, 1)
    assert found.mac_s == ZEN4.rates.mac_s
    assert found.launch_s == ZEN4.rates.launch_s
    assert shipped_rates(dataclasses.replace(zen4, arch="some other"), 1).source.startswith("shipped eff")


def test_threads_share_the_work_and_pay_for_waking(zen4):
    one, four = shipped_rates(zen4, 1), shipped_rates(zen4, 4)
    assert four.mac("8") == pytest.approx(one.mac("8") / 4)
    assert four.spill_s == pytest.approx(one.spill_s / 4)
    assert four.launch_s == pytest.approx(one.launch_s + 1e-6)
    assert shipped_rates(zen4, 16).mac("8") == pytest.approx(one.mac("8") / 8)  # it has eight units


def test_a_measured_peak_sets_the_clock(zen4, monkeypatch):
    half = Calibration(ZEN4.fma_flops_per_core / 2, 1e10, 1e10, 8)
    monkeypatch.setattr(module, "load_calibration", lambda: half)
    found = shipped_rates(zen4, 1)
    assert found.mac("1") == pytest.approx(2 * ZEN4.rates.mac("1"))
    assert "measured peak" in found.source


@pytest.mark.parametrize("sparsity", [75, 90, 95])
def test_scattered_elements_are_not_paired_into_blocks(sparsity):
    """Single rows beside blocks have fewer sums in flight; without a class of their own they looked free."""
    found = predict((768, 768), f"unstructured {sparsity}%", rates=ZEN4.rates)
    assert found.table[0].format == "fine-grained"


def test_every_list_of_a_single_row_costs():
    w, mask = torch.randn(64, 512), pattern_mask("unstructured 75%", (64, 512))
    short, long = (FineGrained.pack(w, mask, Tile(64, columns)).work() for columns in (64, 0))
    free = dataclasses.replace(ZEN4.rates, list_s=0.0)

    def lists_s(work):
        return time_of((64, 512), [("1", work)], 128, 1, ZEN4.rates, 1) - time_of(
            (64, 512), [("1", work)], 128, 1, free, 1
        )

    assert short.lists == 8 * long.lists
    assert lists_s(short) == pytest.approx(8 * lists_s(long))


def test_a_panel_beyond_the_second_cache_costs_more_per_column(monkeypatch):
    monkeypatch.setattr("torchsparta.cost.vector_unit", lambda: dataclasses.replace(WIDE, l2_bytes=1 << 20))
    nothing = [("1", FineGrained.pack(torch.zeros(32, 64)).work())]
    inside, beyond = (time_of((32, k), nothing, 128, 1, ZEN4.rates, 1) for k in (1024, 1025))
    assert beyond - inside > ZEN4.rates.spill_s * 128 * 1024


def test_kept_rates_are_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "_in_process", {})
    mine = dataclasses.replace(ZEN4.rates, threads=torch.get_num_threads(), source="kept by a test")
    keep(mine, save=True)
    module._in_process.clear()
    assert rates_for("cpu") == mine
    module._in_process.clear()
    module.cache_file().write_text("{")
    assert rates_for("cpu").source != "kept by a test"


def test_a_tiny_layer_stays_as_it_is():
    """12 x 12 on four tokens: what a kernel could gain is less than a call costs."""
    weight = torch.randn(12, 12)
    found = cover(weight, torch.ones(12, 12), 4, rates=ZEN4.rates)
    assert found.table[1].time_s < found.dense_s
    assert found.parts is None and "gains less than 3 us" in found.why
