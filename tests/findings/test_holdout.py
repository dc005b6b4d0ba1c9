"""The hold-out: cut off first, seen by no trial, scored once."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from safetensors.numpy import load_file

from market.dataset import load_dataset, make_dataset, save_dataset
from market.defaults import WARMUP_BARS
from market.sample import synthetic_dataset
from market.times import utc_text
from tests.support.fabricated_study import holdout_score, identity, origin, write_trial
from train import evaluator
from train.checkpoint import copy_policy
from train.evaluator import evaluate_policies, evaluate_policy
from train.findings import holdout
from train.findings.holdout import earlier_looks, load_holdout, looks_text, read_score, score_holdout, score_winner
from train.records.errors import StudyError
from train.records.record_files import plain, read_record
from train.records.results import read_equity, split_folder
from train.records.seals import seal
from train.records.stored import HoldoutScore
from train.run import BEST_POLICY, LAST_POLICY
from train.study.folds import FILL_DELAY_BARS, cut_data, cut_holdout, load_study_data
from train.study.identity import study_identity
from train.study.progress import selection_text
from train.study.search_space import MAX_LOOKBACK, build_space, resolve, sample
from train.study.split import run_split
from train.study.split_plan import SplitPlan
from train.validation.lead import sharpe_difference_error

PLAN = SplitPlan("kfold", 2, 2, holdout_fraction=0.2)
PURGE = MAX_LOOKBACK + WARMUP_BARS + FILL_DELAY_BARS
N_BARS, N_HELD = 3000, 600
N_STUDY = N_BARS - N_HELD - PURGE
SPACE = build_space(given={"total_env_steps": 2000}, longest_episode_bars=300)


@pytest.fixture(scope="module")
def data(market_folder):
    (folded,) = load_study_data(market_folder, None, None, PLAN)
    return folded


@pytest.fixture(scope="module")
def rows(market_folder, data):
    return load_holdout(market_folder, None, None, PLAN, {"5m": data.holdout})["5m"]


def train(data, folder, fold=0):
    """(settings, outcome) of a short training with a lookback above 1."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=2))
    values = sample(SPACE, study.ask())
    settings = resolve(values | {"lookback": 3}, n_envs=4, seed=7, gpu_id=-1)
    return settings, run_split(settings, data, data.folds[fold], folder, origin(data.dataset))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """(environment's settings, policy files of two splits)."""
    folder = tmp_path_factory.mktemp("trial")
    settings = [train(data, folder / str(k), k)[0] for k in (0, 1)]
    return settings[0].env, [folder / str(k) / BEST_POLICY for k in (0, 1)]


@pytest.fixture
def study():
    made = optuna.create_study(study_name="s")
    made.set_user_attr("uuid", "a" * 32)
    return made


def test_the_study_ends_a_purge_before_the_holdout(market, data, rows):
    assert len(data.dataset.time) == N_STUDY
    np.testing.assert_array_equal(data.dataset.time, market.time[:N_STUDY])
    about = data.holdout
    assert (about.bars, about.purged_bars) == (N_HELD, PURGE)
    assert about.first_time_s == market.time[N_BARS - N_HELD]
    assert about.last_time_s == market.time[-1]
    assert about.parent_sha256 == data.parent_sha256 == market.sha256
    np.testing.assert_array_equal(rows.dataset.price, market.price[N_STUDY:])
    assert rows.blocks == ((PURGE, PURGE + N_HELD),)
    assert about.sha256 == rows.dataset.sha256


def test_nothing_a_study_or_trial_is_given_contains_a_row_of_the_holdout(market, data):
    held = set(market.time[N_STUDY:].tolist())
    assert held.isdisjoint(data.dataset.time.tolist())
    assert all(len(array) == N_STUDY for array in data.dataset.arrays.values())
    assert len(data.dataset.env_config()["price_array"]) == N_STUDY
    assert max(last for fold in data.folds for _, last in (*fold.fit, *fold.validation, *fold.test)) <= N_STUDY


