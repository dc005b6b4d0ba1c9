"""What needs no learning, beside a study's trials: equal weight, cash, and the best constant band.

A constant band holds every coin's weight within [lo, hi], the same two numbers on every bar. It is chosen on a split's
fit and validation bars and traded on its test bars, in the same environment and at the same costs as a policy. First
every coin gets the same band from a small grid; then each coin is tried without, and left out where that earned more.

Computed once per study, when it has all its trials; `<study>/yardsticks.json` keeps it.
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
# Of the grid: lower edges as shares of equal weight, upper edges as multiples of it. A lower edge of 0 never buys.
LOWER, UPPER = (0.25, 0.5, 0.75, 0.95), (1.0, 1.5, 3.0)
CHOICE_BARS = 30_000  # the band is chosen on the last so many bars of a split's fit and validation bars
# What computing them may raise; the study's own results are safe by then.
YARDSTICK_ERRORS = (OSError, ValueError, RuntimeError, ArithmeticError, MemoryError)


@dataclass(frozen=True)
class ConstantBand:
    """Edges of the weight of each coin, (A,) each, 0 <= lo <= hi <= 1."""

    lo: tuple[float, ...]
    hi: tuple[float, ...]

    def without(self, coin: int) -> ConstantBand:
        """The band that never holds that coin."""
        lo, hi = list(self.lo), list(self.hi)
        lo[coin] = hi[coin] = 0.0
        return ConstantBand(tuple(lo), tuple(hi))


class YardstickSplit(msgspec.Struct, frozen=True):
    """What needs no learning, on the test bars of one split."""

    fold: int
    band: ConstantBand
    constant_band: Metrics = msgspec.field(name=CONSTANT_BAND)
    equal_weight: Metrics = msgspec.field(name=EQUAL_WEIGHT)


class YardsticksOfBars(msgspec.Struct, frozen=True):
    """The yardsticks of one data set."""

    env: dict[str, Any]
    tickers: tuple[str, ...]
    splits: tuple[YardstickSplit, ...]


class YardsticksFile(msgspec.Struct, frozen=True):
    """`yardsticks.json`."""

    uuid: str
    timeframes: dict[str, YardsticksOfBars]


@dataclass(frozen=True)
class Yardstick:
    """One yardstick beside the trials."""

    name: str
    mean_return: float  # total return on the test bars, mean over the splits
    mean_sharpe: float  # nan for cash
    n_beaten_by: int  # completed trials whose mean return is higher
    n_trials: int  # completed trials that it is compared with


def grid(n_coins: int) -> list[ConstantBand]:
    """The bands that all coins share."""
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
    """Trade every band on its own blocks, all in one batch -> records of each band.

    Args:
        bands: one for each entry of `blocks`.
        blocks: (first, last_exclusive) of each.
        data: the bars.
        env: rules and costs of the environment, `norm_action` 1.
        gpu_id: -1 is the CPU.
    """
    segments = [with_warmup(b, data.dataset.segments, env["lookback"], MAX_LOOKBACK) for b in blocks]
    counts = [len(s) for s in segments]
    # Features are not looked at: one column saves copying all of them on every bar.
    config = dict(data.dataset.env_config()) | {"tech_array": np.zeros((len(data.dataset.price), 1), np.float32)}
    act = _act(bands, counts)
    (records,) = evaluate_policies([act], [[s for each in segments for s in each]], config, env, gpu_id=gpu_id)
    if len(records) != sum(counts):
        raise StudyError("a block is too short for a constant band; give more data, or a smaller --num-paths")
    found = iter(records)
    return [[next(found) for _ in range(n)] for n in counts]


def _act(bands: Sequence[ConstantBand], counts: Sequence[int]) -> Any:
    """Observations (N, S) -> orders (N, A) of N accounts, `counts` of each band in turn."""
    rows = [band for band, n in zip(bands, counts, strict=True) for _ in range(n)]
    lo, hi = torch.tensor([b.lo for b in rows]), torch.tensor([b.hi for b in rows])

    def act(state: Tensor) -> Tensor:
        weight = state[:, 1 : 1 + lo.shape[1]]
        target = torch.minimum(torch.maximum(weight, lo.to(state.device)), hi.to(state.device))
        return torch.where(target > 0.0, target - weight, -1.0)  # the whole position, though its price moves on

    return act


def _growth(records: Sequence[EpisodeRecord]) -> float:
    return sum(record.growth for record in records)


def choose_bands(data: FoldedData, env: Mapping[str, Any], gpu_id: int = -1) -> list[ConstantBand]:
    """The best constant band of every split, by log growth on its fit and validation bars."""
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
    # Coins that are each better left out need not be so together; with none left the account is cash.
    return [less if g[0] > all_coins else band
            for less, band, g, all_coins in zip(fewer, chosen, together, known, strict=True)]  # fmt: skip


def _last_bars(fold: Fold) -> Segments:
    """The last bars of the fold that neither test it nor are purged."""
    left, kept = CHOICE_BARS, []
    for first, last in sorted((*fold.fit, *fold.validation), reverse=True):
        if left < 2 * MAX_LOOKBACK:
            break
        kept.append((max(first, last - left), last))
        left -= last - kept[-1][0]
    return tuple(sorted(kept))


# ------------------------------------------------------------------------------------------------------------- a study
def band_env(data: FoldedData, volume_30d: float | None) -> dict[str, Any]:
    """The rules under which a constant band trades: those of the band agent, at the venue's costs."""
    fixed = dict(TABLES["band"].fixed_env)
    return fixed | {"lookback": 1} | venue_env(data.dataset, volume_30d, fixed["rules"])


