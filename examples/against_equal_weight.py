"""Does my policy beat the equal-weight portfolio? Run: python -m examples.against_equal_weight."""

import numpy as np
import torch

from train.evaluator import evaluate_policy
from train.validation.metrics import bar_returns, measure

trend = np.sign(np.sin(np.arange(4000) / 20.0))[:, None]  # +1 in a rising market, -1 in a falling one
price = 100.0 * np.exp(np.cumsum(0.002 * trend + np.random.default_rng(0).normal(0.0, 0.005, (4000, 3)), axis=0))
config, env_params = {"price_array": price, "tech_array": trend}, {"rules": "standard", "lookback": 1}


def follow_the_trend(state: torch.Tensor) -> torch.Tensor:
    """Return actions (N, A): buy in a rising market, sell in a falling one. The last column is the trend."""
    return state[:, -1:].sign().expand(-1, 3)


(record,) = evaluate_policy(follow_the_trend, config, env_params)  # one record per segment of bars
for name, equity in (("policy", record.equity), ("equal weight", record.benchmark_equity)):
    figures = measure([equity], bars_per_year=365 * 24)
    print(f"{name:>12}: return {figures.total_return:+.1%}, Sharpe {figures.sharpe:+.2f}, "
          f"drawdown {figures.max_drawdown:.1%}")  # fmt: skip
lead = bar_returns(record.equity) - bar_returns(record.benchmark_equity)
print(f"mean excess return per bar {lead.mean():+.5f}, standard error {lead.std() / len(lead) ** 0.5:.5f}")
