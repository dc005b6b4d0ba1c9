"""The loop: what it spends, what it keeps, what it repeats."""

import math

import numpy as np
import pytest
import torch

import train.run
from drl_agents.agents import AGENTS, AgentBase
from drl_agents.policy_file import METADATA_KEYS, load_policy
from environment_Alpaca import CryptoEnvAlpaca
from tests.support.agent_args import REWARD_AGENTS
from tests.support.train_cases import ENV_PARAMS, band_settings, small_market, small_settings
from train.evaluator import evaluate_policy, mean_growth
from train.run import TrainingDiverged, train_policy

PARAMS = {agent: ENV_PARAMS | ({"norm_action": 1.0} if agent == "band" else {}) for agent in AGENTS}
TRAIN, VALIDATION = [(0, 200)], [(200, 250), (250, 300)]


def trained(out_dir, env_params=ENV_PARAMS, validation=True, **changes):
    options = {name: changes.pop(name) for name in ("score", "on_progress", "metadata", "env_class") if name in changes}
    validation_config = small_market(segments=VALIDATION) if validation else None
    make = band_settings if changes.get("agent") == "band" else small_settings
    return train_policy(
        make(**changes), small_market(segments=TRAIN), env_params, out_dir,
        validation_config=validation_config, **options,
    )  # fmt: skip


@pytest.mark.parametrize("n_envs", [1, 4])
@pytest.mark.parametrize("agent", AGENTS)
def test_the_same_seed_gives_the_same_bytes(agent, n_envs, tmp_path):
    run = {"agent": agent, "n_envs": n_envs, "total_env_steps": 128, "validation": False, "env_params": PARAMS[agent]}
    torch.manual_seed(0)
    first = trained(tmp_path / "a", **run)
    torch.manual_seed(1)
    np.random.seed(1)
    second = trained(tmp_path / "b", **run)
    other = trained(tmp_path / "c", **run, seed=1)
    a, b, c = (load_policy(result.last_policy) for result in (first, second, other))
    for (weight, bias), (weight2, bias2) in zip(a.layers, b.layers, strict=True):
        assert torch.equal(weight, weight2)
        assert torch.equal(bias, bias2)
    assert torch.equal(a.state_avg, b.state_avg)
    assert not torch.equal(a.layers[0][0], c.layers[0][0])
    assert first.last_policy.read_bytes() == second.last_policy.read_bytes()


def test_scaling_statistics_are_fitted_on_training_bars_only_and_travel_with_the_policy(tmp_path):
    clean = small_market(segments=TRAIN)
    poisoned = {**clean, "price_array": clean["price_array"].copy(), "tech_array": clean["tech_array"].copy()}
    poisoned["price_array"][200:] *= 7.0
    poisoned["tech_array"][200:] += 1_000.0
    a, b = (
        load_policy(train_policy(small_settings(), config, ENV_PARAMS, tmp_path / name).last_policy)
        for name, config in (("clean", clean), ("poisoned", poisoned))
    )
    assert torch.equal(a.state_avg, b.state_avg)
    assert torch.equal(a.state_std, b.state_std)
    assert all(torch.equal(weight, other) for (weight, _), (other, _) in zip(a.layers, b.layers, strict=True))
    n_features = clean["tech_array"].shape[1]
    newest = a.state_avg[1 + clean["price_array"].shape[1] :][:n_features].numpy()
    seen = clean["tech_array"][:200]
    assert (np.abs(newest - seen.mean(0)) < seen.std(0)).all()
    assert np.abs(newest).max() > 1e-3


