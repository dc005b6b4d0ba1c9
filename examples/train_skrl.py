"""How do I train with skrl? Run: python -m examples.train_skrl."""

import numpy as np
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.memories.torch import RandomMemory
from skrl.trainers.torch import SequentialTrainer, SequentialTrainerCfg
from skrl.utils import set_seed
from skrl.utils.model_instantiators.torch import deterministic_model, gaussian_model

from adapters.skrl import CryptoWrapper, FinalObservations

trend = np.sign(np.sin(np.arange(4000) / 20.0))[:, None]  # +1 in a rising market, -1 in a falling one
price = 100 * np.exp(np.cumsum(0.002 * trend + np.random.default_rng(set_seed(1)).normal(0, 5e-3, (4000, 3)), axis=0))
config, env_params = {"price_array": price, "tech_array": trend}, {"rules": "standard", "lookback": 1}
env = CryptoWrapper(config, env_params, n_envs=64, episode_bars=100)
spaces = {"observation_space": env.observation_space, "action_space": env.action_space, "device": env.device}
net = {"network": [{"name": "net", "input": "OBSERVATIONS", "layers": [64], "activations": "elu"}]}
policy, value = gaussian_model(**spaces, **net, output="ACTIONS"), deterministic_model(**spaces, **net, output="ONE")
memory, files = RandomMemory(memory_size=32, num_envs=64), {"write_interval": 0, "checkpoint_interval": 0}
cfg = PPO_CFG(rollouts=32, mini_batches=8, time_limit_bootstrap=True, discount_factor=0.9, experiment=files)
BootstrappingPPO = type("BootstrappingPPO", (FinalObservations, PPO), {})
agent = BootstrappingPPO(models={"policy": policy, "value": value}, memory=memory, cfg=cfg, **spaces)
SequentialTrainer(cfg=SequentialTrainerCfg(timesteps=1500, headless=True), env=env, agents=agent).train()
print(f"mean account value {env.episode_return.mean():.3f} times the initial capital")
