"""Settings are refused by name, with the value and what is expected."""

from dataclasses import replace

import pytest

from train.config import TrainConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("agent", "dqn"), ("n_envs", 0), ("n_envs", True), ("n_envs", 2.0), ("total_env_steps", 0), ("net_dims", ()),
        ("net_dims", (64, 0)), ("learning_rate", 0.0), ("learning_rate", float("nan")), ("lr_schedule", "cosine"),
        ("gamma", 1.5), ("gae_lambda", -0.1), ("clip_range", 0.0), ("entropy_coef", -1.0), ("batch_size", 0),
        ("target_kl", 0.0), ("episode_bars", 0), ("start", "last"), ("seed", -1), ("gpu_id", -2), ("cpu_threads", 0),
        ("max_grad_norm", float("inf")), ("updates_per_sample", 0.0),
        ("observation_store", "columns"), ("gradients", "numerical"),
        ("matmul_precision", "bf16"), ("matmul_precision", "high"),
    ],
)  # fmt: skip
def test_a_bad_value_is_named(name, value):
    with pytest.raises(ValueError, match=name) as error:
        TrainConfig(**{name: value})
    assert "received" in str(error.value)


def test_rollouts_spend_the_budget():
    settings = TrainConfig(n_envs=4, horizon_len=32, total_env_steps=1000)
    assert (settings.rollout_len, settings.n_updates) == (32, 8)  # 8 * 128 = 1024: the last rollout is finished
    short = TrainConfig(n_envs=4, horizon_len=1000, total_env_steps=100)
    assert (short.rollout_len, short.n_updates) == (25, 1)


@pytest.mark.parametrize("other", [{"agent": "sac"}, {"n_envs": 1}])
def test_bars_are_for_batches_of_on_policy_agents(other):
    settings = {"n_envs": 4, "observation_store": "bars"}
    assert TrainConfig(**settings).observation_store == "bars"
    with pytest.raises(ValueError, match="bars"):
        TrainConfig(**{**settings, **other})


def test_tf32_is_for_gpus():
    assert TrainConfig(matmul_precision="high", gpu_id=0).matmul_precision == "high"


def test_net_dims_may_come_as_a_list():
    assert TrainConfig(net_dims=[8, 8]).net_dims == (8, 8)


def test_the_band_trains_on_at_least_a_thousand_bars():
    assert TrainConfig().horizon_len == 128
    band = TrainConfig(agent="band")
    assert (band.horizon_len, band.episode_bars) == (1024, None)
    assert TrainConfig(agent="band", n_envs=4096, total_env_steps=10**8).rollout_len == 1024
    assert not band.is_off_policy
    for change in ({"horizon_len": 999}, {"episode_bars": 128}):
        (name, value), *_ = change.items()
        with pytest.raises(ValueError, match=f"{name} must be at least 1000 bars .* received {value}"):
            TrainConfig(agent="band", **change)
    with pytest.raises(ValueError, match="horizon_len"):
        replace(TrainConfig(), agent="band")


def test_a_fee_ramp_is_not_for_agents_with_a_replay_memory():
    for agent in ("ppo", "a2c", "band"):
        assert TrainConfig(agent=agent, fee_ramp=0.5).fee_ramp == 0.5
    for agent in ("sac", "td3", "ddpg"):
        with pytest.raises(ValueError, match="replay memory"):
            TrainConfig(agent=agent, fee_ramp=0.5)
