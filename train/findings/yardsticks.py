"""Reference strategies to compare trials with: equal weight, cash, and the best constant band.

A constant band keeps every coin's weight within [lo, hi] on every bar. It is chosen on a split's training and
validation folds and traded on its test bars, in the same environment and at the same costs as a policy. First, all
coins get the same band from a small grid. Then each coin is removed in turn. It stays out if the remaining coins earned
more without it.

The strategies are computed once, when the study has reached its target number of trials, and stored in
`<study>/yardsticks.json`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial, TrialState
from torch import Tensor

from market.names import counted
from train.evaluator import EpisodeRecord, evaluate_policies
from train.findings.returns import timeframe_of
from train.records.account import Metrics
from train.records.attributes import uuid_in
from train.records.errors import StudyError
from train.records.provenance import code_version
from train.records.record_files import plain, read_record, with_null, write_json
from train.records.stored import Made
from train.store.artifact_files import fetch_set, send_set
from train.study.eligibility import agents_of
from train.study.folds import Fold, FoldedData
from train.study.search_space import MAX_LOOKBACK
from train.study.search_tables import TABLES
from train.study.split import agent_metrics, equal_weight_metrics, kept_of_equal_weight
from train.study.venue import venue_env
from train.validation.splits import Segments, with_warmup

logger = logging.getLogger(__name__)

YARDSTICKS_FILE, YARDSTICKS = "yardsticks.json", "yardsticks"
EQUAL_WEIGHT, CASH, CONSTANT_BAND = "equal weight", "cash", "best constant band"
# Grid of edges, as multiples of the equal weight of one coin. A lower edge of 0 would never buy.
LOWER, UPPER = (0.25, 0.5, 0.75, 0.95), (1.0, 1.5, 3.0)
CHOICE_BARS = 30_000  # the band is chosen on this many last bars of the training and validation folds
# Exceptions that are logged; the study's own results are already on disk.
YARDSTICK_ERRORS = (OSError, ValueError, RuntimeError, ArithmeticError, MemoryError)


@dataclass(frozen=True)
class ConstantBand:
    """Lower and upper edges of the weight of each coin, (A,) each, 0 <= lo <= hi <= 1."""

    lo: tuple[float, ...]
    hi: tuple[float, ...]

    def without(self, coin: int) -> ConstantBand:
        """Return the band that never holds this coin."""
        lo, hi = list(self.lo), list(self.hi)
        lo[coin] = hi[coin] = 0.0
        return ConstantBand(tuple(lo), tuple(hi))


class YardstickSplit(msgspec.Struct, frozen=True):
    """Reference strategies on the test bars of one split."""

    fold: int
    band: ConstantBand
    constant_band: Metrics = msgspec.field(name=CONSTANT_BAND)
    equal_weight: Metrics = msgspec.field(name=EQUAL_WEIGHT)


class YardsticksOfBars(msgspec.Struct, frozen=True):
    """Reference strategies on one dataset."""

    env: dict[str, Any]
    tickers: tuple[str, ...]
    splits: tuple[YardstickSplit, ...]


class YardsticksFile(msgspec.Struct, frozen=True):
    """Contents of `yardsticks.json`."""

    uuid: str
    timeframes: dict[str, YardsticksOfBars]


@dataclass(frozen=True)
class Yardstick:
    """A reference strategy compared with the trials."""

    name: str
    mean_return: float  # total return on the test bars, mean over the splits
    mean_sharpe: float  # nan for cash
    n_beaten_by: int  # number of completed trials with a higher mean return
    n_trials: int  # number of completed trials in the comparison


def grid(n_coins: int) -> list[ConstantBand]:
    """Return the candidate bands, each the same for all coins."""
    share = 1.0 / n_coins
    return [ConstantBand((lo * share,) * n_coins, (min(hi * share, 1.0),) * n_coins) for lo in LOWER for hi in UPPER]


# ------------------------------------------------------------------------------------------------------------- trading
def trade_bands(
    bands: Sequence[ConstantBand],
    blocks: Sequence[Segments],
    data: FoldedData,
    env: Mapping[str, Any],
    gpu_id: int = -1,
) -> list[list[EpisodeRecord]]:
    """Trade every band on its own blocks in one batch and return the records of each band.

    Args:
        bands: one band for each entry of `blocks`.
        blocks: (first, last_exclusive) bar indices of each block of a band.
        data: bars to trade.
        env: rules and costs of the environment, with `norm_action` 1.
        gpu_id: GPU number; -1 is the CPU.
    """
    segments = [with_warmup(b, data.dataset.segments, env["lookback"], MAX_LOOKBACK) for b in blocks]
    counts = [len(s) for s in segments]
    # Bands do not use features; a single column avoids copying all of them on every bar.
    config = dict(data.dataset.env_config()) | {"tech_array": np.zeros((len(data.dataset.price), 1), np.float32)}
    act = _act(bands, counts)
    (records,) = evaluate_policies([act], [[s for each in segments for s in each]], config, env, gpu_id=gpu_id)
    if len(records) != sum(counts):
        raise StudyError("a test fold is too short for a constant band; use more data or a smaller --num-paths")
    found = iter(records)
    return [[next(found) for _ in range(n)] for n in counts]


def _act(bands: Sequence[ConstantBand], counts: Sequence[int]) -> Any:
    """Return a function from observations (N, S) to orders (N, A); band i trades the next `counts[i]` accounts."""
    rows = [band for band, n in zip(bands, counts, strict=True) for _ in range(n)]
    lo, hi = torch.tensor([b.lo for b in rows]), torch.tensor([b.hi for b in rows])

    def act(state: Tensor) -> Tensor:
        weight = state[:, 1 : 1 + lo.shape[1]]
        target = torch.minimum(torch.maximum(weight, lo.to(state.device)), hi.to(state.device))
        return torch.where(target > 0.0, target - weight, -1.0)  # -1 sells the whole position

    return act


def _growth(records: Sequence[EpisodeRecord]) -> float:
    return sum(record.growth for record in records)


def choose_bands(data: FoldedData, env: Mapping[str, Any], gpu_id: int = -1) -> list[ConstantBand]:
    """Return the best constant band of every split, by log growth on its training and validation folds."""
    n_coins, n_folds = data.dataset.price.shape[1], len(data.folds)
    blocks = [_last_bars(fold) for fold in data.folds]

    def best_of(candidates: Sequence[Sequence[ConstantBand]]) -> list[list[float]]:
        pairs = [(band, blocks[i]) for i, mine in enumerate(candidates) for band in mine]
        records = iter(trade_bands([b for b, _ in pairs], [s for _, s in pairs], data, env, gpu_id))
        return [[_growth(next(records)) for _ in mine] for mine in candidates]

    shared = grid(n_coins)
    growth = best_of([shared] * n_folds)
    chosen = [shared[int(np.argmax(g))] for g in growth]
    if n_coins == 1:
        return chosen
    known = [max(g) for g in growth]
    lacking = best_of([[band.without(coin) for coin in range(n_coins)] for band in chosen])
    fewer = []
    for band, all_coins, each in zip(chosen, known, lacking, strict=True):
        for coin in np.flatnonzero(np.array(each) > all_coins):
            band = band.without(int(coin))
        fewer.append(band)
    together = best_of([[band] for band in fewer])
    # Coins that are better left out one by one may be worse left out together. Without any coin the account is cash.
    return [less if g[0] > all_coins else band
            for less, band, g, all_coins in zip(fewer, chosen, together, known, strict=True)]  # fmt: skip


def _last_bars(fold: Fold) -> Segments:
    """Return the last bars of the fold that are neither test bars nor purged."""
    left, kept = CHOICE_BARS, []
    for first, last in sorted((*fold.fit, *fold.validation), reverse=True):
        if left < 2 * MAX_LOOKBACK:
            break
        kept.append((max(first, last - left), last))
        left -= last - kept[-1][0]
    return tuple(sorted(kept))


# ------------------------------------------------------------------------------------------------------------- a study
def band_env(data: FoldedData, volume_30d: float | None) -> dict[str, Any]:
    """Return the rules for a constant band: those of the band agent, at the venue's costs."""
    fixed = dict(TABLES["band"].fixed_env)
    return fixed | {"lookback": 1} | venue_env(data.dataset, volume_30d, fixed["rules"])


