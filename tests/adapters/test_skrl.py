"""skrl's interface: tensors, ends of episodes, what memories store, bootstrapping, one account."""

import numpy as np
import pytest
import torch

pytest.importorskip("skrl", reason="skrl is not installed")

from skrl import config
from skrl.agents.torch.base import ExperimentCfg
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.agents.torch.sac import SAC, SAC_CFG
from skrl.memories.torch import RandomMemory
from skrl.trainers.torch import SequentialTrainer, SequentialTrainerCfg
from skrl.utils.model_instantiators.torch import deterministic_model, gaussian_model

from adapters.skrl import CryptoWrapper, FinalObservations
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

N_STEPS, GAMMA = 20, 0.9
BOOTSTRAP = {"rollouts": N_STEPS + 1, "time_limit_bootstrap": True}  # no update: the memory stays as it was filled
NO_FILES = ExperimentCfg(write_interval=0, checkpoint_interval=0)
NETWORK = [{"name": "net", "input": "OBSERVATIONS", "layers": [8], "activations": "elu"}]
CRITIC = [{"name": "net", "input": "concatenate([OBSERVATIONS, ACTIONS])", "layers": [8], "activations": "elu"}]


def made(env_params=STANDARD, n_envs=N_ENVS, **options):
    return CryptoWrapper(CONFIG, env_params, n_envs=n_envs, **(OPTIONS | options))


class Recorded(CryptoWrapper):
    """Keeps copies of the transitions as a memory should store them."""

    def __init__(self, **options):
        super().__init__(CONFIG, STANDARD, **(OPTIONS | options))
        self.rows = {name: [] for name in ("observations", "next_observations", "rewards", "truncated")}

    def reset(self):
        state, infos = super().reset()
        self.current = state.clone()
        return state, infos

    def step(self, actions):
        state, reward, terminated, truncated, infos = super().step(actions)
        done = terminated | truncated
        next_state = torch.where(done, infos["final_observations"], state)
        row = {"observations": self.current, "next_observations": next_state, "rewards": reward, "truncated": truncated}
        for name, value in row.items():
            self.rows[name].append(value.clone())
        self.current = state.clone()
        return state, reward, terminated, truncated, infos


class FinalPPO(FinalObservations, PPO):
    pass


class FinalSAC(FinalObservations, SAC):
    pass


def spaces(env):
    return {"observation_space": env.observation_space, "action_space": env.action_space, "device": env.device}


def agent_of(env, agent_class, cfg_class, **cfg):
    models = {"policy": gaussian_model(**spaces(env), network=NETWORK, output="ACTIONS")}
    if agent_class is FinalSAC:
        names = ("critic_1", "critic_2", "target_critic_1", "target_critic_2")
        models |= {name: deterministic_model(**spaces(env), network=CRITIC, output="ONE") for name in names}
    else:
        models["value"] = deterministic_model(**spaces(env), network=NETWORK, output="ONE")
    for role, model in models.items():
        model.init_state_dict(role=role)
    memory = RandomMemory(memory_size=N_STEPS, num_envs=env.num_envs, device=env.device)
    return agent_class(models=models, memory=memory, cfg=cfg_class(experiment=NO_FILES, **cfg), **spaces(env))


def train(env, agent):
    trainer_cfg = SequentialTrainerCfg(timesteps=N_STEPS, headless=True, disable_progressbar=True,
                                       close_environment_at_exit=False)  # fmt: skip
    SequentialTrainer(cfg=trainer_cfg, env=env, agents=agent).train()


@pytest.mark.parametrize("env_params", [STANDARD, params_of("cappuccino")], ids=lambda params: params["rules"])
def test_every_step_equals_the_scalar_environment(env_params):
    env = made(env_params)
    state, _ = env.reset()
    accounts = ScalarAccounts(env._env, env_params=env_params)
    assert_same(state, list(accounts.open().values()))
    for actions in drawn_actions(40):
        state, reward, terminated, truncated, infos = env.step(torch.from_numpy(actions))
        wanted = accounts.step(actions)
        assert {value.device for value in (state, reward, terminated, truncated)} == {env.device}
        assert_same(reward[:, 0], wanted["reward"])
        np.testing.assert_array_equal(terminated[:, 0].numpy(), wanted["terminated"])
        np.testing.assert_array_equal(truncated[:, 0].numpy(), wanted["truncated"])
        assert_same(infos["final_observations"][wanted["done"]], wanted["state"][wanted["done"]])
        assert_same(infos["episode_return"], wanted["episode_return"])
        assert_same(state, accounts.restart(wanted))
    assert len(accounts.ended_sums) > 2 * N_ENVS