def test_other_prices_and_features_in_the_holdout_change_no_trial(market, data, tmp_path):
    price, tech = market.price.copy(), market.tech.copy()
    price[N_STUDY:] = price[N_STUDY:][::-1] * 7.0
    tech[N_STUDY:] = 3.0
    same = {f: getattr(market, f) for f in ("time", "filled", "tickers", "feature_names", "bar_seconds", "segments")}
    same |= {f: getattr(market, f) for f in ("source", "synthetic", "feature_set", "warmup_bars", "quality")}
    save_dataset(make_dataset(price=price, tech=tech, **same), tmp_path / "5m")
    (poisoned,) = load_study_data(tmp_path / "5m", None, None, PLAN)
    assert poisoned.dataset.sha256 == data.dataset.sha256
    assert poisoned.folds == data.folds
    assert poisoned.holdout.sha256 != data.holdout.sha256
    results = []
    for name, folded in (("clean", data), ("poisoned", poisoned)):
        _, outcome = train(folded, tmp_path / name)
        results.append(replace(outcome, explore_steps_per_s=0.0, update_samples_per_s=0.0, wall_s=0.0))
    np.testing.assert_equal(asdict(results[0]), asdict(results[1]))  # nan is equal to nan
    for file in (BEST_POLICY, LAST_POLICY):
        clean, other = load_file(tmp_path / "clean" / file), load_file(tmp_path / "poisoned" / file)
        assert all(np.array_equal(clean[key], other[key]) for key in clean)
    clean, other = (read_equity(tmp_path / name / "equity.npz") for name in ("clean", "poisoned"))
    assert all(np.array_equal(clean[key], other[key]) for key in clean)
    known = {"5m": data.holdout}
    with pytest.raises(StudyError, match="differ from those that the study held out"):
        load_holdout(tmp_path / "5m", None, None, PLAN, known)


def test_timeframes_are_cut_at_one_time_and_their_studies_end_together():
    market = synthetic_dataset("5m", 9000, ("BTC",)), synthetic_dataset("15m", 3000, ("BTC",))
    cut = cut_holdout(market, 0.2, ["a", "b"])
    (five, five_held), (fifteen, fifteen_held) = cut
    opens = [held.about.first_time_s - held.dataset.bar_seconds for _, held in cut]
    assert opens[0] == opens[1]
    assert five.time[-1] == fifteen.time[-1]
    assert fifteen_held.about.purged_bars == PURGE
    assert five_held.about.purged_bars == 3 * PURGE
    assert (five_held.about.parent_sha256, fifteen_held.about.parent_sha256) == ("a", "b")


def test_a_cut_at_a_gap_keeps_blocks_within_their_segments(market):
    time = market.time.copy()
    time[2500:] += 3000
    gap = make_dataset(
        price=market.price, tech=market.tech, time=time, tickers=market.tickers, feature_names=market.feature_names,
        bar_seconds=300, segments=[(0, 2500), (2500, 3000)], source="x", synthetic=True, warmup_bars=WARMUP_BARS,
    )  # fmt: skip
    ((study, rows),) = cut_holdout([gap], 0.2, ["a"])
    assert study.segments == ((0, N_STUDY),)
    assert rows.dataset.segments == ((0, 365), (365, 865))
    assert rows.blocks == ((PURGE, 365), (365, 865))


def test_no_holdout_and_impossible_ones(market, market_folder):
    assert cut_holdout([market], 0.0, ["a"]) == [(market, None)]
    ((_, rows, _),) = cut_data(market_folder, None, None, replace(PLAN, holdout_fraction=0.0))
    assert rows is None
    for fraction, words in ((0.95, "must be purged"), (0.01, "leaves 30 tradable bars of 5m")):
        with pytest.raises(StudyError, match=words):
            cut_holdout([market], fraction, ["a"])
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(StudyError, match="--holdout must be a fraction"):
            SplitPlan("standard", 3, 2, fraction)


