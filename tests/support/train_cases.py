"""Small runs of the training loop."""

from __future__ import annotations

from typing import Any

from tests.support.markets import random_config
from train.config import TrainConfig

ENV_PARAMS = {"rules": "standard", "lookback": 2}


def small_market(**more: Any) -> dict[str, Any]:
    """300 bars of 2 assets."""
    return random_config(300, 2, 3, tickers=["BTC", "ETH"], **more)


def small_settings(**changes: Any) -> TrainConfig:
    """A run of a second."""
    settings = {
        "n_envs": 4, "total_env_steps": 512, "horizon_len": 32, "net_dims": (16, 16), "batch_size": 64,
        "n_epochs": 2, "eval_every_updates": 2, "episode_bars": 40, "warmup_env_steps": 64, "buffer_size": 1000,
    }  # fmt: skip
    return TrainConfig(**{**settings, **changes})


def band_settings(**changes: Any) -> TrainConfig:
    """The same for the band, whose windows are no shorter than 1000 bars."""
    return small_settings(**{"agent": "band", "horizon_len": 1_000, "episode_bars": None, **changes})