def compute(data: FoldedData, volume_30d: float | None, gpu_id: int = -1) -> YardsticksOfBars:
    """Return the reference strategies of one dataset in the form stored in `yardsticks.json`."""
    env, per_year = band_env(data, volume_30d), data.dataset.bars_per_year
    bands = choose_bands(data, env, gpu_id)
    by_fold = trade_bands(bands, [fold.test for fold in data.folds], data, env, gpu_id)
    splits = []
    for fold, band, records in zip(data.folds, bands, by_fold, strict=True):
        bought = agent_metrics(records, per_year)
        splits.append(YardstickSplit(fold.index, band, bought, equal_weight_metrics(records, per_year)))
    return YardsticksOfBars(env, tuple(data.dataset.tickers), tuple(splits))


def of_bars_json(found: YardsticksOfBars) -> dict[str, Any]:
    """Return plain JSON values; null means undefined, and trade figures of equal weight are omitted."""
    content = plain(found)
    for split in content["splits"]:
        split[EQUAL_WEIGHT] = kept_of_equal_weight(split[EQUAL_WEIGHT])
    return with_null(content)


def write_yardsticks(
    study: optuna.Study, folder: Path, data: Sequence[FoldedData], volume_30d: float | None, gpu_id: int = -1
) -> None:
    """Compute and store the reference strategies if the study lacks them. Failures are logged, not raised."""
    path, uuid = folder / YARDSTICKS_FILE, uuid_in(study.user_attrs)
    fetch_set(study, folder, YARDSTICKS)
    if path.exists():
        return
    try:
        made = Made(study.study_name, uuid, None, data[0].dataset.sha256, None, code_version())
        timeframes = {d.timeframe: of_bars_json(compute(d, volume_30d, gpu_id)) for d in data}
        write_json(path, plain(made) | {"timeframes": timeframes})
        send_set(study, folder, YARDSTICKS, [path])
    except YARDSTICK_ERRORS as error:
        logger.error(
            "could not compute the reference strategies: %s: %s", type(error).__name__, str(error) or "no details"
        )
        logger.debug("reference strategies", exc_info=True)


