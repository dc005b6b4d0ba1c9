"""The matrix of a study's returns, and the judgement of its winner."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import optuna
import pytest

from tests.support.fabricated_study import identity
from train.evaluator import EpisodeRecord
from train.findings.overfit import assess, require_trials, write_matrix
from train.findings.returns import StudyReturns, layout_of, read_returns
from train.findings.stored_trial import StoredStudy
from train.records.errors import StudyError
from train.records.keys import IDENTITY
from train.records.results import read_equity, split_folder
from train.report.verdict import ALPHA_PBO, DEFLATED_ALPHA, TRIALS_DIFFER, judge
from train.study.split_files import write_equity
from train.validation.choice import CHOICE_LEVEL
from train.validation.metrics import sharpe
from train.validation.overfitting import deflated_sharpe, estimate_sharpe

N_BARS = 400
BLOCKS = ((0, 200), (200, 400))
SPLITS = ((0,), (0, 1), (1,))  # blocks that each split tests


MARKET = np.random.default_rng(99).normal(0.0001, 0.005, N_BARS)  # returns of equal weight


def record(block, returns):
    """An account with these returns, beside equal weight with the market's."""
    first, last = block
    n = last - first
    equity = 100.0 * np.cumprod(np.concatenate([[1.0], 1.0 + returns[first + 1 : last]]))
    zero = np.zeros(n - 1)
    benchmark = 100.0 * np.cumprod(np.append(1.0, 1.0 + MARKET[first + 1 : last]))
    return EpisodeRecord(block, np.arange(first, last), equity, benchmark, zero, zero, zero.astype(int), np.ones(n))


def add_trial(study, folder, returns_of_split, state=optuna.trial.TrialState.COMPLETE):
    """A finished trial with an equity file for each split it has returns of."""
    number = len(study.trials)
    for k, returns in enumerate(returns_of_split):
        records = [record(BLOCKS[b], returns) for b in SPLITS[k]]
        path = split_folder(folder, number, k) / "equity.npz"
        path.parent.mkdir(parents=True)
        write_equity(path, records, np.arange(N_BARS) * 300)
    attrs = {f"split_{k}": {} for k in range(len(returns_of_split))}
    value = float(np.mean(returns_of_split[0])) if returns_of_split else -9.0
    study.add_trial(optuna.trial.create_trial(value=value, state=state, user_attrs=attrs))


@pytest.fixture
def made(tmp_path):
    """12 completed trials of noise, one of them with skill, and two pruned: after one split, and before any."""
    study = optuna.create_study(direction="maximize", study_name="s")
    study.set_user_attr(IDENTITY, identity())
    rng = np.random.default_rng(0)
    for i in range(12):
        drift = 0.004 if i == 5 else 0.0
        add_trial(study, tmp_path, [rng.normal(drift, 0.01, N_BARS) for _ in SPLITS])
    pruned = optuna.trial.TrialState.PRUNED
    add_trial(study, tmp_path, [rng.normal(0.0, 0.01, N_BARS)], pruned)
    add_trial(study, tmp_path, [], pruned)
    return StoredStudy(study, tmp_path)


def test_a_column_is_the_mean_of_the_policies_that_were_tested_on_a_bar(made):
    returns = read_returns(made.study, made.folder)
    assert returns.account.shape == (N_BARS - 2, 12)  # a block's first bar has no return
    assert set(range(N_BARS)) - set(returns.bars.tolist()) == {0, 200}
    curves = []
    for k, block in ((0, 0), (1, 0)):  # splits 0 and 1 both test block 0
        with np.load(split_folder(made.folder, 3, k) / "equity.npz") as file:
            equity = file["equity"][file["segment"] == block]
        curves.append(equity[1:] / equity[:-1] - 1.0)
    np.testing.assert_allclose(returns.account[:199, 3], np.mean(curves, axis=0), rtol=1e-12)


def test_the_lead_is_what_the_market_does_not_explain(made):
    returns = read_returns(made.study, made.folder)
    np.testing.assert_allclose(returns.equal_weight, MARKET[returns.bars], atol=1e-12)
    for column, lead in zip(returns.account.T, returns.matrix("lead").T, strict=True):
        beta, _ = np.polyfit(returns.equal_weight, column, 1)
        np.testing.assert_allclose(lead, column - beta * returns.equal_weight, atol=1e-12)
    kept = returns.rows[5]["lead_sharpe"]
    own = returns.matrix("lead")[:, 5]
    assert kept == pytest.approx(own.mean() / own.std(ddof=1) * np.sqrt(returns.bars_per_year))


