"""From a real study's winner to a deployment that trades as it was scored, or to a refusal that says why."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import create_trial

from drl_agents.policy import Policy
from drl_agents.policy_file import load_policy, save_policy, weights_sha256
from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import observation_layout
from market.dataset import load_dataset, make_dataset, save_dataset, with_declaration, write_record
from market.foresight import tested
from market.sample import synthetic_dataset
from tests.deploy.conftest import HELD_OUT, N_BARS, add_copied, copied_trial
from train import evaluator
from train.deploy import contents, gates, judge, service
from train.deploy import refit as refit_module
from train.deploy.folder import Deployments
from train.deploy.judge import NOTHING_NEW, REFUSED, REPLACED, WAITING, WOULD_LOOK
from train.deploy.loading import DeploymentError, load_deployment, read_deployment
from train.deploy.refit import refit, refit_folder
from train.deploy.scores import score_policies
from train.findings import returns, stored_trial
from train.findings.holdout import load_holdout
from train.findings.stored_trial import open_stored
from train.records.errors import StudyError
from train.records.keys import REFIT
from train.records.results import read_equity, trial_folder
from train.report.collect import collect
from train.run import BEST_POLICY
from train.store import database as storage
from train.study.interruption import Interrupted, Interruption
from train.study.search_space import MAX_LOOKBACK
from train.validation.splits import with_warmup

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "deployment" / "auto_replace_best_5m.py"
# Each of these hangs on two studies that are really run, some ten seconds together.
pytestmark = pytest.mark.slow


def program():
    spec = importlib.util.spec_from_file_location("auto_replace", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


main = program()


def tree(folder: Path) -> dict[str, str]:
    """File -> hash of its bytes, of a database its content: reading one may move rows out of its log file."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("-wal", "-shm", ".lock"))]
    return {str(path.relative_to(folder)): hashlib.sha256(content(path)).hexdigest() for path in files}


def content(path: Path) -> bytes:
    if path.suffix != ".db":
        return path.read_bytes()
    with closing(sqlite3.connect(path)) as database:
        return "\n".join(database.iterdump()).encode()


def held_out(world):
    """The held-out bars of the study."""
    stored = open_stored(world.url, world.name, world.root / "results")
    return load_holdout(world.data_dir, None, None, stored.plan, stored.identity.holdout)["5m"]


def market_of(world):
    dataset = load_dataset(world.data_dir)
    names = ("tickers", "feature_names", "bar_seconds")
    return {name: getattr(dataset, name) for name in names} | {"allow_synthetic": True}


# ------------------------------------------------------------------------------------------------------- accepted
def test_a_winner_with_skill_is_deployed_once_with_all_that_it_was_judged_by(planted):
    before = tree(planted.root / "results")
    assert planted.look().kind == REPLACED
    assert tree(planted.root / "results") == before  # holdout.json stays the study's own
    current = planted.root / "deployments" / "current"
    found = load_deployment(current, **market_of(planted), layout_of=observation_layout)
    facts, trial = found.facts, planted.trial()
    assert (facts.study, facts.trial, facts.proven, facts.test) == ("planted", trial.number, True, 1)
    assert {gate["verdict"] for gate in facts.gates} == {"passed", "not asked"}
    assert found.env_params == trial.env
    assert facts.train["net_dims"] == trial.settings.train["net_dims"]
    assert weights_sha256(load_policy(refit_folder(trial, 0) / BEST_POLICY)) == facts.scored_weights_sha256
    assert [e["event"] for e in planted.events()] == ["look", "accepted", "current"]  # the look before its outcome
    again = planted.look()
    assert (again.kind, len(planted.events())) == (NOTHING_NEW, 3)
    assert facts.name in again.text


