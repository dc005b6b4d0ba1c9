"""Fees and slippage rise while a policy trains; whatever selects, tests or trades it pays in full."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import train.run
from drl_agents.policy_file import load_policy
from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized
from tests.support.train_cases import ENV_PARAMS, band_settings, small_market, small_settings
from train.checkpoint import Checkpoints
from train.evaluator import evaluate_policy, mean_growth
from train.messages import warn_once
from train.run import train_policy

TRAIN, VALIDATION = [(0, 200)], [(200, 250), (250, 300)]
BAND_PARAMS = ENV_PARAMS | {"norm_action": 1.0}


def trained(out_dir, settings, env_params=ENV_PARAMS, **options):
    return train_policy(
        settings, small_market(segments=TRAIN), env_params, out_dir,
        validation_config=small_market(segments=VALIDATION), **options,
    )  # fmt: skip


@pytest.fixture
def environments(monkeypatch):
    """Every environment that a run trains in."""
    made, make = [], train.run.make_env
    monkeypatch.setattr(train.run, "make_env", lambda *a, **b: made.append(make(*a, **b)) or made[-1])
    return made


@pytest.mark.parametrize("n_envs", [1, 4])
def test_the_factor_is_the_share_of_the_budget_over_the_ramp(n_envs, tmp_path, environments):
    settings = small_settings(n_envs=n_envs, total_env_steps=8 * 32 * n_envs, fee_ramp=0.5)
    result = trained(tmp_path, settings)
    assert [progress.cost_factor for progress in result.history] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    assert environments[0].cost_factor == 1.0


def test_without_a_ramp_every_rollout_pays_in_full(tmp_path, environments):
    result = trained(tmp_path, small_settings())
    assert {progress.cost_factor for progress in result.history} == {1.0}
    assert environments[0].cost_factor == 1.0


@pytest.mark.parametrize("env_class", [CryptoEnvAlpaca, VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized])
def test_every_class_of_ours_ramps_and_trains_another_policy_with_it(env_class, tmp_path):
    n_envs = 1 if env_class is CryptoEnvAlpaca else 4
    full, ramped = (
        trained(tmp_path / str(ramp), small_settings(n_envs=n_envs, fee_ramp=ramp), env_class=env_class)
        for ramp in (0.0, 1.0)
    )
    assert full.history[0].mean_reward < ramped.history[0].mean_reward
    assert load_policy(full.last_policy).metadata["settings"]["fee_ramp"] == 0.0
    assert load_policy(ramped.last_policy).metadata["settings"]["fee_ramp"] == 1.0


def test_evaluation_does_not_depend_on_what_the_training_environment_pays(tmp_path, environments):
    """To the bit: the score that a run chose its best policy by is the one at full cost."""
    settings = small_settings(fee_ramp=1.0)
    result = trained(tmp_path, settings)
    assert environments[0].cost_factor < 1.0  # of the last rollout, and still so
    scores = [progress.validation_score for progress in result.history if progress.is_best]
    config = small_market(segments=VALIDATION)
    records = evaluate_policy(result.best_policy, config, ENV_PARAMS)
    assert mean_growth(records) == scores[-1] == result.best_score
    environments[0].cost_factor = 0.0
    again = evaluate_policy(result.best_policy, config, ENV_PARAMS)
    for a, b in zip(records, again, strict=True):
        for name in ("equity", "fees", "turnover", "benchmark_equity"):
            assert np.array_equal(getattr(a, name), getattr(b, name))
    assert sum(record.fees.sum() for record in records) > 0.0


class HostEnv:
    """A host's own class around the scalar environment."""

    def __init__(self, config, env_params, if_log=False):
        env = CryptoEnvAlpaca(config, env_params)
        self.state_dim, self.action_dim, self.max_step = env.state_dim, env.action_dim, env.max_step
        self.reset, self.step = env.reset, env.step


def test_a_class_without_a_cost_factor_is_refused_by_name(tmp_path):
    settings = small_settings(n_envs=1, start=None, episode_bars=None, fee_ramp=0.5)
    with pytest.raises(ValueError, match=r"fee_ramp must be 0 for HostEnv, which has no cost_factor"):
        trained(tmp_path, settings, env_class=HostEnv)
    trained(tmp_path, replace(settings, fee_ramp=0.0), env_class=HostEnv)


class Killed(BaseException):
    """Nothing on the way out catches it."""


@pytest.mark.parametrize(
    ("settings", "env_params"),
    [
        (small_settings(total_env_steps=128 * 8, fee_ramp=0.7), ENV_PARAMS),
        (small_settings(n_envs=1, total_env_steps=32 * 8, fee_ramp=0.7), ENV_PARAMS),
        (band_settings(total_env_steps=4_000 * 8, fee_ramp=0.7, dropout=0.2, weight_decay=0.1), BAND_PARAMS),
        (band_settings(n_envs=1, total_env_steps=1_000 * 4, fee_ramp=0.7, dropout=0.2), BAND_PARAMS),
    ],
    ids=["ppo", "ppo, one account", "band", "band, one account"],
)
@pytest.mark.parametrize("killed_after", [1, 3])
def test_a_killed_run_resumes_its_ramp_to_the_bit(settings, env_params, killed_after, tmp_path):
    whole = trained(tmp_path / "whole", settings, env_params)

    def kill(progress):
        if progress.n_updates == killed_after + 1:
            raise Killed

    checkpoints = Checkpoints(tmp_path / "kept", every_s=0.0)
    with pytest.raises(Killed):
        trained(tmp_path / "resumed", settings, env_params, checkpoints=checkpoints, on_progress=kill)
    resumed = trained(tmp_path / "resumed", settings, env_params, checkpoints=checkpoints)
    assert [p.cost_factor for p in resumed.history] == [p.cost_factor for p in whole.history]
    assert [p.mean_reward for p in resumed.history] == [p.mean_reward for p in whole.history]
    assert resumed.last_policy.read_bytes() == whole.last_policy.read_bytes()
    assert resumed.best_policy.read_bytes() == whole.best_policy.read_bytes()
    assert resumed.n_updates == whole.n_updates


def test_a_budget_of_few_rollouts_is_warned_of(tmp_path, caplog):
    warn_once.cache_clear()
    settings = band_settings(n_envs=4, total_env_steps=2000, fee_ramp=0.75)
    train_policy(settings, small_market(segments=TRAIN), BAND_PARAMS, tmp_path)
    assert "fee_ramp 0.75 with 1 rollouts: no rollout pays the full costs" in caplog.text
    assert "gives 500 bars to each of 4 accounts; with fewer than 1000" in caplog.text


def test_a_class_that_is_not_ours_hears_the_bands_own_refusal(tmp_path):
    class Foreign(VectorizedCryptoEnvAlpaca):
        def __init__(self, config, env_params, n_envs=1, gpu_id=-1, seed=0, start="random"):
            super().__init__(config, env_params, n_envs=n_envs, gpu_id=gpu_id, seed=seed, start=start)

        @property
        def filled(self):
            raise AttributeError

    with pytest.raises(ValueError, match="Foreign has no filled"):
        train_policy(band_settings(), small_market(segments=TRAIN), BAND_PARAMS, tmp_path, env_class=Foreign)
