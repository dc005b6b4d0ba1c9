"""Columns that know the future in every form, and datasets with the record that a check leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from market.dataset import Dataset, make_dataset
from market.lookahead_record import LookaheadRecord

LAGS = (1, 12, 48, 288, 2016)


def as_checked(dataset: Dataset, **fields) -> Dataset:
    """The dataset as if its features had been made again from cut bars."""
    values = {"bars_sha256": "b" * 64, "cuts": 1} | fields
    return replace(dataset, lookahead=LookaheadRecord(dataset_sha256=dataset.sha256, **values).sealed())


def leaks(close: np.ndarray, lag: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns (T,) that are made of the next `lag` bars; what the end lacks repeats the last close."""
    log_price = np.log(close)
    later = np.minimum(np.arange(len(close)) + lag, len(close) - 1)
    move = log_price[later] - log_price
    spread, random = move.std(), np.random.default_rng(seed)
    sizes = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(log_price, prepend=log_price[0])))])
    return {
        "return": move,
        "sign": np.sign(move),
        "rank": pd.Series(move).rank(pct=True).to_numpy(),
        "scaled": 1e4 * move - 7.0,
        "bounded": np.tanh(3.0 * move / spread),
        "clipped": np.clip(move, -0.2 * spread, 0.2 * spread),
        "noisy": move + spread * random.standard_normal(len(close)),
        "level": close[later],
        "ratio": close[later] / close,
        "volatility": (sizes[later + 1] - sizes[np.arange(len(close)) + 1]) / lag,
    }


def with_columns(dataset: Dataset, columns: Mapping[str, np.ndarray]) -> Dataset:
    """The first coin of the dataset with these columns (T,) in place of its features: made by hand."""
    coin = dataset.tickers[0]
    return make_dataset(
        price=dataset.price[:, :1],
        tech=np.stack(list(columns.values()), axis=1).astype(np.float32),
        time=dataset.time,
        tickers=(coin,),
        feature_names=tuple(f"{coin}:{name}" for name in columns),
        bar_seconds=dataset.bar_seconds,
        segments=dataset.segments,
        source=dataset.source,
        synthetic=dataset.synthetic,
    )
