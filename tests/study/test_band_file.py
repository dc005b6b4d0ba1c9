"""A band policy's file and pictures: the edges stand where their orders filled, in every place that shows them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from drl_agents.policy import Policy
from drl_agents.policy_file import save_policy
from market.planted import Law
from market.sample import synthetic_dataset
from tests.support import fabricated_study as fabricated
from tests.support.markets import random_config
from train.band_trace import evaluate_with_band
from train.records.errors import StudyError
from train.records.keys import SETTINGS
from train.records.record_files import read_record
from train.records.results import split_folder, trial_folder
from train.records.stored import TrialSettings
from train.report.artifacts import band_of_trial
from train.report.collect import collect, write_report
from train.study.band_file import BAND_FILE, STEPS, read_band, write_band
from train.study.folds import fold_data
from train.study.split_plan import SplitPlan

LOOKBACK = 2
ENV = {"rules": "standard", "lookback": LOOKBACK, "norm_action": 1.0, "fee_rate": 0.0, "slippage_rate": 0.0,
       "min_order_notional": 0.0}  # fmt: skip


def band_policy(n_assets: int, n_features: int, seed: int = 0) -> Policy:
    """Random edges that change at every bar."""
    generator = torch.Generator().manual_seed(seed)
    width = LOOKBACK * n_features
    layer = (torch.randn(2 * n_assets, width, generator=generator), torch.full((2 * n_assets,), -1.0))
    n_columns = 1 + n_assets + width
    return Policy(torch.zeros(n_columns), torch.ones(n_columns), (layer,), head="band",
                  least_weight=torch.zeros(n_assets))  # fmt: skip


def test_the_held_weight_is_inside_the_band_of_its_row(tmp_path):
    config = random_config(200, 2, 3, seed=1, volatility=1e-6, segments=[(0, 120), (120, 200)],
                           min_order_qty=np.zeros(2))  # fmt: skip
    path = save_policy(tmp_path / "p.safetensors", band_policy(2, 3), {})
    records, bands = evaluate_with_band(path, config, ENV)
    assert [len(band.lo) for band in bands] == [len(r.bars) for r in records] == [119, 79]
    for band in bands:
        assert np.isnan(band.lo[0]).all()
        lo, hi, weight = band.lo[1:], band.hi[1:], band.weight[1:]
        has_cash = weight.sum(axis=1) < 0.999  # an account without cash cannot buy as much as it wants
        assert 10 < np.count_nonzero(has_cash) < len(has_cash)
        assert (weight >= lo - 1e-4)[has_cash].all()
        assert (weight <= hi + 1e-4).all()
        assert (weight[:-1] > hi[1:] + 1e-4).any()  # a bar later they would not fit


def test_a_policy_without_a_band_has_no_trace(tmp_path):
    config = random_config(60, 2, 3, seed=1)
    plain = Policy(torch.zeros(9), torch.ones(9), ((torch.ones(2, 9), torch.zeros(2)),))
    records, bands = evaluate_with_band(save_policy(tmp_path / "p.safetensors", plain, {}), config, ENV)
    assert (len(records), bands) == (1, [])
    assert records[0].qty is None


@pytest.fixture(scope="module")
def planted():
    dataset = synthetic_dataset("5m", 3000, ("BTC", "ETH"), seed=1, law=Law.PLANTED)
    return fold_data(dataset, SplitPlan("standard", 3, 2))


@pytest.fixture(scope="module")
def made(planted, tmp_path_factory):
    """A study of one trial whose split 1 has a band."""
    study, folder = fabricated.new_study(tmp_path_factory.mktemp("results"), planted)
    number, dataset = fabricated.add_complete(study, folder, planted, 3e-5), planted.dataset
    path = save_policy(folder / "p.safetensors", band_policy(2, dataset.tech.shape[1]), {})
    config = dataset.env_config(planted.folds[1].test)
    records, bands = evaluate_with_band(path, config, ENV)
    write_band(split_folder(folder, number, 1) / BAND_FILE, bands, [r.bars for r in records], dataset.time)
    return study, folder, bands, records


def curves_of(folder, **data):
    """With the trial's settings; `data`: other facts of its bars."""
    settings = read_record(trial_folder(folder, 0) / SETTINGS, TrialSettings)
    settings = replace(settings, data=replace(settings.data, **data))
    return read_band(folder, split_folder(folder, 0, 1) / BAND_FILE, settings)


def test_what_is_written_is_read_to_a_step(made, planted):
    _, folder, bands, records = made
    curves = curves_of(folder)
    for name in ("lo", "hi", "weight"):
        whole = np.concatenate([getattr(band, name) for band in bands])
        np.testing.assert_allclose(getattr(curves, name), whole, atol=0.5001 / STEPS)
    bars = np.concatenate([r.bars for r in records])
    np.testing.assert_array_equal(curves.price, planted.dataset.price[bars])
    np.testing.assert_array_equal(curves.time_s, planted.dataset.time[bars])
    assert curves.tickers == planted.dataset.tickers


def test_on_the_planted_market_the_solved_band_stands_beside_it(made):
    curves = curves_of(made[1])
    assert set(np.unique(curves.best_lo)) == set(np.unique(curves.best_hi)) == {0.0, 0.5}
    assert (curves.best_lo <= curves.best_hi).all()
    assert (curves.best_lo < curves.best_hi).any()
    # An order decided with the wish to hold fills before the bar that the signal lifts.
    growth = np.diff(np.log(curves.price), axis=0).mean(axis=1)
    wants, wants_not = curves.best_lo[:-1, 0] > 0.0, curves.best_hi[:-1, 0] == 0.0
    assert growth[wants].mean() > growth[wants_not].mean()


def test_the_page_and_the_artifact_show_it(made):
    study, folder, _, _ = made
    view = collect(study, folder).band
    assert view is not None
    assert view.title == "Trial 0, split 1"
    html = write_report(study, folder).read_text()
    assert '<section id="band">' in html
    figure = band_of_trial(folder, 0, study.get_trials()[0].user_attrs)
    assert figure is not None
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert [label.partition(":")[0] for label in labels if label.startswith(("BTC", "ETH"))] == ["BTC", "ETH"]
    assert "SYNTHETIC" in figure.get_suptitle()


def test_a_damaged_file_leaves_the_page_without_a_band(made, tmp_path):
    study, folder, _, _ = made
    path = split_folder(folder, 0, 1) / BAND_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    with pytest.raises(StudyError, match=r"band\.npz cannot be read"):
        curves_of(folder)
    assert collect(study, folder).band is None
    path.write_bytes(whole)


def test_a_market_without_a_planted_signal_has_no_best_band(made):
    assert curves_of(made[1], source="bars.csv").best_lo is None
    with pytest.raises(StudyError, match="has no closes of the trial's data"):
        curves_of(made[1], sha256="other")
