"""A finished trial read back: the same accounts to the last digit, and nothing but its own files and data."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from dataclasses import asdict, replace

import numpy as np
import pytest
from optuna.trial import TrialState

from drl_agents.policy_file import load_policy, save_policy
from market.dataset import make_dataset, save_dataset
from market.sample import synthetic_dataset
from tests.support import fabricated_study
from tests.support.fabricated_study import origin
from tests.support.lab import TICKERS
from train.config import TrainConfig
from train.findings import stored_trial as replay
from train.findings.backtest import (
    cost_rows,
    costs_of,
    path_rows,
    recorded_text,
    summary_rows,
    validation_rows,
    write_paths,
)
from train.findings.reseed import own_rows, retrain, seed_folder, seed_rows, settings_for, spread_rows
from train.findings.stored_trial import evaluate_trial, find_trial, join_paths, open_stored, read_trial
from train.finish import run_study
from train.records.defaults import RANDOM_DRAWS
from train.records.errors import StudyError
from train.report.collect import collect
from train.runner.request import StudyRequest
from train.store.address import absolute_url
from train.study.folds import fold_data
from train.study.search_space import MAX_LOOKBACK
from train.study.split import agent_metrics, equal_weight_metrics, run_split
from train.study.split_files import settings_sha256, write_equity
from train.study.split_plan import SplitPlan
from train.validation.splits import n_paths


@pytest.fixture(scope="module")
def stored(tiny_study):
    return open_stored(tiny_study.url, tiny_study.name, None)


@pytest.fixture(scope="module")
def trial(stored, tiny_study):
    return read_trial(stored, "best", tiny_study.data_dir)


@pytest.fixture(scope="module")
def by_fold(trial):
    return evaluate_trial(trial)


@pytest.fixture
def copied(tiny_study, tmp_path):
    """The study's results in a folder that a test may damage."""
    shutil.copytree(tiny_study.results, tmp_path / "results")
    return open_stored(tiny_study.url, tiny_study.name, tmp_path / "results")


def test_every_split_of_the_trial_has_the_figures_that_the_study_wrote(trial, by_fold):
    per_year = trial.data.dataset.bars_per_year
    for fold, records in enumerate(by_fold):
        kept = json.loads((trial.folder / f"split_{fold}" / "result.json").read_text())
        for part, metrics in (("agent", agent_metrics), ("equal_weight", equal_weight_metrics)):
            ours = metrics(records, per_year)
            for name, value in kept[part].items():
                assert value is None or getattr(ours, name) == value, (fold, part, name)
        assert kept["agent"]["trades"] > 0
    assert recorded_text(trial, by_fold) == "every account is bit-identical to the study's own record"


def test_an_account_that_differs_from_the_record_is_told(trial, by_fold):
    first = by_fold[0][0]
    changed = [[replace(first, equity=first.equity * 1.01), *by_fold[0][1:]], *by_fold[1:]]
    assert "differ from the study's own record by up to 1.0e-02" in recorded_text(trial, changed)


@pytest.mark.parametrize(("now", "words"), [
    ([10.0, 9.0, 0.0, 0.0], "differ from the study's own record by up to 4.0e-04 of the initial capital (diff"),
    ([10.0, np.nan, 0.0, 0.0], "differ from the study's own record by up to inf of the initial capital (diff"),
    ([10.0, 5.0, 0.0, 1e-9], "differ from the study's own record by up to 1.0e-13 of the initial capital (rounding"),
    ([10.0, 5.0, 0.0, 0.0], "every account is bit-identical to the study's own record"),
])  # fmt: skip
def test_accounts_at_nothing_are_compared_too(trial, by_fold, tmp_path, now, words):
    def ruined(equity):
        n, zero = len(equity), np.zeros(len(equity) - 1)
        given = {"bars": np.arange(n), "equity": np.array(equity), "benchmark_equity": np.ones(n)}
        return replace(by_fold[0][0], **given, turnover=zero, fees=zero, trades=zero, exposure=np.zeros(n))

    (tmp_path / "split_0").mkdir()
    write_equity(tmp_path / "split_0" / "equity.npz", [ruined([10.0, 5.0, 0.0, 0.0])], np.arange(4))
    assert words in recorded_text(replace(trial, folder=tmp_path), [[ruined(now)]])


