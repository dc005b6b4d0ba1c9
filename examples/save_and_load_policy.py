"""How do I save a policy and load it again? Run: python -m examples.save_and_load_policy."""

import tempfile
from pathlib import Path

import torch
from torch import nn

import barwise
from drl_agents.policy import Policy
from drl_agents.policy_file import save_policy

dataset = barwise.synthetic_dataset("1h", 2_000, ("BTC", "ETH"))
env_params = {"rules": "standard", "lookback": 4}
env = barwise.VectorizedCryptoEnvAlpacaOptimized(dataset.env_config(), env_params, n_envs=8, gpu_id=-1)
state = env.reset()

# Any linear layers with ReLU between them and a tanh at the end. In practice, these layers have been trained.
layers = [nn.Linear(env.state_dim, 64), nn.Linear(64, env.action_dim)]
policy = Policy(
    state_avg=state.mean(0), state_std=state.std(0).clamp(min=1e-3),
    layers=[(layer.weight.detach(), layer.bias.detach()) for layer in layers],
    metadata={"env_params": env_params, "tickers": dataset.tickers, "data_sha256": dataset.sha256},
)  # fmt: skip
path = save_policy(Path(tempfile.mkdtemp()) / "policy.safetensors", policy)
loaded = barwise.load_policy(path, state_dim=env.state_dim, action_dim=env.action_dim)
print(f"{path.name}: {path.stat().st_size} bytes, trained on {', '.join(loaded.metadata['tickers'])}")
print(f"same actions: {torch.equal(policy(state), loaded(state))}")