def test_the_identity_of_a_study_names_the_holdout(data):
    identity = study_identity([data], PLAN, SPACE, n_envs=4, seed=0)
    assert identity["--holdout"] == 0.2
    assert identity["holdout"]["5m"]["sha256"] == data.holdout.sha256


def test_the_score_is_that_of_the_policies_on_exactly_the_held_out_bars(market, study, rows, trained, tmp_path):
    env, policies = trained
    scored = score_holdout(study, tmp_path, rows, 4, policies, env)
    assert scored == read_record(tmp_path / "holdout.json", HoldoutScore)
    first = N_BARS - N_HELD
    config = market.env_config([(first - env["lookback"] + 1, N_BARS)])
    for i, path in enumerate(policies):
        (record,) = evaluate_policy(path, config, env)
        assert record.bars[0] == first
        curve = read_equity(tmp_path / "holdout" / f"equity_{i}.npz")
        np.testing.assert_array_equal(curve["equity"], record.equity)
        np.testing.assert_array_equal(curve["time_s"], market.time[first:])
        returns = np.diff(record.equity) / record.equity[:-1]
        sharpe = returns.mean() / returns.std(ddof=1) * np.sqrt(market.bars_per_year)
        assert scored.policies[i].agent.sharpe == pytest.approx(sharpe, rel=1e-9)
    excess = [policy.excess_sharpe for policy in scored.policies]
    assert scored.mean_excess_sharpe == pytest.approx(np.mean(excess))
    errors = []
    for i, policy in enumerate(scored.policies):
        curve = read_equity(tmp_path / "holdout" / f"equity_{i}.npz")
        held = np.append(curve["equity"][:1], curve["benchmark_equity"][1:])
        own, other = (np.diff(value) / value[:-1] for value in (curve["equity"], held))
        errors.append(sharpe_difference_error(own, other, market.bars_per_year))
        assert policy.excess_sharpe_error == pytest.approx(errors[-1])
        left = own - np.polyfit(other, own, 1)[0] * other
        ratio = left.mean() / left.std(ddof=1) * np.sqrt(market.bars_per_year)
        assert policy.lead_sharpe == pytest.approx(ratio, rel=1e-6)
        assert policy.hindsight_growth > policy.growth
        assert policy.of_hindsight == pytest.approx(policy.growth / policy.hindsight_growth)
    assert scored.excess_sharpe_error == pytest.approx(np.mean(errors))
    assert scored.mean_lead_sharpe == pytest.approx(np.mean([policy.lead_sharpe for policy in scored.policies]))
    assert (scored.trial, scored.holdout) == (4, rows.about)


def test_a_second_scoring_reads_and_another_winner_is_refused(study, rows, trained, tmp_path, monkeypatch):
    env, policies = trained
    first = score_holdout(study, tmp_path, rows, 4, policies, env)
    written = (tmp_path / "holdout.json").stat().st_mtime_ns

    def evaluated(*_, **__):
        raise AssertionError("the hold-out was looked at again")

    monkeypatch.setattr(holdout, "evaluate_policies", evaluated)
    assert score_holdout(study, tmp_path, rows, 4, policies, env) == first
    with pytest.raises(StudyError, match="scored for trial 4; scoring trial 5"):
        score_holdout(study, tmp_path, rows, 5, policies, env)
    with pytest.raises(StudyError, match="different policies of trial 4"):
        score_holdout(study, tmp_path, rows, 4, policies[:1], env)
    assert (tmp_path / "holdout.json").stat().st_mtime_ns == written
    # Neither a lost file nor a lost mark in the database gives a second look.
    (tmp_path / "holdout.json").unlink()
    with pytest.raises(StudyError, match="scoring trial 5 too would be selection"):
        score_holdout(study, tmp_path, rows, 5, policies, env)
    assert read_record(tmp_path / "holdout.json", HoldoutScore) == first
    other = optuna.create_study(study_name="s")
    other.set_user_attr("uuid", "a" * 32)
    assert score_holdout(other, tmp_path, rows, 4, policies, env) == first


