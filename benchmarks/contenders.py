"""Environments that the benchmarks compare: this repository's and those of other libraries, on one market.

The market has seven coins, 30,000 bars, 77 feature columns and lookback 5, so an observation has 393 numbers. All
actions are drawn in advance. Environments without autoreset are reset when their episode ends.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import Local, waiter
from environment_Alpaca import CryptoEnvAlpaca
from environment_Alpaca_vectorized import VectorizedCryptoEnvAlpaca, VectorizedCryptoEnvAlpacaOptimized

N_ASSETS, N_FEATURES, LOOKBACK, N_BARS = 7, 77, 5, 30_000
STATE_DIM = 1 + N_ASSETS + LOOKBACK * N_FEATURES
FIRST_PRICE = (95.0, 34.0, 43_000.0, 14.5, 2_300.0, 68.0, 6.4)
NORMS = {"norm_cash": 2.0**-12, "norm_stocks": 2.0**-8, "norm_tech": 2.0**-6, "norm_reward": 2.0**-10}
RULES: dict[str, dict[str, Any]] = {
    "cappuccino": {"rules": "cappuccino", "lookback": LOOKBACK, "norm_action": 4.0, **NORMS},
    "standard": {"rules": "standard", "lookback": LOOKBACK},
}
N_ACTIONS = 32  # drawn in advance; each call of a contender takes all of them

PEER = "elegantrl StockTradingVmapEnv"
FAST, PLAIN, SCALAR = "VectorizedCryptoEnvAlpacaOptimized", "VectorizedCryptoEnvAlpaca", "CryptoEnvAlpaca"
TRADING_ENV = "gym-trading-env TradingEnv"


def market(seed: int = 0) -> dict[str, Any]:
    """Return random walks and noise; the cost of a step does not depend on the values of the bars."""
    rng = np.random.default_rng(seed)
    price = np.array(FIRST_PRICE) * np.exp(np.cumsum(rng.normal(0.0, 0.002, (N_BARS, N_ASSETS)), axis=0))
    return {"price_array": price, "tech_array": rng.normal(0.0, 1.0, (N_BARS, N_FEATURES))}


@cache
def config() -> dict[str, Any]:
    """Return the market, generated once per process."""
    return market()


def drawn_actions(*shape: int) -> np.ndarray:
    """Return random actions (N_ACTIONS, *shape), float32 in [-1, 1]."""
    return np.random.default_rng(1).random((N_ACTIONS, *shape), dtype=np.float32) * 2.0 - 1.0


def tensor_actions(n_envs: int, device: torch.device | str = "cpu") -> tuple[torch.Tensor, ...]:
    """Return N_ACTIONS action tensors (N, A)."""
    return torch.as_tensor(drawn_actions(n_envs, N_ASSETS), device=device).unbind()


def scalar_env(rules: str, seed: int = 0, start: str = "random") -> CryptoEnvAlpaca:
    """Return one account of the scalar class."""
    return CryptoEnvAlpaca(config(), RULES[rules], seed=seed, start=start)


def batched_env(fast: bool, rules: str, n_envs: int, start: str = "random", gpu: int = -1) -> Any:
    """Return a vectorized environment with N accounts and the tensor interface."""
    env_class = VectorizedCryptoEnvAlpacaOptimized if fast else VectorizedCryptoEnvAlpaca
    return env_class(config(), RULES[rules], n_envs, start=start, gpu_id=gpu, as_numpy=False)


def random_layers(width: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return weights and biases of a network with two hidden layers, from observation to actions."""
    generator = torch.Generator().manual_seed(seed)
    sizes = pairwise((STATE_DIM, width, width, N_ASSETS))
    return [(torch.randn((b, a), generator=generator) / a**0.5, torch.zeros(b)) for a, b in sizes]


def stepping(env: Any, actions: Sequence[Any]) -> Callable[[], None]:
    """Return a function that takes every action once, for environments with autoreset."""

    def work() -> None:
        step = env.step
        for action in actions:
            step(action)

    env.reset()
    return work


def stepping_one(env: Any, actions: Sequence[Any]) -> Callable[[], None]:
    """Return a function that takes every action once, for one environment with the Gymnasium interface."""

    def work() -> None:
        for action in actions:
            *_, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    env.reset()
    return work


