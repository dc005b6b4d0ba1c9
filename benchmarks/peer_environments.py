"""Step an environment of another project in its own interpreter. `benchmarks/peers.py` starts this program.

The program imports only NumPy and one peer, because the dependencies of peers conflict with those of this repository.
It first prints the version of the peer, or the reason why the peer cannot run. It then reads one duration in seconds
per line and prints a rate in environment steps per second for each.

The market has 30,000 five-minute bars. A peer that trades several coins gets 7 of them, and the others get one. There
are 77 feature columns, with a window of 5 bars if the peer supports windows, so an observation has about 390 numbers.
Actions are random and drawn in advance. An environment that does not reset itself is reset when its episode ends.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import runpy
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

N_ASSETS, N_FEATURES, LOOKBACK, N_BARS, N_ACTIONS = 7, 77, 5, 30_000, 32
FEE, SLIPPAGE = 0.0025, 0.0005
Work = Callable[[], None]  # performs N_ACTIONS steps of all environments


def closes(n_assets: int) -> np.ndarray:
    """Return random-walk closing prices, shape (N_BARS, n_assets)."""
    rng = np.random.default_rng(0)
    return 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.002, (N_BARS, n_assets)), axis=0))


def features() -> np.ndarray:
    """Return noise features, shape (N_BARS, N_FEATURES)."""
    return np.random.default_rng(1).normal(0.0, 1.0, (N_BARS, N_FEATURES))


def ohlc_frame(prefix: str, with_timestamp: bool = False) -> Any:
    """Return one coin's bars and features as a pandas frame; feature columns begin with `prefix`."""
    import pandas as pd

    close = closes(1)[:, 0]
    prices = {"open": close, "high": close * 1.001, "low": close * 0.999, "close": close, "volume": np.ones(N_BARS)}
    columns = {f"{prefix}{number}": column for number, column in enumerate(features().T)}
    index = pd.date_range("2024-01-01", periods=N_BARS, freq="5min")
    if with_timestamp:
        return pd.DataFrame({"timestamp": index} | prices | columns)
    return pd.DataFrame(prices | columns, index=index)


def discrete_actions(n_actions: int) -> list[int]:
    """Return N_ACTIONS random action numbers below `n_actions`."""
    return np.random.default_rng(2).integers(0, n_actions, N_ACTIONS).tolist()


def gym_trading_env(n_envs: int) -> Work:
    """Return a function that steps gym-trading-env's TradingEnv with one coin and three positions."""
    from gym_trading_env.environments import TradingEnv

    env = TradingEnv(ohlc_frame("feature_"), positions=[0, 0.5, 1], windows=LOOKBACK, trading_fees=FEE, verbose=0)
    return gymnasium_work(env, discrete_actions(3))


def gymnasium_work(env: Any, actions: list[int]) -> Work:
    """Return a function that steps a Gymnasium environment through `actions` and resets it after each episode."""
    env.reset()

    def work() -> None:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    return work


def finrl(n_envs: int) -> Work:
    """Return a function that steps FinRL's CryptoEnv.

    The module is loaded from its file, because `import finrl` also imports brokers, Ray and stable-baselines3.
    """
    package = find_spec("finrl")
    assert package is not None
    assert package.submodule_search_locations is not None
    file = Path(package.submodule_search_locations[0]) / "meta/env_cryptocurrency_trading/env_multiple_crypto.py"
    env = runpy.run_path(str(file))["CryptoEnv"](
        {"price_array": closes(N_ASSETS), "tech_array": features()}, lookback=LOOKBACK
    )
    env.reset()
    actions = np.random.default_rng(2).random((N_ACTIONS, N_ASSETS)) * 2.0 - 1.0

    def work() -> None:
        for action in actions:
            if env.step(action.copy())[2]:  # the environment scales the actions in place
                env.reset()

    return work


