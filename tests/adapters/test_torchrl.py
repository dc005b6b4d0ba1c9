"""TorchRL's interface: its checker, rollouts, masked and partial resets, held accounts, short training."""

import copy
import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("torchrl", reason="torchrl is not installed")

from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs.utils import check_env_specs
from torchrl.modules import MLP, NormalParamExtractor, ProbabilisticActor, SafeModule, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss

from adapters.torchrl import CryptoEnv
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

FLAGS = ("done", "terminated", "truncated")


def made(env_params=STANDARD, **options):
    return CryptoEnv(CONFIG, env_params, n_envs=N_ENVS, **(OPTIONS | options))


def with_action(tensordict, action):
    return tensordict.set("action", torch.from_numpy(action))


@pytest.mark.parametrize("env_params", [STANDARD, params_of("cappuccino")], ids=lambda params: params["rules"])
@pytest.mark.parametrize("episode_bars", [1, 7])
def test_it_passes_torchrls_checker(env_params, episode_bars):
    check_env_specs(made(env_params, episode_bars=episode_bars), break_when_any_done="both", seed=0)


def assert_step(step, wanted):
    assert_same(step["observation"], wanted["state"])
    assert_same(step["reward"][:, 0], wanted["reward"])
    for name in FLAGS:
        np.testing.assert_array_equal(step[name][:, 0].numpy(), wanted[name])


@pytest.mark.parametrize("env_params", [STANDARD, params_of("cappuccino")], ids=lambda params: params["rules"])
def test_every_step_and_masked_reset_equals_the_scalar_environment(env_params):
    env = made(env_params)
    root, accounts = env.reset(), ScalarAccounts(env.env, env_params=env_params)
    assert_same(root["observation"], list(accounts.open().values()))
    n_masked = 0
    for actions in drawn_actions(40):
        step, root = env.step_and_maybe_reset(with_action(root, actions))
        wanted = accounts.step(actions)
        assert_step(step["next"], wanted)
        assert_same(root["observation"], accounts.restart(wanted))
        assert not any(root[name].any() for name in FLAGS)
        n_masked += 0 < wanted["done"].sum() < N_ENVS
    assert n_masked > 0 or env_params is not STANDARD
    assert len(accounts.ended_sums) > 2 * N_ENVS


def test_a_partial_reset_leaves_the_other_accounts_alone():
    env, twin = (made(params_of("standard"), episode_bars=50) for _ in range(2))
    root, twin_root = env.reset(), twin.reset()
    mask = torch.tensor([False, True, False, True, False])
    for t, actions in enumerate(drawn_actions(6)):
        if t == 3:
            before = root["observation"].clone()
            root = env.reset(root.set("_reset", mask[:, None]))
            assert torch.equal(root["observation"][~mask], before[~mask])
            assert (root["observation"][mask] != before[mask]).any()
            assert (env.env.cash[mask] == env.env.initial_total_asset).all()
        root = env.step(with_action(root, actions))["next"]
        twin_root = twin.step(with_action(twin_root, actions))["next"]
        others = ~mask if t >= 3 else slice(None)
        assert torch.equal(root["observation"][others], twin_root["observation"][others])
        assert torch.equal(root["reward"][others], twin_root["reward"][others])


def test_held_accounts_stand_still_and_go_on_later():
    env = made(params_of("standard"), episode_bars=50)
    root = env.reset()
    accounts = ScalarAccounts(env.env, env_params=params_of("standard"), episode_bars=50)
    accounts.open()
    stepped = np.array([True, False, True, False, False])
    for t, actions in enumerate(drawn_actions(6)):
        root = with_action(root, actions)
        before, where = root["observation"].clone(), np.ones(N_ENVS, dtype=bool) if t % 2 else stepped
        if t % 2 == 0:
            root.set("_step", torch.from_numpy(stepped)[:, None])
        root = env.step(root)["next"]
        wanted = accounts.step(actions, where)
        assert_same(root["observation"][where], wanted["state"][where])
        assert torch.equal(root["observation"][~where], before[~where])
        assert_same(root["reward"][:, 0], wanted["reward"])
    assert_same(env.env.cash, [account.cash for account in accounts.envs])


