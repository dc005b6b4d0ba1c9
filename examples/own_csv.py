"""How do I turn my own CSV into an environment? Run: python -m examples.own_csv [FILE.csv]."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import barwise

path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()) / "bars.csv"
if not path.exists():  # write a valid file: opening times in UTC, one row per bar and coin
    rng, times = np.random.default_rng(0), pd.date_range("2024-01-01", periods=2000, freq="1h", tz="UTC")
    tables = []
    for symbol in ("BTC/USD", "ETH/USD"):
        close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.01, len(times))))
        prices = {"open": close, "high": close * 1.001, "low": close * 0.999, "close": close}
        tables.append(pd.DataFrame({"timestamp": times, "symbol": symbol, **prices, "volume": 10.0}))
    pd.concat(tables).to_csv(path, index=False)

bars = barwise.read_bars(path)
tickers = [str(symbol) for symbol in bars["symbol"].unique()]
dataset = barwise.dataset_from_bars(bars, tickers, "1h", source=path.name, synthetic=len(sys.argv) < 2)
env = barwise.VectorizedCryptoEnvAlpacaOptimized(
    dataset.env_config(), {"rules": "standard", "lookback": 4}, n_envs=8, gpu_id=-1
)
state = env.reset()
state, reward, done, info = env.step(torch.zeros(8, env.action_dim))
print(dataset.label)
print(f"observations {tuple(state.shape)}, features of a bar: {', '.join(dataset.feature_names[:3])}, ...")