def elegantrl(n_envs: int) -> Work:
    """Return a function that steps elegantrl's StockTradingVmapEnv, with the market in memory instead of a file."""
    import torch
    from elegantrl.envs.StockTradingVmapEnv import StockTradingVmapEnv

    noise = np.random.default_rng(1).normal(0.0, 30.0, (N_BARS, LOOKBACK * N_FEATURES - N_ASSETS))
    market = (closes(N_ASSETS), noise)
    torch.set_grad_enabled(False)  # elegantrl's own exploration also runs without gradients

    class InMemory(StockTradingVmapEnv):
        def load_data_from_disk(self, tech_id_list: Any = None) -> tuple[np.ndarray, np.ndarray]:
            return market

    env = InMemory(beg_idx=0, end_idx=N_BARS, gpu_id=-1, num_envs=n_envs)
    env.reset()
    actions = torch.rand((N_ACTIONS, n_envs, N_ASSETS), generator=torch.Generator().manual_seed(2)) * 2.0 - 1.0
    last_day = env.max_step - 1

    def work() -> None:
        for action in actions:
            env.step(action)
            if env.day == last_day:
                env.reset()

    return work


def torchtrade(n_envs: int) -> Work:
    """Return a function that steps TorchTrade's VectorizedSequentialTradingEnv: one coin, five-minute bars, spot."""
    import torch
    from tensordict import TensorDict
    from torchtrade.envs.offline.vectorized_sequential import (
        VectorizedSequentialTradingEnv,
        VectorizedSequentialTradingEnvConfig,
    )

    torch.set_grad_enabled(False)
    config = VectorizedSequentialTradingEnvConfig(
        num_envs=n_envs,
        time_frames="5Min",
        window_sizes=LOOKBACK,
        execute_on="5Min",
        transaction_fee=FEE,
        slippage=SLIPPAGE,
        action_levels=[0, 0.5, 1],
    )
    frame = ohlc_frame("features_", with_timestamp=True)
    env = VectorizedSequentialTradingEnv(frame, config, feature_preprocessing_fn=lambda bars: bars.reset_index())
    generator = torch.Generator().manual_seed(2)
    drawn = torch.randint(0, 3, (N_ACTIONS, n_envs), generator=generator)
    state = env.reset()

    def work() -> None:
        nonlocal state
        for action in drawn:
            # as in TorchRL's rollout: step, then reset the environments that are done
            state.set("action", action)
            _, state = env.step_and_maybe_reset(state)

    assert isinstance(state, TensorDict)
    return work


def freqtrade(n_envs: int) -> Work:
    """Return a function that steps freqtrade's Base5ActionRLEnv, with a reward class as in its documentation."""
    from freqtrade.freqai.RL.Base5ActionRLEnv import Base5ActionRLEnv

    class ProfitPerBar(Base5ActionRLEnv):
        def calculate_reward(self, action: int) -> float:
            return float(self.get_unrealized_profit())

    bars = ohlc_frame("%-")
    env = ProfitPerBar(
        df=bars[[name for name in bars if name.startswith("%-")]],
        prices=bars[["open", "high", "low", "close"]],
        reward_kwargs={"rr": 1, "profit_aim": 0.025},
        window_size=LOOKBACK,
        config={"freqai": {"rl_config": {}}, "stake_amount": "unlimited"},
        fee=FEE,
        df_raw=bars,
    )
    return gymnasium_work(env, discrete_actions(5))


PEERS: dict[str, tuple[Callable[[int], Work], str]] = {
    "gym-trading-env": (gym_trading_env, "gym-trading-env"),
    "FinRL": (finrl, "finrl"),
    "ElegantRL": (elegantrl, "elegantrl"),
    "TorchTrade": (torchtrade, "torchtrade"),
    "freqtrade": (freqtrade, "freqtrade"),
}


def rate(work: Work, n_envs: int, seconds: float) -> float:
    """Return environment steps per second over at least `seconds`."""
    n_calls, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        work()
        n_calls += 1
    return n_calls * N_ACTIONS * n_envs / elapsed


def main() -> None:
    """Step the peer and number of environments from the command line, for each duration on standard input."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("n_envs", type=int)
    arguments = parser.parse_args()
    make, distribution = PEERS[arguments.peer]
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()):
        work = make(arguments.n_envs)
        work()
    print(version(distribution), flush=True)
    for line in sys.stdin:
        print(rate(work, arguments.n_envs, float(line)), flush=True)


if __name__ == "__main__":
    main()
