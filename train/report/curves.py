"""Test paths of a trial and their benchmarks, read from the results folder.

A path contains every tested bar once and takes each test fold from one split (`recombined_paths`). Every test fold
starts a new account, so the curve of a path compounds these accounts. The verdict on a study does not use paths; see
`train.findings.returns`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from train.findings.returns import Columns
from train.records.defaults import RANDOM_DRAWS
from train.records.errors import StudyError
from train.records.results import UNREADABLE, read_closes, read_equity, read_filled, split_folder
from train.records.stored import FoldBars, TrialSettings
from train.report.paths import QUANTILES, PathView, RandomOrders
from train.study.attainable import Tradable, attainable, tradable
from train.validation.benchmarks import (
    buy_and_hold_each,
    draw_streams,
    equal_weight,
    measure_accounts,
    random_orders,
    with_trades_of,
)
from train.validation.break_even import TradedSegment
from train.validation.metrics import measure
from train.validation.splits import Split, SplitError, recombined_paths

logger = logging.getLogger(__name__)

PAGE_SEED = 0  # seed of the random orders, the default of 2_validate.py


def read_split(folder: Path, trial_number: int, fold: int) -> Columns | None:
    """Return the equity file of a split, or None if the file is missing or damaged. The reason is logged."""
    path = split_folder(folder, trial_number, fold) / "equity.npz"
    try:
        return read_equity(path)
    except StudyError as error:
        logger.warning("report: file ignored: %s", error)
        return None


# ---------------------------------------------------------------------------------------------------------------- paths
@dataclass(frozen=True)
class Market:
    """Prices and costs from which benchmarks are computed."""

    bars: Tradable
    tickers: tuple[str, ...]


def read_market(folder: Path, timeframe: str, settings: TrialSettings) -> Market | None:
    """Return the closing prices and costs of a trial, or None if they were not kept. The reason is logged."""
    try:
        digest, rules = settings.data.sha256, settings.env_resolved
        if rules is None:
            raise StudyError("settings.json does not contain the trading costs")
        close, tickers = read_closes(folder, timeframe, digest)
        bars = tradable(close, read_filled(folder, timeframe, digest), rules)
    except UNREADABLE as error:
        logger.warning("report: buy and hold, random orders and hindsight optimum omitted: %s", error)
        return None
    return Market(bars, tickers)


def tested_paths(
    splits: Mapping[int, Columns], folds: Sequence[FoldBars], market: Market | None, bars_per_year: float
) -> tuple[list[PathView], str]:
    """Return every full path whose splits are all available, and a note for the reader.

    Args:
        splits: split index -> columns of its equity file, for one trial.
        folds: folds from the trial's settings.
        market: prices and costs for benchmarks; if None, the only benchmark is equal weight.
        bars_per_year: number of bars per year at the actual bar spacing.
    """
    plan = [_as_split(fold) for fold in folds]
    try:
        paths = recombined_paths(plan)
        note = "each path contains every tested bar once"
    except SplitError as error:
        paths = tuple(tuple((i, b) for b in range(len(split.test))) for i, split in enumerate(plan))
        note = f"one path per split, because no full path exists ({error})"
    views = []
    for number, parts in enumerate(paths):
        if not all(i in splits for i, _ in parts):
            continue
        found = [pair for i, b in parts for pair in _blocks(splits[i], i, plan[i].test[b])]
        if found:
            blocks, streams = zip(*found, strict=True)
            origin = ", ".join(str(i) for i in dict.fromkeys(i for i, _ in parts))
            view = _view(f"Path {number + 1} of {len(paths)}", f"test folds of splits {origin}", blocks, bars_per_year)
            views.append(view if market is None else _with_benchmarks(view, blocks, streams, market, bars_per_year))
    missing = len(paths) - len(views)
    return views, note + (f"; {missing} not shown, because files are missing" if missing else "")


def _as_split(fold: FoldBars) -> Split:
    return Split((), fold.test, fold.test_groups)


def _blocks(columns: Columns, fold: int, block: tuple[int, int]) -> list[tuple[Columns, np.random.Generator]]:
    """Return the segments of an equity file inside a test block, each with the generator of its random orders.

    The generators are the same as in `benchmarks_of`, so the page and 2_validate.py draw the same accounts.
    """
    parts = accounts(columns)
    streams = draw_streams((PAGE_SEED, fold), len(parts))
    return [pair for pair in zip(parts, streams, strict=True) if block[0] <= pair[0]["bar"][-1] < block[1]]


def accounts(columns: Columns) -> list[Columns]:
    """Split the columns of an equity file into segments, each of which is a new account."""
    rows = [columns["segment"] == number for number in np.unique(columns["segment"])]
    return [{name: column[of_one] for name, column in columns.items()} for of_one in rows]


def held(account: Columns) -> np.ndarray:
    """Return the equity of equal weight from the account's starting cash, so that the first return includes fees."""
    return np.concatenate([account["equity"][:1], account["benchmark_equity"][1:]])


