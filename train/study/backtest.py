"""What a trial's policies did, as rows of figures: by split, by full path, beside benchmarks, and at other costs."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from market.files import write_whole
from train.env_factory import resolved_rules
from train.evaluator import EpisodeRecord
from train.study.data import StudyError
from train.study.replay import StoredTrial, evaluate_trial, join_paths
from train.study.results import read_equity
from train.study.split_run import agent_metrics, equal_weight_metrics
from train.validation.benchmarks import Account, Benchmarks, Costs, benchmarks_of, measure_accounts
from train.validation.metrics import MetricsBatch, joined_returns

AGENT, EQUAL_WEIGHT, CASH, RANDOM = "agent", "equal weight", "cash", "random orders"
COST_FACTORS = (0.0, 1.0, 2.0, 4.0)
# Larger is worse; of the others smaller is.
LARGER_IS_WORSE = ("max_drawdown", "volatility", "turnover", "fees", "trades", "max_drawdown_bars")
SUMMARISED = ("sharpe", "excess_sharpe", "total_return", "max_drawdown", "turnover", "fees", "trades", "exposure")

Row = dict[str, Any]


# ------------------------------------------------------------------------------------------------ validation
def validation_rows(
    trial: StoredTrial, by_fold: Sequence[Sequence[EpisodeRecord]], n_draws: int, seed: int = 0
) -> list[Row]:
    """Figures of the agent and of every benchmark, by split and by full path.

    Args:
        trial: as read.
        by_fold: its records.
        n_draws: accounts with the agent's turnover in random orders; 0 for none.
        seed: of the draws.
    """
    costs, close = costs_of(trial.env), trial.data.dataset.price
    marks = [
        benchmarks_of([close[r.bars] for r in records], [r.turnover for r in records], costs, n_draws=n_draws,
                      seed=seed + fold)
        for fold, records in enumerate(by_fold)
    ]  # fmt: skip
    rows: list[Row] = []
    for fold, (records, mark) in enumerate(zip(by_fold, marks, strict=True)):
        rows += [{"scope": "split", "index": fold} | row for row in _account_rows(trial, records, mark)]
    blocks = {f.name: join_paths(trial, [getattr(mark, f.name) for mark in marks]) for f in fields(Benchmarks)}
    for path, records in enumerate(join_paths(trial, by_fold)):
        mark = Benchmarks(**{name: joined[path] for name, joined in blocks.items()})
        rows += [{"scope": "path", "index": path} | row for row in _account_rows(trial, records, mark)]
    return rows


def costs_of(env_params: Mapping[str, Any]) -> Costs:
    """What an account begins with and pays under these settings."""
    rules = resolved_rules(env_params)
    return Costs(rules["initial_capital"], rules["buy_fee_rate"], rules["slippage_rate"])


def _account_rows(trial: StoredTrial, records: Sequence[EpisodeRecord], mark: Benchmarks) -> Iterator[Row]:
    per_year = trial.data.dataset.bars_per_year
    agent, other = agent_metrics(records, per_year), equal_weight_metrics(records, per_year)
    draws = _measured(mark.random, per_year)
    lead = {"excess_sharpe": agent.sharpe - other.sharpe}
    if draws is not None:
        lead["beats_random"] = float(np.mean(np.asarray(draws.sharpe) < agent.sharpe))
        lead["returns_more"] = float(np.mean(np.asarray(draws.total_return) < agent.total_return))
    yield {"account": AGENT} | asdict(agent) | lead
    # Trades of the equal-weight portfolio are not kept by the environment.
    yield {"account": EQUAL_WEIGHT} | asdict(other) | {"turnover": np.nan, "fees": np.nan, "trades": None}
    yield {"account": CASH} | asdict(measure_accounts(mark.cash, per_year).at())
    coins = measure_accounts(mark.coins, per_year)
    for i, ticker in enumerate(trial.data.dataset.tickers):
        yield {"account": f"hold {ticker}"} | asdict(coins.at(i))
    if draws is not None:
        yield {"account": RANDOM} | {f.name: float(np.mean(getattr(draws, f.name))) for f in fields(draws)}


def _measured(accounts: Sequence[Account], per_year: float) -> MetricsBatch | None:
    return measure_accounts(accounts, per_year) if accounts and accounts[0].equity.shape[0] else None


def summary_rows(rows: Sequence[Row], scope: str, names: Sequence[str] = SUMMARISED) -> list[Row]:
    """Mean, standard deviation (population) and worst of the agent's and the equal-weight portfolio's figures."""
    out = []
    for account in (AGENT, EQUAL_WEIGHT):
        mine = [row for row in rows if row["scope"] == scope and row["account"] == account]
        for name in names:
            values = [np.nan if row.get(name) is None else row[name] for row in mine]
            if not np.isnan(values).all():
                out.append({"account": account, "figure": name, **spread(name, values)})
    return out


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Mean, standard deviation and worst; nan where one of the values is not defined."""
    v = np.asarray(values, dtype=np.float64)
    return {
        "mean": float(v.mean()),
        "std": float(v.std()),
        "worst": float(v.max() if name in LARGER_IS_WORSE else v.min()),
    }


