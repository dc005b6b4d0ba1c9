"""One split of a trial: train on fit bars, select the checkpoint on validation bars, score on test bars."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import UNSET

from train.band_trace import evaluate_with_band
from train.checkpoint import Checkpoints
from train.config import TrainConfig
from train.env_factory import rules_of
from train.evaluator import EpisodeRecord, step_of
from train.records.account import Metrics
from train.records.provenance import code_version
from train.records.record_files import plain, with_null, write_json
from train.records.seals import EQUITY, RESULT
from train.records.stored import Made, PolicyOrigin, SplitResult
from train.run import Progress, TrainingDiverged, train_policy
from train.study.attainable import attainable_by, tradable
from train.study.band_file import BAND_FILE, write_band
from train.study.folds import Fold, FoldedData
from train.study.search_space import MAX_LOOKBACK, Resolved
from train.study.split_files import settings_sha256, write_equity
from train.validation.metrics import measure
from train.validation.splits import Segments, with_warmup

EQUAL_WEIGHT = "equal_weight"
ATTAINABLE = ("hindsight_growth", "of_hindsight", "break_even_cost")
NOT_OF_EQUAL_WEIGHT = ("turnover", "fees", "trades")


@dataclass(frozen=True)
class SplitOutcome:
    """Metrics of one split."""

    fold: int
    agent: Metrics
    equal_weight: Metrics
    env_steps: int
    explore_steps_per_s: float  # environment steps
    update_samples_per_s: float  # samples, counted once per epoch
    wall_s: float
    stepped_by: str = ""  # step implementation of the training environments; the next field: of the scored ones
    scoring_stepped_by: str = ""
    hindsight_growth: float = math.nan  # log growth of the hindsight optimum (`train.study.attainable`)
    of_hindsight: float = math.nan  # the agent's fraction of it
    break_even_cost: float = math.nan  # cost per side, a fraction of notional, at which the excess return is 0

    @property
    def excess_sharpe(self) -> float:
        """Annual Sharpe ratio of the agent minus that of equal weight; nan if either is undefined."""
        return self.agent.sharpe - self.equal_weight.sharpe


def run_split(
    settings: Resolved,
    data: FoldedData,
    fold: Fold,
    out_dir: Path,
    origin: PolicyOrigin,
    on_progress: Callable[[Progress], None] | None = None,
    checkpoints: Checkpoints | None = None,
) -> SplitOutcome:
    """Train and score one split. Policies, curves and metrics are written to `out_dir`, with `result.json` last.

    With `checkpoints`, a split whose process was killed resumes from its checkpoint. Checkpoints are deleted at the
    end.

    Raises:
        TrainingDiverged: a reward, loss or weight is not finite, or all rewards are equal.
    """
    started = time.monotonic()
    dataset, lookback = data.dataset, settings.env["lookback"]
    config = TrainConfig(**settings.train)
    result = train_policy(
        config,
        dataset.env_config(fold.fit),
        settings.env,
        out_dir,
        validation_config=_traded_config(data, fold.validation, lookback),
        metadata=origin.to_metadata(),
        on_progress=on_progress,
        checkpoints=checkpoints,
    )
    if not result.rewards_vary:
        raise TrainingDiverged("all rewards are equal, so nothing was learned; check the data for constant prices")
    test_config = _traded_config(data, fold.test, lookback)
    assert test_config is not None  # `fold_data` refuses splits without test bars
    records, bands = evaluate_with_band(result.best_policy, test_config, settings.env, gpu_id=config.gpu_id)
    rules = rules_of(settings.env)
    reached = attainable_by(records, tradable(dataset.price, dataset.filled, rules))
    outcome = SplitOutcome(
        fold=fold.index,
        agent=agent_metrics(records, dataset.bars_per_year),
        equal_weight=equal_weight_metrics(records, dataset.bars_per_year),
        env_steps=result.env_steps,
        explore_steps_per_s=result.explore_steps_per_s,
        update_samples_per_s=result.update_samples_per_s,
        wall_s=time.monotonic() - started,
        stepped_by=result.stepped_by,
        scoring_stepped_by=step_of(records),
        **{name: getattr(reached, name) for name in ATTAINABLE},
    )
    write_equity(out_dir / EQUITY, records, dataset.time)
    if bands:
        write_band(out_dir / BAND_FILE, bands, [r.bars for r in records], np.asarray(dataset.time))
    made = Made(origin.study, origin.uuid or "", origin.trial, dataset.sha256, config.seed, code_version())
    known = {"settings_sha256": settings_sha256(config, settings.env)}
    write_json(out_dir / RESULT, plain(made) | plain(data.origin) | known | outcome_json(outcome))
    if checkpoints is not None:
        checkpoints.discard()
    return outcome


def agent_metrics(records: Sequence[EpisodeRecord], bars_per_year: float) -> Metrics:
    """Return the account's metrics over all test bars."""
    return measure(
        [r.equity for r in records],
        bars_per_year,
        turnover_notional=[r.turnover for r in records],
        fees_quote=[r.fees for r in records],
        trades=[r.trades for r in records],
        exposure=[r.exposure for r in records],
    )


def equal_weight_metrics(records: Sequence[EpisodeRecord], bars_per_year: float) -> Metrics:
    """Return the metrics of equal weight on the same bars.

    The environment reports its value after the entry fee from the first bar. Here it starts from the same cash as the
    agent, so its entry fee is part of its first return, just as the agent's fees are part of the agent's returns.
    """
    return measure([np.concatenate([r.equity[:1], r.benchmark_equity[1:]]) for r in records], bars_per_year)


def outcome_json(outcome: SplitOutcome) -> dict[str, Any]:
    """Return the outcome as plain values, with null for undefined metrics."""
    return figures_json({**asdict(outcome), "excess_sharpe": outcome.excess_sharpe})


def outcome_of(result: SplitResult) -> SplitOutcome:
    """Return the outcome from the values that `outcome_json` returned. Missing metrics are nan."""
    known: dict[str, Any] = {}
    for name in (field.name for field in fields(SplitOutcome)):
        value = getattr(result, name)
        known[name] = math.nan if value is None or value is UNSET else value
    return SplitOutcome(**known)


def figures_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics under "agent", "equal_weight" and other names as plain values, with null if undefined.

    The value of equal weight includes its entry fee, but its trades are not recorded, so it has no trade metrics.
    """
    figures = plain(dict(content))
    return with_null(figures | {EQUAL_WEIGHT: kept_of_equal_weight(figures[EQUAL_WEIGHT])})


def kept_of_equal_weight(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of equal weight without trade metrics, which are not recorded."""
    return {name: value for name, value in figures.items() if name not in NOT_OF_EQUAL_WEIGHT}


def _traded_config(data: FoldedData, blocks: Segments, lookback: int) -> dict[str, Any] | None:
    """Return the environment config that trades `blocks` from their first bar, or None if there are no blocks."""
    segments = with_warmup(blocks, data.dataset.segments, lookback, MAX_LOOKBACK)
    return data.dataset.env_config(segments) if segments else None
