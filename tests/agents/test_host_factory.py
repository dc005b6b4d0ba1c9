"""DRLAgent as the hosts call it."""

import logging

import numpy as np
import pytest

from drl_agents.elegantrl_models import DRLAgent
from drl_agents.policy_file import PolicyFileError, load_policy
from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized
from tests.support.markets import params_of, random_config

ENV_CLASSES = [CryptoEnvAlpaca, VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized]
# As FinRL_Crypto samples them.
KWARGS = {
    "learning_rate": 1e-3, "batch_size": 64, "gamma": 0.97, "net_dimension": 16, "target_step": 120.0,
    "eval_time_gap": 60, "break_step": 3e4,
}  # fmt: skip
CONFIG = random_config(200, 3, 4)


def agent(env_class, rules="cappuccino", **env_params):
    # Three assets, so the host presets need their order limits by column: the first three.
    return DRLAgent(env_class, CONFIG["price_array"], CONFIG["tech_array"], params_of(rules, **env_params), True)


@pytest.mark.parametrize("rules", ["finrl_crypto", "cappuccino", "standard"])
@pytest.mark.parametrize("env_class", ENV_CLASSES)
def test_train_and_predict_as_the_hosts_do(env_class, rules, tmp_path):
    factory = agent(env_class, rules, n_envs=4)
    model = factory.get_model("ppo", 0, model_kwargs=KWARGS)
    assert model.settings.n_envs == (1 if env_class is CryptoEnvAlpaca else 4)
    result = factory.train_model(model=model, cwd=str(tmp_path), total_timesteps=480)
    assert result.env_steps == 480
    assert result.n_updates == 4  # target_step 120 counts all environments
    test_data = {**random_config(150, 3, 4, seed=1), "if_train": False}
    environment = env_class(config=test_data, env_params=params_of(rules, n_envs=4), if_log=True)
    values = DRLAgent.DRL_prediction(
        model_name="ppo", cwd=str(tmp_path), net_dimension=16, environment=environment, gpu_id=0
    )
    assert values[0] == environment.initial_total_asset
    assert np.all(np.isfinite(values))
    if rules != "standard":
        assert len(values) == 150 - 2 * 3 + 1  # T - 2L steps and the start


def test_all_classes_predict_the_same_account(tmp_path):
    factory = agent(CryptoEnvAlpaca)
    factory.train_model(factory.get_model("ppo", -1, KWARGS), tmp_path, 480)
    accounts = []
    for env_class in ENV_CLASSES:
        options = {} if env_class is CryptoEnvAlpaca else {"n_envs": 3}
        environment = env_class(config=CONFIG, env_params=params_of("cappuccino"), **options)
        accounts.append(DRLAgent.DRL_prediction("ppo", tmp_path, 16, environment, -1))
    np.testing.assert_allclose(accounts[0], accounts[1], rtol=1e-4)
    np.testing.assert_allclose(accounts[1], accounts[2], rtol=1e-6)


@pytest.mark.parametrize("name", ["a2c", "sac", "td3", "ddpg"])
def test_every_model_trains(name, tmp_path):
    factory = agent(VectorizedCryptoEnvAlpaca, n_envs=4)
    factory.train_model(factory.get_model(name, -1, {**KWARGS, "repeat_times": 0.1}), tmp_path, 480)
    assert load_policy(tmp_path / "policy_best.safetensors").net_dims == (16, 16)


def test_the_band_trains_under_the_standard_rules_and_refuses_a_hosts(tmp_path):
    factory = agent(VectorizedCryptoEnvAlpaca, "standard", n_envs=4, norm_action=1.0)
    result = factory.train_model(factory.get_model("band", -1, KWARGS), tmp_path, 8_000)
    assert result.n_updates == 2  # of 1000 bars each, whatever target_step says
    assert load_policy(result.best_policy).head == "band"
    environment = VectorizedCryptoEnvAlpaca(CONFIG, params_of("standard", norm_action=1.0), n_envs=1, start="first")
    assert np.all(np.isfinite(DRLAgent.DRL_prediction("band", tmp_path, 16, environment, -1)))
    host = agent(VectorizedCryptoEnvAlpaca, n_envs=4)
    with pytest.raises(ValueError, match="rules 'standard' in env_params; received 'cappuccino'"):
        host.train_model(host.get_model("band", -1, KWARGS), tmp_path, 8_000)