def read_yardsticks(study: optuna.Study, folder: Path) -> list[Yardstick]:
    """Return the reference strategies compared with the completed trials, or an empty list if none are stored."""
    try:
        content = read_record(folder / YARDSTICKS_FILE, YardsticksFile)
    except StudyError:
        return []
    if content.uuid != uuid_in(study.user_attrs):
        return []
    return beside(study, content.timeframes)


def beside(study: optuna.Study, timeframes: Mapping[str, YardsticksOfBars]) -> list[Yardstick]:
    """Compare every reference strategy with the completed trials of the same timeframe."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    trials = [t for t in done if timeframe_of(study, t) in timeframes and agents_of(t.user_attrs)]
    found = []
    for name in (EQUAL_WEIGHT, CASH, CONSTANT_BAND):
        returns = {tf: _mean(known.splits, name, "total_return") for tf, known in timeframes.items()}
        sharpes = [_mean(known.splits, name, "sharpe") for known in timeframes.values()]
        beaten = [t for t in trials if mean_return(t) > returns[timeframe_of(study, t)]]
        found.append(Yardstick(name, _average(returns.values()), _average(sharpes), len(beaten), len(trials)))
    return found


def mean_return(trial: FrozenTrial) -> float:
    """Return the mean total return over the trial's splits, or nan if unknown."""
    return _average(a.total_return for a in agents_of(trial.user_attrs))


def _mean(splits: Sequence[YardstickSplit], name: str, figure: str) -> float:
    if name == CASH:
        return 0.0 if figure == "total_return" else math.nan
    figures = [split.constant_band if name == CONSTANT_BAND else split.equal_weight for split in splits]
    return _average(getattr(each, figure) for each in figures)


def _average(values: Iterable[float]) -> float:
    known = list(values)
    return float(np.mean(known)) if known else math.nan


def yardstick_lines(yardsticks: Sequence[Yardstick]) -> list[str]:
    """Return the log lines about the reference strategies."""
    if not yardsticks:
        return []
    texts = [f"{y.name} {y.mean_return:+.2%} (beaten by {y.n_beaten_by})" for y in yardsticks]
    n = counted(yardsticks[0].n_trials, "completed trial")
    return [f"reference strategies, mean return per split (and how many of {n} beat it): {', '.join(texts)}"]