def test_all_policies_are_traded_in_one_environment_and_each_file_is_hashed_once(
    study, rows, trained, tmp_path, monkeypatch
):
    env, policies = trained
    built, hashed = [], []
    environment, sha256 = evaluator.VectorizedCryptoEnvAlpacaOptimized, holdout.hashlib.sha256

    def build(*arguments, **options):
        built.append(options["n_envs"])
        return environment(*arguments, **options)

    def digest(content):
        hashed.append(len(content))
        return sha256(content)

    monkeypatch.setattr(evaluator, "VectorizedCryptoEnvAlpacaOptimized", build)
    monkeypatch.setattr(holdout, "hashlib", SimpleNamespace(sha256=digest))
    score_holdout(study, tmp_path, rows, 4, policies, env)
    assert built == [len(policies)]
    assert hashed == [path.stat().st_size for path in policies]


def test_a_failed_scoring_leaves_no_score(study, rows, trained, tmp_path, monkeypatch):
    env, policies = trained
    with pytest.raises(FileNotFoundError):
        score_holdout(study, tmp_path, rows, 4, [*policies, tmp_path / "none.safetensors"], env)

    def full(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(holdout.os, "link", full)
        with pytest.raises(OSError, match="no space left"):
            score_holdout(study, tmp_path, rows, 4, policies, env)
    assert [p.name for p in tmp_path.iterdir()] == ["holdout"]  # curves, which the next scoring writes anew
    assert read_score(study, tmp_path) is None


def test_of_two_workers_the_first_to_write_is_kept(study, rows, trained, tmp_path, monkeypatch):
    env, policies = trained
    assert score_holdout(study, tmp_path / "other", rows, 4, policies, env).stepped_by == "numba"
    other = json.loads((tmp_path / "other" / "holdout.json").read_text()) | {"code_version": "the other worker's"}
    late = optuna.create_study(study_name="s")
    late.set_user_attr("uuid", "a" * 32)

    def overtaken(*arguments, **options):
        (tmp_path / "holdout.json").write_text(json.dumps(other))
        return evaluate_policies(*arguments, **options)

    monkeypatch.setattr(holdout, "evaluate_policies", overtaken)
    assert score_holdout(late, tmp_path, rows, 4, policies, env).code_version == "the other worker's"
    assert json.loads((tmp_path / "holdout.json").read_text()) == other
    (tmp_path / "holdout.json").unlink()
    late = optuna.create_study(study_name="s")
    late.set_user_attr("uuid", "a" * 32)
    with pytest.raises(StudyError, match="scored for trial 4"):
        score_holdout(late, tmp_path, rows, 5, policies, env)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", r"holdout\.json: not valid JSON, perhaps truncated; it is unknown whether the hold-out was scored"),
     ('{"uuid": "b", "trial": 1}', r"holdout\.json: field study is missing; it is unknown whether"),
     (json.dumps(plain(holdout_score(uuid="b"))), "another study")],
)  # fmt: skip
def test_a_damaged_or_foreign_score_is_not_taken_for_none(study, tmp_path, text, words):
    (tmp_path / "holdout.json").write_text(text)
    with pytest.raises(StudyError, match=words):
        read_score(study, tmp_path)


def finish(study, value, attributes=None):
    """Add a completed trial with settings of the space; returns it."""
    asked = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1)).ask()
    params = {k: v for k, v in sample(SPACE, asked).items() if k in SPACE.ranges} | {"lookback": 3}
    study.add_trial(
        optuna.trial.create_trial(value=value, params=params, distributions=dict(SPACE.ranges), user_attrs=attributes)
    )
    return study.trials[-1]