def recorded_text(trial: StoredTrial, by_fold: Sequence[Sequence[EpisodeRecord]]) -> str:
    """Whether the accounts are those that the study recorded when it scored the trial."""
    worst = 0.0
    for fold, records in enumerate(by_fold):
        path = trial.folder / f"split_{fold}" / "equity.npz"
        if not path.exists():
            return f"{path} is missing, so it is not known whether the study saw the same"
        kept, now = read_equity(path), np.concatenate([r.equity for r in records])
        if not np.array_equal(kept["bar"], np.concatenate([r.bars for r in records])):
            return f"split {fold}: the study recorded other bars"
        worst = max(worst, float(np.abs(now / kept["equity"] - 1.0).max()))
    if worst == 0.0:
        return "every account equals the study's own record to the last bit"
    return (
        f"accounts differ from the study's own record by up to {worst:.1e} of equity (another machine rounds otherwise)"
    )


# ------------------------------------------------------------------------------------------------ costs and paths
def cost_rows(
    trial: StoredTrial, factors: Sequence[float] = COST_FACTORS, gpu_id: int = -1
) -> tuple[list[Row], dict[float, list[list[EpisodeRecord]]]]:
    """The same policies with fees and slippage times each factor: rows, and the records of every factor.

    Each factor is one batch. A row is a factor's figures over the full paths: the mean and the worst.
    """
    rules, rows, found = resolved_rules(trial.env), [], {}
    per_year = trial.data.dataset.bars_per_year
    for factor in factors:
        rates = {"fee_rate": rules["buy_fee_rate"] * factor, "slippage_rate": rules["slippage_rate"] * factor}
        if max(rates.values()) >= 1.0:
            raise StudyError(f"--costs {factor:g}: a fee of {rates['fee_rate']:.0%} of an order leaves nothing")
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
    """Figures of the agent over each full path, beside the equal-weight portfolio's."""
    per_year, rows = trial.data.dataset.bars_per_year, []
    for path, records in enumerate(join_paths(trial, by_fold)):
        agent, other = agent_metrics(records, per_year), equal_weight_metrics(records, per_year)
        beside = {"equal_weight_sharpe": other.sharpe, "equal_weight_return": other.total_return}
        rows.append({"path": path, **asdict(agent), **beside, "excess_sharpe": agent.sharpe - other.sharpe})
    return rows


def write_paths(path: Path, trial: StoredTrial, by_fold: Sequence[Sequence[EpisodeRecord]]) -> None:
    """The accounts of every full path: `bar`, `time_s`, `split` (M,) and chained `wealth`, `benchmark_wealth`.

    Wealth begins with 1 and is carried on from block to block, columns (P, M) of P paths.
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
    """Wealth at every point of several accounts one after the other; it stands still from one to the next."""
    steps = [np.concatenate([[0.0], joined_returns([equity])]) for equity in equities]
    return np.cumprod(1.0 + np.concatenate(steps))
