"""Many accounts in one call equal each on its own; each on its own equals empyrical."""

from __future__ import annotations

import math
from dataclasses import asdict, fields

import empyrical
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from train.records.account import Metrics
from train.validation import metrics
from train.validation.metrics import MetricsBatch, join_points, join_steps, measure, measure_batch

BARS_PER_YEAR = 365.0 * 288.0


def random_returns(seed: int, n: int, scale: float) -> np.ndarray:
    """Fat tails, some flat bars."""
    rng = np.random.default_rng(seed)
    returns = np.clip(rng.standard_t(3.0, n) * scale, -0.9, 5.0)
    returns[rng.random(n) < 0.2] = 0.0
    return returns


@given(st.integers(0, 2**32), st.integers(2, 300), st.sampled_from([1e-4, 1e-3, 1e-2]))
def test_every_figure_of_a_series_is_empyricals(seed, n, scale):
    r = random_returns(seed, n, scale)
    per_year = {"annualization": BARS_PER_YEAR}
    expected = {
        "total_return": empyrical.cum_returns_final(r),
        "volatility": empyrical.annual_volatility(r, **per_year),
        "max_drawdown": -empyrical.max_drawdown(r),
        "value_at_risk": empyrical.value_at_risk(r),
        "conditional_value_at_risk": empyrical.conditional_value_at_risk(r),
    }
    with np.errstate(all="ignore"):
        ratios = {
            "sharpe": empyrical.sharpe_ratio(r, **per_year),
            "sortino": empyrical.sortino_ratio(r, **per_year),
            "annual_return": empyrical.annual_return(r, **per_year) if n > 100 else math.nan,
            "calmar": empyrical.calmar_ratio(r, **per_year) if n > 100 else math.nan,
        }
    found = measure([np.cumprod(np.insert(1.0 + r, 0, 1.0))], BARS_PER_YEAR)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-7, abs=1e-10), name
    for name, value in ratios.items():
        # empyrical gives infinity where we say undefined; its growth of a short series leaves the range of floats
        if math.isfinite(value) and np.ptp(r) > 0.0:
            assert getattr(found, name) == pytest.approx(value, rel=1e-6, abs=1e-9), name


def longest_run_below_the_maximum(equity: np.ndarray) -> int:
    longest = run = 0
    for t in range(1, len(equity)):
        run = run + 1 if equity[t] < max(equity[: t + 1]) * (1.0 - 1e-9) else 0
        longest = max(longest, run)
    return longest


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_drawdown_bars_are_those_of_a_plain_loop(seed, n):
    equity = np.cumprod(np.insert(1.0 + random_returns(seed, n, 0.02), 0, 1.0))
    assert metrics.max_drawdown_bars(metrics.bar_returns(equity)) == longest_run_below_the_maximum(equity)


def random_account(rng: np.random.Generator) -> dict[str, list[np.ndarray]]:
    """One policy on a few segments of different lengths, some without a single return."""
    lengths = rng.integers(0, 12, rng.integers(1, 4))
    steps = {name: [rng.random(n) for n in lengths] for name in ("turnover_notional", "fees_quote")}
    return {
        "equities": [rng.uniform(50.0, 150.0) * np.cumprod(rng.uniform(0.9, 1.1, n + 1)) for n in lengths],
        **steps,
        "trades": [rng.integers(0, 5, n) for n in lengths],
        "exposure": [rng.random(n + 1) for n in lengths],
    }


def assert_same(batch: MetricsBatch, index: tuple[int, ...], expected: Metrics) -> None:
    found, wanted = asdict(batch.at(*index)), asdict(expected)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True), name
        assert type(found[name]) is type(value), name


@given(st.integers(0, 2**32), st.sampled_from([0.0, math.nan, math.inf, -7.0]))
def test_a_padded_batch_of_ragged_accounts_is_each_of_them(seed, padding):
    rng = np.random.default_rng(seed)
    accounts = [random_account(rng) for _ in range(4)]
    points = {k: metrics.pad_rows([join_points(a[k]) for a in accounts], padding) for k in ("equities", "exposure")}
    names = ("turnover_notional", "fees_quote", "trades")
    steps = {k: metrics.pad_rows([join_steps(a[k]) for a in accounts], padding) for k in names}
    segment = metrics.pad_rows([metrics.segment_ids([len(e) for e in a["equities"]]) for a in accounts], -1)
    batch = measure_batch(
        points["equities"].reshape(2, 2, -1),
        BARS_PER_YEAR,
        segment=segment.reshape(2, 2, -1),
        exposure=points["exposure"].reshape(2, 2, -1),
        **{name: column.reshape(2, 2, -1) for name, column in steps.items()},
    )
    for i, account in enumerate(accounts):
        equities = account.pop("equities")
        assert_same(batch, (i // 2, i % 2), measure(equities, BARS_PER_YEAR, **account))


moves = hnp.arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 20)),
                   elements=st.floats(-0.5, 0.5))  # fmt: skip


@given(moves)
def test_policies_and_splits_of_equal_length_need_no_mask(returns):
    equity = np.cumprod(1.0 + np.concatenate([np.zeros((*returns.shape[:2], 1)), returns], axis=-1), axis=-1)
    batch = measure_batch(equity, 50.0)
    assert batch.sharpe.shape == returns.shape[:2]
    for policy, split in np.ndindex(*returns.shape[:2]):
        assert_same(batch, (policy, split), measure([equity[policy, split]], 50.0))


@given(moves)
def test_the_figures_of_measure_are_the_functions(returns):
    r = returns[0, 0]
    found = measure([np.cumprod(np.insert(1.0 + r, 0, 1.0))], 50.0)
    for name in ("total_return", "max_drawdown", "max_drawdown_bars", "value_at_risk", "conditional_value_at_risk"):
        assert getattr(found, name) == pytest.approx(float(getattr(metrics, name)(r)), abs=1e-9, nan_ok=True)
    assert found.volatility == pytest.approx(float(metrics.volatility(r, 50.0)), rel=1e-6, abs=1e-9, nan_ok=True)


def test_a_bad_account_does_not_touch_its_neighbours():
    equity = np.array([[100.0, 90.0, 95.0, 97.0], [100.0, math.nan, 95.0, 97.0], [100.0, 0.0, 0.0, 0.0]])
    batch = measure_batch(equity, 50.0)
    assert np.isfinite(batch.sharpe).tolist() == [True, False, True]
    assert_same(batch, (0,), measure([equity[0]], 50.0))


def test_columns_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"one value per return, shape \(3,\); received \(4,\)"):
        measure_batch(np.ones(4), 50.0, fees_quote=np.ones(4))


def test_the_batch_has_the_fields_of_one_account():
    assert [f.name for f in fields(MetricsBatch)] == [f.name for f in fields(Metrics)]


def test_no_accounts_at_all():
    assert measure_batch(np.empty((0, 5)), 50.0).sharpe.shape == (0,)
    assert metrics.pad_rows([]).shape == (0, 0)
