"""Nothing leaks: from one segment to another, or from test bars to the choice of a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from market.build import dataset_from_bars
from market.features import FEATURE_SETS
from market.sample import sample_bars
from tests.support.fabricated_study import origin
from train.evaluator import evaluate_policy
from train.run import BEST_POLICY, LAST_POLICY
from train.study.folds import fold_data
from train.study.search_space import MAX_LOOKBACK, build_space, resolve, sample
from train.study.split import equal_weight_metrics, run_split
from train.study.split_plan import SplitPlan

TICKERS = ("BTC", "ETH", "LTC")
TOUCHED = 1  # of three segments
FOLD = 1


def three_segments(features: str, factor: float):
    """A market with two gaps; every price of the middle segment's bars, warm-up included, is multiplied."""
    bars = sample_bars("5m", 2400, TICKERS, seed=3)
    slot = bars.groupby("symbol", observed=True).cumcount()
    is_touched = (slot >= 800) & (slot < 1560)
    prices = ["open", "high", "low", "close"]
    bars.loc[is_touched, prices] *= factor
    kept = bars[~slot.between(760, 799) & ~slot.between(1560, 1599)]
    return dataset_from_bars(pd.DataFrame(kept), TICKERS, "5m", source="sample", features=features)


@pytest.mark.parametrize("features", sorted(FEATURE_SETS))
def test_ten_times_the_prices_of_one_segment_change_no_number_in_any_other(features):
    plain, scaled = three_segments(features, 1.0), three_segments(features, 10.0)
    assert len(plain.segments) == 3
    assert plain.segments == scaled.segments
    first, last = plain.segments[TOUCHED]
    np.testing.assert_allclose(scaled.price[first:last], 10.0 * plain.price[first:last], rtol=1e-12)
    others = [segment for i, segment in enumerate(plain.segments) if i != TOUCHED]
    for a, b in others:
        for name, array in plain.arrays.items():
            np.testing.assert_array_equal(array[a:b], scaled.arrays[name][a:b])
    configs = plain.env_config(others), scaled.env_config(others)
    for name in ("segments", "tickers"):
        assert configs[0][name] == configs[1][name]
    for name in ("min_order_qty", "qty_increment", "time_array"):
        np.testing.assert_array_equal(configs[0][name], configs[1][name])
    weights = torch.randn((10_000, len(TICKERS)), generator=torch.Generator().manual_seed(0))

    def act(state):  # trades a lot, and by everything it sees
        return torch.sin(torch.nan_to_num(state) @ weights[: state.shape[1]])

    env = {"rules": "standard", "lookback": 4, "observe_account": True, "benchmark_weight": 1.0}
    one, two = (evaluate_policy(act, config, env) for config in configs)
    assert sum(record.trades.sum() for record in one) > 50
    for left, right in zip(one, two, strict=True):
        for name in ("bars", "equity", "benchmark_equity", "turnover", "fees", "trades", "exposure"):
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    figures = [asdict(equal_weight_metrics(each, plain.bars_per_year)) for each in (one, two)]
    np.testing.assert_equal(*figures)  # nan is equal to nan


@pytest.fixture(scope="module")
def study_data(market):
    return fold_data(market, SplitPlan("standard", 3, 2))


def poisoned(data, blocks):
    """The data with the bars of `blocks` upside down: falls where it rose, other features."""
    price, tech = np.array(data.dataset.price), np.array(data.dataset.tech)
    for first, last in blocks:
        price[first:last] = 1e4 / price[first:last]
        tech[first:last] = -2.0 * tech[first:last] + 1.0
    return replace(data, dataset=replace(data.dataset, price=price, tech=tech))


def policies(data, folder):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=2))
    space = build_space(given={"total_env_steps": 12_000}, longest_episode_bars=300, agent="ppo")
    values = sample(space, study.ask()) | {"lookback": 3, "learning_rate": 3e-3, "rollout_samples": 512}
    settings = resolve(values, 4, 7, -1, "ppo")
    run_split(settings, data, data.folds[FOLD], folder, origin(data.dataset))
    return [load_file(folder / name) for name in (BEST_POLICY, LAST_POLICY)]


def equal(one, two) -> bool:
    return all(np.array_equal(one[name], two[name]) for name in one)


def test_bars_outside_training_and_validation_never_choose_the_checkpoint(study_data, tmp_path):
    fold = study_data.folds[FOLD]
    n_bars = len(study_data.dataset.time)
    # Everything but fit bars, validation bars and the bars that a validation observation reaches back to.
    used = {bar for first, last in fold.fit for bar in range(first, last)}
    used |= {bar for first, last in fold.validation for bar in range(first - MAX_LOOKBACK + 1, last)}
    unused = [(bar, bar + 1) for bar in range(n_bars) if bar not in used]
    assert {bar for first, last in fold.test for bar in range(first, last)} <= {bar for bar, _ in unused}
    best, last = policies(study_data, tmp_path / "clean")
    other_best, other_last = policies(poisoned(study_data, unused), tmp_path / "poisoned")
    assert equal(best, other_best)
    assert equal(last, other_last)
    # The same poison where it may act: on validation bars it chooses another checkpoint of the same run.
    chosen, same_last = policies(poisoned(study_data, fold.validation), tmp_path / "validation")
    assert equal(last, same_last)
    assert not equal(best, chosen)
    _, learnt = policies(poisoned(study_data, fold.fit), tmp_path / "fit")
    assert not equal(last, learnt)
