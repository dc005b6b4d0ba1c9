"""How do I train with TorchRL? Run: python -m examples.train_torchrl."""

import torch
from torchrl.collectors import Collector
from torchrl.modules import MLP, NormalParamExtractor, ProbabilisticActor, SafeModule, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss

from adapters.torchrl import CryptoEnv

torch.manual_seed(0)
trend = torch.sign(torch.sin(torch.arange(4000) / 20.0))[:, None]  # +1 in a rising market, -1 in a falling one
price = 100.0 * torch.exp(torch.cumsum(0.002 * trend + 0.005 * torch.randn(4000, 3), 0))
env = CryptoEnv({"price_array": price, "tech_array": trend}, {"rules": "standard", "lookback": 1}, 64, episode_bars=100)
net = SafeModule(torch.nn.Sequential(MLP(5, 6, 1, 64), NormalParamExtractor()), ["observation"], ["loc", "scale"])
actor = ProbabilisticActor(net, ["loc", "scale"], distribution_class=TanhNormal, return_log_prob=True)
loss = ClipPPOLoss(actor, ValueOperator(MLP(5, 1, 1, 64)), normalize_advantage=True)
loss.make_value_estimator(gamma=0.9, lmbda=0.95)
optimizer = torch.optim.Adam(loss.parameters(), lr=3e-3)
for data in Collector(env, actor, frames_per_batch=2048, total_frames=81_920, auto_register_policy_transforms=False):
    for _ in range(12):
        optimizer.zero_grad()
        loss(data).select("loss_objective", "loss_critic", "loss_entropy").sum(reduce=True).backward()
        optimizer.step()
print(f"mean account value {env.env.episode_return.mean():.3f} times the initial capital")