def _view(title: str, origin: str, blocks: Sequence[Columns], bars_per_year: float) -> PathView:
    others = [held(b) for b in blocks]
    agent = measure(
        [b["equity"] for b in blocks],
        bars_per_year,
        turnover_notional=[b["turnover"][1:] for b in blocks],
        fees_quote=[b["fees"][1:] for b in blocks],
        trades=[b["trades"][1:] for b in blocks],
        exposure=[b["exposure"] for b in blocks],
    )
    return PathView(
        title=title,
        origin=origin,
        time_s=np.concatenate([b["time_s"] for b in blocks]),
        starts_s=np.array([b["time_s"][0] for b in blocks]),
        agent=compounded([b["equity"] for b in blocks]),
        equal_weight=compounded(others),
        agent_figures=agent,
        equal_weight_figures=measure(others, bars_per_year),
    )


def _with_benchmarks(
    view: PathView,
    blocks: Sequence[Columns],
    streams: Sequence[np.random.Generator],
    market: Market,
    bars_per_year: float,
) -> PathView:
    random = [
        random_orders(market.bars.close[b["bar"]], b["turnover"][1:], market.bars.costs, RANDOM_DRAWS, stream)
        for b, stream in zip(blocks, streams, strict=True)
    ]
    drawn = measure_accounts(random, bars_per_year)
    closes, costs = [market.bars.close[b["bar"]] for b in blocks], market.bars.costs
    coins = [buy_and_hold_each(close, costs) for close in closes]
    equal = measure_accounts([equal_weight(close, costs) for close in closes], bars_per_year).at()
    wanted = float(sum(b["turnover"][1:].sum() for b in blocks))
    curves = np.stack([compounded([account.equity[k] for account in random]) for k in range(RANDOM_DRAWS)])
    batch = measure_accounts(coins, bars_per_year)
    segments = [TradedSegment(b["equity"], b["benchmark_equity"], b["turnover"][1:], b["fees"][1:]) for b in blocks]
    reached = attainable(segments, [b["bar"] for b in blocks], market.bars)
    return replace(
        view,
        hindsight_growth=reached.hindsight_growth,
        of_hindsight=reached.of_hindsight,
        break_even_cost=reached.break_even_cost,
        coins={name: compounded([c.equity[a] for c in coins]) for a, name in enumerate(market.tickers)},
        coin_figures={name: batch.at(a) for a, name in enumerate(market.tickers)},
        equal_weight_figures=with_trades_of(view.equal_weight_figures, equal),
        random=RandomOrders(
            quantiles=np.quantile(curves, QUANTILES, axis=0),
            sharpe=drawn.sharpe,
            exposure=float(np.mean(drawn.exposure)),
            traded_share=float(np.mean(sum(a.turnover.sum(axis=1) for a in random))) / wanted if wanted > 0.0 else 1.0,
            returns_less=float(np.mean(drawn.total_return < view.agent_figures.total_return)),
            sharpe_below=float(np.mean(drawn.sharpe < view.agent_figures.sharpe)),
        ),
    )


def compounded(equities: Sequence[np.ndarray]) -> np.ndarray:
    """Join the equity curves of consecutive accounts into one curve that starts at 1."""
    level, parts = 1.0, []
    for equity in equities:
        parts.append(level * equity / equity[0])
        level = parts[-1][-1]
    return np.concatenate(parts)