def compute(data: FoldedData, volume_30d: float | None, gpu_id: int = -1) -> YardsticksOfBars:
    """The yardsticks of one data set, as `yardsticks.json` keeps them."""
    env, per_year = band_env(data, volume_30d), data.dataset.bars_per_year
    bands = choose_bands(data, env, gpu_id)
    by_fold = trade_bands(bands, [fold.test for fold in data.folds], data, env, gpu_id)
    splits = []
    for fold, band, records in zip(data.folds, bands, by_fold, strict=True):
        bought = agent_metrics(records, per_year)
        splits.append(YardstickSplit(fold.index, band, bought, equal_weight_metrics(records, per_year)))
    return YardsticksOfBars(env, tuple(data.dataset.tickers), tuple(splits))


def of_bars_json(found: YardsticksOfBars) -> dict[str, Any]:
    """Plain values; null is undefined, and of equal weight there are no figures of trades, which are not kept."""
    content = plain(found)
    for split in content["splits"]:
        split[EQUAL_WEIGHT] = kept_of_equal_weight(split[EQUAL_WEIGHT])
    return with_null(content)


def write_yardsticks(
    study: optuna.Study, folder: Path, data: Sequence[FoldedData], volume_30d: float | None, gpu_id: int = -1
) -> None:
    """Compute and keep the yardsticks of a study that does not have them; a failure is logged and raises nothing."""
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
        logger.error("yardsticks: not computed: %s: %s", type(error).__name__, str(error).strip() or "no message")
        logger.debug("yardsticks", exc_info=True)


def read_yardsticks(study: optuna.Study, folder: Path) -> list[Yardstick]:
    """The yardsticks beside the study's completed trials; empty where they were not computed or are another study's."""
    try:
        content = read_record(folder / YARDSTICKS_FILE, YardsticksFile)
    except StudyError:
        return []
    if content.uuid != uuid_in(study.user_attrs):
        return []
    return beside(study, content.timeframes)


def beside(study: optuna.Study, timeframes: Mapping[str, YardsticksOfBars]) -> list[Yardstick]:
    """Every yardstick against the completed trials; each trial meets the yardstick of its own timeframe."""
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
    """Total return on the test bars, mean over the trial's splits; nan where it is not known."""
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
    """For the log."""
    if not yardsticks:
        return []
    texts = [f"{y.name} {y.mean_return:+.2%}, beaten by {y.n_beaten_by}" for y in yardsticks]
    n = counted(yardsticks[0].n_trials, "completed trial")
    return [f"mean return over the splits' test bars, and how many of {n} earned more: {'; '.join(texts)}"]