def test_paths_go_through_every_tested_bar_once_in_time_order(trial, by_fold):
    paths = join_paths(trial, by_fold)
    assert len(paths) == n_paths(3, 2)
    bars = [np.concatenate([record.bars for record in path]) for path in paths]
    for path in bars:
        assert np.all(np.diff(path) > 0)
        np.testing.assert_array_equal(path, bars[0])
    pieces = [id(record) for path in paths for record in path]
    assert len(set(pieces)) == len(pieces) == sum(map(len, by_fold))  # every block is in one path


def test_a_block_too_short_to_trade_is_in_no_path(trial, market):
    """A gap 5 bars before the second of three groups ends: nothing can be observed in the 5 bars behind it."""
    boundary, time = 2000, market.time.copy()
    time[boundary - 5 :] += 3000
    gap = make_dataset(
        price=market.price, tech=market.tech, time=time, tickers=market.tickers, feature_names=market.feature_names,
        bar_seconds=300, segments=[(0, boundary - 5), (boundary - 5, 3000)], source="x", synthetic=True, warmup_bars=5,
    )  # fmt: skip
    with_gap = replace(trial, data=fold_data(gap, SplitPlan("standard", 2, 2)))
    folds, lookback = with_gap.data.folds, trial.env["lookback"]
    assert max(len(fold.test) for fold in folds) == 3  # the group with the gap is two blocks
    by_fold = [replay.tested_segments(with_gap, fold) for fold in folds]
    assert sum(map(len, by_fold)) < sum(len(fold.test) for fold in folds)
    first = MAX_LOOKBACK - lookback
    expected = [(first, 1000), (1000 - lookback + 1, boundary - 5), (boundary - 5 + first, 3000)]
    assert join_paths(with_gap, by_fold) == [expected] * 2


def test_the_joined_return_is_the_product_of_the_blocks(trial, by_fold, tmp_path):
    rows = path_rows(trial, by_fold)
    write_paths(tmp_path / "paths.npz", trial, by_fold)
    with np.load(tmp_path / "paths.npz") as file:
        wealth, other = file["wealth"], file["benchmark_wealth"]
        assert wealth.shape == (len(rows), len(file["bar"]))
    for row, path, curve, beside in zip(rows, join_paths(trial, by_fold), wealth, other, strict=True):
        product = np.prod([record.equity[-1] / record.equity[0] for record in path])
        assert row["total_return"] == pytest.approx(product - 1.0, rel=1e-9)
        assert curve[-1] == pytest.approx(product, rel=1e-9)
        assert beside[-1] == pytest.approx(1.0 + row["equal_weight_return"], rel=1e-9)


def test_validation_has_the_agent_and_every_benchmark_by_split_and_by_path(trial, by_fold):
    rows = validation_rows(trial, by_fold, n_draws=3)
    accounts = ["agent", "equal weight", "cash", *(f"hold {t}" for t in TICKERS), "random orders"]
    for scope, n in (("split", len(by_fold)), ("path", 2)):
        mine = [row for row in rows if row["scope"] == scope]
        assert [(row["index"], row["account"]) for row in mine] == [(i, a) for i in range(n) for a in accounts]
    agent, equal, cash = rows[:3]
    assert agent["excess_sharpe"] == agent["sharpe"] - equal["sharpe"]
    assert cash["total_return"] == 0.0
    held = [row["total_return"] for row in rows[3:6]]
    assert min(held) < equal["total_return"] < max(held)
    assert rows[6]["turnover"] == pytest.approx(agent["turnover"], rel=0.05)
    summary = {(row["account"], row["figure"]): row for row in summary_rows(rows, "split")}
    sharpes = [row["sharpe"] for row in rows if row["scope"] == "split" and row["account"] == "agent"]
    assert summary["agent", "sharpe"]["mean"] == pytest.approx(np.mean(sharpes))
    assert summary["agent", "sharpe"]["worst"] == min(sharpes)
    without = validation_rows(trial, by_fold, n_draws=0)
    assert [row["account"] for row in without[:6]] == accounts[:-1]