def as_returns(account, equal_weight):
    """(T, N) accounts beside (T,) equal weight on hourly bars, as a study's returns; the best Sharpe wins."""
    numbers, bars = tuple(range(account.shape[1])), np.arange(len(account))
    found = StudyReturns(account, equal_weight, numbers, bars, 0, (), 0, "1h")
    own, lead = (sharpe(found.matrix(kind).T, found.bars_per_year) for kind in ("account", "lead"))
    rows = tuple({"trial": j, "sharpe": float(own[j]), "lead_sharpe": float(lead[j])} for j in numbers)
    return replace(found, winner=int(np.argmax(own)), rows=rows)


def a_year(rng, annual_sharpe):
    """(T,) returns of a market, and (N,) of what 20 accounts have in it and pay, and noise of each."""
    n_bars, n_trials = 8760, 20
    deviation = 0.65 / np.sqrt(n_bars)
    market = rng.normal(annual_sharpe * 0.65 / n_bars, deviation, n_bars)
    noise = rng.normal(0.0, 0.02 * deviation, (n_bars, n_trials))
    return market, noise - rng.uniform(0.0, 0.3, n_trials) / n_bars


@pytest.mark.parametrize("annual_sharpe", [2.5, -2.5])
def test_holding_more_or_less_of_a_market_that_drifts_is_no_skill(annual_sharpe):
    """Accounts of constant exposure that pay fees, in a year in which prices rise or fall."""
    rng = np.random.default_rng(0)
    for repetition in range(20):
        market, rest = a_year(rng, annual_sharpe)
        found = as_returns(market[:, None] * rng.uniform(0.2, 0.4, 20) + rest, market)
        if repetition == 0:
            first, *others = judge(found).sentences
            assert first.startswith("Not evidence of skill")
            assert not any("vidence of skill" in other for other in others)
        lead = assess(found, "lead", n_blocks=4)
        assert lead.conclusion.startswith("Not evidence of skill")
        # the plain difference of returns is what rising and falling prices would fool
        assert deflated_sharpe(lead.estimate, lead.search) < 0.5


@pytest.mark.parametrize("annual_sharpe", [2.5, -2.5])
def test_timing_is_skill_in_a_market_that_drifts_too(annual_sharpe):
    rng = np.random.default_rng(1)
    market, rest = a_year(rng, annual_sharpe)
    exposure = np.repeat(rng.uniform(0.2, 0.4, 20)[None, :], len(market), axis=0)
    knows = rng.random(len(market)) < 0.2  # of some bars, which way they go
    exposure[:, 7] = np.where(knows, market > 0.0, exposure[:, 7])
    found = as_returns(market[:, None] * exposure + rest, market)
    assert found.winner == 7
    first = judge(found).sentences[0]
    assert first.startswith("Evidence of skill")


@pytest.mark.parametrize(("holdout", "beginning"), [(True, "Evidence of skill"), (False, "Not evidence of skill")])
def test_equally_skilled_trials_are_judged_by_the_holdout(holdout, beginning):
    rng = np.random.default_rng(5)
    market, rest = a_year(rng, 0.0)
    knows = rng.random(len(market)) < 0.1
    exposure = np.where(knows, market > 0.0, 0.5)[:, None]
    noise = rng.normal(0.0, 0.3 * market.std(), rest.shape)
    verdict = judge(as_returns(market[:, None] * exposure + noise, market), holdout)
    assert verdict.sentences[0].startswith(beginning)
    assert "PBO does not apply" in verdict.sentences[0]
    numbers = {name: (number, meaning) for name, number, meaning in verdict.numbers}
    assert float(numbers[TRIALS_DIFFER][0].removeprefix("p = ")) >= CHOICE_LEVEL
    assert numbers[ALPHA_PBO][1].endswith("it does not apply here")


def test_the_fee_that_equal_weight_pays_for_its_coins_is_in_its_first_return():
    # 100 buys coins worth 99; then they rise by 2 and by 1: the returns are 101 / 100 - 1 and 102.01 / 101 - 1.
    def columns(first_bar):
        bars = first_bar + np.arange(3)
        return {
            "segment": np.zeros(3, int), "bar": bars, "equity": np.array([100.0, 90.0, 95.0]),
            "benchmark_equity": np.array([99.0, 101.0, 102.01]),
        }  # fmt: skip

    both = {name: np.concatenate([columns(0)[name], columns(7)[name]]) for name in columns(0)}
    both["segment"][3:] = 1
    layout = layout_of({0: both, 1: columns(0)})
    assert layout.bars.tolist() == [1, 2, 8, 9]
    np.testing.assert_allclose(layout.equal_weight, 0.01, rtol=1e-12)


def test_pruned_trials_count_and_have_no_column(made):
    returns = read_returns(made.study, made.folder)
    assert returns.numbers == tuple(range(12))
    assert np.isfinite(returns.annual_sharpes("account")).sum() == 13
    assert returns.rows[12]["bars"] == 199
    assert returns.count_text() == (
        "14 finished trials: 12 completed, 2 pruned; 13 have a Sharpe ratio; 12 have returns on all 398 common bars"
    )
    assert assess(returns, "account").search.n_trials == 14


