"""A study of commit c6a6d1f, with its policies and a deployment, is resumed, reported and deployed by today's code.

`tests/fixtures/study_c6a6d1f.sh` made it, with the code of then.
"""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch

from barwise.commands import deploy_best, write_report
from environment_Alpaca_vectorized import observation_layout
from market.dataset import load_dataset
from tests.support import made_deployment
from train.config import TrainConfig
from train.deploy.folder import Deployments
from train.deploy.loading import load_deployment
from train.deploy.scores import score_policies
from train.findings.holdout import load_holdout
from train.findings.stored_trial import evaluate_trial, open_stored, read_trial
from train.records.attributes import identity_in
from train.store.address import absolute_url
from train.study.identity import absent_values
from train.study.search_space import Space
from train.study.split import agent_metrics
from train.study.split_files import settings_sha256

OF_THE_ACCOUNT = 1e-5  # later versions round orders elsewhere
FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
# Of the command in study_c6a6d1f.sh, without the folders.
FLAGS = (
    "--n-envs", "4", "--break-step", "2048", "--num-paths", "1", "--k-test-groups", "1", "--holdout", "0.2", "--pruner",
    "none", "--seed", "0",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    with tarfile.open(FIXTURES / "study_c6a6d1f.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    return tmp_path


def command(folder: Path, *flags: str) -> list[str]:
    where = {"--storage": f"sqlite:///{folder}/study.db", "--results-dir": f"{folder}/results"}
    where |= {"--data-dir": f"{folder}/bars", "--study-name": "old"}
    return [word for pair in where.items() for word in pair] + [*FLAGS, *flags]


def load(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="old", storage=f"sqlite:///{folder}/study.db")


@pytest.mark.slow
def test_a_study_of_c6a6d1f_resumes_by_its_own_command_with_its_own_agent_and_ranges(folder, script, caplog):
    caplog.set_level("INFO")
    before = load(folder)
    identity, values = before.user_attrs["identity"], [t.value for t in before.trials]
    assert script.main(command(folder, "--n-trials", "4")) == 0
    assert "agent: ppo, 27 searched settings" in caplog.messages
    after = load(folder)
    assert after.user_attrs["identity"] == identity
    assert [t.value for t in after.trials[:3]] == values
    fourth = after.trials[3]
    assert fourth.state.is_finished()
    assert fourth.distributions == after.trials[0].distributions
    settings = json.loads((folder / "results/old/trial_3/settings.json").read_text())
    assert (settings["train"]["agent"], settings["train"]["fee_ramp"]) == ("ppo", 0.0)
    earlier = json.loads((folder / "results/old/trial_0/settings.json").read_text())
    assert earlier["env_resolved"].keys() <= settings["env_resolved"].keys()
    assert any("4 of 4 trials finished" in message for message in caplog.messages)
    assert (folder / "results/old/report.html").is_file()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--agent", "band"), "--agent band: study old uses agent ppo"),
        (("--use-best-ranges",), "differs in its search space: --use-best-ranges was False, now True"),
        (("--break-step", "4096"), "differs in its search space: total_env_steps was given: 2048, now given: 4096"),
        (("--seed", "1"), "differs in its run: seed was 0, now 1"),
    ],
)
def test_a_study_of_c6a6d1f_refuses_what_is_not_its_own(folder, script, capsys, flags, words):
    assert script.main(command(folder, "--n-trials", "4", *flags)) == 2
    assert words in capsys.readouterr().err
    assert len(load(folder).trials) == 3


def test_naming_the_agent_that_a_study_has_changes_nothing(folder, script):
    assert script.main(command(folder, "--n-trials", "3", "--agent", "ppo")) == 0
    assert len(load(folder).trials) == 3


def test_the_policies_of_c6a6d1f_trade_as_they_did(folder):
    stored = open_stored(absolute_url("sqlite:///study.db", folder), "old", folder / "results")
    trial = read_trial(stored, "best", folder / "bars")
    for fold, records in zip(trial.data.folds, evaluate_trial(trial), strict=True):
        known = stored.study.trials[trial.number].user_attrs[f"split_{fold.index}"]["agent"]
        found = agent_metrics(records, trial.data.dataset.bars_per_year)
        assert found.total_return == pytest.approx(known["total_return"], abs=OF_THE_ACCOUNT)
        assert found.trades == known["trades"]