def test_ppo_stores_what_the_simulator_returned_and_bootstraps_the_last_observation():
    env = Recorded(n_envs=N_ENVS)
    agent = agent_of(env, FinalPPO, PPO_CFG, discount_factor=GAMMA, **BOOTSTRAP)
    train(env, agent)
    memory = agent.memory
    rows = {name: torch.stack(values) for name, values in env.rows.items()}
    assert torch.equal(memory.get_tensor_by_name("observations"), rows["observations"])
    with torch.no_grad():
        value, _ = agent.value.act({"observations": rows["next_observations"].flatten(0, 1)}, role="value")
    value = value.view(N_STEPS, N_ENVS, 1)
    assert rows["truncated"].any()
    wanted = rows["rewards"] + GAMMA * value * rows["truncated"]
    torch.testing.assert_close(memory.get_tensor_by_name("rewards"), wanted)


def test_sac_stores_true_next_observations():
    env = Recorded(n_envs=N_ENVS)
    agent = agent_of(env, FinalSAC, SAC_CFG, batch_size=16, learning_starts=5)
    train(env, agent)
    for name in ("observations", "next_observations", "rewards"):
        assert torch.equal(agent.memory.get_tensor_by_name(name), torch.stack(env.rows[name]))


def test_ppo_changes_its_policy():
    env = made()
    agent = agent_of(env, FinalPPO, PPO_CFG, rollouts=N_STEPS, learning_epochs=1, time_limit_bootstrap=True)
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    train(env, agent)
    for old, new in zip(before, agent.policy.parameters(), strict=True):
        assert new.isfinite().all()
        assert (old != new).any()


def test_one_account_is_reset_by_the_trainer():
    env = Recorded(n_envs=1)
    agent = agent_of(env, FinalPPO, PPO_CFG, **BOOTSTRAP)
    train(env, agent)
    stored, following = env.rows["observations"], env.rows["next_observations"]
    assert torch.equal(agent.memory.get_tensor_by_name("observations"), torch.stack(stored))
    done = agent.memory.get_tensor_by_name("truncated") | agent.memory.get_tensor_by_name("terminated")
    assert done.sum() > 1
    for t in range(N_STEPS - 1):  # after an end the next observation is another episode's first
        assert torch.equal(stored[t + 1], following[t]) == (not done[t])


def test_one_account_is_given_its_last_observation():
    env = made(n_envs=1)
    env.reset()
    accounts = ScalarAccounts(env._env)
    accounts.open()
    for actions in drawn_actions(20, n_envs=1):
        state, *_, infos = env.step(torch.from_numpy(actions))
        wanted = accounts.step(actions)
        assert_same(state, wanted["state"])
        if wanted["done"].any():
            assert_same(infos["final_observations"], wanted["state"])
            assert_same(env.reset()[0], accounts.restart(wanted))
    assert len(accounts.ended_sums) > 2


def test_observations_stay_valid_through_the_next_step_and_the_rest_for_good():
    env, recorder = made(), Recorder()
    before, _ = env.reset()
    copied = before.clone()
    for actions in drawn_actions(20):
        state, *values, infos = env.step(torch.from_numpy(actions))
        for value in (*values, infos["episode_return"]):
            recorder.keep(value)
        assert torch.equal(before, copied)
        before, copied = state, state.clone()
    recorder.assert_unchanged()


def test_the_seed_given_to_skrl_decides_the_starts(monkeypatch):
    def env_with(seed):
        monkeypatch.setattr(config.torch, "key", seed)  # as skrl.utils.set_seed does
        return made()

    first, other, env = env_with(4).reset()[0], env_with(5).reset()[0], env_with(4)
    assert torch.equal(env.reset()[0], first)
    assert not torch.equal(env.reset()[0], first)
    assert not torch.equal(first, other)


def test_only_a_batch_that_restarts_is_taken():
    restarting, other = (
        VectorizedCryptoEnvAlpacaOptimized(CONFIG, STANDARD, 2, autoreset=autoreset) for autoreset in (True, False)
    )
    env = CryptoWrapper(env=restarting)
    assert (env.num_envs, env.num_agents, env.state_space, env.state()) == (2, 1, None, None)
    assert env.render() is env.close() is None
    with pytest.raises(ValueError, match="autoreset="):
        CryptoWrapper(env=other)
    with pytest.raises(ValueError, match="pass config"):
        CryptoWrapper()