def test_the_refit_trains_on_every_bar_before_the_purge_and_on_none_after(planted):
    trial, policy = planted.trial(), load_policy(refit_folder(planted.trial(), 0) / BEST_POLICY)
    first_held, purge = int(N_BARS * (1 - HELD_OUT)), trial.data.purge_bars
    used = policy.metadata["train_segments"] + policy.metadata["validation_segments"]
    assert used[0][0] == 0
    assert max(last for _, last in used) == first_held - purge
    (fit,), (slice_,) = policy.metadata["train_segments"], policy.metadata["validation_segments"]
    assert slice_[0] - fit[1] == purge
    seeds = {policy.metadata["seed"], *trial.settings.split_seeds}
    assert len(seeds) == 1 + len(trial.data.folds)  # a seed of its own


# The compiled loop multiplies many bars at once in single precision, the deployed policy one: other roundings.
@pytest.mark.parametrize(("is_compiled", "tolerance"), [(True, 1e-7), (False, 1e-12)])
def test_the_deployed_policy_trades_as_it_was_scored_in_the_scalar_environment(
    planted, is_compiled, tolerance, monkeypatch
):
    if not is_compiled:
        monkeypatch.setattr(evaluator, "_compiled_trader", lambda *_: None)
    planted.look()
    found = load_deployment(planted.root / "deployments" / "current", **market_of(planted))
    rows, kept = held_out(planted), read_equity(found.folder / "equity.npz")
    ((first, last),) = with_warmup(rows.blocks, rows.dataset.segments, found.env_params["lookback"], MAX_LOOKBACK)
    env = CryptoEnvAlpaca(rows.dataset.env_config([(first, last)]), found.env_params, start="first")
    state, done, equity, trades = env.reset(), False, [env.total_asset], [0]
    while not done:
        action = found.policy(torch.as_tensor(state, dtype=torch.float32)[None])[0]
        state, _, done, info = env.step(action.numpy())
        equity.append(info["equity"])
        trades.append(info["trades"])
    assert np.array_equal(trades, kept["trades"])
    assert sum(trades) == found.facts.scores["agent"]["trades"] > 100
    np.testing.assert_allclose(equity, kept["equity"], rtol=tolerance)
    (again,) = score_policies([found.policy], [found.env_params], rows)
    assert np.array_equal(np.concatenate([r.equity for r in again.records]), kept["equity"])
    assert again.to_json() == found.facts.scores


def test_policies_are_scored_as_the_study_scored_them_on_the_same_bars(planted_study):
    trial, kept = planted_study.trial(), json.loads((planted_study.root / "results/planted/holdout.json").read_text())
    policies = [load_policy(path) for path in trial.policies]
    found = score_policies(policies, [trial.env] * len(policies), held_out(planted_study))
    for ours, theirs in zip(found, kept["policies"], strict=True):
        shown = ours.to_json()
        assert {name: shown[name] for name in ("agent", "equal_weight", "excess_sharpe")} == {
            name: theirs[name] for name in ("agent", "equal_weight", "excess_sharpe")
        }


def test_a_dry_run_changes_nothing_and_does_not_look_at_the_held_out_bars(planted, monkeypatch):
    monkeypatch.setattr(judge, "score_policies", lambda *_: pytest.fail("looked"))
    before = tree(planted.root)
    verdict = planted.look(dry_run=True)
    assert verdict.kind == WOULD_LOOK
    assert "not evaluated" in verdict.text
    assert planted.look(dry_run=True, limits={"allow_synthetic": False}).kind == REFUSED
    assert tree(planted.root) == before
    assert not (planted.root / "deployments").exists()


