"""How do I record every trade? Run: python -m examples.trade_log."""

import csv
import sys

import torch

import barwise

dataset = barwise.synthetic_dataset("1h", 500, ("BTC", "ETH"))
env_params = {"rules": "standard", "lookback": 4, "start": "first"}
env = barwise.VectorizedCryptoEnvAlpacaOptimized(dataset.env_config(), env_params, n_envs=4, gpu_id=-1)
torch.manual_seed(0)
env.reset()
log = csv.writer(sys.stdout)
log.writerow(["bar_close_utc_s", "account", "coin", "quantity", "price", "equity"])
for _ in range(5):
    state, reward, done, info = env.step(torch.randn(4, env.action_dim).clamp(-1.0, 1.0))
    for account, coin in env.filled.nonzero().tolist():  # env.filled (N, A): coins bought minus coins sold
        bar = int(env.time[account])  # row of the dataset at whose close the order was filled
        quantity, price = float(env.filled[account, coin]), float(dataset.price[bar, coin])
        place = (int(dataset.time[bar]), account, dataset.tickers[coin])
        log.writerow([*place, f"{quantity:.6f}", f"{price:.2f}", f"{info['equity'][account].item():.2f}"])
