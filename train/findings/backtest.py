"""Results of a trial's policies as table rows: by split, by full path, next to benchmarks, and at different costs."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from market.files import write_whole
from train.env_factory import rules_of
from train.evaluator import EpisodeRecord
from train.findings.stored_trial import StoredTrial, evaluate_trial, join_paths
from train.records.defaults import COST_FACTORS
from train.records.errors import StudyError
from train.records.results import read_equity
from train.study.attainable import attainable_by, tradable
from train.study.split import ATTAINABLE, agent_metrics, equal_weight_metrics
from train.validation.benchmarks import (
    Benchmarks,
    Costs,
    Draws,
    benchmarks_of,
    draws_of,
    joined_draws,
    measure_accounts,
    measure_draws,
    turnover_gap,
    with_trades_of,
)
from train.validation.metrics import joined_returns

AGENT, EQUAL_WEIGHT, CASH, RANDOM = "agent", "equal weight", "cash", "random orders"
ROUNDING = 1e-4  # fraction of the initial capital; accounts that differ only by rounding stay this close
# Figures for which a larger value is worse.
LARGER_IS_WORSE = ("max_drawdown", "volatility", "turnover", "fees", "trades", "max_drawdown_bars")
SUMMARISED = ("sharpe", "excess_sharpe", "total_return", "max_drawdown", "turnover", "fees", "trades", "exposure")

Row = dict[str, Any]


# ------------------------------------------------------------------------------------------------ validation
def validation_rows(
    trial: StoredTrial, by_fold: Sequence[Sequence[EpisodeRecord]], n_draws: int, seed: int = 0
) -> list[Row]:
    """Return the metrics of the agent and of every benchmark, by split and by full path.

    Args:
        trial: trial from `read_trial`.
        by_fold: records of each fold from `evaluate_trial`.
        n_draws: number of accounts with random orders and the agent's turnover; 0 for none.
        seed: seed of the random orders.
    """
    rows: list[Row] = []
    # A path compounds blocks of several splits. Random draws take most of the memory, so only curves and sums are kept.
    drawn: list[list[Draws]] = []
    for fold, records in enumerate(by_fold):
        mark = _benchmarks(trial, records, n_draws, (seed, fold))
        drawn.append([draws_of([account]) for account in mark.random])
        rows += [{"scope": "split", "index": fold} | row for row in _account_rows(trial, records, mark, drawn[-1])]
    for path, records in enumerate(join_paths(trial, by_fold)):
        draws = join_paths(trial, drawn)[path] if n_draws else []
        found = _account_rows(trial, records, _benchmarks(trial, records), draws)
        rows += [{"scope": "path", "index": path} | row for row in found]
    return rows


def _benchmarks(
    trial: StoredTrial, records: Sequence[EpisodeRecord], n_draws: int = 0, seed: Sequence[int] = ()
) -> Benchmarks:
    close = trial.data.dataset.price
    closes, turnover = [close[r.bars] for r in records], [r.turnover for r in records]
    return benchmarks_of(closes, turnover, costs_of(trial.env), n_draws=n_draws, seed=seed)


def costs_of(env_params: Mapping[str, Any]) -> Costs:
    """Return the starting cash and trading costs for these settings."""
    rules = rules_of(env_params)
    return Costs(rules.initial_capital, rules.buy_fee_rate, rules.slippage_rate)


def _account_rows(
    trial: StoredTrial, records: Sequence[EpisodeRecord], mark: Benchmarks, drawn: Sequence[Draws]
) -> Iterator[Row]:
    per_year = trial.data.dataset.bars_per_year
    agent, other = agent_metrics(records, per_year), equal_weight_metrics(records, per_year)
    random = joined_draws(drawn) if drawn else None
    draws = measure_draws(random, per_year) if random else None
    rules, dataset = rules_of(trial.env), trial.data.dataset
    reached = attainable_by(records, tradable(dataset.price, dataset.filled, rules))
    lead = {"excess_sharpe": agent.sharpe - other.sharpe}
    lead |= {name: getattr(reached, name) for name in ATTAINABLE}
    if draws is not None:
        lead["beats_random"] = float(np.mean(np.asarray(draws.sharpe) < agent.sharpe))
        lead["returns_more"] = float(np.mean(np.asarray(draws.total_return) < agent.total_return))
    yield {"account": AGENT} | asdict(agent) | lead
    anew = measure_accounts(mark.equal_weight, per_year).at()
    yield {"account": EQUAL_WEIGHT} | asdict(with_trades_of(other, anew))
    yield {"account": CASH} | asdict(measure_accounts(mark.cash, per_year).at())
    coins = measure_accounts(mark.coins, per_year)
    for i, ticker in enumerate(trial.data.dataset.tickers):
        yield {"account": f"hold {ticker}"} | asdict(coins.at(i))
    if random is not None and draws is not None:
        gap = turnover_gap(random, np.concatenate([r.turnover for r in records]))
        means = {f.name: float(np.mean(getattr(draws, f.name))) for f in fields(draws)}
        yield {"account": RANDOM} | means | {"not_traded": float(np.mean(gap))}


def summary_rows(rows: Sequence[Row], scope: str, names: Sequence[str] = SUMMARISED) -> list[Row]:
    """Return mean, population standard deviation and worst value of each metric of the agent and of equal weight."""
    out = []
    for account in (AGENT, EQUAL_WEIGHT):
        mine = [row for row in rows if row["scope"] == scope and row["account"] == account]
        for name in names:
            values = [np.nan if row.get(name) is None else row[name] for row in mine]
            if not np.isnan(values).all():
                out.append({"account": account, "figure": name, **spread(name, values)})
    return out


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return the mean, standard deviation and worst value. All are nan if any value is undefined."""
    v = np.asarray(values, dtype=np.float64)
    return {
        "mean": float(v.mean()),
        "std": float(v.std()),
        "worst": float(v.max() if name in LARGER_IS_WORSE else v.min()),
    }