def test_the_settings_of_c6a6d1f_keep_their_hash(folder):
    """So that splits that were trained from other seeds are not trained again."""
    trial = folder / "results/old/trial_1"
    settings = json.loads((trial / "settings.json").read_text())
    config = TrainConfig(**settings["train"] | {"seed": 0})
    known = json.loads((trial / "split_0/result.json").read_text())["settings_sha256"]
    assert settings_sha256(config, settings["env"]) == known
    assert settings_sha256(replace(config, fee_ramp=0.5), settings["env"]) != known


def test_the_deployment_of_c6a6d1f_loads_and_scores_as_it_did(folder):
    bars = load_dataset(folder / "bars")
    found = load_deployment(
        folder / "deployments/current", tickers=bars.tickers, feature_names=bars.feature_names,
        bar_seconds=bars.bar_seconds, layout_of=observation_layout, allow_unproven=True, allow_synthetic=True,
    )  # fmt: skip
    stored = open_stored(absolute_url("sqlite:///study.db", folder), "old", folder / "results")
    data = read_trial(stored, "best", folder / "bars").data
    rows = load_holdout(folder / "bars", None, None, stored.plan, {data.timeframe: data.holdout})[data.timeframe]
    (scored,) = score_policies([found.policy], [found.env_params], rows, -1)
    known = found.facts.scores
    found_return, known_return = scored.to_json()["agent"]["total_return"], known["agent"]["total_return"]
    assert found_return == pytest.approx(known_return, abs=OF_THE_ACCOUNT)
    assert torch.isfinite(found.policy(torch.zeros(1, sum(w for _, w in found.observation_layout)))).all()


def test_what_c6a6d1f_did_not_write_down_is_ppo_at_full_fees(folder):
    identity = identity_in(load(folder).user_attrs)
    assert "fee_ramp" not in identity.learner
    absent = absent_values(identity)
    assert identity.agent == "ppo"
    assert (absent["learner"]["fee_ramp"], absent["search space"]) == (0.0, {"--use-best-ranges": "False"})
    space = Space.from_json(identity.search_space, "ppo")
    assert space.given == {"total_env_steps": 2048}
    assert "fee_ramp" not in space.ranges


# ------------------------------------------------------------------------------------------------------- its programs
def where(folder: Path) -> list[str]:
    return ["--study-name", "old", "--storage", f"sqlite:///{folder}/study.db", "--results-dir", f"{folder}/results"]


def test_a_study_of_c6a6d1f_is_reported(folder):
    assert write_report.main([*where(folder), "--out", str(folder / "page.html")]) == 0
    page = (folder / "page.html").read_text()
    assert "SYNTHETIC" in page
    assert "Used up by" not in page  # its hold-out was scored for the trial that is still the best
    assert "policies of trial 1 were evaluated on 480 bars" in page


@pytest.mark.slow
def test_a_study_of_c6a6d1f_is_judged_in_a_dry_run(folder, caplog):
    caplog.set_level("INFO")
    given = ["--data-dir", f"{folder}/bars", "--deployments-dir", f"{folder}/deployments", "--dry-run", "--seed", "1"]
    before = (folder / "deployments" / "decisions.jsonl").read_bytes()
    code = deploy_best.main([*where(folder), *given, "--allow-unproven", "--allow-synthetic"])
    assert code in (0, 3)
    assert "dry run" in caplog.text
    assert (folder / "deployments" / "decisions.jsonl").read_bytes() == before


def test_a_deployment_of_c6a6d1f_is_rolled_back_to(folder):
    deployments = Deployments(folder / "deployments")
    old = deployments.current_name()
    with deployments.locked():
        deployments.install("newer", lambda place: made_deployment.write(place, name="newer"), lambda _: None, {})
    assert deployments.current_name() == "newer"
    assert deploy_best.main([*where(folder), "--deployments-dir", str(folder / "deployments"), "--rollback"]) == 0
    assert deployments.current_name() == old
    assert deployments.current().facts.study == "old"
