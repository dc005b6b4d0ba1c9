"""Curves of a study's trials, read from their folders: full test paths with benchmarks, and returns bar by bar.

A bar is tested by several splits of a combinatorial study, each with a policy of its own. Two ways to look at that:

* a PATH takes every tested bar once, each block from one split (`recombined_paths`); accounts start every block afresh,
  so a path compounds them.
* a trial's RETURNS are, bar by bar, the mean over the splits that tested the bar: one account divided equally among
  their policies. Each bar counts once, so a study does not look longer than its data.
"""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from train.study.results import read_closes, read_equity, split_folder
from train.validation.benchmarks import (
    Account,
    Costs,
    buy_and_hold_each,
    equal_weight,
    measure_accounts,
    random_orders,
)
from train.validation.metrics import Metrics, bar_returns, measure, sharpe
from train.validation.report import QUANTILES, PathView, RandomOrders
from train.validation.splits import Split, SplitError, recombined_paths

logger = logging.getLogger(__name__)

RANDOM_DRAWS = 100
RANDOM_STEPS = 2000  # of a path: orders of several bars are given together above that
JUDGED_POINTS = 2048  # returns of a trial that correlations and overfitting are computed from
READERS = 4  # threads: unpacking leaves the interpreter free
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)

Columns = dict[str, np.ndarray]


def read_split(folder: Path, trial_number: int, fold: int) -> Columns | None:
    """The equity file of a split; None where it is missing or damaged, which is logged."""
    path = split_folder(folder, trial_number, fold) / "equity.npz"
    try:
        return read_equity(path)
    except UNREADABLE as error:
        logger.warning("report: %s: not used: %s", path, error)
        return None


# ---------------------------------------------------------------------------------------------------------------- paths
@dataclass(frozen=True)
class Market:
    """What benchmarks are made of."""

    close: np.ndarray  # (T, A)
    tickers: tuple[str, ...]
    costs: Costs


def read_market(folder: Path, timeframe: str, settings: Mapping[str, Any]) -> Market | None:
    """Closes and costs of a trial; None where they are not kept, which is logged."""
    try:
        close, tickers = read_closes(folder, timeframe, settings["data"]["sha256"])
        rules = settings["env_resolved"]
        costs = Costs(rules["initial_capital"], rules["buy_fee_rate"], rules["slippage_rate"])
    except UNREADABLE as error:
        logger.warning("report: no buy and hold, no random orders: %s", error)
        return None
    return Market(close, tickers, costs)


def tested_paths(
    splits: Mapping[int, Columns], folds: Sequence[Mapping[str, Any]], market: Market | None, bars_per_year: float
) -> tuple[list[PathView], str]:
    """Every full path whose splits are all there; and what has to be said about it.

    Args:
        splits: columns of each split of one trial, by number.
        folds: of its settings.
        market: for benchmarks, None draws equal weight only.
        bars_per_year: from the real bar spacing.
    """
    plan = [_as_split(fold) for fold in folds]
    try:
        paths = recombined_paths(plan)
        note = "each takes every tested bar once"
    except SplitError as error:
        paths = tuple(tuple((i, b) for b in range(len(split.test))) for i, split in enumerate(plan))
        note = f"one for each split, because no full path exists ({error})"
    views = []
    for number, parts in enumerate(paths):
        blocks = [block for i, b in parts for block in _blocks(splits.get(i), plan[i].test[b])]
        if blocks and all(i in splits for i, _ in parts):
            origin = ", ".join(str(i) for i in dict.fromkeys(i for i, _ in parts))
            views.append(_view(f"Path {number + 1} of {len(paths)}", f"blocks of splits {origin}", blocks, market,
                               bars_per_year))  # fmt: skip
    missing = len(paths) - len(views)
    return views, note + (f"; {missing} not shown, for files are missing" if missing else "")


def _as_split(fold: Mapping[str, Any]) -> Split:
    return Split((), tuple((int(a), int(b)) for a, b in fold["test"]), tuple(fold["test_groups"]))


def _blocks(columns: Columns | None, block: tuple[int, int]) -> list[Columns]:
    """The segments of an equity file that lie in a test block."""
    if columns is None:
        return []
    found = []
    for number in np.unique(columns["segment"]):
        rows = columns["segment"] == number
        if block[0] <= columns["bar"][rows][-1] < block[1]:
            found.append({name: column[rows] for name, column in columns.items()})
    return found