def test_a_run_of_bars_is_a_run_of_rows(tmp_path):
    rows, bars = (trained(tmp_path / store, observation_store=store) for store in ("rows", "bars"))
    a, b = load_policy(rows.last_policy), load_policy(bars.last_policy)
    assert a.metadata["observation_layout"] == b.metadata["observation_layout"]
    for (weight, bias), (weight2, bias2) in zip(a.layers, b.layers, strict=True):
        torch.testing.assert_close(weight2, weight, rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(bias2, bias, rtol=1e-2, atol=1e-3)
    assert bars.best_score == pytest.approx(rows.best_score, abs=1e-3)


def test_the_way_of_gradients_reaches_the_agent(tmp_path):
    ways = ("autograd", "by_hand")
    a, b = (load_policy(trained(tmp_path / way, gradients=way).last_policy).layers[0][0] for way in ways)
    assert not torch.equal(a, b)  # other rounding
    torch.testing.assert_close(b, a, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("n_updates", [1, 4])
def test_a_linear_schedule_falls_with_the_updates_and_not_the_warm_up(agent, n_updates, tmp_path, monkeypatch):
    rates, update = [], AgentBase.scheduled_learning_rate
    steps = 4_000 if agent == "band" else 128
    monkeypatch.setattr(AgentBase, "scheduled_learning_rate", lambda a: rates.append(update(a)) or rates[-1])
    trained(
        tmp_path, agent=agent, n_envs=4, total_env_steps=steps * n_updates, warmup_env_steps=256, learning_rate=1.0,
        max_grad_norm=1e-6, lr_schedule="linear", validation=False, env_params=PARAMS[agent],
    )  # fmt: skip
    assert rates == [1.0 - k / n_updates for k in range(n_updates)]


@pytest.mark.parametrize("agent", REWARD_AGENTS)
def test_the_budget_counts_all_environments(agent, tmp_path):
    result = trained(tmp_path, agent=agent, n_envs=4, total_env_steps=500, warmup_env_steps=64)
    warm_up = 0 if agent in ("ppo", "a2c") else 64
    assert result.env_steps == 512 + warm_up
    assert result.n_updates == 4
    assert result.gradient_steps == (4 * 2 * 2 if not warm_up else 512 // 4)
    assert result.history[-1].env_steps == result.env_steps
    assert result.explore_steps_per_s > 0
    assert result.update_samples_per_s > 0


@pytest.mark.parametrize(("buffer_size", "n_rows"), [(400, 100), (200_000, 16 + 4 * 32)])
def test_the_replay_is_no_larger_than_the_run(buffer_size, n_rows, tmp_path, monkeypatch):
    agents, build = [], train.run.build_agent
    monkeypatch.setattr(train.run, "build_agent", lambda *a: agents.append(build(*a)) or agents[-1])
    trained(tmp_path, agent="sac", n_envs=4, total_env_steps=500, warmup_env_steps=61, buffer_size=buffer_size,
            validation=False, updates_per_sample=0.01)  # fmt: skip
    replay = agents[0].replay
    assert replay.n_rows == n_rows
    assert replay.filled == replay.n_rows


def test_the_best_policy_is_the_one_with_the_best_score(tmp_path):
    scores = iter([1.0, 3.0, 2.0])
    seen = []
    result = trained(tmp_path, total_env_steps=128 * 6, score=lambda records: next(scores), on_progress=seen.append)
    assert [p.validation_score for p in result.history] == [None, 1.0, None, 3.0, None, 2.0]
    assert [p.is_best for p in result.history] == [False, True, False, True, False, False]
    assert seen == list(result.history)
    assert result.best_score == 3.0
    best, last = load_policy(result.best_policy), load_policy(result.last_policy)
    assert (best.metadata["env_steps"], last.metadata["env_steps"]) == (128 * 4, 128 * 6)
    assert not torch.equal(best.layers[0][0], last.layers[0][0])


def test_a_score_that_is_not_finite_is_never_best(tmp_path):
    scores = iter([float("nan"), 1.0, float("inf")])
    result = trained(tmp_path, total_env_steps=128 * 6, score=lambda records: next(scores))
    assert [p.is_best for p in result.history] == [False, False, False, True, False, False]
    nothing = trained(tmp_path / "n", score=lambda records: float("nan"))
    assert nothing.best_policy.exists()
    assert math.isnan(nothing.best_score)


def test_without_validation_the_best_is_the_last(tmp_path):
    result = trained(tmp_path, validation=False)
    assert result.best_policy.read_bytes() == result.last_policy.read_bytes()


def test_the_stored_policy_earns_the_reported_score(tmp_path):
    result = trained(tmp_path)
    records = evaluate_policy(result.best_policy, small_market(segments=VALIDATION), ENV_PARAMS)
    assert mean_growth(records) == pytest.approx(result.best_score, abs=1e-9)


def test_the_policy_file_says_what_it_was_trained_on(tmp_path):
    metadata = load_policy(trained(tmp_path, metadata={"data_sha256": "ab", "synthetic": True}).last_policy).metadata
    assert set(METADATA_KEYS) <= set(metadata)
    assert metadata["tickers"] == ["BTC", "ETH"]
    assert metadata["env_params"] == ENV_PARAMS
    assert metadata["data_sha256"] == "ab"
    assert metadata["settings"]["horizon_len"] == 32
    assert [name for name, _ in metadata["observation_layout"]]
    assert metadata["code_version"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_ends_the_run_with_its_cause(tmp_path, value):
    class Broken(CryptoEnvAlpaca):
        def step(self, action):
            state, _, done, info = super().step(action)
            return state, value, done, info

    with pytest.raises(TrainingDiverged, match="mean reward"):
        trained(tmp_path, n_envs=1, env_class=Broken)
    assert list(tmp_path.iterdir()) == []


def test_an_exploding_update_ends_the_run_with_its_cause(tmp_path):
    with pytest.raises((TrainingDiverged, ValueError), match="finite"):
        trained(tmp_path, learning_rate=1e30, max_grad_norm=1e30)


def test_constant_rewards_are_survived(tmp_path):
    class Constant(CryptoEnvAlpaca):
        def step(self, action):
            state, _, done, info = super().step(action)
            return state, 1.0, done, info

    result = trained(tmp_path, n_envs=1, env_class=Constant)
    assert load_policy(result.last_policy).state_dim > 0


def test_an_exception_of_the_caller_ends_the_run(tmp_path):
    def stop(progress):
        if progress.n_updates == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, on_progress=stop)
    assert load_policy(tmp_path / "policy_last.safetensors").metadata["env_steps"] == 256


def test_a_band_rollout_has_as_many_bars_whatever_the_number_of_accounts(tmp_path):
    runs = [trained(tmp_path / str(n), agent="band", n_envs=n, total_env_steps=n * 2_000, validation=False,
                    env_params=PARAMS["band"]) for n in (2, 20)]  # fmt: skip
    assert [run.n_updates for run in runs] == [2, 2]
    assert [run.gradient_steps for run in runs] == [2, 2]
    assert [run.env_steps for run in runs] == [4_000, 40_000]
    assert all(run.update_samples_per_s > 0 for run in runs)