def recorded_text(trial: StoredTrial, by_fold: Sequence[Sequence[EpisodeRecord]]) -> str:
    """Return a sentence that says whether the accounts equal those that the study recorded for the trial."""
    worst, capital = 0.0, costs_of(trial.env).initial_capital
    for fold, records in enumerate(by_fold):
        path = trial.folder / f"split_{fold}" / "equity.npz"
        if not path.exists():
            return f"{path} is missing, so the accounts cannot be compared with the study's record"
        kept, now = read_equity(path), np.concatenate([r.equity for r in records])
        if not np.array_equal(kept["bar"], np.concatenate([r.bars for r in records])):
            return f"split {fold}: the study recorded different bars"
        if not np.array_equal(kept["equity"], now):  # nan never equals nan and counts as an infinite difference
            worst = max(worst, float(np.nan_to_num(np.abs(now - kept["equity"]), nan=np.inf).max()) / capital)
    if worst == 0.0:
        return "every account is bit-identical to the study's own record"
    cause = "rounding on a different machine" if worst < ROUNDING else "different code or settings, not just rounding"
    return f"accounts differ from the study's own record by up to {worst:.1e} of the initial capital ({cause})"


# ------------------------------------------------------------------------------------------------ costs and paths
def cost_rows(
    trial: StoredTrial, factors: Sequence[float] = COST_FACTORS, gpu_id: int = -1
) -> tuple[list[Row], dict[float, list[list[EpisodeRecord]]]]:
    """Evaluate the trial's policies with fees and slippage multiplied by each factor.

    Return one row per factor, with the mean and worst value of each metric over the full paths, and the records for
    every factor. Each factor is one batch.
    """
    rules, rows, found = rules_of(trial.env), [], {}
    per_year = trial.data.dataset.bars_per_year
    for factor in factors:
        rates = {"fee_rate": rules.buy_fee_rate * factor, "slippage_rate": rules.slippage_rate * factor}
        if max(rates.values()) >= 1.0:
            raise StudyError(f"--costs {factor:g}: the fee would be {rates['fee_rate']:.0%} of each order; use less")
        found[factor] = evaluate_trial(trial, rates, gpu_id)
        paths = join_paths(trial, found[factor])
        agents = [agent_metrics(records, per_year) for records in paths]
        others = [equal_weight_metrics(records, per_year) for records in paths]
        excess = [a.sharpe - b.sharpe for a, b in zip(agents, others, strict=True)]
        row: Row = {"costs_x": factor, **rates, "paths": len(paths)}
        for name, values in (
            ("sharpe", [a.sharpe for a in agents]),
            ("equal_weight_sharpe", [b.sharpe for b in others]),
            ("excess_sharpe", excess),
            ("total_return", [a.total_return for a in agents]),
            ("max_drawdown", [a.max_drawdown for a in agents]),
            ("turnover", [a.turnover for a in agents]),
            ("fees", [a.fees for a in agents]),
            ("trades", [a.trades for a in agents]),
        ):
            figures = spread(name, values)
            row |= {name: figures["mean"], f"{name}_worst": figures["worst"]}
        rows.append(row)
    return rows, found


def path_rows(trial: StoredTrial, by_fold: Sequence[Sequence[EpisodeRecord]]) -> list[Row]:
    """Return the metrics of the agent and of equal weight over each full path."""
    per_year, rows = trial.data.dataset.bars_per_year, []
    for path, records in enumerate(join_paths(trial, by_fold)):
        agent, other = agent_metrics(records, per_year), equal_weight_metrics(records, per_year)
        beside = {"equal_weight_sharpe": other.sharpe, "equal_weight_return": other.total_return}
        rows.append({"path": path, **asdict(agent), **beside, "excess_sharpe": agent.sharpe - other.sharpe})
    return rows


def write_paths(path: Path, trial: StoredTrial, by_fold: Sequence[Sequence[EpisodeRecord]]) -> None:
    """Write the accounts of every full path: `bar`, `time_s`, `split` (M,) and chained `wealth`, `benchmark_wealth`.

    Wealth starts at 1 and continues from fold to fold, as columns (P, M) of P paths.
    """
    numbered = [[(fold, record) for record in records] for fold, records in enumerate(by_fold)]
    columns: dict[str, list[np.ndarray]] = {name: [] for name in ("split", "wealth", "benchmark_wealth")}
    bars = np.empty(0, dtype=np.int64)
    for parts in join_paths(trial, numbered):
        bars = np.concatenate([r.bars for _, r in parts])
        columns["split"].append(np.concatenate([np.full(len(r.bars), fold) for fold, r in parts]))
        columns["wealth"].append(_chained([r.equity for _, r in parts]))
        fair = [np.concatenate([r.equity[:1], r.benchmark_equity[1:]]) for _, r in parts]
        columns["benchmark_wealth"].append(_chained(fair))
    buffer = io.BytesIO()
    stacked = {name: np.stack(values) for name, values in columns.items()}
    np.savez_compressed(buffer, allow_pickle=False, bar=bars, time_s=trial.data.dataset.time[bars], **stacked)
    write_whole(path, buffer.getvalue())


def _chained(equities: Sequence[np.ndarray]) -> np.ndarray:
    """Return the wealth at every point of consecutive accounts; it does not change between accounts."""
    steps = [np.concatenate([[0.0], joined_returns([equity])]) for equity in equities]
    return np.cumprod(1.0 + np.concatenate(steps))