def _view(title: str, origin: str, blocks: list[Columns], market: Market | None, bars_per_year: float) -> PathView:
    held = [np.concatenate([b["equity"][:1], b["benchmark_equity"][1:]]) for b in blocks]
    agent = measure(
        [b["equity"] for b in blocks],
        bars_per_year,
        turnover_notional=[b["turnover"][1:] for b in blocks],
        fees_quote=[b["fees"][1:] for b in blocks],
        trades=[b["trades"][1:] for b in blocks],
        exposure=[b["exposure"] for b in blocks],
    )
    view = PathView(
        title=title,
        origin=origin,
        time_s=np.concatenate([b["time_s"] for b in blocks]),
        starts_s=np.array([b["time_s"][0] for b in blocks]),
        agent=compounded([b["equity"] for b in blocks]),
        equal_weight=compounded(held),
        agent_figures=agent,
        equal_weight_figures=measure(held, bars_per_year),
    )
    return view if market is None else _with_benchmarks(view, blocks, market, bars_per_year)


def _with_benchmarks(view: PathView, blocks: list[Columns], market: Market, bars_per_year: float) -> PathView:
    every = -(-sum(len(b["bar"]) for b in blocks) // RANDOM_STEPS)
    rows = [np.unique(np.append(np.arange(0, len(b["bar"]), every), len(b["bar"]) - 1)) for b in blocks]
    kept = [(b, r) for b, r in zip(blocks, rows, strict=True) if len(r) > 1]
    traded = [np.add.reduceat(b["turnover"], r[:-1] + 1) for b, r in kept]
    streams = np.random.SeedSequence(0).spawn(len(kept))
    random = [
        random_orders(market.close[b["bar"][r]], notional, market.costs, RANDOM_DRAWS, np.random.default_rng(stream))
        for (b, r), notional, stream in zip(kept, traded, streams, strict=True)
    ]
    closes = [market.close[b["bar"]] for b in blocks]
    coins = [buy_and_hold_each(close, market.costs) for close in closes]
    equal = measure_accounts([equal_weight(close, market.costs) for close in closes], bars_per_year).at()
    wanted = float(sum(notional.sum() for notional in traded))
    drawn = np.stack([compounded([account.equity[k] for account in random]) for k in range(RANDOM_DRAWS)])
    return replace(
        view,
        coins=dict(zip(market.tickers, _coin_curves(coins), strict=True)),
        coin_figures=_coin_figures(coins, market.tickers, bars_per_year),
        equal_weight_figures=_with_trades_of(view.equal_weight_figures, equal),
        random=RandomOrders(
            time_s=np.concatenate([b["time_s"][r] for b, r in kept]),
            quantiles=np.quantile(drawn, QUANTILES, axis=0),
            sharpe=measure_accounts(random, bars_per_year / every).sharpe,
            every_bars=every,
            traded_share=float(np.mean(sum(a.turnover.sum(axis=1) for a in random))) / wanted if wanted > 0.0 else 1.0,
            share_above=float(np.mean(drawn[:, -1] >= view.agent[-1])),
        ),
    )


def _coin_curves(blocks: Sequence[Account]) -> list[np.ndarray]:
    return [compounded([block.equity[a] for block in blocks]) for a in range(len(blocks[0].equity))]


def _coin_figures(blocks: Sequence[Account], tickers: Sequence[str], bars_per_year: float) -> dict[str, Metrics]:
    batch = measure_accounts(blocks, bars_per_year)
    return {ticker: batch.at(a) for a, ticker in enumerate(tickers)}


def _with_trades_of(own: Metrics, anew: Metrics) -> Metrics:
    """The recorded portfolio's figures, with the orders of the same portfolio made anew: its own are not kept."""
    return replace(own, turnover=anew.turnover, fees=anew.fees, trades=anew.trades, exposure=anew.exposure)


def compounded(equities: Sequence[np.ndarray]) -> np.ndarray:
    """Accounts one after the other as one curve from 1: each goes on where the last one ended."""
    level, parts = 1.0, []
    for equity in equities:
        parts.append(level * equity / equity[0])
        level = parts[-1][-1]
    return np.concatenate(parts)


# ------------------------------------------------------------------------------------ returns, bar by bar, of any trial
@dataclass(frozen=True)
class Layout:
    """Where the returns of each split go on the common axis of tested bars."""

    n_rows: dict[int, int]  # split -> rows of its equity file
    steps: dict[int, np.ndarray]  # split -> rows that end a return
    places: dict[int, np.ndarray]  # split -> their places
    n_policies: np.ndarray  # (T,) splits that test each bar
    equal_weight: np.ndarray  # (T,) return of the equal-weight portfolio


def layout_of(splits: Mapping[int, Columns]) -> Layout:
    """From all splits of one trial; the others of the study trade the very same bars."""
    steps = {i: np.flatnonzero(np.diff(c["segment"]) == 0) + 1 for i, c in splits.items()}
    bars = np.unique(np.concatenate([splits[i]["bar"][rows] for i, rows in steps.items()]))
    places = {i: np.searchsorted(bars, splits[i]["bar"][rows]) for i, rows in steps.items()}
    count, held = np.zeros(len(bars)), np.zeros(len(bars))
    for i, c in splits.items():
        is_first = np.diff(c["segment"], prepend=-1) != 0
        value = np.where(is_first, c["equity"], c["benchmark_equity"])
        count[places[i]] += 1.0
        held[places[i]] += bar_returns(value)[steps[i] - 1]
    return Layout({i: len(c["bar"]) for i, c in splits.items()}, steps, places, count, held / count)


def trial_returns(layout: Layout, equities: Mapping[int, np.ndarray]) -> np.ndarray:
    """(T,) mean return of the splits that tested each bar."""
    total = np.zeros(len(layout.n_policies))
    for i, equity in equities.items():
        total[layout.places[i]] += bar_returns(equity)[layout.steps[i] - 1]
    return total / layout.n_policies


@dataclass(frozen=True)
class Judged:
    """What the judgement of a study needs of one trial."""

    returns: np.ndarray  # (J,) of runs of bars, the same runs for every trial
    sharpe: float  # per bar
    lead_sharpe: float  # per bar, of the returns minus equal weight's


def read_judged(folder: Path, trial_numbers: Sequence[int], layout: Layout) -> dict[int, Judged]:
    """Of the trials whose splits are all there and as long as the layout's."""

    def one(number: int) -> Judged | None:
        equities = {i: _equity_column(folder, number, i, n) for i, n in layout.n_rows.items()}
        known = {i: equity for i, equity in equities.items() if equity is not None}
        if len(known) < len(equities):
            return None
        r = trial_returns(layout, known)
        if not np.isfinite(r).all():
            return None
        return Judged(coarser(r), float(sharpe(r, 1.0)), float(sharpe(r - layout.equal_weight, 1.0)))

    with ThreadPoolExecutor(READERS) as pool:
        found = zip(trial_numbers, pool.map(one, trial_numbers), strict=True)
        return {number: judged for number, judged in found if judged is not None}


def read_pruned(folder: Path, trial_numbers: Sequence[int], layout: Layout) -> list[tuple[float, float]]:
    """(Sharpe, Sharpe of the lead) per bar of trials that were stopped early, on the bars that they did trade.

    They belong to what the winner was chosen from: without them, the bad ones, trials would seem to differ less and
    luck to reach less far.
    """

    def one(number: int) -> tuple[float, float]:
        total, count = np.zeros_like(layout.equal_weight), np.zeros_like(layout.equal_weight)
        for i, n in layout.n_rows.items():
            is_there = (split_folder(folder, number, i) / "equity.npz").exists()
            equity = _equity_column(folder, number, i, n) if is_there else None
            if equity is not None:
                total[layout.places[i]] += bar_returns(equity)[layout.steps[i] - 1]
                count[layout.places[i]] += 1.0
        is_traded = count > 0
        r = total[is_traded] / count[is_traded]
        return float(sharpe(r, 1.0)), float(sharpe(r - layout.equal_weight[is_traded], 1.0))

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(one, trial_numbers))


def _equity_column(folder: Path, number: int, fold: int, n_rows: int) -> np.ndarray | None:
    try:
        with np.load(split_folder(folder, number, fold) / "equity.npz", allow_pickle=False) as file:
            equity = file["equity"]
    except UNREADABLE as error:
        logger.warning("report: trial %d split %d is not used: %s", number, fold, error)
        return None
    return equity if equity.shape == (n_rows,) and np.isfinite(equity).all() else None


def coarser(returns: np.ndarray, most: int = JUDGED_POINTS) -> np.ndarray:
    """At most `most` compounded returns of equal runs of bars."""
    if len(returns) <= most:
        return returns
    edges = np.linspace(0, len(returns), most + 1).astype(np.int64)[:-1]
    with np.errstate(divide="ignore"):
        return np.expm1(np.add.reduceat(np.log1p(np.maximum(returns, -1.0)), edges))