def test_the_page_and_validation_draw_the_same_random_orders(trial, by_fold, stored):
    rows = [row for row in validation_rows(trial, by_fold, n_draws=RANDOM_DRAWS) if row["scope"] == "path"]
    table = {(row["index"], row["account"]): row for row in rows}
    paths = collect(stored.study, stored.folder).paths
    assert len(paths) == 2
    for i, path in enumerate(paths):
        agent, equal, random = (table[i, account] for account in ("agent", "equal weight", "random orders"))
        assert random["sharpe"] == np.mean(path.random.sharpe)
        assert random["exposure"] == pytest.approx(path.random.exposure, rel=1e-12)
        assert random["not_traded"] == pytest.approx(1.0 - path.random.traded_share, abs=1e-12)
        assert (agent["beats_random"], agent["returns_more"]) == (path.random.sharpe_below, path.random.returns_less)
        for name, value in asdict(path.equal_weight_figures).items():
            assert equal[name] == pytest.approx(value, rel=1e-12), name
        assert equal["trades"] == len(TICKERS) * 3  # bought once in each block


def test_split_0_under_seed_1_draws_other_accounts_than_split_1_under_seed_0(trial, by_fold):
    same = [by_fold[0]] * len(by_fold)
    sharpes = {
        (seed, row["index"]): row["sharpe"]
        for seed in (0, 1)
        for row in validation_rows(trial, same, n_draws=3, seed=seed)
        if (row["scope"], row["account"]) == ("split", "random orders")
    }
    assert len(set(sharpes.values())) == len(sharpes) == 2 * len(by_fold)


def test_validation_keeps_no_more_of_the_draws_than_their_curves(trial, by_fold):
    """8 bytes a step and draw are kept, and those of one split are worked on; whole accounts are 40 bytes."""
    n_draws, n_steps = 60, sum(len(record.turnover) for records in by_fold for record in records)
    tracemalloc.start()
    validation_rows(trial, by_fold, n_draws=n_draws)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / (n_steps * n_draws) < 40.0


def test_fees_and_slippage_are_both_multiplied(trial):
    rows, found = cost_rows(trial, (1.0, 4.0))
    assert [(row["fee_rate"], row["slippage_rate"]) for row in rows] == [(0.0025, 0.0005), (0.01, 0.002)]
    by_hand = evaluate_trial(trial, {"fee_rate": 0.01, "slippage_rate": 0.002})
    for ours, theirs in zip(found[4.0], by_hand, strict=True):
        for record, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(record.equity, other.equity)


def test_costs_are_those_that_the_trial_paid(trial):
    costs = costs_of(trial.env)
    assert (costs.initial_capital, costs.fee_rate, costs.slippage_rate) == (10_000.0, 0.0025, 0.0005)


# ------------------------------------------------------------------------------------------------ seeds
def test_the_studys_own_seed_trains_the_very_same_policy(trial, stored, tmp_path):
    study_seed, fold = stored.seed, trial.data.folds[0]
    run_split(settings_for(trial, study_seed, 0), trial.data, fold, tmp_path, origin(trial.data.dataset))
    again, kept = load_policy(tmp_path / "policy_best.safetensors"), load_policy(trial.policies[0])
    for (a, b), (c, d) in zip(again.layers, kept.layers, strict=True):
        assert bool((a == c).all())
        assert bool((b == d).all())


def test_seeds_are_trained_once_and_a_failed_split_is_tried_again(trial, tmp_path):
    moved, calls, fails = replace(trial, folder=tmp_path), [], [True]

    def runner(settings, data, fold, out_dir, origin, on_progress=None):
        calls.append((origin.reseeded, fold.index, settings.train["seed"]))
        if fold.index == 1 and fails:
            raise RuntimeError("no luck")
        out_dir.mkdir(parents=True, exist_ok=True)
        shutil.copy(trial.folder / f"split_{fold.index}" / "result.json", out_dir)

    rows = retrain(moved, 0, 2, runner=runner)
    n = len(trial.data.folds)
    assert len(set(calls)) == len(calls) == 2 * n
    assert [row["failed"] for row in rows if row["split"] == 1] == ["RuntimeError: no luck"] * 2
    assert [row["failed"] for row in seed_rows(rows)] == [1, 1]
    assert spread_rows(seed_rows(rows)) == []
    assert not seed_folder(moved, 1, 1).exists()
    fails.clear()
    calls.clear()
    rows = retrain(moved, 0, 2, runner=runner)
    assert [call[:2] for call in calls] == [(1, 1), (2, 1)]
    trials_own = trial.settings.split_seeds
    assert set(trials_own).isdisjoint(call[2] for call in calls)
    table = {row["figure"]: row for row in spread_rows(seed_rows(own_rows(trial) + rows))}
    np.testing.assert_equal(table["sharpe"]["mean"], table["sharpe"]["trial"])
    assert retrain(moved, 0, 2, runner=None) == rows  # nothing is left to train