def test_the_winner_is_scored_once_and_a_failure_is_only_logged(data, rows, trained, tmp_path, caplog):
    caplog.set_level("INFO")
    study = optuna.create_study(study_name="s", direction="maximize")
    study.set_user_attr("uuid", "a" * 32)
    study.set_user_attr("identity", identity(holdout={"5m": plain(data.holdout)}))
    best = finish(study, 1.0)
    arguments = (tmp_path, [data])
    score_winner(study, best, *arguments, lambda: {"5m": rows}, -1)
    missing = f"{tmp_path}/trial_0/settings.json: cannot be read (No such file or directory)"
    assert caplog.messages[-1].startswith(f"hold-out: could not be scored: StudyError: {missing}")
    assert "it has not been checked on the hold-out yet" in selection_text(study)
    for k, path in enumerate(trained[1]):
        target = split_folder(tmp_path, 0, k) / BEST_POLICY
        target.parent.mkdir(parents=True)
        copy_policy(path, target, {"study": tmp_path.name, "trial": 0, "split": k})
    write_trial(tmp_path, data, 0, seed=0, drift=0.0, env=trained[0])
    score_winner(study, best, *arguments, lambda: {"5m": rows}, -1)
    assert "trial 0 on 600 bars that no trial saw" in caplog.messages[-1]
    assert "on the hold-out, the excess Sharpe ratio of its 2 policies is" in selection_text(study)
    score_winner(study, finish(study, 2.0), *arguments, lambda: pytest.fail("read again"), -1)
    assert "used up by trial 0, which was the best at that time; trial 1" in caplog.messages[-2]
    assert "was used for trial 0" in selection_text(study)
    score_winner(study, best, tmp_path, [replace(data, holdout=None)], dict, -1)
    assert "none (--holdout 0)" in caplog.messages[-1]


@pytest.mark.parametrize("which", ["policy", "settings"])
def test_files_that_were_changed_are_not_scored(data, rows, trained, tmp_path, caplog, which):
    study = optuna.create_study(study_name="s", direction="maximize")
    study.set_user_attr("identity", identity(holdout={"5m": plain(data.holdout)}))
    write_trial(tmp_path, data, 0, seed=0, drift=0.0, env=trained[0])
    for k, path in enumerate(trained[1]):
        copy_policy(path, split_folder(tmp_path, 0, k) / BEST_POLICY, {"study": tmp_path.name, "trial": 0, "split": k})
    best = finish(study, 1.0, {f"split_{k}": seal(tmp_path, 0, k) for k in (0, 1)})
    if which == "settings":
        settings = tmp_path / "trial_0/settings.json"
        settings.write_text(settings.read_text().replace("0.0025", "0.0001"))
    else:
        copy_policy(trained[1][0], split_folder(tmp_path, 0, 1) / BEST_POLICY,
                    {"study": tmp_path.name, "trial": 0, "split": 1})  # fmt: skip
    score_winner(study, best, tmp_path, [data], lambda: pytest.fail("read"), -1)
    assert "is not the file that trial 0 was scored with" in caplog.messages[-1]
    assert not (tmp_path / "holdout.json").exists()


def test_a_look_that_was_cut_off_is_counted_and_is_finished_for_the_same_trial_only(
    study, rows, trained, tmp_path, monkeypatch
):
    env, policies = trained

    def killed(*_arguments, **_options):
        raise SystemExit(137)

    monkeypatch.setattr(holdout, "write_json", killed)
    with pytest.raises(SystemExit):
        score_holdout(study, tmp_path, rows, 3, policies, env)
    monkeypatch.undo()
    assert (tmp_path / "holdout/equity_0.npz").exists()  # somebody may have seen it
    again = optuna.create_study(storage=study._storage, study_name="again")
    again.set_user_attr("uuid", "another")
    assert earlier_looks(again, rows.about, is_synthetic=True) == [study.study_name]
    with pytest.raises(StudyError, match=r"was being scored for trial 3 when .* cannot be scored for trial 4"):
        score_holdout(study, tmp_path, rows, 4, policies, env)
    assert score_holdout(study, tmp_path, rows, 3, policies, env).trial == 3