def test_the_reports_page_says_what_the_returns_say(made):
    returns = read_returns(made.study, made.folder)
    numbers = {name: number for name, number, _ in judge(returns).numbers}
    for kind, figure, pbo in (("account", "deflated Sharpe", "PBO"), ("lead", DEFLATED_ALPHA, ALPHA_PBO)):
        found = assess(returns, kind)
        own = estimate_sharpe(returns.matrix(kind)[:, 5])
        assert numbers[figure] == f"{np.floor(deflated_sharpe(own, found.search) * 1000) / 10:.1f} %"
        assert numbers[pbo] == f"{np.ceil(found.pbo * 1000) / 10:.1f} %"
    assert numbers["trials"] == "14"


def test_what_a_pruned_trial_did_is_part_of_the_search(made):
    """The bad trials are pruned: without them trials would seem to differ less, and luck to reach less far."""
    returns = read_returns(made.study, made.folder)
    curve = read_equity(split_folder(made.folder, 12, 0) / "equity.npz")["equity"]
    r = curve[1:] / curve[:-1] - 1.0
    ratios = [np.mean(c) / np.std(c, ddof=1) for c in (*returns.account.T, r)]
    assert assess(returns, "account").search.sharpe_variance == pytest.approx(np.var(ratios, ddof=1))


def test_skill_among_noise_is_found(made, tmp_path):
    returns = read_returns(made.study, made.folder)
    assert returns.winner == 5
    found = assess(returns, "account")
    content = found.to_json()
    assert content["pbo"] < 0.05
    assert content["deflated_sharpe"] > 0.95
    assert content["minimum_track_record_bars"] < N_BARS
    assert "The account earned more than the luckiest" in content["verdict"]
    assert assess(returns, "lead").conclusion.startswith("Evidence of skill: ")
    write_matrix(tmp_path / "pbo.npz", returns, found)
    with np.load(tmp_path / "pbo.npz") as file:
        np.testing.assert_array_equal(file["returns"], returns.account)
        assert len(file["logit"]) == content["combinations"] == 12_870


def test_too_few_trials_say_how_many_are_needed(made):
    returns = read_returns(made.study, made.folder)
    with pytest.raises(
        StudyError, match=r"needs at least 20 completed trials; the study has 12 \(2 more finished .* run 8 more"
    ):
        require_trials(returns, 20)


def test_a_missing_curve_is_named(made):
    (split_folder(made.folder, 4, 1) / "equity.npz").unlink()
    with pytest.raises(StudyError, match=r"trial_4: only 2 of 3 splits have an equity\.npz"):
        read_returns(made.study, made.folder)


@pytest.mark.parametrize("keep", [0.0, 0.6], ids=["empty", "cut off"])
@pytest.mark.parametrize("number", [4, 5], ids=["another", "winner"])
def test_a_damaged_curve_is_named(made, number, keep):
    path = split_folder(made.folder, number, 1) / "equity.npz"
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(StudyError, match=rf"trial_{number}/split_1/equity\.npz cannot be read \(.*restore"):
        read_returns(made.study, made.folder)


def test_a_winner_without_files_or_a_record_of_its_splits_is_named(made):
    made.study.add_trial(optuna.trial.create_trial(value=99.0))
    with pytest.raises(StudyError, match=r"trial_14: only 0 of 0 splits have an equity\.npz; restore"):
        read_returns(made.study, made.folder)


def test_a_study_without_a_completed_trial_has_nothing_to_judge(tmp_path):
    empty = optuna.create_study(study_name="e")
    with pytest.raises(StudyError, match="study e has no best trial"):
        read_returns(empty, tmp_path)


def test_other_test_bars_are_refused(made):
    path = split_folder(made.folder, 2, 2) / "equity.npz"
    with np.load(path) as file:
        columns = {name: file[name][:-1] for name in file.files}
    np.savez(path, **columns)
    late = split_folder(made.folder, 2, 1) / "equity.npz"
    with np.load(late) as file:
        columns = {name: file[name][:-1] for name in file.files}
    np.savez(late, **columns)
    with pytest.raises(StudyError, match="trial_2: its test bars differ from those of the best trial"):
        read_returns(made.study, made.folder)


def test_trials_of_other_timeframes_count_as_tried_and_are_not_compared(made):
    trials = made.study.get_trials()
    for trial in trials:
        trial.params = {"timeframe": "15m" if trial.number in (5, 6) else "5m"}
    study = SimpleNamespace(
        study_name="s",
        user_attrs=made.study.user_attrs,
        get_trials=lambda deepcopy=True, states=None: [t for t in trials if not states or t.state in states],
    )
    returns = read_returns(study, made.folder)
    assert returns.numbers == (5, 6)
    assert returns.timeframe == "15m"
    assert "12 of other timeframes count only as trials tried" in returns.count_text()
    assert assess(returns, "account").search.n_trials == 14