# -------------------------------------------------------------------------------------------------------- refused
def test_a_winner_without_skill_is_refused_before_the_held_out_bars_are_looked_at(noise, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(judge, "score_policies", lambda *_: pytest.fail("looked"))
        verdict = noise.look()
    assert verdict.kind == REFUSED
    assert "deflated lead: " in verdict.text
    assert [e["event"] for e in noise.events()] == ["refused"]
    assert not (noise.root / "deployments" / "current").exists()
    # A better look on the held-out bars does not help: evidence is asked for, too.
    assert noise.look(limits={"min_deflated_sharpe": 0.0}).kind == REFUSED
    assert [e.get("test") for e in noise.events("look", "refused")] == [None, 1, 1]
    assert "hold-out confidence" in noise.events("refused")[-1]["why"]


def test_paper_trading_may_take_it_and_says_so_and_it_replaces_nothing_proven(noise, planted):
    loose = {"allow_unproven": True}
    verdict = noise.look(limits=loose)
    assert verdict.kind == REPLACED
    assert "UNPROVEN, waived: deflated lead" in verdict.text
    current = noise.root / "deployments" / "current"
    with pytest.raises(DeploymentError, match="unproven"):
        load_deployment(current, **market_of(noise))
    assert load_deployment(current, **market_of(noise), allow_unproven=True).facts.waived[0] == "deflated lead"
    # The other study has other features: it does not take the place unasked.
    shutil.copytree(noise.root / "deployments", planted.root / "deployments", symlinks=True)
    refused = planted.look()
    assert refused.kind == REFUSED
    assert "cannot be compared: different features" in refused.text
    assert read_deployment(planted.root / "deployments" / "current").facts.study == "noise"
    assert planted.look(limits={"replace_other": True}).kind == REPLACED
    assert planted.events("accepted")[-1]["test"] == 1  # other markets, other tests


def test_proof_outranks_a_figure(planted, monkeypatch):
    def look_unproven(**changes):
        with monkeypatch.context() as patch:
            patch.setattr(gates, "level_of_test", lambda *_: -1.0)  # a confidence of 200 %, which nobody reaches
            return planted.look(limits={"allow_unproven": True, "min_improvement": 0.0, "max_drawdown": 0.9}, **changes)

    assert look_unproven().kind == REPLACED
    current = planted.root / "deployments" / "current"
    assert read_deployment(current).facts.waived == ("hold-out confidence",)
    assert planted.look().kind == REPLACED  # the same weights, now with all the evidence that is asked for
    assert read_deployment(current).proven
    verdict = look_unproven(seed=1)
    assert verdict.kind == REFUSED
    assert "a proven policy can only be replaced by a proven one" in verdict.text


def test_other_bars_in_place_of_the_held_out_ones_are_refused(planted, noise_study):
    market = load_dataset(planted.data_dir, mmap=False)
    price = market.price.copy()
    price[-100:] *= np.linspace(1.0, 1.5, 100)[:, None]  # now it would look splendid
    same = ("tech", "time", "filled", "tickers", "feature_names", "bar_seconds", "segments", "source", "synthetic")
    same += ("feature_set", "warmup_bars", "quality", "venue")
    altered = make_dataset(price=price, **{name: getattr(market, name) for name in same})
    save_dataset(altered, planted.root / "altered" / "5m")
    with pytest.raises(StudyError, match="differ from those that the study held out"):
        planted.look(data_dir=planted.root / "altered" / "5m")
    with pytest.raises(StudyError, match="does not contain the data of study planted"):
        planted.look(data_dir=noise_study.data_dir)
    assert planted.events() == []


def test_weights_swapped_after_scoring_are_not_deployed(planted, monkeypatch):
    honest = contents.write_deployment

    def swap(folder, policy, facts, scored, rows):
        """Other weights, and every checksum made to fit them."""
        layers = tuple((weight * 1.01, bias) for weight, bias in policy.layers)
        other = replace(policy, layers=layers)
        digest = weights_sha256(other)
        facts = replace(facts, weights_sha256=digest, scores=facts.scores | {"weights_sha256": digest})
        honest(folder, other, facts, scored, rows)

    monkeypatch.setattr(judge, "write_deployment", swap)
    with pytest.raises(StudyError, match="does not trade like the policy that was scored"):
        planted.look()
    assert planted.deployments.current() is None
    assert [e["event"] for e in planted.events()] == ["look"]
    monkeypatch.undo()
    assert planted.look().kind == REPLACED  # judged again, and its look counted once
    assert [e["test"] for e in planted.events("look", "accepted")] == [1, 1, 1]


# ------------------------------------------------------------------------------------------------- looks and trials
def add_better_trial(world) -> int:
    """A trial with the settings of the best and a better value, as a study that was extended would find."""
    stored, trial = open_stored(world.url, world.name, world.root / "results"), world.trial()
    best, number = stored.study.best_trial, copied_trial(stored, trial.number)
    add_copied(stored, best, number, best.value + 1.0)
    return number


def test_a_new_best_trial_is_judged_again_and_every_look_raises_the_threshold(planted):
    assert planted.look().kind == REPLACED
    first = planted.deployments.current_name()
    number = add_better_trial(planted)
    twin = planted.look()  # the same settings and seed: the same weights, so no new test of these bars
    assert (twin.kind, planted.events("refused")[-1]["candidate"]["trial"]) == (REFUSED, number)
    assert "these weights are already deployed" in twin.text
    assert planted.events("look")[-1]["test"] == 1
    assert planted.look().kind == NOTHING_NEW
    planted.look(seed=1)
    look = planted.events("look")[-1]
    assert look["test"] == 2
    gate = next(g for g in planted.events("refused", "accepted")[-1]["gates"] if g["name"] == "hold-out confidence")
    assert gate["threshold"] == "at least 99.16 % (test 2 on these bars, level 0.05 / 6)"
    # A second folder of deployments knows of the looks too: the study wrote them down.
    shutil.rmtree(planted.root / "deployments")
    planted.look(limits={"alpha": 0.04})
    assert [e["test"] for e in planted.events("look")] == [1]
    add_better_trial(planted)
    planted.look(seed=2)
    assert [e["test"] for e in planted.events("look")] == [1, 3]
    assert first is not None


def test_a_kill_between_look_and_decision_leaves_the_look_counted_and_the_candidate_undecided(planted, monkeypatch):
    def killed(*_arguments):
        raise SystemExit(137)

    monkeypatch.setattr(judge, "score_policies", killed)
    with pytest.raises(SystemExit):
        planted.look()
    monkeypatch.undo()
    assert [e["event"] for e in planted.events()] == ["look"]
    assert planted.look().kind == REPLACED
    assert [e["test"] for e in planted.events("look")] == [1, 1]


def test_a_deployment_that_changed_while_a_candidate_was_judged_is_not_replaced(planted, monkeypatch):
    assert planted.look().kind == REPLACED
    planted.look(limits={"min_improvement": 0.0}, seed=1)

    def meanwhile(*arguments):
        (planted.root / "deployments" / "current").unlink()
        return score_policies(*arguments)

    monkeypatch.setattr(judge, "score_policies", meanwhile)
    monkeypatch.setattr(judge, "improvement_gate", lambda *_: judge.Gate("improvement", "", "", "passed"))
    verdict = planted.look(seed=2)
    assert (verdict.kind, "in the meantime" in verdict.text) == (WAITING, True)
    assert planted.events()[-1]["event"] == "look"


def test_a_deployment_whose_folder_is_gone_is_replaced(planted, caplog):
    assert planted.look().kind == REPLACED
    shutil.rmtree(planted.root / "deployments" / planted.deployments.current_name())
    assert planted.look(seed=1, limits={"allow_unproven": True}).kind == REPLACED
    assert "which does not exist: nothing is deployed" in caplog.text
    assert planted.deployments.current() is not None


def test_a_rollback_while_a_candidate_is_judged_leaves_it_undecided(planted, monkeypatch):
    """It was compared with what is no longer deployed; refused for good, it could never replace the one before."""
    assert planted.look().kind == REPLACED
    first = planted.deployments.current_name()
    with planted.deployments.locked():
        planted.deployments.install("newer", lambda place: shutil.copytree(
            planted.root / "deployments" / first, place, dirs_exist_ok=True), lambda _: None, {})  # fmt: skip

    def meanwhile(*arguments):
        with planted.deployments.locked():
            planted.deployments.roll_back()
        return score_policies(*arguments)

    monkeypatch.setattr(judge, "score_policies", meanwhile)
    monkeypatch.setattr(judge, "improvement_gate", lambda *_: judge.Gate("improvement", "", "", "FAILED"))
    verdict = planted.look(seed=1)
    assert (verdict.kind, "in the meantime" in verdict.text) == (WAITING, True)
    assert planted.events("refused") == []
    monkeypatch.undo()
    assert planted.look(seed=1).kind in (REPLACED, REFUSED)
    assert [e["test"] for e in planted.events("look")][-2:] == [2, 2]


def test_looks_from_every_folder_of_deployments_and_every_study_of_the_database_are_counted(planted):
    """Another study of the database had a winner looked at through another folder."""
    assert planted.look().kind == REPLACED
    look = next(v for n, v in open_stored(planted.url, planted.name, planted.root / "results").study.user_attrs.items()
                if n.startswith(judge.LOOKED))  # fmt: skip
    other = optuna.create_study(storage=planted.url.render_as_string(hide_password=False), study_name="another")
    for number, change in enumerate(({}, {}, {"first_time_s": 0, "last_time_s": 1}), start=2):
        bars = look["bars"] | change
        other.set_user_attr(f"{judge.LOOKED}{number}", {"weights_sha256": str(number), "test": number, "bars": bars})
    other.set_user_attr(f"{judge.LOOKED}old", {"weights_sha256": "old", "test": 2})  # which bars is not known
    shutil.rmtree(planted.root / "deployments")
    planted.look(seed=1)
    assert planted.events("look")[-1]["test"] == 5


def test_few_trials_prove_nothing(planted):
    """The page and the gate say the same, by one function."""
    assert planted.look().kind == REPLACED
    assert planted.deployments.current().proven
    shutil.rmtree(planted.root / "deployments")
    with closing(sqlite3.connect(planted.root / "study.db")) as database:
        database.execute("UPDATE trials SET state = 'FAIL' WHERE number >= 9")
        database.commit()
    refused = planted.look()
    assert refused.kind == REFUSED
    assert "evidence of skill: Not evidence of skill: " in refused.text
    assert "too few trials completed" in refused.text
    assert planted.look(limits={"allow_unproven": True}).kind == REPLACED
    assert not planted.deployments.current().proven
    stored = open_stored(planted.url, planted.name, planted.root / "results")
    page = collect(stored.study, stored.folder)
    assert page.verdict.sentences[0].removesuffix(".") in refused.text


@pytest.mark.parametrize("harm", ["deleted", "changed"])
def test_trials_that_are_gone_make_the_lead_undefined(planted, harm):
    folder = trial_folder(planted.root / "results" / "planted", 7)
    if harm == "deleted":
        shutil.rmtree(folder)
    else:
        shutil.copy(folder.parent / "trial_8/split_0/equity.npz", folder / "split_0/equity.npz")
    verdict = planted.look()
    assert verdict.kind == REFUSED
    assert "deflated lead: undefined" in verdict.text
    assert planted.events("look") == []


def test_a_study_in_a_folder_of_several_timeframes_is_judged(planted):
    several = planted.root / "several"
    shutil.copytree(planted.data_dir, several / "5m")
    save_dataset(synthetic_dataset("1m", N_BARS, ("BTC", "ETH"), seed=1), several / "1m")
    assert planted.look(data_dir=several).kind == REPLACED


@pytest.mark.parametrize(
    ("attrs", "request_of", "words"),
    [
        ({"target": 3}, {}, ""),
        ({"target": 4}, {}, "3 of 4 trials finished"),
        ({"target": 4}, {"while_running": True}, ""),
        ({"target": 4}, {"min_trials": 3}, ""),
        ({"target": 3}, {"min_trials": 5}, "3 of 5 trials finished (--min-trials)"),
        ({"holdout_score": {}}, {}, ""),
        ({}, {}, "fewer than --n-trials; pass --min-trials or --while-running"),
    ],
)
def test_a_study_is_judged_when_it_has_its_trials(attrs, request_of, words):
    study = optuna.create_study()
    for _ in range(3):
        study.add_trial(create_trial(value=1.0))
    for name, value in attrs.items():
        study.set_user_attr(name, value)
    request = SimpleNamespace(**({"while_running": False, "min_trials": None} | request_of))
    found = judge._not_ready(SimpleNamespace(study=study), request)
    assert (words in found) if words else (found == "")


def test_hold_out_scores_of_other_studies_count_as_looks(planted):
    score = open_stored(planted.url, planted.name, planted.root / "results").study.user_attrs["holdout_score"]
    url = planted.url.render_as_string(hide_password=False)
    for name, change in (("a", {}), ("b", {}), ("another market", {"parent_sha256": "x"})):
        other = optuna.create_study(storage=url, study_name=name)
        other.set_user_attr("holdout_score", score | {"uuid": name, "holdout": score["holdout"] | change})
    assert planted.look().kind == REPLACED
    assert [e["test"] for e in planted.events("look")] == [3]
    planted.look(seed=1)
    assert planted.events("look")[-1]["test"] == 4


def test_a_trial_that_became_the_best_meanwhile_is_not_judged_by_the_others_figures(planted):
    stored = open_stored(planted.url, planted.name, planted.root / "results")
    best = stored.study.best_trial
    assert judge._assessed(SimpleNamespace(stored=stored, best=best)).estimate.n_returns > 1000
    number = add_better_trial(planted)
    with pytest.raises(StudyError, match=f"trial {number} became the best while trial {best.number} was being judged"):
        judge._assessed(SimpleNamespace(stored=stored, best=best))


def test_a_signal_before_the_decision_leaves_everything_as_it_was(planted):
    interruption = Interruption()
    interruption.received = signal.SIGINT
    planted.deployments.prepare()
    with pytest.raises(Interrupted):
        judge.look(planted.request(), planted.deployments, interruption)
    assert planted.events() == []
    assert planted.look().kind == REPLACED


# ---------------------------------------------------------------------------------------------------------- refits
def test_a_refit_that_was_cut_off_is_trained_to_the_same_weights(planted):
    trial = planted.trial()
    folder = refit_folder(trial, 0)
    whole = weights_sha256(load_policy(folder / BEST_POLICY))
    shutil.rmtree(folder)
    child = os.fork()
    if child == 0:
        sys.addaudithook(die_when_the_best_policy_is_written)
        refit(trial, 1, 0)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert not (folder / "refit.json").exists()
    assert weights_sha256(refit(trial, 1, 0)) == whole
    os.truncate(folder / BEST_POLICY, 1000)
    assert weights_sha256(refit(trial, 1, 0)) == whole
    assert json.loads((folder / "refit.json").read_text())["weights_sha256"] == whole


def test_a_refit_that_diverges_is_a_refusal_and_one_that_cannot_begin_is_not(planted, monkeypatch):
    shutil.rmtree(refit_folder(planted.trial(), 0))
    with monkeypatch.context() as patch:
        patch.setattr(refit_module, "train_policy", lambda *_, **__: (_ for _ in ()).throw(ValueError("no room")))
        with pytest.raises(StudyError, match="cannot be refitted: no room"):
            planted.look()
        assert planted.events() == []
    settings = trial_folder(planted.root / "results" / "planted", planted.trial().number) / "settings.json"
    content = json.loads(settings.read_text())
    content["train"]["learning_rate"] = 1e30
    settings.write_text(json.dumps(content))
    with pytest.raises(StudyError, match="is not the file that trial"):
        planted.look()
    for module in (stored_trial, returns):
        monkeypatch.setattr(module, "check_seal", lambda *_: True)
    verdict = planted.look()
    assert verdict.kind == REFUSED
    assert "refit: " in verdict.text
    assert [e["event"] for e in planted.events()] == ["refused"]  # no look


def plant_refit(trial, **changes) -> Policy:
    """Another policy in place of the finished refit, with a refit.json that agrees; the one that was there."""
    folder = refit_folder(trial, 0)
    policy, kept = load_policy(folder / BEST_POLICY), json.loads((folder / "refit.json").read_text())
    other = replace(policy, layers=tuple((weight * 2.0, bias) for weight, bias in policy.layers))
    save_policy(folder / BEST_POLICY, other, policy.metadata)
    (folder / "refit.json").write_text(json.dumps(kept | {"weights_sha256": weights_sha256(other)} | changes))
    return policy


def test_a_refit_that_the_database_does_not_know_is_trained_anew(planted):
    """Whoever may write the results folder could put a policy there that was trained on the held-out bars."""
    trial = planted.trial()
    policy = plant_refit(trial)
    assert weights_sha256(refit(trial, 1, 0, keep=False)) == weights_sha256(policy)


def test_what_was_judged_before_later_waivers_came_stays_judged():
    """Options are part of a candidate."""
    assert not {"allow_unverified", "allow_unchecked"} & set(gates.Limits().to_json())
    assert gates.Limits(allow_unchecked=True).to_json()["allow_unchecked"]


def test_a_refit_of_other_settings_or_code_is_not_taken_for_this_one(planted):
    trial = planted.trial()
    folder = refit_folder(trial, 0)
    policy = plant_refit(trial, code_sha256="of another version")
    planted_hashes = refit_module._hashes(folder, load_policy(folder / BEST_POLICY))
    trial.stored.study.set_user_attr(f"{REFIT}{trial.number}_0", planted_hashes)  # the database knows it, too
    kept = json.loads((folder / "refit.json").read_text())
    assert weights_sha256(refit(trial, 1, 0, keep=False)) == weights_sha256(policy)
    assert json.loads((folder / "refit.json").read_text()) == kept  # nothing was written
    assert weights_sha256(refit(trial, 1, 0)) == weights_sha256(policy)
    assert json.loads((folder / "refit.json").read_text()) != kept


def die_when_the_best_policy_is_written(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith(BEST_POLICY):
        os.kill(os.getpid(), signal.SIGKILL)


# ----------------------------------------------------------------------------------------------------- the program
def test_the_program_deploys_finds_nothing_new_and_rolls_back(planted, capsys, caplog):
    caplog.set_level("INFO")
    flags = planted.flags()
    assert main([*flags, "--once"]) == 3
    assert "SYNTHETIC bars" in caplog.messages[-1]
    assert main([*flags, "--once", "--allow-synthetic"]) == 0
    assert caplog.messages[-1].startswith("replaced: trial")
    first = planted.deployments.current_name()
    assert main([*flags, "--once", "--allow-synthetic"]) == 0
    assert caplog.messages[-1].startswith("nothing new: trial")
    assert main([*flags, "--rollback"]) == 2
    assert f"nothing was deployed before {first}" in capsys.readouterr().err
    shutil.copytree(planted.root / "deployments" / first, planted.root / "deployments" / "earlier")
    events = planted.deployments.log.path.read_text()
    earlier = '{"event": "current", "deployment": "earlier", "cause": "accepted"}\n'
    planted.deployments.log.path.write_text(earlier + events)
    assert main([*flags, "--rollback", "--dry-run"]) == 0
    assert planted.deployments.current_name() == first
    assert main([*flags, "--rollback"]) == 0
    assert planted.deployments.current_name() == "earlier"
    assert main([*flags, "--once", "--allow-synthetic"]) == 0  # it does not come back by itself
    assert caplog.messages[-1].endswith("earlier has replaced it since")
    assert main([*flags, "--once", "--allow-synthetic", "--data-dir", "none"]) == 2  # of a judged one too


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (["--study-name", "other"], 2, "has no study other"),
        (["--storage", "sqlite:///none.db"], 2, "there is no database"),
        (["--storage", "nonsense"], 2, "--storage nonsense: not a database URL"),
        (["--data-dir", "none"], 2, "no such dataset folder"),
        (["--results-dir", "none"], 2, "has no results of study planted"),
        (["--deployments-dir", "no/such"], 2, "cannot be created"),
        (["--alpha", "5"], 2, "--alpha must be a number"),
        (["--gpu", "99"], 2, "--gpu 99: torch finds no GPU"),
        (["--gpu", "-2"], 2, "--gpu -2"),
        (["--rollback", "--deployments-dir", "none"], 2, "no such folder"),
    ],
)
def test_what_the_user_can_mend_is_one_line(planted_study, tmp_path, monkeypatch, capsys, change, code, words):
    monkeypatch.chdir(tmp_path)
    flags = [*planted_study.flags(), "--once", "--deployments-dir", str(tmp_path / "made")]
    assert main([*flags, *change]) == code
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_locked_or_missing_database_is_a_line_and_the_next_look_goes_on(planted, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(storage, "LOCK_TIMEOUT_S", 0.1)
    teller, deployments = service.Teller(), planted.deployments
    deployments.prepare()
    database = planted.root / "study.db"

    def look():
        service._look_and_tell(planted.request(), deployments, Interruption(), teller)
        return caplog.messages[-1]

    database.rename(planted.root / "away")
    assert "not judged: there is no database" in look()
    assert "not judged: there is no database" in look()
    assert len(planted.events("error")) == 1  # told once
    (planted.root / "away").rename(database)
    with sqlite3.connect(database) as other:
        other.execute("PRAGMA journal_mode=DELETE")
        other.execute("BEGIN EXCLUSIVE")
        assert "is locked" in look()
    other.close()
    assert "replaced: trial" in look()
    assert "nothing new" in look()


def test_a_watcher_waits_for_the_study_deploys_its_winner_and_ends_at_a_signal(planted):
    database = planted.root / "study.db"
    database.rename(planted.root / "away")
    command = [sys.executable, str(SCRIPT), *planted.flags(), "--allow-synthetic", "--interval", "0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as watcher:
        lines = []

        def until(words):
            for line in watcher.stdout:
                lines.append(line)
                if words in line:
                    return
            pytest.fail("".join(lines))

        try:
            until("not judged: there is no database")
            assert main([*planted.flags(), "--once"]) == 4  # one judges at a time
            (planted.root / "away").rename(database)
            until("replaced: trial")
            started = time.monotonic()
            watcher.send_signal(signal.SIGTERM)
            until("stopped by SIGTERM")
            assert watcher.wait(30) == 143
            assert time.monotonic() - started < 5.0
        finally:
            watcher.kill()
    assert Deployments(planted.root / "deployments").current().facts.study == "planted"


# --------------------------------------------------------------------------------------------------------- look-ahead
def test_a_dataset_that_was_not_checked_is_refused_until_it_is(planted):
    checked, folder = load_dataset(planted.data_dir), planted.data_dir
    save_dataset(replace(checked, lookahead=None), folder, overwrite=True)
    refused = planted.look()
    assert refused.kind == REFUSED
    assert "look-ahead: unexplained: " in refused.text  # columns made by hand, one of which is the planted signal
    assert planted.look().kind == NOTHING_NEW
    assert len(planted.events("refused")) == 1
    found = tested(load_dataset(folder))[0]
    write_record(folder, with_declaration(found, list(found.record.suspects), "me", "the planted signal").record)
    again = planted.look()
    assert again.kind == REPLACED, again.text
    assert planted.look().kind == NOTHING_NEW
