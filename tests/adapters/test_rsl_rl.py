"""rsl_rl's interface: observation groups, time outs, what its storage keeps, random first lengths, short training."""

import numpy as np
import pytest
import torch

pytest.importorskip("rsl_rl", reason="rsl-rl-lib is not installed")

from rsl_rl.env import VecEnv
from rsl_rl.runners import OnPolicyRunner
from tensordict import TensorDict

from adapters.rsl_rl import CryptoVecEnv
from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpacaOptimized
from tests.support.markets import params_of
from tests.support.scalar_accounts import (
    CONFIG,
    N_ENVS,
    OPTIONS,
    STANDARD,
    Recorder,
    ScalarAccounts,
    assert_same,
    drawn_actions,
)

N_STEPS, GAMMA = 16, 0.9


def made(env_params=STANDARD, **options):
    return CryptoVecEnv(CONFIG, env_params, n_envs=N_ENVS, **(OPTIONS | options))


def runner(env, log_dir=None):
    model = {"class_name": "MLPModel", "hidden_dims": [8]}
    actor = model | {"distribution_cfg": {"class_name": "GaussianDistribution", "init_std": 1.0}}
    cfg = {
        "num_steps_per_env": N_STEPS, "save_interval": 100, "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
        "algorithm": {"class_name": "PPO", "gamma": GAMMA, "num_learning_epochs": 1}, "actor": actor, "critic": model,
    }  # fmt: skip
    return OnPolicyRunner(env, cfg, log_dir=log_dir, device=str(env.device))


@pytest.mark.parametrize("env_params", [STANDARD, params_of("cappuccino")], ids=lambda params: params["rules"])
def test_every_step_equals_the_scalar_environment(env_params):
    env = made(env_params)
    assert isinstance(env, VecEnv)
    accounts = ScalarAccounts(env.env, env_params=env_params)
    assert_same(env.get_observations()["policy"], list(accounts.open().values()))
    for actions in drawn_actions(40):
        groups, reward, done, extras = env.step(torch.from_numpy(actions))
        wanted = accounts.step(actions)
        assert isinstance(groups, TensorDict)
        assert groups.batch_size == (N_ENVS,)
        assert env.get_observations() is groups
        assert_same(reward, wanted["reward"])
        assert done.dtype is torch.int64
        np.testing.assert_array_equal(done.numpy(), wanted["done"])
        np.testing.assert_array_equal(extras["time_outs"].numpy(), wanted["truncated"])
        assert_same(extras["log"]["/account/value"], wanted["episode_return"].mean())
        assert_same(groups["policy"], accounts.restart(wanted))
    assert len(accounts.ended_sums) > 2 * N_ENVS


class Recorded(CryptoVecEnv):
    """Keeps copies of what it returned."""

    rows: list

    def step(self, actions):
        before = self.get_observations()["policy"].clone()
        result = super().step(actions)
        self.rows.append((before, result[1].clone(), result[3]["time_outs"].clone()))
        return result


@pytest.mark.parametrize("native_step", [True, False])
def test_the_storage_keeps_what_the_simulator_returned(native_step):
    env = Recorded(CONFIG, STANDARD, n_envs=N_ENVS, native_step=native_step, **OPTIONS)
    env.rows = []
    trainer = runner(env)
    trainer.learn(3)  # steps in torch's inference mode
    states, rewards, time_outs = (torch.stack(column[2 * N_STEPS :]) for column in zip(*env.rows, strict=True))
    storage = trainer.alg.storage
    assert torch.equal(storage.observations["policy"], states)
    wanted = rewards[..., None] + GAMMA * storage.values * time_outs[..., None]  # rsl_rl's bootstrap of time outs
    assert time_outs.any()
    torch.testing.assert_close(storage.rewards, wanted)
    env.step(torch.zeros(N_ENVS, 3))  # and goes on outside of it


def test_training_changes_the_policy_and_logs_the_account_value(tmp_path, monkeypatch):
    logged = {}
    add_scalar = "torch.utils.tensorboard.SummaryWriter.add_scalar"
    monkeypatch.setattr(add_scalar, lambda _, tag, value, *__, **___: logged.update({tag: value}))
    env = made()
    trainer = runner(env, str(tmp_path))
    before = [parameter.clone() for parameter in trainer.alg.actor.mlp.parameters()]
    trainer.learn(2, init_at_random_ep_len=True)
    after = list(trainer.alg.actor.mlp.parameters())
    assert all((old != new).any() and new.isfinite().all() for old, new in zip(before, after, strict=True))
    assert 0.9 < logged["/account/value"] < 1.1
    assert (tmp_path / "model_1.pt").exists()


def test_assigned_lengths_end_the_running_episodes_earlier_and_no_others():
    env = made(params_of("standard"), episode_bars=10)
    assert env.max_episode_length == 10
    assert env.episode_length_buf.tolist() == [0] * N_ENVS
    env.episode_length_buf = torch.tensor([0, 3, 7, 9, 9])
    assert env.episode_length_buf.tolist() == [0, 3, 7, 9, 9]
    ends = [[] for _ in range(N_ENVS)]
    for t in range(1, 21):
        _, _, done, _ = env.step(torch.zeros(N_ENVS, 3))
        for i in done.nonzero().flatten().tolist():
            ends[i].append(t)
    assert ends == [[10, 20], [7, 17], [3, 13], [1, 11], [1, 11]]


def test_a_seed_repeats_the_starts():
    env = made()
    first = env.reset(seed=4)[0]["policy"].clone()
    following = env.reset()[0]["policy"].clone()
    assert torch.equal(env.reset(seed=4)[0]["policy"], first)
    assert not torch.equal(first, following)


def test_observations_stay_valid_through_the_next_step_and_the_rest_for_good():
    env, recorder = made(), Recorder()
    before = env.get_observations()["policy"]
    copied = before.clone()
    for actions in drawn_actions(20):
        groups, reward, done, extras = env.step(torch.from_numpy(actions))
        for value in (reward, done, extras["time_outs"], extras["log"]["/account/value"]):
            recorder.keep(value)
        assert torch.equal(before, copied)
        before, copied = groups["policy"], groups["policy"].clone()
    recorder.assert_unchanged()


def test_only_a_batch_that_restarts_is_taken():
    restarting, other = (
        VectorizedCryptoEnvAlpacaOptimized(CONFIG, STANDARD, 2, autoreset=autoreset) for autoreset in (True, False)
    )
    env = CryptoVecEnv(env=restarting)
    assert (env.num_envs, env.num_actions, env.device) == (2, 3, restarting.device)
    assert env.cfg["rules"] == "standard"
    with pytest.raises(ValueError, match="autoreset=True"):
        CryptoVecEnv(env=other)
    with pytest.raises(ValueError, match="pass config"):
        CryptoVecEnv()
