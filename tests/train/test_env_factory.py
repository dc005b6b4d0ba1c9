"""One account or a batch, told apart by the constructor's signature."""

import logging

import pytest
import torch

from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized
from tests.support.train_cases import ENV_PARAMS, small_market
from train.device import prepare_device
from train.env_factory import env_class_for, make_env


def test_one_environment_takes_the_scalar_class():
    assert env_class_for(1) is CryptoEnvAlpaca
    assert env_class_for(2) is VectorizedCryptoEnvAlpacaOptimized


def test_a_vectorized_class_is_announced_to_the_letter(caplog):
    with caplog.at_level(logging.INFO):
        env = make_env(VectorizedCryptoEnvAlpaca, small_market(), ENV_PARAMS, 12, gpu_id=-1, seed=5, start=None)
    assert caplog.messages == ["Using Vectorized Environments: 12 parallel envs"]
    assert (env.n_envs, env.seed) == (12, 5)


def test_a_scalar_class_is_built_without_n_envs(caplog):
    with caplog.at_level(logging.INFO):
        env = make_env(CryptoEnvAlpaca, small_market(), ENV_PARAMS, 1, gpu_id=-1, episode_bars=7)
    assert caplog.messages == []
    assert env.max_step == 7


def test_a_hosts_own_class_gets_only_what_it_names():
    class HostEnv:
        def __init__(self, config, env_params, if_log=False):
            self.given = (config, env_params, if_log)

    assert make_env(HostEnv, {"a": 1}, {"b": 2}, if_log=True, gpu_id=0, seed=1).given == ({"a": 1}, {"b": 2}, True)
    with pytest.raises(ValueError, match="episode_bars"):
        make_env(HostEnv, {}, {}, episode_bars=10)
    with pytest.raises(ValueError, match="received 3"):
        make_env(HostEnv, {}, {}, 3)


def test_a_missing_gpu_is_named():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="no GPU 3"):
        prepare_device(3)
    assert prepare_device(-1, 1) == torch.device("cpu")
