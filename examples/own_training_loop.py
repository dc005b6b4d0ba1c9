"""How do I write my own training loop (here A2C)? Run: python -m examples.own_training_loop."""

import numpy as np
import torch
from torch import nn

from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpacaOptimized

GAMMA, N_ENVS, HORIZON, N_UPDATES = 0.9, 128, 10, 300
torch.manual_seed(0)
trend = np.sign(np.sin(np.arange(4000) / 20.0))[:, None]  # +1 in a rising market, -1 in a falling one
price = 100.0 * np.exp(np.cumsum(0.002 * trend + np.random.default_rng(0).normal(0.0, 0.005, (4000, 3)), axis=0))
config, env_params = {"price_array": price, "tech_array": trend}, {"rules": "standard", "lookback": 1}
env = VectorizedCryptoEnvAlpacaOptimized(config, env_params, N_ENVS, episode_bars=100, gpu_id=-1)
actor = nn.Sequential(nn.Linear(env.state_dim, 64), nn.Tanh(), nn.Linear(64, env.action_dim))
critic = nn.Sequential(nn.Linear(env.state_dim, 64), nn.Tanh(), nn.Linear(64, 1), nn.Flatten(0))
optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=1e-2)
state = env.reset()
for _ in range(N_UPDATES):
    steps = []
    for _ in range(HORIZON):
        seen = state.clone()  # the environment reuses its buffers
        policy = torch.distributions.Normal(actor(seen), 0.5)
        action = policy.sample()
        state, reward, done, info = env.step(action.clamp(-1.0, 1.0))
        # A window ends because its bars end, not because of ruin, so its last reward is bootstrapped.
        later = torch.where(info["truncated"], critic(info["final_state"]).detach(), 0.0)
        steps.append((policy.log_prob(action).sum(-1), critic(seen), reward + GAMMA * later, ~done))
    log_probs, values, rewards, goes_on = (torch.stack(column) for column in zip(*steps, strict=True))
    targets, following = torch.empty_like(rewards), critic(state).detach()
    for t in reversed(range(HORIZON)):
        targets[t] = following = rewards[t] + GAMMA * following * goes_on[t]
    advantages = targets - values
    optimizer.zero_grad()
    (advantages.square().mean() - (log_probs * advantages.detach()).mean()).backward()
    optimizer.step()
state = env.reset()
for _ in range(100):
    state = env.step(actor(state).detach().clamp(-1.0, 1.0))[0]
print(f"mean account value {env.episode_return.mean():.3f} times the initial capital")