def timed(name: str, n_envs: int, work: Callable[[], None], gpu: int = -1) -> Local:
    """Return a contender whose call takes all actions; on a GPU at least 200 steps are timed together."""
    return Local(name, n_envs, work, N_ACTIONS * n_envs, waiter(gpu), -(-200 // N_ACTIONS) if gpu >= 0 else 1)


def batched(fast: bool, rules: str, n_envs: int, start: str = "random", gpu: int = -1) -> Local:
    """Return a contender of the vectorized classes."""
    env = batched_env(fast, rules, n_envs, start, gpu)
    bars = {"random": "random bars", "first": "one bar"}[start]
    name = f"{FAST if fast else PLAIN}, {rules}, {bars}"
    return timed(name, n_envs, stepping(env, tensor_actions(n_envs, env.device)), gpu)


def scalar_loop(rules: str, n_envs: int) -> Local:
    """Return a contender that steps scalar environments in a Python loop."""
    envs = [scalar_env(rules, seed) for seed in range(n_envs)]
    for env in envs:
        env.reset()
    actions = drawn_actions(n_envs, N_ASSETS)

    def work() -> None:
        for rows in actions:
            for env, action in zip(envs, rows, strict=True):
                if env.step(action)[2]:
                    env.reset()

    return timed(f"{SCALAR}, {rules}, Python loop", n_envs, work)


def empty_step(n_envs: int) -> Local:
    """Return a Python call that returns existing tensors: an upper bound for any step that returns tensors."""
    answer = (torch.zeros(n_envs, STATE_DIM), torch.zeros(n_envs), torch.zeros(n_envs, dtype=torch.bool), {})

    class Nothing:
        def reset(self) -> torch.Tensor:
            return answer[0]

        def step(self, action: torch.Tensor) -> tuple[Any, ...]:
            return answer

    return timed("empty Python step", n_envs, stepping(Nothing(), tensor_actions(n_envs)))


# --------------------------------------------------------------------------------------------------- gymnasium
def gymnasium_env(rules: str, seed: int) -> Any:
    """Return the scalar class with the Gymnasium interface."""
    import gymnasium

    class ScalarEnv(gymnasium.Env):
        """Thin wrapper that renames fields and separates terminated from truncated."""

        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (STATE_DIM,), np.float32)
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (N_ASSETS,), np.float32)

        def __init__(self) -> None:
            self.env = scalar_env(rules, seed)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
            return self.env.reset(), {}

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            state, reward, done, info = self.env.step(action)
            truncated = bool(info["truncated"])
            return state, reward, done and not truncated, truncated, {}

    return ScalarEnv()


def gymnasium_vector(kind: str, rules: str, n_envs: int) -> Local:
    """Return Gymnasium's vector environment over the scalar class; `kind` is "Sync" or "Async".

    The workers of "Async" are forked, so they share the market's arrays. They are idle between their turns.
    """
    import gymnasium

    makers = [(lambda seed=seed: gymnasium_env(rules, seed)) for seed in range(n_envs)]
    if kind == "Sync":
        env = gymnasium.vector.SyncVectorEnv(makers)
    else:
        config()  # before the fork
        env = gymnasium.vector.AsyncVectorEnv(makers, context="fork")
    work = stepping(env, list(drawn_actions(n_envs, N_ASSETS)))
    return timed(f"gymnasium {kind}VectorEnv over {SCALAR}, {rules}", n_envs, work)


# --------------------------------------------------------------------------------------------------- other libraries
def elegantrl_vmap(n_envs: int) -> Local:
    """Return the vectorized stock environment of elegantrl 0.3.6, used as its authors use it.

    It normally reads its market from a file. Here it receives arrays in memory, wide enough to match the width of our
    observation. All its environments share one bar index by design. It has no autoreset, so it is reset at its last
    bar, as in elegantrl's own example.
    """
    from elegantrl.envs.StockTradingVmapEnv import StockTradingVmapEnv

    rng = np.random.default_rng(2)
    # its observation has cash, shares and closes in addition to the features
    features = rng.normal(0.0, 30.0, (N_BARS, STATE_DIM - 1 - 2 * N_ASSETS))
    closes = 50.0 * np.exp(np.cumsum(rng.normal(0.0, 0.002, (N_BARS, N_ASSETS)), axis=0))

    class InMemory(StockTradingVmapEnv):
        def load_data_from_disk(self, tech_id_list: Any = None) -> tuple[np.ndarray, np.ndarray]:
            return closes, features

    with contextlib.redirect_stdout(None), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # from functorch's vmap
        env = InMemory(beg_idx=0, end_idx=N_BARS, gpu_id=-1, num_envs=n_envs)
    assert env.reset().shape == (n_envs, STATE_DIM)
    actions = tensor_actions(n_envs)
    last_day = env.max_step - 1

    def work() -> None:
        for action in actions:
            env.step(action)
            if env.day == last_day:
                env.reset()

    return timed(PEER, n_envs, work)


def gym_trading_env() -> Local:
    """Return gym-trading-env's TradingEnv: one asset, a window of 5 bars with 77 features, random positions."""
    import pandas as pd

    with warnings.catch_warnings():  # its import turns every warning of the process into an error
        from gym_trading_env.environments import TradingEnv

    rng = np.random.default_rng(3)
    close = 100.0 * np.exp(np.cumsum(rng.normal(0.0, 0.002, N_BARS)))
    columns = {f"feature_{k}": rng.normal(size=N_BARS) for k in range(N_FEATURES)}
    prices = {"open": close, "high": close * 1.001, "low": close * 0.999, "close": close}
    frame = pd.DataFrame(prices | columns, index=pd.date_range("2024-01-01", periods=N_BARS, freq="5min"))
    env = TradingEnv(frame, positions=[0, 0.5, 1], windows=LOOKBACK, trading_fees=0.0025, verbose=0)
    work = stepping_one(env, rng.integers(0, 3, N_ACTIONS).tolist())
    return timed(f"{TRADING_ENV}, one asset", 1, work)


def is_installed(module: str) -> bool:
    """Return True if an optional package is installed."""
    return find_spec(module) is not None