@pytest.mark.parametrize("name", ["code_version", "settings_sha256", "data_sha256"])
def test_seeds_of_other_code_settings_or_data_are_trained_again(trial, tmp_path, caplog, name):
    caplog.set_level("INFO")
    moved, calls = replace(trial, folder=tmp_path), []

    def runner(settings, data, fold, out_dir, origin, on_progress=None):
        calls.append((origin.reseeded, fold.index))
        out_dir.mkdir(parents=True, exist_ok=True)
        shutil.copy(trial.folder / f"split_{fold.index}" / "result.json", out_dir)

    retrain(moved, 0, 1, runner=runner)
    path = seed_folder(moved, 1, 2) / "result.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {name: "another"}))
    calls.clear()
    caplog.clear()
    retrain(moved, 0, 1, runner=runner)
    assert calls == [(1, 2)]
    assert sum("1 of 3 splits were trained with different code" in message for message in caplog.messages) == 1
    assert json.loads(path.read_text()) == content


def test_other_settings_are_another_hash(trial):
    config, env = TrainConfig(**settings_for(trial, 0, 0).train), trial.env
    kept = json.loads((trial.folder / "split_0" / "result.json").read_text())["settings_sha256"]
    assert kept == settings_sha256(replace(config, seed=9), env)
    assert kept != settings_sha256(replace(config, gamma=0.5), env)
    assert kept != settings_sha256(config, env | {"fee_rate": 0.5})


# ------------------------------------------------------------------------------------------------ what is refused
def test_a_folder_of_several_timeframes_is_read_as_it_was_for_training(tmp_path):
    """`--data-dir data --timeframe 1h` beside a data/5m: the study says which of them it was."""
    for timeframe, n_bars in (("5m", 3000), ("1h", 3000)):
        save_dataset(synthetic_dataset(timeframe, n_bars, TICKERS, seed=1), tmp_path / "data" / timeframe)
    url, plan = absolute_url("sqlite:///study.db", tmp_path), SplitPlan("standard", 2, 2)
    run_study(
        StudyRequest(
            n_trials=1, study_name="hourly", storage=url, results_dir=tmp_path / "results",
            data_dir=tmp_path / "data", timeframe="1h", plan=plan, n_envs=4, break_step=256, use_best_ranges=True,
            pruner="none",
        )
    )  # fmt: skip
    stored = open_stored(url, "hourly", None)
    for folder in (tmp_path / "data", tmp_path / "data" / "1h"):
        assert read_trial(stored, "0", folder).data.timeframe == "1h"
    with pytest.raises(StudyError, match=r"data/5m does not contain the data of study hourly: 1h is missing"):
        read_trial(stored, "0", tmp_path / "data" / "5m")


def test_other_data_is_refused_by_name(stored, tmp_path):
    save_dataset(synthetic_dataset("5m", 3000, TICKERS, seed=2), tmp_path / "5m")
    with pytest.raises(
        StudyError, match=r"5m does not contain the data of study tiny: .* --data-dir that contains SYNTHETIC 5m"
    ):
        read_trial(stored, "best", tmp_path / "5m")


@pytest.mark.parametrize(("which", "message"), [("7", "trials 0 to 2"), ("x", "trials 0 to 2"), ("-1", "best")])
def test_an_unknown_trial_is_refused(stored, which, message):
    with pytest.raises(StudyError, match=message):
        find_trial(stored, which)