def test_kwargs_are_honoured_under_every_name():
    kwargs = {
        **KWARGS, "lambda_gae_adv": 0.9, "lambda_entropy": 0.02, "ratio_clip": 0.3, "repeat_times": 7.6,
        "clip_grad_norm": 2.0, "random_seed": 5, "value_coef": 0.7, "target_kl": 0.05,
    }  # fmt: skip
    settings = agent(CryptoEnvAlpaca).get_model("ppo", -1, kwargs).settings
    found = (settings.learning_rate, settings.batch_size, settings.gamma, settings.net_dims, settings.gae_lambda)
    assert found == (1e-3, 64, 0.97, (16, 16), 0.9)
    found = (settings.entropy_coef, settings.clip_range, settings.n_epochs, settings.max_grad_norm, settings.seed)
    assert found == (0.02, 0.3, 8, 2.0, 5)
    assert (settings.value_coef, settings.target_kl) == (0.7, 0.05)
    assert agent(CryptoEnvAlpaca).get_model("sac", -1, {"repeat_times": 0.5}).settings.updates_per_sample == 0.5


def test_a_vectorized_class_has_eight_environments_by_default():
    assert agent(VectorizedCryptoEnvAlpaca).get_model("ppo", -1, {}).settings.n_envs == 8


def test_options_without_effect_are_named(caplog):
    factory = DRLAgent(
        CryptoEnvAlpaca, CONFIG["price_array"], CONFIG["tech_array"], params_of("cappuccino"), True,
        sentiment_service=None, use_sentiment=True, tickers=["A", "B", "C"],
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        model = factory.get_model("ppo", 7, {"nonsense": 1})
    assert "use_sentiment" in caplog.text
    assert "nonsense" in caplog.text
    assert "GPU 7 does not exist" in caplog.text
    assert "sentiment_service" not in caplog.text
    assert model.config["tickers"] == ["A", "B", "C"]


def test_mismatches_are_refused_by_name(tmp_path):
    factory = agent(CryptoEnvAlpaca)
    environment = CryptoEnvAlpaca(CONFIG, params_of("cappuccino"))
    with pytest.raises(PolicyFileError, match="does not exist"):
        DRLAgent.DRL_prediction("ppo", tmp_path, 16, environment, -1)
    factory.train_model(factory.get_model("ppo", -1, KWARGS), tmp_path, 120)
    with pytest.raises(PolicyFileError, match="net_dims"):
        DRLAgent.DRL_prediction("ppo", tmp_path, 32, environment, -1)
    with pytest.raises(NotImplementedError, match="dqn"):
        factory.get_model("dqn", -1, {})


def test_a_policy_of_another_agent_or_other_observations_is_refused_by_name(tmp_path):
    factory = agent(CryptoEnvAlpaca)
    factory.train_model(factory.get_model("ppo", -1, KWARGS), tmp_path, 120)
    environment = CryptoEnvAlpaca(CONFIG, params_of("cappuccino"))
    with pytest.raises(PolicyFileError, match="its agent is ppo, expected a2c"):
        DRLAgent.DRL_prediction("a2c", tmp_path, 16, environment, -1)
    # One row of as many features more is as wide.
    lookback = environment.params.lookback
    wider = {**CONFIG, "tech_array": np.tile(CONFIG["tech_array"], (1, lookback))}
    other = CryptoEnvAlpaca(wider, params_of("cappuccino", lookback=1))
    assert other.state_dim == environment.state_dim
    with pytest.raises(PolicyFileError, match=f"its lookback is {lookback}, the environment's 1"):
        DRLAgent.DRL_prediction("ppo", tmp_path, 16, other, -1)
    standard = VectorizedCryptoEnvAlpaca(CONFIG, {"rules": "standard", "lookback": lookback}, n_envs=2, start="first")
    assert standard.state_dim == environment.state_dim
    with pytest.raises(PolicyFileError, match="its observation is"):
        DRLAgent.DRL_prediction("ppo", tmp_path, 16, standard, -1)