@pytest.mark.parametrize("break_when_any_done", [True, False])
def test_a_rollout_keeps_what_the_simulator_returned(break_when_any_done):
    env, actions = made(), iter(drawn_actions(30))
    recorder = Recorder()

    def policy(tensordict):
        recorder.keep(tensordict["observation"])
        return with_action(tensordict, next(actions))

    rollout = env.rollout(30, policy, break_when_any_done=break_when_any_done)
    recorder.assert_unchanged()
    assert_same(rollout["observation"].transpose(0, 1), [copied for _, copied in recorder.kept])
    again = rollout["next", "observation"][:, :-1] == rollout["observation"][:, 1:]
    assert torch.equal(again.all(-1), ~rollout["next", "done"][:, :-1, 0])
    twin = made()
    root = twin.reset()
    for t, row in enumerate(drawn_actions(rollout.shape[1])):
        step, root = twin.step_and_maybe_reset(with_action(root, row))
        for name in ("reward", *FLAGS):
            assert torch.equal(rollout["next", name][:, t], step["next", name])


def test_a_rollout_until_everybody_is_done_stops_each_account_at_its_end():
    env = made()
    rollout = env.rollout(30, break_when_any_done=False, break_when_all_done=True)
    lengths = 1 + (~rollout["next", "done"][..., 0]).sum(-1)
    assert rollout.shape[1] == lengths.max() <= OPTIONS["episode_bars"]
    assert lengths.min() < lengths.max()
    for row, length in zip(rollout, lengths.tolist(), strict=True):  # TorchRL repeats the last step from there on
        assert (row["next", "observation"][length - 1 :] == row["next", "observation"][length - 1]).all()


def test_a_seed_repeats_the_starts():
    env = made()
    env.set_seed(4)
    first, following = env.reset()["observation"], env.reset()["observation"]
    env.set_seed(4)
    assert torch.equal(env.reset()["observation"], first)
    assert torch.equal(env.reset()["observation"], following)
    assert not torch.equal(first, following)


@pytest.mark.parametrize("copied_by", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_a_copy_goes_on_as_the_first_one(copied_by):
    env = made()
    root = env.reset()
    other = copied_by(env)
    for actions in drawn_actions(3):
        step = env.step(with_action(root.copy(), actions))["next"]
        assert torch.equal(step["observation"], other.step(with_action(root.copy(), actions))["next", "observation"])
        root = step


def test_short_ppo_with_a_collector_changes_the_policy():
    env = made()
    width, n_actions = env.env.state_dim, env.env.action_dim
    net = torch.nn.Sequential(MLP(width, 2 * n_actions, 1, 8), NormalParamExtractor())
    head = SafeModule(net, ["observation"], ["loc", "scale"])
    actor = ProbabilisticActor(head, ["loc", "scale"], distribution_class=TanhNormal, return_log_prob=True)
    loss = ClipPPOLoss(actor, ValueOperator(MLP(width, 1, 1, 8)))
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-2)
    before = [parameter.clone() for parameter in actor.parameters()]
    frames = 16 * N_ENVS
    for data in Collector(env, actor, frames_per_batch=frames, total_frames=2 * frames,
                          auto_register_policy_transforms=False):  # fmt: skip
        assert data.shape == (N_ENVS, 16)
        assert data["next", "truncated"].any()
        optimizer.zero_grad()
        loss(data).select("loss_objective", "loss_critic", "loss_entropy").sum(reduce=True).backward()
        optimizer.step()
    assert all((old != new).any() and new.isfinite().all() for old, new in zip(before, actor.parameters(), strict=True))


def test_it_stays_on_its_device():
    env = made()
    assert env.to("cpu") is env
    with pytest.raises(ValueError, match="the simulator is on cpu"):
        env.to("meta")


def test_only_a_batch_without_restarts_is_taken():
    resting, other = (
        VectorizedCryptoEnvAlpacaOptimized(CONFIG, STANDARD, 2, autoreset=autoreset) for autoreset in (False, True)
    )
    assert isinstance(CryptoEnv(env=resting).reset(), TensorDict)
    with pytest.raises(ValueError, match="autoreset=False"):
        CryptoEnv(env=other)
    with pytest.raises(ValueError, match="pass config"):
        CryptoEnv()