def test_a_missing_policy_or_settings_file_is_named(copied, tiny_study, trial):
    folder = copied.folder / f"trial_{trial.number}"
    (folder / "split_1" / "policy_best.safetensors").unlink()
    with pytest.raises(StudyError, match=r"lacks 1 of 3 policies \(first: .*split_1"):
        read_trial(copied, "best", tiny_study.data_dir)
    (folder / "settings.json").unlink()
    with pytest.raises(StudyError, match=r"settings\.json: cannot be read \(No such file or directory\)"):
        read_trial(copied, "best", tiny_study.data_dir)


def test_a_policy_of_another_trial_is_named(copied, tiny_study, trial):
    path = copied.folder / f"trial_{trial.number}" / "split_0" / "policy_best.safetensors"
    save_policy(path, load_policy(path), {"trial": 99})
    with pytest.raises(StudyError, match=r"split_0/policy_best\.safetensors is not the file"):
        read_trial(copied, "best", tiny_study.data_dir)
    with pytest.raises(StudyError, match="its trial is 99"):  # also of a study from before hashes were kept
        read_trial(unsealed(copied), "best", tiny_study.data_dir)


def test_a_policy_of_another_split_is_named(copied, tiny_study, trial):
    folder = copied.folder / f"trial_{trial.number}"
    shutil.copy(folder / "split_1/policy_best.safetensors", folder / "split_0/policy_best.safetensors")
    with pytest.raises(StudyError, match="is not the file that"):
        read_trial(copied, "best", tiny_study.data_dir)
    with pytest.raises(StudyError, match="its split is 1"):
        read_trial(unsealed(copied), "best", tiny_study.data_dir)


@pytest.mark.parametrize(("name", "value"), [("fee_rate", 0.0), ("slippage_rate", 0.0), ("lookback", 2)])
def test_settings_that_were_changed_are_refused(copied, tiny_study, trial, name, value):
    path = copied.folder / f"trial_{trial.number}" / "settings.json"
    settings = json.loads(path.read_text())
    settings["env"][name] = value
    path.write_text(json.dumps(settings))
    with pytest.raises(StudyError, match=r"settings\.json is not the file that trial \d was scored with"):
        read_trial(copied, "best", tiny_study.data_dir)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("train", "agent", "x"), ("train", "learning_rate", "x"), ("train", "x", 1), ("train", "net_dims", None),
        ("env", "rules", "x"), ("env", "lookback", "x"), ("env", "x", 1), ("env", "fee_rate", -1.0),
    ],
)  # fmt: skip
def test_odd_settings_without_a_hash_are_an_error_and_no_traceback(copied, tiny_study, trial, part, name, value):
    path = copied.folder / f"trial_{trial.number}" / "settings.json"
    settings = json.loads(path.read_text())
    settings[part][name] = value
    path.write_text(json.dumps(settings))
    with pytest.raises(StudyError, match=r"settings\.json"):
        read_trial(unsealed(copied), "best", tiny_study.data_dir)


def unsealed(stored):
    return replace(stored, study=fabricated_study.unsealed(stored.study))


def test_a_damaged_policy_is_named(copied, tiny_study, trial):
    path = copied.folder / f"trial_{trial.number}" / "split_2" / "policy_best.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(StudyError, match=r"split_2/policy_best\.safetensors"):
        read_trial(copied, "best", tiny_study.data_dir)


def test_folds_of_another_version_of_the_code_are_refused(copied, tiny_study, trial):
    path = copied.folder / f"trial_{trial.number}" / "settings.json"
    settings = json.loads(path.read_text())
    settings["folds"][0]["test"][0][0] += 1
    path.write_text(json.dumps(settings))
    with pytest.raises(StudyError, match="splits the data differently"):
        read_trial(unsealed(copied), "best", tiny_study.data_dir)


def test_results_of_another_study_are_not_taken(tiny_study, tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "study.json").write_text(json.dumps({"study": "tiny", "uuid": "another"}))
    with pytest.raises(StudyError, match="has no results of study tiny; pass their folder with --results-dir"):
        open_stored(tiny_study.url, "tiny", tmp_path)


def test_the_study_has_a_completed_trial_to_read(stored):
    assert stored.study.get_trials(states=(TrialState.COMPLETE,))
