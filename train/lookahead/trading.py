"""Look-ahead analysis of trading on a dataset: every environment of this project with a policy or a probe.

A dataset folder holds features but not the bars they were computed from, so this analysis does not cover the
computation of features. `market.lookahead` checks that computation on bars, and `market.foresight` checks it with
correlations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from market.dataset import Dataset
from market.errors import DatasetError
from market.names import timeframe_name
from market.times import utc_text
from train.env_factory import env_class_for, make_env
from train.lookahead.accounts import (
    PROBE_RULES,
    Act,
    EnvReport,
    analyse_env,
    observation_column,
    probe_policy,
    saved_policy,
    stretch,
    stretch_bars,
)
from train.study.venue import venue_env


@dataclass(frozen=True)
class TradingReport:
    """Result of the analysis of all environments."""

    dataset: Dataset  # with the policy's coins
    env_params: dict[str, Any]
    rows: tuple[int, int]  # rows of the dataset that were traded
    reports: dict[str, EnvReport]  # environment -> report

    def findings(self) -> Iterator[str]:
        """Yield one line per environment with look-ahead."""
        for name, report in self.reports.items():
            if (found := report.first) is not None:
                names = self.env_params, self.dataset.tickers, self.dataset.feature_names
                what = f" ({observation_column(found.column, *names)})" if found.field == "observation" else ""
                at = utc_text(self.dataset.time[self.rows[0] + found.bar])
                yield f"{name}, {at}: {found}{what}; bar 0 is row {self.rows[0]}"

    def lines(self) -> Iterator[str]:
        """Yield the lines of a summary for a terminal."""
        first, last = (utc_text(self.dataset.time[row]) for row in (self.rows[0], self.rows[1] - 1))
        yield f"trading {first} .. {last} under the {self.env_params['rules']} rules"
        yield from (f"  {name}: {report}" for name, report in self.reports.items())
        yield "  the computation of the features was not checked; pass their bars with --bars"


def analyse_trading(
    dataset: Dataset,
    policy_file: Path | None,
    environments: Sequence[type],
    n_steps: int,
    n_cuts: int,
    seed: int,
    on_run: Callable[[], object] = lambda: None,
) -> TradingReport:
    """Trade part of the longest segment in every environment, then again with later bars changed.

    Args:
        dataset: dataset to trade.
        policy_file: policy whose coins and rules are used; None uses a probe under `PROBE_RULES` and the venue's fees.
        environments: environment classes with the hosts' constructor.
        n_steps: length of the stretch; shorter if the segment is shorter.
        n_cuts: number of bars after which the data are changed.
        seed: seed of the stretch, the probe, the cuts and the changed data.
        on_run: function called after each of the 2 * n_cuts + 1 runs per environment.
    """
    dataset, env_params, act = _probed(dataset, seed) if policy_file is None else _with_policy(dataset, policy_file)
    first, last = max(dataset.segments, key=lambda segment: segment[1] - segment[0])
    length = min(last - first, stretch_bars(env_params, n_steps))
    start = first + int(np.random.default_rng(seed).integers(last - first - length + 1))
    config, reports = stretch(dataset.env_config(), start, start + length), {}
    for kind in environments:
        new = partial(make_env, kind, env_params=env_params, start="first", gpu_id=-1)
        reports[kind.__name__] = analyse_env(new, act, config, env_params, n_cuts, seed, on_run)
    return TradingReport(dataset, env_params, (start, start + length), reports)


def _probed(dataset: Dataset, seed: int) -> tuple[Dataset, dict[str, Any], Act]:
    env_params = PROBE_RULES | venue_env(dataset, None)
    return dataset, env_params, probe_policy(_state_dim(dataset, env_params), len(dataset.tickers), seed)


def _with_policy(dataset: Dataset, path: Path) -> tuple[Dataset, dict[str, Any], Act]:
    """Return the dataset with the policy's coins, the policy's rules, and the policy."""
    try:
        act, width, facts = saved_policy(path)
    except ValueError as error:
        raise DatasetError(f"--policy {error}") from error
    tickers, env_params = tuple(facts.get("tickers") or dataset.tickers), facts.get("env_params")
    absent = sorted(set(tickers) - set(dataset.tickers))
    if not env_params or absent:
        reason = f"trades {', '.join(absent)}, which the dataset lacks" if absent else "does not contain its rules"
        raise DatasetError(f"--policy {path}: {reason}; give another policy or dataset")
    dataset = dataset.with_tickers(tickers) if tickers != dataset.tickers else dataset
    if facts.get("bar_seconds") not in (None, dataset.bar_seconds):
        theirs = timeframe_name(facts["bar_seconds"])
        ours = timeframe_name(dataset.bar_seconds)
        raise DatasetError(f"--policy {path}: trades {theirs} bars, but the dataset has {ours} bars")
    if facts.get("feature_names") not in (None, list(dataset.feature_names)):
        raise DatasetError(f"--policy {path}: was trained on feature columns that differ from those of the dataset")
    state_dim = _state_dim(dataset, env_params)
    if state_dim != width:
        raise DatasetError(f"--policy {path}: expects {width} observation values; the dataset gives {state_dim}")
    return dataset, env_params, act


def _state_dim(dataset: Dataset, env_params: dict[str, Any]) -> int:
    """Return the width of an observation of the dataset under these rules."""
    try:
        return make_env(env_class_for(1), dataset.env_config(), env_params).state_dim
    except ValueError as error:
        raise DatasetError(f"{dataset.label}: trading failed ({error})") from error