def test_a_score_that_only_the_file_knows_is_not_believed(study, rows, trained, tmp_path):
    env, policies = trained
    finish(study, 1.0, {"split_0": {"files": {"settings.json": "a"}}})  # a study whose database keeps hashes
    scored = score_holdout(study, tmp_path, rows, 3, policies, env)
    attributes = study._storage._studies[study._study_id].user_attrs
    del attributes["holdout_score"]  # the state after a kill
    planted = plain(scored) | {"mean_excess_sharpe": 9.9}
    (tmp_path / "holdout.json").write_text(json.dumps(planted))
    assert read_score(study, tmp_path) is None
    assert score_holdout(study, tmp_path, rows, 3, policies, env).mean_excess_sharpe == scored.mean_excess_sharpe
    assert json.loads((tmp_path / "holdout.json").read_text())["mean_excess_sharpe"] == scored.mean_excess_sharpe


def test_a_policy_that_was_scored_for_a_deployment_is_a_look(study, rows):
    other = optuna.create_study(storage=study._storage, study_name="handed over", direction="maximize")
    other.set_user_attr("uuid", "another")
    bars = {"first_time_s": rows.about.first_time_s, "last_time_s": rows.about.last_time_s, "synthetic": True}
    other.set_user_attr("handover_look_1", {"weights_sha256": "1", "test": 1, "bars": bars})
    assert earlier_looks(study, rows.about, is_synthetic=True) == ["handed over"]
    assert earlier_looks(study, rows.about, is_synthetic=False) == []


@pytest.mark.parametrize("is_old", [False, True])
def test_a_study_that_tested_its_trials_on_these_bars_has_looked_at_them(study, rows, is_old):
    other = optuna.create_study(storage=study._storage, study_name="held nothing out", direction="maximize")
    other.set_user_attr("uuid", "another")
    about = rows.about
    span = {"first_time_s": about.first_time_s - 10**6, "last_time_s": about.first_time_s, "synthetic": True}
    period = f"{utc_text(span['first_time_s'])} .. {utc_text(about.last_time_s)} UTC"
    if is_old:
        other.set_user_attr("data", [f"SYNTHETIC 5m, 2 coins, 9 bars, 1 segment, {period}, source sample market"])
    else:
        other.set_user_attr("tested_bars", [span | {"parent_sha256": about.parent_sha256}])
    assert earlier_looks(study, about, is_synthetic=True) == []  # it has tested nothing yet
    other.add_trial(optuna.trial.create_trial(value=1.0))
    assert earlier_looks(study, about, is_synthetic=True) == ["held nothing out"]
    assert earlier_looks(study, about, is_synthetic=False) == []
    before = replace(about, first_time_s=about.last_time_s + 1, last_time_s=about.last_time_s + 2)
    assert earlier_looks(study, before, is_synthetic=True) == []


def test_other_studies_that_looked_at_these_bars_are_named(study, rows, trained, tmp_path):
    env, policies = trained
    storage = study._storage
    scored = score_holdout(study, tmp_path, rows, 3, policies, env)
    assert scored.earlier_looks == ()
    assert looks_text(scored) == ""
    again = optuna.create_study(storage=storage, study_name="again")
    again.set_user_attr("uuid", "another")
    assert earlier_looks(again, rows.about, is_synthetic=True) == [study.study_name]
    later = replace(rows.about, first_time_s=rows.about.last_time_s + 1, last_time_s=rows.about.last_time_s + 2)
    assert earlier_looks(again, later, is_synthetic=True) == []
    assert earlier_looks(again, replace(rows.about, parent_sha256="b"), is_synthetic=True) == []
    assert earlier_looks(again, rows.about, is_synthetic=False) == []
    second = score_holdout(again, tmp_path / "again", rows, 0, policies, env)
    assert second.earlier_looks == (study.study_name,)
    assert looks_text(second).startswith(f"1 other study in this database ({study.study_name}) already used")
    kept = plain(scored)
    for damaged in (kept | {"policies": [{"agent": {"sharpe": 1.0}}]}, {"uuid": 3}):  # none makes the verdict laxer
        study.set_user_attr("holdout_score", damaged)
        assert earlier_looks(again, rows.about, is_synthetic=True) == [study.study_name]


def test_the_bars_on_disk_are_never_written(market_folder, market):
    assert load_dataset(market_folder).sha256 == market.sha256
